//! The jobs that a binary carries. Closures cannot travel, so user code is linked in and found by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use perennial_actors::model::JobGraph;
use perennial_config::JobSettings;

use super::{Arguments, Builder, JobError, StreamEnvironment, Submission};
use crate::error::FunctionResult;

/// An option of a job, for `--help` and for checking.
#[derive(Debug, Clone)]
pub struct JobOption {
    /// Without dashes; it takes a value. Those of `perennial run` are taken: a binary with such a job says so and ends.
    pub name: &'static str,
    /// What it means, with its default.
    pub help: &'static str,
}

type JobFunction = Arc<dyn Fn(&StreamEnvironment, &Arguments) -> FunctionResult + Send + Sync>;

/// A job under its name.
#[derive(Clone)]
pub struct RegisteredJob {
    /// For `run NAME`.
    pub name: String,
    /// One line.
    pub about: String,
    /// All it takes.
    pub options: Vec<JobOption>,
    function: JobFunction,
}

/// All jobs of a binary.
#[derive(Clone, Default)]
pub struct JobRegistry {
    jobs: BTreeMap<String, RegisteredJob>,
}

impl JobRegistry {
    /// No jobs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a job; one of the same name is replaced.
    #[must_use]
    pub fn job(
        mut self,
        name: &str,
        about: &str,
        options: &[JobOption],
        function: impl Fn(&StreamEnvironment, &Arguments) -> FunctionResult + Send + Sync + 'static,
    ) -> Self {
        self.jobs.insert(
            name.to_owned(),
            RegisteredJob {
                name: name.to_owned(),
                about: about.to_owned(),
                options: options.to_vec(),
                function: Arc::new(function),
            },
        );
        self
    }

    /// All jobs, by name.
    pub fn jobs(&self) -> impl Iterator<Item = &RegisteredJob> {
        self.jobs.values()
    }

    /// The job of a name.
    pub fn get(&self, name: &str) -> Result<&RegisteredJob, JobError> {
        self.jobs.get(name).ok_or_else(|| JobError::Unknown {
            name: name.to_owned(),
            suggestion: nearest(name, self.jobs.keys().map(String::as_str)),
            known: self.jobs.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// Builds the graph that a client submits. `settings` turns the keys that the job function set into settings.
    pub fn graph(
        &self,
        name: &str,
        arguments: &Arguments,
        settings: impl FnOnce(&[(String, String)]) -> Result<JobSettings, JobError>,
        submission: Submission,
    ) -> Result<JobGraph, JobError> {
        let job = self.get(name)?;
        job.check(arguments)?;
        let builder = job.declare(arguments)?;
        let settings = settings(&builder.keys)?;
        let plan = builder.logical.plan(&settings);
        let graph = JobGraph {
            job: submission.job,
            name: builder.name.unwrap_or_else(|| name.to_owned()),
            registered: name.to_owned(),
            arguments: arguments.values().clone(),
            build: submission.build,
            vertices: plan.vertices,
            edges: plan.edges,
            settings,
            start_from: submission.start_from,
        };
        graph.validate()?;
        Ok(graph)
    }

    /// Declares a submitted job again.
    pub(crate) fn declare(&self, graph: &JobGraph) -> Result<Builder, JobError> {
        self.get(&graph.registered)?
            .declare(&Arguments::new(graph.arguments.clone()))
    }
}

impl RegisteredJob {
    fn check(&self, arguments: &Arguments) -> Result<(), JobError> {
        for name in arguments.values().keys() {
            if !self.options.iter().any(|option| option.name == name) {
                let known = self.options.iter().map(|o| format!("--{}", o.name));
                return Err(super::ArgumentError::Unknown {
                    job: self.name.clone(),
                    name: name.clone(),
                    suggestion: nearest(name, self.options.iter().map(|o| o.name)),
                    known: known.collect::<Vec<_>>().join(", "),
                }
                .into());
            }
        }
        Ok(())
    }

    fn declare(&self, arguments: &Arguments) -> Result<Builder, JobError> {
        let environment = StreamEnvironment::new();
        (self.function)(&environment, arguments).map_err(|source| JobError::Function {
            name: self.name.clone(),
            source: source.into(),
        })?;
        environment
            .into_builder()
            .ok_or_else(|| JobError::Function {
                name: self.name.clone(),
                source: super::FunctionErrorSource(
                    "the job function keeps a stream after its end".into(),
                ),
            })
    }
}

/// The most similar of some names, when it is similar at all.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(name.len()) / 2)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}
