//! Reads what a task begins with. Every byte is verified before it is used.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use perennial_actors::checkpoint::{Store, StoreError, StoreFactory};
use perennial_actors::model::{
    DataRef, FailureKind, GroupSlice, KeyGroupRange, KeyedSegment, ObjectInfo, OperatorId,
    OperatorState, SubtaskIndex, TaskRestore,
};

use crate::batch::MAX_WATERMARK;
use crate::operator::{
    LoadedSegment, NamedList, RestoredOperator, decode_lists, redistribute, union,
};

/// Reads of one task that are under way at once.
const PARALLEL_READS: usize = 4;

/// Whether keyed state is read too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keyed {
    Load,
    /// It was rolled back in place.
    Inherited,
}

/// Reads the restored state of the given operators (in order of their places).
pub(crate) async fn fetch(
    stores: &dyn StoreFactory,
    restore: &TaskRestore,
    operators: &[OperatorId],
    subtask: SubtaskIndex,
    parallelism: u32,
    range: KeyGroupRange,
    keyed: Keyed,
) -> Result<Vec<RestoredOperator>, FailureKind> {
    let store = stores
        .open(&restore.directory)
        .map_err(|e| FailureKind::Io {
            message: e.to_string(),
        })?;
    let reader = Reader { store, restore };
    let mut restored = Vec::with_capacity(operators.len());
    for id in operators {
        restored.push(match restore.operators.iter().find(|o| o.id == *id) {
            Some(state) => {
                reader
                    .operator(state, subtask, parallelism, range, keyed)
                    .await?
            }
            None => RestoredOperator::default(),
        });
    }
    Ok(restored)
}

struct Reader<'a> {
    store: Arc<dyn Store>,
    restore: &'a TaskRestore,
}

impl Reader<'_> {
    async fn operator(
        &self,
        state: &OperatorState,
        subtask: SubtaskIndex,
        parallelism: u32,
        range: KeyGroupRange,
        keyed: Keyed,
    ) -> Result<RestoredOperator, FailureKind> {
        let mut lists: Vec<Vec<NamedList>> = Vec::new();
        let mut by_subtask: BTreeMap<SubtaskIndex, usize> = BTreeMap::new();
        for (place, stored) in state.subtasks.iter().enumerate() {
            by_subtask.insert(stored.subtask, place);
        }
        for place in by_subtask.values() {
            let stored = &state.subtasks[*place];
            lists.push(match &stored.operator_state {
                Some(data) => {
                    let bytes = self.read(data, 0, data.length()).await?;
                    self.verify(data, &bytes, stored.operator_state_crc32c)?;
                    decode_lists(&bytes)?
                }
                None => Vec::new(),
            });
        }
        let is_same_parallelism = by_subtask.len() == parallelism as usize;
        let own = by_subtask
            .get(&subtask)
            .filter(|_| is_same_parallelism)
            .map(|place| &state.subtasks[*place]);
        let segments = match keyed {
            Keyed::Inherited => Vec::new(),
            Keyed::Load => self.segments(state, range).await?,
        };
        let watermark = match own {
            Some(own) => own.watermark,
            // After a rescale no subtask may be ahead of any whose keys it got.
            None => state.subtasks.iter().map(|s| s.watermark).min().flatten(),
        };
        let is_finished = match own {
            Some(own) => own.is_finished,
            None => !state.subtasks.is_empty() && state.subtasks.iter().all(|s| s.is_finished),
        };
        // The end that another job came to, by a drain, is not this one's: its sources read on, as in Flink.
        let is_own = self.restore.checkpoint != TaskRestore::OF_ANOTHER_JOB;
        Ok(RestoredOperator {
            is_restored: true,
            checkpoint: Some(self.restore.checkpoint),
            watermark: watermark.filter(|watermark| is_own || *watermark < MAX_WATERMARK),
            is_finished: is_own && is_finished,
            everyones: union(&lists),
            lists: redistribute(&lists, subtask.0 as usize, parallelism as usize),
            segments,
        })
    }

    async fn segments(
        &self,
        state: &OperatorState,
        range: KeyGroupRange,
    ) -> Result<Vec<LoadedSegment>, FailureKind> {
        let reads: Vec<BoxFuture<'_, Result<Option<LoadedSegment>, FailureKind>>> = state
            .keyed
            .iter()
            .map(|segment| Box::pin(self.segment(state, segment, range)) as BoxFuture<'_, _>)
            .collect();
        let loaded: Vec<_> = futures::stream::iter(reads)
            .buffered(PARALLEL_READS)
            .collect()
            .await;
        loaded.into_iter().filter_map(Result::transpose).collect()
    }

    async fn segment(
        &self,
        state: &OperatorState,
        segment: &KeyedSegment,
        range: KeyGroupRange,
    ) -> Result<Option<LoadedSegment>, FailureKind> {
        let slices: Vec<&GroupSlice> = segment
            .groups
            .iter()
            .filter(|slice| range.contains(slice.group))
            .collect();
        let (Some(start), Some(end)) = (
            slices.iter().map(|s| s.offset).min(),
            slices
                .iter()
                .map(|s| s.offset.saturating_add(s.length))
                .max(),
        ) else {
            return Ok(None);
        };
        let bytes = self.read(&segment.data, start, end - start).await?;
        let mut groups = Vec::with_capacity(slices.len());
        for slice in slices {
            let from = usize::try_from(slice.offset - start).unwrap_or(usize::MAX);
            let to = usize::try_from((slice.offset - start).saturating_add(slice.length))
                .unwrap_or(usize::MAX);
            if from > to || to > bytes.len() {
                return Err(self.damaged(
                    &segment.data,
                    format!("key group {} lies outside its segment", slice.group),
                ));
            }
            let part = bytes.slice(from..to);
            self.verify(&segment.data, &part, slice.crc32c)?;
            groups.push((slice.group, part));
        }
        Ok(Some(LoadedSegment {
            checkpoint: segment.checkpoint,
            kind: segment.kind,
            states: state.states.clone(),
            groups,
        }))
    }

    async fn read(&self, data: &DataRef, offset: u64, length: u64) -> Result<Bytes, FailureKind> {
        match data {
            DataRef::Inline(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let to = usize::try_from(offset.saturating_add(length)).unwrap_or(usize::MAX);
                if from > to || to > bytes.len() {
                    return Err(self.damaged(data, "a slice lies outside the inline state".into()));
                }
                Ok(bytes.slice(from..to))
            }
            DataRef::Object {
                offset: base,
                length: available,
                ..
            } => {
                let Some(object) = self.object(data) else {
                    return Err(self.damaged(
                        data,
                        "the manifest names an object that it does not list".into(),
                    ));
                };
                let end = offset.saturating_add(length);
                if end > *available || base.saturating_add(end) > object.length {
                    return Err(self.damaged(data, "a slice lies outside the object".into()));
                }
                if length == 0 {
                    return Ok(Bytes::new());
                }
                let start = base + offset;
                let bytes = match self
                    .store
                    .get(&object.key, Some(start..start + length))
                    .await
                {
                    Ok(bytes) => bytes,
                    Err(StoreError::NotFound { .. }) => {
                        return Err(self.damaged(data, "it is missing".into()));
                    }
                    Err(error) => {
                        return Err(self
                            .unreadable(data, &object.key, object.length, error)
                            .await);
                    }
                };
                if bytes.len() as u64 != length {
                    return Err(self.damaged(
                        data,
                        format!("{} bytes from {start}, manifest says {length}", bytes.len()),
                    ));
                }
                Ok(bytes)
            }
        }
    }

    /// Tells an object that is shorter than when it was written from a store that fails.
    async fn unreadable(
        &self,
        data: &DataRef,
        key: &str,
        expected: u64,
        error: StoreError,
    ) -> FailureKind {
        let listed = self.store.list(key).await.unwrap_or_default();
        match listed.iter().find(|meta| meta.key == key) {
            Some(meta) if meta.size != expected => self.damaged(
                data,
                format!("{} bytes, manifest says {expected}", meta.size),
            ),
            Some(_) | None => FailureKind::Io {
                message: error.to_string(),
            },
        }
    }

    fn verify(&self, data: &DataRef, bytes: &[u8], expected: u32) -> Result<(), FailureKind> {
        let actual = crc32c::crc32c(bytes);
        if actual == expected {
            return Ok(());
        }
        Err(self.damaged(
            data,
            format!("checksum {actual:08x}, manifest says {expected:08x}"),
        ))
    }

    fn object(&self, data: &DataRef) -> Option<&ObjectInfo> {
        match data {
            DataRef::Inline(_) => None,
            DataRef::Object { object, .. } => self.restore.objects.get(*object as usize),
        }
    }

    fn damaged(&self, data: &DataRef, message: String) -> FailureKind {
        FailureKind::DamagedSnapshot {
            checkpoint: self.restore.checkpoint,
            object: self
                .object(data)
                .map_or_else(|| "_metadata".to_owned(), |o| o.key.clone()),
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use perennial_actors::entropy::Entropy;
    use perennial_actors::model::{CheckpointId, SubtaskState};
    use perennial_config::Settings;

    use super::*;
    use crate::storage::Stores;

    /// The sources of the other job read on: with event time at its end, all that they read would be late.
    #[tokio::test]
    async fn the_end_that_another_job_was_drained_to_is_not_this_ones() {
        let stores = Stores::new(Settings::default().cluster.s3, Entropy::seeded(1));
        let drained = |subtask| SubtaskState {
            subtask: SubtaskIndex(subtask),
            watermark: Some(MAX_WATERMARK),
            is_finished: true,
            operator_state: None,
            operator_state_crc32c: 0,
            positions: Vec::new(),
        };
        let id = OperatorId(1);
        let operator = OperatorState {
            id,
            uid: "window".to_owned(),
            parallelism: 2,
            max_parallelism: 8,
            states: Vec::new(),
            keyed: Vec::new(),
            subtasks: vec![drained(0), drained(1)],
            coordinator: None,
        };
        for (checkpoint, expected) in [
            (CheckpointId(3), (Some(MAX_WATERMARK), true)),
            (TaskRestore::OF_ANOTHER_JOB, (None, false)),
        ] {
            for parallelism in [1, 2] {
                let restore = TaskRestore {
                    checkpoint,
                    may_inherit: false,
                    directory: "memory://restore/".to_owned(),
                    operators: vec![operator.clone()],
                    objects: Vec::new(),
                    allow_non_restored_state: false,
                };
                let subtask = SubtaskIndex(0);
                let range = KeyGroupRange::of(subtask, parallelism, 8);
                let restored = fetch(
                    &stores,
                    &restore,
                    std::slice::from_ref(&id),
                    subtask,
                    parallelism,
                    range,
                    Keyed::Load,
                );
                let restored = restored.await.unwrap().remove(0);
                assert_eq!((restored.watermark, restored.is_finished), expected);
            }
        }
    }
}
