//! Tunnel keys that are changed: what is written, used and offered, and in which order.

use std::sync::{Arc, LazyLock};

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::key::{TunnelPublicKey, TunnelSecret};
use anteroom_proto::mode::Mode;
use anteroom_proto::v1::Rotate;

use super::keep::{Mood, world};
use super::*;
use crate::control::clock::system_time;
use crate::kem::KemKey;
use crate::keys::{Ring, is_ahead};
use crate::state::TunnelKey;

/// Made once: a test asks for it again and again, and seconds pass.
static KEM: LazyLock<Option<Arc<KemKey>>> = LazyLock::new(KemKey::generate);
static MADE: LazyLock<u64> = LazyLock::new(|| system_time().0 / 1000 - 60);

/// A key that was made a minute ago.
fn held() -> TunnelKey {
    TunnelKey {
        serial: *MADE,
        made: UnixMillis(*MADE * 1000),
        secret: TunnelSecret::from_bytes([77; 32]),
        kem: KEM.clone(),
        unsure: false,
        clients: false,
        retired: false,
        urgent: false,
    }
}

pub(super) fn with_key(state: &StateDir) {
    state.write_tunnel_keys(&Ring::new(vec![held()], held())).unwrap();
}

impl Session {
    /// The next keys that the agent offers, newest first.
    async fn hear_keys(&mut self) -> Vec<TunnelKeyBinding> {
        loop {
            if let ToController::Reachable(reachable) = self.hear().await {
                let keys = reachable.keys.iter();
                return keys.map(|key| key.verify_self_named().unwrap().into_document()).collect();
            }
        }
    }
}

fn publics(keys: &[TunnelKeyBinding]) -> Vec<TunnelPublicKey> {
    keys.iter().map(|key| key.x25519).collect()
}

#[tokio::test]
async fn the_serial_of_a_key_that_was_made_after_a_loss_is_the_same_after_the_next_start() {
    let unsure = TunnelKey { serial: 5, made: UnixMillis(5000), unsure: true, ..held() };
    let world = World::with(|state, _| {
        state.write_tunnel_keys(&Ring::new(vec![unsure.clone()], unsure.clone())).unwrap();
    });
    let mut session = world.session().await;
    session.welcome(60_000, 9_000_000).await;
    world.soon("sure on disk", || !world.state.tunnel_keys().unwrap()[0].unsure).await;
    let kept = world.state.tunnel_keys().unwrap().remove(0);
    assert_eq!((kept.serial, kept.secret.public()), (9000, unsure.secret.public()));
    world.finish().await;
}

#[tokio::test]
async fn a_new_key_is_written_used_and_offered_beside_the_old_one_until_nobody_needs_that() {
    let world = World::with(|state, _| with_key(state));
    let old = held().secret.public();
    world.plane.told(|told| {
        told.key_use = vec![KeyUse { key: old, live: 1, away: 0, names: vec![] }];
    });
    let mut session = world.session().await;
    let serial = held().serial;
    session.welcome(60_000, system_time().0).await;
    session.send(ToAgent::Rotate(Rotate { up_to: serial, now: false })).await;
    let offered = session.hear_keys().await;
    let [new, before, clients] = offered.as_slice() else { panic!("{offered:?}") };
    assert!(new.serial > serial && new.x25519 != old, "{offered:?}");
    assert_eq!((before.x25519, before.is_for_clients()), (old, false));
    assert_eq!((clients.x25519, clients.is_for_clients()), (old, true));
    let on_disk: Vec<_> =
        world.state.tunnel_keys().unwrap().iter().map(|key| key.secret.public()).collect();
    assert_eq!(on_disk, [new.x25519, old]);
    let used = world.plane.told(|told| told.own_keys.last().cloned()).unwrap();
    assert_eq!(used.iter().map(|own| own.secret.public()).collect::<Vec<_>>(), on_disk);
    world.until("shown", |status| status.keys.len() == 2).await;
    assert_eq!(world.status.borrow().keys[1].needed_by, Some(1));

    // It says so again, as after a lost connection: that is done already.
    session.send(ToAgent::Rotate(Rotate { up_to: serial, now: false })).await;
    world
        .plane
        .told(|told| told.key_use = vec![KeyUse { key: old, live: 0, away: 0, names: vec![] }]);
    let offered = session.hear_keys().await;
    assert_eq!(publics(&offered), [new.x25519, old]);
    assert_eq!((offered[0].serial, offered[1].is_for_clients()), (new.serial, true));
    let used = world.plane.told(|told| told.own_keys.last().cloned()).unwrap();
    let kinds: Vec<_> = used.iter().map(|own| (own.gateways, own.clients)).collect();
    assert_eq!(kinds, [(true, false), (false, true)]);
    // What a restart finds is the same.
    let ring = Held::load(&world.state).unwrap().enrolled.unwrap().ring;
    assert_eq!(ring.newest().secret.public(), new.x25519);
    assert!(!ring.is_changing());
    world.finish().await;
}

#[tokio::test]
async fn a_key_is_changed_by_age_once_the_gateway_is_approved() {
    let world = World::with(|state, _| with_key(state));
    let mut session = world.session().await;
    let in_two_days = system_time().0 + 2 * 86_400_000;
    session.welcome(60_000, in_two_days).await;
    session.send(view_message(world.organisation.view(1, 1, Mode::Observe))).await;
    let offered = session.hear_keys().await;
    assert!(offered[0].serial >= in_two_days / 1000, "{offered:?}");
    assert_eq!(offered[1].x25519, held().secret.public());
    world.finish().await;
}

#[tokio::test]
async fn a_key_of_a_clock_that_was_years_ahead_is_replaced_once_and_again_when_asked() {
    let ahead = *MADE + 11 * 365 * 86_400;
    let world = World::with(move |state, _| {
        let key = TunnelKey { serial: ahead, made: UnixMillis(ahead * 1000), ..held() };
        state.write_tunnel_keys(&Ring::new(vec![key.clone()], key)).unwrap();
    });
    let old = held().secret.public();
    world
        .plane
        .told(|told| told.key_use = vec![KeyUse { key: old, live: 1, away: 1, names: vec![] }]);
    let mut session = world.session().await;
    session.welcome(60_000, system_time().0).await;
    session.send(view_message(world.organisation.view(1, 1, Mode::Observe))).await;
    let offered = session.hear_keys().await;
    assert_eq!((offered[0].serial, offered[1].serial), (ahead + 1, ahead), "{offered:?}");
    let made = world.state.tunnel_keys().unwrap()[0].made;
    assert!(!is_ahead(made, system_time()), "by the time of now: {made:?}");
    // On demand, above what somebody else has seen of it. Of itself it makes none before.
    session.send(ToAgent::Rotate(Rotate { up_to: ahead + 70, now: false })).await;
    let again = session.hear_keys().await;
    assert_eq!((again[0].serial, again[1].x25519), (ahead + 71, offered[0].x25519), "{again:?}");
    world.finish().await;
}

/// Serials end somewhere, and whoever has a controller mustn't take a gateway there.
#[tokio::test]
async fn no_controller_makes_serials_run_away() {
    let world = World::with(|state, _| with_key(state));
    let mut session = world.session().await;
    session.welcome(60_000, system_time().0).await;
    session.send(ToAgent::Rotate(Rotate { up_to: u64::MAX - 1, now: false })).await;
    let offered = session.hear_keys().await;
    assert!(offered[0].serial < *MADE + 101 * 366 * 86_400, "{offered:?}");
    world.finish().await;
}

#[tokio::test]
async fn old_keys_are_given_up_with_no_controller_in_sight() {
    let world = World::with(|state, _| {
        let ring = Ring::new(vec![held()], held());
        let secret = TunnelSecret::from_bytes([78; 32]);
        let then = UnixMillis((*MADE + 10) * 1000);
        state.write_tunnel_keys(&ring.with_new((secret, KEM.clone()), false, 0, then)).unwrap();
    });
    let old = held().secret.public();
    let needed_by = |live| vec![KeyUse { key: old, live, away: 0, names: vec![] }];
    world.plane.told(|told| told.key_use = needed_by(1));
    let mut session = world.session().await;
    session.welcome(60_000, system_time().0).await;
    world.until("connected", |status| status.connected.is_some() && status.keys.len() == 2).await;
    session.connection.close(0u32.into(), b"gone");
    world.until("cut off", |status| status.connected.is_none()).await;
    world.plane.told(|told| told.key_use = needed_by(0));
    world
        .until("given up", |status| {
            status.connected.is_none() && status.keys.iter().any(|key| key.serves == "clients")
        })
        .await;
    let own = world.plane.told(|told| told.own_keys.last().cloned()).unwrap();
    assert_eq!(own.iter().map(|own| own.gateways).collect::<Vec<_>>(), [true, false]);
    world.finish().await;
}

#[tokio::test]
async fn a_lost_ml_kem_key_is_an_alarm_while_no_controller_can_tell_of_another() {
    let world = World::with(|state, _| {
        let key = TunnelKey { kem: None, ..held() };
        state.write_tunnel_keys(&Ring::new(vec![key.clone()], key)).unwrap();
    });
    let told = |status: &ControlStatus| {
        status.alarms.iter().any(|alarm| alarm.what.contains("packets go without pre-shared keys"))
    };
    world.until("alarmed", told).await;
    // A key that no peer is told of would have them wait.
    let keys = world.state.tunnel_keys().unwrap();
    assert_eq!(keys.len(), 1, "{:?}", world.status.borrow());
    world.until("waiting is shown", |status| !status.keys.is_empty()).await;
    let mut session = world.session().await;
    session.welcome(60_000, system_time().0).await;
    session.send(view_message(world.organisation.view(1, 1, Mode::Observe))).await;
    let offered = session.hear_keys().await;
    assert!(offered[0].ml_kem_768.is_some() && offered[1].x25519 == held().secret.public());
    world.finish().await;
}

#[tokio::test]
async fn in_an_emergency_old_keys_that_wait_for_somebody_are_hurried() {
    let world = World::with(|state, _| {
        let ring = Ring::new(vec![held()], held());
        let long_ago = UnixMillis((*MADE + 10) * 1000);
        let ring =
            ring.with_new((TunnelSecret::from_bytes([78; 32]), KEM.clone()), false, 0, long_ago);
        state.write_tunnel_keys(&ring).unwrap();
    });
    let old = held().secret.public();
    world
        .plane
        .told(|told| told.key_use = vec![KeyUse { key: old, live: 3, away: 3, names: vec![] }]);
    let mut session = world.session().await;
    assert_eq!(session.hello.reachable.keys.len(), 3);
    session.welcome(60_000, system_time().0).await;
    // The gateway has changed its key by itself meanwhile.
    session.send(ToAgent::Rotate(Rotate { up_to: held().serial, now: true })).await;
    loop {
        let offered = session.hear_keys().await;
        if offered.len() == 2 {
            assert!(offered[1].is_for_clients(), "{offered:?}");
            break;
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn an_alarm_names_the_peers_that_hold_on_to_keys_replaced_a_day_ago() {
    let key = |number: u8, serial| {
        let secret = TunnelSecret::from_bytes([number; 32]);
        TunnelKey { serial, made: UnixMillis(serial * 1000), secret, ..held() }
    };
    let keys = vec![key(79, *MADE - 60), key(78, *MADE - 90_000), key(77, *MADE - 200_000)];
    let kept = keys.clone();
    let world = World::with(move |state, _| {
        state.write_tunnel_keys(&Ring::new(kept, held())).unwrap();
    });
    let peer = |number: u8| GatewayId::from_bytes([number; 16]);
    let uses = |late: &[u8]| {
        let one = |key: &TunnelKey, names: &[u8]| KeyUse {
            key: key.secret.public(),
            live: names.len(),
            away: 0,
            names: names.iter().map(|number| peer(*number)).collect(),
        };
        vec![one(&keys[0], &[41]), one(&keys[1], &[42]), one(&keys[2], late)]
    };
    world.plane.told(|told| told.key_use = uses(&[43]));
    let mut session = world.session().await;
    session.welcome(60_000, system_time().0).await;
    let alarms = |status: &ControlStatus| -> Vec<String> {
        let held = status.alarms.iter().filter(|alarm| alarm.what.contains("replaced a day ago"));
        held.map(|alarm| alarm.what.clone()).collect()
    };
    world.until("alarmed", |status| alarms(status).len() == 1).await;
    let said = alarms(&world.status.borrow()).remove(0);
    assert!(said.contains(&peer(43).to_string()), "{said}");
    // Those that use the newest, or one that was replaced a minute ago, are in time.
    assert!(!said.contains(&peer(41).to_string()), "{said}");
    assert!(!said.contains(&peer(42).to_string()), "{said}");
    assert!(said.contains("no newer one is made"), "there are as many as there may be: {said}");
    // Another one is told of, too.
    world.plane.told(|told| told.key_use = uses(&[43, 44]));
    world.until("alarmed again", |status| alarms(status).len() == 2).await;
    assert!(alarms(&world.status.borrow()).iter().any(|said| said.contains(&peer(44).to_string())));
    world.finish().await;
}

#[tokio::test]
async fn a_key_that_cannot_be_written_is_neither_used_nor_offered() {
    let (world, disc) = world(Mood::Full);
    let mut session = world.session().await;
    session.welcome(50, system_time().0 + 60_000).await;
    session.send(ToAgent::Rotate(Rotate { up_to: u64::MAX, now: true })).await;
    world
        .until("alarmed", |status| {
            status.alarms.iter().any(|alarm| alarm.what.contains("tunnel keys can't be changed"))
        })
        .await;
    assert!(world.plane.told(|told| told.own_keys.is_empty()));
    drop(disc);
    world.finish().await;
}
