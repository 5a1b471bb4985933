//! The checkpoint coordinators of a scripted cluster.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::checkpoint_coordinator::{
    CoordinatorEvent, CoordinatorEvents, CoordinatorMessage, RestoreChoice, RestoredSnapshot,
};
use crate::failover::SubtaskId;
use crate::job_master::AssignedState;
use crate::model::message::CheckpointPlan;
use crate::model::*;

/// The coordinators of all jobs, as one script.
#[derive(Default)]
pub(crate) struct Coordinators(pub(crate) Mutex<Script>);

#[derive(Default)]
pub(crate) struct Script {
    /// What was asked, in short.
    pub(crate) log: Vec<String>,
    /// The newest completed checkpoint; the ladder is all below.
    pub(crate) newest: u64,
    /// Under which leader those were completed, if not the first.
    pub(crate) completed_by: Option<LeaderEpoch>,
    /// Answers of the next choices.
    pub(crate) choice_errors: Vec<FailureKind>,
    /// Failures of the next starts.
    pub(crate) start_errors: Vec<FailureKind>,
    /// Keep savepoints pending.
    pub(crate) holds_savepoints: bool,
    pub(crate) pending: Vec<oneshot::Sender<Result<String, String>>>,
    /// Trigger final checkpoints, and leave it to the test whether they complete.
    pub(crate) holds_finals: bool,
    /// Leave choices without an answer.
    pub(crate) holds_choices: bool,
    choosing: Vec<oneshot::Sender<Result<RestoreChoice, FailureKind>>>,
    /// Answered with the final checkpoint.
    drained: Vec<oneshot::Sender<Result<String, String>>>,
    pub(crate) events: Option<CoordinatorEvents>,
    participants: Vec<(InstanceId, Vec<ExecutionAttemptId>)>,
    damaged: BTreeSet<u64>,
    pub(crate) terminated: Option<(JobState, Option<String>)>,
}

impl Coordinators {
    pub(crate) fn emit(&self, event: CoordinatorEvent) {
        let events = self.0.lock().unwrap().events.clone().unwrap();
        events(event);
    }

    /// Triggers, completes and tells.
    fn complete(&self, job: JobId, kind: SnapshotKind) {
        let (events, plans, checkpoint, is_held) = {
            let mut script = self.0.lock().unwrap();
            let checkpoint = CheckpointId(script.newest + 1);
            let is_held = script.holds_finals && kind == SnapshotKind::Final;
            if !is_held {
                script.newest += 1;
            }
            let plans: Vec<_> = script
                .participants
                .iter()
                .map(|(instance, attempts)| {
                    let plan = CheckpointPlan {
                        job,
                        epoch: LeaderEpoch(1),
                        barrier: CheckpointBarrier {
                            checkpoint,
                            base: None,
                            kind,
                            timestamp_ms: 0,
                        },
                        attempts: attempts.clone(),
                        directory: String::new(),
                        inline_threshold: 0,
                    };
                    (*instance, plan)
                })
                .collect();
            (script.events.clone().unwrap(), plans, checkpoint, is_held)
        };
        events(CoordinatorEvent::Trigger(plans));
        if !is_held {
            events(CoordinatorEvent::Completed { checkpoint, kind });
        }
    }

    pub(super) fn receive(&self, job: JobId, message: CoordinatorMessage) {
        let log = |text: String| self.0.lock().unwrap().log.push(text);
        match message {
            CoordinatorMessage::TasksRunning(participants) => {
                let mut count = 0;
                for (_, attempts) in &participants {
                    count += attempts.len();
                }
                log(format!("running {count}"));
                self.0.lock().unwrap().participants = participants;
            }
            CoordinatorMessage::Suspend { .. } => {
                log("suspend".to_owned());
                let pending = std::mem::take(&mut self.0.lock().unwrap().pending);
                for reply in pending {
                    let _ = reply.send(Err("suspended".to_owned()));
                }
            }
            CoordinatorMessage::Ack { .. } => log("ack".to_owned()),
            CoordinatorMessage::Declined { .. } => log("declined".to_owned()),
            CoordinatorMessage::Hold => {
                log("hold".to_owned());
                self.emit(CoordinatorEvent::Held);
            }
            CoordinatorMessage::AllAwaitingFinal => {
                log("final".to_owned());
                for reply in std::mem::take(&mut self.0.lock().unwrap().drained) {
                    let _ = reply.send(Ok("memory://savepoint".to_owned()));
                }
                self.complete(job, SnapshotKind::Final);
            }
            CoordinatorMessage::Savepoint { kind, reply, .. } => {
                log(format!("savepoint {kind:?}"));
                if self.0.lock().unwrap().holds_savepoints {
                    return self.0.lock().unwrap().pending.push(reply);
                }
                if kind == SnapshotKind::Final {
                    return self.0.lock().unwrap().drained.push(reply);
                }
                let _ = reply.send(Ok("memory://savepoint".to_owned()));
                self.complete(job, kind);
            }
            CoordinatorMessage::ChooseRestore { damaged, reply } => {
                let mut script = self.0.lock().unwrap();
                let ids: Vec<_> = damaged.iter().map(|(id, _)| id.0).collect();
                script.log.push(format!("choose {ids:?}"));
                script.damaged.extend(&ids);
                if script.holds_choices {
                    return script.choosing.push(reply);
                }
                if !script.choice_errors.is_empty() {
                    let error = script.choice_errors.remove(0);
                    let _ = reply.send(Err(error));
                    return;
                }
                let chosen = (1..=script.newest)
                    .rev()
                    .find(|id| !script.damaged.contains(id));
                let skipped = ids.iter().map(|id| format!("chk-{id} damaged")).collect();
                let epoch = script.completed_by.unwrap_or(LeaderEpoch(1));
                let _ = reply.send(Ok(RestoreChoice {
                    snapshot: chosen.map(|id| RestoredSnapshot {
                        manifest: Arc::new(manifest(job, id, epoch)),
                        directory: "memory://checkpoints".to_owned(),
                        is_own_checkpoint: true,
                    }),
                    skipped,
                }));
            }
            CoordinatorMessage::LastCompleted(reply) => {
                let newest = self.0.lock().unwrap().newest;
                let _ = reply.send((newest > 0).then_some(CheckpointId(newest)));
            }
            CoordinatorMessage::Terminate {
                state,
                message,
                reply,
            } => {
                log(format!("terminate {state}"));
                self.0.lock().unwrap().terminated = Some((state, message));
                let _ = reply.send(());
            }
            CoordinatorMessage::Status(reply) => {
                let _ = reply.send(Vec::new());
            }
            CoordinatorMessage::Fault(_) => log("fault".to_owned()),
        }
    }
}

fn manifest(job: JobId, checkpoint: u64, epoch: LeaderEpoch) -> Manifest {
    Manifest {
        job,
        job_name: String::new(),
        checkpoint: CheckpointId(checkpoint),
        epoch,
        kind: SnapshotKind::Checkpoint,
        timestamp_ms: 0,
        duration_ms: 0,
        operators: Vec::new(),
        objects: Vec::new(),
    }
}

pub(super) fn assign(
    graph: &JobGraph,
    snapshot: &RestoredSnapshot,
) -> Result<AssignedState, FailureKind> {
    let mut assigned = AssignedState::default();
    for vertex in &graph.vertices {
        assigned.max_parallelism.push(vertex.max_parallelism);
        for i in 0..vertex.parallelism {
            let id = SubtaskId {
                vertex: vertex.id,
                subtask: SubtaskIndex(i),
            };
            assigned.tasks.insert(
                id,
                TaskRestore {
                    checkpoint: snapshot.manifest.checkpoint,
                    may_inherit: false,
                    directory: snapshot.directory.clone(),
                    operators: Vec::new(),
                    objects: Vec::new(),
                    allow_non_restored_state: false,
                },
            );
        }
    }
    Ok(assigned)
}
