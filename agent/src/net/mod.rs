//! Sockets, links and packet filters of the machine.

pub(crate) mod appetite;
pub(crate) mod beat;
pub(crate) mod defence;
pub(crate) mod exit;
mod filter;
pub(crate) mod host;
pub mod link;
mod netlink;
mod nft;
pub mod offload;
pub mod packet;
pub mod ports;
pub(crate) mod reverse_path;
pub(crate) mod sentry;
pub(crate) mod sys;
pub(crate) mod tun;
pub mod udp;
pub mod wiring;
