//! Anteroom beside other tunnels, and beside none, on one machine: `cargo compare`.
//!
//! Every subject gets the same cables in network namespaces of its own ([`world`]) and is set up once ([`subject`]); then
//! tests ([`trial`]) run on one after the other, round by round, so that what else the machine does falls on all alike.
//! Traffic comes from threads of this program ([`load`]).

pub mod aead;
pub mod compare;
pub mod idle;
pub mod instructions;
pub mod load;
pub mod machine;
pub mod organisation;
pub mod plot;
pub mod report;
pub mod scale;
pub mod spread;
pub mod subject;
pub mod tools;
pub mod trial;
pub mod usage;
pub mod world;
