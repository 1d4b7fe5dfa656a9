use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use anteroom_proto::authority::{Authority, Controller as Named};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::key::IdentityKey;
use tokio::sync::mpsc;

use super::*;
use crate::config::Config;
use crate::directory::Directory;
use crate::distribution::QUEUE;
use crate::init::{InitOptions, init};
use crate::rate::Rate;
use crate::state::Controller;
use crate::store::sqlite::SqliteStore;
use crate::store::{Limits, Store};

#[tokio::test]
async fn a_claim_is_made_whole_though_the_caller_goes_away() {
    let home = tempfile::tempdir().unwrap();
    let directory = Directory::new(&home.path().join("c"));
    let options = InitOptions {
        quic: "127.0.0.1:4433".parse().unwrap(),
        https: "127.0.0.1:8443".parse().unwrap(),
        advertise: vec!["127.0.0.1".into()],
    };
    let code = init(&directory, &options).await.unwrap();
    let config = Config::load(&directory.config()).unwrap();
    let identity = directory.load_identity().unwrap();
    let secret = directory.load_claim_secret().unwrap();
    let limits = Limits::default();
    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::open(&directory.database(), false, limits).await.unwrap());
    let (events, _queue) = mpsc::channel(QUEUE);
    let controller = Controller::load(directory, identity, secret, config, store, events).await;
    let controller = Arc::new(controller.unwrap());
    let rate = || Arc::new(Rate::new(10, Duration::from_secs(1)));
    let api = Api { controller: controller.clone(), logins: rate(), claims: rate() };
    let key = IdentityKey::from_seed(&[11; 32]);
    let authority = Authority {
        organisation: OrganisationId::from_bytes([1; 16]),
        number: 1,
        previous: Hash::ZERO,
        operators: vec![Operator { name: "ana".parse().unwrap(), key: key.public() }],
        threshold: 1,
        controllers: vec![Named { key: code.controller, addresses: code.quic }],
        relays: vec![],
        recovery: IdentityKey::from_seed(&[12; 32]).public(),
        incarnation: 1,
        root: None,
    };
    let request = Claim { secret: code.secret, authority: Signed::sign(&authority, &key) };

    // Whoever claims waits for the secret, so that the caller is gone before anything is stored.
    let held = controller.claim_secret.lock().await;
    {
        let from = ConnectInfo("127.0.0.1:1".parse().unwrap());
        let mut handler = pin!(claim(State(api), from, Body(request)));
        let polled = handler.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "{polled:?}");
    }
    assert!(controller.authority().is_none());
    drop(held);

    let deadline = Instant::now() + Duration::from_secs(20);
    while controller.authority().is_none() {
        let stored = controller.store.authority().await.unwrap().len();
        assert!(Instant::now() < deadline, "in memory: unclaimed; documents stored: {stored}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(controller.store.authority().await.unwrap().len(), 1);
}
