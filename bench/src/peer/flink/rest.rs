//! Flink's REST interface, one request after the other.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::runtime::Runtime;

/// Of one request.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How much of an error is shown.
const EXCERPT: usize = 3000;

/// A client of one JobManager.
#[derive(Debug)]
pub(super) struct Rest {
    runtime: Runtime,
    client: Client<HttpConnector, Full<Bytes>>,
    port: u16,
}

impl Rest {
    pub(super) fn new(port: u16) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread();
        Ok(Self {
            runtime: { runtime }.enable_all().build()?,
            client: Client::builder(TokioExecutor::new()).build_http(),
            port,
        })
    }

    pub(super) fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::GET, path, Bytes::new())
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(Method::POST, path, Bytes::from(body.to_string()))
    }

    pub(super) fn patch(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::PATCH, path, Bytes::new())
    }

    fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
        let what = format!("{method} {path}");
        let request = Request::builder()
            .method(method)
            .uri(format!("http://127.0.0.1:{}{path}", self.port))
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let exchange = async {
            let answer = self.client.request(request).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, body))
        };
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(TIMEOUT, exchange).await });
        let (status, body) = answer
            .with_context(|| format!("no answer to {what} within {TIMEOUT:?}"))?
            .with_context(|| format!("no answer to {what}"))?;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            let text: String = text.chars().take(EXCERPT).collect();
            bail!("{what}: {status}: {text}");
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).with_context(|| format!("{what}: the answer is no JSON"))
    }
}
