//! Perennial: a stream-processing runtime that comes back from every failure.
//!
//! A job is a function that declares streams on a [`api::StreamEnvironment`]; a binary registers its jobs in a
//! [`api::JobRegistry`] and hands it to [`cli::main`], and then plays every role: client, JobManager, TaskManager.

pub mod api;
mod append;
pub mod batch;
pub mod cli;
pub mod cluster;
pub mod connector;
pub mod error;
pub mod exchange;
pub mod jobs;
pub mod key;
pub mod operator;
pub mod state;
pub mod storage;
pub mod task;
mod varint;

/// The README, so that its example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
