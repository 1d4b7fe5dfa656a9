//! Finds a controller: all addresses are tried, a little apart, and the first right key that answers wins.

use std::net::SocketAddr;

use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::key::{Fingerprint, IdentityKey, PublicKey};
use anteroom_transport::endpoint::Link;
use anteroom_transport::link::Carrier;
use anteroom_transport::tls::Protocol;

use crate::seek::Search;
use crate::state::Enrolment;

/// Most addresses that are tried in one round.
const MOST: usize = 32;

/// Where controllers may be, and by which keys they are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidates {
    addresses: Vec<String>,
    keys: Vec<PublicKey>,
}

impl Candidates {
    pub(crate) fn new(addresses: &[String], keys: Vec<PublicKey>) -> Self {
        let mut unique: Vec<String> = Vec::new();
        for address in addresses {
            if !unique.contains(address) && unique.len() < MOST {
                unique.push(address.clone());
            }
        }
        Self { addresses: unique, keys }
    }

    /// Of an enrolled gateway: what the newest authority document names, and then the addresses in the invite.
    /// Without a chain, the invite's controller.
    pub(crate) fn of(enrolment: &Enrolment, chain: Option<&AuthorityChain>) -> Self {
        let Some(newest) = chain.map(AuthorityChain::newest) else {
            return Self::new(&enrolment.addresses, vec![enrolment.controller]);
        };
        let mut addresses: Vec<String> = newest
            .controllers
            .iter()
            .flat_map(|controller| controller.addresses.iter().cloned())
            .collect();
        addresses.extend(enrolment.addresses.iter().cloned());
        Self::new(&addresses, newest.controller_keys())
    }
}

/// Nobody was found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Somebody answered, but not a controller that is known.
    #[error(
        "whoever answers at {address} has the key {}, but the controller's is {}: {}",
        key.fingerprint(), list(expected),
        "something else answers there, or somebody stands between"
    )]
    WrongKey { address: SocketAddr, key: PublicKey, expected: Vec<Fingerprint> },
    /// Nobody answered, or not in this protocol.
    #[error("no controller answers: {}", failures.join("; "))]
    Unreachable { failures: Vec<String> },
}

fn list(fingerprints: &[Fingerprint]) -> String {
    fingerprints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// A connection and where it leads. At each address `first` is tried first, and the other way where it has no answer.
pub(crate) async fn dial(
    candidates: &Candidates,
    identity: &IdentityKey,
    first: Carrier,
) -> Result<(Link, SocketAddr), DialError> {
    let Candidates { addresses, keys } = candidates;
    let search = Search {
        identity: identity.clone(),
        keys: keys.clone(),
        protocol: Protocol::Control,
        first,
    };
    let failed = match search.among(addresses, None).await {
        Ok(found) => return Ok(found),
        Err(failed) => failed,
    };
    Err(match failed.iter().find_map(|failed| failed.wrong) {
        Some((address, key)) => {
            let expected = keys.iter().map(PublicKey::fingerprint).collect();
            DialError::WrongKey { address, key, expected }
        }
        None if failed.is_empty() => {
            DialError::Unreachable { failures: vec!["no address is known".into()] }
        }
        None => {
            let failures = failed.into_iter().map(|failed| failed.text).collect();
            DialError::Unreachable { failures }
        }
    })
}

#[cfg(test)]
mod tests {
    use anteroom_transport::endpoint;

    use super::*;
    use crate::testkit::{Organisation, nowhere};

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    async fn listener(seed: u8) -> (quinn::Endpoint, String) {
        let endpoint = endpoint::listen("127.0.0.1:0".parse().unwrap(), &key(seed)).unwrap();
        let address = endpoint.local_addr().unwrap().to_string();
        let accepting = endpoint.clone();
        tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Some(incoming) = accepting.accept().await {
                connections.extend(incoming.await.ok());
            }
        });
        (endpoint, address)
    }

    #[tokio::test]
    async fn a_dead_address_and_a_stranger_dont_keep_it_from_the_right_one() {
        let (_stranger, strange) = listener(1).await;
        let (_controller, right) = listener(2).await;
        let addresses = [nowhere().to_string(), "no.such.host.invalid:1".into(), strange, right];
        let candidates = Candidates::new(&addresses, vec![key(2).public()]);
        let (_link, found) = dial(&candidates, &key(3), Carrier::Quic).await.unwrap();
        assert_eq!(found.to_string(), addresses[3]);
    }

    #[tokio::test]
    async fn a_stranger_is_named_by_fingerprint() {
        let (_stranger, strange) = listener(1).await;
        let candidates = Candidates::new(std::slice::from_ref(&strange), vec![key(2).public()]);
        let error = dial(&candidates, &key(3), Carrier::Quic).await.unwrap_err().to_string();
        for part in [
            strange,
            key(1).public().fingerprint().to_string(),
            key(2).public().fingerprint().to_string(),
        ] {
            assert!(error.contains(&part), "{error}");
        }
    }

    #[tokio::test]
    async fn every_address_that_was_tried_is_named() {
        let addresses = [nowhere().to_string(), "nonsense".to_owned(), nowhere().to_string()];
        let candidates = Candidates::new(&addresses, vec![key(2).public()]);
        let error = dial(&candidates, &key(3), Carrier::Quic).await.unwrap_err().to_string();
        for address in addresses {
            assert!(error.contains(&address), "{error}");
        }
    }

    #[test]
    fn the_authority_comes_first_and_the_invite_is_the_last_resort() {
        let mut organisation = Organisation::new(&["10.0.0.1:1".parse().unwrap()]);
        let enrolment = organisation.enrolment();
        organisation.extend(|next| next.controllers[0].addresses = vec!["10.0.0.2:1".into()]);
        let candidates = Candidates::of(&enrolment, Some(&organisation.followed()));
        assert_eq!(candidates.addresses, ["10.0.0.2:1", "10.0.0.1:1"]);
        let lost = Candidates::of(&enrolment, None);
        assert_eq!(lost, Candidates::new(&enrolment.addresses, vec![enrolment.controller]));
    }
}
