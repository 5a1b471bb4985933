//! The input file as a source: blocks of records, dealt out to lanes in turn, so that event time advances together in all of them.
//!
//! Invariant: block `b` belongs to lane `b mod lanes`, and the position of a lane is the number of its records that were read; so any
//! continuation is the one that the lost reader would have made. The Java peer reads the same blocks in the same order.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use perennial::batch::Batch;
use perennial::connector::{Source, SourceReader, SourceSplit, SourceStatus, SubtaskContext};
use perennial::error::{FunctionError, FunctionResult};
use perennial_actors::clock::Instant;

use super::event::Event;
use super::format::{FormatError, Header, RECORD_BYTES};

/// Records of a block, which is what one poll reads.
pub const BLOCK_RECORDS: u64 = 1024;

/// The input cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("input {}: {source}", path.display())]
pub struct InputError {
    path: PathBuf,
    source: FormatError,
}

/// The events of a file.
#[derive(Debug, Clone)]
pub struct EventFile {
    path: PathBuf,
    lanes: u32,
    limit: u64,
}

impl EventFile {
    /// All events, or the first `limit`.
    #[must_use]
    pub fn new(path: PathBuf, lanes: u32, limit: Option<u64>) -> Self {
        Self {
            path,
            lanes,
            limit: limit.unwrap_or(u64::MAX),
        }
    }

    fn error(&self, source: impl Into<FormatError>) -> FunctionError {
        FunctionError::unrecoverable(InputError {
            path: self.path.clone(),
            source: source.into(),
        })
    }

    fn open(&self) -> Result<(File, Header), FormatError> {
        let file = File::open(&self.path)?;
        let mut bytes = [0; RECORD_BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        Ok((file, Header::decode(&bytes)?))
    }
}

impl Source for EventFile {
    type Item = Event;

    fn splits(&self, _parallelism: u32) -> FunctionResult<Vec<SourceSplit>> {
        let split = |lane| SourceSplit {
            id: format!("lane-{lane}"),
            position: 0,
            watermark: None,
            extra: Vec::new(),
        };
        Ok((0..self.lanes).map(split).collect())
    }

    fn reader(
        &self,
        _context: &SubtaskContext,
        splits: Vec<SourceSplit>,
    ) -> FunctionResult<Box<dyn SourceReader<Event>>> {
        let (file, header) = self.open().map_err(|error| self.error(error))?;
        let lane = |split: SourceSplit| {
            let number = split.id.strip_prefix("lane-").and_then(|n| n.parse().ok());
            match number.filter(|lane| *lane < u64::from(self.lanes)) {
                Some(lane) => Ok(Lane {
                    lane,
                    position: split.position,
                }),
                None => Err(FunctionError::unrecoverable(format!(
                    "split `{}` is not one of {} lanes: keep --sources",
                    split.id, self.lanes
                ))),
            }
        };
        Ok(Box::new(Reader {
            source: self.clone(),
            file,
            count: header.count.min(self.limit),
            lanes: splits.into_iter().map(lane).collect::<Result<_, _>>()?,
            block: vec![[0; RECORD_BYTES]; BLOCK_RECORDS as usize],
            last: None,
        }))
    }
}

struct Lane {
    lane: u64,
    /// Records that were read.
    position: u64,
}

impl Lane {
    /// Number of its next record among all.
    fn next(&self, lanes: u32) -> u64 {
        let block = self.position / BLOCK_RECORDS * u64::from(lanes) + self.lane;
        block * BLOCK_RECORDS + self.position % BLOCK_RECORDS
    }
}

struct Reader {
    source: EventFile,
    file: File,
    /// Records in all.
    count: u64,
    lanes: Vec<Lane>,
    block: Vec<[u8; RECORD_BYTES]>,
    /// Lane and first position of what was read last.
    last: Option<(u64, u64)>,
}

impl SourceReader<Event> for Reader {
    fn poll(
        &mut self,
        out: &mut Batch<Event>,
        max: usize,
        _now: Instant,
    ) -> FunctionResult<SourceStatus> {
        let lanes = self.source.lanes;
        // The lane that is behind, so that a reader with several keeps them together.
        let next = self.lanes.iter().enumerate();
        let next = next.map(|(place, lane)| (lane.next(lanes), place)).min();
        let Some((first, place)) = next.filter(|(first, _)| *first < self.count) else {
            return Ok(SourceStatus::Finished);
        };
        let left = BLOCK_RECORDS - self.lanes[place].position % BLOCK_RECORDS;
        let records = left.min(self.count - first).min(max.max(1) as u64);
        self.last = Some((self.lanes[place].lane, self.lanes[place].position));
        let block = &mut self.block[..usize::try_from(records).unwrap_or(0)];
        // The header has a record's length.
        self.file
            .read_exact_at(block.as_flattened_mut(), (first + 1) * RECORD_BYTES as u64)
            .map_err(|error| self.source.error(error))?;
        for record in block.iter() {
            let event = Event::decode(record).map_err(|error| self.source.error(error))?;
            out.push(event, Some(event.time()));
        }
        self.lanes[place].position += records;
        Ok(SourceStatus::More)
    }

    fn snapshot(&self) -> Vec<SourceSplit> {
        let split = |lane: &Lane| SourceSplit {
            id: format!("lane-{}", lane.lane),
            position: lane.position,
            watermark: None,
            extra: Vec::new(),
        };
        self.lanes.iter().map(split).collect()
    }

    fn position(&self, index: usize) -> Option<(String, u64)> {
        let (lane, first) = self.last?;
        Some((format!("lane-{lane}"), first + index as u64))
    }
}
