//! Hashing inside a key group. The key's own hash chose the group, so that some of its bits are the same for all keys of a
//! group; what indexes a table must be mixed again. Nothing here is stored: only [`KeyHash`](crate::key::KeyHash) is part of the format.

use serde::Serialize;

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Spreads a key's hash, of which the low bits are spent on the key group.
#[inline]
pub(super) fn spread(hash: u64) -> u64 {
    // The table takes its bucket from the low bits and its tag from the high ones: after this the low half
    // depends on the upper half of the hash, and the high bits on all of it.
    hash.rotate_right(32).wrapping_mul(MULTIPLIER)
}

/// Adds a namespace's or map key's hash.
#[inline]
pub(super) fn combine(hash: u64, part: u64) -> u64 {
    spread((hash ^ part).wrapping_mul(MULTIPLIER))
}

/// Hashes the canonical encoding of a value without building it.
#[inline]
pub(super) fn hash_of<T: Serialize>(value: &T) -> Result<u64, postcard::Error> {
    postcard::serialize_with_flavor(
        value,
        Mixer {
            hash: MULTIPLIER,
            word: 0,
            bits: 0,
        },
    )
}

struct Mixer {
    hash: u64,
    word: u64,
    bits: u32,
}

impl Mixer {
    #[inline]
    fn absorb(&mut self, word: u64) {
        let x = (self.hash ^ word).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        self.hash = (x ^ (x >> 32)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    }
}

impl postcard::ser_flavors::Flavor for Mixer {
    type Output = u64;

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.word |= u64::from(byte) << self.bits;
        self.bits += 8;
        if self.bits == 64 {
            let word = std::mem::take(&mut self.word);
            self.bits = 0;
            self.absorb(word);
        }
        Ok(())
    }

    #[inline]
    fn finalize(mut self) -> postcard::Result<u64> {
        // The length of the tail goes in too, so that trailing zeros count.
        let tail = self.word ^ (u64::from(self.bits) << 56).rotate_left(7);
        self.absorb(tail);
        Ok(self.hash ^ (self.hash >> 29))
    }
}
