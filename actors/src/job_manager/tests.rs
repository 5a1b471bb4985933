//! The real JobManager with scripted TaskManagers: what outlives a process, a leader, a broken actor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::store::{JobStore, StoredJob};
use super::{HISTORY_MAX, JOB_MASTER_RESTARTS_MAX, JobManagerEnd};
use crate::checkpoint::Store;
use crate::checkpoint::testing::{Fault, MemoryStore};
use crate::fault::{ActorAddress, ActorFault, Injection};
use crate::job_master::WAITERS_MAX;
use crate::model::message::{ClientRequest, ClientResponse, RpcError, ToTaskManager};
use crate::model::*;
use crate::testing::cluster::{Cluster, until};
use crate::testing::graph;
use crate::testing::task_manager::{Behaviour, FakeTaskManager, io, running};

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

#[tokio::test(start_paused = true)]
async fn an_ended_job_stays_in_the_list_of_the_next_leader_and_does_not_run_again() {
    let first = Cluster::start(&[3], std::sync::Arc::new(|_| Behaviour::RunToTheEnd)).await;
    first.submit(&keyed()).await;
    let status = first.until_state(JOB, JobState::Finished).await;
    let left = first.end().await;
    let mut second = Cluster::lead(2, left.stores, left.coordinators).await;
    let tm = second.add(3, running());
    assert_eq!(second.status(JOB).await, status);
    let answer = second.request(ClientRequest::Cancel(JOB)).await;
    assert!(matches!(answer, Err(RpcError::Refused(_))), "{answer:?}");
    second.submit(&keyed()).await;
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    assert_eq!(tm.running(), []);
}

/// Lets no result be stored, and counts the tries.
fn refuse_results(cluster: &Cluster) -> Arc<AtomicU32> {
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let store = cluster.stores.at("memory://ha");
    store.faults(move |operation, key| {
        let is_meant = operation == "create" && key.ends_with("/result");
        is_meant.then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            Fault::Fail
        })
    });
    tries
}

async fn until_tried(tries: &AtomicU32, times: u32) {
    until("tries to store the result", async || {
        (tries.load(Ordering::SeqCst) >= times).then_some(())
    })
    .await;
}

/// Its coordinator cannot start, so that no record says how it ends: the result alone keeps the next leader from running it again.
#[tokio::test(start_paused = true)]
async fn a_job_has_ended_for_nobody_before_its_result_is_stored() {
    let first = Cluster::start(&[1, 1, 1], running()).await;
    first.submit(&keyed()).await;
    first.until_state(JOB, JobState::Running).await;
    let left = first.end().await;
    left.coordinators.0.lock().unwrap().start_errors = vec![io("the store is down"); 9];
    let second = Cluster::lead(2, left.stores, left.coordinators).await;
    let tries = refuse_results(&second);
    let cancel = || second.request(ClientRequest::Cancel(JOB));
    let late = async {
        until_tried(&tries, 1).await;
        futures::future::join_all((0..=WAITERS_MAX).map(|_| cancel())).await
    };
    let look = async {
        until_tried(&tries, 3).await;
        let status = second.status(JOB).await;
        assert_eq!(status.summary.state, JobState::Cancelling);
        assert_eq!(status.note.as_deref(), Some("storing the job's result"));
        second.stores.at("memory://ha").heal();
    };
    let (answer, late, ()) = tokio::join!(cancel(), late, look);
    assert_eq!(answer, Ok(ClientResponse::Canceled));
    let (waited, refused): (Vec<_>, Vec<_>) = late.into_iter().partition(Result::is_ok);
    assert_eq!(waited, vec![answer; WAITERS_MAX]);
    assert!(
        matches!(&refused[..], [Err(RpcError::Refused(_))]),
        "{refused:?}"
    );

    let left = second.end().await;
    let mut third = Cluster::lead(3, left.stores, left.coordinators).await;
    let tm = third.add(3, running());
    let status = third.until_state(JOB, JobState::Canceled).await;
    let has_no_record = |n: &String| n.contains("last record could not be written");
    assert!(
        status.notices.iter().any(has_no_record),
        "{:?}",
        status.notices
    );
    assert_eq!(tm.running(), []);
}

#[tokio::test(start_paused = true)]
async fn a_leader_ends_without_waiting_for_a_result_and_tries_no_more() {
    let cluster = Cluster::start(&[3], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    let tries = refuse_results(&cluster);
    let shutdown = async {
        until_tried(&tries, 2).await;
        cluster.handle.control().shutdown();
    };
    let (answer, ()) = tokio::join!(cluster.request(ClientRequest::Cancel(JOB)), shutdown);
    assert!(
        matches!(answer, Err(RpcError::Closed { .. })),
        "nobody says that it is cancelled: {answer:?}"
    );
    cluster.end().await;
    let tried = tries.load(Ordering::SeqCst);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(tries.load(Ordering::SeqCst), tried);
}

/// It has been replaced, before it asks who leads or while it writes, and has not noticed yet: its successor may run the job.
#[tokio::test(start_paused = true)]
async fn a_leader_that_was_replaced_ends_no_job() {
    for is_late in [false, true] {
        let cluster = Cluster::start(&[3], running()).await;
        cluster.submit(&keyed()).await;
        cluster.until_state(JOB, JobState::Running).await;
        let store = cluster.stores.at("memory://ha");
        let claim = |store: &MemoryStore| store.insert("epoch-2", &b"somebody"[..]);
        if !is_late {
            claim(&store);
        }
        let (mut failures, claimed) = (2, Arc::clone(&store));
        store.faults(move |operation, key| match operation {
            // An epoch that cannot be read is asked for again, and not taken for ours.
            "get" if key == "epoch-2" && failures > 0 => {
                failures -= 1;
                Some(Fault::Fail)
            }
            "create" if key.ends_with("/result") => {
                claim(&claimed);
                None
            }
            _ => None,
        });
        let answer = cluster.request(ClientRequest::Cancel(JOB)).await;
        assert!(matches!(answer, Err(RpcError::Closed { .. })), "{answer:?}");
        let end = cluster.handle.join().await;
        assert!(
            matches!(&end, JobManagerEnd::Fenced(why) if why.contains("epoch 2 leads now")),
            "{end:?}"
        );
        let result = store.read(&format!("jobs/{JOB}/result"));
        assert_eq!(result.is_some(), is_late);
    }
}

#[tokio::test(start_paused = true)]
async fn the_history_of_ended_jobs_is_bounded_also_in_the_store() {
    let cluster = Cluster::start(&[3], std::sync::Arc::new(|_| Behaviour::RunToTheEnd)).await;
    for i in 0..HISTORY_MAX as u128 + 3 {
        let mut graph = keyed();
        graph.job = JobId(i);
        cluster.submit(&graph).await;
        cluster.until_state(graph.job, JobState::Finished).await;
    }
    let store = cluster.stores.at("memory://ha");
    until("only those", async || {
        (store.list("jobs/").await.unwrap().len() == 2 * HISTORY_MAX).then_some(())
    })
    .await;
    let answer = cluster.request(ClientRequest::Status(JobId(0))).await;
    assert_eq!(answer, Err(RpcError::JobNotFound(JobId(0))));
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

#[tokio::test(start_paused = true)]
async fn a_job_survives_the_panic_of_its_jobmaster_but_not_without_bound() {
    let cluster = Cluster::start(&[1, 1, 1], running()).await;
    cluster.submit(&keyed()).await;
    cluster.until_state(JOB, JobState::Running).await;
    cluster.coordinators.0.lock().unwrap().newest = 1;
    let panic = async || {
        let answer = cluster.inject(Injection::Actor {
            actor: ActorAddress::JobMaster(JOB),
            fault: ActorFault::Panic,
        });
        answer.await.unwrap();
    };
    for n in 1..=JOB_MASTER_RESTARTS_MAX as u32 {
        panic().await;
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
    panic().await;
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

/// Two of three attempts are used up under the first leader: under the second, one failure is left, and all is still told.
#[tokio::test(start_paused = true)]
async fn the_next_leader_knows_the_history_and_what_the_strategy_has_used_up() {
    let first = Cluster::start(&[1, 1, 1], running()).await;
    first.submit(&keyed()).await;
    first.until_state(JOB, JobState::Running).await;
    first.coordinators.0.lock().unwrap().newest = 3;
    let fail = |cluster: &Cluster| {
        let (tm, attempt) = cluster.running()[0].clone();
        tm.fail(attempt, io("sink"));
    };
    for n in 1..=2 {
        fail(&first);
        first.until_recovered(JOB, n).await;
    }
    let stored = JobStore::new(first.stores.at("memory://ha"), LeaderEpoch(1));
    let before = first.status(JOB).await;
    until("the history is stored", async || {
        let jobs = stored.recover().await.unwrap();
        let Some(StoredJob::Open(_, past)) = jobs.into_values().next() else {
            panic!("one open job");
        };
        (past.history?.recoveries == before.recoveries).then_some(())
    })
    .await;
    let left = first.end().await;
    let mut second = Cluster::lead(2, left.stores, left.coordinators).await;
    second.welcome(&left.task_managers);
    let status = second.until_recovered(JOB, 3).await;
    assert_eq!(status.recoveries[..2], before.recoveries);
    assert_eq!(status.recoveries[2].number, 3);
    assert_eq!(status.summary.restarts, 2, "taking over is no restart");
    fail(&second);
    let status = second.until_recovered(JOB, 4).await;
    assert!(status.recoveries[3].decision.contains("attempt 3 of 3"));
    until("one object of the new leader's", async || {
        let keys = second.stores.at("memory://ha").list("jobs/").await.unwrap();
        let histories: Vec<_> = keys.iter().filter(|o| o.key.contains("history")).collect();
        (histories.len() == 1 && histories[0].key.ends_with("history/2")).then_some(())
    })
    .await;
    fail(&second);
    let status = second.until_state(JOB, JobState::Failed).await;
    assert_eq!(status.summary.restarts, 3);
    assert_eq!(status.recoveries.len(), 5);
}

/// Quiet for longer than the strategy remembers, and only then another leader.
#[tokio::test(start_paused = true)]
async fn what_the_strategy_has_forgotten_stays_forgotten() {
    let first = Cluster::start(&[1, 1, 1], running()).await;
    first.submit(&keyed()).await;
    first.until_state(JOB, JobState::Running).await;
    let (tm, attempt) = first.running()[0].clone();
    tm.fail(attempt, io("sink"));
    first.until_recovered(JOB, 1).await;
    tokio::time::sleep(2 * crate::restart::FIXED_DELAY_RESET).await;
    let left = first.end().await;
    let mut second = Cluster::lead(2, left.stores, left.coordinators).await;
    second.welcome(&left.task_managers);
    second.until_recovered(JOB, 2).await;
    let (tm, attempt) = second.running()[0].clone();
    tm.fail(attempt, io("sink"));
    let status = second.until_recovered(JOB, 3).await;
    let decision = &status.recoveries[2].decision;
    assert!(decision.contains("attempt 1 of 3"), "{decision}");
}

/// Nothing waits for it: not a recovery while it cannot be written, and not the next leader while it cannot be read.
#[tokio::test(start_paused = true)]
async fn a_history_that_cannot_be_stored_or_read_costs_nothing_else() {
    let first = Cluster::start(&[1, 1, 1], running()).await;
    first.submit(&keyed()).await;
    first.until_state(JOB, JobState::Running).await;
    let store = first.stores.at("memory://ha");
    let forever = std::time::Duration::from_secs(1_000_000);
    store.faults(move |_, key| {
        key.contains("history")
            .then_some(crate::checkpoint::testing::Fault::Slow(forever))
    });
    let (tm, attempt) = first.running()[0].clone();
    tm.fail(attempt, io("sink"));
    first.until_recovered(JOB, 1).await;
    store.insert(&format!("jobs/{JOB}/history/1"), &b"rubbish"[..]);
    let left = first.end().await;
    let mut second = Cluster::lead(2, left.stores, left.coordinators).await;
    second.add(3, running());
    let status = second.until_recovered(JOB, 1).await;
    assert_eq!(status.recoveries.len(), 1, "only that of the second leader");
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

/// The result and the history are lost with the leader's store, the job's last record is not (simulator seed 18803): it was no internal error.
#[tokio::test(start_paused = true)]
async fn a_leader_that_finds_only_the_last_record_tells_by_what_the_job_failed() {
    let refused = io("sink refused");
    let behaviour = Behaviour::FailRunning(refused.clone());
    let mut first = Cluster::lead_for_real(1, std::sync::Arc::default()).await;
    first.add(3, std::sync::Arc::new(move |_| behaviour.clone()));
    first.submit(&keyed()).await;
    let failure = first.until_state(JOB, JobState::Failed).await.failure;
    let failure = failure.unwrap();
    assert_eq!(failure.kind, refused);
    let stores = first.end().await.stores;
    let store = stores.at("memory://ha");
    for key in store.keys() {
        if key.starts_with(&format!("jobs/{JOB}/")) && !key.ends_with("/graph") {
            store.remove(&key);
        }
    }
    let second = Cluster::lead_for_real(2, stores).await;
    let told = second.until_state(JOB, JobState::Failed).await.failure;
    assert_eq!(told.unwrap().to_string(), failure.to_string());
}
