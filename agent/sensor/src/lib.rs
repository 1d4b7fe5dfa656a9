//! What devices let be seen of themselves, read from frames that a gateway carries anyway.
//!
//! [`Gate`] says which frames are worth a look. [`Sensor`] is handed those and tells [`Sight`]s: which station showed which
//! [hint](anteroom_proto::inventory). [`Collector`] keeps what is new of them until it is reported. All are pure: no I/O, no
//! clock. All that they keep is bounded, whatever the frames say.
//!
//! Only names, versions and habits that headers and handshakes state are taken: no content, no credentials. Each
//! parser's module says where it looks and what it passes by.
//!
//! Formats of which a well-kept library does justice to hostile input are read by one. TLS, DHCP and LLDP are read here: the
//! crates for them bring along far more than these few bytes need.

#![forbid(unsafe_code)]

pub mod capture;
mod cdp;
mod collector;
mod cursor;
mod frame;
mod gate;
mod lldp;
mod sensor;
mod sight;
mod soap;
mod stream;
mod tcp;
mod text;
mod udp;

pub use collector::{Collector, Told};
pub use frame::{sender, source};
pub use gate::{Gate, Look, Way};
pub use sensor::Sensor;
pub use sight::{Sight, Sights, Station};
