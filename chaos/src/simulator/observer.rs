//! The client of a simulated run: submits the job, follows it over every change of the JobManager, and writes down what it sees.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial::connector::CommittedCollect;
use perennial_actors::client::Client;
use perennial_actors::entropy::Entropy;
use perennial_actors::model::message::{ClientRequest, ClientResponse, RpcError};
use perennial_actors::model::{JobGraph, JobStatus, TaskManagerStatus};
use perennial_actors::rpc::MemoryTransport;
use perennial_config::Secret;
use tokio::task::JoinHandle;

use super::cluster::Cluster;
use super::trace::Trace;
use super::workload::Output;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(25);
/// For a connection, and for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Observer {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    is_accepted: bool,
    status: Option<JobStatus>,
    task_managers: Option<Vec<TaskManagerStatus>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observer {
    /// Submits and follows.
    pub(super) fn start(
        cluster: &Cluster,
        graph: JobGraph,
        sink: CommittedCollect<Output>,
        dice: Entropy,
    ) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (transport, leader) = cluster.client();
        let follow = Follow {
            trace: cluster.trace.clone(),
            secret: cluster.settings.cluster.cluster_secret.clone(),
            seen: seen.clone(),
            transport,
            leader,
            graph,
            sink,
            dice,
            last: String::new(),
        };
        Self {
            seen,
            task: tokio::spawn(follow.run()),
        }
    }

    pub(super) fn is_accepted(&self) -> bool {
        lock(&self.seen).is_accepted
    }

    /// The status of the job once it has ended.
    pub(super) fn end(&self) -> Option<JobStatus> {
        self.status()
            .filter(|status| status.summary.state.is_terminal())
    }

    pub(super) fn status(&self) -> Option<JobStatus> {
        lock(&self.seen).status.clone()
    }

    /// As the leader listed them right after the job's end.
    pub(super) fn task_managers(&self) -> Option<Vec<TaskManagerStatus>> {
        lock(&self.seen).task_managers.clone()
    }

    pub(super) fn stop(self) {
        self.task.abort();
    }
}

struct Follow {
    trace: Trace,
    seen: Arc<Mutex<Seen>>,
    transport: MemoryTransport,
    leader: Arc<Mutex<String>>,
    secret: Secret,
    graph: JobGraph,
    sink: CommittedCollect<Output>,
    dice: Entropy,
    last: String,
}

impl Follow {
    async fn run(mut self) {
        loop {
            if let Err(error) = self.follow().await {
                let line = format!("client: {error}");
                if line != self.last {
                    self.trace.line(&line);
                    self.last = line;
                }
            } else {
                return;
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Over one connection; `Ok` when the job has ended.
    async fn follow(&mut self) -> Result<(), RpcError> {
        let address = lock(&self.leader).clone();
        let mut client =
            Client::connect_with(&self.transport, &address, &self.secret, TIMEOUT, &self.dice)
                .await?;
        if !lock(&self.seen).is_accepted {
            let request = ClientRequest::Submit(Box::new(self.graph.clone()));
            client.request(request, Some(TIMEOUT)).await?;
            self.trace.line("client: the job is accepted");
            lock(&self.seen).is_accepted = true;
        }
        loop {
            let response = client
                .request(ClientRequest::Status(self.graph.job), Some(TIMEOUT))
                .await?;
            if let ClientResponse::Status(status) = response {
                if status.summary.state.is_terminal() {
                    let list = ClientRequest::ListTaskManagers;
                    if let ClientResponse::TaskManagers(list) =
                        client.request(list, Some(TIMEOUT)).await?
                    {
                        lock(&self.seen).task_managers = Some(list);
                    }
                }
                if self.take(*status) {
                    return Ok(());
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    fn take(&mut self, status: JobStatus) -> bool {
        let line = format!(
            "job {}, {} running, {} restarts, last checkpoint {:?}, {} committed",
            status.summary.state,
            status.summary.tasks_running,
            status.summary.restarts,
            status.summary.last_checkpoint.map(|c| c.0),
            self.sink.len(),
        );
        if line != self.last {
            self.trace.line(&line);
            self.last = line;
        }
        let before = lock(&self.seen)
            .status
            .as_ref()
            .map_or(0, |s| s.recoveries.len());
        for recovery in status.recoveries.iter().skip(before) {
            let cause = &recovery.cause.kind;
            self.trace.line(format_args!(
                "recovery {}: {cause}; {}",
                recovery.number, recovery.decision
            ));
        }
        let is_end = status.summary.state.is_terminal();
        lock(&self.seen).status = Some(status);
        is_end
    }
}
