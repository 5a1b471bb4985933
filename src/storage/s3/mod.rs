//! A store in an S3 bucket (`s3://bucket/prefix`) of AWS or any server of that protocol with conditional writes.
//!
//! Invariant: the SDK never retries. [`super::retry::retry`] does, and knows what each attempt may have done: a 412 after an attempt whose
//! answer was lost may be our own object, and so is `Unknown`, never `Exists`.
//!
//! Every request has a deadline of its own: connecting, silence, the attempt, the operation, and a streamed body by its length.
//! An upload in parts whose completion is in doubt is not aborted here: a server that is just completing it could lose its parts. The sweep,
//! which comes when nobody writes there any more, does that.

mod body;
mod client;
mod error;
mod multipart;

use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumMode;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use perennial_actors::checkpoint::{Created, ObjectMeta, Store, StoreError, StoreResult};
use perennial_actors::clock::Instant;
use perennial_actors::entropy::Entropy;

use super::key::{check_key, check_prefix};
use super::retry::{Attempt, GaveUp, RetryPolicy, retry};
use super::{check_range, past_the_end};
pub(super) use client::Clients;
use client::Limits;
use error::{Cause, Effect, Failure};

/// Upper bound of the first delay between attempts.
const RETRY_DELAY_FIRST: Duration = Duration::from_millis(200);
/// Upper bound of every delay between attempts.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);
/// The largest conditional create. S3 takes 5 GiB in one request; records are far below.
const CREATE_BYTES_MAX: u64 = 1 << 30;
/// Pages of a listing, of up to 1000 objects each.
const LIST_PAGES_MAX: u32 = 10_000;

/// Objects under a prefix of a bucket.
pub struct S3Store {
    uri: String,
    bucket: String,
    /// Ends with a slash unless empty.
    prefix: String,
    clients: Clients,
    entropy: Entropy,
}

impl S3Store {
    pub(super) fn new(bucket: &str, prefix: &str, clients: Clients, entropy: Entropy) -> Self {
        let slash = if prefix.is_empty() { "" } else { "/" };
        Self {
            uri: format!("s3://{bucket}{slash}{prefix}"),
            bucket: bucket.to_owned(),
            prefix: format!("{prefix}{slash}"),
            clients,
            entropy,
        }
    }

    fn object_uri(&self, key: &str) -> String {
        format!("{}/{key}", self.uri)
    }

    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// `bytes` are those that each attempt moves.
    fn policy(&self, bytes: u64) -> RetryPolicy {
        let limits = &self.clients.limits;
        RetryPolicy {
            attempts_max: limits.retries_max.saturating_add(1),
            initial_delay: RETRY_DELAY_FIRST,
            delay_max: RETRY_DELAY_MAX,
            deadline: limits.operation + limits.time_for(bytes),
        }
    }

    /// Runs one request to its end. `bytes` are those that an attempt moves; what only an answer tells is put there when it is known.
    /// `judge` sees each failure, and whether this or an earlier attempt may have had its effect.
    async fn attempt<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        bytes: &AtomicU64,
        mut request: impl FnMut() -> F,
        judge: impl Fn(Failure, Effect) -> Result<T, Attempt<Failure>>,
    ) -> Result<T, GaveUp<Failure>> {
        let policy = self.policy(bytes.load(Ordering::Relaxed));
        let begin = Instant::now();
        // Of any attempt so far.
        let is_doubtful = AtomicBool::new(false);
        let done = retry(policy, &self.entropy, |_| {
            // The SDK's futures are tens of kilobytes.
            let request = Box::pin(request());
            let request = in_time(&self.clients.limits, begin, bytes, request);
            let (is_doubtful, judge) = (&is_doubtful, &judge);
            async move {
                request.await.or_else(|failure| {
                    if failure.effect == Effect::Possible {
                        is_doubtful.store(true, Ordering::Relaxed);
                    }
                    judge(failure, effect_if(is_doubtful))
                })
            }
        });
        done.await.map_err(|mut gave_up| {
            // A late, clear refusal does not undo what an earlier attempt may have done.
            gave_up.last.effect = gave_up.last.effect.or(effect_if(&is_doubtful));
            gave_up
        })
    }

    /// As [`Self::attempt`], for requests that may be repeated without harm.
    async fn repeat<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        bytes: u64,
        request: impl FnMut() -> F,
    ) -> Result<T, GaveUp<Failure>> {
        self.repeat_for(&AtomicU64::new(bytes), request).await
    }

    async fn repeat_for<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        bytes: &AtomicU64,
        request: impl FnMut() -> F,
    ) -> Result<T, GaveUp<Failure>> {
        let judge = |failure: Failure, _| Err(failure.into_attempt());
        self.attempt(bytes, request, judge).await
    }

    fn error(&self, operation: &'static str, key: &str, gave_up: &GaveUp<Failure>) -> StoreError {
        let uri = self.object_uri(key);
        match gave_up.last.cause {
            Cause::NoSuchKey if operation == "get" => StoreError::NotFound { uri },
            Cause::NotImplemented => StoreError::Unsupported {
                uri,
                message: format!("the server cannot {operation} here: {gave_up}"),
            },
            _ if gave_up.last.effect == Effect::Possible && is_writing(operation) => {
                StoreError::Unknown {
                    operation,
                    uri,
                    message: gave_up.to_string(),
                }
            }
            _ => StoreError::Failed {
                operation,
                uri,
                message: gave_up.to_string(),
            },
        }
    }

    /// In one request, whatever the size: see [`multipart`].
    async fn create_object(&self, key: &str, bytes: Bytes) -> StoreResult<Created> {
        let full_key = self.full_key(key);
        let request = || {
            let request = self
                .clients
                .upload
                .put_object()
                .bucket(&self.bucket)
                .key(&full_key)
                .if_none_match("*")
                .body(ByteStream::from(bytes.clone()))
                .send();
            async { request.await.map(|_| Created::New).map_err(Failure::from) }
        };
        let length = AtomicU64::new(bytes.len() as u64);
        self.attempt(&length, request, judge_create)
            .await
            .map_err(|gave_up| self.error("create", key, &gave_up))
    }

    async fn put_small(&self, key: &str, bytes: Bytes) -> StoreResult<()> {
        let full_key = self.full_key(key);
        let done = self.repeat(bytes.len() as u64, || {
            let request = self
                .clients
                .upload
                .put_object()
                .bucket(&self.bucket)
                .key(&full_key)
                .body(ByteStream::from(bytes.clone()))
                .send();
            async { request.await.map(|_| ()).map_err(Failure::from) }
        });
        done.await
            .map_err(|gave_up| self.error("put", key, &gave_up))
    }

    async fn size_of(&self, key: &str) -> StoreResult<u64> {
        let full_key = self.full_key(key);
        let done = self.repeat(0, || {
            let request = self
                .clients
                .small
                .head_object()
                .bucket(&self.bucket)
                .key(&full_key)
                .send();
            async { request.await.map_err(Failure::from) }
        });
        let head = done.await.map_err(|mut gave_up| {
            // This answer has no body, and so never the word of a store.
            if gave_up.last.cause == Cause::NotFound {
                gave_up.last.cause = Cause::NoSuchKey;
            }
            self.error("get", key, &gave_up)
        })?;
        Ok(head
            .content_length()
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or(0))
    }

    async fn get_object(&self, key: &str, range: Option<Range<u64>>) -> StoreResult<Bytes> {
        if let Some(range) = range.as_ref().filter(|range| range.is_empty()) {
            // HTTP has no empty range.
            let size = self.size_of(key).await?;
            return if range.end <= size {
                Ok(Bytes::new())
            } else {
                Err(past_the_end(self.object_uri(key), range, size))
            };
        }
        let full_key = self.full_key(key);
        let bytes = range.as_ref().map_or(0, |range| range.end - range.start);
        let bytes = AtomicU64::new(bytes);
        let done = self.repeat_for(&bytes, || {
            let mut request = self
                .clients
                .small
                .get_object()
                .bucket(&self.bucket)
                .key(&full_key);
            request = match &range {
                Some(range) => request.range(format!("bytes={}-{}", range.start, range.end - 1)),
                None => request.checksum_mode(ChecksumMode::Enabled),
            };
            let request = request.send();
            async {
                let answer = request.await.map_err(Failure::from)?;
                let length = answer.content_length().and_then(|n| u64::try_from(n).ok());
                bytes.fetch_max(length.unwrap_or(0), Ordering::Relaxed);
                body::read(answer.body, length, &self.clients.limits).await
            }
        });
        let bytes = match done.await {
            Ok(bytes) => bytes,
            Err(gave_up) => {
                return match (range, gave_up.last.cause) {
                    (Some(range), Cause::RangeNotSatisfiable) => {
                        let size = self.size_of(key).await?;
                        Err(past_the_end(self.object_uri(key), &range, size))
                    }
                    _ => Err(self.error("get", key, &gave_up)),
                };
            }
        };
        match range {
            // A server answers a range that only begins inside with what there is.
            Some(range) if bytes.len() as u64 != range.end - range.start => {
                let size = range.start + bytes.len() as u64;
                Err(past_the_end(self.object_uri(key), &range, size))
            }
            Some(_) | None => Ok(bytes),
        }
    }

    async fn list_objects(&self, prefix: &str) -> StoreResult<Vec<ObjectMeta>> {
        let full_prefix = self.full_key(prefix);
        let mut found = Vec::new();
        let mut continuation: Option<String> = None;
        for _ in 0..LIST_PAGES_MAX {
            let done = self.repeat(0, || {
                let request = self
                    .clients
                    .small
                    .list_objects_v2()
                    .bucket(&self.bucket)
                    .prefix(&full_prefix)
                    .set_continuation_token(continuation.clone())
                    .send();
                async { request.await.map_err(Failure::from) }
            });
            let page = done
                .await
                .map_err(|gave_up| self.error("list", prefix, &gave_up))?;
            for object in page.contents() {
                // Anything else is an object that somebody else put beside ours, or a folder's marker.
                if let Some(key) = object.key().and_then(|key| key.strip_prefix(&self.prefix))
                    && check_key(&self.uri, key).is_ok()
                {
                    found.push(ObjectMeta {
                        key: key.to_owned(),
                        size: object
                            .size()
                            .and_then(|n| u64::try_from(n).ok())
                            .unwrap_or(0),
                    });
                }
            }
            match page.next_continuation_token() {
                Some(next) if page.is_truncated() == Some(true) => {
                    continuation = Some(next.to_owned());
                }
                Some(_) | None => {
                    // S3's order is ours; other servers list folder by folder.
                    found.sort_by(|a, b| a.key.cmp(&b.key));
                    found.dedup_by(|a, b| a.key == b.key);
                    return Ok(found);
                }
            }
        }
        Err(StoreError::Failed {
            operation: "list",
            uri: self.object_uri(prefix),
            message: format!("more than {LIST_PAGES_MAX} pages: list a longer prefix"),
        })
    }
}

impl Store for S3Store {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<Created>> {
        async move {
            check_key(&self.uri, key)?;
            if bytes.len() as u64 > CREATE_BYTES_MAX {
                return Err(StoreError::Invalid {
                    uri: self.object_uri(key),
                    message: format!(
                        "a create takes one request of at most {CREATE_BYTES_MAX} bytes, this are {}: put it under a name of its own and create what refers to it",
                        bytes.len()
                    ),
                });
            }
            self.create_object(key, bytes).await
        }
        .boxed()
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<()>> {
        async move {
            check_key(&self.uri, key)?;
            if (bytes.len() as u64) < self.clients.limits.part_size {
                self.put_small(key, bytes).await
            } else {
                self.put_in_parts(key, bytes).await
            }
        }
        .boxed()
    }

    fn get<'a>(
        &'a self,
        key: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, StoreResult<Bytes>> {
        async move {
            check_key(&self.uri, key)?;
            check_range(|| self.object_uri(key), range.as_ref())?;
            self.get_object(key, range).await
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, StoreResult<Vec<ObjectMeta>>> {
        async move {
            check_prefix(&self.uri, prefix)?;
            self.list_objects(prefix).await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        async move {
            check_key(&self.uri, key)?;
            let full_key = self.full_key(key);
            let done = self.repeat(0, || {
                let request = self
                    .clients
                    .small
                    .delete_object()
                    .bucket(&self.bucket)
                    .key(&full_key)
                    .send();
                async { request.await.map(|_| ()).map_err(Failure::from) }
            });
            match done.await {
                Ok(()) => Ok(()),
                Err(gave_up) if gave_up.last.cause == Cause::NoSuchKey => Ok(()),
                Err(gave_up) => Err(self.error("delete", key, &gave_up)),
            }
        }
        .boxed()
    }

    fn sweep_unfinished<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, StoreResult<u64>> {
        async move {
            check_prefix(&self.uri, prefix)?;
            self.abort_uploads(prefix).await
        }
        .boxed()
    }
}

/// Ends an attempt that nothing else ends: the belt to the braces of the SDK's own timeouts, which do not cover everything. When the answer
/// tells of more bytes than were expected, it has the time for them.
async fn in_time<T>(
    limits: &Limits,
    operation_began: Instant,
    bytes: &AtomicU64,
    mut request: Pin<Box<impl Future<Output = Result<T, Failure>>>>,
) -> Result<T, Failure> {
    let began = Instant::now();
    loop {
        let known = bytes.load(Ordering::Relaxed);
        let end = operation_began + limits.operation + limits.time_for(known);
        let end = end.min(began + limits.attempt_for(known));
        let left = end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, &mut request).await {
            Ok(answer) => return answer,
            Err(_) if bytes.load(Ordering::Relaxed) > known => {}
            Err(_) => return Err(Failure::silent(began.elapsed())),
        }
    }
}

fn effect_if(is_doubtful: &AtomicBool) -> Effect {
    if is_doubtful.load(Ordering::Relaxed) {
        Effect::Possible
    } else {
        Effect::None
    }
}

fn is_writing(operation: &str) -> bool {
    !matches!(operation, "get" | "list")
}

/// A 412 says that the object is there; after an attempt that may have made it, it does not say whose it is.
fn judge_create(failure: Failure, effect: Effect) -> Result<Created, Attempt<Failure>> {
    match (failure.cause, effect) {
        (Cause::PreconditionFailed, Effect::None) => Ok(Created::Exists),
        (Cause::PreconditionFailed, Effect::Possible) => Err(Attempt::Final(Failure {
            message: format!("{failure}, and an earlier attempt of ours may have made it"),
            ..failure
        })),
        _ => Err(failure.into_attempt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        connect: Duration::from_secs(1),
        silence: Duration::from_secs(2),
        operation: Duration::from_secs(10),
        retries_max: 0,
        part_size: 8 << 20,
    };

    /// How long an object takes is only known when its answer has begun.
    #[tokio::test(start_paused = true)]
    async fn a_long_answer_has_the_time_for_its_bytes_and_no_more() {
        // 100 seconds at the slowest rate that counts.
        const BYTES: u64 = 100 * (256 << 10);
        for (announced, seconds, is_in_time) in [
            (0, 2, true),
            (0, 4, false),
            (BYTES, 90, true),
            (BYTES, 120, false),
        ] {
            let bytes = AtomicU64::new(0);
            let request = async {
                bytes.fetch_max(announced, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok(())
            };
            let done = in_time(&LIMITS, Instant::now(), &bytes, Box::pin(request)).await;
            assert_eq!(done.is_ok(), is_in_time, "{announced} bytes, {seconds} s");
        }
    }
}
