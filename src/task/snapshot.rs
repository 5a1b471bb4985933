//! A TaskManager's part of a checkpoint: gathers what its subtasks captured, has at most one object written, acknowledges once.
//!
//! Invariant: an acknowledgement leaves only after every byte that it names is durable.

mod write;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use perennial_actors::checkpoint::StoreFactory;
use perennial_actors::fault::{FaultPlace, FaultPoints, FaultSite};
use perennial_actors::model::message::CheckpointPlan;
use perennial_actors::model::{
    Attempt, CheckpointBarrier, CheckpointId, ExecutionAttemptId, InstanceId, JobId, LeaderEpoch,
};
use perennial_actors::{CheckpointReply, DeclinedCheckpoint};
use tokio::runtime::Handle;
use write::{discard, write};

use crate::operator::{OperatorCapture, TaskInfo};
use crate::state::CapturedState;

/// One subtask's captured state.
pub(crate) struct SubtaskSnapshot {
    pub(crate) info: Arc<TaskInfo>,
    pub(crate) barrier: CheckpointBarrier,
    pub(crate) captures: Vec<OperatorCapture>,
    pub(crate) keyed: Vec<(usize, CapturedState)>,
    pub(crate) longest_pause_us: u64,
    pub(crate) alignment_us: u64,
}

/// Takes what tasks captured. Never blocks.
pub(crate) trait SnapshotSink: Send + Sync {
    /// A complete part.
    fn deliver(&self, snapshot: SubtaskSnapshot);
    /// The subtask cannot deliver.
    fn decline(&self, attempt: ExecutionAttemptId, checkpoint: CheckpointId, reason: String);
}

type Key = (JobId, CheckpointId);

/// A subtask's part, or why there is none.
type Part = Result<SubtaskSnapshot, String>;

/// When an attempt was deployed. A later leader, or a coordinator that took the place of a broken one, hands out again the numbers that its
/// predecessor left undecided: it does so to attempts of a later wave.
type Wave = (LeaderEpoch, Attempt);

fn wave(attempt: &ExecutionAttemptId) -> Wave {
    (attempt.epoch, attempt.attempt)
}

/// Checkpoints of one job whose parts may wait for their plan. A barrier can overtake the plan, which comes over another connection;
/// more than the few that a coordinator has under way are left over from somewhere and go, the oldest first.
const EARLY_CHECKPOINTS_MAX: usize = 8;

struct Collector {
    plan: CheckpointPlan,
    parts: BTreeMap<ExecutionAttemptId, SubtaskSnapshot>,
    reply: CheckpointReply,
}

/// What is collected and written now.
#[derive(Default)]
struct Collecting {
    /// Of the checkpoints under way; bounded by the coordinators' `max-concurrent-checkpoints`.
    collectors: BTreeMap<Key, Collector>,
    /// Parts that came before their plan.
    early: BTreeMap<Key, BTreeMap<ExecutionAttemptId, Part>>,
    /// The latest wave of each job that a plan was for, and the highest number that was planned or aborted since. Plans come in order: only
    /// for a higher one, or to a later wave, may a plan still come.
    reached: BTreeMap<JobId, (Wave, CheckpointId)>,
    /// Being written; true when aborted meanwhile.
    writing: BTreeMap<Key, bool>,
}

impl Collecting {
    /// A plan for a wave, or an abort, which is for the wave of the parts that are there.
    fn reach(&mut self, (job, checkpoint): Key, planned: Option<Wave>) {
        const NONE: Wave = (LeaderEpoch(0), Attempt(0));
        let early = self.early.get(&(job, checkpoint));
        let planned = planned.or_else(|| early?.keys().map(wave).max());
        let reached = self
            .reached
            .entry(job)
            .or_insert((planned.unwrap_or(NONE), checkpoint));
        match planned {
            Some(planned) if planned > reached.0 => *reached = (planned, checkpoint),
            Some(_) | None => reached.1 = reached.1.max(checkpoint),
        }
        let (latest, highest) = *reached;
        self.early.retain(|(owner, number), parts| {
            if *owner == job && *number <= highest {
                parts.retain(|attempt, _| wave(attempt) > latest);
            }
            !parts.is_empty()
        });
    }

    fn is_early(&self, (job, checkpoint): Key, attempt: ExecutionAttemptId) -> bool {
        self.reached
            .get(&job)
            .is_none_or(|(latest, highest)| checkpoint > *highest || wave(&attempt) > *latest)
    }

    fn hold(&mut self, key: Key, attempt: ExecutionAttemptId, part: Part) {
        self.early.entry(key).or_default().insert(attempt, part);
        let of_job = self.early.keys().filter(|(job, _)| *job == key.0);
        if of_job.clone().count() > EARLY_CHECKPOINTS_MAX
            && let Some(oldest) = of_job.copied().next()
        {
            self.early.remove(&oldest);
        }
    }
}

/// Gathers and writes.
pub(crate) struct SnapshotWriter {
    collecting: Arc<Mutex<Collecting>>,
    stores: Arc<dyn StoreFactory>,
    instance: InstanceId,
    handle: Handle,
    faults: FaultPoints,
}

impl SnapshotWriter {
    pub(crate) fn new(
        stores: Arc<dyn StoreFactory>,
        instance: InstanceId,
        handle: Handle,
        faults: FaultPoints,
    ) -> Self {
        Self {
            collecting: Arc::default(),
            stores,
            instance,
            handle,
            faults,
        }
    }

    /// Begins to collect; see [`perennial_actors::TaskRunner::plan_checkpoint`].
    pub(crate) fn plan(&self, plan: CheckpointPlan, reply: CheckpointReply) {
        let key = (plan.job, plan.barrier.checkpoint);
        let mut collecting = lock(&self.collecting);
        let latest = |plan: &CheckpointPlan| plan.attempts.iter().map(wave).max();
        let planned = latest(&plan);
        // What a former leader or a coordinator that broke began is nobody's any more.
        collecting
            .collectors
            .retain(|(job, _), other| *job != key.0 || latest(&other.plan) >= planned);
        let early = collecting.early.remove(&key).unwrap_or_default();
        collecting.reach(key, planned);
        let collector = Collector {
            plan,
            parts: BTreeMap::new(),
            reply,
        };
        collecting.collectors.insert(key, collector);
        drop(collecting);
        for (attempt, part) in early {
            self.take(key, attempt, part);
        }
    }

    /// Stops collecting. What is being written is deleted once it is there.
    pub(crate) fn abort(&self, job: JobId, checkpoint: CheckpointId) {
        let key = (job, checkpoint);
        let mut collecting = lock(&self.collecting);
        collecting.collectors.remove(&key);
        collecting.reach(key, None);
        if let Some(is_aborted) = collecting.writing.get_mut(&key) {
            *is_aborted = true;
        }
    }

    /// Stops collecting everything of a job.
    pub(crate) fn release(&self, job: JobId) {
        let mut collecting = lock(&self.collecting);
        collecting.collectors.retain(|(owner, _), _| *owner != job);
        collecting.early.retain(|(owner, _), _| *owner != job);
        collecting.reached.remove(&job);
    }

    fn take(&self, key: Key, attempt: ExecutionAttemptId, part: Part) {
        let mut collecting = lock(&self.collecting);
        let Some(collector) = collecting.collectors.get_mut(&key) else {
            if collecting.is_early(key, attempt) {
                collecting.hold(key, attempt, part);
            }
            // Else the checkpoint was aborted, or declined by another subtask.
            return;
        };
        if !collector.plan.attempts.contains(&attempt) {
            // A former attempt's.
            return;
        }
        let refusal = match part {
            Ok(snapshot) => {
                collector.parts.insert(attempt, snapshot);
                if collector.parts.len() < collector.plan.attempts.len() {
                    return;
                }
                None
            }
            Err(reason) => Some(DeclinedCheckpoint {
                attempt: Some(attempt),
                reason,
            }),
        };
        let Some(collector) = collecting.collectors.remove(&key) else {
            return;
        };
        match refusal {
            Some(declined) => {
                drop(collecting);
                (collector.reply)(Err(declined));
            }
            None => {
                collecting.writing.insert(key, false);
                drop(collecting);
                self.seal(key, collector);
            }
        }
    }

    fn seal(&self, key: Key, collector: Collector) {
        let stores = self.stores.clone();
        let instance = self.instance;
        let collecting = self.collecting.clone();
        let faults = self.faults.clone();
        self.handle.spawn(async move {
            let Collector { plan, parts, reply } = collector;
            let place = FaultPlace::Job(plan.job);
            let result = match faults.reach(FaultSite::BeforeUpload, place).await {
                Ok(()) => write(stores.as_ref(), instance, &plan, parts, &faults).await,
                Err(error) => Err(error.to_string()),
            };
            let reached = faults.reach(FaultSite::AfterUploadBeforeAck, place).await;
            let result = result.and_then(|ack| match reached {
                Ok(()) => Ok(ack),
                Err(error) => Err(error.to_string()),
            });
            let is_aborted = lock(&collecting).writing.remove(&key).unwrap_or(false);
            if is_aborted {
                // Nobody was told of the objects, so nobody can refer to them.
                if let Ok(ack) = &result {
                    discard(stores.as_ref(), &plan, &ack.objects).await;
                }
                return;
            }
            reply(result.map_err(|reason| DeclinedCheckpoint {
                attempt: None,
                reason,
            }));
        });
    }
}

fn lock(collecting: &Mutex<Collecting>) -> std::sync::MutexGuard<'_, Collecting> {
    collecting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SnapshotSink for SnapshotWriter {
    fn deliver(&self, snapshot: SubtaskSnapshot) {
        let attempt = snapshot.info.attempt;
        let key = (attempt.job, snapshot.barrier.checkpoint);
        self.take(key, attempt, Ok(snapshot));
    }

    fn decline(&self, attempt: ExecutionAttemptId, checkpoint: CheckpointId, reason: String) {
        self.take((attempt.job, checkpoint), attempt, Err(reason));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use perennial_actors::entropy::Entropy;
    use perennial_actors::model::message::CheckpointAck;
    use perennial_actors::model::{
        KeyGroupRange, OperatorId, SnapshotKind, SubtaskIndex, VertexId,
    };
    use perennial_config::Settings;
    use tokio::sync::mpsc;

    use super::*;
    use crate::operator::{NamedList, Redistribution};
    use crate::storage::Stores;

    const DIRECTORY: &str = "memory://snapshot-writer/";

    fn attempt(subtask: u32, number: u32) -> ExecutionAttemptId {
        ExecutionAttemptId {
            job: JobId(7),
            vertex: VertexId(0),
            subtask: SubtaskIndex(subtask),
            epoch: LeaderEpoch(1),
            attempt: Attempt(number),
        }
    }

    fn barrier(checkpoint: u64) -> CheckpointBarrier {
        CheckpointBarrier {
            checkpoint: CheckpointId(checkpoint),
            base: None,
            kind: SnapshotKind::Checkpoint,
            timestamp_ms: 0,
        }
    }

    fn part(attempt: ExecutionAttemptId, checkpoint: u64) -> SubtaskSnapshot {
        let info = TaskInfo {
            attempt,
            job_name: "job".into(),
            parallelism: 2,
            max_parallelism: 2,
            key_groups: KeyGroupRange::of(attempt.subtask, 2, 2),
            operators: vec![(OperatorId::from_uid("o"), "o".into())],
            names: vec!["o".into()],
            buffer_timeout: Duration::ZERO,
            log_bytes_max: 0,
        };
        SubtaskSnapshot {
            info: Arc::new(info),
            barrier: barrier(checkpoint),
            captures: vec![OperatorCapture {
                operator: 0,
                watermark: None,
                is_finished: false,
                lists: vec![NamedList {
                    name: "l".into(),
                    redistribution: Redistribution::Split,
                    items: vec![vec![1; 64]],
                }],
                positions: Vec::new(),
                has_keyed: false,
            }],
            keyed: Vec::new(),
            longest_pause_us: 0,
            alignment_us: 250,
        }
    }

    fn plan(checkpoint: u64, epoch: u64, attempts: &[ExecutionAttemptId]) -> CheckpointPlan {
        CheckpointPlan {
            job: JobId(7),
            epoch: LeaderEpoch(epoch),
            barrier: barrier(checkpoint),
            attempts: attempts.to_vec(),
            directory: DIRECTORY.into(),
            inline_threshold: 0,
        }
    }

    type Answer = Result<CheckpointAck, DeclinedCheckpoint>;

    fn reply() -> (CheckpointReply, mpsc::UnboundedReceiver<Answer>) {
        let (sender, answers) = mpsc::unbounded_channel();
        let reply = Box::new(move |answer| {
            let _gone = sender.send(answer);
        });
        (reply, answers)
    }

    fn writer() -> (SnapshotWriter, Arc<dyn StoreFactory>) {
        let s3 = Settings::default().cluster.s3;
        let stores: Arc<dyn StoreFactory> = Arc::new(Stores::new(s3, Entropy::seeded(1)));
        let writer = SnapshotWriter::new(
            stores.clone(),
            InstanceId(1),
            Handle::current(),
            FaultPoints::default(),
        );
        (writer, stores)
    }

    /// The barrier came through a channel from a TaskManager that was told of the checkpoint earlier. A former attempt's part does not
    /// count.
    #[tokio::test]
    async fn a_part_that_overtakes_its_plan_is_acknowledged() {
        let (writer, _) = writer();
        let (a, b) = (attempt(0, 1), attempt(1, 1));
        writer.deliver(part(a, 3));
        writer.deliver(part(attempt(1, 0), 3));
        let (reply, mut answers) = reply();
        writer.plan(plan(3, 1, &[a, b]), reply);
        writer.deliver(part(b, 3));
        let ack = answers.recv().await.unwrap().unwrap();
        assert_eq!(ack.subtasks.len(), 2);
        assert!(ack.subtasks.iter().all(|s| s.alignment_us == 250));
    }

    /// A leader left numbers up to 9 undecided; its successor begins at 3.
    #[tokio::test]
    async fn a_part_overtakes_its_plan_under_the_next_leader_too() {
        let (writer, _) = writer();
        let (first, _answers) = reply();
        writer.plan(plan(9, 1, &[attempt(0, 1)]), first);
        let next = ExecutionAttemptId {
            epoch: LeaderEpoch(2),
            ..attempt(0, 1)
        };
        writer.deliver(part(next, 3));
        writer.abort(JobId(7), CheckpointId(9));
        let (second, mut answers) = reply();
        writer.plan(plan(3, 2, &[next]), second);
        let ack = answers.recv().await.unwrap().unwrap();
        assert_eq!(ack.subtasks[0].attempt, next);
        writer.deliver(part(attempt(0, 1), 4));
        writer.abort(JobId(7), CheckpointId(4));
        assert!(lock(&writer.collecting).early.is_empty());
    }

    /// As the one before the last, for a subtask that cannot deliver.
    #[tokio::test]
    async fn a_refusal_that_overtakes_its_plan_declines() {
        let (writer, _) = writer();
        let a = attempt(0, 1);
        writer.decline(a, CheckpointId(3), "no".into());
        let (reply, mut answers) = reply();
        writer.plan(plan(3, 1, &[a]), reply);
        assert_eq!(answers.recv().await.unwrap().unwrap_err().attempt, Some(a));
    }

    /// Late parts of decided checkpoints, early ones whose plan never comes, and collectors of a former leader do not pile up.
    #[tokio::test]
    async fn parts_without_a_plan_are_bounded() {
        let (writer, _) = writer();
        for checkpoint in 1..100 {
            writer.deliver(part(attempt(0, 1), checkpoint));
        }
        assert_eq!(lock(&writer.collecting).early.len(), EARLY_CHECKPOINTS_MAX);
        writer.abort(JobId(7), CheckpointId(99));
        writer.deliver(part(attempt(0, 1), 98));
        assert!(lock(&writer.collecting).early.is_empty());
        let (first, mut first_answers) = reply();
        writer.plan(plan(100, 1, &[attempt(0, 1)]), first);
        let (second, _answers) = reply();
        writer.plan(plan(101, 1, &[attempt(0, 2)]), second);
        assert_eq!(lock(&writer.collecting).collectors.len(), 1);
        assert!(
            first_answers.recv().await.is_none(),
            "of a coordinator that broke"
        );
        writer.release(JobId(7));
        assert!(lock(&writer.collecting).collectors.is_empty());
    }

    /// The abort comes after the last part and before the object is there.
    #[tokio::test]
    async fn an_object_of_a_checkpoint_aborted_meanwhile_is_deleted() {
        let (writer, stores) = writer();
        let a = attempt(0, 1);
        let (reply, mut answers) = reply();
        writer.plan(plan(3, 1, &[a]), reply);
        writer.deliver(part(a, 3));
        writer.abort(JobId(7), CheckpointId(3));
        assert!(answers.recv().await.is_none(), "it is not acknowledged");
        let store = stores.open(DIRECTORY).unwrap();
        assert_eq!(store.list("").await.unwrap(), []);
    }
}
