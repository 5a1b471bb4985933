//! Apache Flink: a standalone session cluster on loopback, each node a JVM of its own, with the settings that are known as its best:
//! object reuse (in the jobs), the heap state backend, hand-written serializers (in the jobs), little memory set aside beside the heap.

mod cluster;
mod rest;
mod setup;

use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use perennial_actors::clock::Instant;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Checkpoint, NotPossible, Peer, Shape, Submission};
use cluster::{Cluster, NodeOptions};
pub use setup::{Installation, SetupError, VERSION};

/// Between two looks at a job.
const POLL: Duration = Duration::from_millis(100);
/// How long small things may take: an answer, a cancellation.
const DEADLINE: Duration = Duration::from_secs(60);

/// Which garbage collector TaskManagers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Collector {
    /// Flink's default.
    G1,
    /// Mostly faster with many keys.
    Parallel,
}

impl Collector {
    /// The name of the peer with it.
    #[must_use]
    pub fn peer(self) -> &'static str {
        match self {
            Self::G1 => "flink-g1",
            Self::Parallel => "flink-parallel",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Flink {
    installation: Installation,
    collector: Collector,
    cluster: Option<Cluster>,
    /// A JVM with a job and a cluster for it.
    alone: Option<(Child, TempDir)>,
    /// By shape.
    options: Vec<(Shape, NodeOptions)>,
}

impl Flink {
    /// No cluster yet.
    #[must_use]
    pub fn new(installation: Installation, collector: Collector) -> Self {
        Self {
            installation,
            collector,
            cluster: None,
            alone: None,
            options: Vec::new(),
        }
    }

    fn options(&mut self, shape: &Shape) -> anyhow::Result<NodeOptions> {
        if let Some((_, options)) = self.options.iter().find(|(of, _)| of == shape) {
            return Ok(options.clone());
        }
        let options = NodeOptions::of(&self.installation, shape)?;
        self.options.push((shape.clone(), options.clone()));
        Ok(options)
    }

    fn cluster(&mut self) -> anyhow::Result<&mut Cluster> {
        self.cluster.as_mut().context("no cluster")
    }

    fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        self.cluster()?.rest.get(path)
    }

    fn state(&mut self, job: &str) -> anyhow::Result<String> {
        let answer = self.get(&format!("/jobs/{job}/status"))?;
        let state = answer["status"].as_str().map(str::to_owned);
        state.with_context(|| format!("no status in {answer}"))
    }

    /// Why a job has failed, shortened.
    fn why(&mut self, job: &str) -> String {
        let answer = self.get(&format!("/jobs/{job}/exceptions"));
        let answer = answer.unwrap_or_default();
        let trace = answer["exceptionHistory"]["entries"][0]["stacktrace"].as_str();
        // The causes, which stand last, between many lines of places.
        let causes = trace
            .unwrap_or("no reason given")
            .lines()
            .filter(|line| !line.starts_with("\tat "));
        let causes: Vec<_> = causes.collect();
        causes.join("; ").chars().take(2000).collect()
    }

    fn wait_for_state(
        &mut self,
        job: &str,
        wanted: &str,
        deadline: Duration,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let state = self.state(job)?;
            if state == wanted {
                return Ok(());
            }
            if matches!(state.as_str(), "FINISHED" | "FAILED" | "CANCELED") {
                bail!("job {job} is {state} and not {wanted}: {}", self.why(job));
            }
            if began.elapsed() > deadline {
                bail!("job {job} is {state} and not {wanted} after {deadline:?}");
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Flink {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the main class of a job is called with.
fn words(submission: &Submission) -> Vec<String> {
    let arguments = submission.arguments.iter();
    let arguments = arguments.flat_map(|(name, value)| [format!("--{name}"), value.clone()]);
    let own = submission.flink_settings.iter();
    let own = own.map(|(key, value)| format!("-D{key}={value}"));
    let settings = submission.settings.iter();
    let settings = settings.map(|(key, value)| format!("-D{key}={value}"));
    arguments.chain(settings).chain(own).collect()
}

impl Peer for Flink {
    fn name(&self) -> &'static str {
        self.collector.peer()
    }

    fn needs_warm_up(&self) -> bool {
        true
    }

    fn start(&mut self, shape: &Shape) -> anyhow::Result<()> {
        if let Some(cluster) = &mut self.cluster
            && cluster.shape() == shape
            && cluster.repair().is_ok()
        {
            return Ok(());
        }
        self.stop();
        let options = self.options(shape)?;
        let mut cluster = Cluster::start(&self.installation, self.collector, shape, options)?;
        cluster.wait_for_slots()?;
        self.cluster = Some(cluster);
        Ok(())
    }

    fn prepare(&mut self, shape: &Shape) -> anyhow::Result<()> {
        self.options(shape).map(drop)
    }

    fn start_with(&mut self, _shape: &Shape, submission: &Submission) -> anyhow::Result<()> {
        self.stop();
        let words = words(submission);
        let (jvm, folder) =
            cluster::start_alone(&self.installation, self.collector, &submission.java, &words)?;
        self.alone = Some((jvm, folder));
        Ok(())
    }

    fn submit(&mut self, submission: &Submission) -> anyhow::Result<String> {
        let mut body = json!({
            "entryClass": submission.java,
            "programArgsList": words(submission),
        });
        if let Some(path) = &submission.from_savepoint {
            body["savepointPath"] = json!(path);
        }
        let path = format!("/jars/{}/run", setup::JAR);
        let answer = self.cluster()?.rest.post(&path, &body)?;
        let job = answer["jobid"].as_str().map(str::to_owned);
        job.with_context(|| format!("no job id in {answer}"))
    }

    fn wait_until_finished(&mut self, job: &str, deadline: Duration) -> anyhow::Result<Duration> {
        self.wait_for_state(job, "FINISHED", deadline)?;
        // What it tells of a job may be some moments old.
        let began = Instant::now();
        loop {
            let answer = self.get(&format!("/jobs/{job}"))?;
            if answer["state"] == "FINISHED" {
                let millis = answer["duration"].as_u64();
                return Ok(Duration::from_millis(millis.context("no duration")?));
            }
            ensure!(began.elapsed() < DEADLINE, "no duration of job {job}");
            std::thread::sleep(POLL);
        }
    }

    fn check_alive(&mut self, job: &str) -> anyhow::Result<()> {
        let state = self.state(job)?;
        if matches!(state.as_str(), "FINISHED" | "FAILED" | "CANCELED") {
            bail!("job {job} is {state}: {}", self.why(job));
        }
        Ok(())
    }

    fn cancel(&mut self, job: &str) -> anyhow::Result<()> {
        let path = format!("/jobs/{job}?mode=cancel");
        self.cluster()?.rest.patch(&path)?;
        self.wait_for_state(job, "CANCELED", DEADLINE)
    }

    fn checkpoints(&mut self, job: &str) -> anyhow::Result<Vec<Checkpoint>> {
        let answer = self.get(&format!("/jobs/{job}/checkpoints"))?;
        let history = answer["history"].as_array().cloned().unwrap_or_default();
        let mut checkpoints: Vec<Checkpoint> = history
            .iter()
            .filter(|one| one["status"] == "COMPLETED" && one["is_savepoint"] == false)
            .filter_map(|one| {
                Some(Checkpoint {
                    triggered_us: one["trigger_timestamp"].as_u64()? * 1000,
                    duration: Duration::from_millis(one["end_to_end_duration"].as_u64()?),
                    bytes: one["checkpointed_size"].as_u64()?,
                    pause: None,
                })
            })
            .collect();
        checkpoints.sort_by_key(|one| one.triggered_us);
        Ok(checkpoints)
    }

    fn savepoint(&mut self, job: &str) -> anyhow::Result<String> {
        // Its own format is the faster one to write and to read.
        let body = json!({ "cancel-job": false, "formatType": "NATIVE" });
        let path = format!("/jobs/{job}/savepoints");
        let request = self.cluster()?.rest.post(&path, &body)?;
        let trigger = request["request-id"].as_str().context("no request id")?;
        let began = Instant::now();
        loop {
            let answer = self.get(&format!("/jobs/{job}/savepoints/{trigger}"))?;
            if answer["status"]["id"] == "COMPLETED" {
                let location = answer["operation"]["location"].as_str().map(str::to_owned);
                return location.with_context(|| format!("the savepoint failed: {answer}"));
            }
            ensure!(began.elapsed() < DEADLINE, "no savepoint of job {job}");
            std::thread::sleep(POLL);
        }
    }

    fn restart_job_manager(&mut self) -> anyhow::Result<()> {
        Err(NotPossible(
            "without ZooKeeper or Kubernetes a new JobManager knows of no job, and the job is lost",
        )
        .into())
    }

    fn processes(&mut self) -> Vec<u32> {
        self.cluster
            .as_mut()
            .map_or_else(Vec::new, Cluster::processes)
    }

    fn stop(&mut self) {
        self.cluster = None;
        if let Some((mut jvm, _folder)) = self.alone.take() {
            // It may be dead already.
            let _ = jvm.kill();
            let _ = jvm.wait();
        }
    }
}
