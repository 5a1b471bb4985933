//! A snapshot with the bytes of its objects, and its keyed entries without the job's types.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use perennial::state::decode_entries;
use perennial_actors::checkpoint::{Store, segments_for_group};
use perennial_actors::model::{
    DataRef, KeyGroup, KeyedSegment, Manifest, ObjectInfo, OperatorId, OperatorState, StateMeta,
};

use crate::oracle::Positions;

/// A snapshot in memory. Every object that its manifest names was there, with the right length and checksum.
pub struct Loaded<'a> {
    manifest: &'a Manifest,
    objects: Vec<Bytes>,
}

/// One keyed entry.
pub struct Entry<'a> {
    /// Of which state, or which timers.
    pub state: &'a StateMeta,
    /// Where.
    pub group: KeyGroup,
    /// Postcard.
    pub key: Vec<u8>,
    /// Postcard.
    pub namespace: Vec<u8>,
    /// Postcard: a map's key, a timer's time, else empty.
    pub map_key: Vec<u8>,
    /// MessagePack.
    pub value: Vec<u8>,
}

impl<'a> Loaded<'a> {
    /// Reads each object once.
    ///
    /// # Errors
    /// When one cannot be read or is not what the manifest says.
    pub async fn read(store: &Arc<dyn Store>, manifest: &'a Manifest) -> anyhow::Result<Self> {
        let mut objects = Vec::new();
        for info in &manifest.objects {
            let bytes = store.get(&info.key, None).await?;
            verify(info, &bytes)?;
            objects.push(bytes);
        }
        Ok(Self { manifest, objects })
    }

    /// Takes the objects from where they are.
    ///
    /// # Errors
    /// When one is missing or is not what the manifest says.
    pub fn of(
        manifest: &'a Manifest,
        object: &dyn Fn(&str) -> Option<Bytes>,
    ) -> anyhow::Result<Self> {
        let mut objects = Vec::new();
        for info in &manifest.objects {
            let bytes =
                object(&info.key).ok_or_else(|| anyhow!("object {} is missing", info.key))?;
            verify(info, &bytes)?;
            objects.push(bytes);
        }
        Ok(Self { manifest, objects })
    }

    /// Its manifest.
    #[must_use]
    pub fn manifest(&self) -> &'a Manifest {
        self.manifest
    }

    /// The state of an operator.
    ///
    /// # Errors
    /// When there is none.
    pub fn operator(&self, uid: &str) -> anyhow::Result<&'a OperatorState> {
        operator(self.manifest, uid)
    }

    /// All keyed entries of an operator, key group by key group.
    ///
    /// # Errors
    /// When they cannot be read, or a checksum does not fit.
    pub fn entries(&self, uid: &str) -> anyhow::Result<Vec<Entry<'a>>> {
        let operator = self.operator(uid)?;
        let mut all = Vec::new();
        for group in 0..operator.max_parallelism {
            let group = KeyGroup(u16::try_from(group)?);
            let mut entries = BTreeMap::new();
            for (segment, slice) in segments_for_group(operator, group) {
                let bytes = self.segment(segment)?;
                let (from, to) = (slice.offset, slice.offset + slice.length);
                let bytes = bytes
                    .get(usize::try_from(from)?..usize::try_from(to)?)
                    .ok_or_else(|| anyhow!("key group {group} lies outside its segment"))?;
                ensure!(
                    crc32c::crc32c(bytes) == slice.crc32c,
                    "key group {group} of the segment of {} has a wrong checksum",
                    segment.checkpoint
                );
                for entry in decode_entries(bytes)? {
                    let key = (
                        entry.state,
                        entry.key_bytes,
                        entry.namespace_bytes,
                        entry.map_key_bytes,
                    );
                    match entry.value {
                        Some(value) => entries.insert(key, value),
                        None => entries.remove(&key),
                    };
                }
            }
            for ((index, key, namespace, map_key), value) in entries {
                let state = operator.states.iter().find(|s| s.index == index);
                all.push(Entry {
                    state: state
                        .with_context(|| format!("operator `{uid}` has no state {index}"))?,
                    group,
                    key,
                    namespace,
                    map_key,
                    value,
                });
            }
        }
        Ok(all)
    }

    fn segment(&self, segment: &KeyedSegment) -> anyhow::Result<Bytes> {
        match &segment.data {
            DataRef::Inline(bytes) => Ok(bytes.clone()),
            DataRef::Object {
                object,
                offset,
                length,
            } => {
                let whole = self
                    .objects
                    .get(usize::try_from(*object)?)
                    .ok_or_else(|| anyhow!("the manifest names no object {object}"))?;
                let range = usize::try_from(*offset)?..usize::try_from(offset + length)?;
                ensure!(
                    range.end <= whole.len(),
                    "a segment lies outside object {object}"
                );
                Ok(whole.slice(range))
            }
        }
    }
}

fn operator<'a>(manifest: &'a Manifest, uid: &str) -> anyhow::Result<&'a OperatorState> {
    let id = OperatorId::from_uid(uid);
    manifest
        .operators
        .iter()
        .find(|o| o.id == id)
        .ok_or_else(|| anyhow!("no state of operator `{uid}`"))
}

/// Where the lanes of a source stand.
///
/// # Errors
/// When a lane is missing or belongs to two subtasks.
pub fn lane_positions(manifest: &Manifest, source: &str, lanes: u64) -> anyhow::Result<Positions> {
    let mut positions = Positions::new();
    for subtask in &operator(manifest, source)?.subtasks {
        for (split, position) in &subtask.positions {
            let lane = split
                .strip_prefix("lane-")
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| anyhow!("split `{split}` is no lane"))?;
            let before = positions.insert(lane, *position);
            ensure!(before.is_none(), "lane {lane} belongs to two subtasks");
        }
    }
    let found: Vec<u64> = positions.keys().copied().collect();
    ensure!(
        found.iter().copied().eq(0..lanes),
        "positions for lanes {found:?}, expected all of 0..{lanes}"
    );
    Ok(positions)
}

fn verify(info: &ObjectInfo, bytes: &Bytes) -> anyhow::Result<()> {
    ensure!(
        bytes.len() as u64 == info.length,
        "object {} has {} bytes, the manifest says {}",
        info.key,
        bytes.len(),
        info.length
    );
    ensure!(
        crc32c::crc32c(bytes) == info.crc32c,
        "object {} has a wrong checksum",
        info.key
    );
    Ok(())
}
