//! What it takes to put a view in force while packets wait, counted in what is done rather than in time.

use super::*;
use crate::policy::MADE;

const PEERS: u16 = 3_000;
/// What may be done in one turn, of peers.
const A_TURN: u64 = 64;

fn usual() -> Arc<View> {
    view([Mode::Enforce, Mode::Enforce], &["tcp/104"])
}

/// The usual view, with as many peers more, each with a device that the first one here may send to.
fn crowded(revision: u64, peers: u16) -> Arc<View> {
    let mut view = View::clone(&usual());
    view.revision = revision;
    for number in 0..peers {
        let [a, b] = number.to_be_bytes();
        let gateway = GatewayId::from_bytes([7, a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let id = MemberId::from_bytes([8, a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let address = Ipv4Addr::new(10, 30 + a, b, 1).to_string() + "/32";
        let mut one = member(0, gateway, &address, Mode::Enforce);
        (one.id, one.mac) = (id, MacAddr([0, 0x1b, 0x22, 0, a, b]));
        one.overlay = overlay::member_address(ORGANISATION, id);
        view.intent.members.push(one);
        let mut rule = view.intent.rules[0].clone();
        rule.id = RuleId::of(&format!("crowd-{number}"));
        rule.to = Endpoint::Member(id);
        view.intent.rules.push(rule);
        let mut secret = [7; 32];
        (secret[1], secret[2]) = (a, b);
        let known = PeerGateway {
            gateway,
            identity: IdentityKey::from_seed(&[3; 32]).public(),
            overlay: overlay::gateway_address(ORGANISATION, gateway),
        };
        view.intent.peers.push(known.clone());
        view.peers.push(Peer {
            gateway: known,
            endpoints: vec![SocketAddr::from(([198, 18, a, b], 51_820))],
            keys: vec![TunnelKeyBinding {
                organisation: ORGANISATION,
                gateway,
                x25519: TunnelSecret::from_bytes(secret).public(),
                ml_kem_768: None,
                serial: 1,
                not_before: UnixMillis(0),
            }],
            quic: None,
        });
    }
    Arc::new(view)
}

fn prepared(engine: &mut Engine, view: &Arc<View>) -> Prepared {
    let (ports, seed) = ([name("port1"), name("port2")], engine.seed());
    Prepared::new(view, &ports, &seed)
}

/// Does what is due until nothing is, or `until` returns true. Returns the most peers that were admitted, and the most
/// messages that were sent, in a single turn.
fn turns(engine: &mut Engine, now: Instant, until: impl Fn(&Engine) -> bool) -> (u64, usize) {
    let (mut admitted, mut sent) = (0, 0);
    for _ in 0..10_000 {
        if until(engine) || engine.poll_timeout().is_none_or(|(at, _)| at > now) {
            return (admitted, sent);
        }
        let (before, mut out) = (engine.admitted, Kept::default());
        engine.handle_timeout(now, &mut out);
        admitted = admitted.max(engine.admitted - before);
        sent = sent.max(out.datagrams.len());
    }
    panic!("it never ends: {:?}", engine.poll_timeout());
}

#[test]
fn a_view_with_thousands_of_peers_is_put_in_force_in_steps() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(usual(), now);
    let ready = prepared(&mut engine, &crowded(2, PEERS));
    let (made, before) = (MADE.get(), engine.admitted);
    engine.put_in_force(ready, now);
    assert_eq!(MADE.get(), made, "the policy was made while packets waited");
    assert!(engine.admitted - before <= A_TURN, "{} peers", engine.admitted - before);
    assert_eq!(engine.peers.made_tunnels(), 0, "no multiplication on a curve");
    let revision = |engine: &Engine| engine.status(now).view.unwrap().revision;
    assert_eq!(revision(&engine), 2, "what it says holds at once");
    let (admitted, sent) = turns(&mut engine, now, |_| false);
    assert!(admitted <= A_TURN && sent <= 32, "{admitted} peers, {sent} messages in a turn");
    assert_eq!(engine.peers.iter().count(), usize::from(PEERS) + 1);
    // Handshakes begin one after the other.
    let later = now + Duration::from_millis(100);
    let (_, sent) = turns(&mut engine, later, |_| false);
    let made = engine.peers.made_tunnels();
    assert!((1..=60).contains(&made) && sent <= 32, "{made} after a tenth of a second");
    // The same peers with another view: nothing begins anew.
    let ready = prepared(&mut engine, &crowded(3, PEERS));
    engine.put_in_force(ready, later);
    let (admitted, sent) = turns(&mut engine, later, |_| false);
    assert!(admitted <= A_TURN && sent <= 32, "{admitted} peers, {sent} messages in a turn");
    assert_eq!(engine.peers.made_tunnels(), made);
    assert_eq!(engine.peers.iter().count(), usize::from(PEERS) + 1);
}

#[test]
fn what_a_view_closes_is_closed_at_once_though_it_opens_in_steps() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(crowded(1, 200), now);
    assert_eq!(engine.peers.iter().count(), 201);
    // A key is taken from the last, and the rest is gone.
    let mut view = View::clone(&crowded(2, 200));
    let last = view.peers.pop().unwrap();
    view.peers.retain(|peer| peer.gateway.gateway == OTHER);
    view.peers.push(Peer { keys: Vec::new(), ..last.clone() });
    let ready = prepared(&mut engine, &Arc::new(view));
    engine.put_in_force(ready, now);
    assert_eq!(engine.peers.iter().count(), 2);
    let slot = engine.peers.slot(last.gateway.gateway).unwrap();
    assert!(engine.peers.way(slot).is_none(), "its key is void");
    // A view that comes while one is still being followed takes its place.
    let ready = prepared(&mut engine, &crowded(3, PEERS));
    engine.put_in_force(ready, now);
    let ready = prepared(&mut engine, &usual());
    engine.put_in_force(ready, now);
    let _ = turns(&mut engine, now, |_| false);
    assert_eq!(engine.peers.iter().count(), 1);
}

#[test]
fn what_a_view_made_void_is_handed_out_to_be_dropped_elsewhere() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    let views = [crowded(1, 3), crowded(2, 3)];
    for view in &views {
        let ready = prepared(&mut engine, view);
        engine.put_in_force(ready, now);
    }
    let ready = prepared(&mut engine, &usual());
    engine.put_in_force(ready, now);
    let held = |views: &[Arc<View>]| views.iter().map(Arc::strong_count).collect::<Vec<_>>();
    let retired = engine.take_retired().unwrap();
    assert_eq!(held(&views), [2, 2], "nothing is dropped here");
    drop(retired);
    assert_eq!(held(&views), [1, 1], "and nothing is kept");
    assert!(engine.take_retired().is_none());
}

#[test]
fn a_device_without_a_place_counts_as_absent_however_the_view_came() {
    let now = start();
    let mut twice = View::clone(&usual());
    // Two devices with one Ethernet address: only one of them can have its place.
    twice.intent.devices[1].member.mac = twice.intent.devices[0].member.mac;
    let twice = Arc::new(twice);
    let mut outcomes = Vec::new();
    for by_steps in [false, true] {
        let mut engine = engine(Limits::default(), now);
        if by_steps {
            let ready = prepared(&mut engine, &twice);
            let made = MADE.get();
            engine.put_in_force(ready, now);
            assert_eq!(MADE.get(), made, "the policy was made anew while packets waited");
        } else {
            engine.apply(Arc::clone(&twice), now);
        }
        let policy = engine.policy.as_ref().unwrap();
        let known: Vec<bool> = twice
            .intent
            .devices
            .iter()
            .map(|device| policy.find(device.member.id).is_some())
            .collect();
        assert_eq!(known.iter().filter(|known| **known).count(), 1, "{known:?}");
        outcomes.push(known);
    }
    assert_eq!(outcomes[0], outcomes[1]);
}
