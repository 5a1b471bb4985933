//! The task loop as a step: one bounded piece of work a call, never a wait.
//!
//! Invariant: barriers and the end are handled only when the chain is drained, so that a snapshot never splits the effects of a record
//! or of a watermark. Orders are obeyed in between: none of them looks at what is inside the chain.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use perennial_actors::clock::{Clock, Instant};
use perennial_actors::fault::{ArmedFault, FaultSite, UserFault};
use perennial_actors::model::{
    CheckpointBarrier, CheckpointId, FailureKind, SnapshotKind, TaskFailure,
};
use perennial_actors::{TaskControl, TaskEvent, TaskEvents};

use super::control::{ControlQueue, SharedCounters};
use super::snapshot::{SnapshotSink, SubtaskSnapshot};
use crate::batch::Timestamp;
use crate::operator::{
    CALLS_OF_ONE_STEP_MAX, Flow, Flush, Head, HeadPoll, KeyedStates, Leftover, OperatorCapture,
    OperatorError, Place, Signal, StartContext, TaskContext, TaskFaults, TaskInfo, Work, after,
};
use crate::state::{CaptureProgress, CaptureRequest, CapturedState};

/// Longest time that one step gives to capturing state.
pub(crate) const CAPTURE_SLICE: Duration = Duration::from_micros(200);

/// What outlives a panic of the task: its keyed state, and where it was.
#[derive(Default)]
pub(crate) struct TaskState {
    pub(crate) keyed: KeyedStates,
    pub(crate) place: Place,
}

/// What a step came to.
#[derive(Debug)]
pub(crate) enum Step {
    /// Call again.
    Progress,
    /// Nothing to do until woken, or until this time.
    Wait {
        /// When.
        until: Option<Instant>,
    },
    /// All work is done and committed.
    Finished,
    /// Told to end.
    Canceled,
    /// Cannot go on.
    Failed(Box<TaskFailure>),
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A task that has nothing else to do goes on with a running capture.
fn rest(is_capturing: bool, until: Option<Instant>) -> Step {
    if is_capturing {
        Step::Progress
    } else {
        Step::Wait { until }
    }
}

/// Why the task waited last, for its counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    No,
    Input,
    Output,
}

struct PendingSnapshot {
    barrier: CheckpointBarrier,
    alignment: Duration,
    captures: Vec<OperatorCapture>,
    keyed: Vec<(usize, CapturedState)>,
    keyed_left: usize,
    longest_pause: Duration,
}

/// Everything a task works with besides its head and state.
pub(crate) struct TaskServices {
    pub(crate) info: Arc<TaskInfo>,
    pub(crate) vertex_name: String,
    pub(crate) control: Arc<ControlQueue>,
    pub(crate) counters: Arc<SharedCounters>,
    pub(crate) events: TaskEvents,
    pub(crate) snapshots: Arc<dyn SnapshotSink>,
    pub(crate) clock: Clock,
    pub(crate) faults: TaskFaults,
    /// Whether it has no inputs from other tasks.
    pub(crate) is_source: bool,
}

/// What nodes work with, of a task's own fields besides its head.
macro_rules! context {
    ($task:ident, $state:ident, $now:ident) => {
        TaskContext {
            keyed: &mut $state.keyed,
            place: &mut $state.place,
            now: $now,
            held_up: $task.held_up($now),
            calls_left: CALLS_OF_ONE_STEP_MAX,
            clock: &$task.services.clock,
            records_out: &mut $task.records_out,
            faults: &$task.services.faults,
        }
    };
}

/// One attempt of one subtask.
pub(crate) struct StreamTask {
    head: Box<dyn Head>,
    services: TaskServices,
    pending: VecDeque<PendingSnapshot>,
    /// Whether keyed state has captures to go on with, or old log to forget.
    is_capturing: bool,
    /// The snapshot on whose completion the task ends.
    ending: Option<CheckpointId>,
    is_finishing: bool,
    has_reported_end: bool,
    has_reported_first_record: bool,
    records_in: u64,
    records_out: u64,
    waiting: Waiting,
    last_end: Option<Instant>,
    /// Injected faults that strike at the next record.
    armed: Vec<ArmedFault>,
    /// Injected: user code does not return.
    is_stuck: bool,
    /// Since when the chain is not empty, hence no input asked for; and for how long it was not before.
    held_since: Option<Instant>,
    held_before: Duration,
}

impl StreamTask {
    pub(crate) fn new(head: Box<dyn Head>, services: TaskServices) -> Self {
        Self {
            head,
            services,
            pending: VecDeque::new(),
            is_capturing: false,
            ending: None,
            is_finishing: false,
            has_reported_end: false,
            has_reported_first_record: false,
            records_in: 0,
            records_out: 0,
            waiting: Waiting::No,
            last_end: None,
            armed: Vec::new(),
            is_stuck: false,
            held_since: None,
            held_before: Duration::ZERO,
        }
    }

    /// Opens the operators.
    pub(crate) fn open(&mut self, cx: &mut StartContext<'_>) -> Result<(), OperatorError> {
        self.head.open(cx)
    }

    /// Grants the first credit.
    pub(crate) fn start(&mut self) {
        self.head.start();
    }

    /// Does one bounded piece of work and returns; never waits for a peer, the network or a timer.
    pub(crate) fn step(&mut self, state: &mut TaskState, now: Instant) -> Step {
        if self.is_stuck {
            return Step::Wait { until: None };
        }
        self.account_wait(now);
        let step = match self.try_step(state, now) {
            Ok(step) => step,
            // Tasks that end with a snapshot do so one after the other: a neighbour that is gone has heard of its completion first. If
            // it was lost instead, the snapshot is aborted, and the next step meets the broken channel again.
            Err(OperatorError(kind)) if kind.is_symptom() && self.is_finishing => Step::Finished,
            Err(OperatorError(kind)) if kind.is_symptom() && self.ending.is_some() => {
                self.waiting = Waiting::Input;
                // Its own part of that snapshot may still be on its way.
                rest(self.is_capturing, None)
            }
            // Both were told to end while this one was at work, and the neighbour was quicker.
            Err(OperatorError(kind)) if kind.is_symptom() && self.is_cancelled() => Step::Canceled,
            Err(OperatorError(kind)) => Step::Failed(Box::new(self.failure(state, kind))),
        };
        self.publish(state, now);
        step
    }

    fn is_cancelled(&self) -> bool {
        self.services.control.is_cancelled()
    }

    /// A failure of this task with its place.
    pub(crate) fn failure(&self, state: &TaskState, kind: FailureKind) -> TaskFailure {
        let position = match state.place.work {
            Work::Input => self.head.position(),
            Work::Snapshot(n) => after(
                Some(format!("the snapshot of checkpoint {n}")),
                self.head.reached(),
            ),
            Work::Commit(n) => after(
                Some(format!("the commit of checkpoint {n}")),
                self.head.reached(),
            ),
        };
        let info = &self.services.info;
        TaskFailure {
            attempt: Some(info.attempt),
            vertex: Some(self.services.vertex_name.clone()),
            operator: state
                .place
                .operator
                .and_then(|index| info.names.get(index).cloned()),
            position,
            kind,
        }
    }

    /// What whoever ends the job must settle if the attempt ends here. After a panic too.
    pub(crate) fn leftovers(&mut self) -> Vec<Box<dyn Leftover>> {
        let mut leftovers = Vec::new();
        self.head.leftovers(&mut leftovers);
        leftovers
    }

    /// Ends the attempt's readers and writers. Called once, not after a panic.
    pub(crate) fn close(
        &mut self,
        state: &mut TaskState,
        now: Instant,
    ) -> Result<(), OperatorError> {
        self.services.faults.hit(FaultSite::OnClose)?;
        let mut cx = context!(self, state, now);
        self.head.close(&mut cx)
    }

    fn try_step(&mut self, state: &mut TaskState, now: Instant) -> Result<Step, OperatorError> {
        while let Some(order) = self.services.control.pop() {
            if let Some(end) = self.obey(order, state, now)? {
                return Ok(end);
            }
        }
        self.capture(state)?;
        state.place.work = Work::Input;
        let is_capturing = self.is_capturing;
        let mut cx = context!(self, state, now);
        let flow = self.head.resume(&mut cx)?;
        Self::hold(&mut self.held_since, &mut self.held_before, flow, now);
        match flow {
            Flow::Drained => {}
            Flow::Yielded => {
                self.head.flush(Flush::Due, &mut cx)?;
                return Ok(Step::Progress);
            }
            Flow::Blocked => {
                // What was gathered for other channels leaves before the task sleeps, for who knows how long.
                self.head.flush(Flush::All, &mut cx)?;
                self.waiting = Waiting::Output;
                return Ok(rest(is_capturing, None));
            }
        }
        if self.is_finishing {
            return Ok(Step::Finished);
        }
        let wall_ms = self.services.clock.wall_ms_at(now) as Timestamp;
        if self.head.is_timer_due(&cx, wall_ms) {
            self.head.signal(Signal::ProcessingTime(wall_ms));
            let flow = self.head.resume(&mut cx)?;
            Self::hold(&mut self.held_since, &mut self.held_before, flow, now);
            return Ok(Step::Progress);
        }
        let before = self.records_in;
        match self.head.poll(&mut cx, &mut self.records_in)? {
            HeadPoll::Progress => {
                let has_records = self.records_in > before || self.services.is_source;
                if has_records && !self.armed.is_empty() {
                    return self.strike(state);
                }
                let flow = self.head.resume(&mut cx)?;
                Self::hold(&mut self.held_since, &mut self.held_before, flow, now);
                let step = match flow {
                    Flow::Drained | Flow::Yielded => {
                        self.head.flush(Flush::Due, &mut cx)?;
                        Step::Progress
                    }
                    Flow::Blocked => {
                        self.head.flush(Flush::All, &mut cx)?;
                        self.waiting = Waiting::Output;
                        rest(is_capturing, None)
                    }
                };
                if !self.has_reported_first_record && (self.records_in > 0 || self.records_out > 0)
                {
                    self.services.faults.hit(FaultSite::OnFirstRecord)?;
                }
                Ok(step)
            }
            HeadPoll::Barrier { barrier, alignment } => {
                self.begin_snapshot(barrier, alignment, state, now)?;
                Ok(Step::Progress)
            }
            HeadPoll::Nothing { until } => {
                if self.head.is_aligning() {
                    self.held_since.get_or_insert(now);
                }
                self.head.flush(Flush::All, &mut cx)?;
                let wakeup = self.head.next_wakeup(&cx);
                self.waiting = Waiting::Input;
                Ok(rest(is_capturing, until.into_iter().chain(wakeup).min()))
            }
            HeadPoll::Ended => {
                self.head.flush(Flush::All, &mut cx)?;
                if !self.has_reported_end && self.head.resume(&mut cx)? == Flow::Drained {
                    self.has_reported_end = true;
                    (self.services.events)(TaskEvent::AwaitingFinal);
                }
                self.waiting = Waiting::Input;
                Ok(rest(is_capturing, None))
            }
        }
    }

    fn obey(
        &mut self,
        order: TaskControl,
        state: &mut TaskState,
        now: Instant,
    ) -> Result<Option<Step>, OperatorError> {
        match order {
            TaskControl::Trigger(barrier) => self.head.announce(barrier),
            TaskControl::NotifyComplete(checkpoint) => {
                self.services.faults.hit(FaultSite::OnNotify)?;
                for keyed in state.keyed.iter_mut().flatten() {
                    keyed.confirm(checkpoint);
                    self.is_capturing = true;
                }
                state.place.work = Work::Commit(checkpoint);
                let mut cx = context!(self, state, now);
                self.head.complete(checkpoint, &mut cx)?;
                if self.ending.is_some_and(|ending| ending <= checkpoint) {
                    self.is_finishing = true;
                }
            }
            TaskControl::NotifyAborted(checkpoint) => {
                for keyed in state.keyed.iter_mut().flatten() {
                    keyed.abort(checkpoint);
                    self.is_capturing = true;
                }
                self.pending.retain(|p| p.barrier.checkpoint != checkpoint);
                if self.ending == Some(checkpoint) {
                    self.ending = None;
                }
                self.head.abandon(checkpoint);
            }
            TaskControl::Drain => self.head.drain(),
            TaskControl::Fault(fault) => self.armed.push(fault),
            TaskControl::Cancel => return Ok(Some(Step::Canceled)),
        }
        Ok(None)
    }

    /// Breaks as user code does: within the step, at the operator's place, with records taken and not yet processed.
    fn strike(&mut self, state: &mut TaskState) -> Result<Step, OperatorError> {
        let fault = self.armed.remove(0);
        state.place.operator = Some(fault.operator as usize);
        tracing::warn!(attempt = %self.services.info.attempt, ?fault, "injected fault strikes");
        match fault.fault {
            UserFault::Panic => panic!("{}", fault.message()),
            UserFault::Error { is_unrecoverable } => Err(OperatorError(FailureKind::User {
                message: fault.message(),
                is_unrecoverable,
            })),
            UserFault::Stuck => {
                self.is_stuck = true;
                Ok(Step::Wait { until: None })
            }
        }
    }

    fn begin_snapshot(
        &mut self,
        barrier: CheckpointBarrier,
        alignment: Duration,
        state: &mut TaskState,
        now: Instant,
    ) -> Result<(), OperatorError> {
        let began = self.services.clock.now();
        self.services.faults.hit(FaultSite::OnSnapshot)?;
        if matches!(
            barrier.kind,
            SnapshotKind::Final | SnapshotKind::StopWithSavepoint
        ) {
            self.ending = Some(barrier.checkpoint);
        }
        let mut captures = Vec::new();
        state.place.work = Work::Snapshot(barrier.checkpoint);
        let mut cx = context!(self, state, now);
        self.head.snapshot(&barrier, &mut captures, &mut cx)?;
        let request = CaptureRequest {
            checkpoint: barrier.checkpoint,
            base: barrier.base,
            kind: barrier.kind,
        };
        let mut keyed_left = 0;
        for keyed in state.keyed.iter_mut().flatten() {
            keyed.barrier(request)?;
            keyed_left += 1;
            self.is_capturing = true;
        }
        self.pending.push_back(PendingSnapshot {
            barrier,
            alignment,
            captures,
            keyed: Vec::new(),
            keyed_left,
            longest_pause: self.services.clock.now() - began,
        });
        self.deliver_complete();
        Ok(())
    }

    /// Gives at most about [`CAPTURE_SLICE`] to running captures.
    fn capture(&mut self, state: &mut TaskState) -> Result<(), OperatorError> {
        if !self.is_capturing {
            return Ok(());
        }
        let mut is_idle = true;
        let began = self.services.clock.now();
        for (index, slot) in state.keyed.iter_mut().enumerate() {
            let Some(keyed) = slot else { continue };
            let spent = self.services.clock.now() - began;
            let Some(left) = CAPTURE_SLICE.checked_sub(spent) else {
                is_idle = false;
                break;
            };
            if let Some(oldest) = self.pending.front() {
                state.place.operator = Some(index);
                state.place.work = Work::Snapshot(oldest.barrier.checkpoint);
            }
            let progress = keyed.capture(left)?;
            is_idle &= matches!(progress, CaptureProgress::Idle);
            match progress {
                CaptureProgress::Working | CaptureProgress::Idle => {}
                CaptureProgress::Declined { checkpoint, reason } => {
                    self.pending.retain(|p| p.barrier.checkpoint != checkpoint);
                    let attempt = self.services.info.attempt;
                    self.services.snapshots.decline(attempt, checkpoint, reason);
                }
                CaptureProgress::Done(captured) => {
                    if let Some(pending) = self
                        .pending
                        .iter_mut()
                        .find(|p| p.barrier.checkpoint == captured.checkpoint)
                    {
                        pending.keyed.push((index, captured));
                        pending.keyed_left -= 1;
                    }
                }
            }
        }
        let pause = self.services.clock.now() - began;
        for pending in &mut self.pending {
            pending.longest_pause = pending.longest_pause.max(pause);
        }
        self.is_capturing = !is_idle;
        self.deliver_complete();
        Ok(())
    }

    fn deliver_complete(&mut self) {
        while let Some(place) = self.pending.iter().position(|p| p.keyed_left == 0) {
            let Some(pending) = self.pending.remove(place) else {
                return;
            };
            let pause_us = micros(pending.longest_pause);
            self.services
                .counters
                .longest_snapshot_pause_us
                .fetch_max(pause_us, Ordering::Relaxed);
            self.services.snapshots.deliver(SubtaskSnapshot {
                info: self.services.info.clone(),
                barrier: pending.barrier,
                captures: pending.captures,
                keyed: pending.keyed,
                longest_pause_us: pause_us,
                alignment_us: micros(pending.alignment),
            });
        }
    }

    fn held_up(&self, now: Instant) -> Duration {
        let open = self
            .held_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.held_before + open
    }

    /// Keeps the clock of [`TaskContext::held_up`]; of fields, since the context has borrowed others.
    fn hold(since: &mut Option<Instant>, before: &mut Duration, flow: Flow, now: Instant) {
        match flow {
            Flow::Blocked | Flow::Yielded => _ = since.get_or_insert(now),
            Flow::Drained => {
                if let Some(since) = since.take() {
                    *before += now.saturating_duration_since(since);
                }
            }
        }
    }

    fn account_wait(&mut self, now: Instant) {
        let Some(last) = self.last_end.take() else {
            return;
        };
        let micros = u64::try_from((now.saturating_duration_since(last)).as_micros()).unwrap_or(0);
        let counter = match self.waiting {
            Waiting::No => return,
            Waiting::Input => &self.services.counters.idle_us,
            Waiting::Output => &self.services.counters.back_pressured_us,
        };
        counter.fetch_add(micros, Ordering::Relaxed);
        self.waiting = Waiting::No;
    }

    fn publish(&mut self, state: &TaskState, began: Instant) {
        let now = self.services.clock.now();
        self.last_end = Some(now);
        let counters = &self.services.counters;
        let busy = u64::try_from((now - began).as_micros()).unwrap_or(0);
        counters.busy_us.fetch_add(busy, Ordering::Relaxed);
        counters
            .records_in
            .store(self.records_in, Ordering::Relaxed);
        counters
            .records_out
            .store(self.records_out, Ordering::Relaxed);
        counters
            .bytes_in
            .store(self.head.bytes_in(), Ordering::Relaxed);
        counters
            .bytes_out
            .store(self.head.bytes_out(), Ordering::Relaxed);
        counters.watermark.store(
            self.head.watermark().unwrap_or(Timestamp::MIN),
            Ordering::Relaxed,
        );
        let (mut entries, mut log_bytes) = (0, 0);
        for keyed in state.keyed.iter().flatten() {
            let figures = keyed.figures();
            entries += figures.entries;
            log_bytes += figures.log_bytes;
        }
        counters.state_entries.store(entries, Ordering::Relaxed);
        counters.log_bytes.store(log_bytes, Ordering::Relaxed);
        if !self.has_reported_first_record && (self.records_in > 0 || self.records_out > 0) {
            self.has_reported_first_record = true;
            (self.services.events)(TaskEvent::FirstRecord);
        }
    }
}
