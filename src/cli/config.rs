//! Loads settings for all commands, and `perennial config`.

use std::process::ExitCode;

use perennial_config::{
    Checked, ConfigErrors, ConfigFile, Environment, Loaded, Origin, Row, Settings, Sources, check,
};

use super::args::{Cli, ConfigArgs, ConfigCommand};
use super::{CliError, output};

fn failed(errors: ConfigErrors) -> CliError {
    CliError::Config(errors.to_string())
}

/// Everything that settings come from on this command line.
fn sources(cli: &Cli) -> Result<Sources, CliError> {
    let mut sources = Sources {
        profile: cli.profile.clone(),
        file: match &cli.config {
            Some(path) => Some(ConfigFile::read(path).map_err(failed)?),
            None => None,
        },
        environment: Environment::from_process(),
        overrides: Vec::new(),
    };
    for define in &cli.define {
        sources.set(define).map_err(failed)?;
    }
    Ok(sources)
}

/// What settings are loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A JobManager or TaskManager that others reach.
    Node,
    /// A command that talks to one, or that keeps its cluster to itself.
    Client,
}

/// Loads the settings and says what there is to say about them: to a client only what somebody wrote, as the risks of the defaults
/// (no secret) are the nodes'.
pub(super) fn load(cli: &Cli, role: Role) -> Result<Loaded, CliError> {
    let loaded = Settings::load(&sources(cli)?).map_err(failed)?;
    let said = loaded
        .notices
        .iter()
        .filter(|notice| role == Role::Node || notice.origin != Origin::Default);
    for notice in said {
        output::note(&notice.to_string());
    }
    Ok(loaded)
}

pub(super) fn execute(cli: &Cli, args: &ConfigArgs) -> Result<ExitCode, CliError> {
    let mut sources = sources(cli)?;
    match &args.command {
        ConfigCommand::Check { file } => {
            sources.file = Some(ConfigFile::read(file).map_err(failed)?);
            let checked = check(&sources);
            show(cli, &checked, Row::is_set)
        }
        ConfigCommand::Show => show(cli, &check(&sources), |_| true),
    }
}

fn show(cli: &Cli, checked: &Checked, wanted: impl Fn(&Row) -> bool) -> Result<ExitCode, CliError> {
    let rows = checked.table.iter().filter(|row: &&Row| wanted(row));
    if cli.json {
        let rows: Vec<_> = rows
            .map(|row| {
                serde_json::json!({
                    "key": row.key,
                    "native": row.native,
                    "value": row.value,
                    "origin": row.origin.to_string(),
                    "verdict": row.verdict.to_string(),
                    "note": row.note,
                })
            })
            .collect();
        output::json(&rows)?;
    } else if checked.table.iter().any(&wanted) {
        output::line(&output::table(
            &["key", "value", "origin", "verdict", "note"],
            rows.map(|row| {
                vec![
                    row.key.clone(),
                    row.value.clone(),
                    row.origin.to_string(),
                    row.verdict.to_string(),
                    row.note.clone(),
                ]
            }),
        ));
    }
    if checked.errors.0.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(failed(checked.errors.clone()))
    }
}
