//! Perennial: real node processes of a binary with the jobs of the benchmark.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use perennial_actors::clock::Instant;
use perennial_actors::model::{CheckpointState, JobStatus};
use perennial_chaos::process::{ClusterPlan, ProcessCluster};
use tempfile::TempDir;

use super::{Checkpoint, Memory, Peer, Shape, Submission};

/// Between two looks at a job. Each is a process of its own, so not too often; that a job has ended is seen late, when is its own word.
const POLL: Duration = Duration::from_secs(1);
/// For state. The default would do up to some million keys.
const MANAGED_MEMORY: &str = "4g";

/// See the module.
#[derive(Debug)]
pub struct Perennial {
    binary: PathBuf,
    cluster: Option<ProcessCluster>,
    /// A cluster in one process, with its job.
    local: Option<(Child, TempDir)>,
}

impl Perennial {
    /// With the program that plays every role.
    #[must_use]
    pub fn new(binary: PathBuf) -> Self {
        Self {
            binary,
            cluster: None,
            local: None,
        }
    }

    fn cluster(&mut self) -> anyhow::Result<&mut ProcessCluster> {
        self.cluster.as_mut().ok_or_else(|| anyhow!("no cluster"))
    }

    fn status(&mut self, job: &str) -> anyhow::Result<JobStatus> {
        self.cluster()?.status(job)
    }
}

fn words(submission: &Submission) -> Vec<String> {
    let arguments = submission.arguments.iter();
    let arguments = arguments.flat_map(|(name, value)| [format!("--{name}"), value.clone()]);
    let savepoint = submission.from_savepoint.iter();
    let savepoint = savepoint.flat_map(|path| ["--from-savepoint".to_owned(), path.clone()]);
    std::iter::once(submission.job.clone())
        .chain(arguments)
        .chain(savepoint)
        .collect()
}

impl Peer for Perennial {
    fn name(&self) -> &'static str {
        "perennial"
    }

    fn needs_warm_up(&self) -> bool {
        false
    }

    fn start(&mut self, shape: &Shape) -> anyhow::Result<()> {
        self.stop();
        let plan = ClusterPlan::new(&self.binary)
            .task_managers(shape.task_managers)
            .slots(shape.slots);
        let plan = match shape.memory {
            Memory::Default => plan,
            Memory::Ample => plan.set("taskmanager.memory.managed.size", MANAGED_MEMORY),
        };
        self.cluster = Some(ProcessCluster::start(plan)?);
        Ok(())
    }

    fn prepare(&mut self, _shape: &Shape) -> anyhow::Result<()> {
        Ok(())
    }

    fn start_with(&mut self, shape: &Shape, submission: &Submission) -> anyhow::Result<()> {
        self.stop();
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(&self.binary);
        let store = directory.path().join("checkpoints");
        command.arg("-D").arg(format!(
            "execution.checkpointing.dir=file://{}",
            store.display()
        ));
        for (key, value) in &submission.settings {
            command.arg("-D").arg(format!("{key}={value}"));
        }
        let words = words(submission);
        command
            .args(["run", &words[0], "--local", "--taskmanagers"])
            .arg(shape.task_managers.to_string())
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.local = Some((command.spawn()?, directory));
        Ok(())
    }

    fn submit(&mut self, submission: &Submission) -> anyhow::Result<String> {
        let words = words(submission);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let settings = submission.settings.iter();
        let settings: Vec<_> = settings.map(|(k, v)| (k.as_str(), v.as_str())).collect();
        self.cluster()?.submit(&settings, &words)
    }

    fn wait_until_finished(&mut self, job: &str, deadline: Duration) -> anyhow::Result<Duration> {
        let began = Instant::now();
        loop {
            let status = self.status(job)?;
            match status.summary.state {
                state if !state.is_terminal() => {}
                perennial_actors::model::JobState::Finished => {
                    return Ok(Duration::from_millis(status.summary.duration_ms));
                }
                state => bail!("job {job} is {state}: {:?}", status.failure),
            }
            if began.elapsed() > deadline {
                bail!("job {job} has not finished within {deadline:?}");
            }
            std::thread::sleep(POLL);
        }
    }

    fn check_alive(&mut self, job: &str) -> anyhow::Result<()> {
        // While a JobManager is away it does not answer, and its jobs have not ended.
        match self.status(job) {
            Ok(status) if status.summary.state.is_terminal() => {
                bail!(
                    "job {job} is {}: {:?}",
                    status.summary.state,
                    status.failure
                )
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn cancel(&mut self, job: &str) -> anyhow::Result<()> {
        let _: serde_json::Value = self.cluster()?.ask(&["cancel", job])?;
        let began = Instant::now();
        while !self.status(job)?.summary.state.is_terminal() {
            if began.elapsed() > Duration::from_secs(30) {
                bail!("job {job} is not canceled within 30 s");
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn checkpoints(&mut self, job: &str) -> anyhow::Result<Vec<Checkpoint>> {
        let all = self.status(job)?.checkpoints;
        let completed = all.iter().filter(|checkpoint| {
            checkpoint.state == CheckpointState::Completed && !checkpoint.kind.is_savepoint()
        });
        Ok(completed
            .map(|checkpoint| Checkpoint {
                triggered_us: checkpoint.triggered_ms * 1000,
                duration: Duration::from_millis(checkpoint.duration_ms),
                bytes: checkpoint.bytes,
                pause: Some(Duration::from_micros(checkpoint.longest_pause_us)),
            })
            .collect())
    }

    fn savepoint(&mut self, job: &str) -> anyhow::Result<String> {
        let cluster = self.cluster()?;
        let target = cluster.storage().uri("savepoints");
        let answer: serde_json::Value = cluster.ask(&["savepoint", job, &target])?;
        let path = answer["path"].as_str();
        path.map(str::to_owned)
            .with_context(|| format!("no path in {answer}"))
    }

    fn restart_job_manager(&mut self) -> anyhow::Result<()> {
        let cluster = self.cluster()?;
        cluster.kill("jobmanager-1")?;
        cluster.restart("jobmanager-1")
    }

    fn processes(&mut self) -> Vec<u32> {
        if let Some((child, _directory)) = &self.local {
            return vec![child.id()];
        }
        let Some(cluster) = &mut self.cluster else {
            return Vec::new();
        };
        let mut names = cluster.job_manager_names();
        names.extend(cluster.task_manager_names());
        let pids = names.iter().filter_map(|name| {
            let node = cluster.node_mut(name).ok()?;
            let is_alive = node.exit_code().ok()?.is_none();
            is_alive.then(|| node.pid())
        });
        pids.collect()
    }

    fn stop(&mut self) {
        if let Some((mut child, _directory)) = self.local.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.cluster = None;
    }
}

impl Drop for Perennial {
    fn drop(&mut self) {
        self.stop();
    }
}
