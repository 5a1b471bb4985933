//! The coordinator as an actor with made-up tasks and a store in memory that loses answers, under a paused clock.
//! A run is judged by its events and by what lies in the store.

mod cleanup;
mod completion;
mod ending;
mod leaders;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::checkpoint::io::Ledger;
use crate::checkpoint::testing::*;
use crate::checkpoint::*;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::fault::FaultPoints;
use crate::model::message::*;
use crate::model::*;
use crate::supervision::{Exit, ExpectedExits, classify};

const A: InstanceId = InstanceId(0xa << 96);
const B: InstanceId = InstanceId(0xb << 96);
const DIRECTORY: &str = "memory://checkpoints/job";

/// Hears how coordinators end.
#[derive(Default)]
struct Root(Option<mpsc::UnboundedSender<Exit>>);
impl Actor for Root {
    type Msg = ();
    type State = ();
    type Arguments = ();
    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        _: &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let ended = classify(event, &mut ExpectedExits::default());
        if let (Some((_, exit)), Some(listener)) = (ended, &self.0) {
            listener.send(exit)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Epoch(AtomicU64);
impl EpochGuard for Epoch {
    fn current_epoch(&self) -> BoxFuture<'_, StoreResult<LeaderEpoch>> {
        async { Ok(LeaderEpoch(self.0.load(Ordering::SeqCst))) }.boxed()
    }
}

/// The cluster around coordinators: store and epoch outlive them.
struct World {
    store: Arc<MemoryStore>,
    stores: Arc<MemoryStores>,
    epoch: Arc<Epoch>,
    graph: JobGraph,
    /// Of a former leader.
    history: Vec<CheckpointStatus>,
    faults: FaultPoints,
}

struct Leader {
    handle: CoordinatorHandle,
    events: mpsc::UnboundedReceiver<CoordinatorEvent>,
    seen: Vec<CoordinatorEvent>,
    attempt: u32,
}

impl World {
    fn new() -> Self {
        let stores = Arc::new(MemoryStores::default());
        Self {
            store: stores.at(DIRECTORY),
            stores,
            epoch: Arc::default(),
            graph: graph(2, 8, false),
            history: Vec::new(),
            faults: FaultPoints::default(),
        }
    }

    fn checkpointing(&mut self) -> &mut perennial_config::CheckpointSettings {
        &mut self.graph.settings.checkpointing
    }

    async fn lead(&self, epoch: u64) -> Leader {
        self.lead_under(epoch, Root::default()).await
    }

    async fn lead_under(&self, epoch: u64, root: Root) -> Leader {
        self.epoch.0.fetch_max(epoch, Ordering::SeqCst);
        let (sender, events) = mpsc::unbounded_channel();
        let config = CoordinatorConfig {
            graph: Arc::new(self.graph.clone()),
            epoch: LeaderEpoch(epoch),
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            stores: Arc::clone(&self.stores) as Arc<dyn StoreFactory>,
            guard: Arc::clone(&self.epoch) as Arc<dyn EpochGuard>,
            clock: Clock::starting_at(Duration::from_secs(1_000_000)),
            entropy: Entropy::seeded(epoch),
            history: self.history.clone(),
            events: Arc::new(move |event| {
                let _ = sender.send(event);
            }),
            faults: self.faults.clone(),
        };
        let (root, _) = Actor::spawn(None, root, ()).await.unwrap();
        let (handle, _) = CheckpointCoordinator::spawn(config, root.get_cell())
            .await
            .unwrap();
        Leader {
            handle,
            events,
            seen: Vec::new(),
            attempt: 1,
        }
    }

    fn outcome(&self, n: u64) -> Option<RecordOutcome> {
        self.store.record(n).map(|r| r.outcome)
    }

    fn is_completed(&self, n: u64) -> bool {
        matches!(self.outcome(n), Some(RecordOutcome::Completed(_)))
    }

    fn shared(&self) -> Vec<String> {
        let keys = self.store.keys();
        keys.into_iter()
            .filter(|k| k.starts_with("shared/"))
            .collect()
    }
}

impl Leader {
    fn participants(&self) -> Vec<(InstanceId, Vec<ExecutionAttemptId>)> {
        vec![
            (
                A,
                vec![
                    attempt_of(0, 0, self.attempt),
                    attempt_of(1, 0, self.attempt),
                ],
            ),
            (B, vec![attempt_of(1, 1, self.attempt)]),
        ]
    }

    fn run(&self) {
        self.handle
            .send(CoordinatorMessage::TasksRunning(self.participants()));
    }

    async fn event(&mut self) -> CoordinatorEvent {
        let event = tokio::time::timeout(Duration::from_secs(100_000), self.events.recv())
            .await
            .expect("an event comes")
            .expect("the coordinator lives");
        assert!(self.seen.len() < 5000, "what is waited for does not come");
        self.seen.push(event.clone());
        event
    }

    async fn trigger(&mut self) -> Vec<(InstanceId, CheckpointPlan)> {
        loop {
            if let CoordinatorEvent::Trigger(plans) = self.event().await {
                return plans;
            }
        }
    }

    async fn completed(&mut self) -> CheckpointId {
        loop {
            if let CoordinatorEvent::Completed { checkpoint, .. } = self.event().await {
                return checkpoint;
            }
        }
    }

    async fn aborted(&mut self) -> (CheckpointId, String) {
        loop {
            if let CoordinatorEvent::Aborted { checkpoint, reason } = self.event().await {
                return (checkpoint, reason);
            }
        }
    }

    async fn fenced(&mut self) -> LeaderEpoch {
        loop {
            if let CoordinatorEvent::Fenced { epoch } = self.event().await {
                return epoch;
            }
        }
    }

    fn ack(&self, stores: &MemoryStores, plans: &[(InstanceId, CheckpointPlan)]) {
        for (instance, plan) in plans {
            self.handle.send(CoordinatorMessage::Ack {
                instance: *instance,
                ack: Box::new(ack_for(stores, *instance, plan)),
            });
        }
    }

    /// One whole checkpoint.
    async fn checkpoint(&mut self, world: &World) -> CheckpointId {
        let plans = self.trigger().await;
        self.ack(&world.stores, &plans);
        self.completed().await
    }

    async fn choose(
        &self,
        damaged: Vec<(CheckpointId, String)>,
    ) -> Result<RestoreChoice, FailureKind> {
        let (reply, answer) = oneshot::channel();
        self.handle
            .send(CoordinatorMessage::ChooseRestore { damaged, reply });
        answer.await.unwrap()
    }

    async fn restored(&self) -> Option<u64> {
        let choice = self.choose(vec![]).await.unwrap();
        choice.snapshot.map(|s| s.manifest.checkpoint.0)
    }

    fn savepoint(
        &self,
        kind: SnapshotKind,
        directory: Option<&str>,
    ) -> oneshot::Receiver<Result<String, String>> {
        let (reply, answer) = oneshot::channel();
        self.handle.send(CoordinatorMessage::Savepoint {
            kind,
            directory: directory.map(str::to_owned),
            reply,
        });
        answer
    }

    fn suspend(&self) {
        self.handle.send(CoordinatorMessage::Suspend {
            reason: "a task failed".into(),
        });
    }

    async fn terminate(&self, state: JobState) {
        let (reply, answer) = oneshot::channel();
        self.handle.send(CoordinatorMessage::Terminate {
            state,
            message: None,
            reply,
        });
        answer.await.unwrap();
    }

    async fn status(&self) -> Vec<CheckpointStatus> {
        let (reply, answer) = oneshot::channel();
        self.handle.send(CoordinatorMessage::Status(reply));
        answer.await.unwrap()
    }
}

/// What a TaskManager would answer: full state, or group by group what changed; the object is written first.
fn ack_for(stores: &MemoryStores, instance: InstanceId, plan: &CheckpointPlan) -> CheckpointAck {
    let n = plan.barrier.checkpoint;
    let wave = plan.attempts[0].attempt;
    let key = object_key(plan.epoch, n, wave, instance);
    stores.at(&plan.directory).insert(&key, vec![0; 64]);
    let subtasks = plan
        .attempts
        .iter()
        .map(|attempt| {
            let keyed = (attempt.vertex.0 == 1).then(|| {
                let range = KeyGroupRange::of(attempt.subtask, 2, 8);
                let all: Vec<u16> = range.iter().map(|g| g.0).collect();
                let (kind, groups, length) = match plan.barrier.base {
                    None => (SegmentKind::Full, all, 40),
                    Some(_) => (SegmentKind::Delta, vec![all[0]], 2),
                };
                let data = DataRef::Object {
                    object: 0,
                    offset: 0,
                    length,
                };
                segment(n.0, kind, groups, data)
            });
            let uid = if attempt.vertex.0 == 1 {
                "count"
            } else {
                "source"
            };
            let mut operator = operator_ack(uid, attempt.subtask.0, keyed);
            operator.state.positions = vec![("p0".into(), n.0 * 100)];
            SubtaskAck {
                attempt: *attempt,
                operators: vec![operator],
                longest_pause_us: 7,
                alignment_us: 1,
            }
        })
        .collect();
    CheckpointAck {
        job: JOB,
        checkpoint: n,
        objects: vec![object(&key, 64)],
        subtasks,
    }
}
