//! q0 to q2: what needs no state.
//!
//! ```sql
//! -- q0: all bids, as they are
//! SELECT auction, bidder, price, etime, extra FROM bid
//! -- q1: their prices in another currency
//! SELECT auction, bidder, 0.908 * price AS price, etime, extra FROM bid
//! -- q2: bids for some auctions
//! SELECT auction, price FROM bid WHERE MOD(auction, 123) = 0
//! ```
//! The price of q1 is a decimal with three places; it is kept in thousandths.

use perennial::api::DataStream;

use super::event::{Bid, Event, Mixed};
use super::{Input, Query, bids, bids_of, digest_of};
use crate::jobs::digest::Digestible;

/// Passes bids on.
pub const Q0: Query = Query {
    name: "q0",
    about: "all bids",
    build: |input, events| input.digest(&bids(input, events)),
    expected: |events| digest_of(bids_of(events)),
};

/// Converts prices.
pub const Q1: Query = Query {
    name: "q1",
    about: "all bids, with prices in another currency",
    build: |input, events| {
        let converted = bids(input, events).map(|bid| Ok(convert(bid)));
        input.digest(&converted.name("convert").uid("convert"));
    },
    expected: |events| digest_of(bids_of(events).map(convert)),
};

/// Selects bids.
pub const Q2: Query = Query {
    name: "q2",
    about: "bids for every 123rd auction",
    build: q2,
    expected: |events| digest_of(bids_of(events).filter(is_selected).map(select)),
};

fn q2(input: &Input, events: &DataStream<Event>) {
    let selected = bids(input, events)
        .filter(|bid| Ok(is_selected(bid)))
        .name("selected")
        .uid("selected")
        .parallelism(input.sources)
        .map(|bid| Ok(select(bid)))
        .name("columns")
        .uid("columns");
    input.digest(&selected);
}

fn convert(bid: Bid) -> Bid {
    Bid {
        price: bid.price * 908,
        ..bid
    }
}

fn is_selected(bid: &Bid) -> bool {
    bid.auction.is_multiple_of(123)
}

fn select(bid: Bid) -> (u64, u64) {
    (bid.auction, bid.price)
}

/// Two numbers.
impl Digestible for (u64, u64) {
    #[inline]
    fn digest(&self) -> u64 {
        Mixed::default().number(self.0).number(self.1).digest()
    }
}
