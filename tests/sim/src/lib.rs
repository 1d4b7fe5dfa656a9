//! The packet engine on a simulated network with a virtual clock.
//!
//! [`plan`] makes views as a controller would compile them, [`host`] is a small machine that speaks ARP, TCP,
//! UDP and ICMP, [`dhcp`] serves addresses, [`world`] puts gateways, hosts and a campus with a router together, and
//! [`model`] says in a few lines who may reach whom by which path. [`story`] has what tests say often, [`talk`] keeps
//! two devices talking and counts what is lost, [`fleet`] has gateways without a network around them. Nothing here
//! draws randomness but [`random`], which grows from a seed.

#![forbid(unsafe_code)]

pub mod dhcp;
pub mod fleet;
pub mod hospital;
pub mod host;
pub mod model;
pub mod packet;
pub mod plan;
pub mod random;
pub mod story;
pub mod talk;
pub mod world;
