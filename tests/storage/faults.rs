//! What S3 does to us on a bad day: lost answers, silence, refusals, throttling, each at a real server behind a breaking proxy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use perennial::storage::{
    Fault, MemoryStore, Outcome, StoreCall, Stores, probe_conditional_create,
};
use perennial_actors::checkpoint::{Created, Store, StoreError, StoreFactory};
use perennial_actors::clock::Instant;
use perennial_actors::entropy::Entropy;
use perennial_chaos::proxy::StoreProxy;
use perennial_chaos::proxy::store::Break;
use perennial_config::{S3Settings, Secret};

use crate::proxy::{before, rule};
use crate::setup::{Fresh, s3_settings, s3_with, variable};

const LARGE: usize = 9 << 20;

/// Short limits, so that what must end by a limit ends soon.
fn impatient() -> S3Settings {
    S3Settings {
        connect_timeout: Duration::from_secs(1),
        read_timeout: Duration::from_secs(2),
        operation_timeout: Duration::from_secs(6),
        max_retries: 3,
        ..s3_settings()
    }
}

fn behind_a_proxy(settings: S3Settings) -> (Fresh, StoreProxy) {
    let proxy = before(&variable("ENDPOINT"));
    let endpoint = Some(proxy.endpoint());
    (
        s3_with(S3Settings {
            endpoint,
            ..settings
        }),
        proxy,
    )
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test]
async fn a_lost_success_of_a_create_is_unknown_and_never_exists() {
    let (fresh, proxy) = behind_a_proxy(s3_settings());
    rule(&proxy, &["PUT /"], Break::CutAnswer, 1);
    let created = fresh.store.create("record", text("ours")).await;
    assert!(
        matches!(
            created,
            Err(StoreError::Unknown {
                operation: "create",
                ..
            })
        ),
        "{created:?}"
    );
    assert!(proxy.count("PUT /") >= 2);
    assert_eq!(fresh.store.get("record", None).await.unwrap(), text("ours"));
    assert_eq!(
        fresh.store.create("record", text("theirs")).await.unwrap(),
        Created::Exists
    );
}

#[tokio::test]
async fn a_create_whose_every_answer_is_lost_is_unknown() {
    let (fresh, proxy) = behind_a_proxy(impatient());
    rule(&proxy, &["PUT /"], Break::CutAnswer, u32::MAX);
    let created = fresh.store.create("record", text("ours")).await;
    assert!(
        matches!(created, Err(StoreError::Unknown { .. })),
        "{created:?}"
    );
}

#[tokio::test]
async fn a_create_that_never_arrived_is_tried_again_and_wins() {
    let (fresh, proxy) = behind_a_proxy(s3_settings());
    rule(&proxy, &["PUT /"], Break::CutRequest, 2);
    let created = fresh.store.create("record", text("ours")).await;
    assert_eq!(created.unwrap(), Created::New);
    assert_eq!(proxy.count("PUT /"), 3);
}

#[tokio::test]
async fn a_create_whose_retry_meets_a_rival_is_unknown() {
    // The rival's object is there, our first attempt got lost: a 412 cannot say whose it is.
    let (fresh, proxy) = behind_a_proxy(s3_settings());
    fresh.store.put("record", text("theirs")).await.unwrap();
    rule(&proxy, &["PUT /"], Break::CutRequest, 1);
    let created = fresh.store.create("record", text("ours")).await;
    assert!(
        matches!(created, Err(StoreError::Unknown { .. })),
        "{created:?}"
    );
    assert_eq!(
        fresh.store.get("record", None).await.unwrap(),
        text("theirs")
    );
}

#[tokio::test]
async fn a_lost_success_of_a_large_create_is_unknown_and_the_object_is_whole() {
    let (fresh, proxy) = behind_a_proxy(s3_settings());
    let bytes = Bytes::from(vec![7; LARGE]);
    rule(&proxy, &["PUT /"], Break::CutAnswer, 1);
    let created = fresh.store.create("large", bytes.clone()).await;
    assert!(
        matches!(created, Err(StoreError::Unknown { .. })),
        "{created:?}"
    );
    assert!(fresh.store.get("large", None).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_lost_success_of_a_put_is_repeated_small_and_large() {
    let (fresh, proxy) = behind_a_proxy(s3_settings());
    rule(&proxy, &["PUT /"], Break::CutAnswer, 1);
    fresh.store.put("small", text("x")).await.unwrap();
    assert_eq!(fresh.store.get("small", None).await.unwrap(), text("x"));
    let bytes = Bytes::from(vec![7; LARGE]);
    rule(&proxy, &["partNumber=1"], Break::CutAnswer, 1);
    rule(&proxy, &["POST /", "uploadId="], Break::CutAnswer, 1);
    fresh.store.put("large", bytes.clone()).await.unwrap();
    assert!(fresh.store.get("large", None).await.unwrap() == bytes);
    assert_eq!(proxy.count("partNumber=1"), 2);
}

#[tokio::test]
async fn a_large_write_that_fails_leaves_no_upload_behind() {
    let (fresh, proxy) = behind_a_proxy(impatient());
    rule(&proxy, &["partNumber=2"], Break::CutRequest, u32::MAX);
    let bytes = Bytes::from(vec![7; LARGE]);
    let put = fresh.store.put("large", bytes.clone()).await;
    // Without a completion nothing has happened to the object.
    assert!(matches!(put, Err(StoreError::Failed { .. })), "{put:?}");
    assert_eq!(proxy.count("DELETE /"), 1);
    assert_eq!(fresh.store.sweep_unfinished("").await.unwrap(), 0);
    assert!(matches!(
        fresh.store.get("large", None).await,
        Err(StoreError::NotFound { .. })
    ));
}

#[tokio::test]
async fn uploads_of_dead_writers_are_swept_by_prefix() {
    let (fresh, proxy) = behind_a_proxy(s3_settings());
    rule(&proxy, &["partNumber="], Break::Silence, u32::MAX);
    for (number, key) in [(1, "chk-1/large"), (2, "chk-2/large")] {
        let upload = fresh.store.put(key, Bytes::from(vec![7; LARGE]));
        // The writer dies as soon as the first part of its upload is on its way.
        tokio::select! {
            biased;
            done = upload => panic!("{done:?}"),
            () = until(|| proxy.count("partNumber=1") == number) => {}
        }
    }
    assert_eq!(fresh.store.sweep_unfinished("chk-1/").await.unwrap(), 1);
    assert_eq!(fresh.store.sweep_unfinished("chk-1/").await.unwrap(), 0);
    assert_eq!(fresh.store.sweep_unfinished("").await.unwrap(), 1);
}

#[tokio::test]
async fn silence_is_bounded_for_every_operation() {
    let (fresh, proxy) = behind_a_proxy(impatient());
    fresh.store.put("a", text("x")).await.unwrap();
    rule(&proxy, &["/"], Break::Silence, u32::MAX);
    let store = &fresh.store;
    let begin = Instant::now();
    let (created, put, got, listed, deleted) = tokio::join!(
        store.create("b", text("x")),
        store.put("b", text("x")),
        store.get("a", None),
        store.list(""),
        store.delete("a"),
    );
    // The operation's limit, and a little for the machine.
    assert!(
        begin.elapsed() < Duration::from_secs(12),
        "{:?}",
        begin.elapsed()
    );
    assert!(
        matches!(created, Err(StoreError::Unknown { .. })),
        "{created:?}"
    );
    assert!(matches!(put, Err(StoreError::Unknown { .. })), "{put:?}");
    assert!(
        matches!(deleted, Err(StoreError::Unknown { .. })),
        "{deleted:?}"
    );
    assert!(matches!(got, Err(StoreError::Failed { .. })), "{got:?}");
    assert!(
        matches!(listed, Err(StoreError::Failed { .. })),
        "{listed:?}"
    );
}

#[tokio::test]
async fn a_body_that_stops_or_breaks_is_read_again() {
    let (fresh, proxy) = behind_a_proxy(impatient());
    let bytes = Bytes::from(vec![7; 1 << 20]);
    fresh.store.put("body", bytes.clone()).await.unwrap();
    for how in [Break::StopBodyAfter(100_000), Break::CutBodyAfter(100_000)] {
        rule(&proxy, &["GET /"], how, 1);
        assert!(fresh.store.get("body", None).await.unwrap() == bytes);
    }
    assert_eq!(proxy.count("GET /"), 4);
    let begin = Instant::now();
    rule(&proxy, &["GET /"], Break::StopBodyAfter(100_000), u32::MAX);
    let got = fresh.store.get("body", None).await;
    assert!(
        matches!(&got, Err(StoreError::Failed { message, .. }) if message.contains("stopped after")),
        "{got:?}"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn throttling_is_waited_out_and_then_reported_with_each_attempt() {
    let (fresh, proxy) = behind_a_proxy(s3_settings());
    rule(&proxy, &["PUT /"], Break::Answer(503), 3);
    assert_eq!(
        fresh.store.create("a", text("x")).await.unwrap(),
        Created::New
    );
    rule(&proxy, &["PUT /"], Break::Answer(503), u32::MAX);
    let created = fresh.store.create("b", text("x")).await.unwrap_err();
    // The server said that it did nothing: that is certain.
    assert!(matches!(created, StoreError::Failed { .. }), "{created}");
    let message = created.to_string();
    assert!(
        message.contains("gave up after 5 attempts") && message.contains("#5 "),
        "{message}"
    );
    assert!(message.contains("503 SlowDown"), "{message}");
}

#[tokio::test]
async fn wrong_keys_a_missing_bucket_and_a_dead_server_are_named() {
    let open = |uri: &str, settings: S3Settings| {
        Stores::new(settings, Entropy::system()).open(uri).unwrap()
    };
    let right = format!("s3://{}/x", variable("BUCKET"));
    let wrong_secret = S3Settings {
        secret_key: Some(Secret("wrong-secret".to_owned())),
        session_token: None,
        ..s3_settings()
    };
    let wrong_key = S3Settings {
        access_key: Some("nobody".to_owned()),
        ..s3_settings()
    };
    let dead = S3Settings {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        max_retries: 1,
        ..s3_settings()
    };
    for (uri, settings, hint) in [
        (right.as_str(), wrong_secret, "check s3.secret-key"),
        (&right, wrong_key, "check s3.access-key"),
        (&right, dead, "check s3.endpoint"),
        (
            "s3://no-such-bucket-here/x",
            s3_settings(),
            "create the bucket",
        ),
    ] {
        let store = open(uri, settings);
        for error in [
            store.create("a", text("x")).await.unwrap_err(),
            store.put("a", text("x")).await.unwrap_err(),
            store
                .put("a", Bytes::from(vec![0; LARGE]))
                .await
                .unwrap_err(),
            store.get("a", None).await.unwrap_err(),
            store.list("").await.unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::Failed { .. }), "{error:?}");
            let message = error.to_string();
            assert!(
                message.contains(hint) && message.contains(uri),
                "{hint}: {message}"
            );
            assert!(!message.contains("wrong-secret"), "{message}");
        }
    }
}

#[tokio::test]
async fn a_store_without_conditional_create_is_detected() {
    /// Behaves like a server that ignores If-None-Match.
    struct Careless(MemoryStore);
    impl Store for Careless {
        fn uri(&self) -> &str {
            self.0.uri()
        }
        fn create<'a>(
            &'a self,
            key: &'a str,
            bytes: Bytes,
        ) -> futures::future::BoxFuture<'a, Result<Created, StoreError>> {
            Box::pin(async move { self.0.put(key, bytes).await.map(|()| Created::New) })
        }
        fn put<'a>(
            &'a self,
            key: &'a str,
            bytes: Bytes,
        ) -> futures::future::BoxFuture<'a, Result<(), StoreError>> {
            self.0.put(key, bytes)
        }
        fn get<'a>(
            &'a self,
            key: &'a str,
            range: Option<std::ops::Range<u64>>,
        ) -> futures::future::BoxFuture<'a, Result<Bytes, StoreError>> {
            self.0.get(key, range)
        }
        fn list<'a>(
            &'a self,
            prefix: &'a str,
        ) -> futures::future::BoxFuture<
            'a,
            Result<Vec<perennial_actors::checkpoint::ObjectMeta>, StoreError>,
        > {
            self.0.list(prefix)
        }
        fn delete<'a>(
            &'a self,
            key: &'a str,
        ) -> futures::future::BoxFuture<'a, Result<(), StoreError>> {
            self.0.delete(key)
        }
    }
    let careless = Careless(MemoryStore::detached("careless"));
    let probed = probe_conditional_create(&careless, &Entropy::seeded(1)).await;
    assert!(
        matches!(probed, Err(StoreError::Unsupported { .. })),
        "{probed:?}"
    );
}

#[tokio::test]
async fn the_probe_settles_a_lost_answer_with_a_fresh_key() {
    let store = MemoryStore::detached("lossy");
    let lost = Arc::new(std::sync::atomic::AtomicBool::new(false));
    store.set_hook(Some(Arc::new(move |call: StoreCall<'_>| {
        let is_first =
            call.operation == "create" && !lost.swap(true, std::sync::atomic::Ordering::Relaxed);
        Fault {
            outcome: if is_first {
                Outcome::AppliedAnswerLost("cut".to_owned())
            } else {
                Outcome::Normal
            },
            ..Fault::default()
        }
    })));
    probe_conditional_create(&store, &Entropy::seeded(1))
        .await
        .unwrap();
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
