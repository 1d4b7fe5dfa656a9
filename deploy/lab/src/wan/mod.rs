//! Networks that misbehave, and stay the same each time: for tests of what has to come through them.
//!
//! - [`link`]: a cable that loses, delays, reorders, duplicates, limits, or takes no large packets, each direction by
//!   itself, changed while it runs;
//! - [`router`]: a router in user space that translates addresses in each way that matters, or filters without doing so;
//! - [`kernel`]: the two kinds of translation that the kernel does by itself;
//! - [`probe`]: three hosts that find out by asking which kind a router is (RFC 4787, RFC 5780).
//!
//! Each is a host of its own (see [`crate::topology`]) with two interfaces and a thread that moves frames between them.
//! What chance decides follows from a seed. Both go by IPv4; a link carries whatever comes, but tells no sender of IPv6
//! that a packet was too large.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use anteroom_lab::{topology::Host, wan::{Attach, conditions::Conditions, link::{Link, Way}, nat::Kind,
//! #     router::{NatRouter, Place}}};
//! # fn main() -> anyhow::Result<()> {
//! let (home, net) = (Host::create("home")?, Host::create("net")?);
//! net.switch("br0")?;
//! let inside = (Attach::Host(&home, "eth0"), Place { address: "10.0.0.1".parse()?, prefix: 24 });
//! let outside = (Attach::Switch(&net, "br0"), Place { address: "198.51.100.1".parse()?, prefix: 24 });
//! let router = NatRouter::set_up("nat", inside, outside, None, Kind::symmetric(), 1)?;
//! home.address("eth0", "10.0.0.2".parse()?, 24)?;
//! home.default_route("10.0.0.1".parse()?)?;
//! let far = Host::create("far")?;
//! let link = Link::lay("link", Attach::Host(&far, "eth0"), Attach::Switch(&net, "br0"), 1)?;
//! link.set(Way::There, Conditions::default().losing(0.05).delayed(Duration::from_millis(200), Duration::ZERO));
//! router.set_kind(Kind::port_restricted_cone());
//! # Ok(())
//! # }
//! ```
//!
//! Objects without sockets or a clock do the thinking: [`direction`], [`nat`] and [`router::Router`].

pub mod chance;
pub mod conditions;
pub mod direction;
mod ends;
pub mod ipv4;
pub mod kernel;
pub mod link;
mod mover;
pub mod nat;
mod oversize;
pub mod probe;
pub mod router;

pub use ends::Attach;

#[cfg(test)]
mod tests;
