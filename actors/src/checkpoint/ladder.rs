//! Which snapshot a recovery restores: newest completed > older retained > the snapshot that the job started from > clear failure.
//! Pure.
//!
//! Invariant: a rung is stepped over only when it is damaged, and never silently; a job with transactional sinks does not restore below
//! a completed checkpoint unless it is allowed to repeat output.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{CheckpointId, FailureKind, Manifest};

/// A checkpoint of the job's own sequence.
#[derive(Debug, Clone)]
pub struct Rung {
    /// Which.
    pub checkpoint: CheckpointId,
    /// Its content; `None` when the record itself cannot be read.
    pub manifest: Option<Arc<Manifest>>,
    /// Why it cannot be restored; `None`: as far as is known it can.
    pub damage: Option<String>,
}

/// Where the recovery stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// This checkpoint of the job's own.
    Own(CheckpointId),
    /// The snapshot named at submission. It must then be good: a snapshot named by a person is never passed over.
    StartFrom,
    /// No snapshot: nothing was ever completed.
    Empty,
}

/// Chooses; with what was stepped over, newest first.
pub fn choose(
    rungs: &[Rung],
    has_start_from: bool,
    is_transactional: bool,
    allow_repeat: bool,
) -> Result<(Choice, Vec<String>), FailureKind> {
    let mut newest_first: Vec<&Rung> = rungs.iter().collect();
    newest_first.sort_by_key(|r| std::cmp::Reverse(r.checkpoint));
    let mut skipped: Vec<&Rung> = Vec::new();
    let mut chosen = None;
    for rung in newest_first {
        match (&rung.manifest, &rung.damage) {
            (Some(_), None) => {
                chosen = Some(rung);
                break;
            }
            (_, Some(_)) | (None, None) => skipped.push(rung),
        }
    }
    let words: Vec<String> = skipped.iter().map(|r| describe(r)).collect();
    let Some(newest_skipped) = skipped.first() else {
        return Ok(match chosen {
            Some(rung) => (Choice::Own(rung.checkpoint), words),
            None if has_start_from => (Choice::StartFrom, words),
            None => (Choice::Empty, words),
        });
    };
    let choice = match chosen {
        Some(rung) => Choice::Own(rung.checkpoint),
        None if has_start_from => Choice::StartFrom,
        None => {
            return Err(FailureKind::IncompatibleState {
                message: format!(
                    "no valid checkpoint or savepoint found: {}; to begin without state, submit the job anew",
                    words.join("; ")
                ),
            });
        }
    };
    if is_transactional && !allow_repeat {
        return Err(FailureKind::IncompatibleState {
            message: format!(
                "{}; restoring {} instead would repeat committed output of {}; set recovery.ladder.allow-repeat: true to accept that",
                words.join("; "),
                match choice {
                    Choice::Own(checkpoint) => format!("checkpoint {checkpoint}"),
                    Choice::StartFrom | Choice::Empty =>
                        "the snapshot the job started from".to_owned(),
                },
                span(
                    chosen.and_then(|r| r.manifest.as_deref()),
                    newest_skipped.manifest.as_deref()
                ),
            ),
        });
    }
    Ok((choice, words))
}

fn describe(rung: &Rung) -> String {
    format!(
        "checkpoint {} is damaged: {}",
        rung.checkpoint,
        rung.damage
            .as_deref()
            .unwrap_or("its record cannot be read")
    )
}

/// The source positions between two snapshots, in words.
#[must_use]
pub fn span(from: Option<&Manifest>, to: Option<&Manifest>) -> String {
    let Some(to) = to else {
        return "an unknown span of source positions (the damaged record does not say)".to_owned();
    };
    let from = from.map(positions).unwrap_or_default();
    let parts: Vec<String> = positions(to)
        .into_iter()
        .map(|((uid, split), end)| {
            let start = from.get(&(uid, split)).copied().unwrap_or(0);
            format!("source `{uid}` split {split} positions {start}..{end}")
        })
        .collect();
    if parts.is_empty() {
        "sources that report no positions".to_owned()
    } else {
        parts.join(", ")
    }
}

fn positions(manifest: &Manifest) -> BTreeMap<(&str, &str), u64> {
    let mut positions = BTreeMap::new();
    for operator in &manifest.operators {
        for (split, position) in operator.subtasks.iter().flat_map(|s| &s.positions) {
            let entry = positions
                .entry((operator.uid.as_str(), split.as_str()))
                .or_insert(0);
            *entry = (*position).max(*entry);
        }
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing::manifest_at;
    use crate::model::Recoverability;

    fn rung(n: u64, damage: Option<&str>) -> Rung {
        Rung {
            checkpoint: CheckpointId(n),
            manifest: Some(Arc::new(manifest_at(n, &[("a", n * 10)]))),
            damage: damage.map(str::to_owned),
        }
    }

    #[test]
    fn the_newest_good_rung_is_chosen() {
        let rungs = [rung(3, None), rung(5, Some("crc")), rung(4, None)];
        let (choice, skipped) = choose(&rungs, true, false, false).unwrap();
        assert_eq!(choice, Choice::Own(CheckpointId(4)));
        assert_eq!(skipped, ["checkpoint 5 is damaged: crc"]);
        assert_eq!(
            choose(&rungs[..1], true, true, false).unwrap(),
            (Choice::Own(CheckpointId(3)), vec![])
        );
    }

    #[test]
    fn the_lowest_rung_is_the_snapshot_the_job_started_from() {
        assert_eq!(choose(&[], true, true, false).unwrap().0, Choice::StartFrom);
        assert_eq!(choose(&[], false, true, false).unwrap().0, Choice::Empty);
        let all_bad = [rung(2, Some("x")), rung(1, Some("y"))];
        assert_eq!(
            choose(&all_bad, true, false, false).unwrap().0,
            Choice::StartFrom
        );
    }

    #[test]
    fn with_every_rung_damaged_the_job_fails_and_never_begins_empty() {
        let unreadable = Rung {
            checkpoint: CheckpointId(9),
            manifest: None,
            damage: None,
        };
        let error = choose(&[unreadable, rung(1, Some("y"))], false, false, true).unwrap_err();
        assert_eq!(error.recoverability(), Recoverability::Unrecoverable);
        assert!(
            error.to_string().contains("checkpoint 9")
                && error.to_string().contains("checkpoint 1")
        );
    }

    #[test]
    fn a_transactional_job_fails_naming_the_span_unless_repeating_is_allowed() {
        let rungs = [rung(7, Some("object gone")), rung(6, None)];
        let error = choose(&rungs, true, true, false).unwrap_err().to_string();
        assert!(error.contains("split a positions 60..70"), "{error}");
        assert!(error.contains("recovery.ladder.allow-repeat"), "{error}");
        assert_eq!(
            choose(&rungs, true, true, true).unwrap().0,
            Choice::Own(CheckpointId(6))
        );
    }
}
