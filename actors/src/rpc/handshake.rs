//! Who is there: mutual authentication by the cluster's shared secret, then introductions.
//!
//! ```text
//! both:      magic "PRNL", protocol version u16 BE, nonce [32]                    (38 bytes, never framed)
//! initiator: HMAC-SHA256(secret, "perennial control initiator" + version + initiator's nonce + acceptor's nonce)
//! acceptor:  verifies, then HMAC-SHA256(secret, "perennial control acceptor" + the same)
//! initiator: verifies, then frames begin: Hello
//! acceptor:  Welcome
//! ```
//!
//! Invariant: nothing but the preamble is sent to an initiator that has not proven the secret, and no frame is read from anybody
//! who has not. The roles in the proofs keep a proof from being sent back to its author. It does not encrypt: TLS wraps the
//! transport when the network is not trusted.

use std::io;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use perennial_config::Secret;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::envelope::SessionId;
use super::frame::{FrameError, MessageReader, MessageWriter, PROTOCOL_VERSION};
use super::transport::{BoxStream, Transport};
use crate::entropy::Entropy;
use crate::model::message::{Hello, RpcError, Welcome};

/// Within which an accepted connection must have proven itself.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

const MAGIC: [u8; 4] = *b"PRNL";
const NONCE_SIZE: usize = 32;
const PREAMBLE_SIZE: usize = MAGIC.len() + 2 + NONCE_SIZE;
const PROOF_SIZE: usize = 32;

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Nobody listens there, or the network says no.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke before both were known to each other.
    #[error("connection lost: {0}")]
    Broken(#[from] FrameError),
    /// Another program.
    #[error("the peer does not speak this protocol: check the address and port")]
    Magic,
    /// Another version of this program.
    #[error("protocol version {theirs} there, {ours} here: run the same release on all nodes")]
    Version {
        /// Here.
        ours: u16,
        /// There.
        theirs: u16,
    },
    /// Another cluster, or an impostor.
    #[error(
        "authentication failed: `security.cluster-secret` must be the same on all nodes and clients of a cluster"
    )]
    Secret,
    /// Too slow.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

impl HandshakeError {
    /// Whether somebody took the connection and broke it before saying who is there.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        matches!(self, Self::Broken(_))
    }

    /// Whether the operating system at the other end said that nobody listens: the process is gone.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        match self {
            Self::Connect(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            Self::Broken(_)
            | Self::Magic
            | Self::Version { .. }
            | Self::Secret
            | Self::Timeout(_) => false,
        }
    }

    /// As seen by callers of requests.
    #[must_use]
    pub fn into_rpc(self, peer: &str) -> RpcError {
        let (peer, message) = (peer.to_owned(), self.to_string());
        match self {
            Self::Connect(_) | Self::Broken(_) => RpcError::Closed { peer, message },
            Self::Magic | Self::Version { .. } | Self::Secret => {
                RpcError::Handshake { peer, message }
            }
            Self::Timeout(after) => RpcError::Timeout {
                peer,
                millis: after.as_millis() as u64,
            },
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::Broken(FrameError::Io(error))
    }
}

/// An authenticated connection.
pub struct Channel {
    /// Messages of the peer.
    pub reader: MessageReader<ReadHalf<BoxStream>>,
    /// Messages to the peer.
    pub writer: MessageWriter<WriteHalf<BoxStream>>,
    /// The peer's address, for messages.
    pub peer: String,
}

/// The first message of an authenticated initiator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Introduction {
    /// Who and what for.
    pub hello: Hello,
    /// For a TaskManager: where its own listener answers [`Hello::Probe`].
    pub probe_address: Option<String>,
    /// For a TaskManager: where the session of an earlier connection stopped, which it wants to go on.
    pub resume: Option<ResumePoint>,
}

impl From<Hello> for Introduction {
    fn from(hello: Hello) -> Self {
        Self {
            hello,
            probe_address: None,
            resume: None,
        }
    }
}

/// Where a session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumePoint {
    /// The last session whose start was received: the JobManager may have begun another one meanwhile.
    pub session: SessionId,
    /// The number of the last message received in order.
    pub received: u64,
}

/// Connects, authenticates and introduces itself.
pub async fn dial(
    transport: &dyn Transport,
    address: &str,
    secret: &Secret,
    entropy: &Entropy,
    introduction: Introduction,
    timeout: Duration,
) -> Result<(Channel, Welcome), HandshakeError> {
    let work = async {
        let mut stream = transport
            .connect(address)
            .await
            .map_err(HandshakeError::Connect)?;
        authenticate(&mut stream, secret, entropy, Role::Initiator).await?;
        let mut channel = Channel::new(stream, address.to_owned());
        channel.writer.message(&introduction).await?;
        match channel.reader.message::<Welcome>().await? {
            Some(welcome) => Ok((channel, welcome)),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_elapsed) => Err(HandshakeError::Timeout(timeout)),
    }
}

/// Authenticates an accepted connection and reads who it is. The caller sends the [`Welcome`].
pub async fn receive(
    mut stream: BoxStream,
    peer: String,
    secret: &Secret,
    entropy: &Entropy,
) -> Result<(Channel, Introduction), HandshakeError> {
    let work = async {
        authenticate(&mut stream, secret, entropy, Role::Acceptor).await?;
        let mut channel = Channel::new(stream, peer);
        match channel.reader.message::<Introduction>().await? {
            Some(introduction) => Ok((channel, introduction)),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, work).await {
        Ok(result) => result,
        Err(_elapsed) => Err(HandshakeError::Timeout(HANDSHAKE_TIMEOUT)),
    }
}

impl Channel {
    fn new(stream: BoxStream, peer: String) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader: MessageReader::new(reader),
            writer: MessageWriter::new(writer),
            peer,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Initiator,
    Acceptor,
}

type Nonce = [u8; NONCE_SIZE];

async fn authenticate(
    stream: &mut BoxStream,
    secret: &Secret,
    entropy: &Entropy,
    role: Role,
) -> Result<(), HandshakeError> {
    let mut ours: Nonce = [0; NONCE_SIZE];
    ours[..16].copy_from_slice(&entropy.u128().to_be_bytes());
    ours[16..].copy_from_slice(&entropy.u128().to_be_bytes());

    let mut preamble = Vec::with_capacity(PREAMBLE_SIZE);
    preamble.extend_from_slice(&MAGIC);
    preamble.extend_from_slice(&PROTOCOL_VERSION.to_be_bytes());
    preamble.extend_from_slice(&ours);
    stream.write_all(&preamble).await?;
    stream.flush().await?;
    let theirs = read_preamble(stream).await?;

    match role {
        Role::Initiator => {
            let proof = mac(secret, Role::Initiator, &ours, &theirs);
            stream.write_all(&proof.finalize().into_bytes()).await?;
            stream.flush().await?;
            let mut answer = [0; PROOF_SIZE];
            match stream.read_exact(&mut answer).await {
                Ok(_) => {}
                // The acceptor closes without a word when our proof does not satisfy it.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(HandshakeError::Secret);
                }
                Err(error) => return Err(error.into()),
            }
            mac(secret, Role::Acceptor, &ours, &theirs)
                .verify_slice(&answer)
                .map_err(|_| HandshakeError::Secret)
        }
        Role::Acceptor => {
            let mut answer = [0; PROOF_SIZE];
            stream.read_exact(&mut answer).await?;
            // Order matters: our own proof would let a stranger guess the secret offline, so theirs comes first.
            mac(secret, Role::Initiator, &theirs, &ours)
                .verify_slice(&answer)
                .map_err(|_| HandshakeError::Secret)?;
            let proof = mac(secret, Role::Acceptor, &theirs, &ours);
            stream.write_all(&proof.finalize().into_bytes()).await?;
            stream.flush().await?;
            Ok(())
        }
    }
}

async fn read_preamble(stream: &mut BoxStream) -> Result<Nonce, HandshakeError> {
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Err(HandshakeError::Magic);
    }
    let theirs = stream.read_u16().await?;
    if theirs != PROTOCOL_VERSION {
        return Err(HandshakeError::Version {
            ours: PROTOCOL_VERSION,
            theirs,
        });
    }
    let mut nonce = [0; NONCE_SIZE];
    stream.read_exact(&mut nonce).await?;
    Ok(nonce)
}

fn mac(secret: &Secret, role: Role, initiator: &Nonce, acceptor: &Nonce) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.0.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(match role {
        Role::Initiator => b"perennial control initiator",
        Role::Acceptor => b"perennial control acceptor",
    });
    mac.update(&PROTOCOL_VERSION.to_be_bytes());
    mac.update(initiator);
    mac.update(acceptor);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    type Received = Result<(Channel, Introduction), HandshakeError>;

    /// Runs an acceptor with `secret` against whatever `initiate` does with the other end.
    async fn accept_against<F: Future>(
        secret: &str,
        initiate: impl FnOnce(BoxStream) -> F,
    ) -> (Received, F::Output) {
        let (near, far) = tokio::io::duplex(1 << 12);
        let (secret, entropy) = (Secret(secret.to_owned()), Entropy::seeded(1));
        tokio::join!(
            receive(Box::new(far), "test".to_owned(), &secret, &entropy),
            initiate(Box::new(near)),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_secret_lets_both_in() {
        let (received, sent) = accept_against("s", |mut stream| async move {
            let secret = Secret("s".to_owned());
            authenticate(&mut stream, &secret, &Entropy::seeded(2), Role::Initiator).await?;
            let mut channel = Channel::new(stream, "acceptor".to_owned());
            channel
                .writer
                .message(&Introduction::from(Hello::Probe))
                .await?;
            Ok::<_, HandshakeError>(())
        })
        .await;
        sent.unwrap();
        assert_eq!(received.ok().unwrap().1, Hello::Probe.into());
    }

    /// The stranger sees the preamble and then the end of the stream: nothing that was computed from the secret.
    #[tokio::test(start_paused = true)]
    async fn a_wrong_secret_gets_an_error_and_no_byte_of_proof() {
        let (received, seen) = accept_against("right", |mut stream| async move {
            let mut preamble = MAGIC.to_vec();
            preamble.extend(PROTOCOL_VERSION.to_be_bytes());
            preamble.extend([5; NONCE_SIZE + PROOF_SIZE]);
            stream.write_all(&preamble).await.unwrap();
            let mut seen = Vec::new();
            stream.read_to_end(&mut seen).await.unwrap();
            seen
        })
        .await;
        assert!(matches!(received.err().unwrap(), HandshakeError::Secret));
        assert_eq!(seen.len(), PREAMBLE_SIZE);

        let (received, sent) = accept_against("right", |mut stream| async move {
            let secret = Secret("wrong".to_owned());
            authenticate(&mut stream, &secret, &Entropy::seeded(2), Role::Initiator).await
        })
        .await;
        assert!(matches!(received.err().unwrap(), HandshakeError::Secret));
        let error = sent.unwrap_err().into_rpc("jm:1");
        assert!(matches!(error, RpcError::Handshake { .. }), "{error}");
        assert!(!error.to_string().contains("wrong"));
    }

    /// An impostor without the secret cannot make an initiator believe it, not even by sending its own proof back.
    #[tokio::test(start_paused = true)]
    async fn a_reflected_proof_is_refused() {
        let (near, mut far) = tokio::io::duplex(1 << 12);
        let secret = Secret("s".to_owned());
        let mut near: BoxStream = Box::new(near);
        let entropy = Entropy::seeded(2);
        let (result, ()) = tokio::join!(
            authenticate(&mut near, &secret, &entropy, Role::Initiator),
            async {
                let mut everything = [0; PREAMBLE_SIZE];
                far.read_exact(&mut everything).await.unwrap();
                far.write_all(&everything).await.unwrap();
                let mut proof = [0; PROOF_SIZE];
                far.read_exact(&mut proof).await.unwrap();
                far.write_all(&proof).await.unwrap();
            }
        );
        assert!(matches!(result, Err(HandshakeError::Secret)));
    }

    #[tokio::test(start_paused = true)]
    async fn another_version_is_named_on_both_sides() {
        let (received, ()) = accept_against("s", |mut stream| async move {
            let mut preamble = MAGIC.to_vec();
            preamble.extend(7_u16.to_be_bytes());
            preamble.extend([5; NONCE_SIZE]);
            stream.write_all(&preamble).await.unwrap();
            let mut theirs = [0; PREAMBLE_SIZE];
            stream.read_exact(&mut theirs).await.unwrap();
            // What an initiator of version 7 needs to say the same.
            assert_eq!(theirs[4..6], PROTOCOL_VERSION.to_be_bytes());
        })
        .await;
        let error = received.err().unwrap();
        assert!(matches!(
            error,
            HandshakeError::Version {
                ours: PROTOCOL_VERSION,
                theirs: 7
            }
        ));
        let text = error.into_rpc("jm:1").to_string();
        assert!(
            text.contains("version 7") && text.contains(&format!("{PROTOCOL_VERSION} here")),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_and_silent_peers_are_turned_away() {
        let (received, _) = accept_against("s", |mut stream| async move {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            stream
        })
        .await;
        assert!(matches!(received.err().unwrap(), HandshakeError::Magic));

        let before = tokio::time::Instant::now();
        let (received, _) = accept_against("s", std::future::ready).await;
        assert!(matches!(
            received.err().unwrap(),
            HandshakeError::Timeout(_)
        ));
        assert_eq!(before.elapsed(), HANDSHAKE_TIMEOUT);
    }
}
