//! Mutual authentication of two exchanges by the cluster's secret.
//!
//! Dialer: magic, version, own instance, nonce. Listener: the same of its own, then HMAC("listener", both hellos). Dialer:
//! HMAC("dialer", both hellos). HMAC-SHA256 under the secret; labels differ, so that neither answer can be reflected.
//! Invariant: nothing is read into a buffer whose size the peer chooses. The bytes that follow are not encrypted or signed: that
//! is the business of a transport with TLS.

use std::io;

use hmac::{Hmac, KeyInit, Mac};
use perennial_actors::model::InstanceId;
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const MAGIC: [u8; 8] = *b"PERNDATA";
/// Raised with every change of frames or handshake.
pub(super) const PROTOCOL_VERSION: u16 = 2;
const NONCE_BYTES: usize = 32;
const HELLO_BYTES: usize = MAGIC.len() + 2 + 16 + NONCE_BYTES;
const MAC_BYTES: usize = 32;

type Hello = [u8; HELLO_BYTES];

/// Why the two do not talk.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("handshake: {0}")]
    Io(#[from] io::Error),
    #[error("handshake: the peer is no data port of Perennial")]
    Magic,
    #[error("handshake: the peer speaks data protocol {theirs}, this process {PROTOCOL_VERSION}")]
    Version { theirs: u16 },
    #[error("another process answers: instance {actual}, expected {expected}")]
    OtherInstance {
        expected: InstanceId,
        actual: InstanceId,
    },
    #[error(
        "handshake: the peer does not know the cluster's secret: compare security.cluster-secret"
    )]
    Secret,
}

/// Who we are, and the nonces that we use.
pub(super) struct Identity {
    pub(super) instance: InstanceId,
    pub(super) secret: Vec<u8>,
}

impl Identity {
    /// A nonce that is new and that nobody without the secret can foresee: a keyed hash of this process's random instance id
    /// and the number of the connection. So the exchange needs no dice of its own.
    pub(super) fn nonce(&self, connection: u64) -> [u8; NONCE_BYTES] {
        self.mac(
            "nonce",
            &[&self.instance.0.to_le_bytes(), &connection.to_le_bytes()],
        )
        .finalize()
        .into_bytes()
        .into()
    }

    fn mac(&self, label: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes a key of any length");
        mac.update(label.as_bytes());
        mac.update(&[0]);
        for part in parts {
            mac.update(part);
        }
        mac
    }

    fn hello(&self, nonce: [u8; NONCE_BYTES]) -> Hello {
        let mut hello = [0; HELLO_BYTES];
        hello[..8].copy_from_slice(&MAGIC);
        hello[8..10].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        hello[10..26].copy_from_slice(&self.instance.0.to_le_bytes());
        hello[26..].copy_from_slice(&nonce);
        hello
    }

    /// The dialer's part; checks that `expected` answers.
    pub(super) async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        connection: u64,
        expected: InstanceId,
    ) -> Result<(), HandshakeError> {
        let ours = self.hello(self.nonce(connection));
        stream.write_all(&ours).await?;
        stream.flush().await?;
        let (theirs, actual) = read_hello(stream).await?;
        if actual != expected {
            return Err(HandshakeError::OtherInstance { expected, actual });
        }
        let mut proof = [0; MAC_BYTES];
        stream.read_exact(&mut proof).await?;
        self.mac("listener", &[&ours, &theirs])
            .verify_slice(&proof)
            .map_err(|_| HandshakeError::Secret)?;
        let proof = self.mac("dialer", &[&ours, &theirs]).finalize();
        stream.write_all(&proof.into_bytes()).await?;
        stream.flush().await?;
        Ok(())
    }

    /// The listener's part; returns who dialed.
    pub(super) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        connection: u64,
    ) -> Result<InstanceId, HandshakeError> {
        let (theirs, instance) = read_hello(stream).await?;
        let ours = self.hello(self.nonce(connection));
        stream.write_all(&ours).await?;
        let proof = self.mac("listener", &[&theirs, &ours]).finalize();
        stream.write_all(&proof.into_bytes()).await?;
        stream.flush().await?;
        let mut proof = [0; MAC_BYTES];
        stream.read_exact(&mut proof).await?;
        self.mac("dialer", &[&theirs, &ours])
            .verify_slice(&proof)
            .map_err(|_| HandshakeError::Secret)?;
        Ok(instance)
    }
}

async fn read_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<(Hello, InstanceId), HandshakeError> {
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello[..10]).await?;
    if hello[..8] != MAGIC {
        return Err(HandshakeError::Magic);
    }
    let theirs = u16::from_le_bytes([hello[8], hello[9]]);
    if theirs != PROTOCOL_VERSION {
        return Err(HandshakeError::Version { theirs });
    }
    stream.read_exact(&mut hello[10..]).await?;
    let mut instance = [0; 16];
    instance.copy_from_slice(&hello[10..26]);
    Ok((hello, InstanceId(u128::from_le_bytes(instance))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(instance: u128, secret: &str) -> Identity {
        Identity {
            instance: InstanceId(instance),
            secret: secret.as_bytes().to_vec(),
        }
    }

    async fn shake(
        dialer: Identity,
        listener: Identity,
        expected: u128,
    ) -> (
        Result<(), HandshakeError>,
        Result<InstanceId, HandshakeError>,
    ) {
        let (mut a, mut b) = tokio::io::duplex(64);
        tokio::join!(
            biased;
            async move { dialer.dial(&mut a, 1, InstanceId(expected)).await },
            async move { listener.answer(&mut b, 1).await }
        )
    }

    #[tokio::test]
    async fn both_ends_prove_that_they_know_the_secret() {
        let (dialed, answered) = shake(identity(1, "s"), identity(2, "s"), 2).await;
        dialed.unwrap();
        assert_eq!(answered.unwrap(), InstanceId(1));
    }

    #[tokio::test]
    async fn a_wrong_secret_is_refused_by_both_ends() {
        let (dialed, answered) = shake(identity(1, "s"), identity(2, "t"), 2).await;
        assert!(matches!(dialed, Err(HandshakeError::Secret)));
        assert!(answered.is_err());
    }

    #[tokio::test]
    async fn another_process_on_the_address_is_recognised() {
        let (dialed, answered) = shake(identity(1, "s"), identity(3, "s"), 2).await;
        assert!(
            dialed
                .unwrap_err()
                .to_string()
                .contains("another process answers")
        );
        assert!(answered.is_err());
    }

    #[test]
    fn nonces_differ_by_connection_and_by_process() {
        let one = identity(1, "s");
        assert_ne!(one.nonce(1), one.nonce(2));
        assert_ne!(one.nonce(1), identity(2, "s").nonce(1));
    }
}
