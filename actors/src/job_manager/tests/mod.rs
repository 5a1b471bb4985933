//! The real JobManager with scripted TaskManagers: what outlives a process, a leader, a broken actor.

mod histories;
mod results;

use super::manager::STOP_MARGIN;
use super::{JOB_MASTER_RESTARTS_MAX, JobManagerEnd};
use crate::checkpoint::Store;
use crate::fault::{ActorAddress, ActorFault, Injection};
use crate::model::message::{ClientRequest, ClientResponse, RpcError, ToTaskManager};
use crate::model::*;
use crate::testing::cluster::{Cluster, until};
use crate::testing::graph;
use crate::testing::task_manager::{FakeTaskManager, io, running};

const JOB: JobId = JobId(7);

fn keyed() -> JobGraph {
    graph(&[3, 3], &[(0, 1, Exchange::Hash)])
}

#[tokio::test(start_paused = true)]
async fn a_submission_that_is_repeated_runs_one_job_and_an_id_is_not_given_twice() {
    let cluster = Cluster::start(&[3], running()).await;
    cluster.submit(&keyed()).await;
    cluster.submit(&keyed()).await;
    let Ok(ClientResponse::Jobs(jobs)) = cluster.request(ClientRequest::ListJobs).await else {
        panic!("a list");
    };
    assert_eq!(jobs.len(), 1);
    let mut other = keyed();
    other.name = "another".to_owned();
    let answer = cluster
        .request(ClientRequest::Submit(Box::new(other)))
        .await;
    assert!(matches!(answer, Err(RpcError::Refused(_))), "{answer:?}");
    let answer = cluster.request(ClientRequest::Status(JobId(1))).await;
    assert_eq!(answer, Err(RpcError::JobNotFound(JobId(1))));
}

#[tokio::test(start_paused = true)]
async fn a_graph_that_cannot_run_is_refused() {
    let cluster = Cluster::start(&[3], running()).await;
    let mut broken = keyed();
    broken.vertices[0].parallelism = 0;
    let answer = cluster
        .request(ClientRequest::Submit(Box::new(broken)))
        .await;
    assert!(matches!(answer, Err(RpcError::Refused(_))), "{answer:?}");
}

/// Told to the client that submits, not found out by a job that restarts again and again.
#[tokio::test(start_paused = true)]
async fn a_job_that_can_never_begin_is_refused_and_not_stored() {
    let cluster = Cluster::start(&[3], running()).await;
    let start_from = |path: &str| {
        let mut graph = keyed();
        graph.start_from = Some(StartFrom {
            path: path.to_owned(),
            allow_non_restored_state: false,
        });
        graph
    };
    let at = cluster.stores.at("memory://rubbish");
    at.insert("_metadata", &b"rubbish"[..]);
    let broken = cluster.stores.at("memory://silent");
    broken.faults(|_, _| Some(crate::checkpoint::testing::Fault::Fail));
    let mut hopeless = keyed();
    hopeless.settings.checkpointing.savepoint_directory = Some("nowhere".to_owned());
    for (graph, word) in [
        (
            start_from("memory://nothing/savepoint-1"),
            "no snapshot at memory://nothing/savepoint-1",
        ),
        (start_from("memory://rubbish"), "cannot be read"),
        (start_from("memory://silent"), "submit again"),
        (hopeless, "nowhere"),
    ] {
        let answer = cluster
            .request(ClientRequest::Submit(Box::new(graph)))
            .await;
        let Err(RpcError::Refused(why)) = answer else {
            panic!("{word}: {answer:?}");
        };
        assert!(why.contains(word), "{word}: {why}");
    }
    let store = cluster.stores.at("memory://ha");
    assert_eq!(store.list("jobs/").await.unwrap(), []);
}

/// The first leader shuts down; its tasks run on, are told to stop by the second one, and their successors may inherit their state.
#[tokio::test(start_paused = true)]
async fn the_next_leader_stops_what_runs_and_restores_it_in_place() {
    let first = Cluster::start(&[1, 1, 1], running()).await;
    first.submit(&keyed()).await;
    first.until_state(JOB, JobState::Running).await;
    first.coordinators.0.lock().unwrap().newest = 3;
    let log = first.log();
    let left = first.end().await;
    assert_eq!(
        left.coordinators.0.lock().unwrap().log,
        log,
        "nothing was touched"
    );

    let mut second = Cluster::lead(2, left.stores, left.coordinators).await;
    // They come in another order, and a fresh one is faster.
    second.add(3, running());
    for tm in left.task_managers.iter().rev() {
        assert_eq!(tm.running().len(), 2);
        second.welcome(std::slice::from_ref(tm));
    }
    let status = second.until_recovered(JOB, 1).await;
    assert_eq!(status.recoveries[0].restored, (6, 0), "all in place");
    assert_eq!(status.recoveries[0].checkpoint, Some(CheckpointId(3)));
    assert_eq!(status.recoveries[0].attempt.as_deref(), Some("2.1"));
    assert_eq!(status.summary.restarts, 0);
    assert!(
        second
            .running()
            .iter()
            .all(|(_, a)| a.epoch == LeaderEpoch(2))
    );
}

/// The second leader completed a checkpoint 3 of its own, elsewhere, and is gone. What these hold may be a checkpoint 3 that the first one
/// left undecided.
#[tokio::test(start_paused = true)]
async fn state_of_a_former_leader_is_not_taken_for_that_of_a_later_ones_checkpoint() {
    let first = Cluster::start(&[1, 1, 1], running()).await;
    first.submit(&keyed()).await;
    first.until_state(JOB, JobState::Running).await;
    let left = first.end().await;
    {
        let mut script = left.coordinators.0.lock().unwrap();
        script.newest = 3;
        script.completed_by = Some(LeaderEpoch(2));
    }
    let mut third = Cluster::lead(3, left.stores, left.coordinators).await;
    third.welcome(&left.task_managers);
    let status = third.until_recovered(JOB, 1).await;
    assert_eq!(status.recoveries[0].checkpoint, Some(CheckpointId(3)));
    assert_eq!(status.recoveries[0].restored, (0, 6), "from the store");
}

#[tokio::test(start_paused = true)]
async fn one_unreadable_job_does_not_keep_the_others_from_running() {
    let first = Cluster::start(&[3], running()).await;
    first.submit(&keyed()).await;
    first.until_state(JOB, JobState::Running).await;
    first.handle.control().leadership_lost("test".to_owned());
    let Cluster {
        handle,
        coordinators,
        stores,
        ..
    } = first;
    assert_eq!(
        handle.join().await,
        JobManagerEnd::LeadershipLost("test".to_owned())
    );
    let store = stores.at("memory://ha");
    let damaged = JobId(9);
    store
        .put(&format!("jobs/{damaged}/graph"), vec![1, 2, 3, 4, 5].into())
        .await
        .unwrap();
    let mut second = Cluster::lead(2, stores, coordinators).await;
    second.add(3, running());
    second.until_state(JOB, JobState::Running).await;
    let status = second.status(damaged).await;
    assert_eq!(status.summary.state, JobState::Suspended);
    assert!(status.failure.unwrap().to_string().contains("checksum"));
}

async fn break_job_master(cluster: &Cluster) {
    let answer = cluster.inject(Injection::Actor {
        actor: ActorAddress::JobMaster(JOB),
        fault: ActorFault::Panic,
    });
    answer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_survives_the_panic_of_its_jobmaster_but_not_without_bound() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    cluster.coordinators.0.lock().unwrap().newest = 1;
    for n in 1..=JOB_MASTER_RESTARTS_MAX as u32 {
        break_job_master(&cluster).await;
        let status = until("the next wave", async || {
            let status = cluster.request(ClientRequest::Status(JOB)).await.ok();
            let Some(ClientResponse::Status(status)) = status else {
                return None;
            };
            let attempt = format!("1.{}", n + 1);
            (status.summary.state == JobState::Running && status.subtasks[0].attempt == attempt)
                .then_some(status)
        })
        .await;
        assert_eq!(status.recoveries.len(), n as usize);
        let recovery = status.recoveries.last().unwrap();
        assert!(
            recovery
                .cause
                .to_string()
                .contains("injected panic of JobMaster")
        );
        assert_eq!(recovery.restored, (6, 0), "in place");
    }
    break_job_master(&cluster).await;
    // A request that meets the panic is dropped, which its client is told; it asks again.
    let status = until("given up", async || {
        let answer = cluster.request(ClientRequest::Status(JOB)).await.ok();
        let Some(ClientResponse::Status(status)) = answer else {
            return None;
        };
        (status.summary.state == JobState::Suspended).then_some(status)
    })
    .await;
    assert!(status.note.unwrap().contains("broke too often"));
    until("nothing runs", async || {
        cluster.running().is_empty().then_some(())
    })
    .await;
    assert!(
        cluster.coordinators.0.lock().unwrap().terminated.is_none(),
        "it can be recovered"
    );
}

/// The first JobMaster's tasks end at once, those of the second do not: they have their own time to end in.
#[tokio::test(start_paused = true)]
async fn each_order_to_stop_has_its_own_time() {
    let cluster = Cluster::start(&[3], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    cluster.coordinators.0.lock().unwrap().newest = 1;
    let tm = &cluster.task_managers[0];
    break_job_master(&cluster).await;
    let timeout = std::time::Duration::from_secs(30) + STOP_MARGIN;
    until("the next wave", async || {
        let running = tm.running();
        let is_next = running.iter().all(|a| a.attempt == Attempt(2));
        (running.len() == 6 && is_next).then_some(())
    })
    .await;
    tokio::time::sleep(timeout - std::time::Duration::from_secs(5)).await;
    tm.state.lock().unwrap().is_stuck = true;
    break_job_master(&cluster).await;
    let closed = || tm.state.lock().unwrap().closed.clone();
    tokio::time::sleep(timeout - std::time::Duration::from_secs(5)).await;
    assert_eq!(closed(), None);
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    let why = closed().unwrap();
    assert!(why.contains("6 former tasks did not end"), "{why}");
}

/// A TaskManager that was given up comes back with tasks that somebody else runs by now.
#[tokio::test(start_paused = true)]
async fn a_taskmanager_that_was_given_up_must_stop_its_tasks_before_it_gets_new_ones() {
    let cluster = Cluster::start(&[1, 1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let zombie = cluster.task_managers[0].clone();
    zombie.lose();
    cluster.until_recovered(JOB, 1).await;
    {
        let mut state = zombie.state.lock().unwrap();
        assert_eq!(state.running.len(), 2);
        state.is_deaf = false;
        state.is_stuck = true;
    }
    zombie.register(1);
    let old = zombie.running();
    until("told", async || {
        zombie
            .has_received(|m| matches!(m, ToTaskManager::Registered { stop, .. } if *stop == old))
            .then_some(())
    })
    .await;
    cluster.task_managers[1].lose();
    until("waiting", async || {
        let note = cluster.status(JOB).await.note.unwrap_or_default();
        (note == "waiting for slots: 2 of 3").then_some(())
    })
    .await;
    for attempt in old {
        zombie.end(attempt, message::TaskOutcome::Canceled);
    }
    cluster.until_recovered(JOB, 2).await;
    assert_eq!(zombie.running().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_takes_over_a_name_replaces_its_predecessor() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let old = cluster.task_managers[0].clone();
    let mut new = FakeTaskManager::new(cluster.handle.peer_events(), 999, running());
    new.location.resource = old.location.resource.clone();
    new.register(1);
    let status = cluster.until_recovered(JOB, 1).await;
    assert!(
        status.recoveries[0]
            .cause
            .to_string()
            .contains("under its name")
    );
    assert!(old.state.lock().unwrap().closed.is_some());
    assert_eq!(new.running().len(), 2);
}

/// A TaskManager whose task ignored its cancellation lives on with a slot less: the job's slot there is gone, and taken elsewhere.
#[tokio::test(start_paused = true)]
async fn an_abandoned_slot_is_given_to_nobody() {
    let mut cluster = Cluster::start(&[2, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let host = cluster.task_managers[0].clone();
    assert_eq!(host.running().len(), 4, "two slots of two tasks");
    let spare = cluster.add(1, running());
    let stuck = host.running()[0];
    host.state.lock().unwrap().running.remove(&stuck);
    host.register(1);
    let kind = FailureKind::CancellationTimeout { seconds: 30 };
    host.fail(stuck, kind);
    cluster.until_recovered(JOB, 1).await;
    assert_eq!((host.running().len(), spare.running().len()), (2, 2));
    // It kept the slot whose tasks were well.
    assert!(host.running().iter().all(|a| a.subtask != stuck.subtask));
    let Ok(ClientResponse::TaskManagers(list)) =
        cluster.request(ClientRequest::ListTaskManagers).await
    else {
        panic!("a list");
    };
    assert!(list.iter().all(|tm| tm.slots == (0, 1)), "{list:?}");

    // The task ends after all: the slot is back, and the next loss finds it.
    host.register(2);
    spare.lose();
    cluster.until_recovered(JOB, 2).await;
    assert_eq!(host.running().len(), 4);
}

/// Whatever a registration says, the JobManager lives on, and nobody gets slots that cannot be.
#[tokio::test(start_paused = true)]
async fn registrations_that_cannot_be_true_are_refused() {
    let mut cluster = Cluster::start(&[1, 1, 1], running()).await;
    for _ in 0..2 {
        let liar = cluster.add(u32::MAX, running());
        let why = liar
            .state
            .lock()
            .unwrap()
            .closed
            .clone()
            .unwrap_or_default();
        let why = match why.as_str() {
            "" => {
                until("refused", async || {
                    liar.state.lock().unwrap().closed.clone()
                })
                .await
            }
            _ => why,
        };
        assert!(why.contains("taskmanager.numberOfTaskSlots"), "{why}");
    }
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let tasks = |n: usize| cluster.task_managers[n].running().len();
    assert_eq!((tasks(3), tasks(4)), (0, 0));

    // The same process under another address: what it was is lost.
    let mut other = cluster.task_managers[0].clone();
    other.location.data_address = "elsewhere:1".to_owned();
    cluster.add(1, running());
    other.register(1);
    until("given up", async || {
        other.state.lock().unwrap().closed.clone()
    })
    .await;
    cluster.until_recovered(JOB, 1).await;
    assert_eq!(cluster.task_managers[5].running().len(), 2);
}

/// Registering again changes nothing; a report about a task of another TaskManager is no report.
#[tokio::test(start_paused = true)]
async fn a_taskmanager_speaks_for_its_own_tasks_only() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    let before = cluster.until_state(JOB, JobState::Running).await;
    let (one, other) = (&cluster.task_managers[0], &cluster.task_managers[1]);
    one.register(1);
    let foreign = other.running()[0];
    one.fail(foreign, io("not mine"));
    // Claims to run tasks that no job has, of an epoch that nobody leads in.
    let mut invented = one.running()[0];
    invented.subtask = SubtaskIndex(u32::MAX);
    invented.epoch = LeaderEpoch(99);
    one.state.lock().unwrap().running.insert(invented);
    one.register(1);
    until("told to stop it", async || {
        one.has_received(
            |m| matches!(m, ToTaskManager::Registered { stop, .. } if stop == &[invented]),
        )
        .then_some(())
    })
    .await;
    let after = cluster.status(JOB).await;
    assert_eq!(after.recoveries, []);
    assert_eq!(after.subtasks, before.subtasks);
}

/// The real coordinator: checkpoints, a failure that restores the newest, a savepoint, another leader, a stop, and no second life.
#[tokio::test(start_paused = true)]
async fn with_the_real_coordinator_a_job_recovers_moves_to_the_next_leader_and_stops_for_good() {
    let mut first = Cluster::lead_for_real(1, std::sync::Arc::default()).await;
    for _ in 0..3 {
        first.add(1, running());
    }
    let mut graph = keyed();
    graph.settings.checkpointing.savepoint_directory = Some("memory://savepoints".to_owned());
    first.submit(&graph).await;
    let has_checkpoint = async |cluster: &Cluster, above: u64| {
        until("a checkpoint", async || {
            let last = cluster.status(JOB).await.summary.last_checkpoint;
            last.filter(|last| last.0 > above)
        })
        .await
    };
    let newest = has_checkpoint(&first, 2).await;
    let (tm, attempt) = first.running()[0].clone();
    tm.fail(attempt, io("sink"));
    let status = first.until_recovered(JOB, 1).await;
    let restored = status.recoveries[0].checkpoint.unwrap();
    assert!(restored >= newest, "{restored} {newest}");
    assert_eq!(status.recoveries[0].restored, (6, 0));
    let request = ClientRequest::Savepoint {
        job: JOB,
        directory: None,
    };
    let Ok(ClientResponse::Savepoint { path }) = first.request(request).await else {
        panic!("a savepoint");
    };
    assert!(path.starts_with("memory://savepoints"), "{path}");
    let newest = has_checkpoint(&first, restored.0).await;

    let left = first.end().await;
    let mut second = Cluster::lead_for_real(2, left.stores).await;
    second.welcome(&left.task_managers);
    let status = second.until_recovered(JOB, 2).await;
    assert_eq!(status.recoveries[0].checkpoint, Some(restored));
    assert!(status.recoveries[1].checkpoint.unwrap() >= newest);
    let stop = ClientRequest::Stop {
        job: JOB,
        directory: None,
        drain: true,
    };
    let answer = second.request(stop).await;
    let Ok(ClientResponse::Stopped { .. }) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(second.status(JOB).await.summary.state, JobState::Finished);

    // Even when the result is lost, the job's own last record keeps it from running again.
    let stores = second.end().await.stores;
    stores
        .at("memory://ha")
        .remove(&format!("jobs/{JOB}/result"));
    let mut third = Cluster::lead_for_real(3, stores).await;
    let tm = third.add(3, running());
    third.until_state(JOB, JobState::Finished).await;
    assert_eq!(tm.running(), []);
}
