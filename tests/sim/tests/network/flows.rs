//! Flows outlive restarts, silence and changes of the clock, and end when their rule does.

use std::net::Ipv4Addr;
use std::time::Duration;

use anteroom_proto::intent::{Condition, KnownCondition};
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::{DropReason, Verdict};
use anteroom_sim::hospital::*;
use anteroom_sim::model::Way;
use anteroom_sim::packet::{self, TcpFlags};
use anteroom_sim::plan::Who;
use anteroom_sim::story::*;
use anteroom_sim::talk::Talk;
use anteroom_sim::world::{EPOCH, ROUTER, World};

/// The gateways of the CT, of the monitor and the pump, and of the PACS and the HL7 engine.
const IMAGING: usize = 0;
const WARD: usize = 1;
const SERVERS: usize = 2;
const HOUR: Duration = Duration::from_secs(3_600);

/// The hospital with everything enforced, its routers known.
fn enforced(seed: u64) -> World {
    let mut world = hospital(seed);
    world.apply_all();
    let _ = probe(&mut world, CT, PACS, (Protocol::Tcp, 104), 1, 1);
    let _ = probe(&mut world, MONITOR, HL7, (Protocol::Tcp, 2575), 2, 1);
    let _ = probe(&mut world, CT, ARCHIVE, (Protocol::Tcp, 104), 3, 1);
    for mode in [Mode::Protect, Mode::Enforce] {
        all(&mut world, mode);
    }
    world.clear_campus();
    world
}

fn is_live(world: &mut World, gateway: usize) -> bool {
    let now = world.now;
    let peers = world.engine(gateway).status(now).peers;
    !peers.is_empty() && peers.iter().all(|peer| peer.live)
}

/// Starts a gateway anew, and waits for its tunnels.
fn restart(world: &mut World, gateway: usize) {
    let learned = world.engine(gateway).learned();
    world.boot(gateway);
    world.engine(gateway).restore(learned);
    world.apply(gateway);
    let until = world.now + Duration::from_secs(10);
    while !is_live(world, gateway) {
        assert!(world.now < until, "gateway {gateway} has no tunnels after ten seconds");
        world.run(Duration::from_millis(10));
    }
    world.run(Duration::from_millis(20));
}

fn got(world: &World, host: usize, payload: &[u8]) -> bool {
    world.hosts[host].inbox.iter().any(|got| got.payload == payload)
}

#[test]
fn a_connection_is_picked_up_whoever_speaks_first_after_a_restart() {
    for mode in [Mode::Observe, Mode::Protect, Mode::Enforce] {
        for gateways in [vec![IMAGING], vec![SERVERS], vec![IMAGING, SERVERS]] {
            for speaker in [CT, PACS] {
                let mut world = enforced(1);
                all(&mut world, mode);
                let mut talk = Talk::new(world, [CT, PACS], 1);
                let connections = [talk.open(CT, PACS, 104), talk.open(PACS, CT, 4006)];
                talk.run(Duration::from_millis(200));
                talk.chatter(&connections, 10);
                for gateway in &gateways {
                    restart(&mut talk.world, *gateway);
                }
                talk.world.run(Duration::from_millis(200));
                for connection in &connections {
                    for _ in 0..3 {
                        talk.say(connection, speaker);
                        talk.run(Duration::from_millis(50));
                    }
                }
                talk.chatter(&connections, 20);
                talk.run(Duration::from_millis(50));
                let lost = talk.lost();
                assert!(lost.is_empty(), "{mode}, {gateways:?}, {speaker} first: {lost:#?}");
            }
        }
    }
}

#[test]
fn after_a_restart_only_the_initiator_takes_datagrams_up() {
    for gateway in [IMAGING, SERVERS] {
        let mut world = enforced(2);
        world.plan.rule("alarm", Who::Device(CT), Who::Device(PACS), &["udp/6000"]);
        world.plan.revise();
        world.apply_all();
        let (ct, pacs) = (world.hosts[CT].address, world.hosts[PACS].address);
        let say = |world: &mut World, from: usize, word: &[u8]| {
            let ends = ((ct, 39_000), (pacs, 6_000));
            let (own, to) = if from == CT { ends } else { (ends.1, ends.0) };
            world.act(from, |host, out| host.send(packet::udp(own, to, word), out));
            world.run(Duration::from_millis(50));
        };
        say(&mut world, CT, b"ask");
        say(&mut world, PACS, b"answer");
        assert!(got(&world, CT, b"answer"), "{:?}", world.hosts[CT].inbox);
        restart(&mut world, gateway);
        say(&mut world, PACS, b"unasked");
        assert!(!got(&world, CT, b"unasked"), "gateway {gateway} let the responder begin");
        say(&mut world, CT, b"ask again");
        say(&mut world, PACS, b"answer again");
        assert!(got(&world, PACS, b"ask again") && got(&world, CT, b"answer again"));
    }
}

#[test]
fn after_a_restart_nobody_opens_by_a_syn_ack_or_from_the_wrong_end() {
    for gateway in [IMAGING, SERVERS] {
        let mut world = enforced(3);
        let (ct, pacs) = (world.hosts[CT].address, world.hosts[PACS].address);
        world.act(CT, |host, out| host.connect((pacs, 104), 39_000, b"open", out));
        world.run(Duration::from_millis(200));
        restart(&mut world, gateway);
        world.clear_campus();
        for flags in [TcpFlags::SYN, TcpFlags::SYN | TcpFlags::ACK] {
            world.act(PACS, |host, out| {
                host.send(packet::tcp((pacs, 104), (ct, 39_000), flags, b""), out);
            });
            world.run(Duration::from_millis(50));
        }
        let seen = &world.hosts[CT].inbox;
        assert!(seen.is_empty(), "gateway {gateway}: {seen:?}");
    }
}

/// An ICMP "port unreachable" from `source` about a packet.
fn unreachable(source: Ipv4Addr, to: Ipv4Addr, about: &[u8]) -> Vec<u8> {
    let mut bytes = vec![3, 3, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&about[..about.len().min(28)]);
    let sum = anteroom_agent_core::checksum::Sum::new().bytes(&bytes).checksum();
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    packet::ipv4(source, to, 1, &bytes)
}

fn errors(world: &World, host: usize) -> usize {
    world.hosts[host].inbox.iter().filter(|got| got.protocol == 1).count()
}

#[test]
fn an_icmp_error_passes_with_the_flow_that_it_quotes_and_with_no_other() {
    let mut world = enforced(4);
    world.plan.rule("alarm", Who::Device(CT), Who::Device(PACS), &["udp/6000"]);
    world.plan.revise();
    world.apply_all();
    let (ct, pacs) = (world.hosts[CT].address, world.hosts[PACS].address);
    let sent = packet::udp((ct, 39_000), (pacs, 6_000), b"ask");
    let refuse = |world: &mut World, about: &[u8]| {
        let before = errors(world, CT);
        let error = unreachable(pacs, ct, about);
        world.act(PACS, |host, out| host.send(error, out));
        world.run(Duration::from_millis(50));
        errors(world, CT) > before
    };
    assert!(!refuse(&mut world, &sent), "there is no such flow");
    world.act(CT, |host, out| host.send(sent.clone(), out));
    world.run(Duration::from_millis(50));
    assert!(refuse(&mut world, &sent));
    // Whatever makes cached verdicts void leaves the flow as live as it was.
    world.plan.revise();
    world.apply_all();
    assert!(refuse(&mut world, &sent), "the flow is allowed still");
    let other = packet::udp((ct, 39_001), (pacs, 6_000), b"ask");
    assert!(!refuse(&mut world, &other));
    // A stranger on the campus, and the router, know nothing of what the tunnel carries.
    for (host, source) in [(INTRUDER, pacs), (INTRUDER, [10, 20, 1, 1].into())] {
        let error = unreachable(source, ct, &sent);
        let (mac, from) = (world.hosts[CT].mac, world.hosts[host].mac);
        let before = errors(&world, CT);
        world.put(host, packet::frame(mac, from, 0x0800, &error));
        world.put(host, packet::frame(mac, ROUTER, 0x0800, &error));
        world.run(Duration::from_millis(50));
        assert_eq!(errors(&world, CT), before, "{source} in the clear");
    }
    // Once the rule is gone, so is what quotes its flows.
    world.plan.rules.retain(|rule| rule.name != "alarm");
    world.plan.revise();
    world.apply(IMAGING);
    assert!(!refuse(&mut world, &sent), "the rule is gone");
}

#[test]
fn a_router_may_report_on_a_flow_in_the_clear_before_and_after_a_change() {
    let mut world = enforced(5);
    let (ct, archive) = (world.hosts[CT].address, world.hosts[ARCHIVE].address);
    let syn = packet::tcp((ct, 39_000), (archive, 104), TcpFlags::SYN, &[]);
    world.act(CT, |host, out| host.send(syn.clone(), out));
    world.run(Duration::from_millis(50));
    for step in 0..2 {
        let before = errors(&world, CT);
        let error = unreachable([10, 20, 1, 1].into(), ct, &syn);
        world.put(INTRUDER, packet::frame(world.hosts[CT].mac, ROUTER, 0x0800, &error));
        world.run(Duration::from_millis(50));
        assert!(errors(&world, CT) > before, "step {step}");
        world.plan.revise();
        world.apply_all();
    }
}

#[test]
fn a_connection_may_be_idle_for_a_day() {
    let world = enforced(6);
    let mut talk = Talk::new(world, [CT, PACS], 6);
    let connections = [talk.open(CT, PACS, 104), talk.open(PACS, CT, 4006)];
    talk.run(Duration::from_millis(200));
    talk.chatter(&connections, 10);
    let clear = (talk.world.hosts[ARCHIVE].address, 104);
    talk.world.act(CT, |host, out| host.connect(clear, 39_000, b"open", out));
    talk.run(Duration::from_millis(200));
    let flows = |talk: &mut Talk| {
        let now = talk.world.now;
        let mut flows = talk.world.engine(IMAGING).flows(now, 100);
        flows.retain(|flow| [39_000, 50_000, 50_001].contains(&flow.initiator_port));
        flows
    };
    let before = flows(&mut talk);
    assert!(
        before.len() == 3 && before.iter().all(|flow| flow.state == "established"),
        "{before:#?}"
    );
    talk.world.run(24 * HOUR);
    for speaker in [PACS, CT] {
        for connection in &connections {
            talk.say(connection, speaker);
            talk.run(Duration::from_millis(50));
        }
    }
    let lost = talk.lost();
    assert!(lost.is_empty(), "{lost:#?}");
    let after = flows(&mut talk);
    assert!(
        after.len() == 3 && after.iter().all(|flow| flow.age_ms > 23 * 3_600_000),
        "not picked up but kept: {after:#?}"
    );
    // The one whom the flow in the clear is with speaks first.
    let ct = talk.world.hosts[CT].address;
    talk.world.act(ARCHIVE, |host, out| {
        host.send(packet::tcp(clear, (ct, 39_000), TcpFlags::ACK, b"morning"), out);
    });
    talk.run(Duration::from_millis(50));
    assert!(got(&talk.world, CT, b"morning"), "{:?}", talk.world.hosts[CT].inbox);
}

/// A world in which the HL7 engine may open tcp/5900 to the pump, the MRI tcp/5900 to the CT beside it, and the CT
/// tcp/5900 to the archive, all until `end`; with a connection on each.
fn vendor(seed: u64, end: UnixMillis) -> (World, [(usize, usize, u16); 3]) {
    let mut world = enforced(seed);
    for (name, from, to) in [
        ("far", Who::Device(HL7), Who::Device(PUMP)),
        ("beside", Who::Device(MRI), Who::Device(CT)),
        ("outside", Who::Device(CT), Who::External(0)),
    ] {
        let rule = world.plan.rule(name, from, to, &["tcp/5900"]);
        rule.clear = true;
        rule.conditions = vec![Condition::Known(KnownCondition::NotAfter(end))];
    }
    world.plan.signed_at = EPOCH;
    world.plan.revise();
    world.apply_all();
    let connections = [(HL7, PUMP, 39_001), (MRI, CT, 39_002), (CT, ARCHIVE, 39_003)];
    for (from, to, own) in connections {
        let target = (world.hosts[to].address, 5_900);
        world.act(from, |host, out| host.connect(target, own, b"open", out));
        world.run(Duration::from_millis(200));
        assert!(
            got(&world, to, b"open"),
            "{}",
            explain(&mut world, from, to, (Protocol::Tcp, 5900))
        );
    }
    (world, connections)
}

#[test]
fn a_rules_end_cuts_live_flows_on_every_path_whoever_speaks_first() {
    for client_first in [true, false] {
        let (mut world, connections) = vendor(7, EPOCH.saturating_add(60_000));
        world.run(Duration::from_secs(61));
        world.clear_campus();
        for (client, server, own) in connections {
            let ends = ((world.hosts[client].address, own), (world.hosts[server].address, 5_900));
            for at in 0..4 {
                let by_client = client_first == (at < 2);
                let (host, from, to) =
                    if by_client { (client, ends.0, ends.1) } else { (server, ends.1, ends.0) };
                world.act(host, |host, out| {
                    let flags = TcpFlags::ACK | TcpFlags::PSH;
                    host.send(packet::tcp(from, to, flags, b"late"), out);
                });
                world.run(Duration::from_millis(100));
            }
            for host in [client, server] {
                let name = world.hosts[host].name;
                assert!(
                    !got(&world, host, b"late"),
                    "{name} heard it, client first: {client_first}\n{}",
                    explain(&mut world, client, server, (Protocol::Tcp, 5900))
                );
            }
        }
        let now = world.now;
        let drops = world.engine(IMAGING).status(now).drops;
        assert!(drops.contains_key("expired"), "{drops:?}");
    }
}

fn verdict(world: &mut World, gateway: usize, from: usize, to: usize) -> Verdict {
    let (why, now) = (question(world, from, to, "tcp/5900"), world.now);
    world.engine(gateway).explain(&why, now).verdict
}

/// Starts a gateway with this clock, which nobody confirms, and cut off from its peers.
fn power_cycle(world: &mut World, gateway: usize, wall: UnixMillis) {
    world.weather.loss = 100;
    let learned = world.engine(gateway).learned();
    world.boot_unsure(gateway);
    let now = world.now;
    world.engine(gateway).set_time(wall, false, now);
    world.engine(gateway).restore(learned);
    world.apply(gateway);
    world.run(Duration::from_secs(2));
}

#[test]
fn a_clock_of_1970_opens_nothing_that_ends_and_closes_nothing_that_does_not() {
    let (mut world, _) = vendor(8, EPOCH.saturating_add(3_600_000));
    power_cycle(&mut world, IMAGING, UnixMillis(0));
    assert_eq!(verdict(&mut world, IMAGING, MRI, CT), Verdict::Drop(DropReason::TimeUnknown));
    assert_eq!(verdict(&mut world, IMAGING, CT, ARCHIVE), Verdict::Drop(DropReason::TimeUnknown));
    expect(&mut world, CT, MRI, (Protocol::Udp, 7000), Way::Local);
    expect(&mut world, CT, ARCHIVE, (Protocol::Tcp, 104), Way::Clear);
    // A peer knows the time.
    world.weather.loss = 0;
    world.run(Duration::from_secs(10));
    expect(&mut world, MRI, CT, (Protocol::Tcp, 5900), Way::Local);
    expect(&mut world, HL7, PUMP, (Protocol::Tcp, 5900), Way::Tunnel);
}

#[test]
fn switching_the_power_off_just_before_the_end_extends_nothing() {
    let end = EPOCH.saturating_add(60_000);
    // The battery of the clock is empty, it stood still, or it is right.
    for clock in [UnixMillis(0), EPOCH.saturating_add(50_000), EPOCH.saturating_add(200_000)] {
        let (mut world, _) = vendor(9, end);
        while world.wall() < EPOCH.saturating_add(59_000) {
            world.run(Duration::from_millis(100));
        }
        world.stop(IMAGING);
        world.run(Duration::from_secs(120));
        // A gateway that is off has no state to keep.
        world.boot(IMAGING);
        power_cycle(&mut world, IMAGING, clock);
        assert_eq!(verdict(&mut world, IMAGING, MRI, CT), Verdict::Drop(DropReason::TimeUnknown));
        world.weather.loss = 0;
        world.run(Duration::from_secs(10));
        assert_eq!(verdict(&mut world, IMAGING, MRI, CT), Verdict::Drop(DropReason::Expired));
        expect(&mut world, MRI, CT, (Protocol::Tcp, 5900), Way::None);
    }
}

#[test]
fn what_was_signed_after_a_rules_end_proves_it_over_without_a_clock() {
    let end = EPOCH.saturating_add(60_000);
    let (mut world, _) = vendor(10, end);
    world.run(Duration::from_secs(90));
    world.plan.signed_at = world.wall();
    world.plan.revise();
    world.apply_all();
    power_cycle(&mut world, IMAGING, UnixMillis(0));
    assert_eq!(verdict(&mut world, IMAGING, MRI, CT), Verdict::Drop(DropReason::Expired));
}

/// The ward's gateway is in other hands, the servers' hears it, and the scanners' hears only the servers'.
#[test]
fn a_peer_that_tells_a_time_to_come_closes_its_own_rules_and_nobody_elses() {
    let day = 24 * 3_600_000;
    let end = EPOCH.saturating_add(30 * day);
    for lie in [EPOCH.saturating_add(4000 * day), UnixMillis(u64::MAX)] {
        let (mut world, _) = vendor(13, end);
        let now = world.now;
        world.engine(WARD).set_time(lie, true, now);
        // An honest peer is in sight, too.
        power_cycle(&mut world, SERVERS, EPOCH);
        world.weather.loss = 0;
        world.run(Duration::from_secs(20));
        assert_eq!(verdict(&mut world, SERVERS, HL7, PUMP), Verdict::Tunnel);
        // Power is cut everywhere, and no controller is in sight.
        for gateway in [IMAGING, SERVERS] {
            power_cycle(&mut world, gateway, EPOCH);
        }
        world.weather.loss = 0;
        world.run(Duration::from_secs(20));
        let (liar, now) = (world.plan.gateways[WARD].id, world.now);
        for (gateway, liars) in [(IMAGING, vec![]), (SERVERS, vec![liar])] {
            assert!(is_live(&mut world, gateway));
            let status = world.engine(gateway).status(now);
            assert!(!status.time_confirmed, "{gateway}: {:?}", status.time);
            assert!(status.time < EPOCH.saturating_add(day), "{gateway}: {:?}", status.time);
            let named: Vec<_> = status.doubted.iter().map(|doubted| doubted.gateway).collect();
            assert_eq!(named, liars, "{:?}", status.doubted);
        }
        let unknown = Verdict::Drop(DropReason::TimeUnknown);
        assert_eq!(verdict(&mut world, SERVERS, HL7, PUMP), unknown);
        assert_eq!(verdict(&mut world, IMAGING, MRI, CT), unknown);
        let (wall, now) = (world.wall(), world.now);
        world.engine(SERVERS).set_time(wall, true, now);
        assert_eq!(verdict(&mut world, SERVERS, HL7, PUMP), Verdict::Tunnel);
        world.run(Duration::from_secs(20));
        expect(&mut world, MRI, CT, (Protocol::Tcp, 5900), Way::Local);
    }
}

#[test]
fn a_peers_word_goes_no_further_and_a_controllers_overrules_it() {
    let hour = 3_600_000;
    let (mut world, _) = vendor(14, EPOCH.saturating_add(10 * hour));
    // Twelve hours ahead: that may be.
    let (lie, now) = (world.wall().saturating_add(12 * hour), world.now);
    world.engine(WARD).set_time(lie, true, now);
    world.stop(IMAGING);
    power_cycle(&mut world, SERVERS, EPOCH);
    world.weather.loss = 0;
    world.run(Duration::from_secs(20));
    let expired = Verdict::Drop(DropReason::Expired);
    assert_eq!(verdict(&mut world, SERVERS, HL7, PUMP), expired);
    world.boot_unsure(IMAGING);
    world.apply(IMAGING);
    world.run(Duration::from_secs(20));
    assert!(is_live(&mut world, IMAGING));
    let unknown = Verdict::Drop(DropReason::TimeUnknown);
    assert_eq!(verdict(&mut world, IMAGING, MRI, CT), unknown, "that is hearsay");
    let (wall, now) = (world.wall(), world.now);
    world.engine(SERVERS).set_time(wall, true, now);
    let status = world.engine(SERVERS).status(now);
    assert_eq!((status.time, status.doubted.len()), (wall, 1), "{:?}", status.doubted);
    assert!(status.doubted[0].overruled);
    assert_eq!(verdict(&mut world, SERVERS, HL7, PUMP), Verdict::Tunnel);
    world.run(Duration::from_secs(20));
    expect(&mut world, MRI, CT, (Protocol::Tcp, 5900), Way::Local);
}

#[test]
fn a_clock_that_is_set_back_brings_nothing_back() {
    let end = EPOCH.saturating_add(60_000);
    let (mut world, _) = vendor(11, end);
    world.run(Duration::from_secs(90));
    let now = world.now;
    for gateway in [IMAGING, WARD, SERVERS] {
        for confirmed in [false, true] {
            world.engine(gateway).set_time(EPOCH, confirmed, now);
        }
    }
    assert_eq!(verdict(&mut world, IMAGING, MRI, CT), Verdict::Drop(DropReason::Expired));
    expect(&mut world, HL7, PUMP, (Protocol::Tcp, 5900), Way::None);
    // Nor does a leap of years ahead open anything, or close what has no end.
    world.engine(IMAGING).set_time(EPOCH.saturating_add(1 << 40), true, now);
    world.run(Duration::from_secs(2));
    expect(&mut world, CT, PACS, (Protocol::Tcp, 104), Way::Tunnel);
    assert_eq!(verdict(&mut world, IMAGING, MRI, CT), Verdict::Drop(DropReason::Expired));
}
