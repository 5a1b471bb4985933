//! q5: the auctions with the most bids in the last 10 seconds, every 2 seconds.
//!
//! ```sql
//! SELECT AuctionBids.auction, AuctionBids.num
//! FROM (SELECT auction, COUNT(*) AS num, window_start AS starttime, window_end AS endtime
//!       FROM TABLE(HOP(TABLE bid, DESCRIPTOR(etime), INTERVAL '2' SECOND, INTERVAL '10' SECOND))
//!       GROUP BY auction, window_start, window_end) AS AuctionBids
//! JOIN (SELECT MAX(CountBids.num) AS maxn, CountBids.starttime, CountBids.endtime
//!       FROM (SELECT COUNT(*) AS num, window_start AS starttime, window_end AS endtime
//!             FROM TABLE(HOP(TABLE bid, DESCRIPTOR(etime), INTERVAL '2' SECOND, INTERVAL '10' SECOND))
//!             GROUP BY auction, window_start, window_end) AS CountBids
//!       GROUP BY CountBids.starttime, CountBids.endtime) AS MaxBids
//! ON AuctionBids.starttime = MaxBids.starttime AND AuctionBids.endtime = MaxBids.endtime AND AuctionBids.num >= MaxBids.maxn
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use perennial::api::DataStream;
use perennial::batch::Timestamp;
use perennial::error::{FunctionError, FunctionResult};
use perennial::operator::{
    KeyedProcessFunction, OpenContext, ProcessContext, SlidingEventTimeWindows,
};
use perennial::state::{TimeDomain, ValueState};
use serde::{Deserialize, Serialize};

use super::event::{Bid, Event};
use super::q11::Count;
use super::{Input, Query, bids, bids_of, digest_of};

/// See the module.
pub const Q5: Query = Query {
    name: "q5",
    about: "the hottest auctions of the last 10 seconds: sliding windows, and their maximum",
    build,
    expected: |events| digest_of(expected(events)),
};

const SIZE: Duration = Duration::from_secs(10);
const SLIDE: Duration = Duration::from_secs(2);

/// Bids for an auction in a window.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Heat {
    end: Timestamp,
    auction: u64,
    bids: u64,
}

fn build(input: &Input, events: &DataStream<Event>) {
    let hottest = bids(input, events)
        .key_by(|bid: &Bid| bid.auction)
        .window(SlidingEventTimeWindows::of(SIZE, SLIDE))
        .aggregate_with(Count, |auction: &u64, window, bids| Heat {
            end: window.end,
            auction: *auction,
            bids,
        })
        .name("count")
        .uid("count")
        .key_by(|heat: &Heat| heat.end)
        .process(Hottest::default())
        .name("hottest")
        .uid("hottest");
    input.digest(&hottest);
}

/// Of one window.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Top {
    bids: u64,
    auctions: Vec<u64>,
}

impl Top {
    fn add(&mut self, auction: u64, bids: u64) {
        if bids > self.bids {
            self.bids = bids;
            self.auctions.clear();
        }
        if bids == self.bids {
            self.auctions.push(auction);
        }
    }
}

#[derive(Clone, Default)]
struct Hottest {
    top: Option<ValueState<Top>>,
}

impl Hottest {
    fn top(&self) -> FunctionResult<ValueState<Top>> {
        self.top
            .ok_or_else(|| FunctionError::new("open was not called"))
    }
}

impl KeyedProcessFunction<Timestamp, Heat> for Hottest {
    type Out = (u64, u64);

    fn open(&mut self, cx: &mut OpenContext<'_, Timestamp>) -> FunctionResult {
        self.top = Some(cx.value_state("top")?);
        Ok(())
    }

    fn process(
        &mut self,
        heat: Heat,
        cx: &mut ProcessContext<'_, Timestamp, (u64, u64)>,
    ) -> FunctionResult {
        let is_first = self.top()?.update(cx, |slot| {
            let is_first = slot.is_none();
            slot.get_or_insert_default().add(heat.auction, heat.bids);
            is_first
        })?;
        if is_first {
            // All counts of the window come before the watermark that makes them.
            cx.register_event_time_timer(heat.end - 1)?;
        }
        Ok(())
    }

    fn on_timer(
        &mut self,
        _time: Timestamp,
        _domain: TimeDomain,
        cx: &mut ProcessContext<'_, Timestamp, (u64, u64)>,
    ) -> FunctionResult {
        let top = self.top()?.update(cx, Option::take)?.unwrap_or_default();
        for auction in top.auctions {
            cx.emit((auction, top.bids));
        }
        Ok(())
    }
}

fn expected(events: &[Event]) -> Vec<(u64, u64)> {
    let (size, slide) = (SIZE.as_millis() as i64, SLIDE.as_millis() as i64);
    let mut counts: BTreeMap<Timestamp, BTreeMap<u64, u64>> = BTreeMap::new();
    for bid in bids_of(events) {
        let mut end = bid.time - bid.time.rem_euclid(slide) + slide;
        while end - size <= bid.time {
            *counts
                .entry(end)
                .or_default()
                .entry(bid.auction)
                .or_default() += 1;
            end += slide;
        }
    }
    let mut rows = Vec::new();
    for of_window in counts.into_values() {
        let most = of_window.values().copied().max();
        rows.extend(
            of_window
                .into_iter()
                .filter(|(_, bids)| Some(*bids) == most),
        );
    }
    rows
}
