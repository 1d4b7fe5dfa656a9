//! The shell around the engine, with real interfaces in a private network. Skipped where the kernel denies those.

mod appliance;
mod bench;
mod carrier;
mod closed;
mod death;
mod disk;
mod guard;
mod hung;
mod mend;
mod poison;
mod rest;
#[path = "../../src/testkit.rs"]
#[allow(dead_code, reason = "shared with the unit tests")]
mod testkit;
mod turns;
mod wire;

// The test kit speaks of it as the agent's own.
use anteroom_agent::state;
