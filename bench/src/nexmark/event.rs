//! The records of Nexmark: people put items up for auction, and bid.
//!
//! Texts have a fixed room and no memory of their own, so that a record costs no allocation. What is cut off for it, and the columns that
//! no query reads (e-mail, credit card, description, channel, url), are missing on both sides.

use std::fmt;

use perennial::batch::Timestamp;
use perennial::connector::mix;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::jobs::digest::Digestible;

/// Text of at most `N` bytes, padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<const N: usize>([u8; N]);

impl<const N: usize> Text<N> {
    /// The first bytes of a text, up to a whole character.
    #[must_use]
    pub fn cut(text: &str) -> Self {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self::padded(&text.as_bytes()[..end])
    }

    /// Of bytes that are padded already, or shorter.
    #[inline]
    #[must_use]
    pub fn padded(bytes: &[u8]) -> Self {
        let mut text = [0; N];
        let length = bytes.len().min(N);
        text[..length].copy_from_slice(&bytes[..length]);
        Self(text)
    }

    /// The bytes with their padding.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8; N] {
        &self.0
    }

    /// Without the padding.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        let end = self.0.iter().rposition(|byte| *byte != 0);
        &self.0[..end.map_or(0, |last| last + 1)]
    }

    /// Whether it is that text.
    #[inline]
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        self.text() == text.as_bytes()
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.text()))
    }
}

impl<const N: usize> Serialize for Text<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.text())
    }
}

impl<'de, const N: usize> Deserialize<'de> for Text<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for Bytes<N> {
            type Value = Text<N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {N} bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Text<N>, E> {
                if bytes.len() > N {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                Ok(Text::padded(bytes))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Text<N>, A::Error> {
                let mut bytes = Vec::with_capacity(N);
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                    if bytes.len() > N {
                        return Err(A::Error::invalid_length(bytes.len(), &self));
                    }
                }
                Ok(Text::padded(&bytes))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// Somebody who sells and bids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// Ascending.
    pub id: u64,
    /// First and last.
    pub name: Text<16>,
    /// Where.
    pub city: Text<16>,
    /// Two letters.
    pub state: Text<8>,
    /// Event time.
    pub time: Timestamp,
}

/// An item for sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auction {
    /// Ascending.
    pub id: u64,
    /// A person.
    pub seller: u64,
    /// 10 to 14.
    pub category: u32,
    /// The last time at which a bid counts.
    pub expires: Timestamp,
    /// In cents.
    pub initial_bid: u64,
    /// What.
    pub item: Text<16>,
    /// Event time.
    pub time: Timestamp,
}

/// An offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bid {
    /// For which auction.
    pub auction: u64,
    /// A person.
    pub bidder: u64,
    /// In cents.
    pub price: u64,
    /// Event time.
    pub time: Timestamp,
    /// Anything.
    pub extra: Text<24>,
}

/// One record of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// One in 50.
    Person(Person),
    /// 3 in 50.
    Auction(Auction),
    /// 46 in 50.
    Bid(Bid),
}

impl Event {
    /// Event time.
    #[inline]
    #[must_use]
    pub fn time(&self) -> Timestamp {
        match self {
            Self::Person(person) => person.time,
            Self::Auction(auction) => auction.time,
            Self::Bid(bid) => bid.time,
        }
    }

    /// The bid, if it is one.
    #[inline]
    #[must_use]
    pub fn bid(self) -> Option<Bid> {
        match self {
            Self::Bid(bid) => Some(bid),
            Self::Person(_) | Self::Auction(_) => None,
        }
    }
}

/// Mixes fields into a digest, one 64-bit word after the other. `RowDigest.java` does the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mixed(u64);

impl Mixed {
    /// Adds a number.
    #[inline]
    #[must_use]
    pub fn number(self, number: u64) -> Self {
        Self(mix(self.0 ^ number))
    }

    /// Adds a time.
    #[inline]
    #[must_use]
    pub fn time(self, time: Timestamp) -> Self {
        self.number(time.cast_unsigned())
    }

    /// Adds a text: all words of its room, little end first.
    #[inline]
    #[must_use]
    pub fn text<const N: usize>(self, text: &Text<N>) -> Self {
        let words = text.bytes().chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        words.fold(self, Self::number)
    }

    /// All of them.
    #[must_use]
    pub fn digest(self) -> u64 {
        self.0
    }
}

impl Digestible for Bid {
    #[inline]
    fn digest(&self) -> u64 {
        Mixed::default()
            .number(self.auction)
            .number(self.bidder)
            .number(self.price)
            .time(self.time)
            .text(&self.extra)
            .digest()
    }
}

/// Enough to tell that an event was read: its time and its first number. What decoding costs is to be measured, not digesting.
impl Digestible for Event {
    #[inline]
    fn digest(&self) -> u64 {
        let (first, time) = match self {
            Self::Person(person) => (person.id, person.time),
            Self::Auction(auction) => (auction.id, auction.time),
            Self::Bid(bid) => (bid.auction, bid.time),
        };
        Mixed::default().number(first).time(time).digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cut at a whole character; padding is no part of it, on no way through a codec.
    #[test]
    fn texts_keep_what_fits() {
        let text = Text::<8>::cut("seven äöü");
        assert_eq!(text.text(), "seven ä".as_bytes());
        assert!(text.is("seven ä") && !text.is("seven"));
        let bytes = serde_json::to_vec(&text).unwrap();
        assert_eq!(serde_json::from_slice::<Text<8>>(&bytes).unwrap(), text);
        assert!(serde_json::from_slice::<Text<4>>(&bytes).is_err());
    }
}
