//! Starts tasks: builds the operators from the registered job, brings the state, hands both to a driver, and keeps the keyed state of
//! ended attempts for their successors (design.md section 7, "in place").

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perennial_actors::checkpoint::StoreFactory;
use perennial_actors::clock::{Clock, Instant};
use perennial_actors::fault::{FaultPlace, FaultPoints, FaultSite};
use perennial_actors::model::message::{CheckpointPlan, TaskOutcome};
use perennial_actors::model::{
    BuildId, CheckpointId, Exchange as Route, ExecutionAttemptId, FailureKind, InstanceId,
    JobGraph, JobId, KeyGroupRange, RestoredHow, SubtaskIndex, TaskDeployment, TaskFailure,
    VertexId,
};
use perennial_actors::{CheckpointReply, StartedTask, TaskEvent, TaskEvents, TaskRunner};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::control::{ControlQueue, SharedCounters, TaskHandle};
use super::driver::{Drivable, DrivenTask, TaskDriver};
use super::restore::{self, Keyed};
use super::snapshot::SnapshotWriter;
use super::stream_task::{Step, StreamTask, TaskServices, TaskState};
use crate::api::{Build, JobRegistry};
use crate::exchange::{Exchange, TaskWaker};
use crate::operator::{KeyedStates, Place, RestoredOperator, StartContext, TaskFaults, TaskInfo};
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

type KeptKey = (JobId, VertexId, SubtaskIndex);

/// What is known of each subtask that ran here; dropped with the job.
type Kept = Arc<Mutex<Keeper>>;

/// Keyed state of ended attempts, at most one per subtask.
///
/// Invariant: it holds state of the newest attempt of a subtask only, and none of a job that was released. An abandoned thread may
/// end long after its successor, or after its job.
#[derive(Default)]
struct Keeper {
    subtasks: BTreeMap<KeptKey, Subtask>,
}

struct Subtask {
    newest: ExecutionAttemptId,
    keyed: Option<(ExecutionAttemptId, KeyedStates)>,
}

impl Keeper {
    fn key(attempt: ExecutionAttemptId) -> KeptKey {
        (attempt.job, attempt.vertex, attempt.subtask)
    }

    /// An attempt begins.
    fn begin(&mut self, attempt: ExecutionAttemptId) {
        let subtask = self.subtasks.entry(Self::key(attempt)).or_insert(Subtask {
            newest: attempt,
            keyed: None,
        });
        subtask.newest = subtask.newest.max(attempt);
    }

    /// Takes what an earlier attempt left.
    fn take(&mut self, attempt: ExecutionAttemptId) -> Option<KeyedStates> {
        let subtask = self.subtasks.get_mut(&Self::key(attempt))?;
        let (from, keyed) = subtask.keyed.take()?;
        (from < attempt).then_some(keyed)
    }

    /// Keeps what an attempt leaves, if it may still have a successor.
    fn keep(&mut self, attempt: ExecutionAttemptId, keyed: KeyedStates) {
        if let Some(subtask) = self.subtasks.get_mut(&Self::key(attempt))
            && subtask.newest == attempt
        {
            subtask.keyed = Some((attempt, keyed));
        }
    }

    fn release(&mut self, job: JobId) {
        self.subtasks.retain(|(owner, _, _), _| *owner != job);
    }
}

/// The [`TaskRunner`] of a TaskManager.
pub struct LocalTaskRunner {
    options: Arc<RunnerOptions>,
    snapshots: Arc<SnapshotWriter>,
    kept: Kept,
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
                let message = format!("starting the task ended: {error}");
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

    fn release_job(&self, job: JobId) {
        self.snapshots.release(job);
        lock(&self.kept).release(job);
    }
}

fn lock(kept: &Kept) -> std::sync::MutexGuard<'_, Keeper> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One start of one task.
struct Launch {
    options: Arc<RunnerOptions>,
    snapshots: Arc<SnapshotWriter>,
    kept: Kept,
    graph: Arc<JobGraph>,
    deployment: TaskDeployment,
    events: TaskEvents,
    control: Arc<ControlQueue>,
    counters: Arc<SharedCounters>,
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

/// A thread's name shows 15 bytes.
fn short(name: &str) -> String {
    name.chars()
        .filter(|c| !c.is_whitespace())
        .take(8)
        .collect()
}

/// A launched task with everything it owns.
struct TaskCell {
    launch: Launch,
    info: Arc<TaskInfo>,
    task: Option<StreamTask>,
    state: TaskState,
    restored: Vec<RestoredOperator>,
    how: RestoredHow,
    began: Instant,
    /// All operators have their state: before, what is there is no attempt's state and must not be inherited.
    is_open: bool,
    outcome: oneshot::Sender<TaskOutcome>,
}

impl TaskCell {
    fn build(&mut self, waker: Arc<dyn TaskWaker>) -> Result<(), FailureKind> {
        let launch = &self.launch;
        let graph = &launch.graph;
        let builder =
            launch
                .options
                .registry
                .declare(graph)
                .map_err(|error| FailureKind::BuildMismatch {
                    message: error.to_string(),
                })?;
        let plan = builder.logical.plan(&graph.settings);
        let here = JobGraph {
            vertices: plan.vertices.clone(),
            edges: plan.edges.clone(),
            ..(**graph).clone()
        };
        if here.topology_hash() != graph.topology_hash() {
            return Err(FailureKind::BuildMismatch {
                message: format!(
                    "job `{}` gives graph {:016x} here and {:016x} at the client: a job function may depend on its arguments only, not on time, environment or hash order",
                    graph.registered,
                    here.topology_hash(),
                    graph.topology_hash()
                ),
            });
        }
        launch.control.set_waker(waker.clone());
        let build = Build {
            logical: &builder.logical,
            plan: &plan,
            graph,
            deployment: &launch.deployment,
            exchange: &launch.options.exchange,
            waker,
        };
        let head = build.head()?;
        let services = TaskServices {
            info: self.info.clone(),
            vertex_name: graph.vertices[self.info.attempt.vertex.0 as usize]
                .name
                .clone(),
            control: launch.control.clone(),
            counters: launch.counters.clone(),
            events: launch.events.clone(),
            snapshots: self.launch.snapshots.clone(),
            clock: launch.options.clock,
            faults: TaskFaults::new(launch.options.faults.clone(), self.info.attempt),
            is_source: graph.inputs(self.info.attempt.vertex).next().is_none(),
        };
        self.task = Some(StreamTask::new(head, services));
        Ok(())
    }

    fn open(&mut self) -> Result<(), FailureKind> {
        let now = self.launch.options.clock.now();
        let Some(task) = &mut self.task else {
            return Ok(());
        };
        let faults = &self.launch.options.faults;
        let place = FaultPlace::Task(self.info.attempt);
        faults
            .hit(FaultSite::OnOpen, place)
            .map_err(|error| FailureKind::User {
                message: error.to_string(),
                is_unrecoverable: false,
            })?;
        let mut cx = StartContext {
            keyed: &mut self.state.keyed,
            place: &mut self.state.place,
            restored: &mut self.restored,
            task: &self.info,
            now,
        };
        task.open(&mut cx).map_err(|error| error.0)?;
        self.state.place = Place::default();
        if let (RestoredHow::Loaded, Some(restore)) = (self.how, &self.launch.deployment.restore) {
            for keyed in self.state.keyed.iter_mut().flatten() {
                keyed
                    .finish_load(restore.checkpoint, restore.allow_non_restored_state)
                    .map_err(|error| FailureKind::IncompatibleState {
                        message: error.to_string(),
                    })?;
            }
        }
        #[cfg(feature = "fault-points")]
        if faults.is_sabotaged(perennial_actors::fault::Sabotage::DropPreImage) {
            for keyed in self.state.keyed.iter_mut().flatten() {
                keyed.drop_pre_images();
            }
        }
        self.restored.clear();
        self.is_open = true;
        let elapsed = self
            .launch
            .options
            .clock
            .now()
            .saturating_duration_since(self.began);
        (self.launch.events)(TaskEvent::Restored {
            how: self.how,
            micros: micros(elapsed),
        });
        task.start();
        (self.launch.events)(TaskEvent::Running);
        Ok(())
    }

    fn failure(&self, kind: FailureKind) -> Box<TaskFailure> {
        Box::new(match &self.task {
            Some(task) => task.failure(&self.state, kind),
            None => TaskFailure {
                vertex: self
                    .launch
                    .graph
                    .vertices
                    .get(self.info.attempt.vertex.0 as usize)
                    .map(|v| v.name.clone()),
                ..TaskFailure::of_attempt(self.info.attempt, kind)
            },
        })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Drivable for TaskCell {
    fn init(&mut self, waker: Arc<dyn TaskWaker>) -> Option<Step> {
        let built = self.build(waker).and_then(|()| self.open());
        built.err().map(|kind| Step::Failed(self.failure(kind)))
    }

    fn step(&mut self, now: Instant) -> Step {
        match &mut self.task {
            Some(task) => task.step(&mut self.state, now),
            None => Step::Failed(self.failure(FailureKind::Internal {
                message: "a task was stepped before it was built".into(),
            })),
        }
    }

    fn end(self: Box<Self>, last: Option<Step>, panic: Option<FailureKind>) {
        let TaskCell {
            launch,
            info,
            task,
            state,
            is_open,
            outcome: sender,
            ..
        } = *self;
        let attempt = info.attempt;
        let failed = |kind| TaskOutcome::Failed(Box::new(TaskFailure::of_attempt(attempt, kind)));
        // From here on the outcome leaves whatever happens: what follows calls functions of users.
        let mut ending = Ending {
            kept: launch.kept.clone(),
            attempt,
            state,
            is_open,
            outcome: match &panic {
                Some(panic) => failed(panic.clone()),
                None => TaskOutcome::Canceled,
            },
            sender: Some(sender),
        };
        match (last, panic) {
            (_, Some(panic)) => {
                if let Some(task) = &task {
                    ending.outcome =
                        TaskOutcome::Failed(Box::new(task.failure(&ending.state, panic)));
                }
                // What panicked may be in any state: it is dropped, not closed.
                drop(task);
                return;
            }
            (Some(Step::Finished), None) => ending.outcome = TaskOutcome::Finished,
            (Some(Step::Failed(failure)), None) => ending.outcome = TaskOutcome::Failed(failure),
            (Some(Step::Canceled | Step::Progress | Step::Wait { .. }) | None, None) => {}
        }
        let now = launch.options.clock.now();
        if let Some(mut task) = task
            && let Err(error) = task.close(&mut ending.state, now)
        {
            // The first cause counts; that of the close is logged only.
            warn!(%attempt, error = %error.0, "closing the task failed");
        }
    }
}

/// Tells the outcome and keeps the state when it is dropped: after the task was closed, or while its close panics.
struct Ending {
    kept: Kept,
    attempt: ExecutionAttemptId,
    state: TaskState,
    is_open: bool,
    outcome: TaskOutcome,
    sender: Option<oneshot::Sender<TaskOutcome>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.is_open && self.outcome != TaskOutcome::Finished {
            lock(&self.kept).keep(self.attempt, std::mem::take(&mut self.state.keyed));
        }
        if let Some(sender) = self.sender.take() {
            // Nobody may be waiting any more when the TaskManager is ending.
            let _ = sender.send(std::mem::replace(&mut self.outcome, TaskOutcome::Canceled));
        }
    }
}

#[cfg(test)]
mod tests {
    use perennial_actors::model::{Attempt, LeaderEpoch};

    use super::*;

    fn attempt(number: u32) -> ExecutionAttemptId {
        ExecutionAttemptId {
            job: JobId(1),
            vertex: VertexId(0),
            subtask: SubtaskIndex(0),
            epoch: LeaderEpoch(1),
            attempt: Attempt(number),
        }
    }

    /// An abandoned thread ends after its successor has left its state: the older state is not what the next attempt finds.
    #[test]
    fn state_of_an_older_attempt_never_replaces_that_of_a_newer_one() {
        let mut keeper = Keeper::default();
        keeper.begin(attempt(1));
        keeper.begin(attempt(2));
        keeper.keep(attempt(2), vec![None, None]);
        keeper.keep(attempt(1), vec![None]);
        keeper.begin(attempt(3));
        assert_eq!(keeper.take(attempt(3)).map(|k| k.len()), Some(2));
        assert!(keeper.take(attempt(3)).is_none(), "it is handed over once");
    }

    /// An abandoned thread ends after its job was released.
    #[test]
    fn nothing_is_kept_of_a_released_job() {
        let mut keeper = Keeper::default();
        keeper.begin(attempt(1));
        keeper.release(JobId(1));
        keeper.keep(attempt(1), vec![None]);
        assert!(keeper.subtasks.is_empty());
    }
}
