//! Which key exchanges a TLS handshake may use.
//!
//! What is recorded today must stay closed to a quantum computer, so a handshake is hybrid: X25519MLKEM768, which holds
//! as long as either of its halves does. A classic one is refused, unless a setting of the person in charge allows it.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::{NamedGroup, PeerIncompatible};

/// Why a handshake failed and what to do, for whoever connects.
pub const NOT_THERE: &str = "the other end has no post-quantum key exchange (X25519MLKEM768), and this end takes no \
    other, or what is recorded today could be read one day: update the program there";

/// Why a handshake failed and what to do, for whoever listens.
pub const NOT_OFFERED: &str = "it offers no post-quantum key exchange (X25519MLKEM768), and this end takes no other, \
    or what is recorded today could be read one day: update the program there";

/// Which key exchanges are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyExchange {
    /// X25519MLKEM768 and nothing else.
    #[default]
    Hybrid,
    /// Classic ones too, where the other end has nothing better: as long as whoever listens looks at what it offers,
    /// since TLS goes by the order of whoever connects.
    ClassicToo,
}

impl KeyExchange {
    /// [`KeyExchange::ClassicToo`] if `allow_classic`.
    #[must_use]
    pub const fn allowing_classic(allow_classic: bool) -> Self {
        if allow_classic { Self::ClassicToo } else { Self::Hybrid }
    }

    /// Cryptography for TLS with these key exchanges, the hybrid one first: that is what whoever connects prefers. Whoever
    /// listens goes by the other end's order.
    #[must_use]
    pub fn provider(self) -> Arc<CryptoProvider> {
        let mut provider = aws_lc_rs::default_provider();
        let mut groups: Vec<&'static dyn SupportedKxGroup> =
            vec![aws_lc_rs::kx_group::X25519MLKEM768];
        if self == Self::ClassicToo {
            let rest = provider.kx_groups.drain(..);
            groups.extend(rest.filter(|group| group.name() != NamedGroup::X25519MLKEM768));
        }
        provider.kx_groups = groups;
        Arc::new(provider)
    }
}

/// Whether whoever listens refused a handshake because there is no key exchange in common.
#[must_use]
pub fn refused_as_listener(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon))
}

/// Whether the other end refused a handshake because there is no key exchange in common, as far as whoever connects
/// is told: "handshake failure" is all that TLS says.
#[must_use]
pub fn refused_as_client(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(exchange: KeyExchange) -> Vec<NamedGroup> {
        exchange.provider().kx_groups.iter().map(|group| group.name()).collect()
    }

    #[test]
    fn hybrid_is_alone_unless_classic_is_allowed_and_first_even_then() {
        assert_eq!(names(KeyExchange::default()), [NamedGroup::X25519MLKEM768]);
        let all = names(KeyExchange::allowing_classic(true));
        assert_eq!(all.first(), Some(&NamedGroup::X25519MLKEM768));
        assert!(
            all.contains(&NamedGroup::X25519) && all.contains(&NamedGroup::secp256r1),
            "{all:?}"
        );
        assert_eq!(all.iter().filter(|name| **name == NamedGroup::X25519MLKEM768).count(), 1);
    }

    #[test]
    fn a_listeners_reason_isnt_taken_for_a_clients() {
        let error = rustls::Error::from(PeerIncompatible::NoKxGroupsInCommon);
        assert!(refused_as_listener(&error) && !refused_as_client(&error));
    }
}
