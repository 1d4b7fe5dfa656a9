//! The shell around the engine, with real interfaces in a private network. Skipped where the kernel denies those.

mod bench;
mod guard;
mod wire;
