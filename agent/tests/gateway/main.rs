//! The shell around the engine, with real interfaces in a private network. Skipped where the kernel denies those.

mod appliance;
mod bench;
mod death;
mod guard;
mod wire;
