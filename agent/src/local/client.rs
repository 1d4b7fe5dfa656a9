//! The asking end of the local socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::protocol::{Request, Response};
use super::server::SOCKET;

/// Longest response in bytes: a full flow table.
const MAX_RESPONSE: u64 = 64 * 1024 * 1024;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(15);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No agent is there.
    #[error("no agent answers at {}: is `anteroom-agent run` running with this configuration? (`systemctl status anteroom-agent`)", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket can't be used.
    #[error("{}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It took too long.
    #[error("the agent at {} didn't answer within 15 s", path.display())]
    Slow {
        /// The socket.
        path: PathBuf,
    },
    /// It isn't an agent of this version.
    #[error("the agent at {} answers what this program doesn't understand: {error}. Restart the agent after an update", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        error: serde_json::Error,
    },
}

/// Asks the agent whose run directory this is.
///
/// # Errors
/// [`AskError`], when no agent answers. An agent's own error is a [`Response::Error`].
pub async fn ask(run: &Path, request: &Request) -> Result<Response, AskError> {
    let path = run.join(SOCKET);
    match timeout(ANSWER, exchange(&path, request)).await {
        Err(_) => Err(AskError::Slow { path }),
        Ok(Err(error)) => Err(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                AskError::NotRunning { path }
            }
            _ => AskError::Io { path, error },
        }),
        Ok(Ok(line)) => {
            serde_json::from_slice(&line).map_err(|error| AskError::Answer { path, error })
        }
    }
}

async fn exchange(path: &Path, request: &Request) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path).await?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    // An agent that is asked too much answers at once and hangs up; its answer counts.
    let _ = stream.write_all(&line).await;
    let mut answer = Vec::new();
    BufReader::new(stream).take(MAX_RESPONSE).read_until(b'\n', &mut answer).await?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}
