//! The answering end of the local socket.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::protocol::{MAX_REQUEST, Request, Response};

/// Name of the socket in the run directory.
pub(crate) const SOCKET: &str = "agent.sock";
/// Connections at once.
const MAX_CONNECTIONS: usize = 16;
/// How long a request may take to come.
const READ: Duration = Duration::from_secs(10);
/// How long a response may take to go.
const WRITE: Duration = Duration::from_secs(10);

/// Why there is no local socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Another agent answers there.
    #[error("{}: another anteroom-agent answers there: give each its own `run` directory", path.display())]
    InUse { path: PathBuf },
    /// It can't be made.
    #[error("{}: {error}. The agent answers `status` there: name a directory of root's as `run` in its configuration", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Who answers.
pub(crate) trait Answer: Send + Sync + 'static {
    /// The answer to one request.
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send;
}

/// The socket, which goes away with this.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Makes the socket in `run`, for this user only. One that a killed agent left is replaced.
    pub(crate) async fn bind(run: &Path) -> Result<Self, SocketError> {
        let path = run.join(SOCKET);
        if UnixStream::connect(&path).await.is_ok() {
            return Err(SocketError::InUse { path });
        }
        let listener =
            listen(run, &path).map_err(|error| SocketError::Io { path: path.clone(), error })?;
        Ok(Self { listener, path })
    }

    /// Answers for as long as it is polled.
    pub(crate) async fn serve(&self, who: Arc<impl Answer>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to come back.
                    warn!("local socket: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                let text = "too many questions at once: ask again in a moment";
                let _ = stream.try_write(&line(&Response::Error(text.into())));
                continue;
            };
            let who = who.clone();
            tokio::spawn(async move {
                if let Err(error) = talk(stream, &*who).await {
                    debug!("local socket: {error}");
                }
                drop(place);
            });
        }
    }
}

fn listen(run: &Path, path: &Path) -> io::Result<UnixListener> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(run)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn line(response: &Response) -> Vec<u8> {
    let mut line = serde_json::to_vec(response).unwrap_or_else(|error| {
        format!(r#"{{"error":"the answer can't be written: {error}"}}"#).into_bytes()
    });
    line.push(b'\n');
    line
}

async fn talk(mut stream: UnixStream, who: &impl Answer) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    loop {
        let mut request = Vec::new();
        let most = (MAX_REQUEST + 1) as u64;
        let mut bounded = (&mut read).take(most);
        let reading = bounded.read_until(b'\n', &mut request);
        let response = match timeout(READ, reading).await {
            Err(_) => Err("no request within 10 s"),
            Ok(length) => match length? {
                0 => return Ok(()),
                length if length > MAX_REQUEST => Err("the request is longer than 4096 bytes"),
                _ => Ok(respond(&request, who).await),
            },
        };
        let (response, go_on) = match response {
            Ok(response) => (response, true),
            Err(problem) => (Response::Error(problem.into()), false),
        };
        timeout(WRITE, write.write_all(&line(&response))).await??;
        if !go_on {
            return Ok(());
        }
    }
}

async fn respond(request: &[u8], who: &impl Answer) -> Response {
    match serde_json::from_slice(request) {
        Ok(request) => who.answer(request).await,
        Err(error) => Response::Error(format!(
            "not a request: {error}. Expected one line such as {{\"command\":\"status\"}}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::client::{AskError, ask};

    struct Echo;

    impl Answer for Echo {
        async fn answer(&self, request: Request) -> Response {
            Response::Error(format!("{request:?}"))
        }
    }

    async fn socket() -> (tempfile::TempDir, PathBuf) {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join("run");
        let socket = Socket::bind(&path).await.unwrap();
        tokio::spawn(async move { socket.serve(Arc::new(Echo)).await });
        (run, path)
    }

    /// What is said to `bytes`, up to the end of the connection.
    async fn say(run: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(run.join(SOCKET)).await.unwrap();
        // The other end may hang up before it has read all of it.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut text = Vec::new();
        let reading = stream.read_to_end(&mut text);
        let _ = timeout(Duration::from_secs(20), reading).await.expect("an end");
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn each_line_gets_one_answer_and_a_bad_one_an_error() {
        let (_run, path) = socket().await;
        let text = say(
            &path,
            b"{\"command\":\"status\"}\nnonsense\n\xff\xfe\n\n{\"command\":\"flows\",\"limit\":3}\n{\"comm",
        )
        .await;
        let lines: Vec<Response> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert_eq!(lines[0], Response::Error("Status".into()), "{text}");
        for bad in [1, 2, 3, 5] {
            assert!(
                matches!(&lines[bad], Response::Error(text) if text.starts_with("not a request")),
                "{text}"
            );
        }
        assert_eq!(lines[4], Response::Error("Flows { limit: Some(3) }".into()), "{text}");
    }

    #[tokio::test]
    async fn a_long_request_is_cut_off() {
        let (_run, path) = socket().await;
        let text = say(&path, &vec![b'x'; MAX_REQUEST * 4]).await;
        // The rest of it may reset the connection before the answer is read.
        assert!(text.is_empty() || text.contains("longer than 4096 bytes"), "{text}");
        let padded = format!("{{\"command\":\"status\"}}{}\n", " ".repeat(MAX_REQUEST - 21));
        assert_eq!(padded.len(), MAX_REQUEST);
        assert!(say(&path, padded.as_bytes()).await.contains("Status"));
        assert!(say(&path, b"{}\n").await.contains("not a request"), "still answers");
    }

    #[tokio::test]
    async fn too_many_at_once_are_told_so() {
        let (_run, path) = socket().await;
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = UnixStream::connect(path.join(SOCKET)).await.unwrap();
            // An answer shows that it has its place.
            stream.write_all(b"{}\n").await.unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            held.push(stream);
        }
        let error = ask(&path, &Request::Status {}).await;
        assert!(
            matches!(&error, Ok(Response::Error(text)) if text.contains("too many")),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn the_socket_is_roots_alone_and_never_taken_from_a_living_agent() {
        let (_run, path) = socket().await;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path.join(SOCKET)), 0o600);
        assert_eq!(mode(&path), 0o700);
        assert!(matches!(Socket::bind(&path).await, Err(SocketError::InUse { .. })));
        let response = ask(&path, &Request::Status {}).await.unwrap();
        assert_eq!(response, Response::Error("Status".into()));
    }

    #[tokio::test]
    async fn what_a_killed_agent_left_is_replaced() {
        let run = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(run.path().join(SOCKET)).unwrap());
        let socket = Socket::bind(run.path()).await.unwrap();
        drop(socket);
        assert!(!run.path().join(SOCKET).exists());
        let error = ask(run.path(), &Request::Status {}).await.unwrap_err();
        assert!(matches!(error, AskError::NotRunning { .. }), "{error}");
        assert!(error.to_string().contains("anteroom-agent run"), "{error}");
    }
}
