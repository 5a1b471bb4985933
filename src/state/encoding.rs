//! The bytes of one key group, and how to read them without the job's types.
//!
//! ```text
//! group   := section*
//! section := varint state index, entry*, 0
//! entry   := tag (1 live | 2 deleted), part key, part namespace, part map key, [part value]   -- value only when live
//! part    := varint length, bytes
//! ```
//! Key, namespace and map key (a timer's time; empty where there is none) are postcard, which is canonical; values are rmp-serde
//! with named fields. A state may have several sections; within one segment a key occurs once. Invariant: reading any bytes ends
//! with an error or a result, and allocates no more than a small multiple of the input. Checksums are the storage's business.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::append::Room;
use crate::varint::{self, VarintError};

/// Ends a section.
pub(super) const END: u8 = 0;
/// An entry with a value.
pub(super) const LIVE: u8 = 1;
/// An entry that was deleted since the base.
pub(super) const DELETED: u8 = 2;
/// Name of the values' serializer in the manifest.
pub(super) const SERIALIZER: &str = "rmp-named";
/// Version of this format in the manifest.
pub(super) const VERSION: u32 = 1;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stored state does not decode: {0}")]
pub struct DecodeError(pub String);

impl From<VarintError> for DecodeError {
    fn from(error: VarintError) -> Self {
        Self(error.to_string())
    }
}

/// One entry, still encoded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawEntry {
    /// The state's index in its `StateMeta`.
    pub state: u16,
    /// The key.
    pub key_bytes: Vec<u8>,
    /// The namespace.
    pub namespace_bytes: Vec<u8>,
    /// The map key or a timer's time, else empty.
    pub map_key_bytes: Vec<u8>,
    /// The value; `None`: deleted since the base.
    pub value: Option<Vec<u8>>,
}

/// Reads one group's bytes without knowing any type.
///
/// # Errors
/// When the bytes are not well formed.
pub fn decode_entries(bytes: &[u8]) -> Result<Vec<RawEntry>, DecodeError> {
    let mut entries = Vec::new();
    for_each_section(bytes, |state, mut section| {
        while !section.is_empty() {
            let entry = take_entry(&mut section)?;
            entries.push(RawEntry {
                state,
                key_bytes: entry.key.to_vec(),
                namespace_bytes: entry.namespace.to_vec(),
                map_key_bytes: entry.extra.to_vec(),
                value: entry.value.map(<[u8]>::to_vec),
            });
        }
        Ok(())
    })?;
    Ok(entries)
}

/// A borrowed entry.
pub(super) struct EntryRef<'a> {
    pub(super) key: &'a [u8],
    pub(super) namespace: &'a [u8],
    pub(super) extra: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
}

/// Calls `visit` with each section's state and its entries' bytes, without the end mark.
pub(super) fn for_each_section<'a>(
    mut bytes: &'a [u8],
    mut visit: impl FnMut(u16, &'a [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    while !bytes.is_empty() {
        let state = varint::take(&mut bytes)?;
        let state = u16::try_from(state)
            .map_err(|_| DecodeError(format!("state index {state} is too large")))?;
        let length = entries_length(bytes)?;
        visit(state, &bytes[..length])?;
        // The end mark was seen.
        bytes = &bytes[length + 1..];
    }
    Ok(())
}

/// The length of the entries before the end mark.
fn entries_length(bytes: &[u8]) -> Result<usize, DecodeError> {
    let mut rest = bytes;
    loop {
        match rest.first() {
            Some(&END) => return Ok(bytes.len() - rest.len()),
            Some(_) => take_entry(&mut rest).map(|_| ())?,
            None => return Err(DecodeError("a section has no end".to_owned())),
        }
    }
}

/// Takes the next entry of a section.
pub(super) fn take_entry<'a>(rest: &mut &'a [u8]) -> Result<EntryRef<'a>, DecodeError> {
    let (&tag, tail) = rest
        .split_first()
        .ok_or_else(|| DecodeError("an entry is cut off".to_owned()))?;
    *rest = tail;
    if tag != LIVE && tag != DELETED {
        return Err(DecodeError(format!("an entry cannot have tag {tag}")));
    }
    Ok(EntryRef {
        key: take_part(rest)?,
        namespace: take_part(rest)?,
        extra: take_part(rest)?,
        value: if tag == LIVE {
            Some(take_part(rest)?)
        } else {
            None
        },
    })
}

fn take_part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let length = varint::take(rest)?;
    match usize::try_from(length).ok().filter(|l| *l <= rest.len()) {
        Some(length) => {
            let (part, tail) = rest.split_at(length);
            *rest = tail;
            Ok(part)
        }
        None => Err(DecodeError(format!(
            "a part of {length} bytes does not fit into the {} that are left",
            rest.len()
        ))),
    }
}

/// Writes a part in postcard.
#[inline]
pub(super) fn put_canonical<T: Serialize>(value: &T, room: &mut Room<'_>) -> Result<(), String> {
    room.put_part(|room| postcard::serialize_with_flavor(value, room).map_err(|e| e.to_string()))
}

/// Reads a whole part in postcard.
pub(super) fn read_canonical<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let what = std::any::type_name::<T>();
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, left)) => Err(DecodeError(format!(
            "{} bytes left over after a {what}",
            left.len()
        ))),
        Err(e) => Err(DecodeError(format!("a {what}: {e}"))),
    }
}
