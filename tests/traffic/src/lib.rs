//! A hospital's traffic out of a seed, with the policy that it needs: what suggestions are measured on.
//!
//! [`World::new`] makes a hospital of 20 to 20,000 devices of more than a dozen classes; [`World::days`] plays any of its days, by
//! itself and always the same; [`World::is_wanted`] knows the true policy. [`measure`] holds a suggestion, and two
//! baselines, against it. `cargo run --release -p anteroom-traffic -- 2000` prints the table.
//!
//! What makes it hard, on purpose: shifts, weekends and month ends; flows that happen once in months; classes that come from two makers with
//! a server each; wards whose monitors have a station each; people who print wherever they walk; devices without a
//! label or with a wrong one; devices that come in the middle of the history or after it; some that talk to the wrong server; some that are infected, and scan.

mod classes;
pub mod measure;
mod random;
mod world;

pub use world::{World, Wrong};
