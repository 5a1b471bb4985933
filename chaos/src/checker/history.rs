//! What must hold of the writes that a store has seen (invariants S3 and S4), whoever wrote them.

use std::collections::BTreeMap;

use crate::proxy::store::{History, Write, WriteKind};

/// How retention marks a record that it puts in the place of a completed one.
const RETIRED: &str = "aborted: retired";
/// How a creator marks a record that it puts over one of its own.
const TAKEN_BACK: &str = "aborted: its record could not be read";

/// Of each name at most one record is created, and only retention replaces one, or its own epoch that could not read it (S3). Returns what
/// breaks it.
#[must_use]
pub fn check_one_truth(history: &History) -> Vec<String> {
    let mut created: BTreeMap<&str, &Write> = BTreeMap::new();
    let mut broken = Vec::new();
    for write in history.writes.iter().filter(|w| w.is_done()) {
        let Some(record) = &write.record else {
            continue;
        };
        match write.kind {
            WriteKind::Create => {
                if let Some(before) = created.insert(&write.key, write) {
                    broken.push(format!(
                        "{} was created twice: by {:?} as {:?}, then by {:?} as {:?}",
                        write.key, before.node, before.record, write.node, record
                    ));
                }
            }
            WriteKind::Put | WriteKind::Complete if record.outcome == RETIRED => {}
            WriteKind::Put | WriteKind::Complete
                if record.outcome == TAKEN_BACK
                    && created
                        .get(write.key.as_str())
                        .and_then(|before| before.record.as_ref())
                        .is_none_or(|before| before.epoch == record.epoch) => {}
            WriteKind::Put | WriteKind::Complete => broken.push(format!(
                "{} was replaced by {:?} with {record:?}",
                write.key, write.node
            )),
            WriteKind::Delete => {}
        }
    }
    broken
}

/// Once an epoch has claimed a job, nothing that a lower epoch writes later has an effect on its records (S4). Two writes that overlap have no
/// order. Returns what breaks it.
#[must_use]
pub fn check_fencing(history: &History) -> Vec<String> {
    let mut broken = Vec::new();
    let claims: Vec<&Write> = history
        .writes
        .iter()
        .filter(|w| w.is_done() && w.record.as_ref().is_some_and(|r| r.outcome == "claimed"))
        .collect();
    for write in history.writes.iter().filter(|w| w.is_done()) {
        let Some(record) = &write.record else {
            continue;
        };
        // Who retired it had completed a newer one when it led, which whoever leads now goes on from, or from a later one.
        if record.outcome == RETIRED {
            continue;
        }
        let fence = claims.iter().find(|claim| {
            let epoch = claim.record.as_ref().map_or(record.epoch, |r| r.epoch);
            epoch > record.epoch
                && claim.ended < write.began
                && claim.directory() == write.directory()
        });
        if let Some(claim) = fence {
            broken.push(format!(
                "{:?} of epoch {} wrote {} after {} had claimed the job",
                write.node, record.epoch, write.key, claim.key
            ));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::store::RecordHead;
    use perennial_actors::model::{CheckpointId, LeaderEpoch};

    fn write(at: (u64, u64), kind: WriteKind, number: u64, epoch: u64, outcome: &str) -> Write {
        Write {
            began: at.0,
            ended: at.1,
            node: Some(format!("jobmanager-{epoch}")),
            kind,
            key: format!("p/job/chk-{number}/_metadata"),
            status: 200,
            record: Some(RecordHead {
                checkpoint: CheckpointId(number),
                epoch: LeaderEpoch(epoch),
                token: u128::from(at.0),
                outcome: outcome.to_owned(),
            }),
            object: None,
        }
    }

    fn history(writes: &[Write]) -> History {
        let mut history = History::default();
        history.writes = writes.to_vec();
        history
    }

    #[test]
    fn a_record_that_is_created_twice_or_replaced_is_seen() {
        use WriteKind::{Create, Put};
        let first = write((1, 2), Create, 1, 1, "completed");
        let retired = write((3, 4), Put, 1, 1, RETIRED);
        assert!(check_one_truth(&history(&[first.clone(), retired])).is_empty());
        let mut refused = write((3, 4), Create, 1, 2, "completed");
        refused.status = 412;
        assert!(check_one_truth(&history(&[first.clone(), refused.clone()])).is_empty());
        refused.status = 200;
        assert_eq!(
            check_one_truth(&history(&[first.clone(), refused])).len(),
            1
        );
        let replaced = write((3, 4), Put, 1, 1, "completed");
        assert_eq!(check_one_truth(&history(&[first, replaced])).len(), 1);
    }

    #[test]
    fn a_write_of_a_fenced_leader_is_seen_unless_it_was_under_way() {
        use WriteKind::Create;
        let claim = write((5, 8), Create, 2, 2, "claimed");
        let late = write((9, 10), Create, 3, 1, "completed");
        assert_eq!(check_fencing(&history(&[claim.clone(), late])).len(), 1);
        let under_way = write((7, 10), Create, 3, 1, "completed");
        assert!(check_fencing(&history(&[claim.clone(), under_way])).is_empty());
        let mut elsewhere = write((9, 10), Create, 3, 1, "completed");
        elsewhere.key = "p/other/chk-3/_metadata".to_owned();
        assert!(check_fencing(&history(&[claim.clone(), elsewhere])).is_empty());
        let own = write((9, 10), Create, 3, 2, "completed");
        assert!(check_fencing(&history(&[claim, own])).is_empty());
    }
}
