//! One suite for all stores: what holds on one holds on each.

use bytes::Bytes;
use futures::future::join_all;
use perennial::storage::probe_conditional_create;
use perennial_actors::checkpoint::{Created, Store, StoreError};
use perennial_actors::entropy::Entropy;

use crate::setup::Fresh;

/// Past the part size, and not a multiple of it.
const LARGE: usize = (20 << 20) + 17;

macro_rules! for_each_store {
    ($($promise:ident),* $(,)?) => {
        for_each_store!(@ memory: $($promise),*);
        for_each_store!(@ disk: $($promise),*);
        for_each_store!(@ s3: $($promise),*);
    };
    (@ $kind:ident: $($promise:ident),*) => {
        mod $kind {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    super::$promise(crate::setup::$kind()).await;
                }
            )*
        }
    };
}

for_each_store!(
    objects_are_put_replaced_read_and_deleted,
    a_missing_object_is_not_found_and_may_be_deleted,
    a_create_never_replaces_an_object,
    exactly_one_of_many_racing_creators_wins,
    ranges_are_exact_and_a_range_past_the_end_is_an_error,
    listings_are_complete_ordered_and_by_prefix,
    keys_with_odd_characters_name_different_objects,
    keys_outside_the_root_are_refused_by_every_operation,
    an_empty_object_is_an_object,
    a_large_object_comes_back_whole,
    a_large_create_never_replaces_an_object,
    racing_large_creators_have_exactly_one_winner,
    the_probe_passes_and_leaves_nothing,
    a_sweep_without_unfinished_writes_finds_nothing,
);

async fn objects_are_put_replaced_read_and_deleted(fresh: Fresh) {
    let store = &fresh.store;
    store.put("a/b", text("one")).await.unwrap();
    assert_eq!(store.get("a/b", None).await.unwrap(), text("one"));
    store.put("a/b", text("two, longer")).await.unwrap();
    assert_eq!(store.get("a/b", None).await.unwrap(), text("two, longer"));
    store.delete("a/b").await.unwrap();
    assert_not_found(&**store, "a/b").await;
    store.put("a/b", text("three")).await.unwrap();
    assert_eq!(store.get("a/b", None).await.unwrap(), text("three"));
}

async fn a_missing_object_is_not_found_and_may_be_deleted(fresh: Fresh) {
    let store = &*fresh.store;
    for key in ["missing", "missing/below", "there/below/missing"] {
        assert_not_found(store, key).await;
        store.delete(key).await.unwrap();
    }
    store.put("there/below/it", text("x")).await.unwrap();
    // A directory on disk is no object.
    for key in ["there", "there/below", "there/below/other"] {
        assert_not_found(store, key).await;
        store.delete(key).await.unwrap();
    }
    let range = store.get("missing", Some(0..1)).await;
    assert!(
        matches!(range, Err(StoreError::NotFound { .. })),
        "{range:?}"
    );
    let range = store.get("missing", Some(0..0)).await;
    assert!(
        matches!(range, Err(StoreError::NotFound { .. })),
        "{range:?}"
    );
    assert_eq!(store.get("there/below/it", None).await.unwrap(), text("x"));
}

async fn a_create_never_replaces_an_object(fresh: Fresh) {
    let store = &*fresh.store;
    assert_eq!(
        store
            .create("chk-1/_metadata", text("first"))
            .await
            .unwrap(),
        Created::New
    );
    assert_eq!(
        store
            .create("chk-1/_metadata", text("second"))
            .await
            .unwrap(),
        Created::Exists
    );
    // Also with the same bytes: a second writer must not believe that it won.
    assert_eq!(
        store
            .create("chk-1/_metadata", text("first"))
            .await
            .unwrap(),
        Created::Exists
    );
    assert_eq!(
        store.get("chk-1/_metadata", None).await.unwrap(),
        text("first")
    );
    store.put("put", text("by put")).await.unwrap();
    assert_eq!(
        store.create("put", text("x")).await.unwrap(),
        Created::Exists
    );
    store.delete("chk-1/_metadata").await.unwrap();
    assert_eq!(
        store
            .create("chk-1/_metadata", text("third"))
            .await
            .unwrap(),
        Created::New
    );
}

async fn exactly_one_of_many_racing_creators_wins(fresh: Fresh) {
    for round in 0..5 {
        assert_one_winner(&fresh, &format!("race/{round}/_metadata"), 16, 100).await;
    }
}

async fn racing_large_creators_have_exactly_one_winner(fresh: Fresh) {
    for round in 0..3 {
        assert_one_winner(&fresh, &format!("race/{round}"), 4, 9 << 20).await;
    }
}

async fn ranges_are_exact_and_a_range_past_the_end_is_an_error(fresh: Fresh) {
    let store = &*fresh.store;
    store.put("digits", text("0123456789")).await.unwrap();
    for (range, expected) in [
        (0..10, "0123456789"),
        (0..1, "0"),
        (3..7, "3456"),
        (9..10, "9"),
        (0..0, ""),
        (10..10, ""),
    ] {
        let got = store.get("digits", Some(range.clone())).await;
        assert_eq!(got.unwrap(), text(expected), "{range:?}");
    }
    for range in [0..11, 9..11, 10..11, 11..11, 20..30] {
        let error = store.get("digits", Some(range.clone())).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Failed { .. }),
            "{range:?}: {error}"
        );
        let message = error.to_string();
        assert!(
            message.contains("the object has 10 bytes"),
            "{range:?}: {message}"
        );
    }
    #[expect(clippy::reversed_empty_ranges, reason = "it must be refused")]
    let reversed = store.get("digits", Some(5..3)).await;
    assert!(matches!(reversed, Err(StoreError::Invalid { .. })));
}

async fn listings_are_complete_ordered_and_by_prefix(fresh: Fresh) {
    let store = &*fresh.store;
    assert!(store.list("").await.unwrap().is_empty());
    let keys = [
        "chk-1/_metadata",
        "chk-1/a",
        "chk-1-x",
        "chk-10/_metadata",
        "chk-2/_metadata",
        "chk-2/d/e/f",
        "shared/x",
        "z",
    ];
    for (size, key) in keys.into_iter().enumerate() {
        store.put(key, Bytes::from(vec![0; size])).await.unwrap();
    }
    // More than one page of S3.
    let many: Vec<_> = (0..1003).map(|n| format!("many/{n:05}")).collect();
    for chunk in many.chunks(32) {
        for done in join_all(chunk.iter().map(|key| store.put(key, Bytes::new()))).await {
            done.unwrap();
        }
    }
    let mut sorted: Vec<&str> = keys.to_vec();
    sorted.extend(many.iter().map(String::as_str));
    sorted.sort_unstable();
    for prefix in [
        "",
        "chk",
        "chk-1",
        "chk-1/",
        "chk-1/_meta",
        "chk-2/d",
        "chk-2/d/e/f",
        "many/",
        "none",
        "none/x",
        "z",
    ] {
        let found = store.list(prefix).await.unwrap();
        let found_keys: Vec<_> = found.iter().map(|object| object.key.as_str()).collect();
        let expected: Vec<_> = sorted
            .iter()
            .copied()
            .filter(|key| key.starts_with(prefix))
            .collect();
        assert_eq!(found_keys, expected, "prefix {prefix:?}");
        for object in found {
            let size = keys.iter().position(|key| *key == object.key).unwrap_or(0);
            assert_eq!(object.size, size as u64, "{}", object.key);
        }
    }
}

async fn keys_with_odd_characters_name_different_objects(fresh: Fresh) {
    let store = &*fresh.store;
    let mut keys = vec![
        "with space",
        "with+plus",
        "with%20escape",
        "with%2Fslash",
        "amp&ersand",
        "question?mark=1",
        "hash#tag",
        "star*",
        "quote\"s'",
        "less<more>",
        "semi;colon:at@",
        "ümlaut/日本語/🌱",
        "~tilde",
        "..dots",
        ".hidden",
        "UPPER",
        "upper",
        "a=b,c$d!e",
        "trailing.",
        "(paren)[brack]{brace}|^`",
    ];
    for key in &keys {
        assert_eq!(
            store.create(key, text(key)).await.unwrap(),
            Created::New,
            "{key:?}"
        );
    }
    for key in &keys {
        assert_eq!(store.get(key, None).await.unwrap(), text(key), "{key:?}");
    }
    let found: Vec<_> = store
        .list("")
        .await
        .unwrap()
        .into_iter()
        .map(|o| o.key)
        .collect();
    keys.sort_unstable();
    assert_eq!(found, keys);
    for key in &keys {
        let listed = store.list(key).await.unwrap();
        assert!(listed.iter().any(|object| object.key == *key), "{key:?}");
        store.delete(key).await.unwrap();
    }
    assert!(store.list("").await.unwrap().is_empty());
}

async fn keys_outside_the_root_are_refused_by_every_operation(fresh: Fresh) {
    let store = &*fresh.store;
    for key in [
        "../x",
        "/x",
        "a/../../x",
        "a//x",
        "",
        "a/",
        ".",
        "a\0b",
        ".tmp-1-2-x",
    ] {
        let answers = [
            store.create(key, Bytes::new()).await.err(),
            store.put(key, Bytes::new()).await.err(),
            store.get(key, None).await.err(),
            store.delete(key).await.err(),
        ];
        for error in answers {
            assert!(
                matches!(error, Some(StoreError::Invalid { .. })),
                "{key:?}: {error:?}"
            );
        }
    }
    for prefix in ["../", "/", "a/../", "a//"] {
        let error = store.list(prefix).await.err();
        assert!(
            matches!(error, Some(StoreError::Invalid { .. })),
            "{prefix:?}: {error:?}"
        );
        let error = store.sweep_unfinished(prefix).await.err();
        // The memory store leaves nothing unfinished, and so has nothing to refuse.
        assert!(error.is_none() || matches!(error, Some(StoreError::Invalid { .. })));
    }
}

async fn an_empty_object_is_an_object(fresh: Fresh) {
    let store = &*fresh.store;
    assert_eq!(
        store.create("empty", Bytes::new()).await.unwrap(),
        Created::New
    );
    assert_eq!(
        store.create("empty", text("x")).await.unwrap(),
        Created::Exists
    );
    assert_eq!(store.get("empty", None).await.unwrap(), Bytes::new());
    assert_eq!(store.get("empty", Some(0..0)).await.unwrap(), Bytes::new());
    assert!(store.get("empty", Some(0..1)).await.is_err());
    let listed = store.list("").await.unwrap();
    assert_eq!((listed.len(), listed[0].size), (1, 0));
}

async fn a_large_object_comes_back_whole(fresh: Fresh) {
    let store = &*fresh.store;
    let bytes = pattern(LARGE, 3);
    store.put("large", bytes.clone()).await.unwrap();
    assert!(store.get("large", None).await.unwrap() == bytes);
    let part = 8 << 20;
    for (start, end) in [(0, 10), (part - 5, part + 5), (LARGE - 10, LARGE)] {
        let got = store
            .get("large", Some(start as u64..end as u64))
            .await
            .unwrap();
        assert!(got == bytes.slice(start..end), "{start}..{end}");
    }
    assert_eq!(store.list("").await.unwrap()[0].size, LARGE as u64);
    let replaced = pattern(LARGE - 1, 4);
    store.put("large", replaced.clone()).await.unwrap();
    assert!(store.get("large", None).await.unwrap() == replaced);
}

async fn a_large_create_never_replaces_an_object(fresh: Fresh) {
    let store = &*fresh.store;
    let first = pattern(9 << 20, 1);
    assert_eq!(
        store.create("large", first.clone()).await.unwrap(),
        Created::New
    );
    let second = store.create("large", pattern(9 << 20, 2)).await;
    assert_eq!(second.unwrap(), Created::Exists);
    assert!(store.get("large", None).await.unwrap() == first);
    // Nor does the loser leave anything behind.
    assert_eq!(store.sweep_unfinished("").await.unwrap(), 0);
}

async fn the_probe_passes_and_leaves_nothing(fresh: Fresh) {
    let store = &*fresh.store;
    probe_conditional_create(store, &Entropy::system())
        .await
        .unwrap();
    assert!(store.list("").await.unwrap().is_empty());
}

async fn a_sweep_without_unfinished_writes_finds_nothing(fresh: Fresh) {
    let store = &*fresh.store;
    store.put("a/b", text("x")).await.unwrap();
    assert_eq!(store.sweep_unfinished("").await.unwrap(), 0);
    assert_eq!(store.get("a/b", None).await.unwrap(), text("x"));
}

async fn assert_one_winner(fresh: &Fresh, key: &str, creators: u8, size: usize) {
    let racers = (0..creators).map(|n| {
        let (store, key) = (fresh.store.clone(), key.to_owned());
        // Tasks of their own, so that they run on several threads.
        tokio::spawn(async move { store.create(&key, pattern(size, n)).await })
    });
    let mut winners = Vec::new();
    for (n, created) in (0..).zip(join_all(racers).await) {
        match created.unwrap().unwrap() {
            Created::New => winners.push(n),
            Created::Exists => {}
        }
    }
    assert_eq!(winners.len(), 1, "winners {winners:?}");
    let content = fresh.store.get(key, None).await.unwrap();
    assert!(content == pattern(size, winners[0]));
}

async fn assert_not_found(store: &dyn Store, key: &str) {
    match store.get(key, None).await {
        Err(StoreError::NotFound { uri }) => {
            assert!(uri.ends_with(key) && uri.starts_with(store.uri()))
        }
        other => panic!("{key}: {other:?}"),
    }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Bytes that show a swapped, missing or repeated part, different for each seed.
fn pattern(length: usize, seed: u8) -> Bytes {
    (0..length)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8 ^ seed)
        .collect::<Vec<_>>()
        .into()
}
