//! Finds out at start whether a store can do what exactly-once rests on: creating an object only if there is none.
//!
//! Passing proves the mechanism, not its atomicity under every load: the race here is small, the conformance tests race harder.

use bytes::Bytes;
use futures::future::join_all;
use perennial_actors::checkpoint::{Created, Store, StoreError, StoreResult};
use perennial_actors::entropy::Entropy;

/// Creators that race for one key.
const RACING_CREATORS: u8 = 4;
/// Fresh keys that are tried when outcomes stay unknown.
const ROUNDS_MAX: u32 = 3;

/// Creates a key twice, then lets several creators race for another; removes both.
///
/// # Errors
/// [`StoreError::Unsupported`] when the store overwrote an object or let two creators win; other errors are the store's own.
pub async fn probe_conditional_create(store: &dyn Store, entropy: &Entropy) -> StoreResult<()> {
    let mut last = None;
    for _ in 0..ROUNDS_MAX {
        let id = entropy.u128();
        let twice = format!("probe/conditional-create-{id:032x}");
        let raced = format!("probe/conditional-create-race-{id:032x}");
        let answer = match create_twice(store, &twice).await {
            Ok(()) => race(store, &raced).await,
            Err(error) => Err(error),
        };
        for key in [&twice, &raced] {
            // What is left behind is a few bytes under a name nobody reads.
            if let Err(error) = store.delete(key).await {
                tracing::warn!(%error, "the probe object of the store was not deleted");
            }
        }
        match answer {
            Err(error @ StoreError::Unknown { .. }) => last = Some(error),
            settled => return settled,
        }
    }
    Err(last.unwrap_or_else(|| overwritten(store)))
}

async fn create_twice(store: &dyn Store, key: &str) -> StoreResult<()> {
    let first = Bytes::from_static(b"first");
    match store.create(key, first.clone()).await? {
        Created::New => {}
        Created::Exists => return Err(unsupported(store, "a new name was said to exist")),
    }
    match store.create(key, Bytes::from_static(b"second")).await? {
        Created::Exists => {}
        Created::New => return Err(overwritten(store)),
    }
    if store.get(key, None).await? == first {
        Ok(())
    } else {
        Err(overwritten(store))
    }
}

async fn race(store: &dyn Store, key: &str) -> StoreResult<()> {
    let creators = (0..RACING_CREATORS).map(|n| store.create(key, Bytes::from(vec![n])));
    let mut winners = Vec::new();
    for (n, created) in (0..).zip(join_all(creators).await) {
        if created? == Created::New {
            winners.push(Bytes::from(vec![n]));
        }
    }
    match winners.as_slice() {
        [winner] if store.get(key, None).await? == *winner => Ok(()),
        [_] => Err(overwritten(store)),
        [] => Err(unsupported(store, "no creator of a new name won")),
        [_, _, ..] => Err(unsupported(store, "several creators of one name won")),
    }
}

fn overwritten(store: &dyn Store) -> StoreError {
    unsupported(store, "a conditional create replaced an object")
}

fn unsupported(store: &dyn Store, what: &str) -> StoreError {
    StoreError::Unsupported {
        uri: store.uri().to_owned(),
        message: format!(
            "{what}; checkpoints need a store with conditional create (If-None-Match on S3, hard links on disk): use another store or a newer version of its server"
        ),
    }
}
