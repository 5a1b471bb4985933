//! A store in a directory (`file:///directory`), local or shared between nodes.
//!
//! Invariant: an object has either all its bytes or no name. It is written to a temporary file in the directory of its final name and made
//! durable there; then one step gives it the name: a hard link, which fails if the name is taken, for a create; a rename for a put.
//!
//! Does not promise that a delete is durable: an object that comes back after a power cut is swept again. A key and the same key with
//! `/…` behind it cannot both exist, as with any directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use perennial_actors::checkpoint::{Created, ObjectMeta, Store, StoreError, StoreResult};
use perennial_actors::entropy::Entropy;
use tokio::sync::Semaphore;

use super::key::{TEMPORARY_PREFIX, check_key, check_prefix};
use super::{check_range, past_the_end};

/// Operations of one factory that may occupy a blocking thread at a time.
pub(super) const OPERATIONS_IN_FLIGHT_MAX: usize = 16;
/// How long an operation may take, waiting for its turn included; a disk that hangs longer is a fault.
const OPERATION_DEADLINE: Duration = Duration::from_secs(60);
/// A large object gets a second more for each of these.
const SLOWEST_BYTES_PER_SECOND: u64 = 4 << 20;
/// How often a write is begun again because a concurrent delete removed its empty directory.
const DIRECTORY_RACES_MAX: u32 = 16;

/// Objects as files under a directory.
pub struct DiskStore {
    uri: String,
    root: Arc<Path>,
    turns: Arc<Semaphore>,
    entropy: Entropy,
}

impl DiskStore {
    /// A store in `root`, which is made by the first write. `turns` bounds the blocking threads, `entropy` names temporary files.
    pub(super) fn new(root: &Path, turns: Arc<Semaphore>, entropy: Entropy) -> Self {
        Self {
            uri: format!("file://{}", root.display()),
            root: Arc::from(root),
            turns,
            entropy,
        }
    }

    fn object_uri(&self, key: &str) -> String {
        format!("{}/{key}", self.uri)
    }

    /// Runs blocking work in its turn and within the deadline.
    async fn run<T: Send + 'static>(
        &self,
        call: Call,
        bytes: u64,
        work: impl FnOnce(&Call) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let deadline = OPERATION_DEADLINE + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND);
        let at = tokio::time::Instant::now() + deadline;
        let turn = match tokio::time::timeout_at(at, Arc::clone(&self.turns).acquire_owned()).await
        {
            Ok(Ok(turn)) => turn,
            // The semaphore is never closed; not begun either way.
            Ok(Err(_)) | Err(_) => {
                return Err(call.failed(format!(
                    "waited {deadline:?} behind {OPERATIONS_IN_FLIGHT_MAX} operations: the disk hangs"
                )));
            }
        };
        let blamed = call.clone();
        let thread = tokio::task::spawn_blocking(move || {
            let answer = work(&call);
            // Held until the thread is free, also when nobody waits any more.
            drop(turn);
            answer
        });
        match tokio::time::timeout_at(at, thread).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(join)) => Err(blamed.in_doubt(format!("its thread ended: {join}"))),
            Err(_) => Err(blamed.in_doubt(format!("no answer in {deadline:?}: the disk hangs"))),
        }
    }

    async fn write(&self, key: &str, bytes: Bytes, naming: Naming) -> StoreResult<Created> {
        check_key(&self.uri, key)?;
        let call = Call {
            operation: match naming {
                Naming::Create => "create",
                Naming::Replace => "put",
            },
            uri: self.object_uri(key),
            doubt: Doubt::Possible,
        };
        let target = Target::new(Arc::clone(&self.root), key, &self.entropy);
        let size = bytes.len() as u64;
        self.run(call, size, move |call| target.write(call, &bytes, naming))
            .await
    }
}

impl Store for DiskStore {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<Created>> {
        self.write(key, bytes, Naming::Create).boxed()
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> BoxFuture<'a, StoreResult<()>> {
        self.write(key, bytes, Naming::Replace)
            .map(|created| created.map(|_| ()))
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
            let call = Call::reading("get", self.object_uri(key));
            let path = self.root.join(key);
            let expected = range.as_ref().map_or(0, |range| range.end - range.start);
            self.run(call, expected, move |call| read(call, &path, range))
                .await
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, StoreResult<Vec<ObjectMeta>>> {
        async move {
            check_prefix(&self.uri, prefix)?;
            let call = Call::reading("list", self.object_uri(prefix));
            let (root, prefix) = (Arc::clone(&self.root), prefix.to_owned());
            self.run(call, 0, move |call| {
                let mut found = Vec::new();
                walk(call, &root, &prefix, &mut |file| match file {
                    Found::Object(object) => found.push(object),
                    Found::Unfinished(..) => {}
                })?;
                found.sort_by(|a, b| a.key.cmp(&b.key));
                Ok(found)
            })
            .await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        async move {
            check_key(&self.uri, key)?;
            let call = Call {
                operation: "delete",
                uri: self.object_uri(key),
                doubt: Doubt::Possible,
            };
            let (root, path) = (Arc::clone(&self.root), self.root.join(key));
            self.run(call, 0, move |call| delete(call, &root, &path))
                .await
        }
        .boxed()
    }

    fn sweep_unfinished<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, StoreResult<u64>> {
        async move {
            check_prefix(&self.uri, prefix)?;
            let call = Call::reading("sweep", self.object_uri(prefix));
            let (root, prefix) = (Arc::clone(&self.root), prefix.to_owned());
            self.run(call, 0, move |call| {
                let mut paths = Vec::new();
                walk(call, &root, &prefix, &mut |file| match file {
                    Found::Unfinished(path) => paths.push(path),
                    Found::Object(_) => {}
                })?;
                let swept = paths.len() as u64;
                for path in paths {
                    delete(call, &root, &path)?;
                }
                Ok(swept)
            })
            .await
        }
        .boxed()
    }
}

/// For messages, and to know what an interrupted call may have done.
#[derive(Clone)]
struct Call {
    operation: &'static str,
    uri: String,
    doubt: Doubt,
}

/// Whether an interrupted call may have had an effect.
#[derive(Clone, Copy)]
enum Doubt {
    None,
    Possible,
}

impl Call {
    fn reading(operation: &'static str, uri: String) -> Self {
        let doubt = Doubt::None;
        Self {
            operation,
            uri,
            doubt,
        }
    }

    fn failed(&self, message: String) -> StoreError {
        StoreError::Failed {
            operation: self.operation,
            uri: self.uri.clone(),
            message,
        }
    }

    fn in_doubt(&self, message: String) -> StoreError {
        match self.doubt {
            Doubt::None => self.failed(message),
            Doubt::Possible => StoreError::Unknown {
                operation: self.operation,
                uri: self.uri.clone(),
                message,
            },
        }
    }

    /// Nothing has got its name yet.
    fn io(&self, step: &str, path: &Path, error: &io::Error) -> StoreError {
        let advice = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ": make room on the disk",
            ErrorKind::PermissionDenied => ": check the directory's owner and mode",
            ErrorKind::ReadOnlyFilesystem => ": the file system is mounted read-only",
            ErrorKind::NotADirectory => ": a part of the key is an object, not a directory",
            _ => "",
        };
        self.failed(format!("{step} {}: {error}{advice}", path.display()))
    }
}

#[derive(Clone, Copy)]
enum Naming {
    Create,
    Replace,
}

/// The paths of one write.
struct Target {
    root: Arc<Path>,
    path: PathBuf,
    temporary: PathBuf,
}

impl Target {
    fn new(root: Arc<Path>, key: &str, entropy: &Entropy) -> Self {
        let path = root.join(key);
        let name = key.rsplit('/').next().unwrap_or(key);
        // The object's name comes last, so that a sweep can tell which key the file was for.
        let temporary = format!(
            "{TEMPORARY_PREFIX}{:08x}-{:016x}-{name}",
            std::process::id(),
            entropy.u64()
        );
        let temporary = path.with_file_name(temporary);
        Self {
            root,
            path,
            temporary,
        }
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.root)
    }

    fn write(&self, call: &Call, bytes: &[u8], naming: Naming) -> StoreResult<Created> {
        if matches!(naming, Naming::Create) && fs::symlink_metadata(&self.path).is_ok() {
            return self.lost_to_another(call);
        }
        let mut file = self.open_temporary(call)?;
        let written = file
            .write_all(bytes)
            // Order matters: the bytes must be durable before anything can find them by their name.
            .and_then(|()| file.sync_all())
            .map_err(|error| call.io("writing", &self.temporary, &error));
        drop(file);
        let named = written.and_then(|()| match naming {
            Naming::Create => self.link(call),
            Naming::Replace => fs::rename(&self.temporary, &self.path)
                .map(|()| Created::New)
                .map_err(|error| call.io("renaming to", &self.path, &error)),
        });
        // Gone already after a rename; a file that stays is found by the sweep.
        let _ = fs::remove_file(&self.temporary);
        match named? {
            Created::New => match self.sync_names() {
                Ok(()) => Ok(Created::New),
                // The name is visible, and may vanish in a power cut: the caller must look again.
                Err(error) => Err(call.in_doubt(format!(
                    "the object has its name, but fsync of {} failed: {error}",
                    self.directory().display()
                ))),
            },
            Created::Exists => self.lost_to_another(call),
        }
    }

    /// The winner may not have made its name durable yet, and we are about to act on it.
    fn lost_to_another(&self, call: &Call) -> StoreResult<Created> {
        self.sync_names()
            .map(|()| Created::Exists)
            .map_err(|error| call.io("fsync of", self.directory(), &error))
    }

    /// Makes the names from the file up to the root durable. The directories above too, although they may be old: a concurrent
    /// writer may have made them a moment ago, and fsync of an unchanged directory costs next to nothing.
    fn sync_names(&self) -> io::Result<()> {
        for directory in self.directory().ancestors() {
            sync_directory(directory)?;
            if directory == &*self.root {
                break;
            }
        }
        Ok(())
    }

    fn link(&self, call: &Call) -> StoreResult<Created> {
        match fs::hard_link(&self.temporary, &self.path) {
            Ok(()) => Ok(Created::New),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Created::Exists),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Unsupported | ErrorKind::PermissionDenied
                ) =>
            {
                Err(StoreError::Unsupported {
                    uri: call.uri.clone(),
                    message: format!(
                        "the file system makes no hard links ({error}), which creating an object once rests on: use a local disk, NFS or S3"
                    ),
                })
            }
            // On NFS the link may have been made although its answer was lost. Two links say that it was ours.
            Err(error) => match link_count(&self.temporary) {
                Some(2) => Ok(Created::New),
                Some(1) => Err(call.io("linking", &self.path, &error)),
                Some(_) | None => Err(call.in_doubt(format!("linking: {error}"))),
            },
        }
    }

    fn open_temporary(&self, call: &Call) -> StoreResult<File> {
        let mut races = 0;
        loop {
            make_directories(&self.root, self.directory())
                .map_err(|error| call.io("making", self.directory(), &error))?;
            let opened = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&self.temporary);
            match opened {
                Ok(file) => return Ok(file),
                // A delete emptied the directory and removed it in between. Once our file is in it, it stays.
                Err(error)
                    if error.kind() == ErrorKind::NotFound && races < DIRECTORY_RACES_MAX =>
                {
                    races += 1;
                }
                Err(error) => return Err(call.io("opening", &self.temporary, &error)),
            }
        }
    }
}

#[cfg(unix)]
fn link_count(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path)
        .ok()
        .map(|metadata| metadata.nlink())
}

/// Makes what is missing from the root downwards; each new name is durable in its parent.
fn make_directories(root: &Path, directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let Some(parent) = directory.parent() else {
        return Ok(());
    };
    make_directories(root, parent)?;
    match fs::create_dir(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists && directory.is_dir() => {}
        // A delete removed the parent in between: the caller's open fails with NotFound and begins again.
        Err(error) if error.kind() == ErrorKind::NotFound && directory.starts_with(root) => {
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    match sync_directory(parent) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn read(call: &Call, path: &Path, range: Option<Range<u64>>) -> StoreResult<Bytes> {
    let wrong = |error: io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
            StoreError::NotFound {
                uri: call.uri.clone(),
            }
        }
        _ => call.io("reading", path, &error),
    };
    let mut file = File::open(path).map_err(wrong)?;
    let metadata = file.metadata().map_err(wrong)?;
    if metadata.is_dir() {
        return Err(StoreError::NotFound {
            uri: call.uri.clone(),
        });
    }
    let size = metadata.len();
    let range = range.unwrap_or(0..size);
    if range.end > size {
        return Err(past_the_end(call.uri.clone(), &range, size));
    }
    let length = usize::try_from(range.end - range.start)
        .map_err(|_| call.failed("longer than this machine's memory".to_owned()))?;
    file.seek(SeekFrom::Start(range.start)).map_err(wrong)?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes).map_err(wrong)?;
    Ok(Bytes::from(bytes))
}

/// Removes a file, and the directories above it that it leaves empty.
fn delete(call: &Call, root: &Path, path: &Path) -> StoreResult<()> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        // The key names a directory: there is no object of that name.
        Err(_) if path.is_dir() => return Ok(()),
        Err(error) => return Err(call.io("deleting", path, &error)),
    }
    let mut directory = path.parent();
    while let Some(empty) = directory.filter(|at| *at != root && at.starts_with(root)) {
        // Fails when the directory is not empty, which is where this ends.
        if fs::remove_dir(empty).is_err() {
            break;
        }
        directory = empty.parent();
    }
    Ok(())
}

enum Found {
    Object(ObjectMeta),
    Unfinished(PathBuf),
}

/// Shows every file whose key, or whose future key, begins with `prefix`. What vanishes meanwhile is passed over.
fn walk(call: &Call, root: &Path, prefix: &str, show: &mut impl FnMut(Found)) -> StoreResult<()> {
    let top = prefix
        .rsplit_once('/')
        .map_or("", |(directory, _)| directory);
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        let path = root.join(&directory);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                continue;
            }
            Err(error) => return Err(call.io("listing", &path, &error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| call.io("listing", &path, &error))?;
            // Not UTF-8: no key of ours.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let under = |name: &str| match directory.as_str() {
                "" => name.to_owned(),
                directory => format!("{directory}/{name}"),
            };
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(call.io("listing", &entry.path(), &error)),
            };
            if let Some(rest) = name.strip_prefix(TEMPORARY_PREFIX) {
                let future = rest.splitn(3, '-').nth(2).unwrap_or_default();
                if metadata.is_file() && under(future).starts_with(prefix) {
                    show(Found::Unfinished(entry.path()));
                }
                continue;
            }
            let key = under(&name);
            if metadata.is_dir() {
                // A directory above, on or below the prefix; never beside it.
                if key.starts_with(prefix) || prefix.starts_with(&format!("{key}/")) {
                    directories.push(key);
                }
            } else if metadata.is_file() && key.starts_with(prefix) {
                let size = metadata.len();
                show(Found::Object(ObjectMeta { key, size }));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(root: &Path) -> DiskStore {
        DiskStore::new(root, Arc::new(Semaphore::new(2)), Entropy::seeded(1))
    }

    #[tokio::test]
    async fn temporary_files_of_dead_writers_are_hidden_and_swept_by_their_key() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        store.put("chk-1/a", Bytes::new()).await.unwrap();
        store.put("chk-2/a", Bytes::new()).await.unwrap();
        for name in [
            "chk-1/.tmp-7-8-part-x",
            "chk-1/.tmp-7-9-a",
            "chk-2/.tmp-7-8-a",
        ] {
            fs::write(root.path().join(name), "half").unwrap();
        }
        let keys = |found: Vec<ObjectMeta>| found.into_iter().map(|o| o.key).collect::<Vec<_>>();
        assert_eq!(keys(store.list("").await.unwrap()), ["chk-1/a", "chk-2/a"]);
        assert_eq!(store.sweep_unfinished("chk-1/part").await.unwrap(), 1);
        assert_eq!(store.sweep_unfinished("chk-1/").await.unwrap(), 1);
        assert_eq!(store.sweep_unfinished("").await.unwrap(), 1);
        assert_eq!(store.sweep_unfinished("").await.unwrap(), 0);
        assert_eq!(keys(store.list("").await.unwrap()), ["chk-1/a", "chk-2/a"]);
    }

    #[tokio::test]
    async fn writes_leave_nothing_behind_and_deletes_remove_empty_directories() {
        let root = tempfile::tempdir().unwrap();
        let store = store(&root.path().join("made/by/us"));
        store
            .create("a/b/c", Bytes::from_static(b"1"))
            .await
            .unwrap();
        store
            .create("a/b/c", Bytes::from_static(b"2"))
            .await
            .unwrap();
        store.put("a/b/c", Bytes::from_static(b"3")).await.unwrap();
        let files = fs::read_dir(root.path().join("made/by/us/a/b"))
            .unwrap()
            .count();
        assert_eq!(files, 1);
        store.delete("a/b/c").await.unwrap();
        assert_eq!(
            fs::read_dir(root.path().join("made/by/us"))
                .unwrap()
                .count(),
            0
        );
    }

    #[tokio::test]
    async fn creates_and_deletes_in_one_directory_do_not_break_each_other() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let work = (0..40).map(|n| {
            let store = &store;
            async move {
                let key = format!("d/e/{n}");
                store.create(&key, Bytes::new()).await?;
                store.delete(&key).await
            }
        });
        for done in futures::future::join_all(work).await {
            done.unwrap();
        }
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_made_is_a_clear_failure() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        let store = store(&root.path().join("file"));
        let error = store.put("a/b", Bytes::new()).await.unwrap_err();
        assert!(matches!(error, StoreError::Failed { .. }), "{error}");
        assert!(
            error.to_string().contains("not a directory") || error.to_string().contains("exists"),
            "{error}"
        );
        assert!(matches!(
            store.get("a/b", None).await,
            Err(StoreError::NotFound { .. })
        ));
        assert!(store.list("").await.unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_disk_ends_the_wait_of_those_behind_it() {
        let root = tempfile::tempdir().unwrap();
        let turns = Arc::new(Semaphore::new(0));
        let store = DiskStore::new(root.path(), turns, Entropy::seeded(1));
        let error = store.create("a", Bytes::new()).await.unwrap_err();
        assert!(matches!(error, StoreError::Failed { .. }), "{error}");
    }
}
