//! The job of a run: how it is submitted, and what it must give. The stock jobs are here; a user's own is a few lines
//! (`chaos/examples/own_job.rs`).
//!
//! Invariant: what a job must give is a pure function of its workload, told without any code of the engine.

use std::path::Path;
use std::sync::Arc;

use crate::oracle::{AbnormalDetection, KeyedCount, StateOracle, committed_lines};
use crate::plan::WorkloadPlan;

/// A job that faults are aimed at: the one thing that a user writes for chaos runs of their own job.
pub trait JobUnderTest: Send + Sync {
    /// Name under which the binary of the nodes registers it.
    fn name(&self) -> &str;

    /// Arguments of `perennial run NAME`: a bounded, paced input of this size, with committed output below `output`, which all nodes share.
    fn arguments(&self, workload: &WorkloadPlan, output: &Path) -> Vec<String>;

    /// What the committed output must be, in any order: a plain sequential loop over the same input.
    fn expected(&self, workload: &WorkloadPlan) -> Vec<String>;

    /// Reads the committed output; without another definition all lines of all visible files.
    ///
    /// # Errors
    /// When it cannot be read; a directory that is not there yet is empty output.
    fn committed(&self, output: &Path) -> anyhow::Result<Vec<String>> {
        committed_lines(output)
    }

    /// What a keyed state must hold at each checkpoint, as a function of source positions; `None`: only the output is checked.
    fn state(&self, workload: &WorkloadPlan) -> Option<Box<dyn StateOracle>> {
        let _ = workload;
        None
    }

    /// Settings that it needs, whatever is drawn.
    fn settings(&self) -> Vec<(String, String)> {
        vec![("parallelism.default".to_owned(), "2".to_owned())]
    }

    /// Source subtasks that read at the rate, each: they tell how long an input lasts.
    fn lanes(&self, workload: &WorkloadPlan) -> u64 {
        let _ = workload;
        2
    }

    /// Slots that it needs: the highest parallelism of an operator.
    fn slots(&self) -> u32 {
        3
    }
}

/// Rate of a workload, never 0.
fn rate(workload: &WorkloadPlan) -> u64 {
    workload.rate.max(1)
}

/// The main job of the stock binary: keyed counts, alarms into a transactional file sink. One lane per user.
#[derive(Debug, Clone, Copy, Default)]
pub struct AbnormalDetectionJob;

impl AbnormalDetectionJob {
    const USERS: u64 = 3;

    fn oracle(workload: &WorkloadPlan) -> AbnormalDetection {
        AbnormalDetection {
            seed: workload.seed,
            users: Self::USERS,
            events: workload.events,
            interval_ms: (1000 / rate(workload)).max(1),
            abnormal_share: 0.3,
        }
    }
}

impl JobUnderTest for AbnormalDetectionJob {
    fn name(&self) -> &str {
        "abnormal-detection"
    }

    fn arguments(&self, workload: &WorkloadPlan, output: &Path) -> Vec<String> {
        let job = Self::oracle(workload);
        options(&[
            ("users", job.users.to_string()),
            ("events", job.events.to_string()),
            ("interval-ms", job.interval_ms.to_string()),
            ("seed", job.seed.to_string()),
            ("output", output.to_string_lossy().into_owned()),
        ])
    }

    fn expected(&self, workload: &WorkloadPlan) -> Vec<String> {
        Self::oracle(workload).lines()
    }

    fn state(&self, workload: &WorkloadPlan) -> Option<Box<dyn StateOracle>> {
        Some(Box::new(Self::oracle(workload)))
    }

    fn settings(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn lanes(&self, _workload: &WorkloadPlan) -> u64 {
        Self::USERS
    }
}

/// The job that throughput is measured with: many keys, output at every third abnormal event of a user.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyedCountJob;

impl KeyedCountJob {
    const LANES: u64 = 3;

    fn oracle(workload: &WorkloadPlan) -> KeyedCount {
        KeyedCount {
            keys: workload.keys.max(1),
            events: workload.events,
            lanes: Self::LANES,
        }
    }
}

impl JobUnderTest for KeyedCountJob {
    fn name(&self) -> &str {
        "keyed-count"
    }

    fn arguments(&self, workload: &WorkloadPlan, output: &Path) -> Vec<String> {
        let job = Self::oracle(workload);
        options(&[
            ("keys", job.keys.to_string()),
            ("events", job.events.to_string()),
            ("lanes", job.lanes.to_string()),
            ("rate", rate(workload).to_string()),
            ("output", output.to_string_lossy().into_owned()),
        ])
    }

    fn expected(&self, workload: &WorkloadPlan) -> Vec<String> {
        Self::oracle(workload).lines()
    }

    fn state(&self, workload: &WorkloadPlan) -> Option<Box<dyn StateOracle>> {
        Some(Box::new(Self::oracle(workload)))
    }

    fn settings(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn lanes(&self, _workload: &WorkloadPlan) -> u64 {
        Self::LANES
    }
}

/// `--name value` for each.
fn options(pairs: &[(&str, String)]) -> Vec<String> {
    let pair = |(name, value): &(&str, String)| [format!("--{name}"), value.clone()];
    pairs.iter().flat_map(pair).collect()
}

/// The jobs that a chaos command knows, and the program that plays its nodes.
pub struct Jobs {
    jobs: Vec<Arc<dyn JobUnderTest>>,
    binary: &'static str,
}

impl Jobs {
    /// One of yours, in a program of this name, which is looked for beside the chaos command. Whoever calls can name another with `--binary`.
    #[must_use]
    pub fn of(binary: &'static str, job: impl JobUnderTest + 'static) -> Self {
        let jobs: Vec<Arc<dyn JobUnderTest>> = vec![Arc::new(job)];
        Self { jobs, binary }
    }

    /// Those of the stock binary, `perennial`.
    #[must_use]
    pub fn stock() -> Self {
        Self::of("perennial", AbnormalDetectionJob).and(KeyedCountJob)
    }

    /// Another one in the same program.
    #[must_use]
    pub fn and(mut self, job: impl JobUnderTest + 'static) -> Self {
        self.jobs.push(Arc::new(job));
        self
    }

    /// All.
    #[must_use]
    pub fn all(&self) -> Vec<&dyn JobUnderTest> {
        self.jobs.iter().map(AsRef::as_ref).collect()
    }

    /// By name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<dyn JobUnderTest>> {
        self.jobs.iter().find(|job| job.name() == name).cloned()
    }

    /// Name of the program that plays the nodes.
    #[must_use]
    pub fn binary(&self) -> &'static str {
        self.binary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and options are those that the stock binary knows: a submission would be refused else.
    #[test]
    fn stock_jobs_are_registered_with_the_options_that_are_passed() {
        let registry = perennial::jobs::registry();
        let workload = WorkloadPlan {
            job: String::new(),
            seed: 1,
            events: 300,
            rate: 500,
            keys: 10,
            parallelism: Vec::new(),
        };
        for job in Jobs::stock().all() {
            let known = registry.get(job.name()).unwrap();
            let arguments = job.arguments(&workload, Path::new("/output"));
            for name in arguments.iter().filter_map(|a| a.strip_prefix("--")) {
                assert!(
                    known.options.iter().any(|o| o.name == name),
                    "{}: no option {name}",
                    job.name()
                );
            }
            assert!(!job.expected(&workload).is_empty());
            assert_eq!(job.lanes(&workload), job.state(&workload).unwrap().lanes());
        }
    }
}
