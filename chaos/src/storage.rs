//! Where a cluster under test keeps its checkpoints: a directory of its own, or a prefix of its own on a real S3 server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perennial::storage::Stores;
use perennial_actors::checkpoint::StoreFactory;
use perennial_actors::entropy::Entropy;
use perennial_config::{S3Settings, Secret, Settings};

/// Which kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageKind {
    /// `file://` in the cluster's temporary directory.
    Disk,
    /// `s3://` on the server that `scripts/s3-server run` started.
    S3,
}

/// One cluster's storage.
#[derive(Debug, Clone)]
pub struct Storage {
    kind: StorageKind,
    root: String,
    s3: Option<Server>,
}

#[derive(Debug, Clone)]
struct Server {
    endpoint: String,
    access_key: String,
    secret_key: String,
}

impl Storage {
    /// A fresh place.
    ///
    /// # Panics
    /// When S3 is asked for and no server is named in the environment.
    #[must_use]
    pub fn fresh(kind: StorageKind, directory: &Path) -> Self {
        match kind {
            StorageKind::Disk => Self {
                kind,
                root: format!("file://{}/store", directory.display()),
                s3: None,
            },
            StorageKind::S3 => Self {
                kind,
                root: format!(
                    "s3://{}/processes-{:032x}",
                    variable("BUCKET"),
                    Entropy::system().u128()
                ),
                s3: Some(Server {
                    endpoint: variable("ENDPOINT"),
                    access_key: variable("ACCESS_KEY"),
                    secret_key: variable("SECRET_KEY"),
                }),
            },
        }
    }

    /// Which kind.
    #[must_use]
    pub fn kind(&self) -> StorageKind {
        self.kind
    }

    /// Of the S3 server.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.s3.as_ref().map(|s| s.endpoint.as_str())
    }

    /// URI of the whole bucket, or directory.
    #[must_use]
    pub fn bucket(&self) -> String {
        match self.kind {
            StorageKind::Disk => self.root.clone(),
            StorageKind::S3 => format!("s3://{}", variable("BUCKET")),
        }
    }

    /// URI of a sub-directory.
    #[must_use]
    pub fn uri(&self, below: &str) -> String {
        format!("{}/{below}", self.root)
    }

    /// As `-D` settings for nodes and clients.
    #[must_use]
    pub fn settings(&self) -> Vec<(String, String)> {
        let mut settings = vec![
            (
                "execution.checkpointing.dir".to_owned(),
                self.uri("checkpoints"),
            ),
            (
                "high-availability.storageDir".to_owned(),
                self.uri("leadership"),
            ),
        ];
        if let Some(server) = &self.s3 {
            for (key, value) in [
                ("s3.endpoint", server.endpoint.as_str()),
                ("s3.access-key", &server.access_key),
                ("s3.secret-key", &server.secret_key),
                ("s3.path.style.access", "true"),
                ("s3.region", "us-east-1"),
            ] {
                settings.push((key.to_owned(), value.to_owned()));
            }
        }
        settings
    }

    /// Opens it from the test's own process.
    #[must_use]
    pub fn open(&self) -> Arc<dyn StoreFactory> {
        let server = self.s3.as_ref();
        let settings = S3Settings {
            endpoint: server.map(|s| s.endpoint.clone()),
            region: Some("us-east-1".to_owned()),
            is_path_style: true,
            access_key: server.map(|s| s.access_key.clone()),
            secret_key: server.map(|s| Secret(s.secret_key.clone())),
            // Below what tests wait for, so that they tell the store's own error.
            operation_timeout: Duration::from_secs(20),
            ..Settings::default().cluster.s3
        };
        Arc::new(Stores::new(settings, Entropy::system()))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "where the test's server is belongs to no configuration"
)]
fn variable(name: &str) -> String {
    let name = format!("PERENNIAL_TEST_S3_{name}");
    std::env::var(&name).unwrap_or_else(|_| {
        panic!("{name} is not set, and this test needs a real S3 server: run `make test`, or `scripts/s3-server run cargo test`")
    })
}
