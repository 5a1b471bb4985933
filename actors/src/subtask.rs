//! The guardian of one execution attempt: it passes orders to the task, and ends when the task has ended.
//!
//! Invariant: a guardian that ends by itself ends after its task, and with the task's typed failure, so that the tree carries the
//! cause; the one exception is a task that ignores its cancellation, which ends the guardian with
//! [`FailureKind::CancellationTimeout`]. What happens when the guardian itself breaks is the TaskManager's business: it holds the
//! same [`Guarded`] task.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

use crate::fault::{ActorFault, ActorKind};
use crate::model::message::{TaskOutcome, ToJobManager};
use crate::model::{
    ExecutionAttemptId, FailureKind, JobGraph, TaskCounters, TaskDeployment, TaskFailure,
};
use crate::task_runner::{RunningTask, StartedTask, TaskControl, TaskEvent, TaskRunner};

/// A timer that dies with its owner: ractor's own would sleep on, one for each restart.
pub(crate) struct Timer(tokio::task::AbortHandle);

impl Timer {
    pub(crate) fn of<T>(timer: &tokio::task::JoinHandle<T>) -> Self {
        Self(timer.abort_handle())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A running task that outlives its guardian.
#[derive(Clone)]
pub(crate) struct Guarded {
    task: Arc<Mutex<Box<dyn RunningTask>>>,
    /// Set when nothing of the task is left.
    outcome: watch::Receiver<Option<TaskOutcome>>,
}

impl Guarded {
    pub(crate) fn control(&self, control: TaskControl) {
        self.locked().control(control);
    }

    pub(crate) fn counters(&self) -> TaskCounters {
        self.locked().counters()
    }

    pub(crate) fn outcome(&self) -> Option<TaskOutcome> {
        self.outcome.borrow().clone()
    }

    /// Resolves when nothing of the task is left.
    pub(crate) async fn ended(mut self) -> TaskOutcome {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(TaskOutcome::Canceled),
            // The runtime shuts down: the watcher was dropped before the task's end.
            Err(_closed) => TaskOutcome::Canceled,
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Box<dyn RunningTask>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct SubtaskArguments {
    pub(crate) runner: Arc<dyn TaskRunner>,
    pub(crate) graph: Arc<JobGraph>,
    pub(crate) deployment: TaskDeployment,
    /// Receives reports in order, none after the guardian's end.
    pub(crate) on_report: Arc<dyn Fn(ToJobManager) + Send + Sync>,
    /// Receives the task as soon as it is started.
    pub(crate) on_started: Box<dyn FnOnce(Guarded) + Send + Sync>,
}

pub(crate) enum SubtaskMessage {
    Control(TaskControl),
    /// Cancel, and give up when the task does not end in time.
    Cancel,
    Event(TaskEvent),
    Ended,
    CancellationTimeout,
    Fault(ActorFault),
}

pub(crate) struct SubtaskState {
    attempt: ExecutionAttemptId,
    guarded: Guarded,
    cancellation_timeout: Duration,
    is_canceling: bool,
    watchdog: Option<Timer>,
    on_report: Arc<dyn Fn(ToJobManager) + Send + Sync>,
}

pub(crate) struct Subtask;

impl Actor for Subtask {
    type Msg = SubtaskMessage;
    type State = SubtaskState;
    type Arguments = SubtaskArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SubtaskMessage>,
        arguments: SubtaskArguments,
    ) -> Result<SubtaskState, ActorProcessingErr> {
        let attempt = arguments.deployment.attempt;
        let cancellation_timeout = arguments.graph.settings.cancellation_timeout;
        let target = myself.clone();
        let events = Arc::new(move |event| {
            // A guardian that has ended had nothing more to report.
            let _ended = target.cast(SubtaskMessage::Event(event));
        });
        // Starting does not block and does not fail here: the runner reports a failed start as the task's end.
        let StartedTask { task, end } =
            arguments
                .runner
                .start(arguments.graph, arguments.deployment, events);
        let (ended, outcome) = watch::channel(None);
        tokio::spawn(async move {
            let outcome = end.await;
            // Order matters: whoever hears of the guardian's end afterwards finds the outcome.
            ended.send_replace(Some(outcome));
            let _ended = myself.cast(SubtaskMessage::Ended);
        });
        let guarded = Guarded {
            task: Arc::new(Mutex::new(task)),
            outcome,
        };
        (arguments.on_started)(guarded.clone());
        Ok(SubtaskState {
            attempt,
            guarded,
            cancellation_timeout,
            is_canceling: false,
            watchdog: None,
            on_report: arguments.on_report,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<SubtaskMessage>,
        message: SubtaskMessage,
        state: &mut SubtaskState,
    ) -> Result<(), ActorProcessingErr> {
        let attempt = state.attempt;
        match message {
            SubtaskMessage::Control(control) => state.guarded.control(control),
            SubtaskMessage::Cancel => {
                if !state.is_canceling {
                    state.is_canceling = true;
                    state.guarded.control(TaskControl::Cancel);
                    // Zero switches the watchdog off, as in Flink.
                    if !state.cancellation_timeout.is_zero() {
                        let timer = myself.send_after(state.cancellation_timeout, || {
                            SubtaskMessage::CancellationTimeout
                        });
                        state.watchdog = Some(Timer::of(&timer));
                    }
                }
            }
            SubtaskMessage::Event(event) => (state.on_report)(match event {
                TaskEvent::Restored { how, micros } => ToJobManager::TaskRestored {
                    attempt,
                    how,
                    micros,
                },
                TaskEvent::Running => ToJobManager::TaskRunning { attempt },
                TaskEvent::FirstRecord => ToJobManager::TaskFirstRecord { attempt },
                TaskEvent::AwaitingFinal => ToJobManager::TaskAwaitingFinal { attempt },
            }),
            SubtaskMessage::Ended => match state.guarded.outcome() {
                Some(TaskOutcome::Failed(failure)) => return Err(failure),
                Some(TaskOutcome::Finished | TaskOutcome::Canceled) | None => {
                    myself.stop(Some("its task ended".to_owned()));
                }
            },
            SubtaskMessage::Fault(fault) => fault.strike(ActorKind::Subtask).await,
            SubtaskMessage::CancellationTimeout => {
                if state.guarded.outcome().is_none() {
                    let seconds = state.cancellation_timeout.as_secs();
                    let kind = FailureKind::CancellationTimeout { seconds };
                    return Err(Box::new(TaskFailure::of_attempt(attempt, kind)));
                }
            }
        }
        Ok(())
    }
}
