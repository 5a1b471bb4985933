//! Bytes that small things are appended to, one behind the other: entries of state, records of a batch.
//!
//! Asking a vector for room for each byte costs more than encoding it. So there always is room, a thing is written into it without
//! asking, and anew into more room when it was too little. Invariant: a thing is in the buffer whole or not at all.

use std::convert::Infallible;
use std::io;

use postcard::ser_flavors::Flavor;

use crate::varint;

/// Room that a buffer begins with, in bytes.
const FIRST_ROOM: usize = 256;

/// See the module.
#[derive(Default)]
pub(crate) struct AppendBuffer {
    /// As long as there is room.
    bytes: Vec<u8>,
    end: usize,
}

impl AppendBuffer {
    /// An empty buffer with room for so many bytes.
    pub(crate) fn with_room(bytes: usize) -> Self {
        // Not by `behind`, which would write all of it: memory that comes zeroed costs nothing before it is used.
        Self {
            bytes: vec![0; bytes],
            end: 0,
        }
    }

    /// Goes on behind what is there, with the room that the vector has.
    pub(crate) fn behind(mut bytes: Vec<u8>) -> Self {
        let end = bytes.len();
        bytes.resize(bytes.capacity(), 0);
        Self { bytes, end }
    }

    pub(crate) fn len(&self) -> usize {
        self.end
    }

    /// Forgets what was written after the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.end = self.end.min(len);
    }

    /// What was written.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.bytes;
        bytes.truncate(self.end);
        bytes
    }

    /// Appends what `write` writes, or nothing when it fails. It is called again when there was too little room.
    #[inline]
    pub(crate) fn append<E>(
        &mut self,
        write: impl Fn(&mut Room<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let mut room = Room {
                bytes: &mut self.bytes[self.end..],
                end: 0,
                is_full: false,
            };
            let written = write(&mut room);
            if !room.is_full {
                written?;
                self.end += room.end;
                return Ok(());
            }
            self.make_room();
        }
    }

    /// Appends bytes.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        let written: Result<(), Infallible> = self.append(|room| {
            room.put(bytes);
            Ok(())
        });
        match written {
            Ok(()) => {}
        }
    }

    /// Appends a number.
    pub(crate) fn put_varint(&mut self, value: u64) {
        let written: Result<(), Infallible> = self.append(|room| {
            room.put_varint(value);
            Ok(())
        });
        match written {
            Ok(()) => {}
        }
    }

    #[cold]
    fn make_room(&mut self) {
        let doubled = self.bytes.len() * 2;
        self.bytes.resize(doubled.max(FIRST_ROOM), 0);
    }
}

/// Where an entry is written to. What does not fit is left out, and whoever gave the room knows.
pub(crate) struct Room<'a> {
    bytes: &'a mut [u8],
    end: usize,
    is_full: bool,
}

impl Room<'_> {
    #[inline]
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        let end = self.end + bytes.len();
        match self.bytes.get_mut(self.end..end) {
            Some(to) => {
                copy(bytes, to);
                self.end = end;
            }
            None => self.is_full = true,
        }
    }

    /// Writes a number.
    #[inline]
    pub(crate) fn put_varint(&mut self, value: u64) {
        varint::put(value, |byte| self.push(byte));
    }

    #[inline]
    pub(crate) fn push(&mut self, byte: u8) {
        match self.bytes.get_mut(self.end) {
            Some(to) => {
                *to = byte;
                self.end += 1;
            }
            None => self.is_full = true,
        }
    }

    /// Writes what `write` writes, with its length before it. Most parts are short: one byte is reserved, and a longer length moves
    /// the part.
    #[inline]
    pub(crate) fn put_part<E>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.end;
        self.push(0);
        write(self)?;
        let length = (self.end - start).saturating_sub(1);
        if length >= 0x80 {
            self.put_long_length(start, length);
        } else if let Some(at) = self.bytes.get_mut(start) {
            *at = length as u8;
        }
        Ok(())
    }

    #[cold]
    fn put_long_length(&mut self, start: usize, length: usize) {
        let mut prefix = [0; varint::BYTES_MAX];
        let mut room = Room {
            bytes: &mut prefix,
            end: 0,
            is_full: false,
        };
        room.put_varint(length as u64);
        let prefix_length = room.end;
        let prefix = &prefix[..prefix_length];
        // One byte was reserved for it.
        self.put(&prefix[1..]);
        if !self.is_full {
            let part = start + 1..start + 1 + length;
            self.bytes.copy_within(part, start + prefix.len());
            self.bytes[start..start + prefix.len()].copy_from_slice(prefix);
        }
    }
}

/// Copies a slice into one of its length. Numbers are 1 to 10 bytes long, for which calling the C library's copy costs more than the copy.
#[inline]
fn copy(from: &[u8], to: &mut [u8]) {
    fn ends<const N: usize>(from: &[u8], to: &mut [u8]) -> bool {
        let (Some(first), Some(last)) = (from.first_chunk::<N>(), from.last_chunk::<N>()) else {
            return false;
        };
        if let Some(to) = to.first_chunk_mut::<N>() {
            *to = *first;
        }
        if let Some(to) = to.last_chunk_mut::<N>() {
            *to = *last;
        }
        true
    }
    // Two copies of a fixed length that overlap, or not, for any length between that one and its double.
    match from.len() {
        0 => {}
        1 => to[0] = from[0],
        2..=3 => _ = ends::<2>(from, to),
        4..=7 => _ = ends::<4>(from, to),
        8..=16 => _ = ends::<8>(from, to),
        _ => to.copy_from_slice(from),
    }
}

impl io::Write for Room<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Flavor for &mut Room<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.put(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::decode_entries;

    /// A live entry and the end of a section in the format of state, see `state::encoding`.
    const LIVE: u8 = 1;
    const END: u8 = 0;

    /// Lengths on both sides of where a length takes one more byte, in an order in which the buffer grows at every step of an entry.
    #[test]
    fn parts_of_any_length_come_back_whatever_room_there_was() {
        let lengths: Vec<usize> = (0..=20)
            .chain([0x7f, 0x80, 0xff, 0x3fff, 0x4000, 100_000])
            .collect();
        let bytes = |length: usize| -> Vec<u8> { (0..length).map(|i| i as u8).collect() };
        for first_room in (0..64).chain([200, 16_500]) {
            let mut buffer = AppendBuffer::with_room(first_room);
            buffer.put(&[7]);
            for &length in &lengths {
                let part = bytes(length);
                let put = |room: &mut Room<'_>| {
                    room.put_part(|room| -> Result<(), Infallible> {
                        room.put(&part);
                        Ok(())
                    })
                };
                let appended = buffer.append(|room| {
                    room.push(LIVE);
                    (0..4).try_for_each(|_| put(room))
                });
                assert_eq!(appended, Ok(()));
            }
            buffer.put(&[END]);
            let entries = decode_entries(&buffer.into_bytes()).unwrap();
            let found: Vec<_> = entries
                .iter()
                .map(|entry| (entry.key_bytes.len(), entry.value.clone().unwrap()))
                .collect();
            let expected: Vec<_> = lengths.iter().map(|&n| (n, bytes(n))).collect();
            assert_eq!(found, expected);
        }
    }

    /// What an entry had written before it failed is written over.
    #[test]
    fn an_entry_that_fails_leaves_nothing() {
        let mut buffer = AppendBuffer::default();
        buffer.put(b"before");
        let failed = buffer.append(|room| {
            // More than there is room for at first.
            room.put(&[7; 2 * FIRST_ROOM]);
            Err("cannot be encoded")
        });
        assert_eq!(failed, Err("cannot be encoded"));
        buffer.put(b" after");
        assert_eq!(buffer.into_bytes(), b"before after");
    }
}
