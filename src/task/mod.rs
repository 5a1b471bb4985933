//! Tasks: the loop, its thread, its snapshots, and the [`TaskRunner`](perennial_actors::TaskRunner) that starts them.

mod alignment;
mod control;
mod driver;
mod input;
mod panic;
mod restore;
mod runner;
mod snapshot;
mod stream_task;
mod valve;

pub(crate) use alignment::Blocking;
pub use driver::{DrivenTask, StepResult, TaskDriver, ThreadDriver};
pub(crate) use input::InputHead;
pub use runner::{LocalTaskRunner, RunnerOptions};
