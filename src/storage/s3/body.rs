//! Reads the streamed body of an answer, which no timeout of the SDK covers.
//!
//! Invariant: reading ends, with all the announced bytes or with an error: bounded silence, a deadline by length.

use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};
use perennial_actors::clock::Instant;

use super::client::Limits;
use super::error::{Cause, Failure};

/// Memory that is reserved on the word of a header alone.
const RESERVED_BYTES_MAX: u64 = 64 << 20;

pub(super) async fn read(
    mut body: ByteStream,
    announced: Option<u64>,
    limits: &Limits,
) -> Result<Bytes, Failure> {
    let begin = Instant::now();
    let reserved = announced.unwrap_or(0).min(RESERVED_BYTES_MAX) as usize;
    let mut bytes = BytesMut::with_capacity(reserved);
    loop {
        let received = bytes.len() as u64;
        let end = begin + limits.silence + limits.time_for(announced.unwrap_or(received));
        let patience = limits
            .silence
            .min(end.saturating_duration_since(Instant::now()));
        match tokio::time::timeout(patience, body.next()).await {
            Ok(Some(Ok(chunk))) => bytes.extend_from_slice(&chunk),
            Ok(None) => break,
            // A broken connection, or a checksum that does not match.
            Ok(Some(Err(error))) => {
                return Err(Failure::broken(format!(
                    "the body broke after {received} bytes: {}",
                    aws_sdk_s3::error::DisplayErrorContext(&error)
                )));
            }
            Err(_) => {
                let message = format!(
                    "the body stopped after {received} of {} bytes, {:.1} s after its begin",
                    announced.map_or("unknown".to_owned(), |n| n.to_string()),
                    begin.elapsed().as_secs_f64()
                );
                return Err(Failure {
                    cause: Cause::Timeout,
                    ..Failure::broken(message)
                });
            }
        }
    }
    match announced {
        Some(announced) if announced != bytes.len() as u64 => Err(Failure::broken(format!(
            "the body has {} bytes, its header said {announced}",
            bytes.len()
        ))),
        Some(_) | None => Ok(bytes.freeze()),
    }
}
