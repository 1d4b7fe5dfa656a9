//! The controller service: it keeps what operators have signed, gives every gateway its part, and hears what
//! gateways see.
//!
//! It decides nothing: a change is an operator's, compiled and signed on the operator's machine. What it signs
//! itself can carry on or close, never open.
//!
//! - [`init`], [`run`], [`restore`]: a controller's beginning, its life, and its life after that; [`config`] and [`directory`] are what it lives in;
//! - [`store`]: what it must not forget; [`state`]: what is derived from that and shared; [`audit`]: the log;
//! - [`api`]: operators, over HTTPS; [`change`]: what they change;
//! - [`agents`]: gateways, over QUIC; [`online`]: which are connected; [`tunnel_keys`]: whose key is whose; [`distribution`]: what they are sent;
//! - [`relay`]: gateways that have no better way to each other.

#![forbid(unsafe_code)]

pub mod agents;
pub mod api;
pub mod audit;
pub mod change;
pub mod clock;
pub mod config;
pub mod directory;
pub mod distribution;
pub mod init;
pub mod online;
pub mod rate;
pub mod relay;
pub mod restore;
pub mod run;
pub mod state;
pub mod store;
pub mod tunnel_keys;
