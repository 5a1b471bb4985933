//! Puts of objects from the part size on: uploaded in parts, several at a time, and named by one last request.
//!
//! Invariant: an upload that certainly failed is aborted before the error is returned, so that it leaves no paid-for parts behind; one
//! whose end is in doubt is left to the sweep (see [`super`]).
//!
//! Deliberately not for creates. AWS completes an upload under `If-None-Match` atomically, SeaweedFS 4.48 does not: of three racing
//! creators of 9 MiB, two won. One conditional PUT is atomic on both.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use perennial_actors::checkpoint::{StoreError, StoreResult};

use super::S3Store;
use super::error::{Cause, Effect, Failure};
use crate::storage::retry::GaveUp;

/// Parts of one object that are on their way at a time.
const PARTS_IN_FLIGHT_MAX: usize = 4;
/// S3's limit.
const PARTS_MAX: u64 = 10_000;
/// Whole uploads of a put whose completion got lost on the way.
const PUT_ROUNDS_MAX: u32 = 2;
/// Pages of a listing of open uploads, of up to 1000 each.
const UPLOAD_PAGES_MAX: u32 = 1_000;

impl S3Store {
    pub(super) async fn put_in_parts(&self, key: &str, bytes: Bytes) -> StoreResult<()> {
        let mut round = 1;
        loop {
            match self.upload(key, &bytes).await {
                Ok(()) => return Ok(()),
                // The first completion was applied or never will be: putting the same bytes again settles it.
                Err(gave_up)
                    if gave_up.last.cause == Cause::NoSuchUpload && round < PUT_ROUNDS_MAX =>
                {
                    round += 1;
                }
                Err(gave_up) => return Err(self.error("put", key, &gave_up)),
            }
        }
    }

    async fn upload(&self, key: &str, bytes: &Bytes) -> Result<(), GaveUp<Failure>> {
        let full_key = self.full_key(key);
        let id = self.begin_upload(&full_key).await?;
        let completed = match self.upload_parts(&full_key, &id, bytes).await {
            Ok(parts) => self.complete(&full_key, &id, parts).await,
            Err(mut gave_up) => {
                // Parts are not the object: without its completion, nothing has happened to it.
                gave_up.last.effect = Effect::None;
                Err(gave_up)
            }
        };
        match &completed {
            Ok(()) => {}
            Err(gave_up) if gave_up.last.effect == Effect::Possible => {
                tracing::warn!(store = %self.uri, key, "an upload whose end is in doubt is left to the sweep");
            }
            Err(_) => self.abort_or_warn(&full_key, &id).await,
        }
        completed
    }

    async fn begin_upload(&self, full_key: &str) -> Result<String, GaveUp<Failure>> {
        let request = || {
            let request = self
                .clients
                .small
                .create_multipart_upload()
                .bucket(&self.bucket)
                .key(full_key)
                .send();
            async {
                let answer = request.await.map_err(Failure::from)?;
                let id = answer.upload_id().map(str::to_owned);
                id.ok_or_else(|| Failure::broken("the answer has no upload id".to_owned()))
            }
        };
        let begun = self.repeat(0, request).await;
        begun.map_err(|mut gave_up| {
            // At worst an empty upload is left to the sweep; the object is untouched.
            gave_up.last.effect = Effect::None;
            gave_up
        })
    }

    async fn upload_parts(
        &self,
        full_key: &str,
        id: &str,
        bytes: &Bytes,
    ) -> Result<Vec<CompletedPart>, GaveUp<Failure>> {
        let length = bytes.len() as u64;
        // Larger parts rather than too many of them.
        let size = self
            .clients
            .limits
            .part_size
            .max(length.div_ceil(PARTS_MAX));
        let starts = (0..length).step_by(usize::try_from(size).unwrap_or(usize::MAX));
        let uploads = (1..).zip(starts).map(|(number, start)| {
            let part = bytes.slice(start as usize..(start + size).min(length) as usize);
            self.upload_part(full_key, id, number, part)
        });
        stream::iter(uploads)
            .buffered(PARTS_IN_FLIGHT_MAX)
            .try_collect()
            .await
    }

    async fn upload_part(
        &self,
        full_key: &str,
        id: &str,
        number: i32,
        part: Bytes,
    ) -> Result<CompletedPart, GaveUp<Failure>> {
        let request = || {
            let request = self
                .clients
                .upload
                .upload_part()
                .bucket(&self.bucket)
                .key(full_key)
                .upload_id(id)
                .part_number(number)
                .body(ByteStream::from(part.clone()))
                .send();
            async {
                let answer = request.await.map_err(Failure::from)?;
                Ok(CompletedPart::builder()
                    .part_number(number)
                    .set_e_tag(answer.e_tag)
                    .set_checksum_crc32(answer.checksum_crc32)
                    .set_checksum_crc32_c(answer.checksum_crc32_c)
                    .set_checksum_crc64_nvme(answer.checksum_crc64_nvme)
                    .build())
            }
        };
        self.repeat(part.len() as u64, request).await
    }

    async fn complete(
        &self,
        full_key: &str,
        id: &str,
        parts: Vec<CompletedPart>,
    ) -> Result<(), GaveUp<Failure>> {
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        let request = || {
            let request = self
                .clients
                .small
                .complete_multipart_upload()
                .bucket(&self.bucket)
                .key(full_key)
                .upload_id(id)
                .multipart_upload(parts.clone())
                .send();
            async { request.await.map(|_| ()).map_err(Failure::from) }
        };
        self.repeat(0, request).await
    }

    async fn abort_or_warn(&self, full_key: &str, id: &str) {
        if let Err(gave_up) = self.abort(full_key, id).await {
            // Parts that cost space, not correctness; the sweep tries again.
            tracing::warn!(store = %self.uri, key = full_key, error = %gave_up, "an upload was not aborted");
        }
    }

    async fn abort(&self, full_key: &str, id: &str) -> Result<(), GaveUp<Failure>> {
        let request = || {
            let request = self
                .clients
                .small
                .abort_multipart_upload()
                .bucket(&self.bucket)
                .key(full_key)
                .upload_id(id)
                .send();
            async { request.await.map(|_| ()).map_err(Failure::from) }
        };
        match self.repeat(0, request).await {
            Err(gone) if gone.last.cause == Cause::NoSuchUpload => Ok(()),
            settled => settled,
        }
    }

    /// Aborts every open upload whose key begins with `prefix`.
    pub(super) async fn abort_uploads(&self, prefix: &str) -> StoreResult<u64> {
        let full_prefix = self.full_key(prefix);
        let (mut key_marker, mut id_marker) = (None::<String>, None::<String>);
        let mut aborted = 0;
        for _ in 0..UPLOAD_PAGES_MAX {
            let request = || {
                let request = self
                    .clients
                    .small
                    .list_multipart_uploads()
                    .bucket(&self.bucket)
                    .prefix(&full_prefix)
                    .set_key_marker(key_marker.clone())
                    .set_upload_id_marker(id_marker.clone())
                    .send();
                async { request.await.map_err(Failure::from) }
            };
            let page = self.repeat(0, request).await;
            let page = page.map_err(|gave_up| self.error("sweep", prefix, &gave_up))?;
            for upload in page.uploads() {
                if let (Some(key), Some(id)) = (upload.key(), upload.upload_id())
                    && key.starts_with(&full_prefix)
                {
                    let done = self.abort(key, id).await;
                    done.map_err(|gave_up| self.error("sweep", prefix, &gave_up))?;
                    aborted += 1;
                }
            }
            key_marker = page.next_key_marker().map(str::to_owned);
            id_marker = page.next_upload_id_marker().map(str::to_owned);
            if page.is_truncated() != Some(true) || key_marker.is_none() {
                return Ok(aborted);
            }
        }
        Err(StoreError::Failed {
            operation: "sweep",
            uri: self.object_uri(prefix),
            message: format!(
                "more than {UPLOAD_PAGES_MAX} pages of open uploads; {aborted} were aborted, sweep again"
            ),
        })
    }
}
