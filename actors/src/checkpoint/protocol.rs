//! The dense sequence of records as pure state machines: who may write which number when, what an answer of the
//! store proves, and where the sequence ends.
//!
//! Invariants: a number is decided by exactly one created object, unless its creator cannot read it and takes it back; number n is only
//! tried after n-1 is decided; an outcome that is not known is never told to anybody. No I/O here: `io.rs` carries the actions out.
//!
//! Which numbers stay readable: retention replaces records by small ones and deletes those below the newest *anchor* (a multiple of
//! [`ANCHOR_EVERY`]); anchors stay for ever. So the end can be found from any starting point by reading single objects: a missing
//! record is the end only if the next anchor is missing too. Neither a lost hint nor a stale listing can hide a record.

use std::collections::BTreeMap;

use crate::model::{CheckpointId, LeaderEpoch};

/// Every so many numbers a record is never deleted.
pub const ANCHOR_EVERY: u64 = 64;

/// The first anchor above a number.
#[must_use]
pub fn next_anchor(checkpoint: CheckpointId) -> CheckpointId {
    CheckpointId((checkpoint.0 / ANCHOR_EVERY + 1) * ANCHOR_EVERY)
}

/// Whether the record of this number is never deleted.
#[must_use]
pub fn is_anchor(checkpoint: CheckpointId) -> bool {
    checkpoint.0.is_multiple_of(ANCHOR_EVERY)
}

/// What to do next about one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Create the record as intended.
    CreateIntent,
    /// Create an `Aborted` record under the same name: whoever wins decides.
    CreateSettlement,
    /// Read the record.
    Read,
    /// Write an `Aborted` record over one that cannot be read.
    TakeBack,
    /// Read the epoch in force.
    ReadEpoch,
    /// Nothing: this is the outcome.
    Done(Fate),
}

/// What came of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// A create succeeded.
    CreatedNew,
    /// A create found an object of that name.
    CreatedExists,
    /// A create certainly had no effect.
    CreateFailed,
    /// A create may have had its effect, or may still have it.
    CreateUnknown,
    /// The record was read.
    Found {
        /// Of its creator.
        epoch: LeaderEpoch,
        /// Of its creator.
        token: u128,
    },
    /// There is a record, and it does not decode.
    Unreadable,
    /// There is no record.
    Missing,
    /// The read failed.
    ReadFailed,
    /// What could not be read is replaced.
    TakenBack,
    /// Nobody knows whether it is.
    TakeBackFailed,
    /// The epoch in force.
    Epoch(LeaderEpoch),
    /// The epoch could not be read.
    EpochFailed,
}

/// How a number was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// By our record, as intended.
    Written,
    /// By our `Aborted` record: the intended one will never exist, or no more.
    Settled,
    /// By somebody else, or ours while a higher epoch exists: stop, touch nothing.
    Fenced {
        /// The epoch met.
        epoch: LeaderEpoch,
    },
}

/// What follows when a create of the intended record certainly failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Decide the number by an `Aborted` record: the attempt has failed, the sequence goes on.
    Settle,
    /// Try again: the record matters more than the time.
    Repeat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Intent,
    Settlement,
    /// Reading after a create of this stage; whether it may still take effect.
    Reading {
        is_settling: bool,
    },
    Confirming(Fate),
    /// Reading the epoch before what cannot be read is replaced: a higher one may have written it. If none did, none will, because it
    /// creates its records.
    Condemning,
    TakingBack,
}

/// Decides one number; see [`Action`].
#[derive(Debug)]
pub struct RecordWriter {
    epoch: LeaderEpoch,
    token: u128,
    settlement_token: u128,
    on_failure: OnFailure,
    stage: Stage,
    unreadable: u32,
}

/// Reads of an undecodable record before it is taken for damaged and not for a damaged answer.
const UNREADABLE_READS: u32 = 3;

/// Whether to wait a little before the action: the last one failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At once.
    Now,
    /// After a growing delay.
    BackOff,
}

impl RecordWriter {
    /// Begins; the first action is [`Action::CreateIntent`].
    #[must_use]
    pub fn new(
        epoch: LeaderEpoch,
        token: u128,
        settlement_token: u128,
        on_failure: OnFailure,
    ) -> Self {
        Self {
            epoch,
            token,
            settlement_token,
            on_failure,
            stage: Stage::Intent,
            unreadable: 0,
        }
    }

    /// What to do, given what came of the last action. Attempts are paced and not counted: to give up would leave the number undecided,
    /// and with it every later one.
    pub fn on(&mut self, observation: Observation) -> (Action, Pace) {
        use Observation as O;
        match (self.stage, observation) {
            (Stage::Intent, O::CreatedNew) => self.confirm(Fate::Written),
            (Stage::Settlement, O::CreatedNew) => self.confirm(Fate::Settled),
            // Perhaps ours: the store repeats a create whose answer was lost.
            (Stage::Intent, O::CreatedExists) => self.read(false, Pace::Now),
            (Stage::Intent, O::CreateUnknown) => self.read(false, Pace::Now),
            (Stage::Settlement, O::CreatedExists) | (Stage::Settlement, O::CreateUnknown) => {
                self.read(true, Pace::Now)
            }
            (Stage::Intent, O::CreateFailed) => match self.on_failure {
                OnFailure::Settle => self.settle(Pace::BackOff),
                OnFailure::Repeat => (Action::CreateIntent, Pace::BackOff),
            },
            (Stage::Settlement, O::CreateFailed) => self.settle(Pace::BackOff),
            (Stage::Reading { .. }, O::Found { token, .. }) if token == self.token => {
                self.confirm(Fate::Written)
            }
            (Stage::Reading { .. }, O::Found { token, .. }) if token == self.settlement_token => {
                self.confirm(Fate::Settled)
            }
            (Stage::Reading { .. }, O::Found { epoch, .. }) => (
                Action::Done(Fate::Fenced {
                    epoch: epoch.max(self.epoch),
                }),
                Pace::Now,
            ),
            (Stage::Reading { is_settling }, O::Unreadable) => {
                self.unreadable += 1;
                if self.unreadable < UNREADABLE_READS {
                    self.read(is_settling, Pace::BackOff)
                } else {
                    self.stage = Stage::Condemning;
                    (Action::ReadEpoch, Pace::Now)
                }
            }
            // Nothing there, and our write may still land: a second create under the same name takes its place, so that one of both
            // decides. Where the intended record matters more, it is repeated under its own token, which decides as well.
            (Stage::Reading { is_settling }, O::Missing) => {
                if is_settling || self.on_failure == OnFailure::Settle {
                    self.settle(if is_settling {
                        Pace::BackOff
                    } else {
                        Pace::Now
                    })
                } else {
                    self.stage = Stage::Intent;
                    (Action::CreateIntent, Pace::BackOff)
                }
            }
            (Stage::Reading { is_settling }, O::ReadFailed) => {
                self.read(is_settling, Pace::BackOff)
            }
            (Stage::Confirming(_) | Stage::Condemning, O::Epoch(epoch)) if epoch > self.epoch => {
                (Action::Done(Fate::Fenced { epoch }), Pace::Now)
            }
            // The next leader may read it well, and restore from what everybody was told is aborted.
            (Stage::Condemning, O::Epoch(_)) => {
                self.stage = Stage::TakingBack;
                (Action::TakeBack, Pace::Now)
            }
            (Stage::TakingBack, O::TakenBack) => self.confirm(Fate::Settled),
            (Stage::TakingBack, O::TakeBackFailed) => (Action::TakeBack, Pace::BackOff),
            (Stage::Confirming(fate), O::Epoch(_)) => (Action::Done(fate), Pace::Now),
            // Not knowing whether somebody else leads, we may not tell anybody.
            (Stage::Confirming(_) | Stage::Condemning, O::EpochFailed) => {
                (Action::ReadEpoch, Pace::BackOff)
            }
            // Answers to questions that were not asked: ask again.
            (Stage::Intent, O::Found { .. } | O::Unreadable | O::Missing | O::ReadFailed)
            | (Stage::Intent, O::Epoch(_) | O::EpochFailed | O::TakenBack | O::TakeBackFailed) => {
                (Action::CreateIntent, Pace::BackOff)
            }
            (Stage::Settlement, O::Found { .. } | O::Unreadable | O::Missing | O::ReadFailed)
            | (Stage::Settlement, O::Epoch(_) | O::EpochFailed)
            | (Stage::Settlement, O::TakenBack | O::TakeBackFailed) => self.settle(Pace::BackOff),
            (
                Stage::Reading { is_settling },
                O::CreatedNew
                | O::CreatedExists
                | O::CreateFailed
                | O::CreateUnknown
                | O::Epoch(_)
                | O::EpochFailed
                | O::TakenBack
                | O::TakeBackFailed,
            ) => self.read(is_settling, Pace::BackOff),
            (
                Stage::TakingBack,
                O::CreatedNew
                | O::CreatedExists
                | O::CreateFailed
                | O::CreateUnknown
                | O::Found { .. }
                | O::Unreadable
                | O::Missing
                | O::ReadFailed
                | O::Epoch(_)
                | O::EpochFailed,
            ) => (Action::TakeBack, Pace::BackOff),
            (
                Stage::Confirming(_) | Stage::Condemning,
                O::CreatedNew
                | O::CreatedExists
                | O::CreateFailed
                | O::CreateUnknown
                | O::Found { .. }
                | O::Unreadable
                | O::Missing
                | O::ReadFailed
                | O::TakenBack
                | O::TakeBackFailed,
            ) => (Action::ReadEpoch, Pace::BackOff),
        }
    }

    fn read(&mut self, is_settling: bool, pace: Pace) -> (Action, Pace) {
        self.stage = Stage::Reading { is_settling };
        (Action::Read, pace)
    }

    fn settle(&mut self, pace: Pace) -> (Action, Pace) {
        self.stage = Stage::Settlement;
        (Action::CreateSettlement, pace)
    }

    fn confirm(&mut self, fate: Fate) -> (Action, Pace) {
        self.stage = Stage::Confirming(fate);
        (Action::ReadEpoch, Pace::Now)
    }
}

/// Which numbers are handed out, and which may be written: at most one at a time, in order.
#[derive(Debug)]
pub struct Sequence<I> {
    first_undecided: CheckpointId,
    next: CheckpointId,
    ready: BTreeMap<CheckpointId, I>,
    in_flight: Option<CheckpointId>,
}

impl<I> Sequence<I> {
    /// After the record of `decided`, which is the last.
    #[must_use]
    pub fn after(decided: CheckpointId) -> Self {
        Self {
            first_undecided: decided.next(),
            next: decided.next(),
            ready: BTreeMap::new(),
            in_flight: None,
        }
    }

    /// Hands out a number. Each must be resolved one day.
    pub fn allot(&mut self) -> CheckpointId {
        let number = self.next;
        self.next = number.next();
        number
    }

    /// Says how a number shall be decided.
    pub fn resolve(&mut self, number: CheckpointId, intent: I) {
        debug_assert!(number >= self.first_undecided && number < self.next);
        self.ready.insert(number, intent);
    }

    /// The next record to write, if its predecessor is decided and none is being written.
    pub fn start(&mut self) -> Option<(CheckpointId, I)> {
        if self.in_flight.is_some() {
            return None;
        }
        let intent = self.ready.remove(&self.first_undecided)?;
        self.in_flight = Some(self.first_undecided);
        Some((self.first_undecided, intent))
    }

    /// The record being written is decided.
    pub fn decided(&mut self, number: CheckpointId) {
        debug_assert_eq!(self.in_flight, Some(number));
        if self.in_flight.take().is_some() {
            self.first_undecided = number.next();
        }
    }

    /// The highest number that is decided.
    #[must_use]
    pub fn last_decided(&self) -> CheckpointId {
        CheckpointId(self.first_undecided.0.saturating_sub(1))
    }

    /// Numbers handed out and not decided.
    #[must_use]
    pub fn undecided(&self) -> u64 {
        self.next.0 - self.first_undecided.0
    }
}

/// Finds the first free number by reading single records; see the module's text.
#[derive(Debug)]
pub struct EndProbe {
    stage: ProbeStage,
    has_jumped: bool,
}

#[derive(Debug, Clone, Copy)]
enum ProbeStage {
    Forward(CheckpointId),
    Anchor {
        missing: CheckpointId,
    },
    /// `low` is known to exist; both count anchors.
    Gallop {
        low: u64,
        step: u64,
    },
    /// `low` exists, `high` does not.
    Bisect {
        low: u64,
        high: u64,
    },
    Free(CheckpointId),
}

/// What the probe wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Whether there is a record of this number.
    Look(CheckpointId),
    /// The sequence ends: this number is the first free one.
    Free(CheckpointId),
}

impl EndProbe {
    /// Starts at a hint, or at 1.
    #[must_use]
    pub fn from(hint: CheckpointId) -> Self {
        Self {
            stage: ProbeStage::Forward(hint.max(CheckpointId(1))),
            has_jumped: false,
        }
    }

    /// Whether records between the start and the end were passed over: the start lay in what retention has deleted.
    #[must_use]
    pub fn has_jumped(&self) -> bool {
        self.has_jumped
    }

    /// The next question.
    #[must_use]
    pub fn ask(&self) -> Probe {
        let anchor = |index: u64| Probe::Look(CheckpointId(index * ANCHOR_EVERY));
        match self.stage {
            ProbeStage::Forward(at) => Probe::Look(at),
            ProbeStage::Anchor { missing } => Probe::Look(next_anchor(missing)),
            ProbeStage::Gallop { low, step } => anchor(low + step),
            ProbeStage::Bisect { low, high } => anchor(low + (high - low) / 2),
            ProbeStage::Free(at) => Probe::Free(at),
        }
    }

    /// The answer to it.
    pub fn answer(&mut self, is_there: bool) {
        self.stage = match (self.stage, is_there) {
            (ProbeStage::Forward(at), true) => ProbeStage::Forward(at.next()),
            (ProbeStage::Forward(at), false) => ProbeStage::Anchor { missing: at },
            (ProbeStage::Anchor { missing }, false) => ProbeStage::Free(missing),
            // The hint lies in what retention has deleted: jump ahead.
            (ProbeStage::Anchor { missing }, true) => {
                self.has_jumped = true;
                ProbeStage::Gallop {
                    low: next_anchor(missing).0 / ANCHOR_EVERY,
                    step: 1,
                }
            }
            (ProbeStage::Gallop { low, step }, true) => ProbeStage::Gallop {
                low: low + step,
                step: step.saturating_mul(2).min(1 << 32),
            },
            (ProbeStage::Gallop { low, step }, false) => Self::bisect(low, low + step),
            (ProbeStage::Bisect { low, high }, true) => Self::bisect(low + (high - low) / 2, high),
            (ProbeStage::Bisect { low, high }, false) => Self::bisect(low, low + (high - low) / 2),
            (ProbeStage::Free(at), _) => ProbeStage::Free(at),
        };
    }

    fn bisect(low: u64, high: u64) -> ProbeStage {
        if high - low <= 1 {
            ProbeStage::Forward(CheckpointId(low * ANCHOR_EVERY + 1))
        } else {
            ProbeStage::Bisect { low, high }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn writer(on_failure: OnFailure) -> RecordWriter {
        RecordWriter::new(LeaderEpoch(2), 10, 11, on_failure)
    }

    fn run(writer: &mut RecordWriter, observations: &[Observation]) -> Vec<Action> {
        observations.iter().map(|o| writer.on(*o).0).collect()
    }

    const OURS: Observation = Observation::Found {
        epoch: LeaderEpoch(2),
        token: 10,
    };

    #[test]
    fn nothing_is_told_before_the_epoch_was_read_again() {
        let mut w = writer(OnFailure::Settle);
        assert_eq!(w.on(Observation::CreatedNew).0, Action::ReadEpoch);
        assert_eq!(
            w.on(Observation::EpochFailed),
            (Action::ReadEpoch, Pace::BackOff)
        );
        assert_eq!(
            w.on(Observation::Epoch(LeaderEpoch(2))).0,
            Action::Done(Fate::Written)
        );
        let mut w = writer(OnFailure::Settle);
        w.on(Observation::CreatedNew);
        assert_eq!(
            w.on(Observation::Epoch(LeaderEpoch(3))).0,
            Action::Done(Fate::Fenced {
                epoch: LeaderEpoch(3)
            })
        );
    }

    #[test]
    fn a_lost_success_is_recognised_by_its_token() {
        for first in [Observation::CreateUnknown, Observation::CreatedExists] {
            let mut w = writer(OnFailure::Settle);
            assert_eq!(
                run(&mut w, &[first, OURS, Observation::Epoch(LeaderEpoch(2))]),
                [Action::Read, Action::ReadEpoch, Action::Done(Fate::Written)]
            );
        }
    }

    #[test]
    fn an_unknown_create_that_left_nothing_is_settled_by_an_aborted_record() {
        let mut w = writer(OnFailure::Settle);
        assert_eq!(
            run(
                &mut w,
                &[
                    Observation::CreateUnknown,
                    Observation::Missing,
                    Observation::CreatedNew,
                    Observation::Epoch(LeaderEpoch(2))
                ]
            ),
            [
                Action::Read,
                Action::CreateSettlement,
                Action::ReadEpoch,
                Action::Done(Fate::Settled)
            ]
        );
        // The late write landed first: it decides.
        let mut w = writer(OnFailure::Settle);
        assert_eq!(
            run(
                &mut w,
                &[
                    Observation::CreateUnknown,
                    Observation::Missing,
                    Observation::CreatedExists,
                    OURS,
                    Observation::Epoch(LeaderEpoch(2))
                ]
            )
            .last(),
            Some(&Action::Done(Fate::Written))
        );
    }

    /// What is told to be aborted must stay aborted, also for a leader whose reads do better.
    #[test]
    fn a_record_that_cannot_be_read_is_taken_back_before_anybody_hears_of_it() {
        let unreadable = [Observation::Unreadable; UNREADABLE_READS as usize];
        let begin = || {
            let mut w = writer(OnFailure::Settle);
            w.on(Observation::CreateUnknown);
            assert_eq!(run(&mut w, &unreadable).last(), Some(&Action::ReadEpoch));
            w
        };
        let us = Observation::Epoch(LeaderEpoch(2));
        let them = Observation::Epoch(LeaderEpoch(3));
        let epoch = LeaderEpoch(3);
        assert_eq!(
            run(
                &mut begin(),
                &[us, Observation::TakeBackFailed, Observation::TakenBack, us]
            ),
            [
                Action::TakeBack,
                Action::TakeBack,
                Action::ReadEpoch,
                Action::Done(Fate::Settled)
            ]
        );
        // It may be the record of whoever leads now.
        let fenced = Action::Done(Fate::Fenced { epoch });
        assert_eq!(run(&mut begin(), &[them]), [fenced]);
        assert_eq!(
            run(&mut begin(), &[us, Observation::TakenBack, them]).last(),
            Some(&fenced)
        );
    }

    #[test]
    fn a_foreign_record_fences() {
        let mut w = writer(OnFailure::Repeat);
        w.on(Observation::CreatedExists);
        assert_eq!(
            w.on(Observation::Found {
                epoch: LeaderEpoch(5),
                token: 99
            })
            .0,
            Action::Done(Fate::Fenced {
                epoch: LeaderEpoch(5)
            })
        );
    }

    #[test]
    fn numbers_are_written_in_order_and_one_at_a_time() {
        let mut s = Sequence::after(CheckpointId(4));
        let (a, b, c) = (s.allot(), s.allot(), s.allot());
        assert_eq!((a.0, b.0, c.0, s.undecided()), (5, 6, 7, 3));
        s.resolve(b, "b");
        assert_eq!(s.start(), None, "5 is not decided");
        s.resolve(a, "a");
        assert_eq!(s.start(), Some((a, "a")));
        assert_eq!(s.start(), None, "5 is being written");
        s.decided(a);
        assert_eq!(s.start(), Some((b, "b")));
        s.decided(b);
        assert_eq!((s.start(), s.last_decided()), (None, b));
    }

    proptest! {
        /// Whatever the store answers, a writer that ends has proof: its own create or read, and the epoch after it.
        #[test]
        fn a_writer_never_concludes_without_proof(answers in proptest::collection::vec(0_u8..10, 1..60), settle: bool) {
            let mut w = writer(if settle { OnFailure::Settle } else { OnFailure::Repeat });
            let mut action = Action::CreateIntent;
            let (mut proof_written, mut proof_settled, mut epoch_read) = (false, false, false);
            for answer in answers {
                let observation = match action {
                    Action::CreateIntent | Action::CreateSettlement => match answer % 4 {
                        0 => Observation::CreatedNew,
                        1 => Observation::CreatedExists,
                        2 => Observation::CreateFailed,
                        _ => Observation::CreateUnknown,
                    },
                    Action::Read => match answer % 5 {
                        0 => OURS,
                        1 => Observation::Found { epoch: LeaderEpoch(2), token: 11 },
                        2 => Observation::Missing,
                        3 => Observation::ReadFailed,
                        _ => Observation::Unreadable,
                    },
                    Action::TakeBack => {
                        prop_assert!(epoch_read, "nothing is replaced before it is known who leads");
                        if answer % 2 == 0 { Observation::TakenBack } else { Observation::TakeBackFailed }
                    }
                    Action::ReadEpoch => if answer % 2 == 0 { Observation::Epoch(LeaderEpoch(2)) } else { Observation::EpochFailed },
                    Action::Done(_) => unreachable!(),
                };
                match (action, observation) {
                    (Action::CreateIntent, Observation::CreatedNew) | (Action::Read, OURS) => {
                        (proof_written, epoch_read) = (true, false);
                    }
                    (Action::CreateSettlement, Observation::CreatedNew)
                    | (Action::TakeBack, Observation::TakenBack)
                    | (Action::Read, Observation::Found { token: 11, .. }) => {
                        (proof_settled, epoch_read) = (true, false);
                    }
                    (Action::ReadEpoch, Observation::Epoch(_)) => epoch_read = true,
                    _ => {}
                }
                action = w.on(observation).0;
                if let Action::Done(fate) = action {
                    prop_assert!(epoch_read);
                    match fate {
                        Fate::Written => prop_assert!(proof_written),
                        Fate::Settled => prop_assert!(proof_settled),
                        Fate::Fenced { .. } => prop_assert!(false, "nobody else was seen"),
                    }
                    break;
                }
            }
        }

        /// For any end, any hint and any deletion that retention allows, the probe finds the end, and says whether it passed records over.
        #[test]
        fn the_end_is_found_from_any_hint(end in 1_u64..2000, hint in 0_u64..2100, kept in 0_u64..80) {
            // Deleted: below the last anchor that exists and below the floor, except anchors.
            let head = end - 1;
            let last_anchor = head / ANCHOR_EVERY * ANCHOR_EVERY;
            let floor = head.saturating_sub(kept);
            let exists = |n: u64| (1..=head).contains(&n) && (n.is_multiple_of(ANCHOR_EVERY) || n >= last_anchor.min(floor));
            let hint = hint.min(end); // A hint never lies ahead: it was true once.
            let mut probe = EndProbe::from(CheckpointId(hint));
            let mut questions = 0;
            let mut found = BTreeSet::new();
            let free = loop {
                match probe.ask() {
                    Probe::Look(n) => {
                        probe.answer(exists(n.0));
                        if exists(n.0) {
                            found.insert(n.0);
                        }
                    }
                    Probe::Free(n) => break n,
                }
                questions += 1;
                prop_assert!(questions < 2200);
            };
            prop_assert_eq!(free.0, end);
            prop_assert_eq!(probe.has_jumped(), !(hint.max(1)..end).all(|n| found.contains(&n)));
        }
    }
}
