//! The agent's local socket: `status`, `flows` and `why` for whoever is root on the gateway.

pub mod client;
pub mod protocol;
pub(crate) mod server;
