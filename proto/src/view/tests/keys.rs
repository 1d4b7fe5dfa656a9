//! Tunnel keys that were replaced, shown again.

use super::*;

fn binding(serial: u64) -> TunnelKeyBinding {
    let byte = u8::try_from(serial % 200).unwrap();
    TunnelKeyBinding {
        organisation: ORG,
        gateway: PEER,
        x25519: TunnelSecret::from_bytes([byte + 1; 32]).public(),
        ml_kem_768: None,
        serial,
        not_before: UnixMillis(0),
    }
}

/// The serials that are in use once a view with these has come, and how many were left out.
fn offer(known: &mut KnownKeys, serials: &[u64]) -> (Vec<u64>, usize) {
    let mut view = Parts::default().verify().unwrap();
    view.peers[0].keys = serials.iter().map(|serial| binding(*serial)).collect();
    let left_out = known.hold(&mut view);
    assert_eq!(view.left_out, left_out);
    (view.peers[0].keys.iter().map(|key| key.serial).collect(), left_out.len())
}

#[test]
fn a_key_that_was_replaced_never_comes_back() {
    let mut known = KnownKeys::default();
    assert_eq!(offer(&mut known, &[5]), (vec![5], 0));
    assert_eq!(offer(&mut known, &[5]), (vec![5], 0), "again");
    assert_eq!(offer(&mut known, &[9]), (vec![9], 0));
    assert_eq!(offer(&mut known, &[5]), (vec![9], 1), "the newer one stays in use");
    assert_eq!(offer(&mut known, &[8, 7]), (vec![9], 2));
    assert_eq!(offer(&mut known, &[12, 5]), (vec![12], 1), "nor beside another");
    assert_eq!(offer(&mut known, &[9]), (vec![12], 1));
    assert_eq!(offer(&mut known, &[]), (vec![12], 0), "one that knows none cuts nobody off");
    assert_eq!(offer(&mut known, &[5]), (vec![12], 1), "and makes nobody forget");
    let read: KnownKeys = cbor::decode(&cbor::encode(&known), 1 << 16).unwrap();
    assert_eq!(read, known);
}

#[test]
fn keys_that_a_gateway_names_together_all_count_until_it_drops_one() {
    let mut known = KnownKeys::default();
    assert_eq!(offer(&mut known, &[5]), (vec![5], 0));
    for _ in 0..3 {
        assert_eq!(offer(&mut known, &[6, 5]), (vec![6, 5], 0));
    }
    assert_eq!(offer(&mut known, &[6]), (vec![6], 0));
    assert_eq!(offer(&mut known, &[6, 5]), (vec![6], 1));
}

#[test]
fn the_newest_key_stays_in_use_where_a_controller_from_a_backup_knows_older_ones_only() {
    let mut known = KnownKeys::default();
    assert_eq!(offer(&mut known, &[5]), (vec![5], 0));
    assert_eq!(offer(&mut known, &[6, 5]), (vec![6, 5], 0));
    // The old one isn't given up yet, so both are in use.
    assert_eq!(offer(&mut known, &[5]), (vec![6, 5], 0));
    assert_eq!(offer(&mut known, &[6]), (vec![6], 0), "the gateway has told it");
    assert_eq!(offer(&mut known, &[5]), (vec![6], 1));
}

#[test]
fn a_key_that_was_left_out_isnt_brought_back() {
    let mut known = KnownKeys::default();
    assert_eq!(offer(&mut known, &[6, 5]), (vec![6, 5], 0));
    // Named by the controller, and left out when the view was verified: two claim it.
    let mut view = Parts::default().verify().unwrap();
    let ends = view.operation.peers.iter_mut().find(|peer| peer.gateway == PEER).unwrap();
    ends.keys = vec![Signed::sign(&binding(6), &stranger())];
    view.peers[0].keys = vec![binding(5)];
    known.hold(&mut view);
    assert_eq!(view.peers[0].keys, [binding(5)]);
}

#[test]
fn a_key_that_was_seen_of_one_peer_is_no_other_ones_while_both_are_there() {
    let mut known = KnownKeys::default();
    assert_eq!(offer(&mut known, &[6, 5]), (vec![6, 5], 0));
    // A controller from a backup knows older keys of the owner, and takes a thief's word.
    let grab = |known: &mut KnownKeys, owner: &[u64], thief: &[u64]| {
        let mut view = Parts::default().verify().unwrap();
        let mut other = view.peers[0].clone();
        other.gateway.identity = stranger().public();
        other.gateway.gateway = GatewayId::from_bytes([12; 16]);
        other.keys = thief.iter().map(|serial| binding(*serial)).collect();
        view.peers[0].keys = owner.iter().map(|serial| binding(*serial)).collect();
        let by_other = Signed::sign(&binding(6), &stranger());
        view.operation.peers.push(crate::operation::PeerOperation {
            gateway: other.gateway.gateway,
            endpoints: vec![],
            keys: vec![by_other],
            quic: None,
        });
        view.peers.push(other);
        let left_out = known.hold(&mut view);
        let serials = |at: usize| view.peers[at].keys.iter().map(|key| key.serial).collect();
        let found: (Vec<u64>, Vec<u64>) = (serials(0), serials(1));
        (found, left_out)
    };
    for _ in 0..2 {
        let (found, left_out) = grab(&mut known, &[5], &[6]);
        assert_eq!(found, (vec![6, 5], vec![]));
        assert!(
            left_out[0].contains("claims") && left_out[0].contains("had before"),
            "{left_out:?}"
        );
    }
    let mut later = known.clone();
    let (found, _) = grab(&mut known, &[5], &[8, 6]);
    assert_eq!(found, (vec![6, 5], vec![8]), "what is its own stays");
    // Once the owner has another, nothing is left to hold on to; and who isn't a peer any more has no say.
    assert_eq!(offer(&mut later, &[9]), (vec![9], 0));
    assert_eq!(grab(&mut later, &[9], &[8, 6]).0, (vec![9], vec![8, 6]));
    let mut view = Parts::default().verify().unwrap();
    view.peers[0].gateway.identity = IdentityKey::from_seed(&[44; 32]).public();
    view.peers[0].keys = vec![binding(9)];
    assert_eq!(later.hold(&mut view), [""; 0], "the same gateway with another identity key");
    assert_eq!(view.peers[0].keys, [binding(9)]);
}

#[test]
fn a_gateway_that_enrolled_anew_counts_anew() {
    let mut known = KnownKeys::default();
    assert_eq!(offer(&mut known, &[50]), (vec![50], 0));
    let mut view = Parts::default().verify().unwrap();
    let gateway = GatewayId::from_bytes([99; 16]);
    view.peers[0].gateway.identity = stranger().public();
    view.peers[0].gateway.gateway = gateway;
    let anew = TunnelKeyBinding { gateway, ..binding(3) };
    view.peers[0].keys = vec![anew.clone()];
    assert_eq!(known.hold(&mut view), [""; 0]);
    assert_eq!(view.peers[0].keys, [anew]);
}

#[test]
fn another_identity_key_brings_no_replaced_tunnel_key_back() {
    let mut known = KnownKeys::default();
    assert_eq!(offer(&mut known, &[50]), (vec![50], 0));
    assert_eq!(offer(&mut known, &[60]), (vec![60], 0));
    let mut by_another = |serials: &[u64]| {
        let mut view = Parts::default().verify().unwrap();
        view.peers[0].gateway.identity = stranger().public();
        view.peers[0].keys = serials.iter().map(|serial| binding(*serial)).collect();
        let left_out = known.hold(&mut view);
        (view.peers[0].keys.iter().map(|key| key.serial).collect::<Vec<_>>(), left_out.len())
    };
    // From an offer that was made while the old key was still in use.
    assert_eq!(by_another(&[50]), (vec![60], 1));
    assert_eq!(by_another(&[60]), (vec![60], 0));
    assert_eq!(by_another(&[61, 60]), (vec![61, 60], 0));
    assert_eq!(by_another(&[61]), (vec![61], 0));
    assert_eq!(by_another(&[61, 60, 50]), (vec![61], 2));
}

#[test]
fn what_is_remembered_is_bounded_and_peers_are_remembered_longest() {
    let mut known = KnownKeys::default();
    assert_eq!(offer(&mut known, &[50]), (vec![50], 0));
    let mut others = Parts::default().verify().unwrap();
    let peer = others.peers[0].clone();
    others.peers = (0..KnownKeys::MAX as u64 + 9)
        .map(|n| {
            let mut other = peer.clone();
            let mut seed = [7; 32];
            seed[..8].copy_from_slice(&n.to_le_bytes());
            other.gateway.identity = IdentityKey::from_seed(&seed).public();
            let gateway: [u8; 16] = seed[..16].try_into().unwrap();
            other.gateway.gateway = GatewayId::from_bytes(gateway);
            let gateway = other.gateway.gateway;
            other.keys = vec![TunnelKeyBinding { gateway, ..binding(1) }];
            other
        })
        .collect();
    known.hold(&mut others);
    assert_eq!(offer(&mut known, &[49]), (vec![50], 1));
    assert!(cbor::encode(&known).len() < 4 << 20);
}
