//! The gateway appliance of Anteroom: the I/O shell around the packet engine.

mod again;
pub mod bypass;
pub mod cli;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod direct;
pub mod enroll;
pub mod kem;
pub mod keys;
pub mod local;
mod looks;
pub mod net;
pub mod plane;
pub mod relay;
pub mod run;
mod seek;
mod silence;
pub mod slice;
pub mod state;
mod task;
mod text;
mod trial;

#[cfg(test)]
mod bare;
#[cfg(test)]
mod testkit;
