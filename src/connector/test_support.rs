//! What the tests of connectors share.

use perennial_actors::clock::Instant;
use perennial_actors::model::{
    Attempt, ExecutionAttemptId, JobId, LeaderEpoch, OperatorId, SubtaskIndex, VertexId,
};

use super::{Source, SourceReader, SourceSplit, SourceStatus, SubtaskContext};
use crate::batch::Batch;

pub(crate) fn context(subtask: u32, parallelism: u32, epoch: u64, attempt: u32) -> SubtaskContext {
    SubtaskContext {
        attempt: ExecutionAttemptId {
            job: JobId(0xABCD_EF01_2345_6789_ABCD_EF01_2345_6789),
            vertex: VertexId(1),
            subtask: SubtaskIndex(subtask),
            epoch: LeaderEpoch(epoch),
            attempt: Attempt(attempt),
        },
        operator: OperatorId::from_uid("out"),
        uid: "out".to_owned(),
        job_name: "test".to_owned(),
        parallelism,
    }
}

pub(crate) fn reader<S: Source>(
    source: &S,
    splits: Vec<SourceSplit>,
) -> Box<dyn SourceReader<S::Item>> {
    source.reader(&context(0, 1, 1, 1), splits).unwrap()
}

/// Everything until the end, in polls of `max`.
pub(crate) fn drain<T>(reader: &mut dyn SourceReader<T>, max: usize) -> Batch<T> {
    let now = Instant::now();
    let mut out = Batch::default();
    loop {
        let before = out.len();
        match reader.poll(&mut out, max, now).unwrap() {
            SourceStatus::More => assert!(out.len() <= before + max),
            SourceStatus::Finished => return out,
            SourceStatus::Waiting { until } => panic!("waits until {until:?}"),
        }
    }
}
