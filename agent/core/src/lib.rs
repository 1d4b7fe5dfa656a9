//! The packet engine of Anteroom: pure, no sockets, no clock of its own.
//!
//! The shell feeds batches in; the engine writes what is to be sent straight into the [`sink::Sink`] that it is
//! handed, and says when it next wants to be woken.

#![forbid(unsafe_code)]

mod alarm;
mod arp;
pub mod batch;
mod bridge;
pub mod bypass;
pub mod checksum;
mod clock;
pub mod coalesce;
pub mod config;
mod contest;
mod device;
mod echo;
pub mod engine;
mod flow;
pub mod fragment;
pub mod gso;
mod holding;
mod infrastructure;
pub mod lane;
pub mod limits;
pub mod mss;
mod nexthop;
pub mod on_failure;
pub mod peer;
mod policy;
pub mod port;
pub mod report;
mod security;
pub mod sink;
pub mod size;
mod station;
mod table;
pub mod target;
pub mod trial;
pub mod vnet;
pub mod wire;
