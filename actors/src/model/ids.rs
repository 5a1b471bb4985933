//! Identities. Each is a newtype, so that no number can stand for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text is not an id.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a {what}: expected {expected}")]
pub struct ParseIdError {
    /// The text that was given.
    pub text: String,
    /// The kind of id that was asked for.
    pub what: &'static str,
    /// What such an id looks like.
    pub expected: &'static str,
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);
        // For people and scripts as the text that every command takes, for machines as bits.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    u128::deserialize(deserializer).map($name)
                }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = || ParseIdError { text: text.to_owned(), what: stringify!($name), expected: "32 hexadecimal digits" };
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(error());
                }
                u128::from_str_radix(text, 16).map($name).map_err(|_| error())
            }
        }
    };
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id128!(/// One submitted job, for its whole life.
    JobId);
id128!(/// One operator of a job: derived from its `uid`, equal across submissions.
    OperatorId);
id128!(/// One incarnation of a process: random at its start, so that a successor on the same address is told apart.
    InstanceId);

number!(/// A vertex of a [`JobGraph`](super::JobGraph): its position in topological order.
    VertexId(u32));
number!(/// An edge of a [`JobGraph`](super::JobGraph): its position in the graph's list.
    EdgeId(u32));
number!(/// One of the parallel instances of a vertex, from 0.
    SubtaskIndex(u32));
number!(/// A shard of the key space; `hash mod max parallelism`.
    KeyGroup(u16));
number!(/// A completed leader election. Everything a leader sends carries it; a lower one is fenced.
    LeaderEpoch(u64));
number!(/// The deployment wave of a job under one leader: one number for all tasks that a restart deploys together.
    Attempt(u32));
number!(/// A checkpoint's number, which is the number of its record. The first is 1.
    CheckpointId(u64));

impl CheckpointId {
    /// The number that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl OperatorId {
    /// Derives the id from the operator's `uid`. The rule is part of the checkpoint format and never changes.
    #[must_use]
    pub fn from_uid(uid: &str) -> Self {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(uid.as_bytes());
        let mut bytes = [0_u8; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self(u128::from_be_bytes(bytes))
    }
}

/// The name of a TaskManager that outlives its process (Flink's `taskmanager.resource-id`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceId(pub String);

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The fingerprint of an executable: user code is placed only where the same build runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildId(pub String);

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One try to run one subtask. Totally ordered per subtask by (epoch, attempt); never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExecutionAttemptId {
    /// The job.
    pub job: JobId,
    /// The vertex.
    pub vertex: VertexId,
    /// The subtask.
    pub subtask: SubtaskIndex,
    /// The leader that deployed it.
    pub epoch: LeaderEpoch,
    /// The deployment wave under that leader.
    pub attempt: Attempt,
}

impl fmt::Display for ExecutionAttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vertex {} subtask {} attempt {}.{}",
            self.vertex, self.subtask, self.epoch, self.attempt
        )
    }
}

/// An inclusive range of key groups owned by one subtask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyGroupRange {
    /// First group owned.
    pub start: KeyGroup,
    /// Last group owned.
    pub end: KeyGroup,
}

impl KeyGroupRange {
    /// The range of `subtask` out of `parallelism`, as in Flink's `KeyGroupRangeAssignment`.
    ///
    /// # Panics
    /// When `parallelism` is 0 or above `max_parallelism`, which the graph's validation excludes.
    #[must_use]
    pub fn of(subtask: SubtaskIndex, parallelism: u32, max_parallelism: u32) -> Self {
        assert!(
            parallelism > 0 && parallelism <= max_parallelism && subtask.0 < parallelism,
            "validated by JobGraph::validate"
        );
        let (i, p, max) = (
            u64::from(subtask.0),
            u64::from(parallelism),
            u64::from(max_parallelism),
        );
        let start = (i * max).div_ceil(p);
        let end = ((i + 1) * max - 1) / p;
        Self {
            start: KeyGroup(start as u16),
            end: KeyGroup(end as u16),
        }
    }

    /// Whether the group lies in the range. Asked for each record.
    #[inline]
    #[must_use]
    pub fn contains(self, group: KeyGroup) -> bool {
        self.start <= group && group <= self.end
    }

    /// How many groups the range has; never 0.
    #[must_use]
    pub fn len(self) -> usize {
        usize::from(self.end.0 - self.start.0) + 1
    }

    /// Always false: a range holds at least one group.
    #[must_use]
    pub fn is_empty(self) -> bool {
        false
    }

    /// The groups in order.
    pub fn iter(self) -> impl Iterator<Item = KeyGroup> {
        (self.start.0..=self.end.0).map(KeyGroup)
    }
}

/// The subtask that owns a group, as in Flink's `KeyGroupRangeAssignment`.
#[must_use]
pub fn owner_of(group: KeyGroup, parallelism: u32, max_parallelism: u32) -> SubtaskIndex {
    SubtaskIndex((u64::from(group.0) * u64::from(parallelism) / u64::from(max_parallelism)) as u32)
}

/// The max parallelism of a vertex that does not set one, as in Flink's `KeyGroupRangeAssignment`.
#[must_use]
pub fn default_max_parallelism(parallelism: u32) -> u32 {
    (parallelism + parallelism / 2)
        .next_power_of_two()
        .clamp(128, 32768)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges that Flink 2.3.0 computes.
    #[test]
    fn key_group_ranges_are_those_of_flink() {
        let ranges = |p| {
            (0..p)
                .map(|i| KeyGroupRange::of(SubtaskIndex(i), p, 128))
                .map(|r| (r.start.0, r.end.0))
                .collect::<Vec<_>>()
        };
        assert_eq!(ranges(3), [(0, 42), (43, 85), (86, 127)]);
        assert_eq!(
            ranges(5),
            [(0, 25), (26, 51), (52, 76), (77, 102), (103, 127)]
        );
        for p in 1..=128 {
            for (i, (start, end)) in ranges(p).into_iter().enumerate() {
                for group in start..=end {
                    assert_eq!(
                        owner_of(KeyGroup(group), p, 128),
                        SubtaskIndex(i as u32),
                        "group {group} of {p}"
                    );
                }
            }
        }
    }

    /// By Flink's `KeyGroupRangeAssignment.computeDefaultMaxParallelism`.
    #[test]
    fn default_max_parallelism_is_that_of_flink() {
        for (p, max) in [
            (1, 128),
            (85, 128),
            (86, 256),
            (128, 256),
            (200, 512),
            (1000, 2048),
        ] {
            assert_eq!(default_max_parallelism(p), max, "parallelism {p}");
        }
    }
}
