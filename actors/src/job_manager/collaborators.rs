//! What a JobMaster is given in production: the real checkpoint coordinator, and the assignment of snapshots to subtasks.
//!
//! Invariant: a job with a `Terminal` record gets no coordinator, and leaves nothing that it does not keep. It decides nothing else.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::checkpoint::io::{Ledger, clear_ended};
use crate::checkpoint::{EpochGuard, RestorePlan, Store, StoreError, StoreFactory, terminal_state};
use crate::checkpoint_coordinator::{CheckpointCoordinator, CoordinatorConfig, RestoredSnapshot};
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::failover::SubtaskId;
use crate::fault::FaultPoints;
use crate::job_master::{
    AssignedState, CoordinatorContext, CoordinatorSpawner, StartedCoordinator,
};
use crate::model::{FailureKind, JobGraph, SubtaskIndex};

/// Starts real coordinators, whose records lie in `<checkpoint directory of the job>/<job-id>`.
#[must_use]
pub fn store_coordinators(
    stores: Arc<dyn StoreFactory>,
    guard: Arc<dyn EpochGuard>,
    clock: Clock,
    entropy: Entropy,
    faults: FaultPoints,
) -> CoordinatorSpawner {
    Arc::new(move |context: CoordinatorContext| {
        let (stores, guard, entropy) = (Arc::clone(&stores), Arc::clone(&guard), entropy.clone());
        let started: BoxFuture<'static, _> = Box::pin(start(
            context,
            stores,
            guard,
            clock,
            entropy,
            faults.clone(),
        ));
        started
    })
}

async fn start(
    context: CoordinatorContext,
    stores: Arc<dyn StoreFactory>,
    guard: Arc<dyn EpochGuard>,
    clock: Clock,
    entropy: Entropy,
    faults: FaultPoints,
) -> Result<StartedCoordinator, FailureKind> {
    let CoordinatorContext {
        graph,
        epoch,
        history,
        events,
        supervisor,
    } = context;
    let store: Arc<dyn Store> = stores
        .open(&graph.checkpoint_directory())
        .map_err(kind_of)?;
    if let Some((state, message)) = terminal_state(&*store).await.map_err(kind_of)? {
        let ledger = Ledger {
            store,
            guard,
            epoch,
            entropy,
        };
        if let Err(error) = clear_ended(&ledger, graph.settings.checkpointing.retention).await {
            tracing::warn!(job = %graph.job, %error, "what the ended job left is not looked for");
        }
        return Ok(StartedCoordinator::AlreadyEnded { state, message });
    }
    let config = CoordinatorConfig {
        graph,
        epoch,
        store,
        stores,
        guard,
        clock,
        entropy,
        history,
        events,
        faults,
    };
    // The join handle is not needed: what the coordinator writes is settled by its successor, not by its end.
    let (handle, _) = CheckpointCoordinator::spawn(config, supervisor)
        .await
        .map_err(|error| FailureKind::Actor {
            actor: "CheckpointCoordinator".to_owned(),
            message: error.to_string(),
        })?;
    Ok(StartedCoordinator::Ready(Arc::new(move |message| {
        handle.send(message);
    })))
}

/// A store that fails may recover; one that is named wrongly or cannot do what is needed will not.
fn kind_of(error: StoreError) -> FailureKind {
    let message = error.to_string();
    match error {
        StoreError::Invalid { .. } | StoreError::Unsupported { .. } => FailureKind::User {
            message,
            is_unrecoverable: true,
        },
        StoreError::NotFound { .. } | StoreError::Failed { .. } | StoreError::Unknown { .. } => {
            FailureKind::Io { message }
        }
    }
}

/// Gives each subtask of a graph its part of a snapshot.
pub fn assign_snapshot(
    graph: &JobGraph,
    snapshot: &RestoredSnapshot,
) -> Result<AssignedState, FailureKind> {
    let parallelism: Vec<_> = graph.vertices.iter().map(|v| v.parallelism).collect();
    let plan = RestorePlan::new(snapshot, graph, &parallelism)?;
    let mut assigned = AssignedState::default();
    for vertex in &graph.vertices {
        let max = plan.max_parallelism(vertex.id);
        assigned
            .max_parallelism
            .push(max.unwrap_or(vertex.max_parallelism));
        for subtask in (0..vertex.parallelism).map(SubtaskIndex) {
            let id = SubtaskId {
                vertex: vertex.id,
                subtask,
            };
            assigned.tasks.insert(id, plan.task(vertex.id, subtask)?);
        }
    }
    Ok(assigned)
}
