//! HTTPS to the controller: one pinned certificate, bounded time and size, errors that say what to do.

mod tls;

use std::io::Read;
use std::time::Duration;

use anteroom_proto::api::ApiError;
use anteroom_proto::key::Hash;
use anteroom_transport::exchange::{self, KeyExchange};
use reqwest::blocking::{Client as HttpClient, RequestBuilder};
use reqwest::{Method, StatusCode, Url, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for a whole answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer that is read, in bytes: the largest model in base64, with room.
const MAX_ANSWER: u64 = 128 * 1024 * 1024;

/// What can go wrong between the operator's machine and the controller.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address can't be used.
    #[error("{address:?} is no controller's address: write it as https://HOST:PORT")]
    Address {
        /// What was given.
        address: String,
    },
    /// TLS can't be set up on this machine.
    #[error("can't set up HTTPS on this machine: {0}")]
    Setup(String),
    /// Nobody answers.
    #[error(
        "can't reach the controller at {address}: {problem}. Check that this machine has a route to it, that `anteroom-controller run` is running there, and that no firewall stops the port"
    )]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// What the system says.
        problem: String,
    },
    /// The controller has no post-quantum key exchange.
    #[error(
        "{address}: no handshake: {}. Somebody on the way can feign that: only if you know that this controller is older, --allow-classic takes it all the same. Nothing was sent",
        exchange::NOT_THERE
    )]
    Classic {
        /// Where.
        address: String,
    },
    /// Somebody answers who isn't the pinned controller.
    #[error(
        "{address} shows another certificate than the one that was pinned: someone may be posing as the controller. Nothing was sent.\n  pinned: {pinned}\n  shown:  {shown}\nIf the controller was set up anew on purpose, compare the shown line with the one on its console and log in again with another --home"
    )]
    Impostor {
        /// Where.
        address: String,
        /// The certificate that is trusted.
        pinned: Hash,
        /// The certificate that was shown.
        shown: Hash,
    },
    /// The controller took too long.
    #[error(
        "the controller at {address} gave no answer to {path} in time. Whether it acted is unknown: look with `anteroom status` before trying again"
    )]
    TimedOut {
        /// Where.
        address: String,
        /// Which request.
        path: String,
    },
    /// The connection broke.
    #[error(
        "the connection to the controller at {address} broke during {path}: {problem}. Whether it acted is unknown: look with `anteroom status` before trying again"
    )]
    Broken {
        /// Where.
        address: String,
        /// Which request.
        path: String,
        /// What the system says.
        problem: String,
    },
    /// The controller says no.
    #[error("{error}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        error: ApiError,
    },
    /// The answer isn't what this version expects.
    #[error(
        "can't read the controller's answer to {path} (HTTP {status}): {problem}. Are `anteroom` and `anteroom-controller` of the same version?"
    )]
    Answer {
        /// Which request.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        problem: String,
    },
}

impl ClientError {
    /// Whether the controller refused with this HTTP status.
    #[must_use]
    pub const fn has_status(&self, wanted: u16) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }
}

/// A way to one controller.
#[derive(Debug)]
pub struct Client {
    addresses: Vec<Url>,
    pinned: Hash,
    stranger: tls::Stranger,
    http: HttpClient,
}

impl Client {
    /// A client for the controller at `addresses` (tried in their order) that shows the certificate with the
    /// SHA-256 `pinned` and takes one of these key exchanges. Nothing is sent yet.
    ///
    /// # Errors
    /// When an address isn't an `https` one, or TLS can't be set up.
    pub fn new(
        addresses: &[String],
        pinned: Hash,
        exchange: KeyExchange,
    ) -> Result<Self, ClientError> {
        let parsed =
            addresses.iter().map(|text| parse_address(text)).collect::<Result<Vec<_>, _>>()?;
        if parsed.is_empty() {
            return Err(ClientError::Address { address: String::new() });
        }
        let setup = |problem: String| ClientError::Setup(problem);
        let stranger = tls::Stranger::default();
        let tls = tls::config(pinned, stranger.clone(), exchange)
            .map_err(|error| setup(error.to_string()))?;
        let http = HttpClient::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| setup(chain(&error)))?;
        Ok(Self { addresses: parsed, pinned, stranger, http })
    }

    /// The answer to a GET of `path` with `query`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
        token: Option<&str>,
    ) -> Result<T, ClientError> {
        let body = self.send(&Method::GET, path, token, &|request| request.query(query))?;
        read_json(path, &body)
    }

    /// The answer to a POST of `body`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        token: Option<&str>,
    ) -> Result<T, ClientError> {
        let answer = self.send(&Method::POST, path, token, &|request| request.json(body))?;
        read_json(path, &answer)
    }

    /// A POST of `body` whose answer is empty.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post_silent(
        &self,
        path: &str,
        body: &impl Serialize,
        token: Option<&str>,
    ) -> Result<(), ClientError> {
        self.send(&Method::POST, path, token, &|request| request.json(body)).map(drop)
    }

    fn send(
        &self,
        method: &Method,
        path: &str,
        token: Option<&str>,
        fill: &dyn Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer, ClientError> {
        let mut last = None;
        for address in &self.addresses {
            match self.send_to(address, method, path, token, fill) {
                // Nothing was sent yet, so that the next address may be tried whatever the request does.
                Err(error @ ClientError::Unreachable { .. }) => {
                    tracing::debug!(%error, "trying the next address");
                    last = Some(error);
                }
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| ClientError::Address { address: String::new() }))
    }

    fn send_to(
        &self,
        address: &Url,
        method: &Method,
        path: &str,
        token: Option<&str>,
        fill: &dyn Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer, ClientError> {
        let place = address.as_str().trim_end_matches('/').to_owned();
        let url =
            address.join(path).map_err(|_| ClientError::Address { address: place.clone() })?;
        let mut request = fill(self.http.request(method.clone(), url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let failed = |error: &reqwest::Error| self.explain(&place, path, error);
        let response = request.send().map_err(|error| failed(&error))?;
        let status = response.status();
        let mut body = Vec::new();
        response.take(MAX_ANSWER + 1).read_to_end(&mut body).map_err(|error| {
            let (address, path) = (place.clone(), path.to_owned());
            ClientError::Broken { address, path, problem: error.to_string() }
        })?;
        if body.len() as u64 > MAX_ANSWER {
            let problem = format!("it is longer than {MAX_ANSWER} bytes");
            return Err(ClientError::Answer {
                path: path.into(),
                status: status.as_u16(),
                problem,
            });
        }
        if status.is_success() {
            Ok(Answer { status, body })
        } else {
            Err(refusal(path, status, &body))
        }
    }

    fn explain(&self, address: &str, path: &str, error: &reqwest::Error) -> ClientError {
        let (address, path) = (address.to_owned(), path.to_owned());
        if let Some(shown) = self.stranger.take() {
            return ClientError::Impostor { address, pinned: self.pinned, shown };
        }
        if tls::is_classic(error) {
            return ClientError::Classic { address };
        }
        let problem = chain(error);
        if error.is_connect() {
            ClientError::Unreachable { address, problem }
        } else if error.is_timeout() {
            ClientError::TimedOut { address, path }
        } else {
            ClientError::Broken { address, path, problem }
        }
    }
}

struct Answer {
    status: StatusCode,
    body: Vec<u8>,
}

fn read_json<T: DeserializeOwned>(path: &str, answer: &Answer) -> Result<T, ClientError> {
    serde_json::from_slice(&answer.body).map_err(|error| ClientError::Answer {
        path: path.into(),
        status: answer.status.as_u16(),
        problem: error.to_string(),
    })
}

fn refusal(path: &str, status: StatusCode, body: &[u8]) -> ClientError {
    let status = status.as_u16();
    match serde_json::from_slice::<ApiError>(body) {
        Ok(error) => ClientError::Refused { status, error },
        Err(_) => ClientError::Answer {
            path: path.into(),
            status,
            problem: "it refused without a reason that this program understands".into(),
        },
    }
}

/// The controller's address in `text`.
///
/// # Errors
/// [`ClientError::Address`] where it isn't `https://HOST:PORT`.
pub fn parse_address(text: &str) -> Result<Url, ClientError> {
    Url::parse(text)
        .ok()
        .filter(|url| url.scheme() == "https" && url.has_host() && url.path() == "/")
        .filter(|url| url.query().is_none() && url.username().is_empty())
        .ok_or_else(|| ClientError::Address { address: text.chars().take(200).collect() })
}

/// The innermost cause, which is what the system said.
fn chain(error: &reqwest::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    if error.is_timeout() && error.is_connect() {
        return format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests;
