//! No query: reads, decodes, drops. What the input alone costs each side.

use perennial::api::DataStream;

use super::event::Event;
use super::{Input, Query, digest_of};

/// See the module.
pub const DECODE: Query = Query {
    name: "decode",
    about: "reads and decodes the events, and drops them",
    build,
    expected: |events| digest_of(events.iter().copied()),
};

fn build(input: &Input, events: &DataStream<Event>) {
    let answer = events.filter(|_| Ok(true)).name("all").uid("all");
    input.digest(&answer.parallelism(input.sources));
}
