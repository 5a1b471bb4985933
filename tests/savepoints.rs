//! Savepoints carry a job over to another parallelism, and damaged state is never trusted.
//!
//! Real processes; state is damaged in the store while no task runs, so that the next restore must meet it.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use perennial_actors::model::{JobState, JobStatus, TaskState};
use perennial_chaos::checker::SnapshotReader;
use perennial_chaos::oracle::{KeyedCount, Positions, committed_lines, compare};
use perennial_chaos::process::{ClusterPlan, ProcessCluster, binary};
use perennial_chaos::seed::Seed;

const LONG: Duration = Duration::from_secs(30);

/// State in objects of its own, so that it can be damaged apart from the records.
const IN_OBJECTS: (&str, &str) = ("execution.checkpointing.data-inline-threshold", "0");

fn cluster(task_managers: u32, slots: u32) -> ProcessCluster {
    let plan = ClusterPlan::new(binary())
        .task_managers(task_managers)
        .slots(slots)
        .set("restart-strategy.type", "fixed-delay")
        .set("restart-strategy.fixed-delay.attempts", "20")
        .set("restart-strategy.fixed-delay.delay", "50ms");
    ProcessCluster::start(plan).unwrap()
}

/// Bounded, at any parallelism.
struct Bounded {
    oracle: KeyedCount,
    rate: u64,
}

impl Bounded {
    fn new(seed: &Seed) -> Self {
        let oracle = KeyedCount {
            keys: seed.between(100, 400),
            events: 9000,
            lanes: 3,
        };
        Self { oracle, rate: 1000 }
    }

    fn submit(
        &self,
        cluster: &ProcessCluster,
        output: &str,
        parallelism: u32,
        more: &[&str],
    ) -> (String, PathBuf) {
        let output = cluster.path(output);
        let (keys, events) = (self.oracle.keys.to_string(), self.oracle.events.to_string());
        let (lanes, rate) = (self.oracle.lanes.to_string(), self.rate.to_string());
        let (parallelism, text) = (
            parallelism.to_string(),
            output.to_string_lossy().into_owned(),
        );
        let mut arguments = vec![
            "keyed-count",
            "--keys",
            &keys,
            "--events",
            &events,
            "--lanes",
            &lanes,
            "--rate",
            &rate,
            "--output",
            &text,
            "-p",
            &parallelism,
        ];
        arguments.extend(more);
        // None but the savepoint and the final one, unless asked for.
        let job = cluster
            .submit(
                &[IN_OBJECTS, ("execution.checkpointing.interval", "1h")],
                &arguments,
            )
            .unwrap();
        (job, output)
    }

    /// Waits until a third is done: then a savepoint has something before and something after it.
    fn wait_for_a_third(&self, cluster: &mut ProcessCluster, job: &str) {
        cluster.wait_until("a third of the events", LONG, |cluster| {
            let status = cluster.status(job)?;
            let seen: u64 = counted(&status).iter().sum();
            Ok((seen > self.oracle.events / 3).then_some(()))
        });
    }

    /// Runs on from a savepoint to the end; the output after it is what the fold gives after its positions.
    fn finish_from(
        &self,
        cluster: &mut ProcessCluster,
        path: &str,
        at: &Positions,
        parallelism: u32,
    ) {
        let name = format!("output-{parallelism}");
        let (job, output) = self.submit(cluster, &name, parallelism, &["--from-savepoint", path]);
        let status = cluster.wait_for_state(&job, JobState::Finished, LONG);
        assert_eq!(status.summary.restarts, 0, "{:?}", status.recoveries);
        let tasks = status.subtasks.iter().filter(|t| t.vertex == 1).count();
        assert_eq!(tasks, parallelism as usize);
        let mut expected = self.oracle.lines();
        remove(&mut expected, &self.oracle.lines_up_to(at));
        compare(&committed_lines(&output).unwrap(), &expected).unwrap();
    }
}

/// Takes lines out of others that contain them.
fn remove(from: &mut Vec<String>, lines: &[String]) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in lines {
        *counts.entry(line).or_default() += 1;
    }
    from.retain(|line| match counts.get_mut(line.as_str()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        Some(_) | None => true,
    });
    assert!(
        counts.values().all(|count| *count == 0),
        "not all lines were there"
    );
}

/// Records that each subtask of the counting vertex has taken.
fn counted(status: &JobStatus) -> Vec<u64> {
    let tasks = status.subtasks.iter().filter(|t| t.vertex == 1);
    tasks.map(|t| t.counters.records_in).collect()
}

fn path_of(answer: &serde_json::Value) -> String {
    answer["path"]
        .as_str()
        .expect("the answer names a path")
        .to_owned()
}

#[test]
fn a_savepoint_continues_at_any_parallelism_after_a_cancel() {
    let seed = Seed::announce(
        "savepoints",
        "a_savepoint_continues_at_any_parallelism_after_a_cancel",
    );
    let mut cluster = cluster(2, 2);
    let job = Bounded::new(&seed);
    let (id, _) = job.submit(&cluster, "output", 2, &[]);
    job.wait_for_a_third(&mut cluster, &id);
    let target = cluster.storage().uri("savepoints");
    let path = path_of(&cluster.ask(&["savepoint", &id, &target]).unwrap());
    let answer: serde_json::Value = cluster.ask(&["cancel", &id]).unwrap();
    assert_eq!(answer["state"], "CANCELED");
    cluster.wait_for_state(&id, JobState::Canceled, LONG);

    let snapshot = SnapshotReader::open(&cluster.storage().open(), &path).unwrap();
    let at = snapshot.check(&job.oracle).unwrap();
    assert!(
        at.values().sum::<u64>() < job.oracle.events,
        "the savepoint came too late"
    );
    for parallelism in [1, 3, 4] {
        job.finish_from(&mut cluster, &path, &at, parallelism);
    }
}

#[test]
fn a_job_stopped_with_a_savepoint_has_committed_all_before_it_and_continues_at_any_parallelism() {
    let seed = Seed::announce(
        "savepoints",
        "a_job_stopped_with_a_savepoint_has_committed_all_before_it_and_continues_at_any_parallelism",
    );
    let mut cluster = cluster(2, 2);
    let job = Bounded::new(&seed);
    let (id, output) = job.submit(&cluster, "output", 3, &[]);
    job.wait_for_a_third(&mut cluster, &id);
    let target = cluster.storage().uri("savepoints");
    let path = path_of(&cluster.ask(&["stop", &id, "--savepoint", &target]).unwrap());
    cluster.wait_for_state(&id, JobState::Finished, LONG);

    let snapshot = SnapshotReader::open(&cluster.storage().open(), &path).unwrap();
    let at = snapshot.check(&job.oracle).unwrap();
    assert!(
        at.values().sum::<u64>() < job.oracle.events,
        "the savepoint came too late"
    );
    compare(
        &committed_lines(&output).unwrap(),
        &job.oracle.lines_up_to(&at),
    )
    .unwrap();
    for parallelism in [1, 3, 4] {
        job.finish_from(&mut cluster, &path, &at, parallelism);
    }
}

/// What can happen to an object.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Truncated,
    Flipped,
    Missing,
}

impl Damage {
    fn apply(self, seed: &Seed, files: &[PathBuf]) {
        assert!(!files.is_empty(), "there is nothing to damage");
        for file in files {
            let mut bytes = std::fs::read(file).unwrap();
            match self {
                Self::Truncated => bytes.truncate(bytes.len() / 2),
                Self::Flipped => {
                    let at = usize::try_from(seed.below(bytes.len() as u64)).unwrap();
                    bytes[at] ^= 1 << seed.below(8);
                }
                Self::Missing => {
                    std::fs::remove_file(file).unwrap();
                    continue;
                }
            }
            std::fs::write(file, bytes).unwrap();
        }
    }
}

/// An endless job with a checkpoint every 200 ms, three retained.
fn submit_endless(cluster: &ProcessCluster, settings: &[(&str, &str)], more: &[&str]) -> String {
    let mut all = vec![
        IN_OBJECTS,
        ("execution.checkpointing.interval", "200ms"),
        ("execution.checkpointing.num-retained", "3"),
        (
            "execution.checkpointing.tolerable-failed-checkpoints",
            "100",
        ),
    ];
    all.extend(settings);
    let mut arguments = vec!["keyed-count", "--keys", "500", "--rate", "2000", "-p", "2"];
    arguments.extend(more);
    cluster.submit(&all, &arguments).unwrap()
}

/// Lets three checkpoints complete, kills every TaskManager, damages what only the newest checkpoint holds, starts them again. Returns the
/// damaged checkpoint.
fn damage_the_newest(cluster: &mut ProcessCluster, job: &str, damage: Damage, seed: &Seed) -> u64 {
    let mut newest = 0;
    for _ in 0..4 {
        newest = cluster.wait_for_checkpoint(job, newest, LONG);
    }
    let names = cluster.task_manager_names();
    for name in &names {
        cluster.kill(name).unwrap();
    }
    let newest = cluster.wait_until("all tasks lost and nothing under way", LONG, |cluster| {
        let status = cluster.status(job)?;
        let is_lost = cluster.task_managers()?.is_empty() && status.summary.tasks_running == 0;
        Ok(status.summary.last_checkpoint.filter(|_| is_lost))
    });
    let uri = cluster.storage().uri(&format!("checkpoints/{job}"));
    let directory = PathBuf::from(uri.strip_prefix("file://").unwrap());
    let shared = std::fs::read_dir(directory.join("shared")).unwrap();
    let own: Vec<PathBuf> = shared
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains(&format!("-c{}-", newest.0)))
        .collect();
    damage.apply(seed, &own);
    cluster.say(&format!("{damage:?}: {own:?}"));
    for name in &names {
        cluster.restart(name).unwrap();
    }
    newest.0
}

/// Waits for a recovery that stepped over this checkpoint.
fn expect_step_down(cluster: &mut ProcessCluster, job: &str, damaged: u64) {
    let name = format!("checkpoint {damaged}");
    let what = format!("a recovery that skips {name}");
    let status = cluster.wait_until(&what, LONG, |cluster| {
        let status = cluster.status(job)?;
        assert!(!status.summary.state.is_terminal(), "{:?}", status.failure);
        let is_whole = status.summary.tasks_running == status.summary.tasks_total;
        let has_skipped = status
            .recoveries
            .iter()
            .any(|r| r.skipped.iter().any(|s| s.contains(&name)));
        Ok((is_whole && has_skipped).then_some(status))
    });
    let recovery = status.recoveries.last().unwrap();
    let restored = recovery.checkpoint.expect("an older one is restored").0;
    assert!(restored < damaged, "restored {restored}, damaged {damaged}");
    assert!(
        status.notices.iter().any(|notice| notice.contains(&name)),
        "the status does not say so: {:?}",
        status.notices
    );
    // The job goes on from there.
    cluster.wait_for_checkpoint(job, damaged, LONG);
}

#[test]
fn a_truncated_flipped_or_missing_object_makes_the_job_step_down_and_say_so() {
    let seed = Seed::announce(
        "savepoints",
        "a_truncated_flipped_or_missing_object_makes_the_job_step_down_and_say_so",
    );
    let mut cluster = cluster(2, 1);
    let job = submit_endless(&cluster, &[], &[]);
    for damage in [Damage::Truncated, Damage::Flipped, Damage::Missing] {
        let damaged = damage_the_newest(&mut cluster, &job, damage, &seed);
        expect_step_down(&mut cluster, &job, damaged);
    }
}

#[test]
fn a_job_with_a_transactional_sink_fails_naming_the_span_instead_of_repeating_output() {
    let seed = Seed::announce(
        "savepoints",
        "a_job_with_a_transactional_sink_fails_naming_the_span_instead_of_repeating_output",
    );
    let mut cluster = cluster(2, 1);
    let output = cluster.path("output");
    let job = submit_endless(&cluster, &[], &["--output", &output.to_string_lossy()]);
    let damaged = damage_the_newest(&mut cluster, &job, Damage::Flipped, &seed);
    let status = cluster.wait_for_state(&job, JobState::Failed, LONG);
    let failure = status
        .failure
        .expect("a failed job has a cause")
        .to_string();
    for part in [
        &format!("checkpoint {damaged} is damaged"),
        "would repeat committed output",
        "source `generator` split lane-0 positions",
        "recovery.ladder.allow-repeat",
    ] {
        assert!(failure.contains(part), "`{part}` is missing in: {failure}");
    }
}

#[test]
fn repeats_that_are_allowed_let_a_transactional_job_step_down() {
    let seed = Seed::announce(
        "savepoints",
        "repeats_that_are_allowed_let_a_transactional_job_step_down",
    );
    let mut cluster = cluster(2, 1);
    let output = cluster.path("output");
    let settings = [("recovery.ladder.allow-repeat", "true")];
    let job = submit_endless(
        &cluster,
        &settings,
        &["--output", &output.to_string_lossy()],
    );
    let damaged = damage_the_newest(&mut cluster, &job, Damage::Missing, &seed);
    expect_step_down(&mut cluster, &job, damaged);
}

#[test]
fn a_damaged_savepoint_that_was_named_is_refused_before_any_task_starts() {
    let seed = Seed::announce(
        "savepoints",
        "a_damaged_savepoint_that_was_named_is_refused_before_any_task_starts",
    );
    let mut cluster = cluster(2, 1);
    let job = submit_endless(&cluster, &[], &[]);
    cluster.wait_for_checkpoint(&job, 0, LONG);
    for damage in [Damage::Truncated, Damage::Flipped, Damage::Missing] {
        let target = cluster.storage().uri("savepoints");
        let path = path_of(&cluster.ask(&["savepoint", &job, &target]).unwrap());
        let directory = PathBuf::from(path.strip_prefix("file://").unwrap());
        let shared = std::fs::read_dir(directory.join("shared")).unwrap();
        let mut objects: Vec<PathBuf> = shared.map(|entry| entry.unwrap().path()).collect();
        objects.sort();
        let one = seed.take(&mut objects);
        damage.apply(&seed, std::slice::from_ref(&one));
        let output = cluster
            .cli(&[
                "run",
                "keyed-count",
                "-p",
                "2",
                "--events",
                "1000",
                "--from-savepoint",
                &path,
            ])
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{damage:?}: {message}");
        let object = one.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            message.contains(&object),
            "{damage:?}: it names the object {object}: {message}"
        );
        expect_no_task_ran(&cluster, &job);
    }
}

/// All jobs but one are over and never deployed a task.
fn expect_no_task_ran(cluster: &ProcessCluster, but: &str) {
    for summary in cluster.jobs().unwrap() {
        let id = summary.job.to_string();
        if id == but {
            continue;
        }
        assert_eq!(summary.state, JobState::Failed);
        let status = cluster.status(&id).unwrap();
        assert!(
            status.subtasks.iter().all(|t| t.task_manager.is_none()
                && matches!(t.state, TaskState::Created | TaskState::Canceled)),
            "tasks were started: {:?}",
            status.subtasks
        );
        for name in cluster.task_manager_names() {
            let log = cluster.log(&name).unwrap();
            assert!(!log.contains(&id), "{name} has heard of {id}");
        }
    }
}
