//! Commands to a running cluster: each connects, asks, and shows the answer.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::ProgressBar;
use perennial_actors::model::message::{ClientRequest, ClientResponse};
use perennial_config::Settings;

use super::args::{Cli, ListArgs, StopArgs};
use super::config::{Role, load};
use super::connection::{Connection, block_on, unexpected};
use super::{CliError, output};

/// Loads the settings, connects, and does something with the connection.
fn with_connection<T>(
    cli: &Cli,
    work: impl AsyncFnOnce(&mut Connection, &Settings) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let loaded = load(cli, Role::Client)?;
    super::serve::init_log(cli, "warn");
    block_on(async {
        let mut connection = Connection::open(cli, &loaded.settings).await?;
        work(&mut connection, &loaded.settings).await
    })
}

pub(super) fn list(cli: &Cli, args: &ListArgs) -> Result<ExitCode, CliError> {
    with_connection(cli, async |connection: &mut Connection, _: &Settings| {
        if args.taskmanagers {
            match connection.ask(ClientRequest::ListTaskManagers).await? {
                ClientResponse::TaskManagers(nodes) if cli.json => output::json(&nodes)?,
                ClientResponse::TaskManagers(nodes) => output::line(&output::task_managers(&nodes)),
                other => return Err(unexpected(&other)),
            }
        } else {
            let jobs = connection.jobs().await?;
            if cli.json {
                output::json(&jobs)?;
            } else {
                output::line(&output::jobs(&jobs));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn status(cli: &Cli, job: &str) -> Result<ExitCode, CliError> {
    with_connection(cli, async |connection: &mut Connection, _: &Settings| {
        let job = connection.job(job).await?;
        let status = connection.status(job).await?;
        if cli.json {
            output::json(&status)?;
        } else {
            output::line(&output::status(&status));
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn checkpoints(cli: &Cli, job: &str) -> Result<ExitCode, CliError> {
    with_connection(cli, async |connection: &mut Connection, _: &Settings| {
        let job = connection.job(job).await?;
        match connection.ask(ClientRequest::Checkpoints(job)).await? {
            ClientResponse::Checkpoints(list) if cli.json => output::json(&list)?,
            ClientResponse::Checkpoints(list) => output::line(&output::checkpoints(&list)),
            other => return Err(unexpected(&other)),
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn cancel(cli: &Cli, job: &str) -> Result<ExitCode, CliError> {
    with_connection(cli, async |connection: &mut Connection, _: &Settings| {
        let job = connection.job(job).await?;
        let spinner = spinner(cli, &format!("cancelling {job}"));
        let response = connection.ask(ClientRequest::Cancel(job)).await;
        spinner.finish_and_clear();
        match response? {
            ClientResponse::Canceled if cli.json => {
                output::json(&serde_json::json!({ "job": job.to_string(), "state": "CANCELED" }))?
            }
            ClientResponse::Canceled => output::line(&format!("job {job} is cancelled")),
            other => return Err(unexpected(&other)),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Nearest first: the command's argument, the command's own settings, and (`None`) what the job was submitted with.
///
/// Flink knows the first and the cluster's setting. Here a cluster has none, as directories belong to jobs; whoever gives a command a
/// configuration means it.
fn savepoint_directory(argument: Option<&str>, settings: &Settings) -> Option<String> {
    let named = argument.filter(|directory| !directory.is_empty());
    named
        .map(str::to_owned)
        .or_else(|| settings.job.checkpointing.savepoint_directory.clone())
}

pub(super) fn savepoint(
    cli: &Cli,
    job: &str,
    directory: Option<&str>,
) -> Result<ExitCode, CliError> {
    with_connection(
        cli,
        async |connection: &mut Connection, settings: &Settings| {
            let job = connection.job(job).await?;
            let spinner = spinner(cli, &format!("taking a savepoint of {job}"));
            let request = ClientRequest::Savepoint {
                job,
                directory: savepoint_directory(directory, settings),
            };
            let response = connection.ask(request).await;
            spinner.finish_and_clear();
            match response? {
                ClientResponse::Savepoint { path } if cli.json => {
                    output::json(&serde_json::json!({ "job": job.to_string(), "path": path }))?
                }
                ClientResponse::Savepoint { path } => {
                    output::line(&path);
                    output::note(&format!(
                        "start from it with `perennial run JOB --from-savepoint {path}`"
                    ));
                }
                other => return Err(unexpected(&other)),
            }
            Ok(ExitCode::SUCCESS)
        },
    )
}

pub(super) fn stop(cli: &Cli, args: &StopArgs) -> Result<ExitCode, CliError> {
    with_connection(
        cli,
        async |connection: &mut Connection, settings: &Settings| {
            let job = connection.job(&args.job).await?;
            let spinner = spinner(cli, &format!("stopping {job} with a savepoint"));
            let directory = savepoint_directory(args.savepoint.as_deref(), settings);
            let response = connection
                .ask(ClientRequest::Stop {
                    job,
                    directory,
                    drain: args.drain,
                })
                .await;
            spinner.finish_and_clear();
            match response? {
                ClientResponse::Stopped { path } if cli.json => {
                    output::json(&serde_json::json!({ "job": job.to_string(), "path": path }))?
                }
                ClientResponse::Stopped { path } => {
                    output::line(&path);
                    output::note(&format!(
                        "job {job} has ended; go on with `perennial run JOB --from-savepoint {path}`"
                    ));
                }
                other => return Err(unexpected(&other)),
            }
            Ok(ExitCode::SUCCESS)
        },
    )
}

/// Moves while something takes long; silent without a terminal.
fn spinner(cli: &Cli, message: &str) -> ProgressBar {
    if cli.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(message.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_savepoint_goes_where_the_command_says_by_argument_or_setting() {
        let configured = Settings::with(&[(
            "execution.checkpointing.savepoint-dir",
            "file:///configured",
        )]);
        let (configured, plain) = (configured.unwrap(), Settings::default());
        for (argument, settings, expected) in [
            (Some("file:///named"), &configured, Some("file:///named")),
            (Some(""), &configured, Some("file:///configured")),
            (None, &configured, Some("file:///configured")),
            (Some("file:///named"), &plain, Some("file:///named")),
            (Some(""), &plain, None),
            (None, &plain, None),
        ] {
            assert_eq!(savepoint_directory(argument, settings).as_deref(), expected);
        }
    }
}
