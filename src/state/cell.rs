//! What an entry holds and how its pre-image is kept (rule 8). Invariant: `restore(old_of(c), changed c)` is `c`.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StateValue;
use super::encoding::DecodeError;
use crate::append::Room;

/// How the content of an entry is logged and written. A type-level choice: contents stay plain, so that user code can have `&mut` to them.
pub(super) trait Cell: Send + 'static {
    /// What an entry holds.
    type Content: Send + 'static;
    /// Its pre-image.
    type Old: Send + 'static;
    /// Where an entry remembers the position of its last pre-image; `()` when it never needs it.
    type Mark: Copy + Default + Send + 'static;
    /// Makes a mark.
    fn mark(position: usize) -> Self::Mark;
    /// The position in a mark, if the pre-image may have to be completed.
    fn marked(mark: Self::Mark) -> Option<usize>;
    /// Whether a pre-image alone is not enough to tell the content: see [`encode_old`](Self::encode_old).
    const OLD_NEEDS_LATER: bool;
    /// `list`'s element or the value's type, for the manifest.
    fn type_name() -> &'static str;
    /// The pre-image before a change in place.
    fn old_of(content: &Self::Content) -> Self::Old;
    /// The pre-image when the content goes.
    fn into_old(content: Self::Content) -> Self::Old;
    /// The content was changed in place in this interval, and now it goes: completes the pre-image taken then.
    fn complete_old(_content: Self::Content, _old: &mut Self::Old) {}
    /// The content before the change; `None` when the two do not fit, which is a bug.
    fn restore(old: Self::Old, current: Option<Self::Content>) -> Option<Self::Content>;
    /// Whether a later pre-image holds content that an earlier one needs.
    fn has_content(old: &Self::Old) -> bool;
    /// Estimated bytes of a pre-image on the heap.
    fn old_heap_bytes(old: &Self::Old) -> usize;
    /// Writes the content.
    fn encode(content: &Self::Content, room: &mut Room<'_>) -> Result<(), String>;
    /// Writes the content before the change; `later` is the first later pre-image with content, else `current` holds it.
    fn encode_old(
        old: &Self::Old,
        later: Option<&Self::Old>,
        current: Option<&Self::Content>,
        room: &mut Room<'_>,
    ) -> Result<(), String>;
    /// Reads what `encode` wrote.
    fn decode(bytes: &[u8]) -> Result<Self::Content, DecodeError>;
}

/// What a type with a destructor is taken to hold on the heap. An estimate: measuring each value would cost more than logging it.
const HEAP_GUESS: usize = 64;

fn write<T: Serialize + ?Sized>(value: &T, room: &mut Room<'_>) -> Result<(), String> {
    rmp_serde::encode::write_named(room, value).map_err(|e| e.to_string())
}

fn read<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, DecodeError> {
    let value = rmp_serde::from_read(&mut bytes)
        .map_err(|e| DecodeError(format!("a {}: {e}", std::any::type_name::<T>())))?;
    if bytes.is_empty() {
        Ok(value)
    } else {
        Err(DecodeError(format!(
            "{} bytes left over after a {}",
            bytes.len(),
            std::any::type_name::<T>()
        )))
    }
}

/// One value.
pub(super) struct ValueCell<V>(PhantomData<fn() -> V>);

impl<V: StateValue> Cell for ValueCell<V> {
    type Content = V;
    type Old = V;
    type Mark = ();
    #[inline]
    fn mark(_position: usize) {}
    #[inline]
    fn marked((): ()) -> Option<usize> {
        None
    }
    const OLD_NEEDS_LATER: bool = false;

    fn type_name() -> &'static str {
        std::any::type_name::<V>()
    }
    #[inline]
    fn old_of(content: &V) -> V {
        content.clone()
    }
    #[inline]
    fn into_old(content: V) -> V {
        content
    }
    fn restore(old: V, _current: Option<V>) -> Option<V> {
        Some(old)
    }
    fn has_content(_old: &V) -> bool {
        true
    }
    #[inline]
    fn old_heap_bytes(_old: &V) -> usize {
        if std::mem::needs_drop::<V>() {
            HEAP_GUESS
        } else {
            0
        }
    }
    fn encode(content: &V, room: &mut Room<'_>) -> Result<(), String> {
        write(content, room)
    }
    fn encode_old(
        old: &V,
        _later: Option<&V>,
        _current: Option<&V>,
        room: &mut Room<'_>,
    ) -> Result<(), String> {
        write(old, room)
    }
    fn decode(bytes: &[u8]) -> Result<V, DecodeError> {
        read(bytes)
    }
}

/// A list that grows at its end and is replaced as a whole.
pub(super) struct ListCell<E>(PhantomData<fn() -> E>);

/// The pre-image of a list.
pub(super) enum ListOld<E> {
    /// It was the first so many elements of what it is now, or of the next pre-image that was moved.
    Length(usize),
    /// It was this.
    Moved(Vec<E>),
}

impl<E: StateValue> Cell for ListCell<E> {
    type Content = Vec<E>;
    type Old = ListOld<E>;
    type Mark = usize;
    fn mark(position: usize) -> usize {
        position
    }
    fn marked(mark: usize) -> Option<usize> {
        Some(mark)
    }
    const OLD_NEEDS_LATER: bool = true;

    fn type_name() -> &'static str {
        std::any::type_name::<E>()
    }
    #[inline]
    fn old_of(content: &Vec<E>) -> ListOld<E> {
        ListOld::Length(content.len())
    }
    fn into_old(content: Vec<E>) -> ListOld<E> {
        ListOld::Moved(content)
    }
    fn complete_old(mut content: Vec<E>, old: &mut ListOld<E>) {
        if let ListOld::Length(length) = *old {
            content.truncate(length);
            *old = ListOld::Moved(content);
        }
    }
    fn restore(old: ListOld<E>, current: Option<Vec<E>>) -> Option<Vec<E>> {
        match old {
            ListOld::Moved(elements) => Some(elements),
            ListOld::Length(length) => {
                let mut list = current?;
                if list.len() < length {
                    return None;
                }
                list.truncate(length);
                Some(list)
            }
        }
    }
    fn has_content(old: &ListOld<E>) -> bool {
        matches!(old, ListOld::Moved(_))
    }
    fn old_heap_bytes(old: &ListOld<E>) -> usize {
        match old {
            ListOld::Length(_) => 0,
            ListOld::Moved(elements) => {
                let each = if std::mem::needs_drop::<E>() {
                    HEAP_GUESS
                } else {
                    0
                };
                elements.len() * (size_of::<E>() + each)
            }
        }
    }
    fn encode(content: &Vec<E>, room: &mut Room<'_>) -> Result<(), String> {
        write(content, room)
    }
    fn encode_old(
        old: &ListOld<E>,
        later: Option<&ListOld<E>>,
        current: Option<&Vec<E>>,
        room: &mut Room<'_>,
    ) -> Result<(), String> {
        let elements = match (old, later, current) {
            (ListOld::Moved(elements), _, _) => Some(elements.as_slice()),
            (ListOld::Length(length), Some(ListOld::Moved(elements)), _) => elements.get(..*length),
            (ListOld::Length(length), None | Some(ListOld::Length(_)), Some(list)) => {
                list.get(..*length)
            }
            (ListOld::Length(_), None | Some(ListOld::Length(_)), None) => None,
        };
        match elements {
            Some(elements) => write(elements, room),
            None => Err("the log does not lead back to a list's content, this is a bug".to_owned()),
        }
    }
    fn decode(bytes: &[u8]) -> Result<Vec<E>, DecodeError> {
        read(bytes)
    }
}

/// That the entry is there says all: a timer.
pub(super) struct Marker;

impl Cell for Marker {
    type Content = ();
    type Old = ();
    type Mark = ();
    fn mark(_position: usize) {}
    fn marked((): ()) -> Option<usize> {
        None
    }
    const OLD_NEEDS_LATER: bool = false;

    fn type_name() -> &'static str {
        "timer"
    }
    fn old_of((): &()) {}
    fn into_old((): ()) {}
    fn restore((): (), _current: Option<()>) -> Option<()> {
        Some(())
    }
    fn has_content((): &()) -> bool {
        true
    }
    fn old_heap_bytes((): &()) -> usize {
        0
    }
    fn encode((): &(), _room: &mut Room<'_>) -> Result<(), String> {
        Ok(())
    }
    fn encode_old(
        (): &(),
        _later: Option<&()>,
        _current: Option<&()>,
        _room: &mut Room<'_>,
    ) -> Result<(), String> {
        Ok(())
    }
    fn decode(bytes: &[u8]) -> Result<(), DecodeError> {
        if bytes.is_empty() {
            Ok(())
        } else {
            Err(DecodeError("a timer carries no value".to_owned()))
        }
    }
}
