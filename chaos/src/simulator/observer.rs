//! The clients of a simulated run: one submits the job, follows it over every change of the JobManager and writes down what it sees;
//! others do at bad moments what people do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial::api::{JobRegistry, Submission};
use perennial::cluster::build_id;
use perennial::connector::CommittedCollect;
use perennial_actors::client::Client;
use perennial_actors::clock::Instant;
use perennial_actors::entropy::Entropy;
use perennial_actors::model::message::{ClientRequest, ClientResponse, RpcError};
use perennial_actors::model::{
    CheckpointState, JobGraph, JobId, JobState, JobStatus, RecoveryRecord, ResourceId,
    SnapshotKind, StartFrom, TaskManagerStatus,
};
use perennial_actors::rpc::MemoryTransport;
use perennial_config::{JobSettings, Secret};
use tokio::task::JoinHandle;

use super::cluster::Cluster;
use super::trace::Trace;
use crate::plan::{Fault, Target};
use crate::workload::{self, Output};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(25);
/// For a connection, and for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// For a savepoint or a stop.
const LONG_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes graphs of the job.
pub(super) struct Jobs {
    pub(super) registry: JobRegistry,
    pub(super) settings: JobSettings,
    pub(super) dice: Entropy,
}

impl Jobs {
    pub(super) fn graph(
        &self,
        (buckets, windows): (u32, u32),
        savepoint: Option<String>,
    ) -> Result<JobGraph, String> {
        let submission = Submission {
            job: JobId(self.dice.u128()),
            build: build_id(),
            start_from: savepoint.map(|path| StartFrom {
                path,
                allow_non_restored_state: false,
            }),
        };
        let arguments = workload::arguments(buckets, windows);
        let settings = |_: &[(String, String)]| Ok(self.settings.clone());
        self.registry
            .graph(workload::NAME, &arguments, settings, submission)
            .map_err(|e| e.to_string())
    }
}

/// What a client does besides following.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Waits for a savepoint.
    Savepoint,
    /// Asks for one, and goes.
    AbandonedSavepoint,
    /// Asks for two at once.
    TwoSavepoints,
    /// Ends the job.
    Cancel,
    /// Stops the job with a savepoint; it goes on with another parallelism.
    Rescale(u32),
}

/// The recoveries that one JobMaster has decided about.
#[derive(Debug, Clone)]
pub(super) struct History {
    pub(super) job: JobId,
    epoch: u64,
    pub(super) records: Vec<RecoveryRecord>,
    /// When each was first seen.
    pub(super) seen: Vec<Instant>,
}

/// See the module.
pub(super) struct Observer {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
    transport: MemoryTransport,
    leader: Arc<Mutex<String>>,
    secret: Secret,
    dice: Entropy,
    trace: Trace,
}

#[derive(Default)]
struct Seen {
    job: Option<JobId>,
    is_accepted: bool,
    status: Option<JobStatus>,
    end: Option<JobStatus>,
    histories: Vec<History>,
    /// Where the job is to go on.
    rescale: Option<u32>,
    /// The job has stopped to go on elsewhere, and nobody can say where its savepoint is.
    is_lost: bool,
    is_cancelled: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observer {
    /// Submits and follows.
    pub(super) fn start(
        cluster: &Cluster,
        jobs: Jobs,
        graph: JobGraph,
        sink: CommittedCollect<Output>,
        dice: Entropy,
    ) -> Self {
        let seen = Arc::new(Mutex::new(Seen {
            job: Some(graph.job),
            ..Seen::default()
        }));
        let (transport, leader) = cluster.client();
        let secret = cluster.settings.cluster.cluster_secret.clone();
        let trace = cluster.trace.clone();
        let follow = Follow {
            trace: trace.clone(),
            secret: secret.clone(),
            seen: seen.clone(),
            transport: transport.clone(),
            leader: leader.clone(),
            jobs,
            graph,
            sink,
            dice: dice.clone(),
            last: String::new(),
        };
        Self {
            seen,
            task: tokio::spawn(follow.run()),
            transport,
            leader,
            secret,
            dice,
            trace,
        }
    }

    pub(super) fn is_accepted(&self) -> bool {
        lock(&self.seen).is_accepted
    }

    /// The last status of the job once it has ended.
    pub(super) fn end(&self) -> Option<JobStatus> {
        lock(&self.seen).end.clone()
    }

    pub(super) fn status(&self) -> Option<JobStatus> {
        lock(&self.seen).status.clone()
    }

    /// Asks something of the last status.
    pub(super) fn ask<T>(&self, question: impl FnOnce(&JobStatus) -> T) -> Option<T> {
        lock(&self.seen).status.as_ref().map(question)
    }

    pub(super) fn histories(&self) -> Vec<History> {
        lock(&self.seen).histories.clone()
    }

    /// The job stopped with a savepoint, and a leader that only knows that it has ended answered for it: it does not go on.
    pub(super) fn is_lost(&self) -> bool {
        lock(&self.seen).is_lost
    }

    pub(super) fn is_cancelled(&self) -> bool {
        lock(&self.seen).is_cancelled
    }

    pub(super) fn stop(self) {
        self.task.abort();
    }

    /// Lets a client of its own do something.
    pub(super) fn act(&self, act: Act) {
        let Some(job) = lock(&self.seen).job else {
            return;
        };
        let savepoint = ClientRequest::Savepoint {
            job,
            directory: None,
        };
        match act {
            Act::Savepoint => self.request(savepoint, LONG_TIMEOUT),
            Act::AbandonedSavepoint => self.request(savepoint, Duration::from_millis(5)),
            Act::TwoSavepoints => {
                self.request(savepoint.clone(), LONG_TIMEOUT);
                self.request(savepoint, LONG_TIMEOUT);
            }
            Act::Cancel => {
                lock(&self.seen).is_cancelled = true;
                self.request(ClientRequest::Cancel(job), LONG_TIMEOUT);
            }
            Act::Rescale(parallelism) => {
                lock(&self.seen).rescale = Some(parallelism);
                let stop = ClientRequest::Stop {
                    job,
                    directory: None,
                    drain: false,
                };
                self.request(stop, LONG_TIMEOUT);
            }
        }
    }

    /// Orders a fault by control message, as a client does.
    pub(super) fn inject(&self, fault: &Fault, target: Target, task_managers: &[ResourceId]) {
        let job = lock(&self.seen).job;
        if let Some(order) = job.and_then(|job| fault.injection(target, job, task_managers)) {
            self.request(ClientRequest::InjectFault(Box::new(order)), TIMEOUT);
        }
    }

    fn request(&self, request: ClientRequest, timeout: Duration) {
        let trace = self.trace.clone();
        let (transport, leader) = (self.transport.clone(), self.leader.clone());
        let (secret, dice) = (self.secret.clone(), self.dice.clone());
        tokio::spawn(async move {
            let address = lock(&leader).clone();
            let asked = async {
                let connecting =
                    Client::connect_with(&transport, &address, &secret, TIMEOUT, &dice);
                let mut client = connecting.await?;
                client.request(request, Some(timeout)).await
            };
            match asked.await {
                Ok(answer) => trace.line(format_args!("client: answered: {answer:?}")),
                Err(error) => trace.line(format_args!("client: refused: {error}")),
            }
        });
    }

    /// All TaskManagers, as the leader knows them.
    pub(super) async fn task_managers(&self) -> Result<Vec<TaskManagerStatus>, RpcError> {
        let address = lock(&self.leader).clone();
        let connecting =
            Client::connect_with(&self.transport, &address, &self.secret, TIMEOUT, &self.dice);
        let mut client = connecting.await?;
        match client
            .request(ClientRequest::ListTaskManagers, Some(TIMEOUT))
            .await?
        {
            ClientResponse::TaskManagers(all) => Ok(all),
            other => Err(RpcError::Refused(format!("{other:?} is no list"))),
        }
    }
}

struct Follow {
    trace: Trace,
    seen: Arc<Mutex<Seen>>,
    transport: MemoryTransport,
    leader: Arc<Mutex<String>>,
    secret: Secret,
    jobs: Jobs,
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
        let epoch = client.welcome().epoch.map_or(0, |e| e.0);
        loop {
            if !lock(&self.seen).is_accepted {
                let request = ClientRequest::Submit(Box::new(self.graph.clone()));
                client.request(request, Some(TIMEOUT)).await?;
                self.trace.line("client: the job is accepted");
                lock(&self.seen).is_accepted = true;
            }
            let response = client
                .request(ClientRequest::Status(self.graph.job), Some(TIMEOUT))
                .await?;
            if let ClientResponse::Status(status) = response {
                let is_end = status.summary.state.is_terminal();
                self.take(&status, epoch);
                if is_end && !self.goes_on(&status) {
                    lock(&self.seen).end = Some(*status);
                    return Ok(());
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Whether the job was stopped to go on elsewhere; then it is the new one that is followed.
    fn goes_on(&mut self, status: &JobStatus) -> bool {
        let Some(parallelism) = lock(&self.seen).rescale.take() else {
            return false;
        };
        // A job that a new leader took up again after its savepoint has run on, and has not stopped there.
        let mut completed = status.checkpoints.iter().rev();
        let last = completed.find(|c| c.state == CheckpointState::Completed);
        lock(&self.seen).is_lost = last.is_none() && status.summary.state == JobState::Finished;
        let stopped = last.filter(|c| c.kind == SnapshotKind::StopWithSavepoint);
        let savepoint = stopped.and_then(|c| c.path.clone());
        if status.summary.state != JobState::Finished || savepoint.is_none() {
            return false;
        }
        self.trace.line(format_args!(
            "client: goes on from {savepoint:?} with parallelism {parallelism}"
        ));
        match self
            .jobs
            .graph((parallelism, parallelism.div_ceil(2)), savepoint)
        {
            Ok(graph) => {
                let mut seen = lock(&self.seen);
                seen.job = Some(graph.job);
                seen.is_accepted = false;
                self.graph = graph;
                true
            }
            Err(error) => {
                self.trace.line(format_args!("client: {error}"));
                false
            }
        }
    }

    fn take(&mut self, status: &JobStatus, epoch: u64) {
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
        let job = status.summary.job;
        let mut seen = lock(&self.seen);
        let is_known = seen.histories.last().is_some_and(|h| {
            h.job == job && h.epoch == epoch && h.records.len() <= status.recoveries.len()
        });
        if !is_known {
            seen.histories.push(History {
                job,
                epoch,
                records: Vec::new(),
                seen: Vec::new(),
            });
        }
        if let Some(history) = seen.histories.last_mut() {
            for recovery in status.recoveries.iter().skip(history.records.len()) {
                history.seen.push(Instant::now());
                let cause = &recovery.cause.kind;
                self.trace.line(format_args!(
                    "recovery {}: {cause}; {}",
                    recovery.number, recovery.decision
                ));
            }
            history.records.clone_from(&status.recoveries);
        }
        seen.status = Some(status.clone());
    }
}
