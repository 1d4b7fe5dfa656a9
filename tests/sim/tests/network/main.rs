//! Engines on a simulated network, in one program: each test has a network of its own.

mod agreement;
mod arp;
mod away;
mod bypass;
mod flows;
mod impostors;
mod lanes;
mod leases;
mod merging;
mod moves;
mod nats;
mod paths;
mod random;
mod relays;
mod rules;
mod scenarios;
mod sizes;
mod trials;
