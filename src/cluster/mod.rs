//! Puts nodes together from their parts: stores, listeners, runtimes, actors. Decides nothing.

mod build_id;
mod job_manager;
mod leader;
mod local;
mod ports;
mod task_manager;

use std::sync::Arc;

use perennial_actors::checkpoint::StoreError;
use perennial_actors::model::message::RpcError;

pub use build_id::build_id;
pub use job_manager::{JobManagerExit, JobManagerNode};
use leader::StoredLeader;
pub use leader::leader_address;
pub use local::LocalCluster;
use ports::Ports;
pub use task_manager::{StuckTasks, TaskManagerNode, TaskManagerSurroundings};

/// A node could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {source}")]
    Listen {
        /// As configured.
        address: String,
        /// The keys that set it.
        key: &'static str,
        /// The socket's error.
        source: std::io::Error,
    },
    /// A store is not usable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another JobManager leads.
    #[error("{0}")]
    NotLeader(String),
    /// Ours is the bug, or the machine is out of threads.
    #[error("cannot start: {0}")]
    Internal(String),
    /// The cluster did not come up.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

/// A thread pool for one kind of work.
fn runtime(name: &str, threads: usize) -> Result<Arc<Runtime>, NodeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|e| NodeError::Internal(format!("thread pool {name}: {e}")))?;
    Ok(Arc::new(Runtime(Some(runtime))))
}

/// A runtime that may be dropped from within another: its threads end in the background.
struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    fn handle(&self) -> tokio::runtime::Handle {
        self.0
            .as_ref()
            .expect("taken in drop only")
            .handle()
            .clone()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
