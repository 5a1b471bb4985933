//! Watches a job as a client does, all the time, so that whoever strikes never waits for an answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perennial_actors::client::Client;
use perennial_actors::clock::Instant;
use perennial_actors::model::message::{ClientRequest, ClientResponse, RpcError};
use perennial_actors::model::{
    CheckpointState, JobId, JobState, JobStatus, RecoveryRecord, SnapshotKind, TaskManagerStatus,
};
use perennial_actors::rpc::TcpTransport;
use perennial_config::Secret;

use super::super::cluster::CLUSTER_SECRET;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// A JobManager that is stopped or cut off answers nothing.
const ANSWER_DEADLINE: Duration = Duration::from_millis(1500);

/// What is known of the job.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// The last answer.
    pub(super) status: Option<JobStatus>,
    /// Whether the last question was answered: else `status` is history.
    pub(super) is_fresh: bool,
    /// When it was asked.
    pub(super) asked: Option<Instant>,
    /// Name of the JobManager that answered last.
    pub(super) leader: Option<String>,
    /// Every recovery ever shown, by job, detection and number.
    pub(super) recoveries: BTreeMap<(JobId, u64, u32), RecoveryRecord>,
    /// Numbers of completed checkpoints of the job that runs.
    pub(super) completed: BTreeMap<u64, Instant>,
    /// As listed last.
    pub(super) task_managers: Vec<TaskManagerStatus>,
}

impl View {
    pub(super) fn is_running(&self) -> bool {
        self.is_fresh
            && self.status.as_ref().is_some_and(|s| {
                let s = &s.summary;
                s.state == JobState::Running
                    && s.tasks_total > 0
                    && s.tasks_running == s.tasks_total
            })
    }

    pub(super) fn terminal(&self) -> Option<JobState> {
        let state = self.status.as_ref()?.summary.state;
        state.is_terminal().then_some(state)
    }

    pub(super) fn has_pending_checkpoint(&self) -> bool {
        self.is_fresh
            && self.status.as_ref().is_some_and(|s| {
                s.checkpoints
                    .iter()
                    .any(|c| c.state == CheckpointState::InProgress)
            })
    }

    /// The recoveries of each job, oldest first. Each job counts its own restarts: one that goes on from another's savepoint begins anew.
    pub(super) fn histories(&self) -> Vec<Vec<RecoveryRecord>> {
        let all: Vec<_> = self.recoveries.iter().collect();
        all.chunk_by(|((one, ..), _), ((other, ..), _)| one == other)
            .map(|history| history.iter().map(|(_, r)| (*r).clone()).collect())
            .collect()
    }

    fn take(&mut self, job: JobId, status: JobStatus) {
        for recovery in &status.recoveries {
            let key = (job, recovery.detected_ms, recovery.number);
            self.recoveries.insert(key, recovery.clone());
        }
        for checkpoint in &status.checkpoints {
            let counts = checkpoint.state == CheckpointState::Completed
                && matches!(checkpoint.kind, SnapshotKind::Checkpoint);
            if counts {
                let number = checkpoint.checkpoint.0;
                self.completed.entry(number).or_insert_with(Instant::now);
            }
        }
        self.status = Some(status);
        self.is_fresh = true;
    }
}

/// Looks in a thread of its own until it is dropped.
pub(super) struct Watcher {
    view: Arc<Mutex<View>>,
    job: Arc<Mutex<JobId>>,
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watcher {
    /// `addresses`: of each JobManager, past the proxies.
    pub(super) fn start(job: JobId, addresses: BTreeMap<String, String>) -> anyhow::Result<Self> {
        let view = Arc::new(Mutex::new(View::default()));
        let job = Arc::new(Mutex::new(job));
        let is_over = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let look = Look {
            view: view.clone(),
            job: job.clone(),
            is_over: is_over.clone(),
            addresses: addresses.into_iter().collect(),
        };
        let thread = std::thread::Builder::new()
            .name("watcher".to_owned())
            .spawn(move || runtime.block_on(look.run()))?;
        Ok(Self {
            view,
            job,
            is_over,
            thread: Some(thread),
        })
    }

    pub(super) fn view(&self) -> View {
        lock(&self.view).clone()
    }

    /// Another job goes on with the work.
    pub(super) fn follow(&self, job: JobId) {
        *lock(&self.job) = job;
        let mut view = lock(&self.view);
        view.status = None;
        view.is_fresh = false;
        view.completed.clear();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A watcher that panicked has shown it by a view that stands still.
            let _ = thread.join();
        }
    }
}

struct Look {
    view: Arc<Mutex<View>>,
    job: Arc<Mutex<JobId>>,
    is_over: Arc<AtomicBool>,
    addresses: Vec<(String, String)>,
}

impl Look {
    async fn run(self) {
        let mut at = 0;
        while !self.is_over.load(Ordering::Acquire) {
            let (name, address) = &self.addresses[at % self.addresses.len()];
            let secret = Secret(CLUSTER_SECRET.to_owned());
            let client = Client::connect(&TcpTransport, address, &secret, ANSWER_DEADLINE).await;
            match client {
                Ok(client) => self.ask(name, client).await,
                Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            }
            lock(&self.view).is_fresh = false;
            at += 1;
        }
    }

    /// Until it does not answer.
    async fn ask(&self, name: &str, mut client: Client) {
        let mut looks = 0_u64;
        while !self.is_over.load(Ordering::Acquire) {
            let job = *lock(&self.job);
            let asked = Instant::now();
            let answer = client
                .request(ClientRequest::Status(job), Some(ANSWER_DEADLINE))
                .await;
            match answer {
                Ok(ClientResponse::Status(status)) => {
                    let mut view = lock(&self.view);
                    // Another job may have been named meanwhile.
                    if *lock(&self.job) == job {
                        view.leader = Some(name.to_owned());
                        view.asked = Some(asked);
                        view.take(job, *status);
                    }
                }
                // A new leader that does not know the job yet; or one that is stuck.
                Ok(_) | Err(_) => {
                    lock(&self.view).is_fresh = false;
                    let is_alive =
                        matches!(answer, Err(RpcError::Refused(_) | RpcError::JobNotFound(_)));
                    if !is_alive {
                        return;
                    }
                }
            }
            looks += 1;
            if looks.is_multiple_of(8) {
                let listed = client
                    .request(ClientRequest::ListTaskManagers, Some(ANSWER_DEADLINE))
                    .await;
                if let Ok(ClientResponse::TaskManagers(listed)) = listed {
                    lock(&self.view).task_managers = listed;
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::check_restarts;
    use crate::checker::testing::{recovery, some_cause};
    use perennial_config::{RestartSettings, RestartStrategy};

    /// Process seed 146261: a job was rescaled, and both lost a TaskManager once.
    #[test]
    fn a_rescaled_job_counts_its_restarts_anew() {
        let settings = RestartSettings {
            strategy: RestartStrategy::FixedDelay {
                attempts: 1000,
                delay: Duration::from_millis(500),
            },
            is_strict: false,
        };
        let mut view = View::default();
        for (job, at) in [(2, 1000), (1, 9000), (2, 1500)] {
            let number = if at == 1500 { 2 } else { 1 };
            let told = RecoveryRecord {
                attempt: Some(format!("1.{}", number + 1)),
                decision: format!("fixed-delay: attempt {number} of 1000, in 0.5 s"),
                ..recovery(number, at, some_cause())
            };
            view.recoveries.insert((JobId(job), at, number), told);
        }
        let histories = view.histories();
        assert_eq!(histories.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
        for history in &histories {
            assert_eq!(check_restarts(&settings, history), Vec::<String>::new());
        }
        let all = histories.concat();
        assert_eq!(
            check_restarts(&settings, &all).len(),
            1,
            "taken for one job's"
        );
    }
}
