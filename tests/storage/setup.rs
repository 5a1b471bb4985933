//! Opens fresh stores for tests.

use std::sync::Arc;

use perennial::storage::Stores;
use perennial_actors::checkpoint::{Store, StoreFactory};
use perennial_actors::entropy::Entropy;
use perennial_config::{S3Settings, Secret, Settings};

/// A store, and what must live as long as it.
pub(crate) struct Fresh {
    pub(crate) store: Arc<dyn Store>,
    _directory: Option<tempfile::TempDir>,
}

pub(crate) fn memory() -> Fresh {
    let stores = Stores::new(Settings::default().cluster.s3, Entropy::seeded(1));
    Fresh {
        store: stores.open("memory://test/prefix").unwrap(),
        _directory: None,
    }
}

pub(crate) fn disk() -> Fresh {
    let directory = tempfile::tempdir().unwrap();
    let uri = format!("file://{}/root", directory.path().display());
    let stores = Stores::new(Settings::default().cluster.s3, Entropy::system());
    Fresh {
        store: stores.open(&uri).unwrap(),
        _directory: Some(directory),
    }
}

pub(crate) fn s3() -> Fresh {
    s3_with(s3_settings())
}

pub(crate) fn s3_with(settings: S3Settings) -> Fresh {
    let entropy = Entropy::system();
    let uri = format!("s3://{}/test-{:032x}", variable("BUCKET"), entropy.u128());
    Fresh {
        store: Stores::new(settings, entropy).open(&uri).unwrap(),
        _directory: None,
    }
}

/// Of the server that the tests run against.
pub(crate) fn s3_settings() -> S3Settings {
    S3Settings {
        endpoint: Some(variable("ENDPOINT")),
        access_key: Some(variable("ACCESS_KEY")),
        secret_key: Some(Secret(variable("SECRET_KEY"))),
        region: Some("us-east-1".to_owned()),
        is_path_style: true,
        ..Settings::default().cluster.s3
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "where the test's server is belongs to no configuration"
)]
pub(crate) fn variable(name: &str) -> String {
    let name = format!("PERENNIAL_TEST_S3_{name}");
    std::env::var(&name).unwrap_or_else(|_| {
        panic!("{name} is not set, and this test needs a real S3 server: run `make test`, or `scripts/s3-server run cargo test --test storage`")
    })
}
