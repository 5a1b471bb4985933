//! JobManager's and TaskManager's ends together, over a network in memory whose faults the tests switch, under a paused clock.

mod clients;
mod injections;
mod leaders;
mod losses;
mod tasks;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial_config::Secret;
use tokio::time::Instant;

use super::fakes::*;
use super::*;
use crate::client::{CLIENT_IDLE_MAX, CLIENT_SILENCE_MAX, Client, probe};
use crate::fault::{ActorFault, NodeFault, PeerFault, TaskManagerInjection};
use crate::model::message::*;
use crate::model::*;
use crate::peer::*;
use crate::rpc::TcpTransport;
use crate::task_runner::*;

fn failure(attempt: ExecutionAttemptId) -> TaskFailure {
    TaskFailure {
        attempt: Some(attempt),
        vertex: Some("source".to_owned()),
        operator: Some("map".to_owned()),
        position: Some("split@17".to_owned()),
        kind: FailureKind::User {
            message: "bad record".to_owned(),
            is_unrecoverable: false,
        },
    }
}

fn ended(attempt: ExecutionAttemptId, outcome: TaskOutcome) -> ToJobManager {
    ToJobManager::TaskEnded { attempt, outcome }
}
