//! Results of jobs: stored before anybody is told, kept for the next leader, bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::checkpoint::testing::{Fault, MemoryStore};
use crate::job_manager::HISTORY_MAX;
use crate::job_master::WAITERS_MAX;
use crate::testing::task_manager::Behaviour;

#[tokio::test(start_paused = true)]
async fn an_ended_job_stays_in_the_list_of_the_next_leader_and_does_not_run_again() {
    let first = Cluster::start(&[3], Arc::new(|_| Behaviour::RunToTheEnd)).await;
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
    let cluster = Cluster::start(&[3], Arc::new(|_| Behaviour::RunToTheEnd)).await;
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

/// The result and the history are lost with the leader's store, the job's last record is not (simulator seed 18803): it was no internal error.
#[tokio::test(start_paused = true)]
async fn a_leader_that_finds_only_the_last_record_tells_by_what_the_job_failed() {
    let refused = io("sink refused");
    let behaviour = Behaviour::FailRunning(refused.clone());
    let mut first = Cluster::lead_for_real(1, Arc::default()).await;
    first.add(3, Arc::new(move |_| behaviour.clone()));
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
