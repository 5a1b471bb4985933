//! How commands reach the JobManager, and how one that watches a job keeps reaching it while JobManagers come and go.
//!
//! Invariant: a command that only asks fails at once and says what is in the way. One that follows a job gives up only after
//! [`FOLLOW_TIMEOUT`] (a submission: [`SUBMIT_TIMEOUT`]) without an answer, and says what it waits for.

use std::time::Duration;

use perennial_actors::client::Client;
use perennial_actors::clock::Instant;
use perennial_actors::model::message::{ClientRequest, ClientResponse, RpcError};
use perennial_actors::model::{JobId, JobStatus, JobSummary};
use perennial_actors::rpc::TcpTransport;
use perennial_config::Settings;

use super::args::Cli;
use super::{CliError, output};
use crate::cluster::leader_address;

/// How long a job is followed without an answer about it: as long as a TaskManager looks for its JobManager by default
/// (`taskmanager.registration.timeout`).
pub(super) const FOLLOW_TIMEOUT: Duration = Duration::from_secs(300);

/// The same for the submission itself, whose answer may have been lost: somebody waits for it.
pub(super) const SUBMIT_TIMEOUT: Duration = Duration::from_secs(60);

/// How often it is asked again, with or without an answer.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A connection to the JobManager that the settings name.
pub(super) struct Connection {
    client: Client,
}

impl Connection {
    pub(super) async fn open(cli: &Cli, settings: &Settings) -> Result<Self, CliError> {
        let cluster = &settings.cluster;
        let address = match &cli.jobmanager {
            Some(address) => address.clone(),
            None => leader_address(cluster, output::note).await,
        };
        let client = Client::connect(
            &TcpTransport,
            &address,
            &cluster.cluster_secret,
            cluster.ask_timeout,
        )
        .await
        .map_err(|source| match source {
            RpcError::Handshake { .. } => CliError::NotAdmitted { address, source },
            RpcError::Refused(_) => CliError::TurnedAway { address, source },
            RpcError::Closed { .. }
            | RpcError::Timeout { .. }
            | RpcError::Fenced { .. }
            | RpcError::JobNotFound(_) => CliError::Unreachable { address, source },
        })?;
        Ok(Self { client })
    }

    pub(super) async fn ask(&mut self, request: ClientRequest) -> Result<ClientResponse, CliError> {
        self.client
            .request(request, None)
            .await
            .map_err(CliError::Rpc)
    }

    pub(super) async fn jobs(&mut self) -> Result<Vec<JobSummary>, CliError> {
        match self.ask(ClientRequest::ListJobs).await? {
            ClientResponse::Jobs(jobs) => Ok(jobs),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn status(&mut self, job: JobId) -> Result<JobStatus, CliError> {
        match self.ask(ClientRequest::Status(job)).await? {
            ClientResponse::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// A whole id, or the first digits or the name of one of the cluster's; of several the only one that has not ended.
    pub(super) async fn job(&mut self, text: &str) -> Result<JobId, CliError> {
        if let Ok(job) = text.parse() {
            return Ok(job);
        }
        if text.is_empty() {
            return Err(CliError::Usage(
                "the job has no name here: give its id, the first digits of it, or its name".into(),
            ));
        }
        let jobs = self.jobs().await?;
        let mut matching: Vec<_> = jobs
            .iter()
            .filter(|j| j.job.to_string().starts_with(text) || j.name == text)
            .collect();
        if matching.iter().filter(|j| !j.state.is_terminal()).count() == 1 {
            matching.retain(|j| !j.state.is_terminal());
        }
        let mut matching = matching.into_iter();
        match (matching.next(), matching.next()) {
            (Some(job), None) => Ok(job.job),
            (None, _) => Err(CliError::Usage(format!(
                "no job is named `{text}` or has an id that begins with it: `perennial list` shows the jobs"
            ))),
            (Some(_), Some(_)) => Err(CliError::Usage(format!(
                "several jobs match `{text}`: give the id, or more digits of it (`perennial list`)"
            ))),
        }
    }
}

pub(super) fn unexpected(response: &ClientResponse) -> CliError {
    CliError::Rpc(RpcError::Refused(format!(
        "the JobManager answered something else: {response:?}"
    )))
}

/// A connection of a command that follows a job: made anew when it broke.
pub(super) struct Follower<'a> {
    cli: &'a Cli,
    settings: &'a Settings,
    connection: Option<Connection>,
}

impl<'a> Follower<'a> {
    /// Connects; a cluster that cannot be reached now is an error.
    pub(super) async fn open(cli: &'a Cli, settings: &'a Settings) -> Result<Self, CliError> {
        Ok(Self {
            cli,
            settings,
            connection: Some(Connection::open(cli, settings).await?),
        })
    }

    /// Asks until somebody answers, for at most `limit`. Only for requests that may be repeated; a refusal counts as an answer where `is_final` says so.
    pub(super) async fn ask(
        &mut self,
        request: &ClientRequest,
        limit: Duration,
        is_final: impl Fn(&RpcError) -> bool,
        mut say: impl FnMut(&str),
    ) -> Result<ClientResponse, CliError> {
        let ask = async || {
            // Put back only after an answer: after anything else, another connection may lead further.
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => Connection::open(self.cli, self.settings).await?,
            };
            match connection.ask(request.clone()).await {
                Err(CliError::Rpc(error)) if is_final(&error) => Ok(Err(error)),
                Err(error) => Err(error),
                Ok(response) => {
                    self.connection = Some(connection);
                    Ok(Ok(response))
                }
            }
        };
        follow(limit, ask, &mut say).await?.map_err(CliError::Rpc)
    }
}

/// Asks until there is an answer, an error that no change of JobManagers explains, or nothing for `limit`.
async fn follow<T>(
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, CliError>,
    say: &mut impl FnMut(&str),
) -> Result<T, CliError> {
    let deadline = Instant::now() + limit;
    let mut said = String::new();
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let Some(why) = waits_for(&error) else {
            return Err(error);
        };
        if Instant::now() >= deadline {
            return Err(CliError::LostSight {
                after: limit,
                source: Box::new(error),
            });
        }
        if why != said {
            say(&why);
            said = why;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// What the next answer waits for; `None` when waiting cannot help.
///
/// While one JobManager ends and another begins, any of these can come: a closed or silent connection; a JobManager that does not lead
/// yet; a handshake cut short by the end, which looks like another secret's; a job that is not known yet.
fn waits_for(error: &CliError) -> Option<String> {
    let why = match error {
        CliError::Unreachable { source, .. }
        | CliError::NotAdmitted { source, .. }
        | CliError::TurnedAway { source, .. } => source,
        CliError::Rpc(error) => error,
        CliError::Config(_)
        | CliError::Job(_)
        | CliError::LostSight { .. }
        | CliError::NoJobManager(_)
        | CliError::JobFailed(_)
        | CliError::Node(_)
        | CliError::NotLeader(_)
        | CliError::StuckTask(_)
        | CliError::EndedAtOnce
        | CliError::Usage(_) => return None,
    };
    Some(format!("waiting for a JobManager that runs the job: {why}"))
}

/// Runs one command in a small runtime.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| CliError::Node(format!("cannot start the runtime: {e}")))?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use perennial_actors::fault::FaultPoints;
    use std::collections::VecDeque;

    use super::*;

    fn closed() -> RpcError {
        RpcError::Closed {
            peer: "jm:1".to_owned(),
            message: "reset".to_owned(),
        }
    }

    fn open_error(
        make: impl FnOnce(String, RpcError) -> CliError,
        source: RpcError,
    ) -> Result<u32, CliError> {
        Err(make("jm:1".to_owned(), source))
    }

    /// Everything that a client meets while one JobManager dies and the next takes over, in the order of a bad day.
    #[tokio::test(start_paused = true)]
    async fn a_job_is_followed_through_everything_that_a_failover_shows() {
        let handshake = || RpcError::Handshake {
            peer: "jm:1".to_owned(),
            message: "authentication failed".to_owned(),
        };
        let unreachable = |address, source| CliError::Unreachable { address, source };
        let turned_away = |address, source| CliError::TurnedAway { address, source };
        let not_admitted = |address, source| CliError::NotAdmitted { address, source };
        let mut answers = VecDeque::from([
            Err(CliError::Rpc(closed())),
            open_error(unreachable, closed()),
            open_error(unreachable, closed()),
            open_error(not_admitted, handshake()),
            open_error(turned_away, RpcError::Refused("not the leader".to_owned())),
            Err(CliError::Rpc(RpcError::JobNotFound(JobId(1)))),
            Err(CliError::Rpc(RpcError::Refused("it is ending".to_owned()))),
            Err(CliError::Rpc(RpcError::Timeout {
                peer: "jm:1".to_owned(),
                millis: 1,
            })),
            Ok(7),
        ]);
        let mut said = Vec::new();
        let answer = follow(
            FOLLOW_TIMEOUT,
            async || answers.pop_front().unwrap(),
            &mut |text: &str| said.push(text.to_owned()),
        )
        .await;
        assert_eq!(answer.unwrap(), 7);
        assert_eq!(said.len(), 6, "each reason once in a row: {said:#?}");
        assert!(said[2].contains("not the leader"), "{said:#?}");
    }

    /// What a client of another cluster is told, beside one that finds nobody.
    #[tokio::test]
    async fn a_wrong_secret_is_called_one() {
        use clap::Parser;
        let directory = tempfile::tempdir().unwrap();
        let checkpoints = format!("file://{}", directory.path().display());
        let settings = |secret: &str| {
            Settings::with(&[
                ("execution.checkpointing.dir", checkpoints.as_str()),
                ("jobmanager.rpc.port", "0"),
                ("security.cluster-secret", secret),
            ])
            .unwrap()
        };
        let node =
            crate::cluster::JobManagerNode::start(settings("right"), FaultPoints::default()).await;
        let node = node.unwrap();
        assert!(node.leads().await);
        let cli = Cli::parse_from(["perennial", "-m", node.address(), "list"]);
        assert!(Connection::open(&cli, &settings("right")).await.is_ok());
        let refused = Connection::open(&cli, &settings("wrong")).await.err();
        let said = refused.unwrap().to_string();
        assert!(said.contains("security.cluster-secret"), "{said}");
        assert!(!said.contains("cannot reach"), "{said}");
        let address = node.address().to_owned();
        node.shutdown().await.unwrap();
        let cli = Cli::parse_from(["perennial", "-m", &address, "list"]);
        let refused = Connection::open(&cli, &settings("right")).await.err();
        let said = refused.unwrap().to_string();
        assert!(said.contains("cannot reach"), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_or_for_what_cannot_change() {
        let begin = Instant::now();
        let ended = follow(
            FOLLOW_TIMEOUT,
            async || Err::<(), _>(CliError::Rpc(closed())),
            &mut |_: &str| {},
        )
        .await;
        let waited = begin.elapsed();
        assert!(
            matches!(ended, Err(CliError::LostSight { .. })),
            "{ended:?}"
        );
        assert!(waited >= FOLLOW_TIMEOUT && waited < FOLLOW_TIMEOUT + 2 * POLL_INTERVAL);

        let mut asked = 0;
        let ended = follow(
            FOLLOW_TIMEOUT,
            async || {
                asked += 1;
                Err::<(), _>(CliError::JobFailed("failed".to_owned()))
            },
            &mut |_: &str| {},
        )
        .await;
        assert!(matches!(ended, Err(CliError::JobFailed(_))), "{ended:?}");
        assert_eq!(asked, 1);
    }
}
