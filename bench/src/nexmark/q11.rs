//! q11: how many bids a person makes at a stretch, ended by 10 seconds without.
//!
//! ```sql
//! SELECT B.bidder, COUNT(*) AS bid_count,
//!        SESSION_START(B.etime, INTERVAL '10' SECOND) AS starttime, SESSION_END(B.etime, INTERVAL '10' SECOND) AS endtime
//! FROM bid B GROUP BY B.bidder, SESSION(B.etime, INTERVAL '10' SECOND)
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use perennial::api::DataStream;
use perennial::batch::Timestamp;
use perennial::operator::{AggregateFunction, EventTimeSessionWindows};
use serde::{Deserialize, Serialize};

use super::event::{Bid, Event, Mixed};
use super::{Input, Query, bids, bids_of, digest_of};
use crate::jobs::digest::Digestible;

/// See the module.
pub const Q11: Query = Query {
    name: "q11",
    about: "bids of a person at a stretch: sessions",
    build,
    expected: |events| digest_of(expected(events)),
};

const GAP: Duration = Duration::from_secs(10);

/// Counts bids.
#[derive(Debug, Clone, Copy)]
pub struct Count;

impl AggregateFunction for Count {
    type In = Bid;
    type Accumulator = u64;
    type Out = u64;

    fn create_accumulator(&self) -> u64 {
        0
    }
    #[inline]
    fn add(&self, count: &mut u64, _bid: Bid) {
        *count += 1;
    }
    fn result(&self, count: &u64) -> u64 {
        *count
    }
    fn merge(&self, count: &mut u64, other: &u64) {
        *count += other;
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Stretch {
    bidder: u64,
    bids: u64,
    start: Timestamp,
    end: Timestamp,
}

impl Digestible for Stretch {
    fn digest(&self) -> u64 {
        Mixed::default()
            .number(self.bidder)
            .number(self.bids)
            .time(self.start)
            .time(self.end)
            .digest()
    }
}

fn build(input: &Input, events: &DataStream<Event>) {
    let stretches = bids(input, events)
        .key_by(|bid: &Bid| bid.bidder)
        .window(EventTimeSessionWindows::with_gap(GAP))
        .aggregate_with(Count, |bidder: &u64, window, bids| Stretch {
            bidder: *bidder,
            bids,
            start: window.start,
            end: window.end,
        })
        .name("sessions")
        .uid("sessions");
    input.digest(&stretches);
}

fn expected(events: &[Event]) -> Vec<Stretch> {
    let gap = GAP.as_millis() as i64;
    let mut times: BTreeMap<u64, Vec<Timestamp>> = BTreeMap::new();
    for bid in bids_of(events) {
        times.entry(bid.bidder).or_default().push(bid.time);
    }
    let mut rows: Vec<Stretch> = Vec::new();
    for (bidder, mut times) in times {
        times.sort_unstable();
        for time in times {
            match rows.last_mut() {
                Some(last) if last.bidder == bidder && time <= last.end => {
                    last.bids += 1;
                    last.end = time + gap;
                }
                _ => rows.push(Stretch {
                    bidder,
                    bids: 1,
                    start: time,
                    end: time + gap,
                }),
            }
        }
    }
    rows
}
