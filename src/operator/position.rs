//! The words in which a failure says where in the input it was.

use super::Signal;
use crate::batch::MAX_WATERMARK;

/// From one record of a source to another: `split@7`, `split@7..=9`, `a@7 to b@0`.
pub(crate) fn span(first: &(String, u64), last: &(String, u64)) -> String {
    let (split, from) = first;
    match last {
        (other, to) if other == split && to == from => format!("{split}@{from}"),
        (other, to) if other == split => format!("{split}@{from}..={to}"),
        (other, to) => format!("{split}@{from} to {other}@{to}"),
    }
}

/// Work that is no record's, and the last record before it.
pub(crate) fn after(work: Option<String>, last: Option<String>) -> Option<String> {
    match (work, last) {
        (Some(work), Some(last)) => Some(format!("{work}, after {last}")),
        (Some(work), None) => Some(work),
        (None, Some(last)) => Some(format!("after {last}")),
        (None, None) => None,
    }
}

/// What a signal is to people.
pub(crate) fn of_signal(signal: Signal) -> String {
    match signal {
        Signal::Watermark(MAX_WATERMARK) => "the end of event time".to_owned(),
        Signal::Watermark(time) => format!("event time {time}"),
        Signal::ProcessingTime(_) => "a timer of processing time".to_owned(),
        Signal::Status(_) => "a change between idle and active".to_owned(),
        Signal::EndOfInput => "the end of input".to_owned(),
    }
}
