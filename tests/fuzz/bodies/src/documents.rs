//! Everything in CBOR or JSON that comes from outside: messages, signed documents, codes, views and models.
//!
//! What is read and written again is read as the same, signatures come right only over what was signed, and whatever
//! operators may have signed, no engine that applies it panics.

use std::sync::Arc;

use anteroom_agent_core::config::{Config, PortConfig, TunnelIdentity};
use anteroom_agent_core::engine::Engine;
use anteroom_agent_core::limits::Limits;
use anteroom_agent_core::peer::message::Message;
use anteroom_agent_core::report::Learned;
use anteroom_controller_core::compile::compile;
use anteroom_controller_core::model::Model;
use anteroom_proto::api;
use anteroom_proto::authority::{Authority, AuthorityChain, Controller, Operator};
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cbor::{self, Blob};
use anteroom_proto::cose::{Document, Signed};
use anteroom_proto::id::{GatewayId, OrganisationId};
use anteroom_proto::intent::{Intent, IntentRoot, MAX_INTENT_LEN};
use anteroom_proto::invite::{IdentityClaim, Invite, InviteCode};
use anteroom_proto::key::{Hash, IdentityKey, TunnelSecret};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::merkle::{Proof, leaf_hash};
use anteroom_proto::operation::{Operation, ViewNumber};
use anteroom_proto::setup::SetupCode;
use anteroom_proto::tcp;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{ToAgent, ToController, frame};
use anteroom_proto::view::{Floor, SignedView, View};
use ciborium::Value;
use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frames::start;
use crate::kept::Kept;

/// The organisation of what is signed here.
pub const ORGANISATION: OrganisationId = OrganisationId::from_bytes([0x0a; 16]);

/// The gateway that takes views here.
pub const GATEWAY: GatewayId = GatewayId::from_bytes([1; 16]);

/// What the first byte asks for.
const KINDS: [fn(&[u8]); 21] = [
    read::<ToController>,
    read::<ToAgent>,
    read::<SignedView>,
    read::<Intent>,
    read::<Operation>,
    read::<Learned>,
    model,
    gateways_message,
    signed::<Authority>,
    signed::<Invite>,
    signed::<IdentityClaim>,
    signed::<TunnelKeyBinding>,
    signed::<IntentRoot>,
    signed::<Operation>,
    signed::<api::Login>,
    chain,
    view,
    codes,
    envelope,
    json,
    framing,
];

/// Takes the first byte of `data` for what the others are.
///
/// # Panics
/// If an invariant doesn't hold.
pub fn run(data: &[u8]) {
    if let Some((kind, rest)) = data.split_first() {
        KINDS[usize::from(*kind) % KINDS.len()](rest);
    }
}

/// What is read and written again is read as the same, and written as the same.
fn read<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(value) = cbor::decode::<T>(bytes, 1 << 20) else { return };
    assert_eq!(cbor::check(bytes), Ok(()), "what isn't strict was read");
    settles(&value);
}

fn settles<T: Serialize + DeserializeOwned>(value: &T) {
    let written = cbor::encode(value);
    match cbor::decode::<T>(&written, usize::MAX) {
        Ok(again) => {
            assert_eq!(cbor::encode(&again), written, "it reads otherwise than it was written");
        }
        Err(error) => panic!("what was written can't be read: {error}"),
    }
}

fn model(bytes: &[u8]) {
    let Ok(model) = Model::decode(bytes) else { return };
    settles(&model);
    if let Ok(compiled) = compile(&model) {
        let again = compile(&model).expect("it compiled before");
        assert_eq!(compiled.root, again.root, "the same model gave two roots");
        for (gateway, leaf) in &compiled.leaves {
            let proof = compiled.proof(*gateway).expect("each leaf has a proof");
            assert!(proof.leads(leaf.hash, compiled.root));
            cbor::decode::<Intent>(&leaf.bytes, MAX_INTENT_LEN)
                .expect("a compiled leaf is an intent");
        }
    }
}

fn gateways_message(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
}

/// The payload is the fuzzer's, the signature is right.
fn signed<T: Document>(payload: &[u8]) {
    let key = operator();
    let bytes = sign_anything(&protected(T::TYPE, &key), payload, &key);
    let carried = Signed::<T>::from_bytes(bytes);
    let Ok(document) = carried.verify(ORGANISATION, &[key.public()]) else { return };
    assert_eq!(document.organisation(), ORGANISATION);
    assert_eq!(document.signed().as_bytes(), carried.as_bytes());
    settles(&*document);
    // Nobody else's signature, no other organisation and no other bytes pass.
    let stranger = IdentityKey::from_seed(&[0x77; 32]);
    assert!(carried.verify(ORGANISATION, &[stranger.public()]).is_err());
    assert!(carried.verify(OrganisationId::from_bytes([9; 16]), &[key.public()]).is_err());
    let mut altered = carried.as_bytes().to_vec();
    let at = payload.iter().map(|byte| usize::from(*byte)).sum::<usize>() % altered.len();
    altered[at] ^= 1;
    assert!(
        Signed::<T>::from_bytes(altered).verify(ORGANISATION, &[key.public()]).is_err(),
        "byte {at} may be anything"
    );
}

/// Header and payload are the fuzzer's, the signature is right.
fn envelope(bytes: &[u8]) {
    let key = operator();
    let Some((len, rest)) = bytes.split_first() else { return };
    let (header, payload) = rest.split_at(rest.len().min(usize::from(*len)));
    let bytes = sign_anything(header, payload, &key);
    if let Ok(document) = Signed::<Invite>::from_bytes(bytes).verify_self_named() {
        assert_eq!(document.signer(), key.public());
    }
    Signed::<Authority>::from_bytes(rest.to_vec()).verify_self_named().ok();
}

/// A chain whose second document is the fuzzer's, signed by whom the first names.
fn chain(payload: &[u8]) {
    let key = operator();
    let first = Signed::sign(&authority(), &key);
    let next = sign_anything(&protected(Authority::TYPE, &key), payload, &key);
    let next = Signed::<Authority>::from_bytes(next);
    let mut chain =
        AuthorityChain::follow_unpinned(std::slice::from_ref(&first)).expect("the first");
    let (pin, number) = (chain.pin(), chain.newest().number);
    if chain.extend(&next).is_ok() {
        assert_eq!(chain.newest().number, number + 1);
        assert_eq!(chain.pin(), pin);
        let both = [first, next];
        let followed = AuthorityChain::follow(pin, &both).expect("it was followed before");
        assert_eq!(followed.to_signed(), both);
    } else {
        assert_eq!(chain.newest().number, number, "a refused document changed the chain");
    }
}

/// Intent and operation are the fuzzer's, and signed. What is taken is applied.
fn view(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return };
    let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
    let (intent, operation) = rest.split_at(len);
    let leaf = leaf_hash(intent);
    let root = IntentRoot {
        organisation: ORGANISATION,
        authority: 1,
        incarnation: 1,
        number: 7,
        previous: Hash::ZERO,
        model: Hash::ZERO,
        root: leaf,
        signed_at: UnixMillis(1_800_000_000_000),
    };
    let controller = controller();
    let operation = if operation.is_empty() {
        Signed::sign(&plain_operation(), &controller)
    } else {
        let protected = protected(Operation::TYPE, &controller);
        Signed::from_bytes(sign_anything(&protected, operation, &controller))
    };
    let signed = SignedView {
        intent: Blob(intent.to_vec()),
        proof: Proof { index: 0, size: 1, path: Vec::new() },
        root: Signed::sign(&root, &operator()),
        operation,
    };
    let floor = Floor::default();
    let Ok(view) = View::verify(&signed, GATEWAY, &authority(), &floor) else { return };
    let held = view.floor(&floor);
    assert!(held.view >= floor.view && held.revision >= floor.revision && held.time >= floor.time);
    let taken_by_another = GatewayId::from_bytes([2; 16]);
    assert!(View::verify(&signed, taken_by_another, &authority(), &floor).is_err());
    let next = Floor { revision: (1, 8), ..held };
    assert!(View::verify(&signed, GATEWAY, &authority(), &next).is_err(), "a rollback was taken");
    apply(view);
}

fn apply(view: View) {
    let port = |name: &str, last| PortConfig {
        name: name.parse().expect("a name"),
        mac: MacAddr([0, 0x1b, 0x21, 0, 0x90, last]),
        unlisted: anteroom_proto::v1::Unlisted::Hold,
    };
    let config = Config {
        gateway_macs: vec![MacAddr([0, 0x1b, 0x21, 0, 0xb0, 1])],
        own_addresses: vec!["192.0.2.1".parse().expect("an address")],
        ports: vec![port("port1", 1), port("port2", 2)],
        uplink_mac: MacAddr([0, 0x1b, 0x21, 0, 0xa0, 1]),
        limits: Limits { flows: 16, flows_per_device: 8, bridge_entries: 8, ..Limits::default() },
    };
    let secret = TunnelSecret::from_bytes([1; 32]);
    let identity = TunnelIdentity {
        gateway: GATEWAY,
        secret,
        identity: IdentityKey::from_seed(&[1; 32]),
        seed: [4; 32],
    };
    let now = start();
    let mut engine = Engine::new(config, identity, now);
    let mut out = Kept::default();
    let view = Arc::new(view);
    engine.set_time(UnixMillis(1_800_000_000_000), true, now);
    engine.apply(view.clone(), now);
    engine.handle_timeout(now, &mut out);
    let _ = engine.status(now);
    let mut answers = 0;
    for device in view.intent.devices.iter().take(4) {
        for member in
            view.intent.members.iter().chain(view.intent.devices.iter().map(|d| &d.member)).take(4)
        {
            let (Some(from), Some(to)) =
                (device.member.addresses.first(), member.addresses.first())
            else {
                continue;
            };
            let service = "tcp/104".parse().expect("a service");
            let question =
                anteroom_agent_core::report::Question { from: from.addr(), to: to.addr(), service };
            let _ = engine.explain(&question, now);
            answers += 1;
        }
    }
    assert!(answers <= 16);
    engine.report(now);
}

/// Codes that people carry: the fuzzer's bytes with the checksum that belongs to them.
fn codes(bytes: &[u8]) {
    for (prefix, domain) in
        [(InviteCode::PREFIX, "anteroom invite check"), (SetupCode::PREFIX, "anteroom setup check")]
    {
        let check = Hash::of(domain, &[bytes]);
        let text = BASE64URL_NOPAD.encode(&[bytes, &check.as_bytes()[..4]].concat());
        let text = format!("{prefix}{text}");
        if let Ok(code) = text.parse::<InviteCode>() {
            assert_eq!(code.to_string().parse(), Ok(code));
        }
        if let Ok(code) = text.parse::<SetupCode>() {
            assert_eq!(code.to_string().parse(), Ok(code));
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        text.parse::<InviteCode>().ok();
        text.parse::<SetupCode>().ok();
    }
}

/// What operators' programs send, in JSON.
fn json(bytes: &[u8]) {
    fn one<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
        let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
        let text = serde_json::to_vec(&value).expect("what was read can be written");
        let again: T = serde_json::from_slice(&text).expect("what was written can be read");
        assert_eq!(serde_json::to_vec(&again).ok(), Some(text));
    }
    one::<api::Claim>(bytes);
    one::<api::LoginRequest>(bytes);
    one::<api::NewInvite>(bytes);
    one::<api::ModelUpdate>(bytes);
    one::<api::AuditEntry>(bytes);
    one::<api::GatewayStatus>(bytes);
    one::<anteroom_agent_core::report::EngineStatus>(bytes);
}

fn framing(bytes: &[u8]) {
    let Some((prefix, body)) = bytes.split_first_chunk() else { return };
    for max in [frame::MAX_FIRST, frame::MAX_TO_CONTROLLER, frame::MAX_TO_AGENT] {
        if let Ok(len) = frame::body_len(*prefix, max) {
            assert!(len <= max);
        }
    }
    if let Ok(message) = frame::decode::<ToController>(body, frame::MAX_FIRST) {
        let whole = frame::encode(&message);
        let (prefix, body) = whole.split_first_chunk().expect("a prefix");
        assert_eq!(frame::body_len(*prefix, usize::MAX), Ok(body.len()));
    }
    over_tcp(bytes);
}

/// What comes over a TLS connection over TCP, frame by frame.
fn over_tcp(mut bytes: &[u8]) {
    while let Ok(Some((frame, taken))) = tcp::read(bytes) {
        let (this, rest) = bytes.split_at(taken);
        let mut again = Vec::new();
        tcp::write(&frame, &mut again).expect("what was read can be written");
        assert_eq!(again, this);
        bytes = rest;
    }
}

fn operator() -> IdentityKey {
    IdentityKey::from_seed(&[3; 32])
}

fn controller() -> IdentityKey {
    IdentityKey::from_seed(&[4; 32])
}

/// An authority with one operator and one controller.
fn authority() -> Authority {
    Authority {
        organisation: ORGANISATION,
        number: 1,
        previous: Hash::ZERO,
        incarnation: 1,
        operators: vec![Operator {
            name: "ana".parse().expect("a name"),
            key: operator().public(),
        }],
        threshold: 1,
        controllers: vec![Controller {
            key: controller().public(),
            addresses: vec!["controller.example:4433".into()],
        }],
        relays: vec![],
        recovery: IdentityKey::from_seed(&[5; 32]).public(),
        root: None,
    }
}

/// An operation part with nothing in it.
fn plain_operation() -> Operation {
    Operation {
        organisation: ORGANISATION,
        gateway: GATEWAY,
        number: ViewNumber { incarnation: 1, sequence: 7 },
        revision: 7,
        peers: Vec::new(),
        quarantined: Vec::new(),
        suspended: Vec::new(),
        issued_at: UnixMillis(1_800_000_000_000),
    }
}

/// The protected header that a document of this type has.
fn protected(kind: &str, key: &IdentityKey) -> Vec<u8> {
    let map = Value::Map(vec![
        (1.into(), (-8).into()),
        (3.into(), kind.into()),
        (4.into(), Value::Bytes(key.public().as_bytes().to_vec())),
        ("org".into(), Value::Bytes(ORGANISATION.as_bytes().to_vec())),
    ]);
    cbor::encode(&map)
}

/// A COSE_Sign1 over any header and payload, with a signature that holds.
fn sign_anything(protected: &[u8], payload: &[u8], key: &IdentityKey) -> Vec<u8> {
    let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
    let message = cbor::encode(&Value::Array(vec![
        "Signature1".into(),
        bytes(protected),
        bytes(&[]),
        bytes(payload),
    ]));
    // Our own keys sign documents only, never any bytes.
    let signature = SigningKey::from_bytes(&key.to_seed()).sign(&message).to_bytes();
    cbor::encode(&Value::Tag(
        18,
        Box::new(Value::Array(vec![
            bytes(protected),
            Value::Map(Vec::new()),
            bytes(payload),
            bytes(&signature),
        ])),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_here_is_signed_as_the_programs_do() {
        let key = operator();
        let document = authority();
        let ours = sign_anything(&protected(Authority::TYPE, &key), &cbor::encode(&document), &key);
        assert_eq!(ours, Signed::sign(&document, &key).as_bytes());
    }

    #[test]
    fn a_compiled_view_is_taken_and_applied() {
        let world = anteroom_sim::hospital::hospital(1);
        let intent = world.plan.view(0).intent.clone();
        let intent =
            cbor::encode(&Intent { organisation: ORGANISATION, gateway: GATEWAY, ..intent });
        let len = u16::try_from(intent.len()).unwrap().to_be_bytes();
        let leaf = leaf_hash(&intent);
        assert_ne!(leaf, Hash::ZERO);
        view(&[&len[..], &intent].concat());
        let decoded = cbor::decode::<Intent>(&intent, MAX_INTENT_LEN).unwrap();
        assert_eq!(decoded.devices.len(), 2);
    }
}
