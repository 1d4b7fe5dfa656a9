//! Whatever comes in whatever order: nothing passes that both passes don't allow, and nothing is lost count of.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::session::GRACE;
use super::*;

const GATEWAYS: u16 = 5;

#[derive(Debug, Clone)]
enum Step {
    /// A gateway comes, or comes again, with a pass that names these.
    Enter(u16, u8),
    /// A gateway that is here shows a newer pass.
    Renew(u16, u8),
    Leave(u16),
    /// A packet from a gateway to whatever it calls by this number.
    Send(u16, u16, bool, usize),
    /// One by the connection that its gateway's newest has replaced.
    SendBefore(u16, u16, usize),
    Fetch(u16),
    Room(u16, u16),
    Bar(u8),
    /// Hours go by on the controller's clock.
    Hours(u64),
    /// Seconds go by.
    Seconds(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let who = || 0..GATEWAYS;
    prop_oneof![
        2 => (who(), any::<u8>()).prop_map(|(who, peers)| Step::Enter(who, peers)),
        2 => (who(), any::<u8>()).prop_map(|(who, peers)| Step::Renew(who, peers)),
        1 => who().prop_map(Step::Leave),
        12 => (who(), 0..GATEWAYS + 1, any::<bool>(), 32usize..1500)
            .prop_map(|(who, number, bulk, len)| Step::Send(who, number, bulk, len)),
        3 => (who(), 0..GATEWAYS + 1, 32usize..1500)
            .prop_map(|(who, number, len)| Step::SendBefore(who, number, len)),
        6 => who().prop_map(Step::Fetch),
        1 => (who(), 1000u16..1500).prop_map(|(who, room)| Step::Room(who, room)),
        1 => prop_oneof![4 => Just(0u8), 1 => any::<u8>()].prop_map(Step::Bar),
        1 => (0u64..2).prop_map(Step::Hours),
        2 => (0u64..40).prop_map(Step::Seconds),
    ]
}

/// What a gateway knows and is, kept without the relay's help.
#[derive(Debug)]
struct Mirror {
    id: SessionId,
    peers: u8,
    issued: u64,
    /// Since when the pass is stale.
    stale: Option<Instant>,
    room: u16,
    /// From the relay's news: number to gateway and room.
    told: BTreeMap<u16, (GatewayId, Option<u16>)>,
    /// The connection before, and whom that called what.
    before: Option<(SessionId, BTreeMap<u16, GatewayId>)>,
}

fn named(mask: u8, who: u16) -> Vec<u16> {
    (0..GATEWAYS).filter(|n| *n != who && mask & (1 << n) != 0).collect()
}

/// Whether packets may pass, by the definition and nothing else.
fn open(here: &BTreeMap<u16, Mirror>, now: Instant, a: u16, b: u16) -> bool {
    let (Some(one), Some(other)) = (here.get(&a), here.get(&b)) else { return false };
    let fresh = |mirror: &Mirror| mirror.stale.is_none_or(|since| now < since + GRACE);
    named(one.peers, a).contains(&b)
        && named(other.peers, b).contains(&a)
        && (fresh(one) || fresh(other))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_passes_that_both_passes_dont_allow(steps in prop::collection::vec(step(), 1..150)) {
        let mut now = Instant::now();
        let limits = Limits { inbox: 6_000, outbox: 8_000, waiting: 20_000, ..Limits::default() };
        let mut relay = relay(limits);
        let mut here: BTreeMap<u16, Mirror> = BTreeMap::new();
        let (mut sequence, mut hours, mut newest, mut barred) = (0, 100, 0, 0u8);
        // Sealed packets by mark: from, to.
        let mut sent: Vec<(u16, GatewayId)> = Vec::new();
        for step in steps {
            match step {
                Step::Enter(who, peers) => {
                    sequence += 1;
                    let pass = pass_by(100, who, sequence, hours, &named(peers, who));
                    let entered = relay.enter(&pass, ROOM, now);
                    prop_assert_eq!(entered.is_err(), barred & (1 << who) != 0);
                    let Ok(entered) = entered else { continue };
                    newest = hours;
                    let before = here.remove(&who).map(|before| {
                        let called = before.told.iter().map(|(number, (gateway, _))| (*number, *gateway));
                        (before.id, called.collect())
                    });
                    prop_assert_eq!(entered.replaced, before.as_ref().map(|before| before.0));
                    let told = BTreeMap::new();
                    let mirror = Mirror { id: entered.session, peers, issued: hours, stale: None, room: ROOM, told, before };
                    here.insert(who, mirror);
                }
                Step::Renew(who, peers) => {
                    let Some(mirror) = here.get_mut(&who) else { continue };
                    sequence += 1;
                    let pass = pass_by(100, who, sequence, hours, &named(peers, who));
                    prop_assert_eq!(relay.renew(mirror.id, &pass, now), Ok(()));
                    newest = hours;
                    (mirror.peers, mirror.issued, mirror.stale) = (peers, hours, None);
                }
                Step::Leave(who) => {
                    if let Some(mirror) = here.remove(&who) { relay.leave(mirror.id); }
                }
                Step::Send(who, number, bulk, len) => {
                    let Some(mirror) = here.get(&who) else { continue };
                    let mark = u32::try_from(sent.len()).unwrap();
                    let told = mirror.told.get(&number).copied();
                    sent.push((who, told.map_or(gateway(999), |(gateway, _)| gateway)));
                    let result = relay.forward(mirror.id, packet(number, bulk, mark, len), now);
                    let room = told.and_then(|(_, room)| room);
                    let fits = room.is_some_and(|room| len <= usize::from(room));
                    match result {
                        Ok(_) | Err(Dropped::Full) => prop_assert!(fits, "{result:?}: told {told:?}"),
                        Err(_) => prop_assert!(!fits, "{result:?}: told {told:?}"),
                    }
                }
                Step::SendBefore(who, number, len) => {
                    let before = here.get(&who).and_then(|mirror| mirror.before.as_ref());
                    let Some((before, called)) = before else { continue };
                    // Numbers that it wasn't told of it doesn't use.
                    let Some(&to) = called.get(&number) else { continue };
                    let mark = u32::try_from(sent.len()).unwrap();
                    sent.push((who, to));
                    let result = relay.forward(*before, packet(number, false, mark, len), now);
                    let other = (0..GATEWAYS).find(|n| gateway(*n) == to && open(&here, now, who, *n));
                    let fits = other.is_some_and(|other| len <= usize::from(here[&other].room));
                    match result {
                        Ok(_) | Err(Dropped::Full) => prop_assert!(fits, "{result:?}: to {other:?}"),
                        Err(_) => prop_assert!(!fits, "{result:?}: to {other:?}"),
                    }
                }
                Step::Fetch(who) => {
                    let Some(mirror) = here.get(&who) else { continue };
                    let Some(datagram) = relay.next(mirror.id, now) else { continue };
                    let (number, mark) = read(&datagram);
                    let (from, to) = sent[mark as usize];
                    prop_assert_eq!(to, gateway(who));
                    prop_assert_eq!(mirror.told.get(&number).map(|told| told.0), Some(gateway(from)));
                    prop_assert!(open(&here, now, from, who));
                }
                Step::Room(who, room) => {
                    let Some(mirror) = here.get_mut(&who) else { continue };
                    mirror.room = room;
                    relay.set_room(mirror.id, room);
                }
                Step::Bar(mask) => {
                    barred = mask;
                    let out = (0..GATEWAYS).filter(|n| mask & (1 << n) != 0);
                    let over = relay.set_barred(out.clone().map(gateway).collect());
                    let gone: Vec<SessionId> =
                        out.filter_map(|n| here.remove(&n)).map(|mirror| mirror.id).collect();
                    prop_assert_eq!(over, gone);
                }
                Step::Hours(more) => hours += more,
                Step::Seconds(more) => {
                    let then = now + Duration::from_secs(more);
                    while let Some(due) = relay.due().filter(|due| *due <= then) {
                        prop_assert!(due > now, "what is due isn't done");
                        now = due;
                        relay.turn(now);
                    }
                    now = then;
                }
            }
            for mirror in here.values_mut() {
                let stale = newest > mirror.issued;
                mirror.stale = stale.then(|| mirror.stale.unwrap_or(now));
            }
            // Everyone who has something to hear is woken, and knows then what is.
            let woken = relay.woken();
            for mirror in here.values_mut() {
                let news = relay.news(mirror.id, 100);
                prop_assert!(news.is_empty() || woken.contains(&mirror.id));
                for state in news {
                    mirror.told.insert(state.number.get(), (state.gateway, state.room));
                }
            }
            for (a, one) in &here {
                for b in 0..GATEWAYS {
                    let told = one.told.values().find(|(peer, _)| *peer == gateway(b));
                    let expected = open(&here, now, *a, b).then(|| here[&b].room);
                    prop_assert_eq!(told.and_then(|(_, room)| *room), expected, "{} of {}", a, b);
                }
            }
            prop_assert!(relay.waiting() <= 20_000, "{} bytes wait", relay.waiting());
            prop_assert_eq!(relay.gateways(), here.len());
        }
        for mirror in here.values() { relay.leave(mirror.id); }
        prop_assert_eq!((relay.waiting(), relay.gateways()), (0, 0));
    }
}
