//! The packet engine of Anteroom: pure, no sockets, no clock of its own.
//!
//! The shell feeds batches in; the engine writes what is to be sent straight into the [`sink::Sink`] that it is
//! handed, and says when it next wants to be woken.

pub mod batch;
pub mod checksum;
pub mod config;
pub mod engine;
pub mod fragment;
pub mod gso;
pub mod limits;
pub mod mss;
pub mod peer;
pub mod port;
pub mod report;
pub mod sink;
pub mod vnet;
pub mod wire;
