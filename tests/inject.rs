//! Faults by control message strike the unchanged binary, and only one that is told to obey them.
//!
//! Real processes run the bounded main job; actors, nodes and user code are broken by `InjectFault`. Whatever is struck, the committed
//! output must equal a sequential fold, as must every checkpoint on the way; the failure must name what was struck.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, as the test does"
)]

use std::time::Duration;

use perennial_actors::fault::{
    ActorAddress, ActorFault, CHAOS_KEY, Injection, NodeFault, TaskAddress, UserFault,
};
use perennial_actors::model::{FailureKind, JobState, ResourceId};
use perennial_chaos::process::{ClusterPlan, ProcessCluster, binary};
use perennial_chaos::scenario::Detection;
use perennial_chaos::seed::Seed;

fn plan() -> ClusterPlan {
    ClusterPlan::new(binary()).set(CHAOS_KEY, true)
}

fn panic_of(actor: ActorAddress) -> Injection {
    Injection::Actor {
        actor,
        fault: ActorFault::Panic,
    }
}

fn task_manager(n: u32) -> ResourceId {
    ResourceId(format!("taskmanager-{n}"))
}

#[test]
fn a_cluster_with_default_settings_refuses_and_names_the_key() {
    let cluster = ProcessCluster::start(ClusterPlan::new(binary()).task_managers(1)).unwrap();
    let error = cluster
        .inject(panic_of(ActorAddress::JobManager))
        .unwrap_err()
        .to_string();
    assert!(error.contains("chaos.enabled: true"), "{error}");
    assert_eq!(cluster.task_managers().unwrap().len(), 1, "it lives on");
}

/// A1 and S6: a record that breaks the user function twice, in whichever attempts meet it.
#[test]
fn a_poison_record_strikes_as_often_as_it_shall_and_names_its_place() {
    let seed = Seed::announce(
        "inject",
        "a_poison_record_strikes_as_often_as_it_shall_and_names_its_place",
    );
    let mut cluster = ProcessCluster::start(plan()).unwrap();
    let job = Detection::submit(&cluster, &seed, Duration::from_secs(6)).unwrap();
    job.wait_for_progress(&mut cluster);
    let fault = Injection::UserCode {
        job: job.job.parse().unwrap(),
        place: TaskAddress::default(),
        fault: UserFault::Panic,
        times: 2,
    };
    let victim = cluster.inject(fault).unwrap();
    let status = job.wait_for_recovery(&mut cluster, 2);
    let struck: Vec<_> = status
        .recoveries
        .iter()
        .map(|recovery| &recovery.cause)
        .filter(|cause| matches!(&cause.kind, FailureKind::Panic { message, .. } if message.contains("injected fault")))
        .collect();
    assert_eq!(struck.len(), 2, "{:?}", status.recoveries);
    for cause in struck {
        let attempt = cause.attempt.unwrap();
        let operator = cause.operator.as_deref().unwrap();
        assert_eq!(victim, format!("{operator}, subtask {}", attempt.subtask));
        assert!(cause.position.is_some(), "{cause}");
    }
    job.finish(&mut cluster).unwrap();
}

/// A2.
#[test]
fn an_unrecoverable_error_fails_the_job_at_once() {
    let seed = Seed::announce("inject", "an_unrecoverable_error_fails_the_job_at_once");
    let mut cluster = ProcessCluster::start(plan()).unwrap();
    let job = Detection::submit(&cluster, &seed, Duration::from_secs(20)).unwrap();
    job.wait_for_progress(&mut cluster);
    let fault = Injection::UserCode {
        job: job.job.parse().unwrap(),
        place: TaskAddress::default(),
        fault: UserFault::Error {
            is_unrecoverable: true,
        },
        times: 1,
    };
    cluster.inject(fault).unwrap();
    let status = cluster.wait_for_state(&job.job, JobState::Failed, Duration::from_secs(20));
    // Even when the echo of the failure at a peer came first, and a restart was decided on.
    assert_eq!(status.summary.restarts, 0, "{:?}", status.recoveries);
    let failure = status.failure.unwrap().to_string();
    assert!(failure.contains("injected fault"), "{failure}");
}

/// A5: the thread cannot be ended, so its process is, with the exit code for it; the job's cancellation is not held up for ever.
#[test]
fn a_function_that_never_returns_costs_its_process_when_it_is_cancelled() {
    let seed = Seed::announce(
        "inject",
        "a_function_that_never_returns_costs_its_process_when_it_is_cancelled",
    );
    let plan = plan().set("task.cancellation.timeout", "1s");
    let mut cluster = ProcessCluster::start(plan).unwrap();
    let job = Detection::submit(&cluster, &seed, Duration::from_secs(30)).unwrap();
    job.wait_for_progress(&mut cluster);
    let place = TaskAddress::default();
    let id = job.job.parse().unwrap();
    let fault = Injection::UserCode {
        job: id,
        place: place.clone(),
        fault: UserFault::Stuck,
        times: 1,
    };
    cluster.inject(fault).unwrap();
    let status = cluster.status(&job.job).unwrap();
    let victim = status
        .subtasks
        .iter()
        .find(|subtask| subtask.vertex == 1 && subtask.subtask == place.subtask)
        .and_then(|subtask| subtask.task_manager.clone())
        .unwrap();
    for name in cluster.task_manager_names() {
        cluster.node_mut(&name).unwrap().may_exit();
    }
    assert!(cluster.cli(&["cancel", &job.job]).unwrap().status.success());
    let code = cluster.wait_for_exit(&victim.to_string(), Duration::from_secs(20));
    assert_eq!(code.unwrap(), 6);
    cluster.wait_for_state(&job.job, JobState::Canceled, Duration::from_secs(20));
}

/// A4: each kind of actor breaks once while records flow.
#[test]
fn a_panic_of_any_actor_does_not_show_in_the_output() {
    let seed = Seed::announce("inject", "a_panic_of_any_actor_does_not_show_in_the_output");
    let mut cluster = ProcessCluster::start(plan()).unwrap();
    let job = Detection::submit(&cluster, &seed, Duration::from_secs(30)).unwrap();
    let id = job.job.parse().unwrap();
    for actor in [
        ActorAddress::JobMaster(id),
        ActorAddress::CheckpointCoordinator(id),
        ActorAddress::TaskManagerPeer(task_manager(1)),
        ActorAddress::Subtask(id, TaskAddress::default()),
    ] {
        job.wait_for_progress(&mut cluster);
        cluster.inject(panic_of(actor)).unwrap();
    }
    // A root or a session takes its process with it.
    for (actor, process) in [
        (ActorAddress::TaskManager(task_manager(1)), "taskmanager-1"),
        (
            ActorAddress::JobManagerSession(task_manager(2)),
            "taskmanager-2",
        ),
        (ActorAddress::JobManager, "jobmanager-1"),
    ] {
        job.wait_for_progress(&mut cluster);
        cluster.node_mut(process).unwrap().may_exit();
        cluster.inject(panic_of(actor)).unwrap();
        let code = cluster
            .wait_for_exit(process, Duration::from_secs(20))
            .unwrap();
        assert_eq!(code, 1, "{process}");
        cluster.restart(process).unwrap();
    }
    job.finish(&mut cluster).unwrap();
}

/// T1, A6: clocks that jump by a day and an actor that is slow for a while cost nothing; nor do heartbeats that stay out while the
/// node's acknowledgements show that it lives. (That an idle node is lost by it is shown beside the TaskManager.)
#[test]
fn jumping_clocks_slow_actors_and_missing_heartbeats_restart_nothing() {
    let seed = Seed::announce(
        "inject",
        "jumping_clocks_slow_actors_and_missing_heartbeats_restart_nothing",
    );
    let mut cluster = ProcessCluster::start(plan()).unwrap();
    let job = Detection::submit(&cluster, &seed, Duration::from_secs(12)).unwrap();
    job.wait_for_progress(&mut cluster);
    let day = 86_400_000;
    for (node, millis) in [
        (None, day),
        (Some(task_manager(1)), -day),
        (Some(task_manager(2)), 3_600_000),
    ] {
        let fault = NodeFault::ClockOffset(millis);
        cluster.inject(Injection::Node { node, fault }).unwrap();
    }
    let slow = Injection::Actor {
        actor: ActorAddress::JobMaster(job.job.parse().unwrap()),
        fault: ActorFault::Stall(Duration::from_millis(700)),
    };
    cluster.inject(slow).unwrap();
    let silence = Injection::Node {
        node: Some(task_manager(3)),
        fault: NodeFault::NoHeartbeats(Duration::from_secs(5)),
    };
    cluster.inject(silence).unwrap();
    job.wait_for_progress(&mut cluster);
    let id = job.job.clone();
    let recording = job.finish(&mut cluster).unwrap();
    assert!(recording.checked.len() > 2);
    let status = cluster.status(&id).unwrap();
    assert_eq!(status.summary.restarts, 0, "{:?}", status.recoveries);
}
