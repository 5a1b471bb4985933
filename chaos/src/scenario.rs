//! Jobs under observation, as several tests run them: the job, the fold it must equal and the recorder that follows it.
//!
//! A [`Scenario`] is what the carrier of real processes needs to know of a job; [`Detection`] is the main job as single tests run it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use perennial_actors::model::{JobState, JobStatus};

use crate::checker::{Recorder, Recording};
use crate::job::{JobUnderTest, Jobs};
use crate::oracle::{AbnormalDetection, StateOracle, committed_lines, compare};
use crate::plan::WorkloadPlan;
use crate::process::ProcessCluster;
use crate::seed::Seed;

/// Settings of a job that many faults shall not end, with all its state in objects.
pub const ENDURING: [(&str, &str); 6] = [
    ("execution.checkpointing.min-pause", "0s"),
    ("execution.checkpointing.data-inline-threshold", "0"),
    (
        "execution.checkpointing.tolerable-failed-checkpoints",
        "100",
    ),
    ("restart-strategy.type", "fixed-delay"),
    ("restart-strategy.fixed-delay.attempts", "100"),
    ("restart-strategy.fixed-delay.delay", "100ms"),
];

/// Users of the main job, one source subtask each.
const USERS: u64 = 3;

/// A job as a plan shapes it.
pub struct Scenario {
    job: Arc<dyn JobUnderTest>,
    workload: WorkloadPlan,
}

impl Scenario {
    /// A job with the input that a plan gives it.
    #[must_use]
    pub fn new(job: Arc<dyn JobUnderTest>, workload: &WorkloadPlan) -> Self {
        Self {
            job,
            workload: workload.clone(),
        }
    }

    /// One of the stock jobs, by the plan's name.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn stock(workload: &WorkloadPlan) -> anyhow::Result<Self> {
        let job = Jobs::stock().named(&workload.job).with_context(|| {
            format!(
                "no oracle is known for the job `{}`: give one with the options",
                workload.job
            )
        })?;
        Ok(Self::new(job, workload))
    }

    /// Arguments of `perennial run`, the job's name first.
    #[must_use]
    pub fn arguments(&self, output: &Path) -> Vec<String> {
        let mut arguments = vec![self.job.name().to_owned()];
        arguments.extend(self.job.arguments(&self.workload, output));
        arguments
    }

    /// Lines of the committed output, sorted.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.job.expected(&self.workload);
        lines.sort_unstable();
        lines
    }

    /// What is committed so far, sorted.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn committed(&self, output: &Path) -> anyhow::Result<Vec<String>> {
        let mut lines = self.job.committed(output)?;
        lines.sort_unstable();
        Ok(lines)
    }

    /// Keyed state as a function of source positions; `None`: nobody knows.
    #[must_use]
    pub fn state(&self) -> Option<Arc<dyn StateOracle>> {
        self.job.state(&self.workload).map(Arc::from)
    }

    /// How long its input takes when nothing goes wrong.
    #[must_use]
    pub fn duration(&self) -> Duration {
        let lanes = self.job.lanes(&self.workload).max(1);
        let per_lane = self.workload.events.div_ceil(lanes);
        Duration::from_millis(per_lane * 1000 / self.workload.rate.max(1))
    }
}

/// The main job, bounded, with committed output, its checkpoints compared with the fold while it runs.
pub struct Detection {
    /// Its id.
    pub job: String,
    /// Where its output is.
    pub output: PathBuf,
    oracle: AbnormalDetection,
    recorder: Recorder,
}

impl Detection {
    /// Submits it: about `duration` of paced events, a checkpoint every 200 ms, all of them retained, state in objects.
    ///
    /// # Errors
    /// When it is refused.
    pub fn submit(
        cluster: &ProcessCluster,
        seed: &Seed,
        duration: Duration,
    ) -> anyhow::Result<Self> {
        let interval_ms = 2;
        let per_user = u64::try_from(duration.as_millis())? / interval_ms;
        let oracle = AbnormalDetection {
            seed: seed.value(),
            users: USERS,
            // Not the same for each user.
            events: per_user * USERS + seed.below(USERS),
            interval_ms,
            abnormal_share: 0.3,
        };
        let output = cluster.path("output");
        let checkpoints = [
            ("execution.checkpointing.interval", "200ms"),
            ("execution.checkpointing.num-retained", "1000"),
        ];
        let job = cluster.submit(
            &[&checkpoints[..], &ENDURING].concat(),
            &[
                "abnormal-detection",
                "--users",
                &oracle.users.to_string(),
                "--events",
                &oracle.events.to_string(),
                "--interval-ms",
                &oracle.interval_ms.to_string(),
                "--seed",
                &oracle.seed.to_string(),
                "--output",
                &output.to_string_lossy(),
            ],
        )?;
        let recorder = Recorder::follow(
            cluster.storage().open(),
            &cluster.storage().uri("checkpoints"),
            job.parse()?,
            Some(Arc::new(oracle.clone())),
        )?;
        Ok(Self {
            job,
            output,
            oracle,
            recorder,
        })
    }

    /// Waits until there is a further completed checkpoint, and work is left.
    ///
    /// # Panics
    /// When there is none in time, or the job is over: then a fault would prove nothing.
    pub fn wait_for_progress(&self, cluster: &mut ProcessCluster) -> u64 {
        let status = cluster.wait_until_running(&self.job, Duration::from_secs(30));
        let before = status.summary.last_checkpoint.map_or(0, |c| c.0);
        let number = cluster.wait_for_checkpoint(&self.job, before, Duration::from_secs(20));
        let lines = committed_lines(&self.output).expect("output is readable");
        assert!(
            lines.len() < self.oracle.lines().len(),
            "the job has written all its output before the fault: make it longer"
        );
        number
    }

    /// Waits until the job has been restarted so often, and all its tasks run.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn wait_for_recovery(&self, cluster: &mut ProcessCluster, restarts: u32) -> JobStatus {
        let what = format!("restart {restarts} and all tasks running");
        cluster.wait_until(&what, Duration::from_secs(30), |cluster| {
            let status = cluster.status(&self.job)?;
            let summary = &status.summary;
            assert!(
                !summary.state.is_terminal(),
                "the job is {} already",
                summary.state
            );
            let is_back = summary.state == JobState::Running
                && summary.tasks_running == summary.tasks_total
                && summary.restarts >= restarts;
            Ok(is_back.then_some(status))
        })
    }

    /// Waits for the end, compares the output with the fold's, and says what the recorder saw.
    ///
    /// # Errors
    /// When output or a checkpoint differs from the fold, or the records of the job are not one dense sequence.
    ///
    /// # Panics
    /// When the job does not finish in time.
    pub fn finish(self, cluster: &mut ProcessCluster) -> anyhow::Result<Recording> {
        cluster.wait_for_state(&self.job, JobState::Finished, Duration::from_secs(40));
        compare(&committed_lines(&self.output)?, &self.oracle.lines())?;
        let recording = self.recorder.finish()?;
        cluster.say(&format!(
            "checked {} checkpoints against the fold; missed {:?}; {} records",
            recording.checked.len(),
            recording.missed,
            recording.records.len()
        ));
        Ok(recording)
    }
}
