use super::*;
use crate::authority::{Controller, Operator};
use crate::id::SiteId;
use crate::intent::Infrastructure;
use crate::key::{IdentityKey, TunnelSecret};
use crate::{merkle, overlay};

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
        recovery: stranger().public(),
        incarnation: 0,
    }
}

/// What goes into a view; each forgery changes one thing and signs or encodes again.
#[derive(Clone)]
struct Parts {
    leaf_gateway: GatewayId,
    leaf_organisation: OrganisationId,
    root_number: u64,
    incarnation: u64,
    root_signer: IdentityKey,
    operation_gateway: GatewayId,
    operation_revision: u64,
    sequence: u64,
    operation_signer: IdentityKey,
    binding_gateway: GatewayId,
    binding_signer: IdentityKey,
    suspended: Vec<GatewayId>,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            leaf_gateway: US,
            leaf_organisation: ORG,
            root_number: 7,
            incarnation: 0,
            root_signer: operator(),
            operation_gateway: US,
            operation_revision: 7,
            sequence: 3,
            operation_signer: controller(),
            binding_gateway: PEER,
            binding_signer: peer(),
            suspended: vec![],
        }
    }
}

impl Parts {
    fn intent(&self, gateway: GatewayId) -> Intent {
        Intent {
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
            bypasses: vec![],
        }
    }

    fn build(&self) -> SignedView {
        let leaf = cbor::encode(&self.intent(self.leaf_gateway));
        let other = cbor::encode(&self.intent(PEER));
        let leaves = [leaf_hash(&leaf), leaf_hash(&other)];
        let root = IntentRoot {
            organisation: ORG,
            authority: 1,
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
            number: ViewNumber { incarnation: self.incarnation, sequence: self.sequence },
            revision: self.operation_revision,
            peers: vec![crate::operation::PeerOperation {
                gateway: PEER,
                endpoints: vec!["10.0.0.1:51820".parse().unwrap()],
                keys: vec![Signed::sign(&binding, &self.binding_signer)],
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
    let forgeries: [Forgery; 8] = [
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
    let restored = Parts { incarnation: 1, sequence: 1, ..Parts::default() };
    assert!(check(restored).is_ok(), "a new incarnation counts anew");
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
