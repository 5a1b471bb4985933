//! Makes the input file, by the generator of the crate `nexmark`: the same proportions, hot keys and life of an auction as in the
//! benchmark that Flink and others publish. The file is a pure function of count and seed.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write as _};
use std::path::Path;

use nexmark::EventGenerator;
use nexmark::config::NexmarkConfig;
use nexmark::event as made;

use super::event::{Auction, Bid, Event, Person, Text};
use super::format::{FormatError, Header, RECORD_BYTES, read, write};

/// Event time of the first event: a multiple of every window's size.
pub const FIRST_TIME_MS: u64 = 1_700_000_000_000;

/// Events per second of event time.
pub const EVENTS_PER_SECOND: usize = 10_000;

/// Numbers of events between two seeds: the generator draws everything from the event's number.
const EVENTS_OF_A_SEED: u64 = 50_000_000_000;

/// The events of a seed.
pub fn events(seed: u64) -> impl Iterator<Item = Event> {
    let config = NexmarkConfig {
        base_time: FIRST_TIME_MS,
        first_rate: EVENTS_PER_SECOND,
        next_rate: EVENTS_PER_SECOND,
        first_event_id: seed.wrapping_mul(EVENTS_OF_A_SEED) as usize,
        ..NexmarkConfig::default()
    };
    EventGenerator::new(config).map(convert)
}

fn convert(event: made::Event) -> Event {
    match event {
        made::Event::Person(person) => Event::Person(Person {
            id: person.id as u64,
            name: Text::cut(&person.name),
            city: Text::cut(&person.city),
            state: Text::cut(&person.state),
            time: person.date_time.cast_signed(),
        }),
        made::Event::Auction(auction) => Event::Auction(Auction {
            id: auction.id as u64,
            seller: auction.seller as u64,
            category: u32::try_from(auction.category).unwrap_or(u32::MAX),
            expires: auction.expires.cast_signed(),
            initial_bid: auction.initial_bid as u64,
            item: Text::cut(&auction.item_name),
            time: auction.date_time.cast_signed(),
        }),
        made::Event::Bid(bid) => Event::Bid(Bid {
            auction: bid.auction as u64,
            bidder: bid.bidder as u64,
            price: bid.price as u64,
            time: bid.date_time.cast_signed(),
            extra: Text::cut(&bid.extra),
        }),
    }
}

/// Makes the file unless a whole one with that count and seed is there.
///
/// # Errors
/// When it cannot be written.
pub fn generate(path: &Path, count: u64, seed: u64) -> Result<Header, FormatError> {
    if let Ok(file) = File::open(path)
        && let Ok(header) = read(&mut BufReader::with_capacity(1 << 20, file), |_| {})
        && (header.count, header.seed) == (count, seed)
    {
        return Ok(header);
    }
    // Under its name only once it is whole.
    let partial = path.with_extension("partial");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
    out.write_all(&[0; RECORD_BYTES])?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let header = write(&mut out, seed, events(seed).take(count))?;
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&header.encode())?;
    out.flush()?;
    fs::rename(&partial, path)?;
    Ok(header)
}
