//! Nexmark: queries over an auction house, by the typed API, each beside the SQL that says what it means.
//!
//! Of the 50 events of an epoch one is a person, 3 are auctions and 46 are bids. The input is a file that both systems read
//! ([`mod@format`]), made once by [`generate`]. Watermarks are 4 s behind on both sides; the generated events are in order, so that nothing is
//! late and every query has one answer. The sink keeps number and checksum of the answer ([`crate::jobs::digest`]): of a query whose answer
//! changes (q4), rows that are taken back count negatively, so that what is compared is the final table.
//!
//! Each query has an `expected` that folds the events without the engine. The SQL in a query's documentation is what the Java peer runs,
//! word for word, over these views:
//!
//! ```sql
//! CREATE VIEW person  AS SELECT id, name, city, state, etime ...
//! CREATE VIEW auction AS SELECT id, itemName, initialBid, expires, seller, category, etime ...
//! CREATE VIEW bid     AS SELECT auction, bidder, price, extra, etime ...
//! -- each with WATERMARK FOR etime AS etime - INTERVAL '4' SECOND, etime being TIMESTAMP(3)
//! ```
//!
//! [`decode`] has no query: it is what reading and decoding the file costs alone.

pub mod decode;
pub mod event;
pub mod format;
pub mod generate;
pub mod q0_to_q2;
pub mod q11;
pub mod q3;
pub mod q4;
pub mod q5;
pub mod q7;
pub mod q8;
pub mod source;

use std::path::PathBuf;
use std::time::Duration;

use perennial::api::{Arguments, DataStream, JobOption, JobRegistry, StreamEnvironment};
use perennial::batch::Record;
use perennial::error::{FunctionError, FunctionResult};
use perennial::operator::WatermarkStrategy;

use self::event::{Bid, Event};
use self::source::EventFile;
use crate::jobs::digest::{Digest, DigestSink, Digestible};
use crate::jobs::watched::Watched;
use crate::marks::Marks;

/// By how much watermarks are behind.
pub const BOUND: Duration = Duration::from_secs(4);

const OPTIONS: &[JobOption] = &[
    JobOption {
        name: "query",
        help: "q0 to q5, q7, q8, q11, or decode for none",
    },
    JobOption {
        name: "input",
        help: "file of generated events, on every node",
    },
    JobOption {
        name: "events",
        help: "read only so many of them",
    },
    JobOption {
        name: "sources",
        help: "number of source subtasks [default: 2]",
    },
    JobOption {
        name: "marks",
        help: "directory in which the job says what happens when",
    },
];

/// One query.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// For `--query`.
    pub name: &'static str,
    /// For people.
    pub about: &'static str,
    build: fn(&Input, &DataStream<Event>),
    /// Its answer, by a fold over the events in order.
    pub expected: fn(&[Event]) -> Digest,
}

/// All of them.
pub const QUERIES: &[Query] = &[
    decode::DECODE,
    q0_to_q2::Q0,
    q0_to_q2::Q1,
    q0_to_q2::Q2,
    q3::Q3,
    q4::Q4,
    q5::Q5,
    q7::Q7,
    q8::Q8,
    q11::Q11,
];

/// Under which the job of all queries is registered.
pub const NAME: &str = "nexmark";

/// Adds the job.
#[must_use]
pub fn register(registry: JobRegistry) -> JobRegistry {
    let about = "a query over people, auctions and bids, by --query";
    registry.job(NAME, about, OPTIONS, |env, arguments| {
        let name: String = arguments.required("query")?;
        let Some(query) = QUERIES.iter().find(|query| query.name == name) else {
            let known: Vec<_> = QUERIES.iter().map(|query| query.name).collect();
            let message = format!("no query `{name}`; there are {}", known.join(", "));
            return Err(FunctionError::unrecoverable(message));
        };
        let input = Input::of(arguments)?;
        (query.build)(&input, &input.events(env));
        Ok(())
    })
}

/// What a query reads, and where it says what happens.
struct Input {
    path: PathBuf,
    limit: Option<u64>,
    sources: u32,
    marks: Marks,
}

impl Input {
    fn of(arguments: &Arguments) -> FunctionResult<Self> {
        let input = Self {
            path: arguments.required::<PathBuf>("input")?,
            limit: arguments.optional("events")?,
            sources: arguments.or("sources", 2)?,
            marks: Marks::new(arguments.optional::<PathBuf>("marks")?),
        };
        if input.sources == 0 {
            return Err(FunctionError::unrecoverable("need --sources >= 1"));
        }
        Ok(input)
    }

    fn events(&self, env: &StreamEnvironment) -> DataStream<Event> {
        let file = EventFile::new(self.path.clone(), self.sources, self.limit);
        env.from_source(
            Watched::new(file, self.marks.clone(), 0),
            WatermarkStrategy::bounded_out_of_orderness(BOUND),
            "events",
        )
        .uid("events")
        .parallelism(self.sources)
    }

    /// Ends a query.
    fn digest<T: Record + Digestible>(&self, answer: &DataStream<T>) {
        let _sink = answer
            .sink_to(DigestSink::new(self.marks.clone()))
            .name("digest")
            .uid("digest");
    }
}

/// The view `bid`.
fn bids(input: &Input, events: &DataStream<Event>) -> DataStream<Bid> {
    events
        .flat_map(|event| Ok(event.bid()))
        .name("bids")
        .uid("bids")
        .parallelism(input.sources)
}

/// The digest of rows.
fn digest_of<T: Digestible>(rows: impl IntoIterator<Item = T>) -> Digest {
    let mut digest = Digest::default();
    for row in rows {
        digest.add(&row);
    }
    digest
}

/// The view `bid`, for a fold.
fn bids_of(events: &[Event]) -> impl Iterator<Item = Bid> {
    events.iter().filter_map(|event| event.bid())
}
