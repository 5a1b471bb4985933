//! `perennial run`: builds a job's graph, submits it, and follows the job to its end.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::FromArgMatches;
use indicatif::{ProgressBar, ProgressStyle};
use perennial_actors::clock::Instant;
use perennial_actors::entropy::Entropy;
use perennial_actors::model::message::{ClientRequest, ClientResponse, RpcError};
use perennial_actors::model::{JobGraph, JobId, JobState, JobStatus, RecoveryRecord, StartFrom};
use perennial_config::{Loaded, Settings};

use super::args::{Cli, RunArgs};
use super::config::{Role, load};
use super::connection::{
    Connection, FOLLOW_TIMEOUT, Follower, POLL_INTERVAL, SUBMIT_TIMEOUT, block_on, unexpected,
};
use super::serve::Signals;
use super::{CliError, output};
use crate::api::{Arguments, JobError, JobRegistry, Submission};
use crate::cluster::{LocalCluster, build_id};

pub(super) fn run(
    cli: &Cli,
    matches: &clap::ArgMatches,
    registry: &JobRegistry,
) -> Result<ExitCode, CliError> {
    let (name, matches) = matches
        .subcommand()
        .and_then(|(_, run)| run.subcommand())
        .ok_or_else(|| CliError::Config("no job named".into()))?;
    let args = RunArgs::from_arg_matches(matches).map_err(|e| CliError::Config(e.to_string()))?;
    if args.local && cli.jobmanager.is_some() {
        return Err(CliError::Usage(
            "--local starts a cluster of its own and --jobmanager names another: leave one of them out".into(),
        ));
    }
    let options = registry.get(name)?.options.iter();
    let arguments: BTreeMap<String, String> = options
        .filter_map(|o| {
            Some((
                o.name.to_owned(),
                matches.get_one::<String>(o.name)?.clone(),
            ))
        })
        .collect();
    let mut cli = cli.clone();
    let parallelism = args.parallelism.map(|p| format!("parallelism.default={p}"));
    cli.define.extend(parallelism);
    let cli = &cli;
    let loaded = load(cli, Role::Client)?;
    super::serve::init_log(cli, "warn");
    let graph = graph(&loaded, registry, name, &Arguments::new(arguments), &args)?;
    block_on(async {
        let mut signals = Signals::listen()?;
        let mut cluster = None;
        if args.local {
            let room = room_for(&graph, &loaded.settings, &args);
            let starting = LocalCluster::start(&room, args.taskmanagers, registry.clone());
            cluster = Some(tokio::select! {
                biased;
                started = starting => started?,
                () = signals.asked() => return Ok(ExitCode::SUCCESS),
            });
        }
        let settings = cluster.as_ref().map(LocalCluster::settings).cloned();
        let settings = settings.unwrap_or(loaded.settings);
        let result = tokio::select! {
            biased;
            result = submit(cli, &settings, graph, &args, &mut signals) => result,
            () = end_of(&mut cluster) => Err(CliError::Node(
                "the JobManager of this cluster has ended: the log says why".into(),
            )),
        };
        if let Some(cluster) = cluster
            && !matches!(result, Err(CliError::EndedAtOnce))
        {
            tokio::select! {
                biased;
                // How it ended, if not as asked, is told already.
                _exit = cluster.shutdown() => {}
                () = signals.asked() => return Err(CliError::EndedAtOnce),
            }
        }
        result
    })
}

/// Of a cluster of one's own; without one it never comes.
async fn end_of(cluster: &mut Option<LocalCluster>) {
    match cluster {
        Some(cluster) => cluster.ended().await,
        None => std::future::pending().await,
    }
}

fn graph(
    loaded: &Loaded,
    registry: &JobRegistry,
    name: &str,
    arguments: &Arguments,
    args: &RunArgs,
) -> Result<JobGraph, CliError> {
    let submission = Submission {
        job: JobId(Entropy::system().u128()),
        build: build_id(),
        start_from: args.from_savepoint.clone().map(|path| StartFrom {
            path,
            allow_non_restored_state: args.allow_non_restored_state,
        }),
    };
    let graph = registry.graph(
        name,
        arguments,
        |keys| {
            let (settings, notices) = loaded
                .job(keys)
                .map_err(|e| JobError::Settings(e.to_string()))?;
            for notice in notices {
                output::note(&notice.to_string());
            }
            Ok(settings)
        },
        submission,
    )?;
    Ok(graph)
}

/// The settings with as many slots as the job needs: nobody else uses this cluster, and without them it would wait in vain.
fn room_for(graph: &JobGraph, settings: &Settings, args: &RunArgs) -> Settings {
    let needed = graph.vertices.iter().map(|v| v.parallelism).max();
    let each = needed.unwrap_or(1).div_ceil(args.taskmanagers.max(1));
    let mut settings = settings.clone();
    settings.cluster.task_slots = settings.cluster.task_slots.max(each);
    settings
}

/// Returns when the job is the cluster's.
async fn accept<'a>(
    cli: &'a Cli,
    settings: &'a Settings,
    graph: JobGraph,
) -> Result<(Follower<'a>, JobId), CliError> {
    let mut follower = Follower::open(cli, settings).await?;
    let request = ClientRequest::Submit(Box::new(graph));
    // The id is ours: a submission whose answer was lost is asked for again, and runs once.
    let is_refused = |error: &RpcError| matches!(error, RpcError::Refused(_));
    let submitting = follower.ask(&request, SUBMIT_TIMEOUT, is_refused, output::note);
    match submitting.await? {
        ClientResponse::Submitted(job) => Ok((follower, job)),
        other => Err(unexpected(&other)),
    }
}

async fn submit(
    cli: &Cli,
    settings: &Settings,
    graph: JobGraph,
    args: &RunArgs,
    signals: &mut Signals,
) -> Result<ExitCode, CliError> {
    let (name, id) = (graph.name.clone(), graph.job);
    let accepted = tokio::select! {
        biased;
        accepted = accept(cli, settings, graph) => Some(accepted?),
        () = signals.asked() => None,
    };
    let (mut follower, job) = match accepted {
        Some(accepted) => accepted,
        None if args.local => return Ok(ExitCode::SUCCESS),
        None => {
            return Err(CliError::JobFailed(format!(
                "ended before the cluster had answered; the job may run: `perennial status {id}` shows it"
            )));
        }
    };
    if !cli.json {
        output::note(&format!("submitted {name} as job {job}"));
    }
    if args.detached {
        if cli.json {
            output::json(&serde_json::json!({ "job": job.to_string() }))?;
        } else {
            output::note(&format!("follow it with `perennial status {job}`"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let watched = tokio::select! {
        biased;
        result = watch(cli, &mut follower, job) => Some(result),
        () = signals.asked() => None,
    };
    let status = match watched {
        Some(result) => result?,
        None if args.local => {
            output::note("cancelling the job (asked again: ending at once)");
            tokio::select! {
                biased;
                status = cancel(cli, settings, job) => status?,
                () = signals.asked() => return Err(CliError::EndedAtOnce),
            }
        }
        None => {
            output::note(&format!(
                "the job goes on; `perennial status {job}` shows it, `perennial cancel {job}` ends it"
            ));
            return Ok(ExitCode::SUCCESS);
        }
    };
    if cli.json {
        output::json(&status)?;
    }
    finish(&status)
}

/// Returns when nothing of the job runs any more.
async fn cancel(cli: &Cli, settings: &Settings, job: JobId) -> Result<JobStatus, CliError> {
    let mut connection = Connection::open(cli, settings).await?;
    match connection.ask(ClientRequest::Cancel(job)).await {
        // It has just ended by itself: then that is its end.
        Ok(_) | Err(CliError::Rpc(RpcError::Refused(_))) => connection.status(job).await,
        Err(error) => Err(error),
    }
}

fn finish(status: &JobStatus) -> Result<ExitCode, CliError> {
    let summary = &status.summary;
    match summary.state {
        JobState::Failed => Err(CliError::JobFailed(format!(
            "job {} ({}) failed: {}",
            summary.name,
            summary.job,
            status
                .failure
                .as_ref()
                .map_or_else(|| "no cause recorded".to_owned(), ToString::to_string)
        ))),
        state => {
            output::note(&format!(
                "job {} is {state} after {}, {}",
                summary.name,
                output::duration(summary.duration_ms),
                output::restarts(summary.restarts)
            ));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What of a job's recoveries was shown, by their numbers: of the history the oldest go.
#[derive(Debug, Default)]
struct Recoveries {
    caused: u32,
    done: u32,
}

impl Recoveries {
    /// Each cause once it is known, and each outcome once it is complete.
    fn news(&mut self, all: &[RecoveryRecord]) -> Vec<String> {
        let mut news = Vec::new();
        for one in all {
            if one.number > self.caused {
                self.caused = one.number;
                news.push(format!("recovery {}", output::recovery_cause(one)));
            }
            if one.number > self.done && one.phases.total_ms.is_some() {
                self.done = one.number;
                let outcome = output::recovery_outcome(one);
                news.push(format!("recovery #{}:\n{outcome}", one.number));
            }
        }
        news
    }
}

/// Shows progress until the job has ended.
async fn watch(cli: &Cli, follower: &mut Follower<'_>, job: JobId) -> Result<JobStatus, CliError> {
    let began = Instant::now();
    let bar = (!cli.json && std::io::stderr().is_terminal()).then(|| {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        bar
    });
    let mut last: Option<(Instant, u64)> = None;
    let mut last_line = None;
    let mut recoveries = Recoveries::default();
    loop {
        let say = |why: &str| match &bar {
            Some(bar) => bar.set_message(why.to_owned()),
            None => output::note(why),
        };
        let request = ClientRequest::Status(job);
        let status = match follower
            .ask(&request, FOLLOW_TIMEOUT, |_| false, say)
            .await?
        {
            ClientResponse::Status(status) => *status,
            other => return Err(unexpected(&other)),
        };
        let now = Instant::now();
        let records: u64 = status.subtasks.iter().map(|t| t.counters.records_in).sum();
        let rate = last
            .filter(|(_, before)| records >= *before)
            .map(|(at, before)| (records - before) as f64 / (now - at).as_secs_f64().max(1e-3));
        last = Some((now, records));
        if !cli.json {
            let line = output::progress(&status, rate, now - began);
            for text in recoveries.news(&status.recoveries) {
                match &bar {
                    Some(bar) => bar.println(text),
                    None => output::note(&text),
                }
            }
            let waits_for = status
                .note
                .as_deref()
                .filter(|_| status.summary.state != JobState::Running)
                // A countdown is no change.
                .map(|note| note.replace(|c: char| c.is_ascii_digit() || c == '.', ""));
            let key = (
                status.summary.state,
                status.summary.last_checkpoint,
                waits_for,
            );
            match &bar {
                Some(bar) => {
                    bar.set_message(line);
                    bar.tick();
                }
                // Without a terminal, a line per change is enough.
                None if last_line.as_ref() != Some(&key) => output::note(&line),
                None => {}
            }
            last_line = Some(key);
        }
        if status.summary.state.is_terminal() {
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            return Ok(status);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
