//! TaskManagers that answer by script.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::checkpoint::testing::operator_ack;
use crate::model::message::{
    CheckpointAck, Registration, SubtaskAck, TaskOutcome, ToJobManager, ToTaskManager,
};
use crate::model::*;
use crate::peer::{PeerEvent, PeerEvents, PeerHandle};

/// What a task of a fake TaskManager does after its deployment.
pub(crate) type Behave = Arc<dyn Fn(&TaskDeployment) -> Behaviour + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Behaviour {
    /// Runs until stopped.
    Run,
    /// Runs, then all input is processed.
    RunToTheEnd,
    /// Restores and fails, with or without having run.
    FailRunning(FailureKind),
    FailRestoring(FailureKind),
    /// Says nothing.
    Hang,
}

/// A TaskManager that answers by script, 1 ms later.
#[derive(Clone)]
pub(crate) struct FakeTaskManager {
    pub(crate) location: TaskManagerLocation,
    events: PeerEvents,
    pub(crate) state: Arc<Mutex<FakeState>>,
}

pub(crate) struct FakeState {
    pub(crate) received: Vec<ToTaskManager>,
    pub(crate) deployments: Vec<TaskDeployment>,
    pub(crate) running: BTreeSet<ExecutionAttemptId>,
    finish_on: Option<CheckpointId>,
    graph: Option<JobGraph>,
    behave: Behave,
    /// Does not react to `Stop`.
    pub(crate) is_stuck: bool,
    /// It does not answer when a job is released.
    pub(crate) keeps_jobs: bool,
    /// Receives nothing, as on a cut link.
    pub(crate) is_deaf: bool,
    pub(crate) closed: Option<String>,
}

impl FakeTaskManager {
    pub(crate) fn new(events: PeerEvents, instance: u128, behave: Behave) -> Self {
        Self {
            location: TaskManagerLocation {
                resource: ResourceId(format!("tm-{instance}")),
                instance: InstanceId(instance),
                data_address: String::new(),
            },
            events,
            state: Arc::new(Mutex::new(FakeState {
                received: Vec::new(),
                deployments: Vec::new(),
                running: BTreeSet::new(),
                finish_on: None,
                graph: None,
                behave,
                is_stuck: false,
                keeps_jobs: false,
                is_deaf: false,
                closed: None,
            })),
        }
    }

    pub(crate) fn register(&self, slots: u32) {
        let running = self.state.lock().unwrap().running.iter().copied().collect();
        let (this, closing) = (self.clone(), self.clone());
        (self.events)(PeerEvent::Registered {
            registration: Registration {
                location: self.location.clone(),
                slots,
                build: BuildId("build".to_owned()),
                running,
                is_chaos_enabled: true,
            },
            peer: PeerHandle {
                send: Arc::new(move |message| this.receive(message)),
                close: Arc::new(move |why| closing.state.lock().unwrap().closed = Some(why)),
                fault: Arc::new(|_| {}),
            },
        });
    }

    /// The same process on another leader.
    pub(crate) fn moved_to(&self, events: PeerEvents) -> Self {
        Self {
            events,
            ..self.clone()
        }
    }

    pub(crate) fn lose(&self) {
        self.state.lock().unwrap().is_deaf = true;
        (self.events)(PeerEvent::Lost {
            instance: self.location.instance,
            cause: FailureKind::TaskManagerLost {
                resource: self.location.resource.clone(),
                instance: self.location.instance,
                message: "connection refused".to_owned(),
            },
        });
    }

    pub(crate) fn report(&self, message: ToJobManager) {
        if self.state.lock().unwrap().is_deaf {
            return;
        }
        (self.events)(PeerEvent::Message {
            instance: self.location.instance,
            message,
        });
    }

    pub(crate) fn end(&self, attempt: ExecutionAttemptId, outcome: TaskOutcome) {
        self.state.lock().unwrap().running.remove(&attempt);
        self.report(ToJobManager::TaskEnded { attempt, outcome });
    }

    pub(crate) fn fail(&self, attempt: ExecutionAttemptId, kind: FailureKind) {
        let failure = TaskFailure::of_attempt(attempt, kind);
        self.end(attempt, TaskOutcome::Failed(Box::new(failure)));
    }

    pub(crate) fn running(&self) -> Vec<ExecutionAttemptId> {
        self.state.lock().unwrap().running.iter().copied().collect()
    }

    /// Deployments of one wave.
    pub(crate) fn deployed(&self, wave: u32) -> Vec<TaskDeployment> {
        let mut deployments = self.state.lock().unwrap().deployments.clone();
        deployments.retain(|d| d.attempt.attempt == Attempt(wave));
        deployments
    }

    pub(crate) fn has_received(&self, wanted: impl Fn(&ToTaskManager) -> bool) -> bool {
        self.state.lock().unwrap().received.iter().any(wanted)
    }

    fn receive(&self, message: ToTaskManager) {
        let mut state = self.state.lock().unwrap();
        if state.is_deaf {
            return;
        }
        state.received.push(message.clone());
        match message {
            ToTaskManager::Deploy { graph, tasks } => {
                state.graph = Some(*graph);
                for task in tasks {
                    state.deployments.push(task.clone());
                    state.running.insert(task.attempt);
                    let behaviour = (state.behave)(&task);
                    let this = self.clone();
                    tokio::spawn(async move { this.play(task, behaviour).await });
                }
            }
            ToTaskManager::Stop { attempts } | ToTaskManager::Registered { stop: attempts, .. } => {
                if state.is_stuck {
                    return;
                }
                // Answered also for what is not here.
                for attempt in attempts {
                    let this = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        this.end(attempt, TaskOutcome::Canceled);
                    });
                }
            }
            ToTaskManager::TriggerCheckpoint(plan) => {
                match plan.barrier.kind {
                    SnapshotKind::Final | SnapshotKind::StopWithSavepoint => {
                        state.finish_on = Some(plan.barrier.checkpoint);
                    }
                    SnapshotKind::Checkpoint | SnapshotKind::Savepoint => {}
                }
                let (this, graph) = (self.clone(), state.graph.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let subtasks = plan
                        .attempts
                        .iter()
                        .map(|attempt| SubtaskAck {
                            attempt: *attempt,
                            operators: graph
                                .iter()
                                .flat_map(|g| &g.vertices[attempt.vertex.0 as usize].operators)
                                .map(|operator| {
                                    operator_ack(&operator.uid, attempt.subtask.0, None)
                                })
                                .collect(),
                            longest_pause_us: 0,
                            alignment_us: 0,
                        })
                        .collect();
                    this.report(ToJobManager::CheckpointAck(Box::new(CheckpointAck {
                        job: plan.job,
                        checkpoint: plan.barrier.checkpoint,
                        objects: Vec::new(),
                        subtasks,
                    })));
                });
            }
            ToTaskManager::NotifyCheckpointComplete { checkpoint, .. } => {
                if state.finish_on == Some(checkpoint) && !state.is_stuck {
                    for attempt in state.running.clone() {
                        let this = self.clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            this.end(attempt, TaskOutcome::Finished);
                        });
                    }
                }
            }
            ToTaskManager::Drain { .. } => {
                for attempt in state.running.clone() {
                    let this = self.clone();
                    tokio::spawn(async move {
                        this.report(ToJobManager::TaskAwaitingFinal { attempt });
                    });
                }
            }
            ToTaskManager::ReleaseJob { job, .. } => {
                if !state.keeps_jobs {
                    let this = self.clone();
                    tokio::spawn(async move { this.report(ToJobManager::JobReleased { job }) });
                }
            }
            ToTaskManager::NotifyCheckpointAborted { .. }
            | ToTaskManager::HeartbeatRequest { .. }
            | ToTaskManager::InjectFault(_) => {}
        }
    }

    async fn play(&self, task: TaskDeployment, behaviour: Behaviour) {
        let attempt = task.attempt;
        tokio::time::sleep(Duration::from_millis(1)).await;
        if !self.state.lock().unwrap().running.contains(&attempt) {
            return;
        }
        let how = match &task.restore {
            None => RestoredHow::Empty,
            Some(restore) if restore.may_inherit => RestoredHow::InPlace,
            Some(_) => RestoredHow::Loaded,
        };
        let restored = ToJobManager::TaskRestored {
            attempt,
            how,
            micros: 1,
        };
        match behaviour {
            Behaviour::Hang => {}
            Behaviour::FailRestoring(kind) => self.fail(attempt, kind),
            Behaviour::FailRunning(kind) => {
                self.report(restored);
                self.report(ToJobManager::TaskRunning { attempt });
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.fail(attempt, kind);
            }
            Behaviour::Run | Behaviour::RunToTheEnd => {
                self.report(restored);
                self.report(ToJobManager::TaskRunning { attempt });
                self.report(ToJobManager::TaskFirstRecord { attempt });
                if matches!(behaviour, Behaviour::RunToTheEnd) {
                    self.report(ToJobManager::TaskAwaitingFinal { attempt });
                }
            }
        }
    }
}

pub(crate) fn running() -> Behave {
    Arc::new(|_| Behaviour::Run)
}

pub(crate) fn io(message: &str) -> FailureKind {
    FailureKind::Io {
        message: message.to_owned(),
    }
}
