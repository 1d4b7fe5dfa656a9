//! What outlives a restart: keys, the enrolment, and what was signed for this gateway.
//!
//! One directory that only root can read, one file per thing, each replaced as a whole, so that a power cut
//! leaves the old file or the new one. What is read back is checked as if it came from the network. A damaged
//! file costs what was in it and nothing else: see [`Held::load`].

mod directory;
mod file;
mod held;
mod identity;
mod records;
mod seal;

use std::io;
use std::path::PathBuf;

use anteroom_proto::authority::AuthorityError;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::Fingerprint;
use anteroom_proto::view::ViewError;

pub use directory::{Lock, StateDir};
pub(crate) use held::enforces;
pub use held::{Enrolled, Held, wiring_on_disk};
pub use identity::{NextKey, Nexts};
pub use records::{Enrolment, TunnelKey};
pub use seal::{SealError, Sealing};

#[cfg(test)]
pub(crate) mod tests;

/// What can be wrong with the state on disk.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory can't be made or opened.
    #[error("{}: {error}. The agent keeps its keys there: name a directory of root's as `state` in its configuration", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Somebody else could read the keys.
    #[error("{}: {problem}, and the agent's keys are in it: run `{remedy}`", path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The command that mends it.
        remedy: String,
    },
    /// Another agent has it.
    #[error("{}: another anteroom-agent is running on it: stop that one first", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file can't be read or written.
    #[error("{}: can't be {verb}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// A file isn't as the agent wrote it.
    #[error("{}: damaged: {problem}. {consequence}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What that means and what to do.
        consequence: &'static str,
    },
    /// A file is of a newer agent.
    #[error("{}: has format {found}, this agent knows format {known}: install the newer agent again", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known.
        known: u32,
    },
    /// The authority chain on disk doesn't hold.
    #[error("{}: {error}. The agent asks its controller for the chain again", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why it isn't followed.
        error: AuthorityError,
    },
    /// The view on disk doesn't hold.
    #[error("{}: {error}. The agent asks its controller for a view again", path.display())]
    View {
        /// The file.
        path: PathBuf,
        /// Why it isn't taken.
        error: ViewError,
    },
    /// The keys are sealed, and can't be opened or sealed.
    #[error("{}: the private keys here are sealed with {sealing}, and can't be opened: {error}", path.display())]
    Sealed {
        /// The state directory.
        path: PathBuf,
        /// With what.
        sealing: Sealing,
        /// Why not.
        error: SealError,
    },
    /// Keys weren't sealed.
    #[error("{}: the private keys here can't be sealed with {sealing}, and stay as they are: {error}", path.display())]
    NotSealed {
        /// The state directory.
        path: PathBuf,
        /// With what.
        sealing: Sealing,
        /// Why not.
        error: SealError,
    },
    /// There is an enrolment, but not the key that goes with it.
    #[error(
        "{}: the identity key of {gateway} is lost, so the controller won't know this machine: ask for a new invite (`anteroom gateway invite`), move the directory away and enrol again",
        path.display()
    )]
    IdentityLost {
        /// The state directory.
        path: PathBuf,
        /// The gateway that this machine was.
        gateway: GatewayId,
    },
    /// Operators have approved an identity key for this gateway that isn't here.
    #[error(
        "{}: operators have approved the identity key {wanted} for this gateway, and it isn't here: ask for a new invite (`anteroom gateway invite`), move the directory away and enrol again",
        path.display()
    )]
    IdentityUnknown {
        /// The state directory.
        path: PathBuf,
        /// The key's fingerprint.
        wanted: Fingerprint,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a key: {0}")]
    Random(getrandom::Error),
}
