//! One attempt of a task with everything it owns: built, opened and stepped by its driver, and taken apart at its end.
//!
//! Invariant: whatever user code does on the way, the outcome is told once, after everything that a successor may inherit was put where
//! it finds it.

use std::sync::Arc;
use std::time::Duration;

use perennial_actors::TaskEvent;
use perennial_actors::clock::Instant;
use perennial_actors::fault::{FaultPlace, FaultSite};
use perennial_actors::model::message::TaskOutcome;
use perennial_actors::model::{
    ExecutionAttemptId, FailureKind, JobGraph, RestoredHow, TaskFailure, TaskRestore,
};
use tokio::sync::oneshot;
use tracing::warn;

use super::driver::Drivable;
use super::keeper::{Kept, lock};
use super::runner::Launch;
use super::stream_task::{Step, StreamTask, TaskServices, TaskState};
use crate::api::Build;
use crate::exchange::TaskWaker;
use crate::operator::{Leftover, Place, RestoredOperator, StartContext, TaskFaults, TaskInfo};

/// A launched task with everything it owns.
pub(super) struct TaskCell {
    pub(super) launch: Launch,
    pub(super) info: Arc<TaskInfo>,
    pub(super) task: Option<StreamTask>,
    pub(super) state: TaskState,
    pub(super) restored: Vec<RestoredOperator>,
    pub(super) how: RestoredHow,
    pub(super) began: Instant,
    /// All operators have their state: before, what is there is no attempt's state and must not be inherited.
    pub(super) is_open: bool,
    pub(super) outcome: oneshot::Sender<TaskOutcome>,
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
        let may_drop = |restore: &TaskRestore| restore.allow_non_restored_state;
        if !self.launch.deployment.restore.as_ref().is_none_or(may_drop)
            && let Some(message) = unclaimed(&self.restored, &self.info.names)
        {
            return Err(FailureKind::IncompatibleState { message });
        }
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

/// State of an operator that is still there, and takes it no more. (Of one that is gone the JobManager has said so, of one state among
/// others its backend does.)
fn unclaimed(restored: &[RestoredOperator], names: &[String]) -> Option<String> {
    restored.iter().zip(names).find_map(|(operator, name)| {
        let list = operator.lists.iter().find(|list| !list.items.is_empty());
        let what = match list {
            Some(list) => format!("operator state `{}`", list.name),
            None if operator.segments.is_empty() => return None,
            None => "keyed state".to_owned(),
        };
        Some(format!(
            "the snapshot holds {what} of `{name}`, which takes it no more; drop it with --allow-non-restored-state"
        ))
    })
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
            mut task,
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
            output: Vec::new(),
            outcome: match &panic {
                Some(panic) => failed(panic.clone()),
                None => TaskOutcome::Canceled,
            },
            sender: Some(sender),
        };
        if let Some(task) = &mut task {
            // Before the close, which may panic; it calls nothing of a user's.
            ending.output = task.leftovers();
        }
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
        if let Some(task) = &mut task
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
    output: Vec<Box<dyn Leftover>>,
    outcome: TaskOutcome,
    sender: Option<oneshot::Sender<TaskOutcome>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.is_open && self.outcome != TaskOutcome::Finished {
            let keyed = std::mem::take(&mut self.state.keyed);
            let output = std::mem::take(&mut self.output);
            lock(&self.kept).keep(self.attempt, keyed, output);
        }
        if let Some(sender) = self.sender.take() {
            // Nobody may be waiting any more when the TaskManager is ending.
            let _ = sender.send(std::mem::replace(&mut self.outcome, TaskOutcome::Canceled));
        }
    }
}

#[cfg(test)]
mod tests {
    use perennial_actors::model::{CheckpointId, SegmentKind};

    use super::*;
    use crate::operator::{LoadedSegment, NamedList, Redistribution};

    /// An empty list is none, and what was claimed is gone from it.
    #[test]
    fn state_that_an_operator_takes_no_more_is_told_by_name() {
        let names = ["source".to_owned(), "map".to_owned()];
        let list = |items| NamedList {
            name: "offsets".into(),
            redistribution: Redistribution::Split,
            items,
        };
        let segment = LoadedSegment {
            checkpoint: CheckpointId(1),
            kind: SegmentKind::Full,
            states: Vec::new(),
            groups: Vec::new(),
        };
        for (lists, segments, expected) in [
            (vec![list(Vec::new())], vec![], None),
            (
                vec![list(vec![vec![1]])],
                vec![],
                Some("operator state `offsets` of `map`"),
            ),
            (vec![], vec![segment], Some("keyed state of `map`")),
        ] {
            let operator = RestoredOperator {
                lists,
                segments,
                ..RestoredOperator::default()
            };
            let message = unclaimed(&[RestoredOperator::default(), operator], &names);
            match (message, expected) {
                (None, None) => {}
                (Some(message), Some(expected)) => assert!(message.contains(expected), "{message}"),
                (message, _) => panic!("{message:?}"),
            }
        }
    }
}
