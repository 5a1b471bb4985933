//! Starts tasks: builds the operators from the registered job, brings the state, hands both to a driver, and keeps the keyed state of
//! ended attempts for their successors, which roll it back in place.

use std::sync::Arc;

use perennial_actors::checkpoint::StoreFactory;
use perennial_actors::clock::Clock;
use perennial_actors::fault::{FaultPlace, FaultPoints, FaultSite};
use perennial_actors::model::message::{CheckpointPlan, PreparedOutput, TaskOutcome};
use perennial_actors::model::{
    BuildId, CheckpointId, Exchange as Route, FailureKind, InstanceId, JobGraph, JobId,
    KeyGroupRange, RestoredHow, TaskDeployment, TaskFailure,
};
use perennial_actors::{CheckpointReply, StartedTask, TaskEvents, TaskRunner};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tracing::{debug, warn};

use super::cell::TaskCell;
use super::control::{ControlQueue, SharedCounters, TaskHandle};
use super::driver::{DrivenTask, TaskDriver};
use super::keeper::{Kept, lock};
use super::restore::{self, Keyed};
use super::snapshot::SnapshotWriter;
use super::stream_task::TaskState;
use crate::api::JobRegistry;
use crate::exchange::Exchange;
use crate::operator::{KeyedStates, Leftover, Place, RestoredOperator, TaskInfo};
use crate::state::Undone;

/// What a runner works with.
pub struct RunnerOptions {
    /// The jobs that are linked in.
    pub registry: JobRegistry,
    /// Of this executable.
    pub build: BuildId,
    /// Of this process.
    pub instance: InstanceId,
    /// Channels.
    pub exchange: Arc<Exchange>,
    /// Snapshots.
    pub stores: Arc<dyn StoreFactory>,
    /// Threads, or the simulator.
    pub driver: Arc<dyn TaskDriver>,
    /// For I/O.
    pub handle: Handle,
    /// Time.
    pub clock: Clock,
    /// Bound of one subtask's pre-image log, in bytes.
    pub log_bytes_max: u64,
    /// Of this node.
    pub faults: FaultPoints,
}

/// The [`TaskRunner`] of a TaskManager.
pub struct LocalTaskRunner {
    options: Arc<RunnerOptions>,
    snapshots: Arc<SnapshotWriter>,
    pub(super) kept: Kept,
}

impl LocalTaskRunner {
    /// A runner without tasks.
    #[must_use]
    pub fn new(options: RunnerOptions) -> Self {
        let snapshots = SnapshotWriter::new(
            options.stores.clone(),
            options.instance,
            options.handle.clone(),
            options.faults.clone(),
        );
        Self {
            options: Arc::new(options),
            snapshots: Arc::new(snapshots),
            kept: Kept::default(),
        }
    }
}

impl TaskRunner for LocalTaskRunner {
    fn build(&self) -> BuildId {
        self.options.build.clone()
    }

    fn start(
        &self,
        graph: Arc<JobGraph>,
        deployment: TaskDeployment,
        events: TaskEvents,
    ) -> StartedTask {
        let control = Arc::new(ControlQueue::default());
        let counters = Arc::new(SharedCounters::default());
        counters
            .watermark
            .store(i64::MIN, std::sync::atomic::Ordering::Relaxed);
        let handle = TaskHandle {
            control: control.clone(),
            counters: counters.clone(),
        };
        let attempt = deployment.attempt;
        lock(&self.kept).begin(attempt);
        let launch = Launch {
            options: self.options.clone(),
            snapshots: self.snapshots.clone(),
            kept: self.kept.clone(),
            graph,
            deployment,
            events,
            control,
            counters,
        };
        let bringing_up = self.options.handle.spawn(launch.run());
        let end = Box::pin(async move {
            bringing_up.await.unwrap_or_else(|error| {
                let message = format!("starting the task {}", words_of(error));
                TaskOutcome::Failed(Box::new(TaskFailure::of_attempt(
                    attempt,
                    FailureKind::Internal { message },
                )))
            })
        });
        StartedTask {
            task: Box::new(handle),
            end,
        }
    }

    fn plan_checkpoint(&self, plan: CheckpointPlan, reply: CheckpointReply) {
        self.snapshots.plan(plan, reply);
    }

    fn abort_checkpoint(&self, job: JobId, checkpoint: CheckpointId) {
        self.snapshots.abort(job, checkpoint);
    }

    fn release_job(&self, job: JobId, output: PreparedOutput, done: Box<dyn FnOnce() + Send>) {
        self.snapshots.release(job);
        let leftovers = lock(&self.kept).release(job);
        let completed = match output {
            PreparedOutput::Settle { completed } => completed,
            PreparedOutput::Keep => return done(),
        };
        let driver = self.options.driver.clone();
        self.options.handle.spawn(async move {
            for leftover in leftovers {
                // Each on its own: it calls functions of users.
                driver
                    .work(Box::new(move || settle(leftover, completed)))
                    .await;
            }
            done();
        });
    }
}

/// Settles output that a task of an ended job left. What fails is left as it is: a restore from a checkpoint or savepoint settles it.
fn settle(leftover: Box<dyn Leftover>, completed: Option<CheckpointId>) {
    let attempt = leftover.attempt();
    if let Err(error) = leftover.settle(completed) {
        warn!(%attempt, ?completed, %error, "output of an ended task could not be settled");
    }
}

/// One start of one task.
pub(super) struct Launch {
    pub(super) options: Arc<RunnerOptions>,
    pub(super) snapshots: Arc<SnapshotWriter>,
    pub(super) kept: Kept,
    pub(super) graph: Arc<JobGraph>,
    pub(super) deployment: TaskDeployment,
    pub(super) events: TaskEvents,
    pub(super) control: Arc<ControlQueue>,
    pub(super) counters: Arc<SharedCounters>,
}

impl Launch {
    async fn run(self) -> TaskOutcome {
        let attempt = self.deployment.attempt;
        let fail = |kind| TaskOutcome::Failed(Box::new(TaskFailure::of_attempt(attempt, kind)));
        let began = self.options.clock.now();
        let info = match self.info() {
            Ok(info) => Arc::new(info),
            Err(kind) => return fail(kind),
        };
        let control = self.control.clone();
        let prepared = tokio::select! {
            biased;
            () = control.cancelled() => return TaskOutcome::Canceled,
            prepared = self.prepare(&info) => prepared,
        };
        let (restored, keyed, how) = match prepared {
            Ok(prepared) => prepared,
            Err(kind) => return fail(kind),
        };
        let name = format!(
            "{}/{}#{}.{}",
            short(&self.graph.vertices[attempt.vertex.0 as usize].name),
            attempt.subtask,
            attempt.epoch,
            attempt.attempt
        );
        let (outcome, wait) = oneshot::channel();
        let driver = self.options.driver.clone();
        let cell = TaskCell {
            launch: self,
            info,
            task: None,
            state: TaskState {
                keyed,
                place: Place::default(),
            },
            restored,
            how,
            began,
            is_open: false,
            outcome,
        };
        driver.run(name, DrivenTask(Box::new(cell))).await;
        wait.await.unwrap_or_else(|_| {
            fail(FailureKind::Internal {
                message: "the task's thread could not be started or ended without an outcome"
                    .into(),
            })
        })
    }

    fn info(&self) -> Result<TaskInfo, FailureKind> {
        let attempt = self.deployment.attempt;
        let vertex = self
            .graph
            .vertices
            .get(attempt.vertex.0 as usize)
            .ok_or_else(|| FailureKind::Internal {
                message: format!("the job graph has no vertex {}", attempt.vertex),
            })?;
        let (parallelism, max_parallelism) =
            (self.deployment.parallelism, self.deployment.max_parallelism);
        if parallelism == 0 || parallelism > max_parallelism || attempt.subtask.0 >= parallelism {
            return Err(FailureKind::Internal {
                message: format!(
                    "subtask {} of {parallelism}, max parallelism {max_parallelism}",
                    attempt.subtask
                ),
            });
        }
        let has_all_edges = self
            .graph
            .inputs(vertex.id)
            .all(|e| self.deployment.inputs.iter().any(|c| c.edge == e.id))
            && self
                .graph
                .outputs(vertex.id)
                .all(|e| self.deployment.outputs.iter().any(|c| c.edge == e.id))
            && self
                .graph
                .edges
                .iter()
                .filter(|e| e.exchange == Route::Forward)
                .all(|e| {
                    self.deployment
                        .outputs
                        .iter()
                        .all(|c| c.edge != e.id || c.peers.len() == 1)
                });
        if !has_all_edges {
            return Err(FailureKind::Internal {
                message: format!(
                    "the deployment of vertex {} does not list its channels",
                    vertex.id
                ),
            });
        }
        Ok(TaskInfo {
            attempt,
            job_name: self.graph.name.clone(),
            parallelism,
            max_parallelism,
            key_groups: KeyGroupRange::of(attempt.subtask, parallelism, max_parallelism),
            operators: vertex
                .operators
                .iter()
                .map(|o| (o.id, o.uid.clone()))
                .collect(),
            names: vertex.operators.iter().map(|o| o.name.clone()).collect(),
            buffer_timeout: self.graph.settings.buffer_timeout,
            log_bytes_max: self.options.log_bytes_max,
        })
    }

    /// Brings state: rolled back in place where a former attempt left it, else read from the store.
    async fn prepare(
        &self,
        info: &Arc<TaskInfo>,
    ) -> Result<(Vec<RestoredOperator>, KeyedStates, RestoredHow), FailureKind> {
        let attempt = info.attempt;
        self.reach(FaultSite::BeforeRestore).await?;
        let kept = lock(&self.kept).take(attempt);
        let empty = || info.operators.iter().map(|_| None).collect::<KeyedStates>();
        let Some(restore) = &self.deployment.restore else {
            let restored = info
                .operators
                .iter()
                .map(|_| RestoredOperator::default())
                .collect();
            return Ok((restored, empty(), RestoredHow::Empty));
        };
        let inherited = match kept {
            Some(keyed) if restore.may_inherit && keyed.len() == info.operators.len() => {
                self.undo(keyed, restore.checkpoint).await
            }
            Some(_) | None => None,
        };
        self.reach(FaultSite::DuringRestore).await?;
        let how = if inherited.is_some() {
            Keyed::Inherited
        } else {
            Keyed::Load
        };
        let operators: Vec<_> = info.operators.iter().map(|(id, _)| *id).collect();
        let restored = restore::fetch(
            self.options.stores.as_ref(),
            restore,
            &operators,
            attempt.subtask,
            info.parallelism,
            info.key_groups,
            how,
        )
        .await?;
        Ok(match inherited {
            Some(keyed) => (restored, keyed, RestoredHow::InPlace),
            None => (restored, empty(), RestoredHow::Loaded),
        })
    }

    async fn reach(&self, site: FaultSite) -> Result<(), FailureKind> {
        let place = FaultPlace::Task(self.deployment.attempt);
        let reached = self.options.faults.reach(site, place).await;
        reached.map_err(|error| FailureKind::Io {
            message: error.to_string(),
        })
    }

    async fn undo(&self, mut keyed: KeyedStates, checkpoint: CheckpointId) -> Option<KeyedStates> {
        let attempt = self.deployment.attempt;
        let (done, wait) = oneshot::channel();
        let work = Box::new(move || {
            let mut result = Ok(());
            for state in keyed.iter_mut().flatten() {
                if let Undone::Unavailable(reason) = state.undo(checkpoint) {
                    result = Err(reason);
                    break;
                }
                state.begin_attempt();
            }
            // The receiver may have been cancelled; then nobody needs the state.
            let _ = done.send(result.map(|()| keyed));
        });
        self.options.driver.work(work).await;
        match wait.await {
            Ok(Ok(keyed)) => Some(keyed),
            Ok(Err(reason)) => {
                debug!(%attempt, %checkpoint, reason, "state cannot be rolled back in place and is loaded");
                None
            }
            Err(_) => {
                warn!(%attempt, %checkpoint, "rolling back in place ended in a panic; state is loaded");
                None
            }
        }
    }
}

/// Without the number that tokio gives every task, so that the same failure always reads the same.
fn words_of(end: JoinError) -> String {
    let Ok(panic) = end.try_into_panic() else {
        return "was cancelled".to_owned();
    };
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a text"))
}

/// A thread's name shows 15 bytes.
fn short(name: &str) -> String {
    name.chars()
        .filter(|c| !c.is_whitespace())
        .take(8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second time it is another task; simulator seed 3020.
    #[tokio::test]
    async fn the_same_failure_to_start_reads_the_same_twice() {
        for _ in 0..2 {
            let text = tokio::spawn(async { panic!("no room") }).await.unwrap_err();
            assert_eq!(words_of(text), "panicked: no room");
            let format = tokio::spawn(async { panic!("no {}", "room") });
            assert_eq!(words_of(format.await.unwrap_err()), "panicked: no room");
            let cancelled = tokio::spawn(std::future::pending::<()>());
            cancelled.abort();
            assert_eq!(words_of(cancelled.await.unwrap_err()), "was cancelled");
        }
    }
}
