//! Names of the objects of a job's checkpoint directory: the one place that knows the layout.
//!
//! Invariant: every name of a state object says which leader, checkpoint and deployment wave wrote it, so that the sweeper can tell
//! garbage from work in progress without a clock.

use crate::model::{Attempt, CheckpointId, InstanceId, LeaderEpoch};

/// Folder of state objects within a job's checkpoint directory and within a savepoint.
pub const SHARED_PREFIX: &str = "shared/";
/// Name of the record within a snapshot's folder.
pub const METADATA: &str = "_metadata";
/// Where probing for the end of the sequence starts; never more than a hint.
pub const LATEST_KEY: &str = "latest";

/// Key of the record of a number.
#[must_use]
pub fn record_key(checkpoint: CheckpointId) -> String {
    format!("chk-{checkpoint}/{METADATA}")
}

/// Key of the note that a checkpoint was found damaged.
#[must_use]
pub fn quarantine_key(checkpoint: CheckpointId) -> String {
    format!("chk-{checkpoint}/_quarantined")
}

/// Key of the note that says in which savepoint directory the objects of a checkpoint lie (stop with savepoint). It names the epoch, so
/// that a fenced leader cannot replace the note of its successor.
#[must_use]
pub fn savepoint_note_key(checkpoint: CheckpointId, epoch: LeaderEpoch) -> String {
    format!("chk-{checkpoint}/_savepoint-e{epoch}")
}

/// Key of the object that one TaskManager writes for one checkpoint.
#[must_use]
pub fn object_key(
    epoch: LeaderEpoch,
    checkpoint: CheckpointId,
    attempt: Attempt,
    instance: InstanceId,
) -> String {
    format!(
        "{SHARED_PREFIX}e{epoch}-c{checkpoint}-a{attempt}-{:08x}",
        instance_prefix(instance)
    )
}

/// What an object's key says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectKey {
    /// The leader that triggered the checkpoint.
    pub epoch: LeaderEpoch,
    /// The checkpoint it was written for; later ones may refer to it.
    pub checkpoint: CheckpointId,
    /// The deployment wave of the writer's tasks.
    pub attempt: Attempt,
    /// The first 32 bits of the writing process's instance id.
    pub instance_prefix: u32,
}

/// Reads a key made by [`object_key`]; `None` for any other text.
#[must_use]
pub fn parse_object_key(key: &str) -> Option<ObjectKey> {
    let mut parts = key.strip_prefix(SHARED_PREFIX)?.split('-');
    let mut number = |letter: char| -> Option<u64> {
        let digits = parts.next()?.strip_prefix(letter)?;
        let value: u64 = digits.parse().ok()?;
        // Only the canonical spelling, so that key and parts name each other.
        (value.to_string() == digits).then_some(value)
    };
    let epoch = LeaderEpoch(number('e')?);
    let checkpoint = CheckpointId(number('c')?);
    let attempt = Attempt(u32::try_from(number('a')?).ok()?);
    let hex = parts.next()?;
    let is_canonical = hex.len() == 8
        && hex
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !is_canonical || parts.next().is_some() {
        return None;
    }
    let instance_prefix = u32::from_str_radix(hex, 16).ok()?;
    Some(ObjectKey {
        epoch,
        checkpoint,
        attempt,
        instance_prefix,
    })
}

fn instance_prefix(instance: InstanceId) -> u32 {
    (instance.0 >> 96) as u32
}

/// Splits the URI of a snapshot as a person gives it into the URI of its folder: a trailing `/` or `/_metadata` is dropped.
#[must_use]
pub fn snapshot_directory(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    let path = path
        .strip_suffix(METADATA)
        .and_then(|p| p.strip_suffix('/'))
        .unwrap_or(path);
    path.trim_end_matches('/')
}

/// When a snapshot's folder is a checkpoint of a job (`<dir>/<job-id>/chk-<n>`): the job's directory and the number.
#[must_use]
pub fn as_checkpoint_directory(directory: &str) -> Option<(&str, CheckpointId)> {
    let (parent, name) = directory.rsplit_once('/')?;
    let number = name.strip_prefix("chk-")?.parse().ok()?;
    Some((parent, CheckpointId(number)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn object_keys_have_the_agreed_form() {
        let key = object_key(
            LeaderEpoch(3),
            CheckpointId(12),
            Attempt(4),
            InstanceId(0x0123_4567_89ab_cdef_0000_0000_0000_0000),
        );
        assert_eq!(key, "shared/e3-c12-a4-01234567");
    }

    #[test]
    fn a_snapshot_path_may_name_the_folder_or_its_metadata() {
        for path in [
            "s3://b/x/chk-7",
            "s3://b/x/chk-7/",
            "s3://b/x/chk-7/_metadata",
        ] {
            assert_eq!(snapshot_directory(path), "s3://b/x/chk-7");
        }
        assert_eq!(
            as_checkpoint_directory("s3://b/x/chk-7"),
            Some(("s3://b/x", CheckpointId(7)))
        );
        assert_eq!(as_checkpoint_directory("s3://b/x/savepoint-1-2"), None);
    }

    proptest! {
        #[test]
        fn object_keys_round_trip(e: u64, c: u64, a: u32, i: u128) {
            let key = object_key(LeaderEpoch(e), CheckpointId(c), Attempt(a), InstanceId(i));
            let parsed = parse_object_key(&key).unwrap();
            prop_assert_eq!((parsed.epoch.0, parsed.checkpoint.0, parsed.attempt.0), (e, c, a));
            prop_assert_eq!(parsed.instance_prefix, (i >> 96) as u32);
        }

        #[test]
        fn only_canonical_keys_parse(key in "shared/e[0-9]{1,3}-c[0-9]{1,3}-a[0-9]{1,3}-[0-9a-fA-F]{7,9}") {
            if let Some(k) = parse_object_key(&key) {
                let instance = InstanceId(u128::from(k.instance_prefix) << 96);
                prop_assert_eq!(object_key(k.epoch, k.checkpoint, k.attempt, instance), key);
            }
        }
    }
}
