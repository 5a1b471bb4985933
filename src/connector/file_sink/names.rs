//! Names of a file sink's files.
//!
//! Invariant: a hidden name tells exactly whose it is, so that a recovery deletes files of its own operator and job only. Hence
//! the whole job id in it; a visible name has its first 8 digits, for people.

use std::fmt::{self, Write};

use perennial_actors::model::{CheckpointId, ExecutionAttemptId, JobId, OperatorId};

/// How hidden files end.
const IN_PROGRESS: &str = ".inprogress";

/// Longest uid that stands in a name as it is: file systems allow 255 bytes in all.
const UID_LENGTH_MAX: usize = 100;

/// The uid with everything but letters, digits, `_`, `.` and `-` escaped, injectively; a long one is cut, and made unique by
/// the operator's id.
pub(super) fn uid_for_names(uid: &str, operator: OperatorId) -> String {
    let mut name = String::with_capacity(uid.len());
    for byte in uid.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-".contains(&byte) {
            name.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _ = write!(name, "%{byte:02x}");
        }
    }
    if name.len() > UID_LENGTH_MAX {
        name.truncate(UID_LENGTH_MAX - 33);
        let _ = write!(name, "~{operator}");
    }
    name
}

/// The name that a file gets by its commit. Sorted names are sorted by subtask, then by checkpoint.
pub(super) fn part_name(
    uid: &str,
    attempt: &ExecutionAttemptId,
    checkpoint: CheckpointId,
    extension: &str,
) -> String {
    let job = attempt.job.to_string();
    format!(
        "part-{uid}-{}-s{:05}-c{:010}.{extension}",
        &job[..8],
        attempt.subtask.0,
        checkpoint.0
    )
}

/// The name of a hidden file that no recovery deletes.
pub(super) fn savepoint_name(hidden: &str) -> String {
    let stem = hidden.strip_suffix(IN_PROGRESS).unwrap_or(hidden);
    format!("{stem}.savepoint")
}

/// A file that is not committed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HiddenName<'a> {
    uid: &'a str,
    job: JobId,
    subtask: u32,
    epoch: u64,
    attempt: u32,
    number: u64,
}

impl<'a> HiddenName<'a> {
    pub(super) fn new(uid: &'a str, attempt: &ExecutionAttemptId, number: u64) -> Self {
        Self {
            uid,
            job: attempt.job,
            subtask: attempt.subtask.0,
            epoch: attempt.epoch.0,
            attempt: attempt.attempt.0,
            number,
        }
    }

    /// `None`: not one of ours. Read from the right, because a uid may hold dashes.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let rest = name.strip_prefix('.')?.strip_suffix(IN_PROGRESS)?;
        let mut fields = rest.rsplitn(6, '-');
        let number = fields.next()?.parse().ok()?;
        let attempt = fields.next()?.strip_prefix('a')?.parse().ok()?;
        let epoch = fields.next()?.strip_prefix('e')?.parse().ok()?;
        let subtask = fields.next()?.strip_prefix('s')?.parse().ok()?;
        let job = fields.next()?.parse().ok()?;
        let uid = fields.next()?;
        Some(Self {
            uid,
            job,
            subtask,
            epoch,
            attempt,
            number,
        })
    }

    /// Whether a former attempt of the same job and operator made it, and it is for this subtask to look after: its own, and
    /// its share of those of a higher parallelism. Not those of its neighbours: where only a part of the job restarts, they
    /// are still writing under the former attempt's number.
    pub(super) fn is_of_former(
        &self,
        uid: &str,
        attempt: &ExecutionAttemptId,
        parallelism: u32,
    ) -> bool {
        self.uid == uid
            && self.job == attempt.job
            && self.subtask % parallelism.max(1) == attempt.subtask.0
            && (self.epoch, self.attempt) < (attempt.epoch.0, attempt.attempt.0)
    }
}

impl fmt::Display for HiddenName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            ".{}-{}-s{}-e{}-a{}-{}{IN_PROGRESS}",
            self.uid, self.job, self.subtask, self.epoch, self.attempt, self.number
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::test_support::context;
    use super::*;

    proptest! {
        #[test]
        fn hidden_names_are_read_back(uid in ".{0,60}", subtask: u32, epoch: u64, attempt: u32, number: u64) {
            let uid = uid_for_names(&uid, OperatorId::from_uid(&uid));
            let attempt = context(subtask, 1, epoch, attempt).attempt;
            let name = HiddenName::new(&uid, &attempt, number);
            let text = name.to_string();
            prop_assert!(text.len() <= 255 && !text.contains('/'));
            prop_assert_eq!(HiddenName::parse(&text), Some(name));
        }

        #[test]
        fn foreign_names_are_never_taken_for_ours(name in ".{0,80}") {
            let attempt = context(0, 1, u64::MAX, u32::MAX).attempt;
            prop_assert!(!HiddenName::parse(&name).is_some_and(|hidden| hidden.is_of_former("out", &attempt, 1)));
        }

        #[test]
        fn different_uids_have_different_names(a in ".{0,120}", b in ".{0,120}") {
            let name = |uid: &str| uid_for_names(uid, OperatorId::from_uid(uid));
            prop_assert_eq!(a == b, name(&a) == name(&b));
            prop_assert!(name(&a).len() <= UID_LENGTH_MAX);
        }
    }

    #[test]
    fn only_files_of_former_attempts_of_the_same_job_and_operator_are_leftovers() {
        let ours = context(1, 2, 3, 4).attempt;
        let mut other_job = context(1, 2, 1, 1).attempt;
        other_job.job = JobId(other_job.job.0 + 1); // Shares the first 8 digits.
        for (uid, maker, expected) in [
            ("out", context(1, 2, 3, 3).attempt, true),
            ("out", context(7, 9, 2, 9).attempt, true),
            ("out", context(0, 2, 3, 3).attempt, false),
            ("out", context(8, 9, 2, 9).attempt, false),
            ("out", context(1, 2, 3, 4).attempt, false),
            ("out", context(1, 2, 3, 5).attempt, false),
            ("out", context(1, 2, 4, 1).attempt, false),
            ("an-out", context(1, 2, 1, 1).attempt, false),
            ("out", other_job, false),
        ] {
            let name = HiddenName::new(uid, &maker, 1).to_string();
            let hidden = HiddenName::parse(&name).unwrap();
            assert_eq!(hidden.is_of_former("out", &ours, 2), expected, "{name}");
        }
    }

    #[test]
    fn visible_names_sort_by_subtask_and_checkpoint() {
        let name = |subtask, checkpoint| {
            let attempt = context(subtask, 20, 1, 1).attempt;
            part_name("out", &attempt, CheckpointId(checkpoint), "txt")
        };
        assert_eq!(name(2, 7), "part-out-abcdef01-s00002-c0000000007.txt");
        assert!(name(2, 9) < name(2, 10) && name(2, 10) < name(10, 1));
    }
}
