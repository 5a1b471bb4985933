//! Two JobManagers on one store: one leads at a time, and it shows neither in the records nor in the output.
//!
//! Real processes; the leader is frozen with SIGSTOP, which no peer can tell from a cut network, and thawed after its successor leads.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use perennial_chaos::process::{ClusterPlan, ProcessCluster, binary, free_port};
use perennial_chaos::scenario::Detection;
use perennial_chaos::seed::Seed;
use perennial_chaos::storage::StorageKind;
use rustix::process::{Pid, Signal, kill_process};

/// The documented exit code of a JobManager that may not lead.
const ANOTHER_LEADS: i32 = 5;

fn plan(storage: StorageKind) -> ClusterPlan {
    ClusterPlan::new(binary())
        .storage(storage)
        // A store on a busy machine takes a second and more for an answer, and a leader that it keeps waiting for the whole lease must stop.
        .set("high-availability.lease-duration", "5s")
        .set("high-availability.renew-interval", "200ms")
        .set("heartbeat.interval", "300ms")
        .set("heartbeat.timeout", "1500ms")
}

#[test]
fn a_frozen_leader_is_replaced_and_fenced_on_disk() {
    let seed = Seed::announce("leaders", "a_frozen_leader_is_replaced_and_fenced_on_disk");
    freeze_the_leader(StorageKind::Disk, "file", &seed);
}

#[test]
fn a_frozen_leader_is_replaced_and_fenced_on_s3() {
    let seed = Seed::announce("leaders", "a_frozen_leader_is_replaced_and_fenced_on_s3");
    freeze_the_leader(StorageKind::S3, "s3", &seed);
}

fn freeze_the_leader(storage: StorageKind, high_availability: &str, seed: &Seed) {
    let plan = plan(storage).set("high-availability.type", high_availability);
    let mut cluster = ProcessCluster::start(plan).unwrap();
    let job = Detection::submit(&cluster, seed, Duration::from_secs(12)).unwrap();
    job.wait_for_progress(&mut cluster);

    // The newcomer listens, but while the leader lives it does not lead: three more checkpoints of the old one complete.
    let newcomer = cluster.start_job_manager().unwrap();
    cluster.wait_until("the newcomer listens", Duration::from_secs(10), |cluster| {
        Ok(cluster.log(&newcomer)?.contains("listens on").then_some(()))
    });
    for _ in 0..3 {
        job.wait_for_progress(&mut cluster);
    }
    let leader = cluster.address().to_owned();
    cluster.talk_to(&newcomer).unwrap();
    assert!(
        !cluster.cli(&["list"]).unwrap().status.success(),
        "the newcomer answers as a leader while the old one lives"
    );
    assert_ne!(leader, cluster.address());

    cluster.stop("jobmanager-1").unwrap();
    cluster.wait_until("the newcomer leads", Duration::from_secs(30), |cluster| {
        Ok(cluster
            .jobs()?
            .iter()
            .any(|j| j.job.to_string() == job.job)
            .then_some(()))
    });
    job.wait_for_progress(&mut cluster);

    // What the old one had under way lands now, late: it must change nothing.
    cluster.node_mut("jobmanager-1").unwrap().may_exit();
    cluster.cont("jobmanager-1").unwrap();
    let code = cluster
        .wait_for_exit("jobmanager-1", Duration::from_secs(10))
        .unwrap();
    assert_eq!(code, ANOTHER_LEADS);
    job.wait_for_progress(&mut cluster);

    let recording = job.finish(&mut cluster).unwrap();
    let epochs: Vec<u64> = recording.records.values().map(|r| r.epoch.0).collect();
    assert_eq!(
        (epochs.first(), epochs.last()),
        (Some(&1), Some(&2)),
        "{epochs:?}"
    );
    assert!(
        recording.checked.len() >= 5,
        "{:?}",
        recording.checked.keys()
    );
}

#[test]
fn without_high_availability_a_second_job_manager_ends_and_the_first_goes_on() {
    let seed = Seed::announce(
        "leaders",
        "without_high_availability_a_second_job_manager_ends_and_the_first_goes_on",
    );
    let mut cluster = ProcessCluster::start(plan(StorageKind::Disk)).unwrap();
    let job = Detection::submit(&cluster, &seed, Duration::from_secs(3)).unwrap();
    job.wait_for_progress(&mut cluster);
    let second = cluster.start_job_manager().unwrap();
    let code = cluster
        .wait_for_exit(&second, Duration::from_secs(10))
        .unwrap();
    let log = cluster.log(&second).unwrap();
    assert_eq!(code, ANOTHER_LEADS, "{log}");
    assert!(log.contains(cluster.address()), "it names who leads: {log}");
    let recording = job.finish(&mut cluster).unwrap();
    assert!(recording.records.values().all(|r| r.epoch.0 == 1));
}

/// A client that was told no address finds the leader in the store, as TaskManagers do, and again after a failover.
#[test]
fn a_run_that_is_watched_follows_its_job_to_the_next_leader() {
    let _seed = Seed::announce(
        "leaders",
        "a_run_that_is_watched_follows_its_job_to_the_next_leader",
    );
    let plan = plan(StorageKind::Disk)
        .set("high-availability.type", "file")
        .set("execution.checkpointing.interval", "200ms")
        .set("restart-strategy.type", "fixed-delay")
        .set("restart-strategy.fixed-delay.delay", "0s");
    let mut cluster = ProcessCluster::start(plan).unwrap();
    let standby = cluster.start_job_manager().unwrap();
    let keyed_count = ["run", "keyed-count", "-p", "2", "--rate", "500"];
    let keyed_count = [&keyed_count[..], &["--events", "4000"]].concat();
    let mut run = without_address(&cluster, &keyed_count)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let job = cluster.wait_until("the job", Duration::from_secs(20), |cluster| {
        Ok(cluster.jobs()?.first().map(|job| job.job.to_string()))
    });
    cluster.wait_for_checkpoint(&job, 0, Duration::from_secs(20));
    cluster.kill("jobmanager-1").unwrap();
    cluster.talk_to(&standby).unwrap();
    cluster.wait_until("the run has ended", Duration::from_secs(60), |_| {
        Ok(run.try_wait()?)
    });
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("waiting for"), "{said}");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["summary"]["state"], "FINISHED");
}

/// A command that is told the cluster's settings, and no JobManager.
fn without_address(cluster: &ProcessCluster, arguments: &[&str]) -> Command {
    let template = cluster.command(arguments);
    let mut arguments: Vec<_> = template.get_args().map(|a| a.to_owned()).collect();
    let address = arguments
        .iter()
        .position(|argument| argument == "--jobmanager")
        .unwrap();
    arguments.drain(address..address + 2);
    let mut command = Command::new(template.get_program());
    command.args(arguments);
    command
}

/// Whoever watches the process must see that there is no cluster any more, and one that waits for its turn must heed whoever ends it.
#[test]
fn a_cluster_in_one_process_ends_while_it_waits_and_when_it_leads_no_more() {
    let _seed = Seed::announce(
        "leaders",
        "a_cluster_in_one_process_ends_while_it_waits_and_when_it_leads_no_more",
    );
    let plan = plan(StorageKind::Disk).set("high-availability.type", "file");
    let mut cluster = ProcessCluster::start(plan).unwrap();
    let port = free_port().unwrap();
    let own = format!("jobmanager.rpc.port={port}");
    let mut start = without_address(&cluster, &["-D", &own, "start"]);
    start.stdout(Stdio::null()).stderr(Stdio::null());
    let mut standby = start.spawn().unwrap();
    let end = |cluster: &mut ProcessCluster, node: &mut Child| {
        cluster.wait_until("its end", Duration::from_secs(30), |_| Ok(node.try_wait()?))
    };

    cluster.wait_until("it listens", Duration::from_secs(20), |_| {
        Ok(TcpStream::connect(("127.0.0.1", port)).ok())
    });
    kill_process(Pid::from_child(&standby), Signal::TERM).unwrap();
    assert_eq!(end(&mut cluster, &mut standby).code(), Some(0));

    let mut standby = start.spawn().unwrap();
    cluster.kill("jobmanager-1").unwrap();
    let address = format!("127.0.0.1:{port}");
    cluster.wait_until("it leads", Duration::from_secs(30), |cluster| {
        let list = without_address(cluster, &["-m", &address, "list"]).output()?;
        Ok(list.status.success().then_some(()))
    });
    let next = cluster.start_job_manager().unwrap();
    kill_process(Pid::from_child(&standby), Signal::STOP).unwrap();
    cluster.talk_to(&next).unwrap();
    cluster.wait_until("the next one leads", Duration::from_secs(30), |cluster| {
        Ok(cluster.cli(&["list"])?.status.success().then_some(()))
    });
    kill_process(Pid::from_child(&standby), Signal::CONT).unwrap();
    assert_eq!(end(&mut cluster, &mut standby).code(), Some(ANOTHER_LEADS));
}
