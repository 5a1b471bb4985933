//! Output that its channel has not accepted yet.
//!
//! Invariant: order is kept; a watermark directly behind a watermark replaces it, as does a status. Nothing is reordered or lost.

use std::collections::VecDeque;

use crate::batch::StreamElement;

/// Whether `next` makes `last`, directly before it, meaningless.
pub(super) fn coalesces<T>(last: &StreamElement<T>, next: &StreamElement<T>) -> bool {
    matches!(
        (last, next),
        (StreamElement::Watermark(_), StreamElement::Watermark(_))
            | (StreamElement::Status(_), StreamElement::Status(_))
    )
}

pub(super) struct ElementQueue<T> {
    elements: VecDeque<StreamElement<T>>,
    records: usize,
    controls: usize,
}

impl<T> ElementQueue<T> {
    pub(super) fn new() -> Self {
        Self {
            elements: VecDeque::new(),
            records: 0,
            controls: 0,
        }
    }

    pub(super) fn push(&mut self, element: StreamElement<T>) {
        match &element {
            // An empty batch says nothing.
            StreamElement::Batch(batch) if batch.is_empty() => return,
            StreamElement::Batch(batch) => self.records += batch.len(),
            StreamElement::Watermark(_)
            | StreamElement::Status(_)
            | StreamElement::Barrier(_)
            | StreamElement::EndOfInput => {
                if let Some(last) = self.elements.back_mut()
                    && coalesces(last, &element)
                {
                    *last = element;
                    return;
                }
                self.controls += 1;
            }
        }
        self.elements.push_back(element);
    }

    pub(super) fn front(&self) -> Option<&StreamElement<T>> {
        self.elements.front()
    }

    pub(super) fn pop(&mut self) -> Option<StreamElement<T>> {
        let element = self.elements.pop_front();
        match &element {
            Some(StreamElement::Batch(batch)) => self.records -= batch.len(),
            Some(_) => self.controls -= 1,
            None => {}
        }
        element
    }

    pub(super) fn clear(&mut self) {
        self.elements.clear();
        (self.records, self.controls) = (0, 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    pub(super) fn records(&self) -> usize {
        self.records
    }

    pub(super) fn controls(&self) -> usize {
        self.controls
    }
}
