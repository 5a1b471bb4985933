//! What ended attempts leave for whoever comes after them: keyed state for a successor, and output that was prepared and not committed.
//!
//! Invariant: it holds state of the newest attempt of a subtask only, and nothing of a job that was released. An abandoned thread may
//! end long after its successor, or after its job.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use perennial_actors::model::{ExecutionAttemptId, JobId, SubtaskIndex, VertexId};

use crate::operator::{KeyedStates, Leftover};

type Key = (JobId, VertexId, SubtaskIndex);

/// What is known of each subtask that ran here; dropped with the job.
pub(super) type Kept = Arc<Mutex<Keeper>>;

pub(super) fn lock(kept: &Kept) -> std::sync::MutexGuard<'_, Keeper> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// At most one attempt's state and one attempt's output per subtask.
#[derive(Default)]
pub(super) struct Keeper {
    subtasks: BTreeMap<Key, Subtask>,
}

struct Subtask {
    newest: ExecutionAttemptId,
    keyed: Option<(ExecutionAttemptId, KeyedStates)>,
    /// Of the last attempt that opened its sinks here: those before it were settled by that.
    output: Vec<Box<dyn Leftover>>,
}

impl Keeper {
    fn key(attempt: ExecutionAttemptId) -> Key {
        (attempt.job, attempt.vertex, attempt.subtask)
    }

    /// An attempt begins.
    pub(super) fn begin(&mut self, attempt: ExecutionAttemptId) {
        let subtask = self.subtasks.entry(Self::key(attempt)).or_insert(Subtask {
            newest: attempt,
            keyed: None,
            output: Vec::new(),
        });
        subtask.newest = subtask.newest.max(attempt);
    }

    /// Takes the keyed state that an earlier attempt left.
    pub(super) fn take(&mut self, attempt: ExecutionAttemptId) -> Option<KeyedStates> {
        let subtask = self.subtasks.get_mut(&Self::key(attempt))?;
        let (from, keyed) = subtask.keyed.take()?;
        (from < attempt).then_some(keyed)
    }

    /// Keeps what an attempt leaves, if it may still have a successor.
    pub(super) fn keep(
        &mut self,
        attempt: ExecutionAttemptId,
        keyed: KeyedStates,
        output: Vec<Box<dyn Leftover>>,
    ) {
        if let Some(subtask) = self.subtasks.get_mut(&Self::key(attempt))
            && subtask.newest == attempt
        {
            subtask.keyed = Some((attempt, keyed));
            subtask.output = output;
        }
    }

    /// Drops everything of a job but its output, which the caller settles.
    pub(super) fn release(&mut self, job: JobId) -> Vec<Box<dyn Leftover>> {
        let of_job =
            (job, VertexId(0), SubtaskIndex(0))..=(job, VertexId(u32::MAX), SubtaskIndex(u32::MAX));
        self.subtasks
            .extract_if(of_job, |_, _| true)
            .flat_map(|(_, subtask)| subtask.output)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use perennial_actors::model::{Attempt, LeaderEpoch};

    use super::*;

    fn attempt(number: u32) -> ExecutionAttemptId {
        ExecutionAttemptId {
            job: JobId(1),
            vertex: VertexId(0),
            subtask: SubtaskIndex(0),
            epoch: LeaderEpoch(1),
            attempt: Attempt(number),
        }
    }

    /// An abandoned thread ends after its successor has left its state: the older state is not what the next attempt finds.
    #[test]
    fn state_of_an_older_attempt_never_replaces_that_of_a_newer_one() {
        let mut keeper = Keeper::default();
        keeper.begin(attempt(1));
        keeper.begin(attempt(2));
        keeper.keep(attempt(2), vec![None, None], Vec::new());
        keeper.keep(attempt(1), vec![None], Vec::new());
        keeper.begin(attempt(3));
        assert_eq!(keeper.take(attempt(3)).map(|k| k.len()), Some(2));
        assert!(keeper.take(attempt(3)).is_none(), "it is handed over once");
    }

    /// An abandoned thread ends after its job was released.
    #[test]
    fn nothing_is_kept_of_a_released_job() {
        let mut keeper = Keeper::default();
        keeper.begin(attempt(1));
        keeper.release(JobId(1));
        keeper.keep(attempt(1), vec![None], Vec::new());
        assert!(keeper.subtasks.is_empty());
    }
}
