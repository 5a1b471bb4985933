//! The control plane of Perennial: `actors/` decides, `src/` does (design.md section 1).
//!
//! Invariant: no record ever passes through this crate, and nothing outside it uses `ractor`.

pub mod checkpoint;
pub mod checkpoint_coordinator;
pub mod client;
pub mod clock;
pub mod entropy;
pub mod job_manager_session;
pub mod leadership;
pub mod model;
pub mod peer;
pub mod rpc;
mod subtask;
pub mod supervision;
pub mod task_manager;
mod task_runner;

pub use task_runner::{
    CheckpointReply, DataPlane, DeclinedCheckpoint, RunningTask, StartedTask, TaskControl,
    TaskEvent, TaskEvents, TaskRunner,
};
