//! q7: the highest bids of every 10 seconds.
//!
//! ```sql
//! SELECT B.auction, B.bidder, B.price, B.etime, B.extra FROM bid B
//! JOIN (SELECT MAX(price) AS maxprice, window_end AS endtime
//!       FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(etime), INTERVAL '10' SECOND))
//!       GROUP BY window_start, window_end) B1
//! ON B.price = B1.maxprice
//! WHERE B.etime >= B1.endtime - INTERVAL '10' SECOND AND B.etime < B1.endtime
//! ```
//! (The published query says `BETWEEN`, which lets a bid at the very end of a window win the one before, too.) Bids are spread over
//! [`PARTS`] keys, the winners of each part meet in their window: one key per window would leave all the work to one subtask.

use std::collections::BTreeMap;
use std::time::Duration;

use perennial::api::DataStream;
use perennial::batch::Timestamp;
use perennial::connector::mix;
use perennial::error::{FunctionError, FunctionResult};
use perennial::operator::{
    AggregateFunction, KeyedProcessFunction, OpenContext, ProcessContext, TumblingEventTimeWindows,
};
use perennial::state::{TimeDomain, ValueState};
use serde::{Deserialize, Serialize};

use super::event::{Bid, Event};
use super::{Input, Query, bids, bids_of, digest_of};

/// See the module.
pub const Q7: Query = Query {
    name: "q7",
    about: "the highest bids of every 10 seconds: a maximum over all, and who has it",
    build,
    expected: |events| digest_of(expected(events)),
};

/// Keys that bids are spread over.
pub const PARTS: u64 = 64;

const SIZE: Duration = Duration::from_secs(10);

/// The highest bids so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Highest {
    bids: Vec<Bid>,
}

impl Highest {
    #[inline]
    fn add(&mut self, bid: Bid) {
        let price = self.bids.first().map_or(0, |highest| highest.price);
        if bid.price > price {
            self.bids.clear();
        }
        if bid.price >= price {
            self.bids.push(bid);
        }
    }
}

#[derive(Clone)]
struct HighestOfAll;

impl AggregateFunction for HighestOfAll {
    type In = Bid;
    type Accumulator = Highest;
    type Out = Highest;

    fn create_accumulator(&self) -> Highest {
        Highest::default()
    }
    #[inline]
    fn add(&self, highest: &mut Highest, bid: Bid) {
        highest.add(bid);
    }
    fn result(&self, highest: &Highest) -> Highest {
        highest.clone()
    }
    fn merge(&self, highest: &mut Highest, other: &Highest) {
        for bid in &other.bids {
            highest.add(*bid);
        }
    }
}

fn build(input: &Input, events: &DataStream<Event>) {
    let highest = bids(input, events)
        .key_by(|bid: &Bid| mix(bid.price ^ bid.bidder.rotate_left(32)) % PARTS)
        .window(TumblingEventTimeWindows::of(SIZE))
        .aggregate_with(HighestOfAll, |_: &u64, window, highest| {
            (window.end, highest)
        })
        .name("highest-of-parts")
        .uid("highest-of-parts")
        .key_by(|(end, _): &(Timestamp, Highest)| *end)
        .process(Winners::default())
        .name("highest")
        .uid("highest");
    input.digest(&highest);
}

#[derive(Clone, Default)]
struct Winners {
    highest: Option<ValueState<Highest>>,
}

impl Winners {
    fn highest(&self) -> FunctionResult<ValueState<Highest>> {
        self.highest
            .ok_or_else(|| FunctionError::new("open was not called"))
    }
}

impl KeyedProcessFunction<Timestamp, (Timestamp, Highest)> for Winners {
    type Out = Bid;

    fn open(&mut self, cx: &mut OpenContext<'_, Timestamp>) -> FunctionResult {
        self.highest = Some(cx.value_state("highest")?);
        Ok(())
    }

    fn process(
        &mut self,
        (end, of_part): (Timestamp, Highest),
        cx: &mut ProcessContext<'_, Timestamp, Bid>,
    ) -> FunctionResult {
        self.highest()?.update(cx, |slot| {
            HighestOfAll.merge(slot.get_or_insert_default(), &of_part);
        })?;
        cx.register_event_time_timer(end - 1)?;
        Ok(())
    }

    fn on_timer(
        &mut self,
        _time: Timestamp,
        _domain: TimeDomain,
        cx: &mut ProcessContext<'_, Timestamp, Bid>,
    ) -> FunctionResult {
        let highest = self.highest()?.update(cx, Option::take)?;
        for bid in highest.unwrap_or_default().bids {
            cx.emit(bid);
        }
        Ok(())
    }
}

fn expected(events: &[Event]) -> Vec<Bid> {
    let size = SIZE.as_millis() as i64;
    let mut maxima: BTreeMap<Timestamp, u64> = BTreeMap::new();
    for bid in bids_of(events) {
        let highest = maxima.entry(bid.time.div_euclid(size)).or_default();
        *highest = (*highest).max(bid.price);
    }
    bids_of(events)
        .filter(|bid| maxima.get(&bid.time.div_euclid(size)) == Some(&bid.price))
        .collect()
}
