//! The worker thread around the engine, and the handle to it.
//!
//! ```text
//! let setup = Setup::prepare(&config).await?;
//! let mut engine = Engine::new(setup.engine_config(), identity, Instant::now());
//! engine.restore(learned);
//! let handle = dataplane::spawn(setup, engine)?;
//! ```

mod handle;
mod setup;
mod status;

use anteroom_agent_core::engine::Engine;

pub use handle::{Handle, Stopped};
pub use setup::{Setup, SetupError};
pub use status::{
    InterfaceCounters, InterfaceStatus, Offloads, Status, UnderlayCounters, UnderlayStatus,
};

/// Starts the worker thread. Runs inside a tokio runtime, which also watches the links.
///
/// A panic of the worker ends the process: half a data plane would be worse than a restart.
///
/// # Errors
/// Where the thread or its descriptors can't be made.
pub fn spawn(setup: Setup, engine: Engine) -> Result<Handle, SetupError> {
    let _ = (setup.config, engine);
    Err(SetupError::System {
        what: "the worker isn't there yet".into(),
        source: std::io::ErrorKind::Unsupported.into(),
    })
}
