//! Faults that are a client's doing: a savepoint at a bad moment, another parallelism.

use std::time::Duration;

use anyhow::{Context, anyhow};
use perennial_actors::client::Client;
use perennial_actors::model::message::{ClientRequest, ClientResponse};
use perennial_actors::rpc::TcpTransport;
use perennial_config::Secret;

use super::super::cluster::CLUSTER_SECRET;
use super::strike::Hit;
use super::{Run, follow};
use crate::checker::SnapshotReader;
use crate::plan::Invariant;

/// An answer, good or bad, must have come by then.
const SAVEPOINT_DEADLINE: Duration = Duration::from_secs(40);

impl Run<'_> {
    /// Asks in the background; the answer is looked at in the end.
    pub(super) fn ask_for_a_savepoint(&mut self) -> anyhow::Result<Hit> {
        let leader = self.watcher.view().leader.context("no leader is known")?;
        let address = self.cluster.addresses.get(&leader).cloned();
        let address = address.ok_or_else(|| anyhow!("no address of {leader}"))?;
        let request = ClientRequest::Savepoint {
            job: self.job.parse()?,
            directory: Some(self.cluster.storage().uri("savepoints")),
        };
        self.cluster.say(&format!("savepoint asked of {leader}"));
        let thread = std::thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || ask(&address, request))?;
        self.clients.push(thread);
        Ok(Hit {
            victim: format!("a client of {leader}"),
            ..Hit::default()
        })
    }

    /// Every client got an answer; a savepoint that was promised is there and equals the fold.
    pub(super) fn check_clients(&mut self) -> Vec<String> {
        let mut broken = Vec::new();
        let stores = self.cluster.storage().open();
        for client in std::mem::take(&mut self.clients) {
            let answer = client
                .join()
                .unwrap_or_else(|_| Err("the client panicked".to_owned()));
            match answer {
                Ok(None) => {}
                Ok(Some(path)) => {
                    let checked = SnapshotReader::open(&stores, &path).and_then(|snapshot| {
                        match self.scenario.state() {
                            Some(oracle) => snapshot.check(oracle.as_ref()).map(drop),
                            None => Ok(()),
                        }
                    });
                    if let Err(error) = checked {
                        broken.push(format!("savepoint {path}: {error:#}"));
                    }
                }
                Err(error) => broken.push(error),
            }
        }
        broken
    }

    /// Stops the job with a savepoint and submits it from there. The loop stands still meanwhile.
    pub(super) fn rescale(&mut self, parallelism: u32) -> anyhow::Result<Hit> {
        let directory = self.cluster.storage().uri("savepoints");
        self.cluster
            .say(&format!("rescale to {parallelism}: stop with savepoint"));
        let leader = self.watcher.view().leader;
        if let Some(leader) = leader {
            self.cluster.talk_to(&leader)?;
        }
        let stopped: serde_json::Value =
            self.cluster
                .ask(&["stop", &self.job, "--savepoint", &directory])?;
        let path = ["path", "savepoint"]
            .iter()
            .find_map(|key| stopped[*key].as_str())
            .ok_or_else(|| anyhow!("no savepoint in {stopped}"))?
            .to_owned();
        if let Some(oracle) = self.scenario.state() {
            let stores = self.cluster.storage().open();
            let checked = SnapshotReader::open(&stores, &path)
                .and_then(|snapshot| snapshot.check(oracle.as_ref()));
            match checked {
                Ok(_) => self.judge.count(Invariant::S2),
                Err(error) => {
                    let detail = format!("savepoint {path}: {error:#}");
                    self.judge.fail(Invariant::S2, detail);
                }
            }
        }
        let mut arguments = self.scenario.arguments(&self.output);
        arguments.extend(["-p".to_owned(), parallelism.to_string()]);
        arguments.extend(["--from-savepoint".to_owned(), path]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let job = self.cluster.submit(&[], &arguments)?;
        let recorder = follow(&self.cluster, &job, &self.scenario)?;
        if let Some(before) = self.recorder.replace(recorder) {
            self.earlier.push(before.finish());
        }
        self.watcher.follow(job.parse()?);
        let victim = format!("{} goes on as {job}", self.job);
        self.job = job;
        Ok(Hit {
            victim,
            ..Hit::default()
        })
    }
}

/// The savepoint's path; `None`: refused, or the leader was lost. An error: no answer.
fn ask(address: &str, request: ClientRequest) -> Result<Option<String>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let secret = Secret(CLUSTER_SECRET.to_owned());
        let asked = async {
            let mut client =
                Client::connect(&TcpTransport, address, &secret, Duration::from_secs(3)).await?;
            client.request(request, Some(SAVEPOINT_DEADLINE)).await
        };
        let limit = SAVEPOINT_DEADLINE + Duration::from_secs(5);
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(ClientResponse::Savepoint { path })) => Ok(Some(path)),
            Ok(Ok(_) | Err(_)) => Ok(None),
            Err(_) => Err(format!("a savepoint was not answered within {limit:?}")),
        }
    })
}
