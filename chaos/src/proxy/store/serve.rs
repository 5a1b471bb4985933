//! One request and one answer after another: asks the rules, forwards, writes the history.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use perennial_actors::checkpoint::{Created, encode_record};
use perennial_actors::model::{Record, RecordOutcome};
use tokio::net::{TcpListener, TcpStream};

use super::history::{Write, WriteKind, object_key, record_head};
use super::rules::{Asked, Break, RuleId, Which};
use super::{LISTINGS_MAX, SEEN_MAX, Shared, lock};

/// A crawling body moves so often.
const CRAWL_STEP: Duration = Duration::from_millis(50);

/// The connection to the client is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cut(String);

pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((client, peer)) = listener.accept().await else {
            // Out of descriptors: who dials waits in the backlog.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let node = shared.roster.owner_of(peer);
            // Its end, good or bad, is the client's business.
            let _ = serve(shared, node, client).await;
        });
    }
}

async fn serve(
    shared: Arc<Shared>,
    node: Option<String>,
    client: TcpStream,
) -> Result<(), hyper::Error> {
    // Only a matter of speed.
    let _ = client.set_nodelay(true);
    let service = service_fn(|request| {
        let (shared, node) = (Arc::clone(&shared), node.clone());
        async move { shared.handle(node, request).await }
    });
    hyper::server::conn::http1::Builder::new()
        // A name that no client has to spell as we do: what came is what goes on.
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(client), service)
        .await
}

impl Shared {
    async fn handle(
        self: Arc<Self>,
        node: Option<String>,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Cut> {
        let head = head_of(&request);
        let line = head.lines().next().unwrap_or_default().to_owned();
        let target = request
            .uri()
            .path_and_query()
            .map_or("/", |t| t.as_str())
            .to_owned();
        {
            let mut seen = lock(&self.seen);
            if seen.len() < SEEN_MAX {
                seen.push(line);
            }
        }
        let asked = Asked {
            node: node.as_deref(),
            method: request.method(),
            target: &target,
            head: &head,
            is_conditional: request.headers().contains_key(header::IF_NONE_MATCH),
        };
        let is_list = asked.is(Which::List);
        let has_body = *asked.method == Method::GET;
        let broken = lock(&self.rules).take(&asked, &self.dice);
        let Some((rule, how)) = broken else {
            let (parts, body) = self.forward(node, request, None).await?;
            if is_list && parts.status.is_success() {
                let mut listings = lock(&self.listings);
                if listings.len() < LISTINGS_MAX || listings.contains_key(&target) {
                    listings.insert(target, body.clone());
                }
            }
            return Ok(Response::from_parts(parts, Answer::whole(body)));
        };
        tracing::debug!(?how, target, ?node, "request broken");
        match how {
            Break::CutRequest => Err(Cut("cut before the server saw it".to_owned())),
            Break::Silence => {
                self.rule_ends(rule).await;
                Err(Cut("silence is over".to_owned()))
            }
            Break::Answer(status) => Ok(refusal(status)),
            Break::Stale => {
                let before = lock(&self.listings).get(&target).cloned();
                if let Some(body) = before {
                    let answer =
                        Response::builder().header(header::CONTENT_TYPE, "application/xml");
                    return answer
                        .body(Answer::whole(body))
                        .map_err(|e| Cut(e.to_string()));
                }
                let (parts, body) = self.forward(node, request, None).await?;
                Ok(Response::from_parts(parts, Answer::whole(body)))
            }
            Break::Late(delay) => {
                let (parts, body) = request.into_parts();
                let body = collect(body, None).await?;
                let late = Arc::clone(&self);
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    // Nobody waits for its answer any more; the history has it.
                    let _ = late.send(node, parts, body).await;
                });
                Err(Cut("the server will see it late".to_owned()))
            }
            Break::Rival => self.create_first(request, node, &target).await,
            Break::CutAnswer | Break::LoseSuccess => {
                let (parts, body) = self.forward(node, request, None).await?;
                if how == Break::CutAnswer || parts.status.is_success() {
                    return Err(Cut("success lost".to_owned()));
                }
                Ok(Response::from_parts(parts, Answer::whole(body)))
            }
            Break::Crawl(rate) => {
                let (parts, body) = self.forward(node, request, Some(rate)).await?;
                Ok(Response::from_parts(parts, Answer::crawling(body, rate)))
            }
            Break::CutBody | Break::CutBodyAfter(_) | Break::StopBodyAfter(_) => {
                let (parts, body) = self.forward(node, request, None).await?;
                let at = match how {
                    Break::CutBodyAfter(at) | Break::StopBodyAfter(at) => at,
                    _ => body.len() / 2,
                };
                if !has_body || body.len() <= at {
                    return Ok(Response::from_parts(parts, Answer::whole(body)));
                }
                let stop = matches!(how, Break::StopBodyAfter(_));
                let then: BoxFuture<'static, ()> = if stop {
                    let held = Arc::clone(&self);
                    Box::pin(async move { held.rule_ends(rule).await })
                } else {
                    Box::pin(std::future::ready(()))
                };
                Ok(Response::from_parts(parts, Answer::broken(body, at, then)))
            }
        }
    }

    /// Until the rule is removed.
    async fn rule_ends(&self, rule: RuleId) {
        let mut changes = self.changes.subscribe();
        while lock(&self.rules).has(rule) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Writes a record of its own under the name, as a rival leader of the same epoch would, then lets the request go on.
    async fn create_first(
        self: &Arc<Self>,
        request: Request<Incoming>,
        node: Option<String>,
        target: &str,
    ) -> Result<Response<Answer>, Cut> {
        let (parts, body) = request.into_parts();
        let body = collect(body, None).await?;
        if let (Some(bucket), Some(head)) = (&self.bucket, record_head(&body)) {
            let record = Record {
                checkpoint: head.checkpoint,
                epoch: head.epoch,
                token: self.dice.u128(),
                outcome: RecordOutcome::Aborted {
                    reason: "a rival was first".to_owned(),
                },
            };
            let bytes = encode_record(&record).map_err(|e| Cut(e.to_string()))?;
            let key = key_of(target);
            match bucket.create(&key, bytes.into()).await {
                Ok(Created::New | Created::Exists) => {}
                Err(error) => return Err(Cut(error.to_string())),
            }
        }
        let (parts, body) = self.send(node, parts, body).await?;
        Ok(Response::from_parts(parts, Answer::whole(body)))
    }

    async fn forward(
        &self,
        node: Option<String>,
        request: Request<Incoming>,
        rate: Option<u64>,
    ) -> Result<(hyper::http::response::Parts, Bytes), Cut> {
        let (parts, body) = request.into_parts();
        let body = collect(body, rate).await?;
        self.send(node, parts, body).await
    }

    async fn send(
        &self,
        node: Option<String>,
        mut parts: hyper::http::request::Parts,
        body: Bytes,
    ) -> Result<(hyper::http::response::Parts, Bytes), Cut> {
        let target = parts
            .uri
            .path_and_query()
            .map_or("/", |t| t.as_str())
            .to_owned();
        let kind = write_kind(&parts, &target);
        let written = kind.map(|kind| (kind, record_head(&unchunked(&parts, &body))));
        parts.uri = format!("http://{}{target}", self.server)
            .parse()
            .map_err(|e| Cut(format!("{target}: {e}")))?;
        // Ours to frame: hyper says the body's length.
        parts.headers.remove(header::TRANSFER_ENCODING);
        parts.headers.remove(header::EXPECT);
        let began = lock(&self.history).tick();
        let answer = self
            .client
            .request(Request::from_parts(parts, Full::new(body)))
            .await;
        let status = answer.as_ref().map_or(0, |a| a.status().as_u16());
        if let Some((kind, record)) = written {
            let mut history = lock(&self.history);
            let ended = history.tick();
            let key = key_of(&target);
            let object = object_key(&key);
            history.push(Write {
                began,
                ended,
                node,
                kind,
                key,
                status,
                record,
                object,
            });
        }
        let answer = answer.map_err(|e| Cut(format!("the real server: {e}")))?;
        let (mut parts, body) = answer.into_parts();
        let body = collect(body, None).await?;
        parts.headers.remove(header::TRANSFER_ENCODING);
        Ok((parts, body))
    }
}

/// Method, target and headers, as they stand in HTTP/1.1.
fn head_of(request: &Request<Incoming>) -> String {
    let target = request.uri().path_and_query().map_or("/", |t| t.as_str());
    let mut head = format!("{} {target} HTTP/1.1\r\n", request.method());
    for (name, value) in request.headers() {
        head.push_str(&format!(
            "{name}: {}\r\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    head
}

/// The object's path after the bucket.
fn key_of(target: &str) -> String {
    let path = target.split('?').next().unwrap_or_default();
    path.trim_start_matches('/')
        .split_once('/')
        .map_or("", |(_, key)| key)
        .to_owned()
}

fn write_kind(parts: &hyper::http::request::Parts, target: &str) -> Option<WriteKind> {
    let query = target.split_once('?').map_or("", |(_, q)| q);
    if parts.method == Method::DELETE && !query.contains("uploadId=") {
        Some(WriteKind::Delete)
    } else if parts.method == Method::POST && query.contains("uploadId=") {
        Some(WriteKind::Complete)
    } else if parts.method != Method::PUT || query.contains("partNumber=") {
        None
    } else if parts.headers.contains_key(header::IF_NONE_MATCH) {
        Some(WriteKind::Create)
    } else {
        Some(WriteKind::Put)
    }
}

/// The object's bytes: the SDK may wrap them in chunks with signatures or trailers.
fn unchunked(parts: &hyper::http::request::Parts, body: &Bytes) -> Bytes {
    let is_chunked = parts
        .headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|e| e.as_bytes().starts_with(b"aws-chunked"));
    if !is_chunked {
        return body.clone();
    }
    let (mut rest, mut bytes) = (&body[..], BytesMut::new());
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = String::from_utf8_lossy(&rest[..end]);
        let size = size.split(';').next().unwrap_or_default().to_owned();
        let Ok(size) = usize::from_str_radix(&size, 16) else {
            break;
        };
        let Some(chunk) = rest.get(end + 2..end + 2 + size).filter(|c| !c.is_empty()) else {
            break;
        };
        bytes.extend_from_slice(chunk);
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    bytes.freeze()
}

/// All of a body, at so many bytes a second at most.
async fn collect(mut body: Incoming, rate: Option<u64>) -> Result<Bytes, Cut> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Cut(format!("the body broke: {e}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if let Some(rate) = rate {
            let seconds = data.len() as f64 / rate.max(1) as f64;
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// An error in the words of S3.
fn refusal(status: u16) -> Response<Answer> {
    let code = match status {
        403 => "AccessDenied",
        404 => "NoSuchKey",
        412 => "PreconditionFailed",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let text = format!("<Error><Code>{code}</Code><Message>by the store proxy</Message></Error>");
    let mut answer = Response::new(Answer::whole(text.into()));
    *answer.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/xml"),
    );
    answer
}

/// The body of an answer: whole, slow, or one that does not come to its end.
struct Answer {
    left: Bytes,
    /// What was announced, less what was sent.
    announced: u64,
    /// After `left`, when more was announced: waits, then breaks the connection.
    then: Option<BoxFuture<'static, ()>>,
    /// Bytes per step.
    step: Option<usize>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Answer {
    fn whole(body: Bytes) -> Self {
        Self {
            announced: body.len() as u64,
            left: body,
            then: None,
            step: None,
            pause: None,
        }
    }

    fn crawling(body: Bytes, rate: u64) -> Self {
        let step = rate as f64 * CRAWL_STEP.as_secs_f64();
        Self {
            step: Some((step as usize).max(1)),
            ..Self::whole(body)
        }
    }

    fn broken(body: Bytes, at: usize, then: BoxFuture<'static, ()>) -> Self {
        Self {
            announced: body.len() as u64,
            then: Some(then),
            ..Self::whole(body.slice(..at))
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.pause = None;
        }
        if self.left.is_empty() {
            let Some(then) = &mut self.then else {
                return Poll::Ready(None);
            };
            if then.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err(Cut("cut in the middle of the body".to_owned()))));
        }
        let length = self.step.unwrap_or(self.left.len()).min(self.left.len());
        let piece = self.left.split_to(length);
        self.announced -= length as u64;
        if self.step.is_some() {
            self.pause = Some(Box::pin(tokio::time::sleep(CRAWL_STEP)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && self.then.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced)
    }
}
