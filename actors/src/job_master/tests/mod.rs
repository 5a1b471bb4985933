//! JobMasters under the real JobManager, with scripted TaskManagers and coordinators, under a paused clock.

mod ends;
mod restarts;
mod slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use perennial_config::RestartStrategy;

use crate::checkpoint_coordinator::CoordinatorEvent;
use crate::clock::Instant;
use crate::job_manager::JobManagerEnd;
use crate::model::message::{
    ClientRequest, ClientResponse, PreparedOutput, TaskOutcome, ToJobManager, ToTaskManager,
};
use crate::model::*;
use crate::testing::cluster::{Cluster, until};
use crate::testing::graph;
use crate::testing::task_manager::{Behave, Behaviour, FakeTaskManager, io, running};

const JOB: JobId = JobId(7);

/// Source and keyed consumer, parallelism 3: 6 tasks in one region.
fn keyed() -> JobGraph {
    graph(&[3, 3], &[(0, 1, Exchange::Hash)])
}

/// The first `count` deployments of vertex 1 subtask 0 fail like this.
fn failing(count: u32, behaviour: Behaviour) -> Behave {
    let left = AtomicU32::new(count);
    Arc::new(move |task| {
        let is_it = task.attempt.vertex == VertexId(1) && task.attempt.subtask == SubtaskIndex(0);
        let fails = is_it
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok();
        if fails {
            behaviour.clone()
        } else {
            Behaviour::Run
        }
    })
}
