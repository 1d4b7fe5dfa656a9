//! Connects to the first of several addresses that answers with a known key: all are tried, a little apart.

use std::net::SocketAddr;
use std::time::Duration;

use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_transport::dial;
use anteroom_transport::endpoint::TransportError;
use anteroom_transport::link::{Carrier, Link};
use anteroom_transport::tls::Protocol;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::text::plain;

/// How long one address is ahead of the next.
const APART: Duration = Duration::from_millis(250);
/// How long a name may take to become addresses.
const RESOLVE: Duration = Duration::from_secs(3);
/// Most addresses of a name that are tried.
const MOST_OF_A_NAME: usize = 8;

/// Who connects, and to whom.
#[derive(Clone)]
pub(crate) struct Search {
    pub(crate) identity: IdentityKey,
    /// The keys that it may have, of which it must prove one.
    pub(crate) keys: Vec<PublicKey>,
    pub(crate) protocol: Protocol,
    /// What is tried first at each address; the other way is where that has no answer.
    pub(crate) first: Carrier,
}

/// What came of an address.
#[derive(Debug)]
pub(crate) struct Failed {
    /// With the address.
    pub(crate) text: String,
    /// Who answered there, where it was somebody else.
    pub(crate) wrong: Option<(SocketAddr, PublicKey)>,
}

impl From<String> for Failed {
    fn from(text: String) -> Self {
        Self { text, wrong: None }
    }
}

type Found = Result<(Link, SocketAddr), Failed>;

impl Search {
    /// A connection and where it leads. `last` is where one led last: it is ahead of all others. All failures where there is none.
    pub(crate) async fn among(
        &self,
        addresses: &[String],
        last: Option<SocketAddr>,
    ) -> Result<(Link, SocketAddr), Vec<Failed>> {
        let mut attempts: JoinSet<Found> = JoinSet::new();
        let mut places = 0_u32..;
        let mut wait = || APART * places.next().unwrap_or_default();
        if let Some(last) = last {
            let (search, wait) = (self.clone(), wait());
            attempts.spawn(async move { search.at(last, wait).await });
        }
        let lasts = last.map(|last| last.to_string());
        for address in addresses.iter().filter(|address| lasts.as_ref() != Some(address)) {
            let (search, address, wait) = (self.clone(), address.clone(), wait());
            attempts.spawn(async move {
                sleep(wait).await;
                search.named(&address, last).await
            });
        }
        first(attempts).await
    }

    /// Connects to the first of a name's addresses that answers, `tried` left out.
    async fn named(&self, address: &str, tried: Option<SocketAddr>) -> Found {
        let resolved = match timeout(RESOLVE, tokio::net::lookup_host(address)).await {
            Ok(Ok(resolved)) => resolved,
            Ok(Err(error)) => return Err(format!("{address}: {error}").into()),
            Err(_) => return Err(format!("{address}: its name isn't resolved within 3 s").into()),
        };
        let others = resolved.filter(|resolved| Some(*resolved) != tried).take(MOST_OF_A_NAME);
        let mut attempts: JoinSet<Found> = JoinSet::new();
        for (place, resolved) in (0..).zip(others) {
            let (search, address) = (self.clone(), address.to_owned());
            attempts.spawn(async move {
                let found = search.at(resolved, APART * place).await;
                found.map_err(|failed| failed.of(&address, resolved))
            });
        }
        let failed = match first(attempts).await {
            Ok(found) => return Ok(found),
            Err(failed) => failed,
        };
        let wrong = failed.iter().find_map(|failed| failed.wrong);
        let texts: Vec<String> = failed.into_iter().map(|failed| failed.text).collect();
        let text = if texts.is_empty() {
            format!("{address}: it has no other address")
        } else {
            texts.join("; ")
        };
        Err(Failed { text, wrong })
    }

    async fn at(&self, address: SocketAddr, wait: Duration) -> Found {
        sleep(wait).await;
        let Self { identity, keys, protocol, first } = self;
        let connected = dial::either(*first, address, identity, keys, *protocol).await;
        connected.map(|link| (link, address)).map_err(|error| Failed {
            wrong: match error {
                TransportError::WrongKey { address, key } => Some((address, key)),
                _ => None,
            },
            text: plain(&error.to_string()),
        })
    }
}

impl Failed {
    /// With the name that was looked up, where it differs from the address.
    fn of(mut self, name: &str, resolved: SocketAddr) -> Self {
        if name != resolved.to_string() {
            self.text = format!("{name}: {}", self.text);
        }
        self
    }
}

/// The first that is found, or all failures as they came.
async fn first(mut attempts: JoinSet<Found>) -> Result<(Link, SocketAddr), Vec<Failed>> {
    let mut failures = Vec::new();
    while let Some(joined) = attempts.join_next().await {
        match joined {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(failed)) => failures.push(failed),
            Err(error) => failures.push(error.to_string().into()),
        }
    }
    Err(failures)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use anteroom_transport::endpoint;

    use super::*;
    use crate::testkit::nowhere;

    /// Longer than it takes, and shorter than if one address waited for the other's silence.
    const DEADLINE: Duration = Duration::from_secs(60);

    fn search(server: &IdentityKey) -> Search {
        Search {
            identity: IdentityKey::from_seed(&[3; 32]),
            keys: vec![server.public()],
            protocol: Protocol::Control,
            first: Carrier::Quic,
        }
    }

    /// A port that takes everything and answers nothing.
    fn silent() -> (UdpSocket, TcpListener, SocketAddr) {
        loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let address = udp.local_addr().unwrap();
            if let Ok(tcp) = TcpListener::bind(address) {
                return (udp, tcp, address);
            }
        }
    }

    #[tokio::test]
    async fn addresses_that_say_nothing_dont_keep_it_from_one_that_answers() {
        let server = IdentityKey::from_seed(&[2; 32]);
        let endpoint = endpoint::listen("127.0.0.1:0".parse().unwrap(), &server).unwrap();
        let right = endpoint.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Some(incoming) = endpoint.accept().await {
                connections.extend(incoming.await.ok());
            }
        });
        let silent: Vec<_> = (0..15).map(|_| silent()).collect();
        let mut addresses: Vec<String> = silent.iter().map(|(_, _, at)| at.to_string()).collect();
        let last = silent[0].2;
        addresses.push(right.to_string());
        for last in [None, Some(last), Some(right)] {
            let found = timeout(DEADLINE, search(&server).among(&addresses, last)).await;
            let (_link, found) = found.expect("in time").unwrap();
            assert_eq!(found, right, "{last:?}");
        }
        // The one before is enough, whatever has become of its name.
        let (_link, found) =
            search(&server).among(&["nonsense".into()], Some(right)).await.unwrap();
        assert_eq!(found, right);
        accepting.abort();
    }

    #[tokio::test]
    async fn each_failure_is_told_and_each_address_is_tried_once() {
        let server = IdentityKey::from_seed(&[2; 32]);
        let dead = nowhere();
        let addresses = [dead.to_string(), "nonsense".to_owned()];
        let failed = search(&server).among(&addresses, Some(dead)).await.unwrap_err();
        let texts: Vec<&str> = failed.iter().map(|failed| failed.text.as_str()).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        for part in [dead.to_string(), "nonsense".into()] {
            assert!(texts.iter().any(|text| text.contains(&part)), "{part}: {texts:?}");
        }
        assert!(search(&server).among(&[], None).await.unwrap_err().is_empty());
    }
}
