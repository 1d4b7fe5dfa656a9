use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use anteroom_controller_core::compile::compile;
use anteroom_controller_core::model::{Gateway, Model};
use anteroom_proto::api::RevisionInfo;
use anteroom_proto::authority::{Authority, Controller as Named, Operator};
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::intent::IntentRoot;
use anteroom_proto::key::{Hash, IdentityKey};
use anteroom_proto::rekey::RekeyOrder;
use tokio::sync::mpsc;

use super::*;
use crate::config::Config;
use crate::directory::Directory;
use crate::distribution::Event;
use crate::init::{InitOptions, init};
use crate::rate::Rate;
use crate::state::Controller;
use crate::store::sqlite::SqliteStore;
use crate::store::{Limits, NewAudit, NewRevision, Store};

const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);

/// A controller with four gateways, and what it tells distribution, which takes one event at a time.
struct World {
    api: Api,
    caller: Caller,
    told: mpsc::Receiver<Event>,
    gateways: Vec<GatewayId>,
    operator: IdentityKey,
    _home: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let directory = Directory::new(&home.path().join("c"));
        let options = InitOptions {
            quic: "127.0.0.1:4433".parse().unwrap(),
            https: "127.0.0.1:8443".parse().unwrap(),
            advertise: vec!["127.0.0.1".into()],
        };
        let code = init(&directory, &options).await.unwrap();
        let operator = IdentityKey::from_seed(&[11; 32]);
        let authority = Authority {
            organisation: ORGANISATION,
            number: 1,
            previous: Hash::ZERO,
            operators: vec![Operator { name: "ana".parse().unwrap(), key: operator.public() }],
            threshold: 1,
            controllers: vec![Named { key: code.controller, addresses: code.quic }],
            relays: vec![],
            recovery: IdentityKey::from_seed(&[12; 32]).public(),
            incarnation: 1,
            root: None,
        };
        let file = directory.database();
        let store = SqliteStore::open(&file, false, Limits::default()).await.unwrap();
        let first = Signed::sign(&authority, &operator);
        assert!(store.claim(&first, &NewAudit::default()).await.unwrap());
        let gateways: Vec<GatewayId> = (1..=4).map(|n| GatewayId::from_bytes([n; 16])).collect();
        let revision = revision(&gateways, &operator);
        assert!(store.add_model(&revision, &NewAudit::default()).await.unwrap());

        let config = Config::load(&directory.config()).unwrap();
        let identity = directory.load_identity().unwrap();
        let (events, told) = mpsc::channel(1);
        let store: Arc<dyn Store> = Arc::new(store);
        let controller = Controller::load(directory, identity, None, config, store, events).await;
        let controller = Arc::new(controller.unwrap());
        let rate = || Arc::new(Rate::new(10, Duration::from_secs(1)));
        let caller = Caller::of(&authority.operators[0], controller.authority().unwrap());
        let api = Api { controller, logins: rate(), claims: rate() };
        Self { api, caller, told, gateways, operator, _home: home }
    }

    /// What distribution is told next.
    async fn next(&mut self) -> Event {
        let next = tokio::time::timeout(Duration::from_secs(60), self.told.recv()).await;
        next.expect("distribution is told no more").unwrap()
    }
}

fn revision(gateways: &[GatewayId], operator: &IdentityKey) -> NewRevision {
    let mut model = Model::new(ORGANISATION);
    for (n, gateway) in (1..).zip(gateways) {
        let known = Gateway {
            name: format!("ward-{n}").parse().unwrap(),
            site: "north".parse().unwrap(),
            identity: IdentityKey::from_seed(&[20 + n; 32]).public(),
            former: Vec::new(),
            labels: Default::default(),
        };
        model.gateways.insert(*gateway, known);
    }
    let compiled = compile(&model).unwrap();
    let root = IntentRoot {
        organisation: ORGANISATION,
        authority: 1,
        incarnation: 1,
        number: 1,
        previous: Hash::ZERO,
        model: compiled.model_hash,
        root: compiled.root,
        signed_at: clock::now(),
    };
    NewRevision {
        info: RevisionInfo {
            number: 1,
            at: clock::now(),
            operator: operator.public(),
            action: "gateway approve".into(),
            subject: "four".into(),
            reason: None,
        },
        root: Signed::sign(&root, operator),
        model_hash: compiled.model_hash,
        model: Blob(model.encode()),
        affected: gateways.to_vec(),
    }
}

#[tokio::test]
async fn new_tunnel_keys_are_ordered_of_all_though_the_caller_goes_away() {
    let mut world = World::new().await;
    let request = RotateRequest { gateways: world.gateways.clone(), now: true, reason: None };
    let mut asked = BTreeSet::new();
    {
        let (api, caller) = (State(world.api.clone()), Extension(world.caller.clone()));
        let mut handler = pin!(rotate(api, caller, Body(request)));
        // With the first that is asked the caller is gone; there is no room yet to ask them all.
        let first = tokio::select! {
            answer = &mut handler => panic!("all at once: {answer:?}"),
            first = world.next() => first,
        };
        asked.extend(rotated(&first));
    }
    while asked.len() < world.gateways.len() {
        let next = world.next().await;
        asked.extend(rotated(&next));
    }
    let stored = world.api.controller.store.rotations().await.unwrap();
    assert_eq!(asked, stored.into_keys().collect());
}

fn rotated(event: &Event) -> Option<GatewayId> {
    match event {
        Event::Rotate { gateway, rotate } => rotate.now.then_some(*gateway),
        _ => None,
    }
}

#[tokio::test]
async fn an_order_for_another_identity_key_is_passed_on_though_the_caller_goes_away() {
    let mut world = World::new().await;
    let gateway = world.gateways[0];
    let order =
        RekeyOrder { organisation: ORGANISATION, gateway, number: clock::now().0, withdraw: false };
    let order = Signed::sign(&order, &world.operator);
    let request = RekeyRequest { order: order.clone(), reason: None };
    let controller = world.api.controller.clone();
    // It waits for another change, so that the caller is gone before anything is stored.
    let held = controller.changing.lock().await;
    {
        let (api, caller) = (State(world.api.clone()), Extension(world.caller.clone()));
        let mut handler = pin!(rekey(api, caller, Body(request)));
        let polled = handler.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "{polled:?}");
    }
    drop(held);
    let next = world.next().await;
    assert!(
        matches!(&next, Event::Rekey { gateway: of, order: told } if *of == gateway && *told == order),
        "{next:?}"
    );
    let stored = controller.store.rekey(gateway).await.unwrap().unwrap();
    assert_eq!(stored.order, order);
}
