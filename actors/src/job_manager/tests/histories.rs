//! Histories of jobs that run: what the next leader knows of the former one's recoveries.

use super::*;
use crate::checkpoint::testing::Fault;
use crate::job_manager::store::{JobStore, StoredJob};

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
    store.faults(move |_, key| key.contains("history").then_some(Fault::Slow(forever)));
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
