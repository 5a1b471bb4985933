//! Operators without state: map, filter, flat_map.

use std::marker::PhantomData;

use super::single::{Emitted, Operator, Pending};
use super::{OperatorError, TaskContext};
use crate::batch::{Record, Timestamp};
use crate::error::FunctionResult;

/// One record in, one out.
pub(crate) struct MapOperator<F, I, O> {
    function: F,
    _types: PhantomData<fn(I) -> O>,
}

impl<F, I, O> MapOperator<F, I, O> {
    pub(crate) fn new(function: F) -> Self {
        Self {
            function,
            _types: PhantomData,
        }
    }
}

impl<F, I, O> Operator for MapOperator<F, I, O>
where
    F: FnMut(I) -> FunctionResult<O> + Send + 'static,
    I: Record,
    O: Record,
{
    type In = I;
    type Out = O;

    fn process(
        &mut self,
        input: &mut Pending<I>,
        out: &mut Emitted<O>,
        _cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        if out.may_take_over(input) {
            return out.take_over(input, |value| (self.function)(value).map(Some));
        }
        input.take_while_room(|value, timestamp| {
            out.batch.push((self.function)(value)?, timestamp);
            Ok(out.has_room())
        })
    }

    fn is_at_most_one(&self) -> bool {
        true
    }
}

/// Keeps the records that a predicate holds for.
pub(crate) struct FilterOperator<F, T> {
    predicate: F,
    _type: PhantomData<fn(T)>,
}

impl<F, T> FilterOperator<F, T> {
    pub(crate) fn new(predicate: F) -> Self {
        Self {
            predicate,
            _type: PhantomData,
        }
    }
}

impl<F, T> Operator for FilterOperator<F, T>
where
    F: FnMut(&T) -> FunctionResult<bool> + Send + 'static,
    T: Record,
{
    type In = T;
    type Out = T;

    fn process(
        &mut self,
        input: &mut Pending<T>,
        out: &mut Emitted<T>,
        _cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        if out.may_take_over(input) && !input.has_timestamps() {
            return out.take_over(
                input,
                |value| Ok((self.predicate)(&value)?.then_some(value)),
            );
        }
        input.take_while_room(|value, timestamp| {
            if (self.predicate)(&value)? {
                out.batch.push(value, timestamp);
            }
            Ok(out.has_room())
        })
    }

    fn is_at_most_one(&self) -> bool {
        true
    }
}

/// Draws from an iterator until it is at its end and gone, or there is no more room. Whether there is.
fn emit_rest<O>(
    current: &mut Option<(impl Iterator<Item = O>, Option<Timestamp>)>,
    out: &mut Emitted<O>,
) -> bool {
    if let Some((iterator, timestamp)) = current {
        for value in iterator {
            out.batch.push(value, *timestamp);
            if !out.has_room() {
                return false;
            }
        }
        *current = None;
    }
    true
}

/// One record in, any number out, drawn lazily: an endless iterator holds up its own stream and nothing else, orders to the task least.
pub(crate) struct FlatMapOperator<F, I, It> {
    function: F,
    current: Option<(It, Option<Timestamp>)>,
    _type: PhantomData<fn(I)>,
}

impl<F, I, It> FlatMapOperator<F, I, It> {
    pub(crate) fn new(function: F) -> Self {
        Self {
            function,
            current: None,
            _type: PhantomData,
        }
    }
}

impl<F, I, It, O> Operator for FlatMapOperator<F, I, It>
where
    F: FnMut(I) -> FunctionResult<It> + Send + 'static,
    It: Iterator<Item = O> + Send + 'static,
    I: Record,
    O: Record,
{
    type In = I;
    type Out = O;

    fn process(
        &mut self,
        input: &mut Pending<I>,
        out: &mut Emitted<O>,
        _cx: &mut TaskContext<'_>,
    ) -> Result<(), OperatorError> {
        if !emit_rest(&mut self.current, out) {
            return Ok(());
        }
        input.take_while_room(|value, timestamp| {
            self.current = Some(((self.function)(value)?, timestamp));
            Ok(emit_rest(&mut self.current, out))
        })
    }

    fn is_busy(&self) -> bool {
        self.current.is_some()
    }
}
