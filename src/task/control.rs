//! How others reach a running task: orders in, counters out. Neither side ever waits for the other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use perennial_actors::model::TaskCounters;
use perennial_actors::{RunningTask, TaskControl};
use tokio::sync::Notify;

use crate::exchange::TaskWaker;

/// Orders that wait for a task which takes none: one whose user function does not return, while checkpoints come and expire.
pub(crate) const ORDERS_MAX: usize = 256;

/// Orders waiting for a task, at most [`ORDERS_MAX`]. Beyond, the oldest announcements and aborts of snapshots go, as those of a
/// coordinator that gave them up; what a task must hear (commit, drain, end) stays.
#[derive(Default)]
pub(crate) struct ControlQueue {
    orders: Mutex<VecDeque<TaskControl>>,
    has_orders: AtomicBool,
    is_cancelled: AtomicBool,
    cancelled: Notify,
    waker: Mutex<Option<Arc<dyn TaskWaker>>>,
}

impl ControlQueue {
    /// Adds an order and wakes the task.
    pub(crate) fn push(&self, order: TaskControl) {
        if order == TaskControl::Cancel {
            self.is_cancelled.store(true, Ordering::Release);
            self.cancelled.notify_one();
        }
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut orders, order);
        drop(orders);
        self.has_orders.store(true, Ordering::Release);
        self.wake();
    }

    /// The next order; one atomic read when there is none.
    pub(crate) fn pop(&self) -> Option<TaskControl> {
        if !self.has_orders.load(Ordering::Acquire) {
            return None;
        }
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let order = orders.pop_front();
        if orders.is_empty() {
            self.has_orders.store(false, Ordering::Release);
        }
        order
    }

    /// Whether the task was told to end.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }

    /// Resolves when the task is told to end. Cancel safe.
    pub(crate) async fn cancelled(&self) {
        while !self.is_cancelled() {
            self.cancelled.notified().await;
        }
    }

    /// From now on orders wake this.
    pub(crate) fn set_waker(&self, waker: Arc<dyn TaskWaker>) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake();
        }
    }
}

fn add(orders: &mut VecDeque<TaskControl>, order: TaskControl) {
    let is_said_once = matches!(order, TaskControl::Drain | TaskControl::Cancel);
    if is_said_once && orders.contains(&order) {
        return;
    }
    while orders.len() >= ORDERS_MAX {
        let is_void = |order: &TaskControl| {
            matches!(
                order,
                TaskControl::Trigger(_) | TaskControl::NotifyAborted(_)
            )
        };
        let is_repeated = |order: &TaskControl| matches!(order, TaskControl::NotifyComplete(_));
        // A commit is cumulative, so a later one says what the oldest does.
        let oldest = orders
            .iter()
            .position(is_void)
            .or_else(|| orders.iter().position(is_repeated))
            .unwrap_or(0);
        let dropped = orders.remove(oldest);
        tracing::warn!(?dropped, "a task takes no orders: one was dropped");
    }
    orders.push_back(order);
}

/// Counters written by the task and read by anybody.
#[derive(Default)]
pub(crate) struct SharedCounters {
    pub(crate) records_in: AtomicU64,
    pub(crate) records_out: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) busy_us: AtomicU64,
    pub(crate) idle_us: AtomicU64,
    pub(crate) back_pressured_us: AtomicU64,
    /// `i64::MIN`: none.
    pub(crate) watermark: AtomicI64,
    pub(crate) state_entries: AtomicU64,
    pub(crate) log_bytes: AtomicU64,
    pub(crate) longest_snapshot_pause_us: AtomicU64,
}

impl SharedCounters {
    pub(crate) fn read(&self) -> TaskCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let watermark = self.watermark.load(Ordering::Relaxed);
        TaskCounters {
            records_in: get(&self.records_in),
            records_out: get(&self.records_out),
            bytes_in: get(&self.bytes_in),
            bytes_out: get(&self.bytes_out),
            busy_ms: get(&self.busy_us) / 1000,
            idle_ms: get(&self.idle_us) / 1000,
            back_pressured_ms: get(&self.back_pressured_us) / 1000,
            watermark: (watermark != i64::MIN).then_some(watermark),
            state_entries: get(&self.state_entries),
            log_bytes: get(&self.log_bytes),
            longest_snapshot_pause_us: get(&self.longest_snapshot_pause_us),
        }
    }
}

/// The guardian's handle to a task.
pub(crate) struct TaskHandle {
    pub(crate) control: Arc<ControlQueue>,
    pub(crate) counters: Arc<SharedCounters>,
}

impl RunningTask for TaskHandle {
    fn control(&self, control: TaskControl) {
        self.control.push(control);
    }

    fn counters(&self) -> TaskCounters {
        self.counters.read()
    }
}

#[cfg(test)]
mod tests {
    use perennial_actors::model::{CheckpointBarrier, CheckpointId, SnapshotKind};

    use super::*;

    fn trigger(n: u64) -> TaskControl {
        TaskControl::Trigger(CheckpointBarrier {
            checkpoint: CheckpointId(n),
            base: None,
            kind: SnapshotKind::Checkpoint,
            timestamp_ms: 0,
        })
    }

    /// A task hangs in a user function while checkpoints are begun and given up for days.
    #[test]
    fn orders_of_a_task_that_takes_none_are_bounded_and_none_that_counts_is_lost() {
        let queue = ControlQueue::default();
        queue.push(TaskControl::NotifyComplete(CheckpointId(7)));
        for n in 8..10_000 {
            queue.push(trigger(n));
            queue.push(TaskControl::NotifyAborted(CheckpointId(n)));
            queue.push(TaskControl::Drain);
        }
        queue.push(trigger(10_000));
        queue.push(TaskControl::Cancel);
        queue.push(TaskControl::Cancel);
        let orders: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(orders.len(), ORDERS_MAX);
        assert_eq!(orders[0], TaskControl::NotifyComplete(CheckpointId(7)));
        assert_eq!(orders[1], TaskControl::Drain);
        let end = [trigger(10_000), TaskControl::Cancel];
        assert_eq!(orders[ORDERS_MAX - 2..], end);
    }
}
