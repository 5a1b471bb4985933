//! Graphs and settings for the tests of this crate.

pub(crate) mod cluster;
mod coordinators;
pub(crate) mod task_manager;

use std::collections::BTreeMap;
use std::time::Duration;

use perennial_config::{CheckpointSettings, JobSettings, RestartSettings, RestartStrategy};

use crate::model::{
    BuildId, EdgeId, Exchange, JobEdge, JobGraph, JobId, JobVertex, OperatorId, OperatorInfo,
    VertexId,
};

/// A job with one operator per vertex.
pub(crate) fn graph(parallelism: &[u32], edges: &[(u32, u32, Exchange)]) -> JobGraph {
    let graph = JobGraph {
        job: JobId(7),
        name: "test".to_owned(),
        registered: "test".to_owned(),
        arguments: BTreeMap::new(),
        build: BuildId("build".to_owned()),
        vertices: parallelism
            .iter()
            .enumerate()
            .map(|(i, parallelism)| {
                let uid = format!("v{i}");
                JobVertex {
                    id: VertexId(i as u32),
                    name: uid.clone(),
                    parallelism: *parallelism,
                    max_parallelism: 128,
                    is_max_parallelism_set: false,
                    operators: vec![OperatorInfo {
                        id: OperatorId::from_uid(&uid),
                        uid: uid.clone(),
                        name: uid,
                        is_transactional: false,
                    }],
                }
            })
            .collect(),
        edges: edges
            .iter()
            .enumerate()
            .map(|(i, (source, target, exchange))| JobEdge {
                id: EdgeId(i as u32),
                source: VertexId(*source),
                target: VertexId(*target),
                exchange: *exchange,
            })
            .collect(),
        settings: job_settings(),
        start_from: None,
    };
    graph.validate().unwrap();
    graph
}

/// Fixed delay of 3 x 1 s, checkpoints every second.
pub(crate) fn job_settings() -> JobSettings {
    JobSettings {
        checkpointing: CheckpointSettings {
            interval: Some(Duration::from_secs(1)),
            directory: "memory://checkpoints".to_owned(),
            ..JobSettings::default().checkpointing
        },
        restart: RestartSettings {
            strategy: RestartStrategy::FixedDelay {
                attempts: 3,
                delay: Duration::from_secs(1),
            },
            is_strict: false,
        },
        cancellation_timeout: Duration::from_secs(30),
        slot_request_timeout: Duration::from_secs(60),
        ..JobSettings::default()
    }
}
