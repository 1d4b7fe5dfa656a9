//! What a gateway asks a relay beside QUIC, on the same port: how the asking socket looks from outside.
//!
//! ```text
//! question: 7 0 0 0 | nonce (8) | zeros (20)
//! answer:   8 0 0 0 | nonce (8) | IPv6 address, or IPv4 mapped into it (16) | port (2) | zeros (2)
//! ```
//!
//! Both are as long as each other, so nobody is sent more than was sent in their name. QUIC sets bit 0x40 of the first
//! byte, WireGuard's messages begin with 1 to 4 and knocks with 5 and 6: all of them can share a port. The answer is a
//! hint and nothing hangs on it: whoever is to be reached there is found by knocks, which carry codes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Length of a question, and of an answer.
pub const LEN: usize = 32;

const QUESTION: u8 = 7;
const ANSWER: u8 = 8;

/// The bit that QUIC sets in the first byte of each datagram, as long as neither end greases it (RFC 9287).
pub const QUIC_BIT: u8 = 0x40;

/// A question that the answer will be known from by `nonce`.
#[must_use]
pub fn question(nonce: u64) -> [u8; LEN] {
    lay(QUESTION, nonce, [0; 18])
}

/// The nonce of a question, if it is one.
#[must_use]
pub fn parse_question(datagram: &[u8]) -> Option<u64> {
    let (nonce, rest) = parse(datagram, QUESTION)?;
    (*rest == [0; 18]).then_some(nonce)
}

/// The answer to a question that came from `from`.
#[must_use]
pub fn answer(nonce: u64, from: SocketAddr) -> [u8; LEN] {
    let address = match from.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut body = [0; 18];
    body[..16].copy_from_slice(&address.octets());
    body[16..].copy_from_slice(&from.port().to_be_bytes());
    lay(ANSWER, nonce, body)
}

/// The nonce of an answer, and what it says, if it is one.
#[must_use]
pub fn parse_answer(datagram: &[u8]) -> Option<(u64, SocketAddr)> {
    let (nonce, body) = parse(datagram, ANSWER)?;
    let (address, port) = body.split_first_chunk::<16>()?;
    let address = Ipv6Addr::from(*address).to_canonical();
    let port = u16::from_be_bytes(*port.first_chunk()?);
    (port != 0).then_some((nonce, SocketAddr::new(address, port)))
}

fn lay(kind: u8, nonce: u64, body: [u8; 18]) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[0] = kind;
    bytes[4..12].copy_from_slice(&nonce.to_le_bytes());
    bytes[12..30].copy_from_slice(&body);
    bytes
}

fn parse(datagram: &[u8], kind: u8) -> Option<(u64, &[u8; 18])> {
    let datagram: &[u8; LEN] = datagram.try_into().ok()?;
    let (head, rest) = datagram.split_first_chunk::<4>()?;
    let (nonce, rest) = rest.split_first_chunk::<8>()?;
    let (body, padding) = rest.split_first_chunk::<18>()?;
    let fits = *head == [kind, 0, 0, 0] && *padding == [0, 0];
    fits.then_some((u64::from_le_bytes(*nonce), body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_answer_says_where_the_question_came_from(
            nonce: u64,
            address: IpAddr,
            port in 1_u16..,
        ) {
            let from = SocketAddr::new(address.to_canonical(), port);
            let question = question(nonce);
            prop_assert_eq!(parse_question(&question), Some(nonce));
            prop_assert_eq!(parse_answer(&question), None);
            let answer = answer(nonce, from);
            prop_assert_eq!(parse_answer(&answer), Some((nonce, from)));
            prop_assert_eq!(parse_question(&answer), None);
            prop_assert_eq!(answer.len(), question.len());
            prop_assert_eq!((question[0] | answer[0]) & QUIC_BIT, 0);
            for len in 0..LEN {
                prop_assert_eq!(parse_question(&question[..len]), None);
                prop_assert_eq!(parse_answer(&answer[..len]), None);
            }
        }

        #[test]
        fn anything_at_all_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(nonce) = parse_question(&bytes) {
                prop_assert_eq!(&bytes[..], &question(nonce)[..]);
            }
            if let Some((nonce, from)) = parse_answer(&bytes) {
                prop_assert_eq!(parse_answer(&answer(nonce, from)), Some((nonce, from)));
            }
        }
    }

    #[test]
    fn an_answer_without_a_port_says_nothing() {
        assert_eq!(parse_answer(&answer(1, ([192, 0, 2, 1], 0).into())), None);
    }
}
