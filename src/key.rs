//! Keys and their hash. The hash decides where state lives, on disk too: it is our own, seeded and versioned, over a canonical
//! encoding of the key without field names, and never `std::hash::Hash`.
//!
//! Invariant: the hash of a value never changes within one [`KEY_HASH_VERSION`]; the vectors in the tests are part of the
//! checkpoint format. Equal keys have equal hashes. Nothing more is promised: unequal keys may collide.
//!
//! # The encoding, a sequence of 64-bit words
//!
//! - Integers by value, whatever their width: sign-extended to one word; a 128-bit value that fits neither `i64` nor `u64` has
//!   its upper half as a second word. So a key type can be widened without moving any key.
//! - `bool` 0 or 1, `char` its code point, floats (inside a type that is `Eq`) the bits as `f64`, with one zero and one NaN.
//! - Strings and bytes: length, then little-endian words, the last one padded with zeros.
//! - `Option`: 0, or 1 and the value. Enums: index of the variant, then its fields.
//! - Structs and tuples: their fields, without names or count; `()` nothing. Newtypes: their content.
//! - Sequences: elements, then their number. Maps: the sum of the entries' own hashes, then their number, so that the order of a
//!   hash map does not matter. (A hash *set* looks like a sequence to serde; it must not be a key, use a `BTreeSet`.)

use std::fmt::{self, Debug, Display, Write};

use perennial_actors::model::KeyGroup;
use serde::de::DeserializeOwned;
use serde::{Serialize, ser};

/// The version of hash and encoding that snapshots record.
pub const KEY_HASH_VERSION: u32 = 1;

/// The first digits of pi after the point: nothing up our sleeve.
const SEED: u64 = 0x243f_6a88_85a3_08d3;
/// Odd multiplier of each word, from wyhash's family of constants.
const WORD: u64 = 0xa076_1d64_78bd_642f;
/// Odd multiplier of the end.
const FINISH: u64 = 0xe703_7ed1_a0b4_28db;

/// What a stream can be keyed by. Implemented for every type that fits. Floating-point keys have no `Eq` and are thus excluded.
pub trait Key: Clone + Eq + Debug + Serialize + DeserializeOwned + Send + 'static {}
impl<K: Clone + Eq + Debug + Serialize + DeserializeOwned + Send + 'static> Key for K {}

/// The hash of a key.
///
/// All keys of a group share their low bits: a hash table of one group wants [`for_table`](Self::for_table).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyHash(pub u64);

/// A key whose `Serialize` gives up.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("key cannot be hashed: its Serialize implementation failed: {0}")]
pub struct KeyError(Box<str>);

impl KeyHash {
    /// Hashes a key.
    ///
    /// A key whose `Serialize` fails gets the hash of what it wrote before; such a key fails for good when it is encoded.
    /// Where a graph is built, ask [`try_of`](Self::try_of) and refuse it.
    #[inline]
    #[must_use]
    pub fn of<K: Key>(key: &K) -> Self {
        let mut hasher = Hasher::new();
        // Losing the error is right: the same value fails at the same place, so that its hash is as stable as any other.
        let _ = key.serialize(&mut hasher);
        hasher.finish()
    }

    /// Hashes a key, or says why it cannot be one.
    pub fn try_of<K: Key>(key: &K) -> Result<Self, KeyError> {
        let mut hasher = Hasher::new();
        key.serialize(&mut hasher)?;
        Ok(hasher.finish())
    }

    /// The shard that the key belongs to: hash mod max parallelism.
    #[inline]
    #[must_use]
    pub fn key_group(self, max_parallelism: u32) -> KeyGroup {
        let max = u64::from(max_parallelism.max(1));
        // Same result, without a division in the usual case.
        let group = if max.is_power_of_two() {
            self.0 & (max - 1)
        } else {
            self.0 % max
        };
        // Max parallelism is at most 32768, by JobGraph::validate.
        KeyGroup(group as u16)
    }

    /// The hash with its halves exchanged, so that neither the low bits nor the top bits, which hash tables use, are those
    /// that all keys of a group have in common.
    #[inline]
    #[must_use]
    pub fn for_table(self) -> u64 {
        self.0.rotate_left(32)
    }
}

/// The 128-bit product, folded.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

struct Hasher {
    state: u64,
}

impl Hasher {
    #[inline(always)]
    fn new() -> Self {
        Self { state: SEED }
    }

    #[inline(always)]
    fn word(&mut self, word: u64) {
        // The addition: a word that cancels the state to zero must not make it absorb the words that follow.
        self.state = fold(self.state ^ word, WORD).wrapping_add(SEED.rotate_left(23));
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0_u8; 8];
            word.copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut word = [0_u8; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(word));
        }
    }

    #[inline(always)]
    fn finish(self) -> KeyHash {
        KeyHash(fold(self.state ^ (self.state >> 32), FINISH))
    }
}

impl ser::Error for KeyError {
    #[cold]
    fn custom<T: Display>(message: T) -> Self {
        let mut text = String::new();
        // A Display that fails leaves what it wrote; `to_string` would panic.
        let _ = write!(text, "{message}");
        Self(text.into())
    }
}

macro_rules! words {
    ($($method:ident: $type:ty),*) => {
        $(
            #[inline(always)]
            fn $method(self, value: $type) -> Result<(), KeyError> {
                self.word(value as i64 as u64);
                Ok(())
            }
        )*
    };
}

impl<'a> ser::Serializer for &'a mut Hasher {
    type Ok = ();
    type Error = KeyError;
    type SerializeSeq = Counted<'a>;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Entries<'a>;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    words!(
        serialize_bool: bool,
        serialize_i8: i8,
        serialize_i16: i16,
        serialize_i32: i32,
        serialize_i64: i64,
        serialize_u8: u8,
        serialize_u16: u16,
        serialize_u32: u32,
        serialize_u64: u64
    );

    fn serialize_i128(self, value: i128) -> Result<(), KeyError> {
        self.word(value as u64);
        if i64::try_from(value).is_err() && u64::try_from(value).is_err() {
            self.word((value >> 64) as u64);
        }
        Ok(())
    }

    fn serialize_u128(self, value: u128) -> Result<(), KeyError> {
        self.word(value as u64);
        if u64::try_from(value).is_err() {
            self.word((value >> 64) as u64);
        }
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<(), KeyError> {
        self.serialize_f64(f64::from(value))
    }

    fn serialize_f64(self, value: f64) -> Result<(), KeyError> {
        let value = if value.is_nan() {
            f64::NAN.to_bits() & !(1 << 63)
        } else if value == 0.0 {
            0
        } else {
            value.to_bits()
        };
        self.word(value);
        Ok(())
    }

    #[inline(always)]
    fn serialize_char(self, value: char) -> Result<(), KeyError> {
        self.word(u64::from(u32::from(value)));
        Ok(())
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), KeyError> {
        self.bytes(value.as_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result<(), KeyError> {
        self.bytes(value);
        Ok(())
    }

    #[inline(always)]
    fn serialize_none(self) -> Result<(), KeyError> {
        self.word(0);
        Ok(())
    }

    #[inline(always)]
    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), KeyError> {
        self.word(1);
        value.serialize(self)
    }

    #[inline(always)]
    fn serialize_unit(self) -> Result<(), KeyError> {
        Ok(())
    }

    #[inline(always)]
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), KeyError> {
        Ok(())
    }

    #[inline(always)]
    fn serialize_unit_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
    ) -> Result<(), KeyError> {
        self.word(u64::from(index));
        Ok(())
    }

    #[inline(always)]
    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), KeyError> {
        value.serialize(self)
    }

    #[inline(always)]
    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), KeyError> {
        self.word(u64::from(index));
        value.serialize(self)
    }

    #[inline]
    fn serialize_seq(self, _: Option<usize>) -> Result<Counted<'a>, KeyError> {
        Ok(Counted {
            hasher: self,
            count: 0,
        })
    }

    #[inline(always)]
    fn serialize_tuple(self, _: usize) -> Result<Self, KeyError> {
        Ok(self)
    }

    #[inline(always)]
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, KeyError> {
        Ok(self)
    }

    #[inline(always)]
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, KeyError> {
        self.word(u64::from(index));
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Entries<'a>, KeyError> {
        Ok(Entries {
            hasher: self,
            entry: Hasher::new(),
            sum: 0,
            count: 0,
        })
    }

    #[inline(always)]
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, KeyError> {
        Ok(self)
    }

    #[inline(always)]
    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, KeyError> {
        self.word(u64::from(index));
        Ok(self)
    }

    fn collect_str<T: ?Sized + Display>(self, value: &T) -> Result<(), KeyError> {
        let mut text = String::new();
        write!(text, "{value}")
            .map_err(|fmt::Error| KeyError("its Display implementation failed".into()))?;
        self.serialize_str(&text)
    }

    #[inline(always)]
    fn is_human_readable(&self) -> bool {
        false
    }
}

struct Counted<'a> {
    hasher: &'a mut Hasher,
    count: u64,
}

impl ser::SerializeSeq for Counted<'_> {
    type Ok = ();
    type Error = KeyError;

    #[inline]
    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), KeyError> {
        self.count += 1;
        value.serialize(&mut *self.hasher)
    }

    #[inline]
    fn end(self) -> Result<(), KeyError> {
        self.hasher.word(self.count);
        Ok(())
    }
}

struct Entries<'a> {
    hasher: &'a mut Hasher,
    entry: Hasher,
    sum: u64,
    count: u64,
}

impl ser::SerializeMap for Entries<'_> {
    type Ok = ();
    type Error = KeyError;

    fn serialize_key<T: ?Sized + Serialize>(&mut self, key: &T) -> Result<(), KeyError> {
        self.entry = Hasher::new();
        key.serialize(&mut self.entry)
    }

    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), KeyError> {
        value.serialize(&mut self.entry)?;
        let entry = std::mem::replace(&mut self.entry, Hasher::new());
        self.sum = self.sum.wrapping_add(entry.finish().0);
        self.count += 1;
        Ok(())
    }

    fn end(self) -> Result<(), KeyError> {
        self.hasher.word(self.sum);
        self.hasher.word(self.count);
        Ok(())
    }
}

macro_rules! plain {
    ($($trait:ident::$method:ident($($name:ty)?)),*) => {
        $(
            impl ser::$trait for &mut Hasher {
                type Ok = ();
                type Error = KeyError;

                #[inline(always)]
                fn $method<T: ?Sized + Serialize>(&mut self, $(_: $name,)? value: &T) -> Result<(), KeyError> {
                    value.serialize(&mut **self)
                }

                #[inline(always)]
                fn end(self) -> Result<(), KeyError> {
                    Ok(())
                }
            }
        )*
    };
}

plain!(
    SerializeTuple::serialize_element(),
    SerializeTupleStruct::serialize_field(),
    SerializeTupleVariant::serialize_field(),
    SerializeStruct::serialize_field(&'static str),
    SerializeStructVariant::serialize_field(&'static str)
);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct User {
        id: u64,
        name: String,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Renamed {
        number: u32,
        label: String,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    enum Kind {
        A,
        B(u8),
        C { x: i16, y: Option<bool> },
    }

    #[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
    struct Refuses;
    impl Serialize for Refuses {
        fn serialize<S: ser::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(ser::Error::custom("not today"))
        }
    }

    fn user(id: u64, name: &str) -> User {
        User {
            id,
            name: name.to_owned(),
        }
    }

    /// Vectors of version 1. State on disk lies in the groups that these decide: when this test fails, raise
    /// KEY_HASH_VERSION and keep the old hash, do not edit the table.
    #[test]
    fn hashes_of_version_1_never_change() {
        let table: &[(&str, KeyHash, u64)] = &[
            ("unit", KeyHash::of(&()), 0x45ab460fd6460478),
            ("0", KeyHash::of(&0_u64), 0x2787e4fa96b4fa80),
            ("1", KeyHash::of(&1_u32), 0x0440ec0912dc506e),
            ("-1", KeyHash::of(&-1_i64), 0x396be002c3459dcf),
            ("u64::MAX", KeyHash::of(&u64::MAX), 0x396be002c3459dcf),
            ("2^100", KeyHash::of(&(1_u128 << 100)), 0x362f18f57a7f9830),
            ("true", KeyHash::of(&true), 0x0440ec0912dc506e),
            ("char", KeyHash::of(&'\u{e4}'), 0x519957cca3a69e1f),
            ("empty", KeyHash::of(&String::new()), 0x2787e4fa96b4fa80),
            (
                "text",
                KeyHash::of(&"perennial stream".to_owned()),
                0x77f2113633ebb777,
            ),
            (
                "tail",
                KeyHash::of(&"user-42".to_owned()),
                0x4e433644d78e8cd6,
            ),
            ("none", KeyHash::of(&None::<u8>), 0x2787e4fa96b4fa80),
            ("some", KeyHash::of(&Some(9_u8)), 0xeb09d961a6fab885),
            (
                "tuple",
                KeyHash::of(&(1_u8, "a".to_owned())),
                0x64117048673f0f66,
            ),
            ("struct", KeyHash::of(&user(7, "ab")), 0xe9f313d863370b3a),
            ("seq", KeyHash::of(&vec![1_u16, 2, 3]), 0xba662ecd8e336cbe),
            ("variant A", KeyHash::of(&Kind::A), 0x2787e4fa96b4fa80),
            ("variant B", KeyHash::of(&Kind::B(5)), 0xe28d0c2f261c23e5),
            (
                "variant C",
                KeyHash::of(&Kind::C {
                    x: -2,
                    y: Some(true),
                }),
                0xdda0936f3a6cc594,
            ),
            (
                "map",
                KeyHash::of(&BTreeMap::from([(1_u8, 2_u8), (3, 4)])),
                0x6027141b1e3e312b,
            ),
        ];
        for (what, hash, expected) in table {
            assert_eq!(hash.0, *expected, "{what}: {:#018x}", hash.0);
        }
        assert_eq!(KEY_HASH_VERSION, 1);
    }

    /// The rules of the module's documentation, one line each.
    #[test]
    fn equal_values_hash_equal_whatever_their_width_names_or_order() {
        assert_eq!(KeyHash::of(&7_u8), KeyHash::of(&7_u64));
        assert_eq!(KeyHash::of(&7_i32), KeyHash::of(&7_u128));
        assert_eq!(KeyHash::of(&-7_i8), KeyHash::of(&-7_i64));
        assert_eq!(KeyHash::of(&-7_i8), KeyHash::of(&-7_i128));
        assert_eq!(KeyHash::of(&u64::MAX), KeyHash::of(&u128::from(u64::MAX)));
        assert_eq!(
            KeyHash::of(&user(3, "x")),
            KeyHash::of(&Renamed {
                number: 3,
                label: "x".into()
            })
        );
        let entries: Vec<(u32, String)> = (0..100).map(|i| (i, format!("v{i}"))).collect();
        let hashed: HashMap<_, _> = entries.iter().cloned().collect();
        let ordered: BTreeMap<_, _> = entries.iter().cloned().collect();
        assert_eq!(KeyHash::of(&hashed), KeyHash::of(&ordered));
    }

    /// Boundaries between parts count: the encoding of one key type is uniquely decodable.
    #[test]
    fn different_shapes_hash_differently() {
        let strings = |a: &str, b: &str| KeyHash::of(&(a.to_owned(), b.to_owned()));
        assert_ne!(strings("ab", "c"), strings("a", "bc"));
        assert_ne!(strings("", "a"), strings("a", ""));
        assert_ne!(KeyHash::of(&"a".to_owned()), KeyHash::of(&"a\0".to_owned()));
        assert_ne!(KeyHash::of(&None::<u8>), KeyHash::of(&Some(0_u8)));
        assert_ne!(
            KeyHash::of(&vec![vec![1_u8], vec![]]),
            KeyHash::of(&vec![vec![], vec![1_u8]])
        );
        assert_ne!(KeyHash::of(&Kind::A), KeyHash::of(&Kind::B(0)));
        assert_ne!(KeyHash::of(&(1_u128 << 64)), KeyHash::of(&(1_u128 << 65)));
    }

    /// Sequential numbers and strings are the keys of most jobs: each of 128 groups gets its share within 5 standard
    /// deviations, also in a group count that is no power of two, and the bits for tables are spread within one group.
    #[test]
    fn sequential_keys_spread_evenly_over_groups() {
        const KEYS: u64 = 100_000;
        let numbers = (0..KEYS).map(|i| KeyHash::of(&i)).collect::<Vec<_>>();
        let strided = (0..KEYS).map(|i| KeyHash::of(&(i << 20))).collect();
        let pairs = (0..KEYS)
            .map(|i| KeyHash::of(&(i / 100, i % 100)))
            .collect();
        let strings = (0..KEYS)
            .map(|i| KeyHash::of(&format!("user-{i}")))
            .collect();
        for (what, hashes) in [
            ("numbers", numbers),
            ("strided", strided),
            ("pairs", pairs),
            ("strings", strings),
        ] {
            for groups in [128_u32, 100] {
                let mut counts = vec![0_u64; groups as usize];
                for hash in &hashes {
                    counts[usize::from(hash.key_group(groups).0)] += 1;
                }
                let mean = KEYS as f64 / f64::from(groups);
                let bound = 5.0 * mean.sqrt();
                for (group, count) in counts.into_iter().enumerate() {
                    assert!(
                        (count as f64 - mean).abs() < bound,
                        "{what}: group {group} of {groups} has {count}, mean {mean}"
                    );
                }
            }
            let in_group: Vec<u64> = hashes
                .iter()
                .filter(|h| h.key_group(128).0 == 5)
                .map(|h| h.for_table())
                .collect();
            let mut low = vec![0_u32; 16];
            let mut top = vec![0_u32; 16];
            for hash in &in_group {
                low[(hash & 15) as usize] += 1;
                top[(hash >> 60) as usize] += 1;
            }
            let mean = in_group.len() as f64 / 16.0;
            for count in low.into_iter().chain(top) {
                assert!(
                    (f64::from(count) - mean).abs() < 5.0 * mean.sqrt(),
                    "{what}: {count} of mean {mean}"
                );
            }
        }
    }

    #[test]
    fn no_two_of_many_small_keys_collide() {
        let mut hashes: Vec<u64> = (0..200_000_u64).map(|i| KeyHash::of(&i).0).collect();
        hashes.extend((1..100_000_i64).map(|i| KeyHash::of(&-i).0));
        hashes.sort_unstable();
        let len = hashes.len();
        hashes.dedup();
        assert_eq!(hashes.len(), len);
    }

    #[test]
    fn a_key_that_does_not_serialize_is_an_error_and_never_a_panic() {
        assert!(
            KeyHash::try_of(&(1_u8, Refuses))
                .unwrap_err()
                .to_string()
                .contains("not today")
        );
        assert_eq!(KeyHash::of(&(1_u8, Refuses)), KeyHash::of(&(1_u8, Refuses)));
        assert_ne!(KeyHash::of(&(1_u8, Refuses)), KeyHash::of(&(2_u8, Refuses)));
        assert_eq!(KeyHash::try_of(&5_u8), Ok(KeyHash::of(&5_u8)));
    }

    #[test]
    fn key_group_of_any_max_parallelism_is_in_range() {
        for max in [0_u32, 1, 2, 3, 127, 128, 32768] {
            for i in 0..1000_u64 {
                assert!(u32::from(KeyHash::of(&i).key_group(max).0) < max.max(1));
            }
        }
    }
}
