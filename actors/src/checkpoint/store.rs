//! The store of checkpoints, savepoints and leadership, as the control plane sees it. Implemented in `src/storage` for disk,
//! S3 and memory, and by fakes in tests.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

/// The result of a conditional create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is ours.
    New,
    /// It was there before; nothing was changed.
    Exists,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Relative to the store's root.
    pub key: String,
    /// In bytes.
    pub size: u64,
}

/// A failed operation. Retries inside the limits of the settings have already been made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("{uri} does not exist")]
    NotFound {
        /// The full URI.
        uri: String,
    },
    /// The operation certainly had no effect.
    #[error("{operation} {uri} failed: {message}")]
    Failed {
        /// `get`, `put`, `create`, `list`, `delete`.
        operation: &'static str,
        /// The full URI.
        uri: String,
        /// The cause, with the number of attempts.
        message: String,
    },
    /// The operation may or may not have had its effect, or may still have it: a timeout, a connection that broke after sending.
    #[error("{operation} {uri} has an unknown outcome: {message}")]
    Unknown {
        /// `put`, `create`, `delete`.
        operation: &'static str,
        /// The full URI.
        uri: String,
        /// The cause, with the number of attempts.
        message: String,
    },
    /// The store cannot do what exactly-once needs.
    #[error("{uri}: {message}")]
    Unsupported {
        /// The full URI.
        uri: String,
        /// What is missing, what to use instead.
        message: String,
    },
    /// The URI or its settings are wrong.
    #[error("{uri}: {message}")]
    Invalid {
        /// As given.
        uri: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// Result of a store operation.
pub type StoreResult<T> = Result<T, StoreError>;

/// Objects under a root URI. Keys are relative, `/`-separated, without `.` or `..` segments.
///
/// Every operation ends within the configured deadline. Dropping a future leaves the outcome unknown.
pub trait Store: Send + Sync + 'static {
    /// The root, for messages and for [`StoreFactory::open`] in another process.
    fn uri(&self) -> &str;
    /// Creates the object if there is none of that name: exactly one of any number of racing creators gets [`Created::New`]. Durable on return.
    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<Created>>;
    /// Creates or replaces the object. Durable on return.
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<()>>;
    /// The object's bytes, or those of a range; a range past the end is an error.
    fn get<'a>(
        &'a self,
        key: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, StoreResult<Bytes>>;
    /// All objects whose key begins with `prefix`, in order of keys. May be stale: nothing that matters depends on it.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, StoreResult<Vec<ObjectMeta>>>;
    /// Deletes the object; no error when there is none.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<()>>;
    /// Discards what writers that died left unfinished of objects whose key begins with `prefix` (temporary files, open multipart
    /// uploads) and returns how many. The caller knows that nobody writes there any more: a write that is still running is broken by it.
    /// A store whose writes leave nothing behind has nothing to do.
    fn sweep_unfinished<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, StoreResult<u64>> {
        let _ = prefix; // Named for the documentation.
        Box::pin(std::future::ready(Ok(0)))
    }
}

/// Opens stores by URI (`file:///dir`, `s3://bucket/prefix`, `memory://name`).
pub trait StoreFactory: Send + Sync + 'static {
    /// Opens the store at `uri`. Cheap: connects lazily; a wrong URI is an error here.
    fn open(&self, uri: &str) -> StoreResult<Arc<dyn Store>>;
}
