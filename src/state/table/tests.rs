//! What a table keeps in memory, where its users cannot see it.

use perennial_actors::model::{CheckpointId, SnapshotKind};

use super::*;
use crate::state::cell::ValueCell;
use crate::state::composite::Composite;

type Key = Composite<u64, (), ()>;
type Counts = LoggedTable<Key, ValueCell<u64>, NoIndex>;

fn put(table: &mut Counts, intervals: &mut Intervals, key: u64, value: Option<u64>) {
    let entry = || Key::of(&key, &(), &());
    let hash = entry().table_hash().unwrap();
    table
        .put(0, intervals, hash, |e| e.is(&entry()), entry, value)
        .unwrap();
}

fn begin(intervals: &mut Intervals, checkpoint: u64) {
    assert!(intervals.begin(CheckpointId(checkpoint), SnapshotKind::Checkpoint));
}

/// A job that is restored in place again and again sees other keys each time.
#[test]
fn undo_leaves_nothing_of_what_came_after_its_target() {
    let (mut table, mut intervals) = (Counts::new(1), Intervals::new());
    begin(&mut intervals, 1);
    for round in 0..3 {
        for key in 0..100 {
            put(&mut table, &mut intervals, round * 100 + key, Some(key));
        }
        assert!(table.undo(1, &mut intervals));
        assert_eq!((table.live, table.shards[0].entries.len()), (0, 0));
        assert_eq!(intervals.log_bytes, 0);
    }
}

#[test]
fn keys_that_come_and_go_take_bounded_memory_until_they_are_forgotten() {
    let (mut table, mut intervals) = (Counts::new(1), Intervals::new());
    begin(&mut intervals, 1);
    for _ in 0..1000 {
        for key in 0..10 {
            put(&mut table, &mut intervals, key, Some(1));
            put(&mut table, &mut intervals, key, None);
        }
    }
    let shard = &table.shards[0];
    assert_eq!((table.live, shard.entries.len()), (0, 10));
    assert!(shard.tombstones.len() <= 2 * shard.places() + TOMBSTONES_SLACK + 1);
    begin(&mut intervals, 2);
    while table.forget(0, 2, &mut intervals).is_some() {}
    assert_eq!(table.shards[0].entries.len(), 0);
    assert_eq!(table.shards[0].tombstones.len(), 0);
}
