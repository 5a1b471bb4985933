//! Starting a TaskManager and learning how it ended.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorRef};
use tokio::sync::watch;

use super::{Arguments, Message, TaskManagerActor, TaskManagerOptions, cast};
use crate::checkpoint::{StoreError, StoreFactory};
use crate::model::ExecutionAttemptId;
use crate::model::message::{StoreProbe, Welcome};
use crate::rpc::acceptor::{self, Reception, Tasks};

/// How long the last words to the JobManager may take.
pub(super) const SESSION_END_MAX: Duration = Duration::from_secs(1);
/// How long data connections may take to close at the end.
pub(super) const DATA_PLANE_CLOSE_MAX: Duration = Duration::from_secs(10);
/// Reads of the probe object, when the store fails to answer.
const PROBE_READS_MAX: u32 = 5;
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// Why a TaskManager ended. The command line has an exit code for each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskManagerEnd {
    /// As asked.
    #[error("shut down: {reason}")]
    Shutdown {
        /// By whom.
        reason: String,
    },
    /// Nobody to work for.
    #[error(
        "no JobManager within {seconds} s: check `jobmanager.rpc.address`, `jobmanager.rpc.port` and `security.cluster-secret`, or raise `taskmanager.registration.timeout`"
    )]
    RegistrationTimeout {
        /// `taskmanager.registration.timeout`.
        seconds: u64,
    },
    /// Checkpoints written here could not be read elsewhere.
    #[error("{message}")]
    StoreNotShared {
        /// Names the directory and what to do.
        message: String,
    },
    /// Its thread cannot be stopped from inside the process.
    #[error(
        "{attempt} did not end within {seconds} s of being cancelled (`task.cancellation.timeout`)"
    )]
    StuckTask {
        /// Which.
        attempt: ExecutionAttemptId,
        /// The timeout.
        seconds: u64,
    },
    /// Ours is the bug.
    #[error("the TaskManager broke: {message}")]
    Broken {
        /// Last words.
        message: String,
    },
}

/// Where a TaskManager is started.
pub struct TaskManager;

/// A TaskManager that runs. Dropping the handle does not end it.
pub struct TaskManagerHandle {
    actor: ActorRef<Message>,
    ended: watch::Receiver<Option<TaskManagerEnd>>,
    probe_address: String,
}

impl TaskManagerHandle {
    /// Says goodbye to the JobManager, ends and joins all tasks, closes everything, and resolves when that is done. May be called
    /// more than once; dropping the future does not stop the shutdown.
    pub async fn shutdown(&self, reason: &str) -> TaskManagerEnd {
        cast(&self.actor, Message::Shutdown(reason.to_owned()));
        self.ended().await
    }

    /// Resolves with the reason when the TaskManager has ended. After [`TaskManagerEnd::StuckTask`] a thread still runs, and the
    /// process must exit.
    pub async fn ended(&self) -> TaskManagerEnd {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_else(Self::vanished),
            Err(_closed) => Self::vanished(),
        }
    }

    /// Where probes are answered.
    #[must_use]
    pub fn probe_address(&self) -> &str {
        &self.probe_address
    }

    fn vanished() -> TaskManagerEnd {
        let message = "its runtime was shut down".to_owned();
        TaskManagerEnd::Broken { message }
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TaskManager {
    /// Starts, and registers in the background. Fails only when the probe listener's address cannot be used.
    pub async fn start(options: TaskManagerOptions) -> io::Result<TaskManagerHandle> {
        let settings = &options.settings;
        let bind = format!("{}:0", settings.task_manager_bind_host);
        let listener = options.transport.listen(&bind).await?;
        let address = listener.address();
        let port = address.rsplit(':').next().unwrap_or_default();
        let probe_address = format!("{}:{port}", settings.task_manager_host);

        let welcome = Welcome {
            instance: options.instance,
            name: options.resource.clone(),
            epoch: None,
        };
        let tasks = Tasks::new();
        let reception = Reception {
            secret: settings.cluster_secret.clone(),
            entropy: options.entropy.clone(),
            welcome: Arc::new(move || welcome.clone()),
            // Without an epoch nobody but probes is let in.
            on_accepted: Arc::new(|_| {}),
        };
        acceptor::accept(&tasks, listener, reception);

        let end = Arc::new(Mutex::new(None));
        let arguments = Arguments {
            options,
            probe_address: probe_address.clone(),
            end: Arc::clone(&end),
        };
        let (actor, join) = match Actor::spawn(None, TaskManagerActor, arguments).await {
            Ok(spawned) => spawned,
            Err(error) => {
                tasks.stop().await;
                return Err(io::Error::other(error));
            }
        };
        let (ended_sender, ended) = watch::channel(None);
        tokio::spawn(async move {
            let result = join.await;
            tasks.stop().await;
            let end = locked(&end).take();
            let end = end.unwrap_or_else(|| TaskManagerEnd::Broken {
                message: match result {
                    Ok(()) => "its actor failed".to_owned(),
                    Err(error) => error.to_string(),
                },
            });
            ended_sender.send_replace(Some(end));
        });
        Ok(TaskManagerHandle {
            actor,
            ended,
            probe_address,
        })
    }
}

/// Reads the JobManager's probe object back. A store that does not answer is no proof of anything: checkpoints will say so.
pub(super) async fn verify(stores: &dyn StoreFactory, probe: &StoreProbe) -> Result<(), String> {
    let directory = &probe.directory;
    let refused = |found: &str| {
        Err(format!(
            "checkpoint directory {directory} is not shared with the JobManager: its probe object {} {found} here; mount the same directory on all nodes, or set `execution.checkpointing.dir` to an s3:// URI",
            probe.key
        ))
    };
    for read in 1..=PROBE_READS_MAX {
        let result = match stores.open(directory) {
            Ok(store) => store.get(&probe.key, None).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(bytes) if bytes == probe.content => return Ok(()),
            Ok(_) => return refused("has another content"),
            Err(StoreError::NotFound { .. }) => return refused("does not exist"),
            Err(error @ (StoreError::Unsupported { .. } | StoreError::Invalid { .. })) => {
                return refused(&format!("cannot be read ({error})"));
            }
            Err(error @ (StoreError::Failed { .. } | StoreError::Unknown { .. })) => {
                tracing::warn!(%error, read, "cannot verify the checkpoint directory");
            }
        }
        tokio::time::sleep(PROBE_PAUSE).await;
    }
    Ok(())
}
