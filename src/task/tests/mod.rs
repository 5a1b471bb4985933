//! Tests of tasks.

mod waker;
