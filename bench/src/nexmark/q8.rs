//! q8: who came and began to sell within the same 10 seconds.
//!
//! ```sql
//! SELECT P.id, P.name, P.starttime
//! FROM (SELECT id, name, window_start AS starttime, window_end AS endtime
//!       FROM TABLE(TUMBLE(TABLE person, DESCRIPTOR(etime), INTERVAL '10' SECOND))
//!       GROUP BY id, name, window_start, window_end) P
//! JOIN (SELECT seller, window_start AS starttime, window_end AS endtime
//!       FROM TABLE(TUMBLE(TABLE auction, DESCRIPTOR(etime), INTERVAL '10' SECOND))
//!       GROUP BY seller, window_start, window_end) A
//! ON P.id = A.seller AND P.starttime = A.starttime AND P.endtime = A.endtime
//! ```

use std::collections::{BTreeMap, BTreeSet};

use perennial::api::DataStream;
use perennial::batch::Timestamp;
use perennial::error::{FunctionError, FunctionResult};
use perennial::operator::{KeyedProcessFunction, OpenContext, ProcessContext};
use perennial::state::{TimeDomain, ValueState};
use serde::{Deserialize, Serialize};

use super::event::{Event, Mixed, Text};
use super::{Input, Query, digest_of};
use crate::jobs::digest::Digestible;

/// See the module.
pub const Q8: Query = Query {
    name: "q8",
    about: "who came and sold within 10 seconds: a join by window",
    build,
    expected: |events| digest_of(expected(events)),
};

const SIZE_MS: i64 = 10_000;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Side {
    id: u64,
    start: Timestamp,
    /// Of a person; none of an auction.
    name: Option<Text<16>>,
}

impl Side {
    fn of(event: Event) -> Option<Self> {
        let start = |time: Timestamp| time - time.rem_euclid(SIZE_MS);
        match event {
            Event::Person(person) => Some(Self {
                id: person.id,
                start: start(person.time),
                name: Some(person.name),
            }),
            Event::Auction(auction) => Some(Self {
                id: auction.seller,
                start: start(auction.time),
                name: None,
            }),
            Event::Bid(_) => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Newcomer {
    id: u64,
    name: Text<16>,
    start: Timestamp,
}

impl Digestible for Newcomer {
    fn digest(&self) -> u64 {
        Mixed::default()
            .number(self.id)
            .text(&self.name)
            .time(self.start)
            .digest()
    }
}

fn build(input: &Input, events: &DataStream<Event>) {
    let newcomers = events
        .flat_map(|event| Ok(Side::of(event)))
        .name("sides")
        .uid("sides")
        .parallelism(input.sources)
        .key_by(|side: &Side| side.id)
        .process(Join::default())
        .name("join")
        .uid("join");
    input.digest(&newcomers);
}

/// Of one person id in one window.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Met {
    start: Timestamp,
    name: Option<Text<16>>,
    has_sold: bool,
}

#[derive(Clone, Default)]
struct Join {
    met: Option<ValueState<Vec<Met>>>,
}

impl Join {
    fn met(&self) -> FunctionResult<ValueState<Vec<Met>>> {
        self.met
            .ok_or_else(|| FunctionError::new("open was not called"))
    }
}

impl KeyedProcessFunction<u64, Side> for Join {
    type Out = Newcomer;

    fn open(&mut self, cx: &mut OpenContext<'_, u64>) -> FunctionResult {
        self.met = Some(cx.value_state("met")?);
        Ok(())
    }

    fn process(
        &mut self,
        side: Side,
        cx: &mut ProcessContext<'_, u64, Newcomer>,
    ) -> FunctionResult {
        let (is_new, joined) = self.met()?.update(cx, |slot| {
            let windows = slot.get_or_insert_default();
            let found = windows.iter().position(|met| met.start == side.start);
            let place = found.unwrap_or_else(|| {
                windows.push(Met {
                    start: side.start,
                    name: None,
                    has_sold: false,
                });
                windows.len() - 1
            });
            let met = &mut windows[place];
            let was_joined = met.name.is_some() && met.has_sold;
            match side.name {
                Some(name) => met.name = Some(name),
                None => met.has_sold = true,
            }
            let name = met.name.filter(|_| met.has_sold && !was_joined);
            (found.is_none(), name)
        })?;
        if is_new {
            cx.register_event_time_timer(side.start + SIZE_MS - 1)?;
        }
        if let Some(name) = joined {
            cx.emit(Newcomer {
                id: side.id,
                name,
                start: side.start,
            });
        }
        Ok(())
    }

    fn on_timer(
        &mut self,
        time: Timestamp,
        _domain: TimeDomain,
        cx: &mut ProcessContext<'_, u64, Newcomer>,
    ) -> FunctionResult {
        self.met()?.update(cx, |slot| {
            let Some(windows) = slot else { return };
            windows.retain(|met| met.start + SIZE_MS - 1 > time);
            if windows.is_empty() {
                *slot = None;
            }
        })?;
        Ok(())
    }
}

fn expected(events: &[Event]) -> BTreeSet<Newcomer> {
    let sides: Vec<Side> = events.iter().filter_map(|e| Side::of(*e)).collect();
    let people: BTreeMap<(u64, Timestamp), Text<16>> = sides
        .iter()
        .filter_map(|side| Some(((side.id, side.start), side.name?)))
        .collect();
    let sold = sides.iter().filter(|side| side.name.is_none());
    sold.filter_map(|side| {
        let name = people.get(&(side.id, side.start))?;
        Some(Newcomer {
            id: side.id,
            name: *name,
            start: side.start,
        })
    })
    .collect()
}
