//! What calls a task's steps: a thread of its own in production, a seeded scheduler in the simulator.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use futures::future::BoxFuture;
use perennial_actors::clock::{Clock, Instant};
use perennial_actors::model::FailureKind;
use tokio::sync::oneshot;

use super::panic::TaskPanics;
use super::stream_task::Step;
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
fn catch<T>(work: impl FnOnce() -> T) -> Result<T, FailureKind> {
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

const ASLEEP: u8 = 0;
const AWAKE: u8 = 1;
const WOKEN: u8 = 2;

/// Wakes a parked thread; one atomic swap when it is awake.
#[derive(Default)]
struct ThreadWaker {
    state: AtomicU8,
    thread: OnceLock<Thread>,
}

impl TaskWaker for ThreadWaker {
    fn wake(&self) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == ASLEEP
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

impl ThreadWaker {
    fn park(&self, until: Option<Instant>, now: Instant) {
        if self
            .state
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            while self.state.load(Ordering::Acquire) == ASLEEP {
                match until {
                    None => std::thread::park(),
                    Some(until) => {
                        std::thread::park_timeout(until.saturating_duration_since(now));
                        break;
                    }
                }
            }
        }
        // A swap, not a store: a store could be delayed past the step's first look at its queues and then wipe out a wake that came in
        // between. With a swap, either the waker sees AWAKE, or we see everything that it wrote before waking.
        self.state.swap(AWAKE, Ordering::AcqRel);
    }
}

impl TaskDriver for ThreadDriver {
    fn run(&self, name: String, mut task: DrivenTask) -> BoxFuture<'static, ()> {
        let clock = self.clock;
        Self::spawn(name, move || {
            let waker = Arc::new(ThreadWaker::default());
            waker.state.store(AWAKE, Ordering::Release);
            // Set once, here: the thread is new.
            let _ = waker.thread.set(std::thread::current());
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::time::Duration;

    use super::*;

    /// Orders are set and looked at without a lock, as in the control queue, some of them just when the task looks again after another
    /// awakening. A lost wake shows as a sleep that lasts to its limit. (What it has not shown on x86 is the delayed store that `park`
    /// guards against: that one rests on the memory model.)
    #[test]
    fn no_order_is_slept_through() {
        const ORDERS: u64 = 20_000;
        const SLEEP_MAX: Duration = Duration::from_secs(5);
        let waker = Arc::new(ThreadWaker::default());
        waker.state.store(AWAKE, Ordering::Release);
        let has_order = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(AtomicU64::new(0));
        let clock = Clock::system();
        let task = std::thread::spawn({
            let (waker, has_order, seen) = (waker.clone(), has_order.clone(), seen.clone());
            move || {
                // Set once, here.
                let _ = waker.thread.set(std::thread::current());
                while seen.load(Ordering::Relaxed) < ORDERS {
                    let began = clock.now();
                    waker.park(Some(began + SLEEP_MAX), began);
                    if clock.now() - began >= SLEEP_MAX {
                        return false;
                    }
                    if has_order.load(Ordering::Acquire) {
                        has_order.store(false, Ordering::Relaxed);
                        seen.fetch_add(1, Ordering::Release);
                    }
                }
                true
            }
        });
        for order in 0..ORDERS {
            waker.wake();
            for _ in 0..order % 512 {
                std::hint::spin_loop();
            }
            has_order.store(true, Ordering::Release);
            waker.wake();
            while seen.load(Ordering::Acquire) <= order && !task.is_finished() {
                std::thread::yield_now();
            }
        }
        assert!(task.join().unwrap(), "an order was slept through");
    }
}
