//! Builds the SDK's clients from the settings, with every timeout set and every retry off.
//!
//! Invariant: no request can wait without a limit. Two clients differ only in how long they wait for an answer: the SDK counts that from
//! the begin of the request, so that an upload needs time for its body too, and it keeps one connection pool per pair of timeouts.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Credentials, Region, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use perennial_actors::checkpoint::{StoreError, StoreResult};
use perennial_config::S3Settings;

use super::CREATE_BYTES_MAX;

/// S3's smallest part, except the last.
const PART_SIZE_MIN: u64 = 5 << 20;
/// S3's largest part.
const PART_SIZE_MAX: u64 = 5 << 30;
/// The slowest transfer that still counts as one: an object's deadline grows by its length over this.
const SLOWEST_BYTES_PER_SECOND: u64 = 256 << 10;
/// Servers that have no regions take this one.
const REGION_OF_OTHER_SERVERS: &str = "us-east-1";

/// The limits of requests.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) connect: Duration,
    /// The longest wait for the next bytes.
    pub(super) silence: Duration,
    pub(super) operation: Duration,
    pub(super) retries_max: u32,
    pub(super) part_size: u64,
}

impl Limits {
    /// What a transfer may take on top of the limits for its requests.
    #[expect(
        clippy::unused_self,
        reason = "the rate becomes a setting when somebody needs it"
    )]
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND)
    }

    /// One attempt at moving so many bytes.
    pub(super) fn attempt_for(&self, bytes: u64) -> Duration {
        self.connect + self.silence + self.time_for(bytes)
    }
}

/// The clients of one endpoint; clones share their connections.
#[derive(Debug, Clone)]
pub(in crate::storage) struct Clients {
    /// For requests without a body.
    pub(super) small: Client,
    /// For requests with a body; its limits are those of the largest one, and the caller's own are tighter.
    pub(super) upload: Client,
    pub(super) limits: Limits,
}

impl Clients {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] naming the key that is missing or wrong.
    pub(in crate::storage) fn new(uri: &str, settings: &S3Settings) -> StoreResult<Self> {
        let invalid = |message: String| StoreError::Invalid {
            uri: uri.to_owned(),
            message,
        };
        let missing =
            |key: &str, variable: &str| invalid(format!("{key} is not set: set it, or {variable}"));
        let access_key = settings.access_key.as_deref();
        let access_key = access_key.ok_or_else(|| missing("s3.access-key", "AWS_ACCESS_KEY_ID"))?;
        let secret_key = settings.secret_key.as_ref();
        let secret_key =
            secret_key.ok_or_else(|| missing("s3.secret-key", "AWS_SECRET_ACCESS_KEY"))?;
        let region = match (&settings.region, &settings.endpoint) {
            (Some(region), _) => region.clone(),
            (None, Some(_)) => REGION_OF_OTHER_SERVERS.to_owned(),
            (None, None) => {
                return Err(invalid(
                    "neither s3.region nor s3.endpoint is set: AWS needs the bucket's region, other servers their endpoint".to_owned(),
                ));
            }
        };
        if !(PART_SIZE_MIN..=PART_SIZE_MAX).contains(&settings.part_size) {
            return Err(invalid(format!(
                "s3.upload.min.part.size is {} bytes: S3 takes parts of 5 MiB to 5 GiB",
                settings.part_size
            )));
        }
        let limits = Limits {
            connect: settings.connect_timeout,
            silence: settings.read_timeout,
            operation: settings.operation_timeout,
            retries_max: settings.max_retries,
            part_size: settings.part_size,
        };
        let token = settings.session_token.as_ref().map(|token| token.0.clone());
        let credentials =
            Credentials::new(access_key, &secret_key.0, token, None, "perennial settings");
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .credentials_provider(credentials)
            .region(Region::new(region))
            .force_path_style(settings.is_path_style)
            // Its retries would turn our own lost success into "exists".
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled()
                    .grace_period(limits.silence)
                    .build(),
            )
            .http_client(http_client(settings.endpoint.as_deref()));
        if let Some(endpoint) = &settings.endpoint {
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                return Err(invalid(format!(
                    "s3.endpoint {endpoint:?} has no scheme: write http://{endpoint} or https://{endpoint}"
                )));
            }
            config = config.endpoint_url(endpoint);
        }
        Ok(Self {
            small: client(&config, &limits, 0),
            upload: client(&config, &limits, limits.part_size.max(CREATE_BYTES_MAX)),
            limits,
        })
    }
}

fn client(config: &Builder, limits: &Limits, bytes: u64) -> Client {
    let attempt = limits.attempt_for(bytes);
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(limits.connect)
        .read_timeout(limits.silence + limits.time_for(bytes))
        .operation_attempt_timeout(attempt)
        // One attempt is all that the SDK makes.
        .operation_timeout(attempt)
        .build();
    Client::from_conf(config.clone().timeout_config(timeouts).build())
}

/// Plain HTTP needs no certificates, which a small container may not have.
fn http_client(endpoint: Option<&str>) -> SharedHttpClient {
    let builder = aws_smithy_http_client::Builder::new();
    if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
        builder.build_http()
    } else {
        builder
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perennial_config::{Secret, Settings};

    fn settings() -> S3Settings {
        S3Settings {
            endpoint: Some("http://127.0.0.1:1".to_owned()),
            access_key: Some("key".to_owned()),
            secret_key: Some(Secret("hidden".to_owned())),
            ..Settings::default().cluster.s3
        }
    }

    #[test]
    fn wrong_settings_are_named_before_anything_is_sent() {
        assert!(Clients::new("s3://abc", &settings()).is_ok());
        type Change = fn(&mut S3Settings);
        let changes: [(Change, &str); 6] = [
            (|s| s.access_key = None, "s3.access-key"),
            (|s| s.secret_key = None, "AWS_SECRET_ACCESS_KEY"),
            (|s| s.endpoint = None, "s3.region"),
            (
                |s| s.endpoint = Some("minio:9000".to_owned()),
                "http://minio:9000",
            ),
            (|s| s.part_size = 1 << 20, "s3.upload.min.part.size"),
            (|s| s.part_size = 6 << 30, "s3.upload.min.part.size"),
        ];
        for (change, hint) in changes {
            let mut wrong = settings();
            change(&mut wrong);
            let error = Clients::new("s3://abc", &wrong).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }
}
