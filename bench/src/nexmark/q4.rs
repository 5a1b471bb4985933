//! q4: the average of what auctions of a category went for, kept up to date with every bid that is the best so far.
//!
//! ```sql
//! SELECT Q.category, AVG(Q.final)
//! FROM (SELECT MAX(B.price) AS final, A.category FROM auction A, bid B
//!       WHERE A.id = B.auction AND B.etime BETWEEN A.etime AND A.expires
//!       GROUP BY A.id, A.category) Q
//! GROUP BY Q.category
//! ```
//! An average is rounded towards zero. Both sides emit a changed row as the old one, taken back, and the new one. Here an auction is
//! forgotten once it has expired; Flink keeps both sides of this join for ever.

use std::collections::BTreeMap;

use perennial::api::DataStream;
use perennial::batch::Timestamp;
use perennial::error::{FunctionError, FunctionResult};
use perennial::operator::{KeyedProcessFunction, OpenContext, ProcessContext};
use perennial::state::{TimeDomain, ValueState};
use serde::{Deserialize, Serialize};

use super::event::{Event, Mixed};
use super::{Input, Query, bids_of, digest_of};
use crate::jobs::digest::Digestible;

/// See the module.
pub const Q4: Query = Query {
    name: "q4",
    about: "the average final price by category: a join with bids while an auction lasts",
    build,
    expected: |events| digest_of(expected(events)),
};

/// What the join needs of an event.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Side {
    Auction { id: u64, open: Open },
    Bid { auction: u64, offer: Offer },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    category: u32,
    from: Timestamp,
    to: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Offer {
    price: u64,
    time: Timestamp,
}

impl Open {
    fn admits(&self, offer: Offer) -> bool {
        self.from <= offer.time && offer.time <= self.to
    }
}

impl Side {
    fn of(event: Event) -> Option<Self> {
        match event {
            Event::Person(_) => None,
            Event::Auction(auction) => Some(Self::Auction {
                id: auction.id,
                open: Open {
                    category: auction.category,
                    from: auction.time,
                    to: auction.expires,
                },
            }),
            Event::Bid(bid) => Some(Self::Bid {
                auction: bid.auction,
                offer: Offer {
                    price: bid.price,
                    time: bid.time,
                },
            }),
        }
    }

    #[inline]
    fn key(&self) -> u64 {
        match self {
            Self::Auction { id, .. } | Self::Bid { auction: id, .. } => *id,
        }
    }
}

/// An auction has a best bid, or a better one than before.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Raise {
    category: u32,
    from: Option<u64>,
    to: u64,
}

/// A row of the answer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Average {
    category: u32,
    price: u64,
    is_taken_back: bool,
}

impl Digestible for Average {
    fn digest(&self) -> u64 {
        let category = u64::from(self.category);
        Mixed::default()
            .number(category)
            .number(self.price)
            .digest()
    }

    fn is_taken_back(&self) -> bool {
        self.is_taken_back
    }
}

fn build(input: &Input, events: &DataStream<Event>) {
    let averages = events
        .flat_map(|event| Ok(Side::of(event)))
        .name("sides")
        .uid("sides")
        .parallelism(input.sources)
        .key_by(Side::key)
        .process(Best::default())
        .name("best-bids")
        .uid("best-bids")
        .key_by(|raise: &Raise| raise.category)
        .process(Averages::default())
        .name("averages")
        .uid("averages");
    input.digest(&averages);
}

/// Of one auction.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Course {
    open: Option<Open>,
    best: Option<u64>,
    /// Bids that came before the auction, by another way.
    early: Vec<Offer>,
}

impl Course {
    fn raise(&mut self, price: u64) -> Option<Raise> {
        let open = self.open?;
        if self.best.is_some_and(|best| best >= price) {
            return None;
        }
        Some(Raise {
            category: open.category,
            from: self.best.replace(price),
            to: price,
        })
    }
}

#[derive(Clone, Default)]
struct Best {
    course: Option<ValueState<Course>>,
}

impl Best {
    fn course(&self) -> FunctionResult<ValueState<Course>> {
        self.course
            .ok_or_else(|| FunctionError::new("open was not called"))
    }
}

impl KeyedProcessFunction<u64, Side> for Best {
    type Out = Raise;

    fn open(&mut self, cx: &mut OpenContext<'_, u64>) -> FunctionResult {
        self.course = Some(cx.value_state("course")?);
        Ok(())
    }

    fn process(&mut self, side: Side, cx: &mut ProcessContext<'_, u64, Raise>) -> FunctionResult {
        let course = self.course()?;
        match side {
            Side::Auction { open, .. } => {
                let raise = course.update(cx, |slot| {
                    let course = slot.get_or_insert_default();
                    course.open = Some(open);
                    let early = std::mem::take(&mut course.early);
                    let admitted = early.iter().filter(|offer| open.admits(**offer));
                    let best = admitted.map(|offer| offer.price).max();
                    best.and_then(|price| course.raise(price))
                })?;
                // No bid after it counts.
                cx.register_event_time_timer(open.to)?;
                if let Some(raise) = raise {
                    cx.emit(raise);
                }
            }
            Side::Bid { offer, .. } => {
                let (raise, is_early) = course.update(cx, |slot| {
                    let course = slot.get_or_insert_default();
                    match course.open {
                        Some(open) if open.admits(offer) => (course.raise(offer.price), false),
                        Some(_) => (None, false),
                        None => {
                            course.early.push(offer);
                            (None, true)
                        }
                    }
                })?;
                if is_early {
                    // By then an auction that admits it has come.
                    cx.register_event_time_timer(offer.time)?;
                }
                if let Some(raise) = raise {
                    cx.emit(raise);
                }
            }
        }
        Ok(())
    }

    fn on_timer(
        &mut self,
        time: Timestamp,
        _domain: TimeDomain,
        cx: &mut ProcessContext<'_, u64, Raise>,
    ) -> FunctionResult {
        self.course()?.update(cx, |slot| {
            let Some(course) = slot else { return };
            course.early.retain(|offer| offer.time > time);
            let is_over = course.open.is_none_or(|open| open.to <= time);
            if is_over && course.early.is_empty() {
                *slot = None;
            }
        })?;
        Ok(())
    }
}

/// Of one category.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Sum {
    sum: u64,
    count: u64,
}

#[derive(Clone, Default)]
struct Averages {
    sum: Option<ValueState<Sum>>,
}

impl KeyedProcessFunction<u32, Raise> for Averages {
    type Out = Average;

    fn open(&mut self, cx: &mut OpenContext<'_, u32>) -> FunctionResult {
        self.sum = Some(cx.value_state("sum")?);
        Ok(())
    }

    fn process(
        &mut self,
        raise: Raise,
        cx: &mut ProcessContext<'_, u32, Average>,
    ) -> FunctionResult {
        let Some(sum) = &self.sum else {
            return Err(FunctionError::new("open was not called"));
        };
        let (before, after) = sum.update(cx, |slot| {
            let sum = slot.get_or_insert_default();
            let before = sum.sum.checked_div(sum.count);
            match raise.from {
                Some(from) => sum.sum -= from,
                None => sum.count += 1,
            }
            sum.sum += raise.to;
            (before, sum.sum / sum.count)
        })?;
        if before == Some(after) {
            return Ok(());
        }
        let category = raise.category;
        if let Some(price) = before {
            cx.emit(Average {
                category,
                price,
                is_taken_back: true,
            });
        }
        cx.emit(Average {
            category,
            price: after,
            is_taken_back: false,
        });
        Ok(())
    }
}

/// The final table.
fn expected(events: &[Event]) -> Vec<Average> {
    let mut best: BTreeMap<u64, (Open, Option<u64>)> = BTreeMap::new();
    for event in events {
        if let Some(Side::Auction { id, open }) = Side::of(*event) {
            best.insert(id, (open, None));
        }
    }
    for bid in bids_of(events) {
        let Some((open, best)) = best.get_mut(&bid.auction) else {
            continue;
        };
        let (price, time) = (bid.price, bid.time);
        if open.admits(Offer { price, time }) {
            *best = (*best).max(Some(price));
        }
    }
    let mut sums: BTreeMap<u32, Sum> = BTreeMap::new();
    for (open, best) in best.into_values() {
        if let Some(price) = best {
            let sum = sums.entry(open.category).or_default();
            sum.sum += price;
            sum.count += 1;
        }
    }
    let row = |(category, sum): (u32, Sum)| Average {
        category,
        price: sum.sum / sum.count,
        is_taken_back: false,
    };
    sums.into_iter().map(row).collect()
}
