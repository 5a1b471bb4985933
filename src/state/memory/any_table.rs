//! A table without its types, as the backend keeps it under a name.

use std::any::Any;

use perennial_actors::model::KeyGroup;

use crate::append::AppendBuffer;
use crate::batch::Timestamp;
use crate::state::capture::{Budget, Extent, ShardCursor};
use crate::state::cell::Cell;
use crate::state::encoding::take_entry;
use crate::state::intervals::Intervals;
use crate::state::table::{EntryKey, Index, LoggedTable};

/// A table without its types.
pub(super) trait AnyTable: Any + Send {
    fn value_type(&self) -> &'static str;
    fn live(&self) -> u64;
    fn first_time(&self) -> Option<Timestamp>;
    fn capture_shard(
        &self,
        at: usize,
        extent: Extent,
        intervals: &Intervals,
        cursor: &mut ShardCursor,
        out: &mut AppendBuffer,
        budget: &mut Budget,
    ) -> Result<bool, String>;
    /// Drops a piece of what is only needed below an interval; false when there is nothing.
    fn forget(&mut self, at: usize, below: u64, intervals: &mut Intervals) -> bool;
    fn drop_log(&mut self, at: usize, below: u64, intervals: &mut Intervals);
    fn undo(&mut self, to: u64, intervals: &mut Intervals) -> bool;
    fn load(
        &mut self,
        at: usize,
        group: KeyGroup,
        max_parallelism: u32,
        section: &[u8],
    ) -> Result<(), String>;
    fn clear(&mut self, at: usize);
    /// Whether the hash of a key alone leads to its entry, and there are so many entries that they do not stay in the caches.
    fn wants_read_ahead(&self) -> bool;
    /// Brings the entries of the given shards and hashes near the processor.
    fn read_ahead(&self, hashes: &[(usize, u64)]) -> u64;
}

/// Entries of a state from which on reading ahead pays: about what the processor's second cache holds.
const READ_AHEAD_FROM: u64 = 1 << 14;

impl<Q: EntryKey, C: Cell, I: Index<Q, C::Content>> AnyTable for LoggedTable<Q, C, I> {
    fn wants_read_ahead(&self) -> bool {
        Q::IS_KEY_ALONE && self.live >= READ_AHEAD_FROM
    }
    fn read_ahead(&self, hashes: &[(usize, u64)]) -> u64 {
        self.touch(hashes)
    }
    fn value_type(&self) -> &'static str {
        C::type_name()
    }
    fn live(&self) -> u64 {
        self.live
    }
    fn first_time(&self) -> Option<Timestamp> {
        self.index.first_time()
    }
    fn capture_shard(
        &self,
        at: usize,
        extent: Extent,
        intervals: &Intervals,
        cursor: &mut ShardCursor,
        out: &mut AppendBuffer,
        budget: &mut Budget,
    ) -> Result<bool, String> {
        self.capture_shard(at, extent, intervals, cursor, out, budget)
    }
    fn forget(&mut self, at: usize, below: u64, intervals: &mut Intervals) -> bool {
        self.forget(at, below, intervals).is_some()
    }
    fn drop_log(&mut self, at: usize, below: u64, intervals: &mut Intervals) {
        self.drop_log(at, below, intervals);
    }
    fn undo(&mut self, to: u64, intervals: &mut Intervals) -> bool {
        self.undo(to, intervals)
    }
    fn load(
        &mut self,
        at: usize,
        group: KeyGroup,
        max_parallelism: u32,
        mut section: &[u8],
    ) -> Result<(), String> {
        while !section.is_empty() {
            let entry = take_entry(&mut section).map_err(|e| e.to_string())?;
            let key = Q::take(&entry).map_err(|e| e.to_string())?;
            let actual = key.key_hash().key_group(max_parallelism);
            if actual != group {
                return Err(format!(
                    "holds a key of group {actual}: the key's encoding or the max parallelism ({max_parallelism}) has changed"
                ));
            }
            let cell = match entry.value {
                Some(value) => Some(C::decode(value).map_err(|e| e.to_string())?),
                None => None,
            };
            self.load(at, key, cell)?;
        }
        Ok(())
    }
    fn clear(&mut self, at: usize) {
        self.clear(at);
    }
}
