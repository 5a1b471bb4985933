//! Waiting for conditions, as tests do it: what does not come in time fails the test and tells what happened.

use std::time::Duration;

use anyhow::bail;
use perennial_actors::clock::Instant;
use perennial_actors::model::{CheckpointState, CheckpointStatus, JobState, JobStatus};

use super::{POLL_INTERVAL, ProcessCluster};

impl ProcessCluster {
    /// Waits until a condition gives a value. An error of the condition means: not yet. Nodes that end by themselves meanwhile fail the
    /// test, except those that may.
    ///
    /// # Panics
    /// When the deadline passes or a node ends; prints the jobs' status, and the logs when the cluster is dropped.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        condition: impl FnMut(&Self) -> anyhow::Result<Option<T>>,
    ) -> T {
        self.try_until(what, deadline, condition)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.describe()))
    }

    /// As [`ProcessCluster::wait_until`], for callers that go on after a disappointment.
    ///
    /// # Errors
    /// When the deadline passes or a node ends.
    pub fn try_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut(&Self) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let began = Instant::now();
        let mut last_error;
        loop {
            match condition(self) {
                Ok(Some(value)) => {
                    let took = began.elapsed().as_millis();
                    self.say(&format!("{what} after {took} ms"));
                    return Ok(value);
                }
                Ok(None) => last_error = None,
                Err(error) => last_error = Some(error),
            }
            for node in self.nodes.values_mut() {
                if let Some(code) = node.unexpected_exit() {
                    bail!(
                        "{} ended with exit code {code} while waiting for {what}",
                        node.name()
                    );
                }
            }
            if began.elapsed() > deadline {
                let error = last_error.map_or_else(String::new, |e| format!(" ({e:#})"));
                bail!("not within {deadline:?}: {what}{error}");
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits for a state of a job; a terminal state that is another one fails at once.
    ///
    /// # Panics
    /// As [`ProcessCluster::wait_until`].
    pub fn wait_for_state(&mut self, job: &str, state: JobState, deadline: Duration) -> JobStatus {
        let what = format!("job {job} {state}");
        let status = self.wait_until(&what, deadline, |cluster| {
            let status = cluster.status(job)?;
            let now = status.summary.state;
            Ok((now == state || now.is_terminal()).then_some(status))
        });
        assert_eq!(
            status.summary.state,
            state,
            "{:?}\n{}",
            status.failure.as_ref().map(ToString::to_string),
            self.describe()
        );
        status
    }

    /// Waits until all subtasks of a job run.
    ///
    /// # Panics
    /// As [`ProcessCluster::wait_until`].
    pub fn wait_until_running(&mut self, job: &str, deadline: Duration) -> JobStatus {
        let what = format!("all tasks of {job} running");
        self.wait_until(&what, deadline, |cluster| {
            let status = cluster.status(job)?;
            let summary = &status.summary;
            let is_running = summary.state == JobState::Running
                && summary.tasks_total > 0
                && summary.tasks_running == summary.tasks_total;
            Ok(is_running.then_some(status))
        })
    }

    /// Waits for a completed checkpoint with a number above `after`; returns its number.
    ///
    /// # Panics
    /// As [`ProcessCluster::wait_until`].
    pub fn wait_for_checkpoint(&mut self, job: &str, after: u64, deadline: Duration) -> u64 {
        let what = format!("a completed checkpoint above {after}");
        self.wait_until(&what, deadline, |cluster| {
            Ok(newest_completed(&cluster.status(job)?)
                .map(|c| c.checkpoint.0)
                .filter(|number| *number > after))
        })
    }
}

/// The newest completed checkpoint in a status.
#[must_use]
pub fn newest_completed(status: &JobStatus) -> Option<&CheckpointStatus> {
    let is_completed =
        |c: &&CheckpointStatus| c.state == CheckpointState::Completed && !c.kind.is_savepoint();
    status.checkpoints.iter().rev().find(is_completed)
}
