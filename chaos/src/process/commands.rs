//! Commands against a cluster, by the program's own command line.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, anyhow, ensure};
use perennial_actors::model::{JobStatus, JobSummary, TaskManagerStatus};

use super::ProcessCluster;

impl ProcessCluster {
    /// A command of the command line against this cluster, not yet started.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.plan.binary);
        command
            .args(self.definitions())
            .args(["--jobmanager", &self.address, "--json"])
            .args(arguments)
            .current_dir(self.root())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command of the command line with `--json` against this cluster.
    ///
    /// # Errors
    /// When the program does not start. Its exit code is the caller's business.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command(arguments).output()?)
    }

    /// As [`ProcessCluster::cli`], for commands that must succeed; returns what they print, decoded.
    ///
    /// # Errors
    /// When the command fails, with what it said.
    pub fn ask<T: serde::de::DeserializeOwned>(&self, arguments: &[&str]) -> anyhow::Result<T> {
        let output = self.cli(arguments)?;
        ensure!(
            output.status.success(),
            "`{}` ended with {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "`{}` printed {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout)
            )
        })
    }

    /// As people see it: the output of a command without `--json`.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn ask_text(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.plan.binary)
            .args(self.definitions())
            .args(["--jobmanager", &self.address])
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Submits a job (`run --detached`); returns its id.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit(&self, settings: &[(&str, &str)], arguments: &[&str]) -> anyhow::Result<String> {
        let definitions: Vec<String> = settings
            .iter()
            .flat_map(|(key, value)| ["-D".to_owned(), format!("{key}={value}")])
            .collect();
        let mut all: Vec<&str> = definitions.iter().map(String::as_str).collect();
        all.push("run");
        all.extend(arguments);
        all.push("--detached");
        let answer: serde_json::Value = self.ask(&all)?;
        let job = answer["job"]
            .as_str()
            .ok_or_else(|| anyhow!("no job id in {answer}"))?;
        self.say(&format!("submitted {} as {job}", arguments.join(" ")));
        Ok(job.to_owned())
    }

    /// `perennial status`.
    ///
    /// # Errors
    /// When the JobManager does not answer, or does not know the job.
    pub fn status(&self, job: &str) -> anyhow::Result<JobStatus> {
        self.ask(&["status", job])
    }

    /// `perennial list`.
    ///
    /// # Errors
    /// When the JobManager does not answer.
    pub fn jobs(&self) -> anyhow::Result<Vec<JobSummary>> {
        self.ask(&["list"])
    }

    /// `perennial list --taskmanagers`.
    ///
    /// # Errors
    /// When the JobManager does not answer.
    pub fn task_managers(&self) -> anyhow::Result<Vec<TaskManagerStatus>> {
        self.ask(&["list", "--taskmanagers"])
    }

    /// What people would look at: the story so far and the status of every job.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = self.events.borrow().join("\n");
        match self.jobs() {
            Ok(jobs) => {
                for job in jobs {
                    let id = job.job.to_string();
                    if let Ok(status) = self.ask_text(&["status", &id]) {
                        text.push('\n');
                        text.push_str(&status);
                    }
                }
            }
            Err(error) => text.push_str(&format!("\nno status: {error:#}")),
        }
        text
    }
}
