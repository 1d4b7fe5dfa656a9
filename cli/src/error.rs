//! What can go wrong, in words for the person at the keyboard, and the exit status that programs see.

use anteroom_proto::authority::AuthorityError;

use crate::change::ChangeError;
use crate::client::ClientError;
use crate::home::HomeError;

/// Exit statuses. They never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok,
    /// Something went wrong; nothing was changed unless the message says so.
    Error,
    /// Something lags behind or is offline.
    Lagging,
    /// The change is in force, but not yet at every gateway.
    Laggards,
    /// The plan or the policy's checks refuse the change.
    Refused,
    /// What was typed can't be understood, or a confirmation is missing.
    Usage,
}

impl Exit {
    /// The number that the shell sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Error => 1,
            Self::Lagging => 2,
            Self::Laggards => 3,
            Self::Refused => 4,
            Self::Usage => 64,
        }
    }
}

/// Why a command didn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was typed can't be understood, or a confirmation is missing.
    #[error("{0}")]
    Usage(String),
    /// The plan or the policy's checks refuse the change.
    #[error("{0}")]
    Refused(String),
    /// Something about the operator's own files.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Something on the way to the controller, or its answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The controller serves an authority chain that can't be followed.
    #[error(
        "the controller serves an authority chain that can't be trusted: {0}. Nothing was changed. If the controller was not restored or replaced on purpose, treat it as stolen"
    )]
    Authority(#[from] AuthorityError),
    /// The model that the controller serves, or the change to it.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A file that was named on the command line.
    #[error("{path}: {problem}")]
    File {
        /// Which file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// Standard output or input.
    #[error("can't write the output: {0}")]
    Output(#[from] std::io::Error),
    /// Anything else, said in full.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// The exit status that goes with it.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Refused(_) => Exit::Refused,
            _ => Exit::Error,
        }
    }

    /// Whether it only says that nobody reads the output any more.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// Something that goes wrong with the file at `path`.
    pub fn file(path: &std::path::Path, problem: impl std::fmt::Display) -> Self {
        Self::File { path: path.display().to_string(), problem: problem.to_string() }
    }
}
