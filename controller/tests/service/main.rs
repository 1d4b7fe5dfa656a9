//! The whole controller on loopback: operators over HTTPS, gateways over QUIC.

mod agents;
mod api;
mod authority;
mod distribution;
mod exchange;
mod lifetime;
mod model;
mod persons;
mod rekey;
mod relay;
mod restore;
mod rotation;
mod support;
mod tcp;
