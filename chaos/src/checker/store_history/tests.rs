//! One history that is right, and what each wrong step in it is found to be.

use perennial_actors::checkpoint::encode_record;
use perennial_actors::model::{CheckpointId, JobId, ObjectInfo, SnapshotKind};

use super::*;

struct Says(Result<(), &'static str>);

impl SnapshotOracle for Says {
    fn check(&self, _snapshot: &Loaded<'_>) -> anyhow::Result<()> {
        self.0.map_err(anyhow::Error::msg)
    }
}

fn completed(checkpoint: u64, epoch: u64, object: &str) -> RecordOutcome {
    RecordOutcome::Completed(Box::new(Manifest {
        job: JobId(1),
        job_name: String::new(),
        checkpoint: CheckpointId(checkpoint),
        epoch: LeaderEpoch(epoch),
        kind: SnapshotKind::Checkpoint,
        timestamp_ms: 0,
        duration_ms: 0,
        operators: Vec::new(),
        objects: vec![ObjectInfo {
            key: object.to_owned(),
            length: 1,
            crc32c: crc32c::crc32c(b"x"),
            compression: "none".to_owned(),
            encryption: "none".to_owned(),
            format: 1,
        }],
    }))
}

fn aborted(reason: &str) -> RecordOutcome {
    RecordOutcome::Aborted {
        reason: reason.to_owned(),
    }
}

enum Step {
    Record(u64, u64, RecordOutcome),
    Delete(&'static str),
    /// An object that is no record.
    Land(&'static str),
    Harm(&'static str),
    /// What is still there when all is over.
    Left(&'static str),
}
use Step::{Delete, Harm, Land, Left, Record as Write};

fn found(steps: Vec<Step>, oracle: Result<(), &'static str>) -> Vec<Invariant> {
    let mut history = StoreHistory::default();
    let mut seen = BTreeSet::new();
    let object = |key: &str| (!key.ends_with("gone")).then(|| Bytes::from_static(b"x"));
    for step in steps {
        let (key, after) = match step {
            Step::Record(number, epoch, outcome) => {
                let record = Record {
                    checkpoint: CheckpointId(number),
                    epoch: LeaderEpoch(epoch),
                    token: 0,
                    outcome,
                };
                let bytes = Bytes::from(encode_record(&record).unwrap());
                (format!("j/chk-{number}/_metadata"), Some(bytes))
            }
            Step::Delete(key) => (format!("j/{key}"), None),
            Step::Land(key) => (format!("j/{key}"), Some(Bytes::from_static(b"x"))),
            Step::Harm(key) => {
                seen.remove(&format!("j/{key}"));
                history.harm("j", key);
                continue;
            }
            Step::Left(key) => {
                history.check_leftovers(std::iter::once(format!("j/{key}").as_str()));
                continue;
            }
        };
        let kind = match &after {
            Some(_) if seen.insert(key.clone()) => WriteKind::Create,
            Some(_) => WriteKind::Put,
            None => WriteKind::Delete,
        };
        history.change(kind, &key, after.as_ref(), &object, &Says(oracle));
    }
    let violations = history.findings().violations;
    violations.into_iter().map(|v| v.invariant).collect()
}

/// One history that is right, and what each wrong step is found to be.
#[test]
fn every_wrong_change_is_seen() {
    let claim = || Write(1, 1, RecordOutcome::Claimed);
    let good = || {
        vec![
            claim(),
            Write(2, 1, completed(2, 1, "shared/a")),
            Write(3, 1, aborted("expired")),
            Write(4, 2, RecordOutcome::Claimed),
            Write(5, 2, completed(5, 2, "shared/b")),
            Write(2, 2, aborted("retired")),
            Delete("shared/a"),
        ]
    };
    assert_eq!(found(good(), Ok(())), []);
    let after = |step: Step| {
        let mut steps = good();
        steps.push(step);
        found(steps, Ok(()))
    };
    use Invariant::{R4, S2, S3, S4};
    assert_eq!(after(Delete("shared/b")), [R4]);
    assert_eq!(after(Delete("chk-5/_metadata")), [R4]);
    assert_eq!(after(Write(5, 2, aborted("retired"))), [S3]);
    assert_eq!(after(Write(5, 2, aborted("expired"))), [S3, S3]);
    assert_eq!(after(Write(7, 2, aborted("a gap"))), [S3]);
    assert_eq!(after(Write(6, 3, aborted("no claim"))), [S3]);
    assert_eq!(after(Write(6, 1, completed(6, 1, "shared/c"))), [S3, S4]);
    assert_eq!(after(Write(6, 2, completed(9, 2, "shared/c"))), [S3]);
    assert_eq!(after(Write(6, 2, completed(6, 2, "shared/gone"))), [S2]);
    let wrong = vec![claim(), Write(2, 1, completed(2, 1, "shared/a"))];
    assert_eq!(found(wrong, Err("state differs")), [S2]);
}

/// A record that was lost before anybody heard of it may be decided again, and what it referred to may go; nothing else may.
#[test]
fn what_the_harness_harmed_is_forgotten_and_all_else_is_judged() {
    use Invariant::{R4, S2, S3};
    let after = |steps: Vec<Step>, oracle| {
        let mut all = vec![
            Write(1, 1, RecordOutcome::Claimed),
            Write(2, 1, completed(2, 1, "shared/a")),
        ];
        all.extend(steps);
        found(all, oracle)
    };
    let (record, again) = ("chk-2/_metadata", || Write(2, 1, aborted("again")));
    for (step, broken) in [
        (again as fn() -> Step, vec![S3, S3]),
        (|| Delete("chk-2/_metadata"), vec![R4]),
        (|| Delete("shared/a"), vec![R4]),
    ] {
        assert_eq!(after(vec![step()], Ok(())), broken);
        assert_eq!(after(vec![Harm(record), step()], Ok(())), []);
        let other = "chk-1/_metadata";
        assert_eq!(after(vec![Harm(other), step()], Ok(())), broken);
    }
    let next = |object| Write(3, 1, completed(3, 1, object));
    let wrong = Err("state differs");
    assert_eq!(after(vec![Harm("shared/a"), next("shared/a")], wrong), [S2]);
    assert_eq!(
        after(vec![Harm("shared/a"), next("shared/b")], wrong),
        [S2, S2]
    );
}

/// R4 at a job's end: only what a write under way brought after it, or the harness has harmed, may be left.
#[test]
fn what_a_finished_job_leaves_is_seen() {
    use Invariant::R4;
    let after = |steps: Vec<Step>| {
        let mut all = vec![
            Write(1, 1, RecordOutcome::Claimed),
            Write(2, 1, completed(2, 1, "shared/a")),
        ];
        all.extend(steps);
        found(all, Ok(()))
    };
    let end = |state| {
        let message = None;
        Write(3, 1, RecordOutcome::Terminal { state, message })
    };
    let finished = || end(JobState::Finished);
    assert_eq!(after(vec![finished(), Left("shared/a")]), [R4]);
    assert_eq!(after(vec![finished(), Left("latest")]), []);
    assert_eq!(after(vec![end(JobState::Failed), Left("shared/a")]), []);
    assert_eq!(
        after(vec![Land("shared/b"), finished(), Left("shared/b")]),
        [R4]
    );
    assert_eq!(
        after(vec![finished(), Land("shared/b"), Left("shared/b")]),
        []
    );
    assert_eq!(
        after(vec![Harm("shared/a"), finished(), Left("shared/b")]),
        []
    );
}
