//! `inject`: one fault into a running cluster, by control message. The cluster obeys only with `chaos.enabled: true`.

use std::time::Duration;

use anyhow::Context;
use perennial::cluster::leader_address;
use perennial_actors::client::Client;
use perennial_actors::fault::{
    ActorAddress, ActorFault, Injection, NodeFault, TaskAddress, UserFault,
};
use perennial_actors::model::message::{ClientRequest, ClientResponse, RpcError};
use perennial_actors::model::{JobId, JobSummary, ResourceId};
use perennial_actors::rpc::TcpTransport;
use perennial_config::{ConfigFile, Environment, Settings, Sources};

use super::args::{Actor, ActorArgs, Cli, InjectArgs, InjectFault, UserArgs};
use super::{CommandError, output};

/// Within which the cluster must say whom it strikes.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn inject(cli: &Cli, args: &InjectArgs) -> Result<u8, CommandError> {
    let settings = settings(args)?;
    let cluster = &settings.cluster;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let victim = runtime.block_on(async {
        let address = match &args.jobmanager {
            Some(address) => address.clone(),
            None => leader_address(cluster, output::note).await,
        };
        let connecting = Client::connect(
            &TcpTransport,
            &address,
            &cluster.cluster_secret,
            cluster.ask_timeout,
        );
        let mut client = connecting.await.map_err(|error| match error {
            RpcError::Handshake { .. } => CommandError::Configuration(format!(
                "{address} answers, but is not a JobManager for this client: {error}"
            )),
            _ => CommandError::Unreachable(format!(
                "cannot reach the JobManager at {address}: {error}; name the one that leads with --jobmanager HOST:PORT"
            )),
        })?;
        let jobs = jobs(&mut client).await?;
        let injection = injection(&args.fault, &jobs).map_err(CommandError::Usage)?;
        client.inject(injection, DEADLINE).await.map_err(refused)
    })?;
    if cli.json {
        output::json(&serde_json::json!({ "victim": victim }))?;
    } else {
        output::line(&format!("struck: {victim}"));
    }
    Ok(0)
}

fn refused(error: RpcError) -> CommandError {
    CommandError::Failed(anyhow::Error::new(error))
}

fn settings(args: &InjectArgs) -> Result<Settings, CommandError> {
    let refused = |e: &dyn std::fmt::Display| CommandError::Configuration(e.to_string());
    let file = args.config.as_ref().map(|path| ConfigFile::read(path));
    let mut sources = Sources {
        profile: None,
        file: file.transpose().map_err(|e| refused(&e))?,
        environment: Environment::from_process(),
        overrides: Vec::new(),
    };
    for definition in &args.define {
        sources.set(definition).map_err(|e| refused(&e))?;
    }
    Ok(Settings::load(&sources).map_err(|e| refused(&e))?.settings)
}

async fn jobs(client: &mut Client) -> Result<Vec<JobSummary>, CommandError> {
    match client
        .request(ClientRequest::ListJobs, Some(DEADLINE))
        .await
    {
        Ok(ClientResponse::Jobs(jobs)) => Ok(jobs),
        Ok(other) => Err(refused(RpcError::Refused(format!(
            "the JobManager answered something else: {other:?}"
        )))),
        Err(error) => Err(refused(error)),
    }
}

/// The one job that is meant: by id, first digits or name; of several the only one that has not ended; without a text the only one there is.
fn job(text: Option<&str>, jobs: &[JobSummary]) -> Result<JobId, String> {
    let is_meant = |job: &&JobSummary| {
        text.is_none_or(|text| job.name == text || job.job.to_string().starts_with(text))
    };
    let mut meant: Vec<&JobSummary> = jobs.iter().filter(is_meant).collect();
    if meant.len() > 1 {
        meant.retain(|job| !job.state.is_terminal());
    }
    match meant.as_slice() {
        [job] => Ok(job.job),
        [] => Err(match text {
            Some(text) => format!("no job is named `{text}` or has an id that begins with it"),
            None => "no job runs in this cluster".to_owned(),
        }),
        _ => Err("several jobs match: say which with --job ID".to_owned()),
    }
}

/// What is sent, from what was said.
fn injection(fault: &InjectFault, jobs: &[JobSummary]) -> Result<Injection, String> {
    let resource = |name: &Option<String>| name.clone().map(ResourceId);
    Ok(match fault {
        InjectFault::Panic(args) => Injection::Actor {
            actor: actor(args, jobs)?,
            fault: ActorFault::Panic,
        },
        InjectFault::Stall {
            actor: args,
            duration,
        } => Injection::Actor {
            actor: actor(args, jobs)?,
            fault: ActorFault::Stall(*duration),
        },
        InjectFault::NoHeartbeats {
            taskmanager,
            duration,
        } => Injection::Node {
            node: resource(taskmanager),
            fault: NodeFault::NoHeartbeats(*duration),
        },
        InjectFault::Clock {
            taskmanager,
            millis,
        } => Injection::Node {
            node: resource(taskmanager),
            fault: NodeFault::ClockOffset(*millis),
        },
        InjectFault::UserPanic(user) => user_code(user, UserFault::Panic, jobs)?,
        InjectFault::UserError {
            user,
            unrecoverable,
        } => user_code(
            user,
            UserFault::Error {
                is_unrecoverable: *unrecoverable,
            },
            jobs,
        )?,
        InjectFault::UserStuck(user) => user_code(user, UserFault::Stuck, jobs)?,
    })
}

fn actor(args: &ActorArgs, jobs: &[JobSummary]) -> Result<ActorAddress, String> {
    let of_job = || job(args.job.as_deref(), jobs);
    let of_task_manager = || {
        let name = args.taskmanager.clone().map(ResourceId);
        name.ok_or_else(|| {
            "say which with --taskmanager NAME (`perennial list --taskmanagers`)".to_owned()
        })
    };
    Ok(match args.actor {
        Actor::JobManager => ActorAddress::JobManager,
        Actor::JobMaster => ActorAddress::JobMaster(of_job()?),
        Actor::CheckpointCoordinator => ActorAddress::CheckpointCoordinator(of_job()?),
        Actor::TaskManagerPeer => ActorAddress::TaskManagerPeer(of_task_manager()?),
        Actor::TaskManager => ActorAddress::TaskManager(of_task_manager()?),
        Actor::JobManagerSession => ActorAddress::JobManagerSession(of_task_manager()?),
        Actor::Subtask => ActorAddress::Subtask(
            of_job()?,
            TaskAddress {
                operator: args.operator.clone(),
                subtask: args.subtask,
            },
        ),
    })
}

fn user_code(args: &UserArgs, fault: UserFault, jobs: &[JobSummary]) -> Result<Injection, String> {
    Ok(Injection::UserCode {
        job: job(Some(&args.job), jobs)?,
        place: TaskAddress {
            operator: args.operator.clone(),
            subtask: args.subtask,
        },
        fault,
        times: args.times,
    })
}
