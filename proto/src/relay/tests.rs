use proptest::prelude::*;

use super::packet::{Datagram, PeerNumber, SEALED_LEN, parse};
use super::pass::{MAX_LIFETIME, MAX_PEERS, PassError};
use super::*;
use crate::authority::{Authority, Controller, Operator};
use crate::cbor;
use crate::cose::{Document, SignatureError};
use crate::key::{Hash, IdentityKey};
use crate::time::UnixMillis;

const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);

fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

fn gateway(n: u16) -> GatewayId {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    GatewayId::from_bytes(bytes)
}

fn authority() -> Authority {
    Authority {
        organisation: ORGANISATION,
        number: 3,
        previous: Hash::ZERO,
        operators: vec![Operator { name: "ana".parse().unwrap(), key: key(1).public() }],
        threshold: 1,
        controllers: vec![Controller { key: key(100).public(), addresses: vec!["c:1".into()] }],
        relays: vec![],
        recovery: key(200).public(),
        incarnation: 5,
        root: None,
    }
}

fn pass() -> RelayPass {
    RelayPass {
        organisation: ORGANISATION,
        gateway: gateway(7),
        identity: key(7).public(),
        number: PassNumber { incarnation: 5, sequence: 9 },
        peers: vec![gateway(1), gateway(8)],
        issued_at: UnixMillis(1_000),
        lifetime: 60,
    }
}

fn verified(pass: &RelayPass, by: u8, shown_by: u8) -> Result<RelayPass, PassError> {
    let signed = Signed::sign(pass, &key(by));
    RelayPass::verify(&signed, &authority(), key(shown_by).public()).map(|pass| (*pass).clone())
}

#[test]
fn a_controllers_pass_is_good_for_whom_it_names() {
    let taken = verified(&pass(), 100, 7).unwrap();
    assert!(taken.names(gateway(8)) && !taken.names(gateway(7)) && !taken.names(gateway(9)));
    assert_eq!(taken.stale_at(), UnixMillis(61_000));
    let earlier = PassNumber { incarnation: 4, sequence: 900 };
    assert!(earlier < taken.number);
    assert!(verified(&RelayPass { number: earlier, ..pass() }, 100, 7).is_ok());
}

#[test]
fn nobody_else_signs_a_pass_and_nobody_else_shows_it() {
    // An operator, a former controller, the recovery key, the gateway itself.
    for by in [1, 101, 200, 7] {
        let error = verified(&pass(), by, 7).unwrap_err();
        assert!(
            matches!(&error, PassError::Signature(SignatureError::Signer { .. })),
            "key {by}: {error}"
        );
    }
    assert!(matches!(verified(&pass(), 100, 8), Err(PassError::Identity { .. })));
    let other = RelayPass { organisation: OrganisationId::from_bytes([2; 16]), ..pass() };
    let error = verified(&other, 100, 7).unwrap_err();
    assert!(matches!(&error, PassError::Signature(SignatureError::Organisation { .. })), "{error}");
}

#[test]
fn what_cant_be_is_refused() {
    let with = |peers: Vec<GatewayId>| RelayPass { peers, ..pass() };
    for odd in [
        with(vec![gateway(8), gateway(1)]),
        with(vec![gateway(8), gateway(8)]),
        with(vec![gateway(7)]),
        with((0..=u16::try_from(MAX_PEERS).unwrap()).map(|n| gateway(n + 100)).collect()),
        RelayPass { lifetime: 0, ..pass() },
        RelayPass { lifetime: MAX_LIFETIME + 1, ..pass() },
    ] {
        let found = verified(&odd, 100, 7);
        assert!(found.is_err(), "{} peers, {} s", odd.peers.len(), odd.lifetime);
    }
    let ahead = PassNumber { incarnation: 6, sequence: 1 };
    let found = verified(&RelayPass { number: ahead, ..pass() }, 100, 7);
    assert!(matches!(found, Err(PassError::Unannounced { found: 6, held: 5, .. })), "{found:?}");
    let ever = RelayPass { issued_at: UnixMillis(u64::MAX), ..pass() };
    assert_eq!(ever.stale_at(), UnixMillis(u64::MAX));
}

#[test]
fn the_largest_pass_and_the_largest_answer_fit_their_messages() {
    let peers = (0..u16::try_from(MAX_PEERS).unwrap()).map(|n| gateway(n + 8)).collect();
    let number = PassNumber { incarnation: 5, sequence: u64::MAX };
    let issued_at = UnixMillis(u64::MAX);
    let largest = RelayPass { peers, number, issued_at, lifetime: MAX_LIFETIME, ..pass() };
    let signed = Signed::sign(&largest, &key(100));
    let len = signed.as_bytes().len();
    assert!(len <= RelayPass::MAX_LEN, "{len} bytes");
    assert!(RelayPass::verify(&signed, &authority(), key(7).public()).is_ok());
    let hello = Hello {
        versions: (u16::MAX, u16::MAX),
        organisation: ORGANISATION,
        authority: u64::MAX,
        pass: Box::new(signed),
    };
    let len = cbor::encode(&ToRelay::Hello(Box::new(hello))).len();
    assert!(len <= MAX_TO_RELAY, "{len} bytes");
    let number = PeerNumber::new(PeerNumber::COUNT - 1).unwrap();
    let state = PeerState { gateway: gateway(u16::MAX), number, room: Some(u16::MAX) };
    let len = cbor::encode(&FromRelay::Peers(vec![state; MAX_STATES])).len();
    assert!(len <= MAX_FROM_RELAY, "{len} bytes");
}

#[test]
fn numbers_beyond_the_last_are_no_numbers() {
    let state = |number: u16| {
        // What a careless relay would write.
        let mut bytes = cbor::encode(&PeerState {
            gateway: gateway(1),
            number: PeerNumber::new(0x1234).unwrap(),
            room: None,
        });
        let at = bytes.windows(2).position(|two| two == [0x12, 0x34]).unwrap();
        bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
        cbor::decode::<PeerState>(&bytes, 1000)
    };
    assert!(state(PeerNumber::COUNT - 1).is_ok());
    assert!(state(PeerNumber::COUNT).is_err() && state(u16::MAX).is_err());
}

#[test]
fn datagrams_are_told_apart() {
    assert_eq!(parse(&packet::probe([7; 8])), Some(Datagram::Probe([7; 8])));
    assert_eq!(parse(&packet::answer([7; 8])), Some(Datagram::Answer([7; 8])));
    for short in [&[][..], &[0], &[0xff, 0xff], &[0xff, 0xff, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(parse(short), None, "{short:?}");
    }
    let peer = PeerNumber::new(513).unwrap();
    for (sealed, good) in [
        ([&[4, 0, 0, 0][..], &[9; 28]].concat(), true),
        ([&[4, 0, 0, 0][..], &[9; 27]].concat(), false),
        ([&[1, 0, 0, 0][..], &[9; 2044]].concat(), true),
        ([&[1, 0, 0, 0][..], &[9; 2045]].concat(), false),
        ([&[0, 0, 0, 0][..], &[9; 60]].concat(), false),
        ([&[5, 0, 0, 0][..], &[9; 60]].concat(), false),
        ([&[4, 0, 0, 1][..], &[9; 60]].concat(), false),
        // An IP packet that somebody forgot to seal.
        ([&[0x45, 0, 0, 60][..], &[9; 60]].concat(), false),
    ] {
        let bytes = [&packet::header(peer, true)[..], &sealed].concat();
        let expected = Datagram::Packet { peer, bulk: true, sealed: &sealed };
        assert_eq!(parse(&bytes), good.then_some(expected), "{} bytes", sealed.len());
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(number in 0..PeerNumber::COUNT, bulk: bool, kind in 1u8..=4, len in 0usize..3000) {
        let peer = PeerNumber::new(number).unwrap();
        let mut sealed = vec![0; len];
        if let Some(first) = sealed.first_mut() { *first = kind; }
        let bytes = [&packet::header(peer, bulk)[..], &sealed].concat();
        let expected = SEALED_LEN.contains(&len).then_some(Datagram::Packet { peer, bulk, sealed: &sealed });
        prop_assert_eq!(parse(&bytes), expected);
    }

    #[test]
    fn anything_at_all_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = parse(&bytes);
        let _ = cbor::decode::<ToRelay>(&bytes, 1000);
        let _ = cbor::decode::<FromRelay>(&bytes, 1000);
        let signed = Signed::<RelayPass>::from_bytes(bytes);
        prop_assert!(RelayPass::verify(&signed, &authority(), key(7).public()).is_err());
    }

    #[test]
    fn an_altered_pass_never_holds(at in 0usize..400, bit in 0u8..8) {
        let mut bytes = Signed::sign(&pass(), &key(100)).as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let altered = Signed::<RelayPass>::from_bytes(bytes);
        prop_assert!(RelayPass::verify(&altered, &authority(), key(7).public()).is_err());
    }
}
