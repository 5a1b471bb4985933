//! Calls the steps of all tasks of a simulated cluster: one woken task per turn, in seeded order, then everybody else gets a turn.
//!
//! Invariant: a task that is not woken and has no time to wait for is never stepped, so that a wake-up that is lost shows as a job
//! that stands still. While a task is woken the paused clock does not advance.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use perennial::exchange::TaskWaker;
use perennial::task::{DrivenTask, StepResult, TaskDriver};
use perennial_actors::clock::Instant;
use perennial_actors::entropy::Entropy;
use perennial_actors::model::FailureKind;
use tokio::sync::{Notify, oneshot};

use super::trace::Trace;

/// One in so many steps is followed by a pause of the task, as on a busy machine.
const PAUSE_ONE_IN: u64 = 40;
/// The longest such pause.
const PAUSE_MS_MAX: u64 = 12;

/// With the sabotage, tasks of the window miss every wake-up after so many.
const DEAF_AFTER: u64 = 50;
const DEAF_TASKS: &str = "windows";

/// A starved node works in a part of each such span.
const STARVED_SPAN: Duration = Duration::from_millis(100);

/// The scheduler of all tasks. Clones are the same.
#[derive(Clone)]
pub(super) struct Stepper(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    work: Notify,
    trace: Trace,
    dice: Entropy,
    /// Sabotage: see [`DEAF_AFTER`].
    is_deafening: bool,
}

#[derive(Default)]
struct State {
    last: u64,
    tasks: BTreeMap<u64, Slot>,
    woken: BTreeSet<u64>,
    dead: BTreeSet<String>,
    paused: BTreeSet<String>,
    starved: BTreeMap<String, Starved>,
}

#[derive(Clone, Copy)]
struct Starved {
    since: Instant,
    until: Instant,
    works: Duration,
}

impl Starved {
    /// When it works, from `at` on.
    fn next(&self, at: Instant) -> Instant {
        let phase = at.saturating_duration_since(self.since).as_nanos() % STARVED_SPAN.as_nanos();
        if at >= self.until || phase < self.works.as_nanos() {
            return at;
        }
        let rest = STARVED_SPAN.as_nanos() - phase;
        at + Duration::from_nanos(u64::try_from(rest).unwrap_or(0))
    }
}

struct Slot {
    node: String,
    name: String,
    /// Taken while it is stepped.
    task: Option<DrivenTask>,
    is_built: bool,
    until: Option<Instant>,
    paused_until: Option<Instant>,
    steps: u64,
    /// Counted with the sabotage only.
    wakes: u64,
    /// Dropped at the task's end.
    _ended: oneshot::Sender<()>,
}

enum Turn {
    Stepped,
    Wait(Option<Instant>),
}

struct Waker {
    task: u64,
    stepper: Weak<Inner>,
}

impl TaskWaker for Waker {
    fn wake(&self) {
        let Some(stepper) = self.stepper.upgrade() else {
            return;
        };
        if stepper.is_deafening && stepper.is_deaf(self.task) {
            return;
        }
        stepper.wake(self.task);
    }
}

impl Stepper {
    /// Without tasks. `run` makes it work.
    #[must_use]
    pub(super) fn new(trace: Trace, dice: Entropy, is_deafening: bool) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::default(),
            work: Notify::new(),
            trace,
            dice,
            is_deafening,
        }))
    }

    /// Steps tasks for ever.
    pub(super) async fn run(self) {
        loop {
            match self.0.turn() {
                Turn::Stepped => tokio::task::yield_now().await,
                Turn::Wait(None) => self.0.work.notified().await,
                Turn::Wait(Some(until)) => tokio::select! {
                    biased;
                    () = self.0.work.notified() => {}
                    () = tokio::time::sleep_until(until) => {}
                },
            }
        }
    }

    /// The driver of the tasks of one incarnation of a node.
    #[must_use]
    pub(super) fn driver(&self, node: &str) -> NodeDriver {
        NodeDriver {
            inner: Arc::clone(&self.0),
            node: node.to_owned(),
        }
    }

    /// Ends all tasks of a node as SIGKILL does: nothing of theirs is called any more.
    pub(super) fn kill(&self, node: &str) {
        let mut state = self.0.lock();
        state.dead.insert(node.to_owned());
        let ids: Vec<u64> = state
            .tasks
            .iter()
            .filter(|(_, slot)| slot.node == node)
            .map(|(id, _)| *id)
            .collect();
        let killed: Vec<Slot> = ids.iter().filter_map(|id| state.tasks.remove(id)).collect();
        // Order matters: dropping a task may wake another, which takes the lock.
        drop(state);
        drop(killed);
    }

    /// No task of a node is stepped until it is resumed.
    pub(super) fn pause(&self, node: &str) {
        self.0.lock().paused.insert(node.to_owned());
    }

    /// See [`pause`](Self::pause).
    pub(super) fn resume(&self, node: &str) {
        self.0.lock().paused.remove(node);
        self.0.work.notify_one();
    }

    /// Tasks of a node are stepped in a share of the time only.
    pub(super) fn starve(&self, node: &str, percent: u32, until: Instant) {
        let starved = Starved {
            since: Instant::now(),
            until,
            works: STARVED_SPAN * percent.min(100) / 100,
        };
        self.0.lock().starved.insert(node.to_owned(), starved);
    }

    /// What is left, for messages: one line per task.
    #[must_use]
    pub(super) fn tasks(&self) -> Vec<String> {
        let now = Instant::now();
        let state = self.0.lock();
        let describe = |(id, slot): (&u64, &Slot)| {
            let due = slot
                .until
                .map(|u| format!("in {:?}", u.saturating_duration_since(now)));
            format!(
                "{} on {}: {} steps, woken: {}, due: {}",
                slot.name,
                slot.node,
                slot.steps,
                state.woken.contains(id),
                due.unwrap_or_else(|| "never".to_owned())
            )
        };
        state.tasks.iter().map(describe).collect()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_deaf(&self, task: u64) -> bool {
        self.lock().tasks.get_mut(&task).is_some_and(|slot| {
            slot.wakes += 1;
            slot.name.starts_with(DEAF_TASKS) && slot.wakes > DEAF_AFTER
        })
    }

    fn wake(&self, task: u64) {
        self.lock().woken.insert(task);
        self.work.notify_one();
    }

    fn turn(self: &Arc<Self>) -> Turn {
        let now = Instant::now();
        let mut state = self.lock();
        let State {
            tasks,
            woken,
            paused,
            starved,
            ..
        } = &mut *state;
        let mut next: Option<Instant> = None;
        let mut ready = Vec::new();
        woken.retain(|id| tasks.contains_key(id));
        for (id, slot) in tasks.iter() {
            if paused.contains(&slot.node) {
                continue;
            }
            let due = match (woken.contains(id), slot.until) {
                (true, _) => slot.paused_until.unwrap_or(now),
                (false, Some(until)) => slot.paused_until.map_or(until, |p| p.max(until)),
                (false, None) => continue,
            };
            let due = match starved.get(&slot.node) {
                Some(starved) => starved.next(due.max(now)),
                None => due,
            };
            if due <= now {
                ready.push(*id);
            } else {
                next = Some(next.map_or(due, |n| n.min(due)));
            }
        }
        if ready.is_empty() {
            return Turn::Wait(next);
        }
        let id = ready[(self.dice.u64() % ready.len() as u64) as usize];
        woken.remove(&id);
        let Some(slot) = tasks.get_mut(&id) else {
            return Turn::Stepped;
        };
        slot.until = None;
        slot.paused_until = None;
        slot.steps += 1;
        let is_built = std::mem::replace(&mut slot.is_built, true);
        self.trace.fold(slot.name.as_bytes());
        let Some(task) = slot.task.take() else {
            return Turn::Stepped;
        };
        drop(state);
        self.step(id, task, is_built, now);
        Turn::Stepped
    }

    fn step(self: &Arc<Self>, id: u64, mut task: DrivenTask, is_built: bool, now: Instant) {
        let result: Result<Option<StepResult>, FailureKind> = if is_built {
            task.try_step(now).map(Some)
        } else {
            task.try_init(Arc::new(Waker {
                task: id,
                stepper: Arc::downgrade(self),
            }))
        };
        let (last, panic) = match result {
            Ok(Some(step)) if step.is_end() => (Some(step), None),
            Err(panic) => (None, Some(panic)),
            Ok(step) => {
                self.put_back(id, task, step.as_ref(), now);
                return;
            }
        };
        task.end(last, panic);
        let slot = self.lock().tasks.remove(&id);
        if let Some(slot) = slot {
            self.trace.line(format_args!(
                "{} ended on {} after {} steps",
                slot.name, slot.node, slot.steps
            ));
        }
    }

    fn put_back(&self, id: u64, task: DrivenTask, step: Option<&StepResult>, now: Instant) {
        let pause = self
            .dice
            .u64()
            .is_multiple_of(PAUSE_ONE_IN)
            .then(|| now + Duration::from_millis(1 + self.dice.u64() % PAUSE_MS_MAX));
        let mut state = self.lock();
        match step.and_then(StepResult::wait) {
            // Built, or made progress.
            None => {
                state.woken.insert(id);
            }
            Some(until) => {
                if let Some(slot) = state.tasks.get_mut(&id) {
                    slot.until = until;
                }
            }
        }
        if let Some(slot) = state.tasks.get_mut(&id) {
            slot.task = Some(task);
            slot.paused_until = pause;
        }
    }
}

/// See [`Stepper::driver`].
pub(super) struct NodeDriver {
    inner: Arc<Inner>,
    node: String,
}

impl TaskDriver for NodeDriver {
    fn run(&self, name: String, task: DrivenTask) -> BoxFuture<'static, ()> {
        let (ended, wait) = oneshot::channel();
        let mut state = self.inner.lock();
        if state.dead.contains(&self.node) {
            drop(state);
            return Box::pin(std::future::ready(()));
        }
        state.last += 1;
        let id = state.last;
        state.tasks.insert(
            id,
            Slot {
                node: self.node.clone(),
                name,
                task: Some(task),
                is_built: false,
                until: None,
                paused_until: None,
                steps: 0,
                wakes: 0,
                _ended: ended,
            },
        );
        drop(state);
        self.inner.wake(id);
        Box::pin(async move {
            // Resolves when the sender is dropped, after the task's last call.
            let _ = wait.await;
        })
    }

    fn work(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            work();
        })
    }
}
