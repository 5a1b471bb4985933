//! The control plane of Perennial: `actors/` decides, `src/` does.
//!
//! Invariant: no record ever passes through this crate, and nothing outside it uses `ractor`.

pub mod checkpoint;
pub mod checkpoint_coordinator;
pub mod client;
pub mod clock;
pub mod entropy;
pub mod execution_graph;
pub mod failover;
pub mod fault;
pub mod job_manager;
pub mod job_manager_session;
pub mod job_master;
pub mod leadership;
pub mod model;
pub mod peer;
pub mod restart;
pub mod rpc;
pub mod slot_pool;
mod subtask;
pub mod supervision;
pub mod task_manager;
mod task_runner;
#[cfg(test)]
mod testing;

pub use task_runner::{
    CheckpointReply, DataPlane, DeclinedCheckpoint, RunningTask, StartedTask, TaskControl,
    TaskEvent, TaskEvents, TaskRunner,
};
