//! q3: who sells in three states, and what of one category.
//!
//! ```sql
//! SELECT P.name, P.city, P.state, A.id FROM auction A INNER JOIN person P ON A.seller = P.id
//! WHERE A.category = 10 AND (P.state = 'or' OR P.state = 'id' OR P.state = 'ca')
//! ```
//! Neither side of the join is ever forgotten, as in the SQL: a person may sell at any time.

use std::collections::BTreeMap;

use perennial::api::DataStream;
use perennial::error::{FunctionError, FunctionResult};
use perennial::operator::{KeyedProcessFunction, OpenContext, ProcessContext};
use perennial::state::ValueState;
use serde::{Deserialize, Serialize};

use super::event::{Event, Mixed, Text};
use super::{Input, Query, digest_of};
use crate::jobs::digest::Digestible;

/// See the module.
pub const Q3: Query = Query {
    name: "q3",
    about: "who sells in three states: a join without an end",
    build,
    expected: |events| digest_of(expected(events)),
};

const CATEGORY: u32 = 10;
const STATES: [&str; 3] = ["or", "id", "ca"];

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Seller {
    name: Text<16>,
    city: Text<16>,
    state: Text<8>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Side {
    Person(u64, Seller),
    Auction { seller: u64, id: u64 },
}

impl Side {
    /// What the conditions let through.
    fn of(event: Event) -> Option<Self> {
        match event {
            Event::Person(person) => {
                let is_there = STATES.iter().any(|state| person.state.is(state));
                is_there.then_some(Self::Person(
                    person.id,
                    Seller {
                        name: person.name,
                        city: person.city,
                        state: person.state,
                    },
                ))
            }
            Event::Auction(auction) => (auction.category == CATEGORY).then_some(Self::Auction {
                seller: auction.seller,
                id: auction.id,
            }),
            Event::Bid(_) => None,
        }
    }

    fn key(&self) -> u64 {
        match self {
            Self::Person(id, _) | Self::Auction { seller: id, .. } => *id,
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Sale {
    seller: Seller,
    auction: u64,
}

impl Digestible for Sale {
    fn digest(&self) -> u64 {
        Mixed::default()
            .text(&self.seller.name)
            .text(&self.seller.city)
            .text(&self.seller.state)
            .number(self.auction)
            .digest()
    }
}

fn build(input: &Input, events: &DataStream<Event>) {
    let sales = events
        .flat_map(|event| Ok(Side::of(event)))
        .name("sides")
        .uid("sides")
        .parallelism(input.sources)
        .key_by(Side::key)
        .process(Join::default())
        .name("join")
        .uid("join");
    input.digest(&sales);
}

/// Of one person id.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Joined {
    seller: Option<Seller>,
    auctions: Vec<u64>,
}

#[derive(Clone, Default)]
struct Join {
    joined: Option<ValueState<Joined>>,
}

impl KeyedProcessFunction<u64, Side> for Join {
    type Out = Sale;

    fn open(&mut self, cx: &mut OpenContext<'_, u64>) -> FunctionResult {
        self.joined = Some(cx.value_state("joined")?);
        Ok(())
    }

    fn process(&mut self, side: Side, cx: &mut ProcessContext<'_, u64, Sale>) -> FunctionResult {
        let Some(joined) = &self.joined else {
            return Err(FunctionError::new("open was not called"));
        };
        match side {
            Side::Person(_, seller) => {
                let waiting = joined.update(cx, |slot| {
                    let joined = slot.get_or_insert_default();
                    joined.seller = Some(seller);
                    std::mem::take(&mut joined.auctions)
                })?;
                for auction in waiting {
                    cx.emit(Sale { seller, auction });
                }
            }
            Side::Auction { id: auction, .. } => {
                let seller = joined.update(cx, |slot| {
                    let joined = slot.get_or_insert_default();
                    if joined.seller.is_none() {
                        joined.auctions.push(auction);
                    }
                    joined.seller
                })?;
                if let Some(seller) = seller {
                    cx.emit(Sale { seller, auction });
                }
            }
        }
        Ok(())
    }
}

fn expected(events: &[Event]) -> Vec<Sale> {
    let sides = || events.iter().filter_map(|event| Side::of(*event));
    let sellers: BTreeMap<u64, Seller> = sides()
        .filter_map(|side| match side {
            Side::Person(id, seller) => Some((id, seller)),
            Side::Auction { .. } => None,
        })
        .collect();
    sides()
        .filter_map(|side| match side {
            Side::Person(..) => None,
            Side::Auction { seller, id } => Some(Sale {
                seller: *sellers.get(&seller)?,
                auction: id,
            }),
        })
        .collect()
}
