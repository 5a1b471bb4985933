//! That no wake-up is lost: once on real threads, once in a model of what any processor may do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use perennial_actors::clock::Clock;

use crate::exchange::TaskWaker;
use crate::task::waker::ThreadWaker;

/// The same code over threads and atomics of the model checker.
#[allow(
    clippy::duplicate_mod,
    reason = "the same source over another `threads` is what the model is for"
)]
#[path = "../waker.rs"]
mod modelled;

mod threads {
    pub(super) use loom::sync::atomic::{AtomicU8, Ordering};
    pub(super) use loom::thread::{Thread, park};

    /// Time does not pass in the model.
    pub(super) fn park_timeout(_: std::time::Duration) {
        park();
    }
}

/// Somebody wakes for one thing, then, with something new to see, for another. The task sleeps until it has seen the new one: a
/// wake-up that is wiped out leaves it asleep for ever, which the model checker tells.
#[test]
fn no_order_is_slept_through_on_any_processor() {
    loom::model(|| {
        let now = Clock::starting_at(Duration::ZERO).now();
        let waker = Arc::new(modelled::ThreadWaker::new());
        waker.set(loom::thread::current());
        let has_order = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let other = loom::thread::spawn({
            let (waker, has_order) = (waker.clone(), has_order.clone());
            move || {
                waker.wake();
                has_order.store(true, Ordering::Release);
                waker.wake();
            }
        });
        while !has_order.load(Ordering::Acquire) {
            waker.park(None, now);
        }
        other.join().unwrap();
    });
}

/// Orders are set and looked at without a lock, as in the control queue, some of them just when the task looks again after another
/// awakening. A lost wake shows as a sleep that lasts to its limit.
#[test]
fn no_order_is_slept_through_on_this_processor() {
    const ORDERS: u64 = 20_000;
    const SLEEP_MAX: Duration = Duration::from_secs(5);
    let waker = Arc::new(ThreadWaker::new());
    let has_order = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(AtomicU64::new(0));
    let clock = Clock::system();
    let task = std::thread::spawn({
        let (waker, has_order, seen) = (waker.clone(), has_order.clone(), seen.clone());
        move || {
            waker.set(std::thread::current());
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
