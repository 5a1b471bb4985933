//! kill -9 does not show in the output.
//!
//! Real processes run the bounded main job; TaskManagers and the JobManager are killed while records flow. The committed output must be
//! byte-equal, after sorting, to a sequential fold, and every checkpoint that completed on the way must equal the fold up to its source
//! positions, read offline.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::time::Duration;

use perennial_actors::model::JobState;
use perennial_chaos::checker::Recording;
use perennial_chaos::process::{ClusterPlan, ProcessCluster, binary};
use perennial_chaos::scenario::Detection;
use perennial_chaos::seed::Seed;
use perennial_chaos::storage::StorageKind;

/// Who takes the place of a dead TaskManager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spare {
    /// A fourth one, idle until then.
    Slot,
    /// Nobody: it is started again.
    None,
}

fn plan(storage: StorageKind, task_managers: u32) -> ClusterPlan {
    ClusterPlan::new(binary())
        .storage(storage)
        .task_managers(task_managers)
}

#[test]
fn killed_nodes_do_not_show_in_the_output_on_disk_with_a_spare_slot() {
    let seed = Seed::announce(
        "kill",
        "killed_nodes_do_not_show_in_the_output_on_disk_with_a_spare_slot",
    );
    kill_two_task_managers_and_the_job_manager(StorageKind::Disk, Spare::Slot, &seed);
}

#[test]
fn killed_nodes_do_not_show_in_the_output_on_disk_without_a_spare_slot() {
    let seed = Seed::announce(
        "kill",
        "killed_nodes_do_not_show_in_the_output_on_disk_without_a_spare_slot",
    );
    kill_two_task_managers_and_the_job_manager(StorageKind::Disk, Spare::None, &seed);
}

#[test]
fn killed_nodes_do_not_show_in_the_output_on_s3_with_a_spare_slot() {
    let seed = Seed::announce(
        "kill",
        "killed_nodes_do_not_show_in_the_output_on_s3_with_a_spare_slot",
    );
    kill_two_task_managers_and_the_job_manager(StorageKind::S3, Spare::Slot, &seed);
}

#[test]
fn killed_nodes_do_not_show_in_the_output_on_s3_without_a_spare_slot() {
    let seed = Seed::announce(
        "kill",
        "killed_nodes_do_not_show_in_the_output_on_s3_without_a_spare_slot",
    );
    kill_two_task_managers_and_the_job_manager(StorageKind::S3, Spare::None, &seed);
}

fn kill_two_task_managers_and_the_job_manager(storage: StorageKind, spare: Spare, seed: &Seed) {
    let nodes = if spare == Spare::Slot { 4 } else { 3 };
    let mut cluster = ProcessCluster::start(plan(storage, nodes)).unwrap();
    let job = Detection::submit(&cluster, seed, Duration::from_secs(6)).unwrap();

    for restarts in 1..=2 {
        job.wait_for_progress(&mut cluster);
        let victim = seed.take(&mut busy(&cluster, &job));
        cluster.kill(&victim).unwrap();
        if spare == Spare::None {
            cluster.restart(&victim).unwrap();
        }
        let status = job.wait_for_recovery(&mut cluster, restarts);
        let recovery = status.recoveries.last().unwrap();
        assert!(
            recovery.checkpoint.is_some(),
            "restored nothing: {recovery:?}"
        );
        if spare == Spare::Slot {
            assert!(
                !busy(&cluster, &job).contains(&victim),
                "tasks run on the dead {victim}"
            );
            cluster.restart(&victim).unwrap();
            cluster.wait_for_task_managers(nodes);
        }
    }

    let before = job.wait_for_progress(&mut cluster);
    cluster.kill("jobmanager-1").unwrap();
    cluster.restart("jobmanager-1").unwrap();
    let after = job.wait_for_progress(&mut cluster);
    assert!(after > before, "checkpoint {after} after {before}");

    expect_exact(job, &mut cluster, 2);
}

#[test]
fn a_kill_during_restore_does_not_show_in_the_output_on_disk() {
    let seed = Seed::announce(
        "kill",
        "a_kill_during_restore_does_not_show_in_the_output_on_disk",
    );
    kill_during_restore(StorageKind::Disk, &seed);
}

#[test]
fn a_kill_during_restore_does_not_show_in_the_output_on_s3() {
    let seed = Seed::announce(
        "kill",
        "a_kill_during_restore_does_not_show_in_the_output_on_s3",
    );
    kill_during_restore(StorageKind::S3, &seed);
}

/// A second TaskManager dies as soon as the first one's death is being recovered from, and the JobManager during the next recovery.
fn kill_during_restore(storage: StorageKind, seed: &Seed) {
    let mut cluster = ProcessCluster::start(plan(storage, 4)).unwrap();
    let job = Detection::submit(&cluster, seed, Duration::from_secs(5)).unwrap();
    job.wait_for_progress(&mut cluster);
    let mut victims = busy(&cluster, &job);
    let first = seed.take(&mut victims);
    let second = seed.take(&mut victims);
    let third = seed.take(&mut victims);
    cluster.kill(&first).unwrap();
    wait_until_recovering(&mut cluster, &job);
    cluster.kill(&second).unwrap();
    cluster.restart(&first).unwrap();
    cluster.restart(&second).unwrap();
    let status = job.wait_for_recovery(&mut cluster, 1);
    assert!(status.recoveries.last().unwrap().checkpoint.is_some());

    job.wait_for_progress(&mut cluster);
    cluster.kill(&third).unwrap();
    wait_until_recovering(&mut cluster, &job);
    cluster.kill("jobmanager-1").unwrap();
    cluster.restart("jobmanager-1").unwrap();
    cluster.restart(&third).unwrap();
    job.wait_for_progress(&mut cluster);

    expect_exact(job, &mut cluster, 2);
}

fn wait_until_recovering(cluster: &mut ProcessCluster, job: &Detection) {
    cluster.wait_until("a recovery under way", Duration::from_secs(10), |cluster| {
        let status = cluster.status(&job.job)?;
        let is_whole = status.summary.state == JobState::Running
            && status.summary.tasks_running == status.summary.tasks_total;
        Ok((!is_whole).then_some(()))
    });
}

/// TaskManagers that run tasks of the job.
fn busy(cluster: &ProcessCluster, job: &Detection) -> Vec<String> {
    let status = cluster.status(&job.job).unwrap();
    let mut names: Vec<String> = status
        .subtasks
        .into_iter()
        .filter_map(|subtask| Some(subtask.task_manager?.0))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Output and checkpoints are exact; each leader claimed its epoch.
fn expect_exact(job: Detection, cluster: &mut ProcessCluster, epochs: u64) -> Recording {
    let recording = job.finish(cluster).unwrap();
    assert!(
        recording.checked.len() >= 5,
        "only {} checkpoints were checked",
        recording.checked.len()
    );
    let newest = recording.records.values().map(|r| r.epoch.0).max();
    assert_eq!(newest, Some(epochs), "leaders that wrote records");
    recording
}
