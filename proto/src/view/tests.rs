use super::*;
use crate::authority::{Controller, Operator, RootId};
use crate::id::{MemberId, SiteId};
use crate::intent::Infrastructure;
use crate::key::{IdentityKey, TunnelSecret};
use crate::{merkle, overlay};

mod keys;

const ORG: OrganisationId = OrganisationId::from_bytes([1; 16]);
const US: GatewayId = GatewayId::from_bytes([10; 16]);
const PEER: GatewayId = GatewayId::from_bytes([11; 16]);

fn operator() -> IdentityKey {
    IdentityKey::from_seed(&[1; 32])
}

fn controller() -> IdentityKey {
    IdentityKey::from_seed(&[2; 32])
}

fn peer() -> IdentityKey {
    IdentityKey::from_seed(&[3; 32])
}

fn stranger() -> IdentityKey {
    IdentityKey::from_seed(&[9; 32])
}

fn authority() -> Authority {
    Authority {
        organisation: ORG,
        number: 1,
        previous: Hash::ZERO,
        operators: vec![Operator { name: "ana".parse().unwrap(), key: operator().public() }],
        threshold: 1,
        controllers: vec![Controller { key: controller().public(), addresses: vec![] }],
        relays: vec![],
        recovery: stranger().public(),
        incarnation: 0,
        root: None,
    }
}

/// What goes into a view; each forgery changes one thing and signs or encodes again.
#[derive(Clone)]
struct Parts {
    leaf_gateway: GatewayId,
    leaf_organisation: OrganisationId,
    root_number: u64,
    root_authority: u64,
    incarnation: u64,
    operation_incarnation: Option<u64>,
    root_signer: IdentityKey,
    operation_gateway: GatewayId,
    operation_revision: u64,
    sequence: u64,
    operation_signer: IdentityKey,
    binding_gateway: GatewayId,
    binding_signer: IdentityKey,
    suspended: Vec<GatewayId>,
    clients: Vec<Client>,
    quic: Option<u16>,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            leaf_gateway: US,
            leaf_organisation: ORG,
            root_number: 7,
            root_authority: 1,
            incarnation: 0,
            operation_incarnation: None,
            root_signer: operator(),
            operation_gateway: US,
            operation_revision: 7,
            sequence: 3,
            operation_signer: controller(),
            binding_gateway: PEER,
            binding_signer: peer(),
            suspended: vec![],
            clients: vec![],
            quic: None,
        }
    }
}

impl Parts {
    fn intent(&self, gateway: GatewayId) -> Intent {
        Intent {
            identity: None,
            organisation: self.leaf_organisation,
            gateway,
            overlay: overlay::gateway_address(ORG, gateway),
            site: SiteId::of("north"),
            devices: vec![],
            members: vec![],
            peers: vec![PeerGateway {
                gateway: PEER,
                identity: peer().public(),
                overlay: overlay::gateway_address(ORG, PEER),
            }],
            segments: vec![],
            externals: vec![],
            rules: vec![],
            infrastructure: Infrastructure::default(),
            clients: self.clients.clone(),
            bypasses: vec![],
        }
    }

    fn build(&self) -> SignedView {
        let leaf = cbor::encode(&self.intent(self.leaf_gateway));
        let other = cbor::encode(&self.intent(PEER));
        let leaves = [leaf_hash(&leaf), leaf_hash(&other)];
        let root = IntentRoot {
            organisation: ORG,
            authority: self.root_authority,
            incarnation: self.incarnation,
            number: self.root_number,
            previous: Hash::ZERO,
            model: Hash::ZERO,
            root: merkle::root(&leaves),
            signed_at: UnixMillis(1000),
        };
        let binding = TunnelKeyBinding {
            organisation: ORG,
            gateway: self.binding_gateway,
            x25519: TunnelSecret::from_bytes([5; 32]).public(),
            ml_kem_768: None,
            serial: 1,
            not_before: UnixMillis(0),
        };
        let operation = Operation {
            organisation: ORG,
            gateway: self.operation_gateway,
            number: ViewNumber {
                incarnation: self.operation_incarnation.unwrap_or(self.incarnation),
                sequence: self.sequence,
            },
            revision: self.operation_revision,
            peers: vec![crate::operation::PeerOperation {
                gateway: PEER,
                endpoints: vec!["10.0.0.1:51820".parse().unwrap()],
                keys: vec![Signed::sign(&binding, &self.binding_signer)],
                quic: self.quic,
            }],
            quarantined: vec![],
            suspended: self.suspended.clone(),
            issued_at: UnixMillis(2000),
        };
        SignedView {
            intent: Blob(leaf),
            proof: Proof::new(&leaves, 0).unwrap(),
            root: Signed::sign(&root, &self.root_signer),
            operation: Signed::sign(&operation, &self.operation_signer),
        }
    }

    fn verify(&self) -> Result<View, ViewError> {
        View::verify(&self.build(), US, &authority(), &Floor::default())
    }
}

#[test]
fn a_good_view_is_taken_whole() {
    let view = Parts::default().verify().unwrap();
    assert_eq!((view.revision, view.operation.number.sequence), (7, 3));
    assert_eq!(view.peers.len(), 1);
    assert_eq!(view.peers[0].keys.len(), 1);
    assert_eq!(view.left_out, Vec::<String>::new());
    let floor = view.floor(&Floor::default());
    assert_eq!((floor.revision, floor.view.sequence, floor.time), ((0, 7), 3, UnixMillis(2000)));
}

#[test]
fn it_survives_the_wire_and_the_disk_byte_for_byte() {
    let view = Parts::default().build();
    let read: SignedView = cbor::decode(&cbor::encode(&view), SignedView::MAX_LEN).unwrap();
    assert_eq!(read, view);
}

#[test]
fn each_forgery_is_refused_by_name() {
    type Forgery = (&'static str, fn(&mut Parts), &'static str);
    let forgeries: [Forgery; 11] = [
        ("a future authority", |p| p.root_authority = 2, "holds a newer one back"),
        ("an incarnation that nobody began", |p| p.incarnation = 1, "names incarnation 1"),
        (
            "an operation of another incarnation than the intent",
            |p| p.operation_incarnation = Some(9),
            "for incarnation 9, its intent is of incarnation 0",
        ),
        ("root by the controller", |p| p.root_signer = controller(), "may not sign it"),
        ("root by a stranger", |p| p.root_signer = stranger(), "may not sign it"),
        ("operation by an operator", |p| p.operation_signer = operator(), "may not sign it"),
        ("another gateway's leaf", |p| p.leaf_gateway = PEER, "this is"),
        ("another gateway's operation", |p| p.operation_gateway = PEER, "this is"),
        ("an intent of another revision", |p| p.operation_revision = 6, "revision 6"),
        (
            "a leaf of another organisation",
            |p| p.leaf_organisation = OrganisationId::from_bytes([2; 16]),
            "another organisation",
        ),
        ("operation by a peer", |p| p.operation_signer = peer(), "may not sign it"),
    ];
    for (what, forge, message) in forgeries {
        let mut parts = Parts::default();
        forge(&mut parts);
        let error = parts.verify().expect_err(what).to_string();
        assert!(error.contains(message), "{what}: {error}");
    }
}

#[test]
fn a_stolen_controller_bypasses_nothing() {
    let order = crate::intent::Bypass {
        gateway: PEER,
        serial: u64::MAX,
        until: Some(UnixMillis(u64::MAX)),
        since: 7,
    };
    // Slipped into the leaf, with the tree and the root of old.
    let mut view = Parts::default().build();
    let mut intent: Intent = cbor::decode(&view.intent.0, MAX_INTENT_LEN).unwrap();
    intent.bypasses.push(order);
    view.intent = Blob(cbor::encode(&intent));
    let error = View::verify(&view, US, &authority(), &Floor::default()).unwrap_err();
    assert_eq!(error, ViewError::Proof { revision: 7 });
    // With a tree and a root of its own, signed by the only key that it has.
    let leaves = [leaf_hash(&view.intent.0), Hash::ZERO];
    let mut root = view.root.verify_self_named().unwrap().into_document();
    root.root = merkle::root(&leaves);
    view.proof = Proof::new(&leaves, 0).unwrap();
    view.root = Signed::sign(&root, &controller());
    let error = View::verify(&view, US, &authority(), &Floor::default()).unwrap_err();
    assert!(matches!(error, ViewError::Signature(_)), "{error}");
}

#[test]
fn a_port_for_quic_is_told_where_there_is_one() {
    let port = |quic| Parts { quic, ..Parts::default() }.verify().unwrap().peers[0].quic;
    assert_eq!((port(None), port(Some(443)), port(Some(0))), (None, Some(443), None));
    // Whoever doesn't know of it reads what has none as before.
    let encoded = |quic| {
        cbor::encode(&crate::operation::PeerOperation {
            gateway: PEER,
            endpoints: vec![],
            keys: vec![],
            quic,
        })
    };
    let has = |bytes: &[u8]| bytes.windows(4).any(|four| four == b"quic");
    assert!(!has(&encoded(None)) && has(&encoded(Some(443))));
}

#[test]
fn a_leaf_that_operators_did_not_sign_is_refused() {
    let mut view = Parts::default().build();
    let mut intent: Intent = cbor::decode(&view.intent.0, MAX_INTENT_LEN).unwrap();
    intent.site = SiteId::of("south");
    view.intent = Blob(cbor::encode(&intent));
    let error = View::verify(&view, US, &authority(), &Floor::default()).unwrap_err();
    assert_eq!(error, ViewError::Proof { revision: 7 });
}

#[test]
fn nothing_below_the_floor_is_taken() {
    let newer = Parts { root_number: 9, operation_revision: 9, sequence: 5, ..Parts::default() };
    let floor = newer.verify().unwrap().floor(&Floor::default());
    let check = |parts: Parts| View::verify(&parts.build(), US, &authority(), &floor);
    assert!(check(newer.clone()).is_ok(), "the very view that is held is taken again");
    let error = check(Parts { sequence: 4, ..newer.clone() }).unwrap_err();
    assert!(matches!(error, ViewError::Rollback { what: "view", .. }), "{error}");
    let older = Parts { root_number: 8, operation_revision: 8, sequence: 6, ..Parts::default() };
    let error = check(older).unwrap_err();
    assert!(matches!(error, ViewError::Rollback { what: "revision", .. }), "{error}");
}

#[test]
fn another_root_of_the_same_number_is_taken_only_where_operators_vouch_for_it() {
    let held = Parts::default().build();
    let signed = Signed::sign(&authority(), &operator());
    let floor = Parts::default().verify().unwrap().floor(&Floor::default());
    // What another operator signed meanwhile, and whoever has the controller now shows in its place.
    let other = |number| {
        let parts = Parts {
            root_number: number,
            operation_revision: number,
            sequence: 4,
            ..Parts::default()
        };
        let mut view = parts.build();
        let mut root = view.root.verify_self_named().unwrap().into_document();
        root.signed_at = UnixMillis(1001);
        view.root = Signed::sign(&root, &operator());
        view
    };
    let (forked, newer) = (other(7), other(8));
    let forks = Err(ViewError::Forked { revision: 7 });
    let check = |view: &SignedView, authority: &Authority, floor: &Floor| {
        View::verify(view, US, authority, floor).map(|view| view.root_hash)
    };
    assert_eq!(check(&held, &authority(), &floor), Ok(held.root.hash()), "the one that is held");
    assert_eq!(check(&forked, &authority(), &floor), forks);
    assert_eq!(check(&newer, &authority(), &floor), Ok(newer.root.hash()), "a newer one");
    let unknown = Floor { root: None, ..floor };
    assert_eq!(check(&forked, &authority(), &unknown), Ok(forked.root.hash()));

    let mut knowing = authority().next(&signed);
    knowing.root = Some(RootId { incarnation: 0, number: 7, hash: forked.root.hash() });
    assert_eq!(check(&forked, &knowing, &floor), Ok(forked.root.hash()), "operators chose it");
    // The same on disk, where the floor may be older than the view.
    let on_disk = |documents: &[Signed<Authority>]| {
        let chain = AuthorityChain::follow_unpinned(documents).unwrap();
        View::verify_held(&forked, US, &chain, &floor, None).map(|view| view.root_hash)
    };
    assert_eq!(on_disk(std::slice::from_ref(&signed)), forks);
    let knowing = Signed::sign(&knowing, &operator());
    assert_eq!(on_disk(&[signed, knowing]), Ok(forked.root.hash()));
}

#[test]
fn a_floor_of_an_agent_that_knew_no_root_is_read() {
    #[derive(Serialize)]
    struct Before {
        view: ViewNumber,
        revision: (u64, u64),
        time: UnixMillis,
    }
    let view = ViewNumber { incarnation: 1, sequence: 2 };
    let before = Before { view, revision: (1, 3), time: UnixMillis(4) };
    let read: Floor = cbor::decode(&cbor::encode(&before), 512).unwrap();
    assert_eq!(read, Floor { view, revision: (1, 3), root: None, time: UnixMillis(4) });
    let whole = Floor { root: Some(Hash::of("anteroom test", &[])), ..read };
    assert_eq!(cbor::decode::<Floor>(&cbor::encode(&whole), 512), Ok(whole));
}

#[test]
fn a_new_incarnation_counts_anew_and_ends_the_old_one() {
    let held = Parts { root_number: 9, operation_revision: 9, sequence: 5, ..Parts::default() };
    let floor =
        held.verify().unwrap().floor(&Floor { time: UnixMillis(9_000), ..Floor::default() });
    assert_eq!(floor.time, UnixMillis(9_000));
    let begun = Authority { number: 2, incarnation: 1, ..authority() };
    let check = |parts: &Parts| View::verify(&parts.build(), US, &begun, &floor);
    let restored = Parts { incarnation: 1, sequence: 1, root_authority: 2, ..Parts::default() };
    let view = check(&restored).unwrap();
    assert_eq!(view.floor(&floor).time, UnixMillis(2_000), "a time that was made up is taken back");
    let old = Parts { root_number: 10, operation_revision: 10, sequence: 6, ..Parts::default() };
    let error = check(&old).unwrap_err();
    assert!(matches!(error, ViewError::Rollback { what: "incarnation", .. }), "{error}");
}

#[test]
fn a_removed_operators_root_counts_only_while_operators_vouch_for_it() {
    let ben = stranger();
    let by_ben = Parts { root_signer: ben.clone(), ..Parts::default() };
    let operator =
        |name: &str, key: &IdentityKey| Operator { name: name.parse().unwrap(), key: key.public() };
    let both = Authority {
        operators: vec![operator("ana", &super::tests::operator()), operator("ben", &ben)],
        ..authority()
    };
    let signed = by_ben.build();
    let check = |signed: &SignedView, authority: &Authority| {
        View::verify(signed, US, authority, &Floor::default())
    };
    check(&signed, &both).unwrap();
    let removed = Authority { number: 2, ..authority() };
    let error = check(&signed, &removed).unwrap_err().to_string();
    assert!(error.contains("may not sign it"), "{error}");
    let root = RootId { incarnation: 0, number: 7, hash: signed.root.hash() };
    let vouched = Authority { root: Some(root), ..removed };
    check(&signed, &vouched).unwrap();
    // What he signs after that, under whatever number and document, is nobody's word.
    for (number, document) in [(8, 1), (8, 2), (7, 1)] {
        let later = Parts {
            root_number: number,
            operation_revision: number,
            root_authority: document,
            leaf_organisation: ORG,
            suspended: vec![PEER],
            incarnation: 0,
            ..by_ben.clone()
        };
        let mut later = later.build();
        if number == 7 {
            // Another root in the same place: the tree is the same, the time isn't.
            let mut root = later.root.verify_self_named().unwrap().into_document();
            root.signed_at = UnixMillis(1001);
            later.root = Signed::sign(&root, &ben);
        }
        let error = check(&later, &vouched).unwrap_err().to_string();
        assert!(error.contains("may not sign it"), "{number} under {document}: {error}");
    }
}

#[test]
fn what_operators_have_replaced_is_refused_even_where_it_was_never_seen() {
    let newest = Parts { root_number: 8, operation_revision: 8, ..Parts::default() };
    let hash = newest.build().root.hash();
    let knowing = Authority {
        number: 2,
        root: Some(RootId { incarnation: 0, number: 8, hash }),
        ..authority()
    };
    let check =
        |parts: &Parts| View::verify(&parts.build(), US, &knowing, &Floor::default()).map(|_| ());
    assert_eq!(check(&newest), Ok(()));
    let replaced = ViewError::Superseded { found: 7, document: 2, newest: 8 };
    assert_eq!(check(&Parts::default()), Err(replaced));
    let fork = Parts { leaf_gateway: US, suspended: vec![], sequence: 9, ..newest };
    let mut forked = fork.build();
    let mut root = forked.root.verify_self_named().unwrap().into_document();
    root.signed_at = UnixMillis(1001);
    forked.root = Signed::sign(&root, &operator());
    let error = View::verify(&forked, US, &knowing, &Floor::default()).unwrap_err();
    assert!(matches!(error, ViewError::Superseded { found: 8, .. }), "{error}");
}

#[test]
fn a_view_on_disk_outlives_its_signers_and_its_incarnation() {
    let mut parts = Parts::default();
    let one = Signed::sign(&authority(), &operator());
    let mut next = authority().next(&one);
    next.operators[0].key = stranger().public();
    next.controllers[0].key = stranger().public();
    next.incarnation = 1;
    next.root = Some(RootId { incarnation: 0, number: 9, hash: Hash::ZERO });
    let chain = AuthorityChain::follow_unpinned(&[one, Signed::sign(&next, &operator())]).unwrap();
    let held = |parts: &Parts| {
        View::verify_held(&parts.build(), US, &chain, &Floor::default(), None).map(|_| ())
    };
    assert_eq!(held(&parts), Ok(()));
    assert!(View::verify(&parts.build(), US, chain.newest(), &Floor::default()).is_err());
    parts.root_signer = peer();
    assert!(held(&parts).is_err(), "who was never an operator signs nothing");
}

#[test]
fn a_tunnel_key_that_two_peers_claim_is_nobodys() {
    let thief = GatewayId::from_bytes([12; 16]);
    let mut intent = Parts::default().intent(US);
    intent.peers.push(PeerGateway {
        gateway: thief,
        identity: stranger().public(),
        overlay: overlay::gateway_address(ORG, thief),
    });
    let leaf = cbor::encode(&intent);
    let leaves = [leaf_hash(&leaf)];
    let good = Parts::default().build();
    let mut root = good.root.verify_self_named().unwrap().into_document();
    root.root = merkle::root(&leaves);
    let mut operation = good.operation.verify_self_named().unwrap().into_document();
    let own = TunnelSecret::from_bytes([6; 32]).public();
    let claim = |x25519| {
        Signed::sign(
            &TunnelKeyBinding {
                organisation: ORG,
                gateway: thief,
                x25519,
                ml_kem_768: None,
                serial: 7,
                not_before: UnixMillis(0),
            },
            &stranger(),
        )
    };
    let stolen = TunnelSecret::from_bytes([5; 32]).public();
    let keys = vec![claim(stolen), claim(own)];
    operation.peers.push(crate::operation::PeerOperation {
        gateway: thief,
        endpoints: vec!["10.0.0.66:51820".parse().unwrap()],
        keys,
        quic: None,
    });
    let view = SignedView {
        intent: Blob(leaf),
        proof: Proof::new(&leaves, 0).unwrap(),
        root: Signed::sign(&root, &super::tests::operator()),
        operation: Signed::sign(&operation, &controller()),
    };
    let view = View::verify(&view, US, &authority(), &Floor::default()).unwrap();
    assert!(view.peers[0].keys.is_empty(), "{:?}", view.peers[0]);
    let left: Vec<_> = view.peers[1].keys.iter().map(|key| key.x25519).collect();
    assert_eq!(left, [own]);
    assert!(view.left_out[0].contains("claim"), "{:?}", view.left_out);
}

#[test]
fn a_bad_tunnel_key_is_left_out_and_said() {
    let forged = Parts { binding_signer: stranger(), ..Parts::default() };
    let stolen = Parts { binding_gateway: US, ..Parts::default() };
    for parts in [forged, stolen] {
        let view = parts.verify().unwrap();
        assert!(view.peers[0].keys.is_empty());
        assert_eq!(view.left_out.len(), 1, "{:?}", view.left_out);
    }
}

#[test]
fn a_suspended_peer_is_not_spoken_to() {
    let view = Parts { suspended: vec![PEER], ..Parts::default() }.verify().unwrap();
    assert!(view.peers.is_empty());
}

#[test]
fn every_altered_byte_of_a_view_is_noticed() {
    let bytes = cbor::encode(&Parts::default().build());
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 0x01;
        let taken = cbor::decode::<SignedView>(&altered, SignedView::MAX_LEN)
            .ok()
            .and_then(|view| View::verify(&view, US, &authority(), &Floor::default()).ok());
        assert!(taken.is_none(), "byte {at} was altered and nobody noticed");
    }
}

#[test]
fn a_clients_key_is_the_clients_whatever_a_gateway_claims() {
    let claimed = TunnelSecret::from_bytes([5; 32]).public();
    let client = MemberId::from_bytes([9; 16]);
    let clients = vec![Client {
        id: client,
        key: claimed,
        overlay: overlay::member_address(ORG, client),
        site: SiteId::of("north"),
        address: "10.20.9.5".parse().unwrap(),
    }];
    let signed = Parts { clients: clients.clone(), ..Parts::default() }.build();
    let view = View::verify(&signed, US, &authority(), &Floor::default()).unwrap();
    assert_eq!(view.intent.clients, clients);
    assert!(view.peers[0].keys.is_empty(), "{:?}", view.peers);
    assert!(view.left_out[0].contains("operators gave to client"), "{:?}", view.left_out);
}

#[test]
fn a_client_with_a_key_of_low_order_makes_no_view() {
    let client = MemberId::from_bytes([9; 16]);
    let good = Client {
        id: client,
        key: TunnelSecret::from_bytes([5; 32]).public(),
        overlay: overlay::member_address(ORG, client),
        site: SiteId::of("north"),
        address: "10.20.9.5".parse().unwrap(),
    };
    let mut bytes = cbor::encode(&good);
    assert_eq!(cbor::decode::<Client>(&bytes, 1000).unwrap(), good);
    let at = bytes.windows(32).position(|part| part == good.key.as_bytes()).unwrap();
    bytes[at..at + 32].fill(0);
    let refused = cbor::decode::<Client>(&bytes, 1000).unwrap_err().to_string();
    assert!(refused.contains("low order"), "{refused}");
}
