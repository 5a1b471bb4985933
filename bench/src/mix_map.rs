//! What state is compared with: a plain hash map of numbers, whose hash costs about what that of the state costs.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use perennial::connector::mix;

/// A hash map by number.
pub type MixMap<V> = HashMap<u64, V, BuildHasherDefault<MixHasher>>;

/// Splitmix64 of one number; good for nothing else.
#[derive(Debug, Default)]
pub struct MixHasher(u64);

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("the keys of a MixMap are numbers of 64 bits");
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = mix(n);
    }
}
