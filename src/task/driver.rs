//! What calls a task's steps: a thread of its own in production, a seeded scheduler in the simulator.

use std::sync::Arc;

use futures::future::BoxFuture;
use perennial_actors::clock::{Clock, Instant};
use perennial_actors::model::FailureKind;
use tokio::sync::oneshot;

use super::panic::TaskPanics;
use super::stream_task::Step;
use super::waker::ThreadWaker;
use crate::exchange::TaskWaker;

/// A task as its driver sees it. A panic in `init` or `step` is caught by the driver and handed to `end`.
pub(crate) trait Drivable: Send {
    /// Makes the operators. Called once, first.
    fn init(&mut self, waker: Arc<dyn TaskWaker>) -> Option<Step>;
    /// One step.
    fn step(&mut self, now: Instant) -> Step;
    /// The last call. `panic` is set when a call before ended in one.
    fn end(self: Box<Self>, last: Option<Step>, panic: Option<FailureKind>);
}

/// A task to be driven, opaque outside this crate.
pub struct DrivenTask(pub(crate) Box<dyn Drivable>);

impl DrivenTask {
    /// Makes the operators; `Some` when the task ends here.
    pub fn init(&mut self, waker: Arc<dyn TaskWaker>) -> Option<StepResult> {
        self.0.init(waker).map(StepResult)
    }

    /// One step.
    pub fn step(&mut self, now: Instant) -> StepResult {
        StepResult(self.0.step(now))
    }

    /// As [`init`](Self::init), with a panic of user code as an error; for drivers that run many tasks on one thread.
    pub fn try_init(
        &mut self,
        waker: Arc<dyn TaskWaker>,
    ) -> Result<Option<StepResult>, FailureKind> {
        catch(|| self.init(waker))
    }

    /// As [`step`](Self::step), with a panic of user code as an error; for drivers that run many tasks on one thread.
    pub fn try_step(&mut self, now: Instant) -> Result<StepResult, FailureKind> {
        catch(|| self.step(now))
    }

    /// The last call.
    pub fn end(self, last: Option<StepResult>, panic: Option<FailureKind>) {
        end(self.0, last.map(|s| s.0), panic);
    }
}

/// The one place that catches: what panicked is dropped by [`DrivenTask::end`], its keyed state is outside.
#[allow(clippy::disallowed_methods, reason = "the one place that catches")]
pub(super) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, FailureKind> {
    let panics = TaskPanics::record();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(|_| panics.take())
}

/// A panic while user functions are closed masks nothing: the outcome has left by then, or leaves while it unwinds.
fn end(task: Box<dyn Drivable>, last: Option<Step>, panic: Option<FailureKind>) {
    if let Err(panic) = catch(|| task.end(last, panic)) {
        tracing::warn!(error = %panic, "closing the task panicked");
    }
}

/// What a step came to.
pub struct StepResult(pub(crate) Step);

impl StepResult {
    /// Whether the task has ended.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(self.0, Step::Finished | Step::Canceled | Step::Failed(_))
    }

    /// When to call again: `None` at once, `Some(None)` when woken, `Some(Some(t))` when woken or at a time.
    #[must_use]
    pub fn wait(&self) -> Option<Option<Instant>> {
        match self.0 {
            Step::Wait { until } => Some(until),
            Step::Progress | Step::Finished | Step::Canceled | Step::Failed(_) => None,
        }
    }
}

/// Runs tasks.
pub trait TaskDriver: Send + Sync + 'static {
    /// Runs a task to its end. The future resolves when nothing of it is left, its thread included.
    fn run(&self, name: String, task: DrivenTask) -> BoxFuture<'static, ()>;
    /// Runs work that takes long without I/O, apart from the I/O threads.
    fn work(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;
}

/// One OS thread per task, parked while there is nothing to do.
#[derive(Debug, Clone)]
pub struct ThreadDriver {
    clock: Clock,
}

impl ThreadDriver {
    /// Steps get the clock's time.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock }
    }

    fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> BoxFuture<'static, ()> {
        let (ended, wait) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            body();
            drop(ended);
        });
        Box::pin(async move {
            // Resolves when the sender is dropped, which is the thread's last act; joining then takes no time worth naming.
            let _ = wait.await;
            if let Ok(thread) = thread {
                // The body catches panics; nothing is lost with this result.
                let _ = thread.join();
            }
        })
    }
}

impl TaskDriver for ThreadDriver {
    fn run(&self, name: String, mut task: DrivenTask) -> BoxFuture<'static, ()> {
        let clock = self.clock;
        Self::spawn(name, move || {
            let waker = Arc::new(ThreadWaker::new());
            waker.set(std::thread::current());
            let driven = catch(|| {
                if let Some(end) = task.0.init(waker.clone()) {
                    return end;
                }
                loop {
                    let now = clock.now();
                    match task.0.step(now) {
                        Step::Progress => {}
                        Step::Wait { until } => waker.park(until, clock.now()),
                        end @ (Step::Finished | Step::Canceled | Step::Failed(_)) => return end,
                    }
                }
            });
            match driven {
                Ok(last) => end(task.0, Some(last), None),
                Err(panic) => end(task.0, None, Some(panic)),
            }
        })
    }

    fn work(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Self::spawn("perennial-work".into(), work)
    }
}
