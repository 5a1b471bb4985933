//! What is known of every subtask of a job: attempt, state, place, figures. Pure.
//!
//! Invariant: only reports of the attempt that was deployed last change anything, and only along the table in [`next_state`]. What
//! follows from a change is the JobMaster's business.

use std::collections::{BTreeMap, BTreeSet};

use crate::failover::SubtaskId;
use crate::model::message::TaskOutcome;
use crate::model::{
    Attempt, ExecutionAttemptId, InstanceId, JobGraph, JobId, LeaderEpoch, RestoredHow,
    SubtaskIndex, SubtaskStatus, TaskCounters, TaskManagerLocation, TaskState,
};

/// What happens to a task, as far as its state is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskReport {
    /// State and channels are there.
    Restored,
    /// It processes records.
    Running,
    /// Only the final checkpoint is missing.
    AwaitingFinal,
    /// We asked it to stop.
    Stopping,
    /// It ended by itself.
    Finished,
    /// It ended because it was stopped.
    Canceled,
    /// It ended by a failure, or was lost with its TaskManager.
    Failed,
}

impl From<&TaskOutcome> for TaskReport {
    fn from(outcome: &TaskOutcome) -> Self {
        match outcome {
            TaskOutcome::Finished => Self::Finished,
            TaskOutcome::Canceled => Self::Canceled,
            TaskOutcome::Failed(_) => Self::Failed,
        }
    }
}

/// Where a report leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// To another state.
    Enter(TaskState),
    /// Nowhere, for a reason that is part of normal life.
    Ignore(&'static str),
    /// Nowhere: the two sides disagree about the protocol.
    Unexpected,
}

/// The table of task states; names every pair.
#[must_use]
pub fn next_state(state: TaskState, report: TaskReport) -> Transition {
    use TaskReport as R;
    use TaskState as S;
    use Transition::{Enter, Ignore, Unexpected};
    match (state, report) {
        // Nothing was deployed yet, so nobody can report; stopping it is done at once.
        (S::Created, R::Stopping) => Enter(S::Canceled),
        (
            S::Created,
            R::Restored | R::Running | R::AwaitingFinal | R::Finished | R::Canceled | R::Failed,
        ) => Unexpected,
        (S::Deploying, R::Restored) => Enter(S::Initializing),
        // The report in between was lost with a connection.
        (S::Deploying | S::Initializing, R::Running) => Enter(S::Running),
        (S::Deploying | S::Initializing | S::Running, R::AwaitingFinal) => {
            Enter(S::AwaitingFinalCheckpoint)
        }
        (S::Initializing | S::Running | S::AwaitingFinalCheckpoint, R::Restored) => {
            Ignore("it is further already")
        }
        (S::Running | S::AwaitingFinalCheckpoint, R::Running)
        | (S::AwaitingFinalCheckpoint, R::AwaitingFinal) => Ignore("it is there already"),
        (S::Deploying | S::Initializing | S::Running | S::AwaitingFinalCheckpoint, R::Stopping) => {
            Enter(S::Canceling)
        }
        // Only a final checkpoint or a stop with savepoint lets a task finish; whether there was one, the JobMaster knows.
        (S::Deploying | S::Initializing | S::Running | S::AwaitingFinalCheckpoint, R::Finished) => {
            Enter(S::Finished)
        }
        // Stopped by somebody else: its TaskManager is going down.
        (S::Deploying | S::Initializing | S::Running | S::AwaitingFinalCheckpoint, R::Canceled) => {
            Enter(S::Canceled)
        }
        (
            S::Deploying | S::Initializing | S::Running | S::AwaitingFinalCheckpoint | S::Canceling,
            R::Failed,
        ) => Enter(S::Failed),
        (S::Canceling, R::Restored | R::Running | R::AwaitingFinal) => {
            Ignore("sent before the order to stop arrived")
        }
        (S::Canceling, R::Stopping) => Ignore("it is stopping already"),
        (S::Canceling, R::Finished) => Enter(S::Finished),
        (S::Canceling, R::Canceled) => Enter(S::Canceled),
        (
            S::Finished | S::Canceled | S::Failed,
            R::Restored
            | R::Running
            | R::AwaitingFinal
            | R::Stopping
            | R::Finished
            | R::Canceled
            | R::Failed,
        ) => Ignore("the attempt is over"),
    }
}

/// One subtask's current attempt.
#[derive(Debug, Clone)]
pub struct Execution {
    /// `None` before the first deployment.
    pub attempt: Option<ExecutionAttemptId>,
    /// Now.
    pub state: TaskState,
    /// Where it runs or ran; kept after its end, since its keyed state may still lie there.
    pub location: Option<TaskManagerLocation>,
    /// How its state came back.
    pub restored: Option<RestoredHow>,
    /// Whether it has processed a record.
    pub has_first_record: bool,
    /// As of the last heartbeat.
    pub counters: TaskCounters,
}

impl Execution {
    /// Whether something of it may still run.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.attempt.is_some() && !self.state.is_terminal()
    }

    /// Whether it processes records or has processed all of them.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(
            self.state,
            TaskState::Running | TaskState::AwaitingFinalCheckpoint
        )
    }

    /// The process that it runs or ran in.
    #[must_use]
    pub fn instance(&self) -> Option<InstanceId> {
        self.location.as_ref().map(|location| location.instance)
    }
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The state changed.
    Entered {
        /// Whose.
        id: SubtaskId,
        /// Before.
        from: TaskState,
    },
    /// Nothing changed, and that is right.
    Ignored(&'static str),
    /// Nothing changed, and one side has a bug.
    Unexpected(TaskState),
}

/// All subtasks of a job.
#[derive(Debug)]
pub struct ExecutionGraph {
    job: JobId,
    epoch: LeaderEpoch,
    executions: BTreeMap<SubtaskId, Execution>,
    /// The last wave that was deployed, or that must not be used again.
    wave: Attempt,
}

impl ExecutionGraph {
    /// Nothing deployed. Waves up to `used` belong to the past of this epoch.
    #[must_use]
    pub fn new(graph: &JobGraph, epoch: LeaderEpoch, used: Attempt) -> Self {
        let executions = graph
            .vertices
            .iter()
            .flat_map(|vertex| {
                (0..vertex.parallelism).map(|i| SubtaskId {
                    vertex: vertex.id,
                    subtask: SubtaskIndex(i),
                })
            })
            .map(|id| {
                (
                    id,
                    Execution {
                        attempt: None,
                        state: TaskState::Created,
                        location: None,
                        restored: None,
                        has_first_record: false,
                        counters: TaskCounters::default(),
                    },
                )
            })
            .collect();
        Self {
            job: graph.job,
            epoch,
            executions,
            wave: used,
        }
    }

    /// Begins the next wave: new attempts for `tasks`, at `places[subtask]`. Returns their number.
    pub fn deploy(
        &mut self,
        tasks: &BTreeSet<SubtaskId>,
        places: &[TaskManagerLocation],
    ) -> Attempt {
        self.wave = Attempt(self.wave.0 + 1);
        for id in tasks {
            let Some(execution) = self.executions.get_mut(id) else {
                continue;
            };
            debug_assert!(!execution.is_live(), "{id} has not ended");
            *execution = Execution {
                attempt: Some(ExecutionAttemptId {
                    job: self.job,
                    vertex: id.vertex,
                    subtask: id.subtask,
                    epoch: self.epoch,
                    attempt: self.wave,
                }),
                state: TaskState::Deploying,
                location: places.get(id.subtask.0 as usize).cloned(),
                restored: None,
                has_first_record: false,
                counters: TaskCounters::default(),
            };
        }
        self.wave
    }

    /// The subtask of an attempt, if that attempt is the current one.
    pub fn current(&self, attempt: &ExecutionAttemptId) -> Result<SubtaskId, &'static str> {
        let id = SubtaskId {
            vertex: attempt.vertex,
            subtask: attempt.subtask,
        };
        if attempt.job != self.job {
            return Err("it belongs to another job");
        }
        let Some(execution) = self.executions.get(&id) else {
            return Err("the job has no such subtask");
        };
        match execution.attempt {
            Some(current) if current == *attempt => Ok(id),
            // Late, harmless, expected after a partition or a change of leadership.
            Some(_) | None => Err("it is not the current attempt"),
        }
    }

    /// Applies a report about an attempt.
    pub fn apply(&mut self, attempt: &ExecutionAttemptId, report: TaskReport) -> Applied {
        let id = match self.current(attempt) {
            Ok(id) => id,
            Err(reason) => return Applied::Ignored(reason),
        };
        let Some(execution) = self.executions.get_mut(&id) else {
            return Applied::Ignored("the job has no such subtask");
        };
        let from = execution.state;
        match next_state(from, report) {
            Transition::Enter(to) => {
                execution.state = to;
                Applied::Entered { id, from }
            }
            Transition::Ignore(reason) => Applied::Ignored(reason),
            Transition::Unexpected => Applied::Unexpected(from),
        }
    }

    /// One subtask.
    #[must_use]
    pub fn get(&self, id: SubtaskId) -> Option<&Execution> {
        self.executions.get(&id)
    }

    /// To note figures; states change through [`ExecutionGraph::apply`] only.
    pub fn get_mut(&mut self, id: SubtaskId) -> Option<&mut Execution> {
        self.executions.get_mut(&id)
    }

    /// All, in order of vertex and subtask.
    pub fn iter(&self) -> impl Iterator<Item = (SubtaskId, &Execution)> {
        self.executions.iter().map(|(id, e)| (*id, e))
    }

    /// Attempts of which something may still run, with their processes.
    pub fn live(&self) -> impl Iterator<Item = (SubtaskId, ExecutionAttemptId, InstanceId)> {
        self.iter()
            .filter(|(_, e)| e.is_live())
            .filter_map(|(id, e)| Some((id, e.attempt?, e.instance()?)))
    }

    /// The live attempts among some subtasks, by process.
    #[must_use]
    pub fn live_of(
        &self,
        tasks: &BTreeSet<SubtaskId>,
    ) -> BTreeMap<InstanceId, Vec<ExecutionAttemptId>> {
        let mut by_instance: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (id, attempt, instance) in self.live() {
            if tasks.contains(&id) {
                by_instance.entry(instance).or_default().push(attempt);
            }
        }
        by_instance
    }

    /// Whether nothing of these subtasks is left.
    #[must_use]
    pub fn have_ended(&self, tasks: &BTreeSet<SubtaskId>) -> bool {
        tasks
            .iter()
            .filter_map(|id| self.executions.get(id))
            .all(|execution| !execution.is_live())
    }

    /// Every subtask of the job for people.
    #[must_use]
    pub fn statuses(&self, graph: &JobGraph) -> Vec<SubtaskStatus> {
        self.iter()
            .map(|(id, execution)| SubtaskStatus {
                vertex: id.vertex.0,
                name: graph
                    .vertices
                    .get(id.vertex.0 as usize)
                    .map(|vertex| vertex.name.clone())
                    .unwrap_or_default(),
                subtask: id.subtask.0,
                attempt: execution
                    .attempt
                    .map_or_else(|| "-".to_owned(), |a| format!("{}.{}", a.epoch, a.attempt)),
                state: execution.state,
                task_manager: execution.location.as_ref().map(|l| l.resource.clone()),
                counters: execution.counters,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Exchange, ResourceId, VertexId};
    use crate::testing::graph;

    fn place(instance: u128) -> TaskManagerLocation {
        TaskManagerLocation {
            resource: ResourceId(format!("tm-{instance}")),
            instance: InstanceId(instance),
            data_address: String::new(),
        }
    }

    fn deployed() -> (ExecutionGraph, BTreeSet<SubtaskId>, ExecutionAttemptId) {
        let graph = graph(&[2, 2], &[(0, 1, Exchange::Hash)]);
        let mut executions = ExecutionGraph::new(&graph, LeaderEpoch(3), Attempt(0));
        let tasks: BTreeSet<_> = executions.iter().map(|(id, _)| id).collect();
        assert_eq!(executions.deploy(&tasks, &[place(1), place(2)]), Attempt(1));
        let attempt = ExecutionAttemptId {
            job: graph.job,
            vertex: VertexId(1),
            subtask: SubtaskIndex(1),
            epoch: LeaderEpoch(3),
            attempt: Attempt(1),
        };
        (executions, tasks, attempt)
    }

    #[test]
    fn slot_i_hosts_subtask_i_of_every_vertex() {
        let (executions, tasks, _) = deployed();
        let by_instance = executions.live_of(&tasks);
        assert_eq!(by_instance[&InstanceId(1)].len(), 2);
        assert!(
            by_instance[&InstanceId(2)]
                .iter()
                .all(|attempt| attempt.subtask == SubtaskIndex(1))
        );
    }

    #[test]
    fn a_report_of_an_old_attempt_changes_nothing() {
        let (mut executions, tasks, first) = deployed();
        for (_, attempt, _) in executions.live().collect::<Vec<_>>() {
            executions.apply(&attempt, TaskReport::Failed);
        }
        executions.deploy(&tasks, &[place(1), place(2)]);
        for report in [
            TaskReport::Running,
            TaskReport::Failed,
            TaskReport::Finished,
        ] {
            assert!(matches!(
                executions.apply(&first, report),
                Applied::Ignored(_)
            ));
        }
        let former_leader = ExecutionAttemptId {
            epoch: LeaderEpoch(2),
            attempt: Attempt(2),
            ..first
        };
        assert!(matches!(
            executions.apply(&former_leader, TaskReport::Failed),
            Applied::Ignored(_)
        ));
        assert!(
            executions
                .iter()
                .all(|(_, e)| e.state == TaskState::Deploying)
        );
    }

    #[test]
    fn a_task_lives_from_deploying_to_finished() {
        let (mut executions, tasks, attempt) = deployed();
        use TaskState as S;
        for (report, state) in [
            (TaskReport::Restored, S::Initializing),
            (TaskReport::Running, S::Running),
            (TaskReport::AwaitingFinal, S::AwaitingFinalCheckpoint),
            (TaskReport::Finished, S::Finished),
        ] {
            let applied = executions.apply(&attempt, report);
            let Applied::Entered { id, .. } = applied else {
                panic!("{report:?}: {applied:?}");
            };
            assert_eq!(executions.get(id).unwrap().state, state);
        }
        assert!(!executions.have_ended(&tasks), "three others live");
    }

    /// Whatever is reported, what has ended stays ended.
    #[test]
    fn no_report_revives_a_task() {
        use TaskReport as R;
        for state in [TaskState::Finished, TaskState::Canceled, TaskState::Failed] {
            for report in [
                R::Restored,
                R::Running,
                R::AwaitingFinal,
                R::Stopping,
                R::Finished,
                R::Canceled,
                R::Failed,
            ] {
                assert!(matches!(next_state(state, report), Transition::Ignore(_)));
            }
        }
    }
}
