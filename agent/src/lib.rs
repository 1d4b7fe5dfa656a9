//! The gateway appliance of Anteroom: the I/O shell around the packet engine.

pub mod config;
pub mod dataplane;
pub mod net;
pub mod state;

#[cfg(test)]
mod testkit;
