//! Sockets, links and packet filters of the machine.

mod filter;
pub mod link;
mod netlink;
mod nft;
pub mod offload;
pub mod packet;
pub mod ports;
pub(crate) mod sys;
pub mod udp;
