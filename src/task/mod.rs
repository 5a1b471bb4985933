//! Tasks: the loop, its thread, its snapshots, and the [`TaskRunner`](perennial_actors::TaskRunner) that starts them.

mod alignment;
mod cell;
mod control;
mod driver;
mod input;
mod keeper;
mod panic;
mod restore;
mod runner;
mod snapshot;
mod stream_task;
#[cfg(test)]
mod tests;
mod valve;
mod waker;

/// What parks and wakes threads; the model checker has its own.
mod threads {
    pub(super) use std::sync::atomic::{AtomicU8, Ordering};
    pub(super) use std::thread::{Thread, park, park_timeout};
}

pub(crate) use alignment::Blocking;
pub use driver::{DrivenTask, StepResult, TaskDriver, ThreadDriver};
pub(crate) use input::InputHead;
pub use runner::{LocalTaskRunner, RunnerOptions};
