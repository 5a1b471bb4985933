//! Faults by control message, from a test into a cluster of processes.

use std::time::Duration;

use perennial_actors::client::Client;
use perennial_actors::fault::Injection;
use perennial_actors::model::message::RpcError;
use perennial_actors::rpc::TcpTransport;
use perennial_config::Secret;

use super::ProcessCluster;
use super::cluster::CLUSTER_SECRET;

/// For a connection, and for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

impl ProcessCluster {
    /// The secret of its nodes, for other clients.
    #[must_use]
    pub fn secret(&self) -> &'static str {
        CLUSTER_SECRET
    }

    /// Orders a fault from the JobManager that commands go to; returns who is struck.
    ///
    /// # Errors
    /// When the cluster refuses it or does not answer.
    pub fn inject(&self, injection: Injection) -> Result<String, RpcError> {
        self.say(&format!("inject {injection:?}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| RpcError::Refused(format!("no runtime: {error}")))?;
        runtime.block_on(async {
            let secret = Secret(CLUSTER_SECRET.to_owned());
            let mut client =
                Client::connect(&TcpTransport, self.address(), &secret, TIMEOUT).await?;
            client.inject(injection, TIMEOUT).await
        })
    }
}
