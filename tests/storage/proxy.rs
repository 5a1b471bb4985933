//! A TCP proxy before the S3 server that breaks chosen requests: each test says which and how, and reads how often it did.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone)]
pub(crate) enum Break {
    /// The server does it; the answer is thrown away and the connection closed.
    CutAnswer,
    /// The connection is closed before the server sees anything.
    CutRequest,
    /// Nothing is forwarded, nothing answered, the connection stays open.
    Silence,
    /// The answer stops after so many bytes, and the connection stays open.
    StopAnswerAfter(usize),
    /// The connection is closed after so many bytes of the answer.
    CutAnswerAfter(usize),
    /// The server does not see it; this is answered.
    Answer(&'static str),
}

struct Rule {
    /// Texts of the request's head, all of them: method, path, header.
    needles: Vec<String>,
    how: Break,
    left: u32,
}

/// Listens until the test's runtime ends.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    rules: Arc<Mutex<Vec<Rule>>>,
    /// First line of each request.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub(crate) async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let proxy = Self {
            endpoint,
            rules: Arc::default(),
            seen: Arc::default(),
        };
        let server = server.trim_start_matches("http://").to_owned();
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().serve(client, server.clone()));
            }
        });
        proxy
    }

    /// Breaks the next `times` requests whose head contains each of `needles`.
    pub(crate) fn rule(&self, needles: &[&str], how: Break, times: u32) {
        let needles = needles.iter().map(|&needle| needle.to_owned()).collect();
        let left = times;
        self.rules.lock().unwrap().push(Rule { needles, how, left });
    }

    /// Requests whose first line contains `needle`.
    pub(crate) fn count(&self, needle: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|line| line.contains(needle)).count()
    }

    fn rule_for(&self, head: &str) -> Option<Break> {
        let line = head.lines().next().unwrap_or_default();
        self.seen.lock().unwrap().push(line.to_owned());
        let mut rules = self.rules.lock().unwrap();
        let applies = |rule: &&mut Rule| rule.needles.iter().all(|needle| head.contains(needle));
        let rule = rules
            .iter_mut()
            .filter(|rule| rule.left > 0)
            .find(applies)?;
        rule.left -= 1;
        Some(rule.how.clone())
    }

    /// One request and one answer after another, as HTTP/1.1 has it without pipelining.
    async fn serve(self, mut client: TcpStream, server: String) -> Option<()> {
        let mut server = TcpStream::connect(server).await.ok()?;
        let mut pending = Vec::new();
        loop {
            let head = read_head(&mut client, &mut pending).await?;
            let body = read_body(&mut client, &mut pending, &head).await?;
            let rule = self.rule_for(&head);
            match rule {
                Some(Break::CutRequest) => return None,
                Some(Break::Silence) => return hold(client).await,
                Some(Break::Answer(answer)) => {
                    client.write_all(answer.as_bytes()).await.ok()?;
                    continue;
                }
                None
                | Some(Break::CutAnswer | Break::StopAnswerAfter(_) | Break::CutAnswerAfter(_)) => {
                }
            }
            server.write_all(head.as_bytes()).await.ok()?;
            server.write_all(&body).await.ok()?;
            let mut rest = Vec::new();
            let answer_head = read_head(&mut server, &mut rest).await?;
            if answer_head.starts_with("HTTP/1.1 100") {
                continue;
            }
            let answer_body = if head.starts_with("HEAD") || answer_head.contains(" 204 ") {
                Vec::new()
            } else {
                read_body(&mut server, &mut rest, &answer_head).await?
            };
            let mut answer = answer_head.into_bytes();
            answer.extend_from_slice(&answer_body);
            match rule {
                Some(Break::CutAnswer) => return None,
                Some(Break::CutAnswerAfter(length)) => {
                    client
                        .write_all(&answer[..length.min(answer.len())])
                        .await
                        .ok()?;
                    return None;
                }
                Some(Break::StopAnswerAfter(length)) => {
                    client
                        .write_all(&answer[..length.min(answer.len())])
                        .await
                        .ok()?;
                    return hold(client).await;
                }
                _ => client.write_all(&answer).await.ok()?,
            }
        }
    }
}

/// Until the client gives up.
async fn hold(mut client: TcpStream) -> Option<()> {
    let mut sink = [0; 4096];
    while client.read(&mut sink).await.ok()? > 0 {}
    None
}

async fn read_head(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(at) = pending.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = pending.split_off(at + 4);
            let head = std::mem::replace(pending, rest);
            return String::from_utf8(head).ok();
        }
        more(stream, pending).await?;
    }
}

/// By its length or in chunks; what the SDK and the server use.
async fn read_body(stream: &mut TcpStream, pending: &mut Vec<u8>, head: &str) -> Option<Vec<u8>> {
    let lower = head.to_ascii_lowercase();
    if lower.contains("transfer-encoding: chunked") {
        while !pending.windows(5).any(|window| window == b"0\r\n\r\n") {
            more(stream, pending).await?;
        }
        return Some(std::mem::take(pending));
    }
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(Some(0), |length| length.trim().parse().ok())?;
    while pending.len() < length {
        more(stream, pending).await?;
    }
    let rest = pending.split_off(length);
    Some(std::mem::replace(pending, rest))
}

async fn more(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Option<()> {
    let mut buffer = vec![0; 64 << 10];
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut buffer));
    let length = read.await.ok()?.ok().filter(|length| *length > 0)?;
    pending.extend_from_slice(&buffer[..length]);
    Some(())
}
