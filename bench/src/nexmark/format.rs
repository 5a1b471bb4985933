//! The input file: made once, read by both systems from the page cache.
//!
//! ```text
//! header  := "PNEXMARK", u32 version, u32 bytes of a record, u64 count, u64 seed, u64 checksum, i64 first time, i64 last time, 8 zeros
//! record  := u8 kind (0 person | 1 auction | 2 bid), u8 x 3 lengths of texts, u32 category, i64 time, 48 bytes by kind:
//! person  := u64 id, [u8; 16] name, [u8; 16] city, [u8; 8] state              -- lengths: name, city, state
//! auction := u64 id, u64 seller, i64 expires, u64 initial bid, [u8; 16] item  -- lengths: item
//! bid     := u64 auction, u64 bidder, u64 price, [u8; 24] extra               -- lengths: extra
//! ```
//! All 64 bytes long (one cache line), all numbers little end first, times in ms since the epoch, texts padded with zeros. The checksum is
//! the sum over all records of `mix(mix(word) ^ place)` over their eight words, so that a damaged or shortened file is refused.
//!
//! Invariant: what is read is what was written, or an error; nothing in a file can panic its reader.

use std::io::{self, Read, Write};

use perennial::connector::mix;

use super::event::{Auction, Bid, Event, Person, Text};

/// Bytes of the header, and of a record.
pub const RECORD_BYTES: usize = 64;

/// How a file begins.
const MAGIC: [u8; 8] = *b"PNEXMARK";
const VERSION: u32 = 1;

/// What a file says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number of records.
    pub count: u64,
    /// What they were made from.
    pub seed: u64,
    /// See the module.
    pub checksum: u64,
    /// Event time of the first record.
    pub first_time: i64,
    /// Event time of the last record.
    pub last_time: i64,
}

/// A file is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Not such a file.
    #[error("not a file of Nexmark events (version {VERSION}): generate it again")]
    NotOurs,
    /// A record that cannot be.
    #[error("a record of kind {0}; the file is damaged: generate it again")]
    Kind(u8),
    /// Its contents changed.
    #[error(
        "{found} records with checksum {checksum:016x}, the header says {} with {:016x}: generate it again",
        header.count, header.checksum
    )]
    Damaged {
        /// What it should be.
        header: Header,
        /// Records read.
        found: u64,
        /// Of what was read.
        checksum: u64,
    },
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Adds a record to a checksum.
#[must_use]
pub fn checksum(sum: u64, record: &[u8; RECORD_BYTES]) -> u64 {
    (0..RECORD_BYTES / 8).fold(sum, |sum, place| {
        sum.wrapping_add(mix(mix(word(record, place * 8)) ^ place as u64))
    })
}

impl Header {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(RECORD_BYTES as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.count.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.seed.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.first_time.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.last_time.to_le_bytes());
        bytes
    }

    /// Of a file's first bytes.
    ///
    /// # Errors
    /// When it is another file.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Self, FormatError> {
        let header = Self {
            count: word(bytes, 16),
            seed: word(bytes, 24),
            checksum: word(bytes, 32),
            first_time: word(bytes, 40).cast_signed(),
            last_time: word(bytes, 48).cast_signed(),
        };
        if header.encode() == *bytes {
            Ok(header)
        } else {
            Err(FormatError::NotOurs)
        }
    }
}

impl Event {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[8..16].copy_from_slice(&self.time().to_le_bytes());
        let mut put = |at: usize, number: u64| {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        };
        match self {
            Self::Person(person) => {
                put(16, person.id);
                bytes[24..40].copy_from_slice(person.name.bytes());
                bytes[40..56].copy_from_slice(person.city.bytes());
                bytes[56..].copy_from_slice(person.state.bytes());
                bytes[1] = person.name.text().len() as u8;
                bytes[2] = person.city.text().len() as u8;
                bytes[3] = person.state.text().len() as u8;
            }
            Self::Auction(auction) => {
                put(16, auction.id);
                put(24, auction.seller);
                put(32, auction.expires.cast_unsigned());
                put(40, auction.initial_bid);
                bytes[48..].copy_from_slice(auction.item.bytes());
                bytes[0] = 1;
                bytes[1] = auction.item.text().len() as u8;
                bytes[4..8].copy_from_slice(&auction.category.to_le_bytes());
            }
            Self::Bid(bid) => {
                put(16, bid.auction);
                put(24, bid.bidder);
                put(32, bid.price);
                bytes[40..].copy_from_slice(bid.extra.bytes());
                bytes[0] = 2;
                bytes[1] = bid.extra.text().len() as u8;
            }
        }
        bytes
    }

    /// Of a record's bytes.
    ///
    /// # Errors
    /// When it cannot be one.
    #[inline]
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Self, FormatError> {
        let time = word(bytes, 8).cast_signed();
        match bytes[0] {
            2 => Ok(Self::Bid(Bid {
                auction: word(bytes, 16),
                bidder: word(bytes, 24),
                price: word(bytes, 32),
                time,
                extra: Text::padded(&bytes[40..]),
            })),
            1 => Ok(Self::Auction(Auction {
                id: word(bytes, 16),
                seller: word(bytes, 24),
                category: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
                expires: word(bytes, 32).cast_signed(),
                initial_bid: word(bytes, 40),
                item: Text::padded(&bytes[48..]),
                time,
            })),
            0 => Ok(Self::Person(Person {
                id: word(bytes, 16),
                name: Text::padded(&bytes[24..40]),
                city: Text::padded(&bytes[40..56]),
                state: Text::padded(&bytes[56..]),
                time,
            })),
            kind => Err(FormatError::Kind(kind)),
        }
    }
}

/// Writes events; the header comes last, in the caller's hands, because it knows them all.
///
/// # Errors
/// When it cannot be written.
pub fn write(
    out: &mut impl Write,
    seed: u64,
    events: impl Iterator<Item = Event>,
) -> io::Result<Header> {
    let mut header = Header {
        count: 0,
        seed,
        checksum: 0,
        first_time: 0,
        last_time: 0,
    };
    for event in events {
        let bytes = event.encode();
        if header.count == 0 {
            header.first_time = event.time();
        }
        header.last_time = event.time();
        header.count += 1;
        header.checksum = checksum(header.checksum, &bytes);
        out.write_all(&bytes)?;
    }
    Ok(header)
}

/// Reads a whole file and checks it.
///
/// # Errors
/// When it is not what its header says.
pub fn read(from: &mut impl Read, mut each: impl FnMut(Event)) -> Result<Header, FormatError> {
    let mut bytes = [0; RECORD_BYTES];
    from.read_exact(&mut bytes)?;
    let header = Header::decode(&bytes)?;
    let (mut found, mut sum) = (0, 0);
    loop {
        match from.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error.into()),
        }
        found += 1;
        sum = checksum(sum, &bytes);
        each(Event::decode(&bytes)?);
    }
    if (found, sum) == (header.count, header.checksum) {
        Ok(header)
    } else {
        Err(FormatError::Damaged {
            header,
            found,
            checksum: sum,
        })
    }
}
