//! Attacks on tunnels and on the control channel: a stolen gateway (statements 3, 4 and 10), replays, altered packets, and
//! floods.

#[path = "tunnel/classic.rs"]
mod classic;
#[path = "tunnel/rekey.rs"]
mod rekey;
#[path = "tunnel/stolen.rs"]
mod stolen;

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anteroom_agent_core::peer::Sent;
use anteroom_e2e::attack::{self, MARK};
use anteroom_e2e::queue::{Queue, overrun};
use anteroom_e2e::stolen::Stolen;
use anteroom_e2e::wire::End;
use anteroom_e2e::{Stage, drops, fixture, sum};
use anteroom_lab::hospital::{Hospital, MACHINES, address};
use anteroom_lab::ping::{self, Pinging};
use anteroom_lab::story::revoke;
use anteroom_lab::wait;
use anteroom_proto::id::GatewayId;

const BEAT: Duration = Duration::from_millis(5);

fn at(name: &str) -> Ipv4Addr {
    MACHINES.iter().find(|plan| plan.name == name).unwrap().address()
}

/// What a thief of the imaging gateway might say to the servers' gateway.
fn forbidden() -> Vec<(String, Vec<u8>)> {
    let (ct, pacs, hl7) = (at("ct-1"), at("pacs-1"), at("hl7-1"));
    let mut all = Vec::new();
    let mut add = |name: String, packet: Vec<u8>| all.push((name, packet));
    for (whose, from) in [
        ("the pump's", at("pump-1")),
        ("the monitor's", at("monitor-1")),
        ("the PACS' own", pacs),
        ("its neighbour's", hl7),
        ("the external's", at("archive-1")),
        ("a stranger's", Ipv4Addr::new(198, 51, 100, 9)),
        ("the thief's gateway's", address("imaging", 2)),
        ("the servers' gateway's", address("servers", 2)),
        ("the router's", address("servers", 1)),
        ("no", Ipv4Addr::UNSPECIFIED),
        ("everybody's", Ipv4Addr::BROADCAST),
        ("the host's own", Ipv4Addr::LOCALHOST),
        ("a group's", Ipv4Addr::new(224, 0, 0, 1)),
    ] {
        for (to, port) in [(pacs, 104), (hl7, 2_575)] {
            for flags in [0x02, 0x12, 0x10] {
                add(
                    format!("TCP {flags:#04x} to {to} with {whose} address"),
                    attack::tcp(((from, 40_000), (to, port)), flags),
                );
            }
            add(
                format!("UDP to {to} with {whose} address"),
                attack::udp(((from, port), (to, port)), b""),
            );
            add(
                format!("an echo to {to} with {whose} address"),
                attack::icmp(from, to, (8, 0), &[0; 4]),
            );
        }
    }
    for port in [22, 80, 443, 445, 2_575, 4_006] {
        add(
            format!("the CT's SYN to port {port}"),
            attack::tcp(((ct, 40_000), (pacs, port)), 0x02),
        );
        add(format!("the CT's UDP to port {port}"), attack::udp(((ct, 40_000), (pacs, port)), b""));
    }
    add("the CT's UDP to DICOM's port".into(), attack::udp(((ct, 40_000), (pacs, 104)), b""));
    add(
        "the CT's SYN-ACK that nobody asked for".into(),
        attack::tcp(((ct, 4_006), (pacs, 40_000)), 0x12),
    );
    for kind in [(3, 1), (5, 1), (11, 0), (13, 0), (17, 0)] {
        let quoted = attack::tcp(((pacs, 1), (ct, 2)), 0x10);
        let body = [&address("imaging", 66).octets()[..], &quoted[..28]].concat();
        add(format!("ICMP {kind:?} of the CT"), attack::icmp(ct, pacs, kind, &body));
    }
    for (whom, to) in [
        ("its neighbour", hl7),
        ("a member behind another gateway", at("monitor-1")),
        ("the external", at("archive-1")),
        ("somebody on the campus", at("ws-1")),
        ("the servers' gateway", address("servers", 2)),
        ("the servers' router", address("servers", 1)),
        ("the controller", address("mgmt", 10)),
        ("everybody", Ipv4Addr::BROADCAST),
        ("everybody there", address("servers", 255)),
        ("a group", Ipv4Addr::new(239, 255, 255, 250)),
        ("nobody", Ipv4Addr::UNSPECIFIED),
        ("the host itself", Ipv4Addr::LOCALHOST),
    ] {
        for flags in [0x02, 0x10] {
            add(
                format!("TCP {flags:#04x} of the CT to {whom}"),
                attack::tcp(((ct, 40_000), (to, 104)), flags),
            );
        }
        add(format!("an echo of the CT to {whom}"), attack::icmp(ct, to, (8, 0), &[0; 4]));
    }
    for protocol in [0, 2, 4, 41, 47, 50, 132, 255] {
        let inner = attack::tcp(((ct, 40_000), (pacs, 104)), 0x02);
        add(format!("IP protocol {protocol}"), attack::ip(ct, pacs, protocol, 0, &inner));
    }
    add("a first fragment without its header".into(), attack::ip(ct, pacs, 6, 0x2000, &[0; 8]));
    add("a later fragment".into(), attack::ip(ct, pacs, 6, 0x2004, &[MARK, &[0; 13]].concat()));
    let mut v6 = attack::icmpv6(128, MARK);
    v6[8..24].copy_from_slice(&[0xfd; 16]);
    add("IPv6".into(), v6);
    all
}

fn peer_of(stolen: &Stolen, owner_of: Ipv4Addr) -> GatewayId {
    let members = &stolen.view.intent.members;
    let member = members.iter().find(|m| m.addresses.iter().any(|net| net.contains(&owner_of)));
    member.expect("the member stands in the stolen view").gateway
}

/// Marked frames that came out.
fn marked(end: &mut End, patience: Duration) -> Vec<Vec<u8>> {
    end.listen(patience).unwrap();
    end.take().into_iter().filter(|frame| attack::is_marked(frame)).collect()
}

#[test]
fn a_stolen_gateway_opens_nothing_beyond_its_rules_and_nothing_once_revoked() {
    let test = "a_stolen_gateway_opens_nothing_beyond_its_rules_and_nothing_once_revoked";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &mut fixture.hospital;
    hospital.gateway("imaging").kill().unwrap();
    let mut stolen = Stolen::take(&hospital.gateways["imaging"]).unwrap();
    let servers = peer_of(&stolen, at("pacs-1"));

    // Need to know: of the ward it has learnt nothing, and of the servers just whom its devices share a rule with.
    let text = format!("{:?}", stolen.view);
    for name in ["pump-1", "monitor-1", "hl7-1"] {
        assert!(!text.contains(&at(name).to_string()), "the stolen view names {name}");
    }
    assert_eq!(stolen.view.peers.len(), 1, "{:?}", stolen.view.peers);

    wait::until(Duration::from_secs(60), "the thief's session", || {
        stolen.run(Duration::from_millis(50)).unwrap();
        stolen.is_live(servers).then_some(())
    })
    .unwrap();
    let mut ends: Vec<(String, End)> = ["pacs-1", "hl7-1"]
        .map(|name| (name.to_owned(), End::open(&hospital.machine(name).host, "eth0").unwrap()))
        .into();
    ends.push(("the campus".into(), End::open(&hospital.campus, "u-servers").unwrap()));

    // What its rules open it can do: so the attack reaches as far as it should.
    let allowed = attack::tcp(((at("ct-1"), 41_000), (at("pacs-1"), 104)), 0x02);
    assert_eq!(stolen.say(servers, &allowed).unwrap(), Sent::Sealed);
    assert_eq!(marked(&mut ends[0].1, Duration::from_secs(20)).len(), 1, "a CT's SYN isn't taken");

    let before = drops(&hospital.gateways["servers"]).unwrap();
    let attempts = forbidden();
    for (name, packet) in &attempts {
        assert_eq!(stolen.say(servers, packet).unwrap(), Sent::Sealed, "{name}");
        stolen.run(Duration::from_millis(1)).unwrap();
    }
    for (where_, end) in &mut ends {
        let came: Vec<String> = marked(end, Duration::from_millis(300))
            .iter()
            .map(|frame| {
                let packet = &frame[14..];
                let known = attempts
                    .iter()
                    .find(|(_, sent)| sent[12..] == *packet.get(12..).unwrap_or_default());
                known.map_or_else(|| format!("{frame:02x?}"), |(name, _)| name.clone())
            })
            .collect();
        assert!(came.is_empty(), "{where_} heard {came:?}");
    }
    let after = drops(&hospital.gateways["servers"]).unwrap();
    let grown = |reason: &str| after.get(reason).unwrap_or(&0) - before.get(reason).unwrap_or(&0);
    assert!(grown("peer-source") > 50 && grown("peer-destination") > 10, "{before:?} {after:?}");

    // Revoked, its session is worth nothing, and nobody takes up another.
    revoke(hospital, "imaging").unwrap();
    wait::until(Duration::from_secs(60), "the revocation to be in force", || {
        ends[0].1.take();
        stolen.say(servers, &allowed).unwrap();
        marked(&mut ends[0].1, Duration::from_millis(200)).is_empty().then_some(())
    })
    .unwrap();
    drop(stolen);
    let mut again = Stolen::take(&hospital.gateways["imaging"]).unwrap();
    again.run(Duration::from_secs(6)).unwrap();
    assert_eq!(again.heard, 0, "a revoked gateway was answered");
    assert!(!again.is_live(servers));
    again.say(servers, &allowed).unwrap();
    again.run(Duration::from_millis(300)).unwrap();
    assert!(marked(&mut ends[0].1, Duration::from_millis(100)).is_empty());
    drop(again);

    // Nor does the controller tell it anything any more.
    let gateway = hospital.gateway("imaging");
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
    wait::until_ok(Duration::from_secs(60), "the controller to refuse it", || {
        let status = gateway.status()?;
        let control = status["control"].to_string();
        anyhow::ensure!(control.contains("revoked") || control.contains("refused"), "{control}");
        Ok(())
    })
    .unwrap();
}

/// Frames with datagrams that came to an end, of which `wanted` likes the ends.
fn datagrams(
    end: &mut End,
    patience: Duration,
    wanted: impl Fn(attack::Ends) -> bool,
) -> Vec<Vec<u8>> {
    end.listen(patience).unwrap();
    let heard = end.take();
    heard
        .into_iter()
        .filter(|frame| attack::datagram(frame).is_some_and(|(ends, _)| wanted(ends)))
        .collect()
}

/// Restarts the imaging gateway under a capture of what reaches the servers' gateway and the controller from it.
fn recorded(hospital: &mut Hospital) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let mut tunnel = End::open(&hospital.gateways["servers"].host, "uplink").unwrap();
    let mut control = End::open(&hospital.controller.host, "eth0").unwrap();
    hospital.gateway("imaging").kill().unwrap();
    hospital.gateway("imaging").start().unwrap();
    hospital.gateway("imaging").wait_running().unwrap();
    let pacs = at("pacs-1");
    let own = address("imaging", 2);
    let fits = |recorded: &mut Vec<Vec<u8>>, more: Vec<Vec<u8>>| {
        // What the sender's kernel left merged doesn't fit on a cable.
        recorded.extend(more.into_iter().filter(|frame| frame.len() <= 1_514));
    };
    let (mut wireguard, mut quic) = (Vec::new(), Vec::new());
    wait::until_ok(Duration::from_secs(60), "pings to pass", || {
        let series = ping::ping(&hospital.machine("ct-1").host, pacs, 30, BEAT)?;
        fits(
            &mut wireguard,
            datagrams(&mut tunnel, Duration::from_millis(50), |(from, to)| {
                from.0 == own && to.1 == 51_820
            }),
        );
        anyhow::ensure!(series.lost() == 0, "{series:?}");
        anyhow::ensure!(wireguard.len() > 40, "{} datagrams in the tunnel", wireguard.len());
        Ok(())
    })
    .unwrap();
    hospital.operator.ok(&["status", "--wait", "20"]).unwrap();
    wait::until_ok(Duration::from_secs(60), "the control stream", || {
        fits(
            &mut quic,
            datagrams(&mut control, Duration::from_millis(50), |(from, to)| {
                from.0 == own && to.1 == 4_433
            }),
        );
        anyhow::ensure!(quic.len() > 5, "{} datagrams to the controller", quic.len());
        Ok(())
    })
    .unwrap();
    (wireguard, quic)
}

#[test]
fn replayed_and_altered_packets_of_tunnels_and_control_do_nothing() {
    let test = "replayed_and_altered_packets_of_tunnels_and_control_do_nothing";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let (wireguard, quic) = recorded(&mut fixture.hospital);
    let hospital = &fixture.hospital;
    let kinds: std::collections::BTreeSet<u8> =
        wireguard.iter().filter_map(|frame| attack::datagram(frame)?.1.first().copied()).collect();
    assert!(kinds.contains(&4) && (kinds.contains(&1) || kinds.contains(&2)), "{kinds:?}");
    assert!(wireguard.len() > 30 && quic.len() > 5, "{} and {}", wireguard.len(), quic.len());

    let mut pacs = End::open(&hospital.machine("pacs-1").host, "eth0").unwrap();
    let mut uplink = End::open(&hospital.campus, "u-servers").unwrap();
    let before = drops(&hospital.gateways["servers"]).unwrap();
    let grown = || {
        let after = drops(&hospital.gateways["servers"]).unwrap();
        ["peer-unknown", "peer-unauthenticated", "malformed", "handshake-limit"]
            .map(|reason| after.get(reason).unwrap_or(&0) - before.get(reason).unwrap_or(&0))
    };
    let stranger = address("servers", 66);
    let mut sent = 0_u64;
    for (number, frame) in wireguard.iter().enumerate() {
        let mut variants = vec![frame.clone(), attack::from_another(frame, stranger)];
        for step in 0..24 {
            // A bit of each part: type, indices, counter, tag and the rest.
            let length = frame.len() - 42;
            let place = 42 + (number * 31 + step * 17) % length;
            let mut flipped = frame.clone();
            flipped[place] ^= 1 << (step % 8);
            attack::reseal(&mut flipped);
            if step % 3 == 0 {
                flipped = attack::from_another(&flipped, stranger);
            }
            variants.push(flipped);
        }
        let batch = variants.len() as u64;
        for variant in variants {
            uplink.send(&variant).unwrap();
            sent += 1;
        }
        // No faster than the gateway takes them: what its socket's buffer turns away was never tried.
        wait::until(Duration::from_millis(500), "the gateway to have taken them", || {
            (grown().iter().sum::<u64>() + batch >= sent * 95 / 100).then_some(())
        })
        .ok();
        pacs.listen(Duration::from_millis(2)).unwrap();
        uplink.listen(Duration::ZERO).unwrap();
    }
    wait::until(Duration::from_secs(30), "the gateway to have counted them", || {
        (grown().iter().sum::<u64>() >= sent * 95 / 100).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?} of {sent}", grown()));
    pacs.listen(Duration::from_millis(100)).unwrap();
    let delivered: Vec<&Vec<u8>> =
        pacs.heard().iter().filter(|frame| frame[12..14] == [8, 0]).collect();
    assert!(delivered.is_empty(), "delivered again: {delivered:02x?}");
    uplink.listen(Duration::from_millis(100)).unwrap();
    let answers: Vec<&Vec<u8>> = uplink
        .heard()
        .iter()
        .filter(|frame| attack::datagram(frame).is_some_and(|((_, to), _)| to.0 == stranger))
        .collect();
    assert!(answers.is_empty(), "a stranger was answered: {answers:02x?}");

    // The controller's side: the same connection goes on, nothing is enrolled, nothing changes.
    let audit = hospital.operator.json(&["audit", "list", "--limit", "50"]).unwrap();
    let control = End::open(&hospital.campus, "p-controller").unwrap();
    for (number, frame) in quic.iter().enumerate() {
        control.send(frame).unwrap();
        control.send(&attack::from_another(frame, stranger)).unwrap();
        for step in 0..8 {
            let mut flipped = frame.clone();
            let place = 42 + (number * 13 + step * 29) % (frame.len() - 42);
            flipped[place] ^= 1 << step;
            attack::reseal(&mut flipped);
            control.send(&flipped).unwrap();
        }
    }
    hospital.operator.ok(&["status", "--wait", "20"]).unwrap();
    assert_eq!(hospital.operator.json(&["audit", "list", "--limit", "50"]).unwrap(), audit);
    let series = ping::ping(&hospital.machine("ct-1").host, at("pacs-1"), 20, BEAT).unwrap();
    assert_eq!(series.lost(), 0, "{series:?}");
    println!(
        "{sent} tunnel packets and {} control packets replayed or altered: none taken",
        quic.len() * 10
    );
}

/// Serial of a gateway's newest tunnel key, and how many it has for other gateways.
fn tunnel_keys(hospital: &Hospital, gateway: &str) -> anyhow::Result<(u64, usize)> {
    let status = hospital.gateways[gateway].status()?;
    let keys = status["control"]["keys"].as_array().cloned().unwrap_or_default();
    let for_gateways =
        keys.iter().filter(|key| key["serves"].as_str().is_some_and(|s| s.contains("gateways")));
    let newest = keys.first().and_then(|key| key["serial"].as_u64());
    Ok((newest.unwrap_or_default(), for_gateways.count()))
}

/// What a gateway says of the pre-shared keys with its live peers.
fn psks(hospital: &Hospital, gateway: &str) -> anyhow::Result<Vec<String>> {
    let status = hospital.gateways[gateway].status()?;
    let peers = status["data_plane"]["engine"]["peers"].as_array().cloned().unwrap_or_default();
    let live = peers.iter().filter(|peer| peer["live"] == true);
    Ok(live.map(|peer| peer["psk"].as_str().unwrap_or("none").to_owned()).collect())
}

#[test]
fn tunnel_keys_are_replaced_and_no_ping_is_lost() {
    const PATIENCE: Duration = Duration::from_secs(90);
    /// Pings that are sent while keys are replaced.
    const PINGS: u64 = 10_000;
    /// Under way at most: fewer than any buffer on the way holds.
    const WINDOW: usize = 32;
    /// Rotations at least and at most, however long the pings take.
    const ROTATIONS: RangeInclusive<usize> = 2..=6;
    let test = "tunnel_keys_are_replaced_and_no_ping_is_lost";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let names = ["imaging", "servers"];
    let keys = || names.map(|name| tunnel_keys(hospital, name).unwrap());
    wait::until(PATIENCE, "keys", || keys().iter().all(|key| key.0 > 0).then_some(())).unwrap();
    let before = keys();
    let post_quantum = || {
        let told = |name: &str| psks(hospital, name).unwrap();
        let told = names.map(told);
        let all =
            |psks: &Vec<String>| !psks.is_empty() && psks.iter().all(|one| one == "ml-kem-768");
        anyhow::ensure!(told.iter().all(all), "{told:?}");
        Ok(())
    };
    wait::until_ok(PATIENCE, "pre-shared keys by ML-KEM-768", post_quantum).unwrap();
    let ct = &hospital.machine("ct-1").host;
    let beat = Duration::from_millis(1);
    let pinging = Pinging::start_within(ct, at("pacs-1"), u64::MAX, beat, WINDOW).unwrap();
    let flowing = |more: u64| {
        let before = pinging.received();
        wait::until(PATIENCE, "pings", || (pinging.received() > before + more).then_some(()))
    };
    flowing(100).unwrap();
    let mut rotations = 0;
    while rotations < *ROTATIONS.start()
        || (rotations < *ROTATIONS.end() && pinging.received() < PINGS)
    {
        let now = rotations % 2 == 1;
        rotations += 1;
        // A thief who has had a look at a disk: at once.
        let mut rotate =
            vec!["gateway", "rotate", "--all", "--timeout", "60s", "--reason", "drill"];
        if now {
            rotate.extend(["--now", "--yes"]);
        }
        hospital.operator.ok(&rotate).unwrap();
        wait::until_ok(PATIENCE, "the old keys to be given up", || {
            let keys = keys();
            anyhow::ensure!(keys.iter().all(|key| key.1 == 1), "{keys:?}");
            Ok(())
        })
        .unwrap();
        flowing(300).unwrap();
        wait::until_ok(PATIENCE, "pre-shared keys for the new ones", post_quantum).unwrap();
    }
    let after = keys();
    assert!(before.iter().zip(&after).all(|(old, new)| old.0 < new.0), "{before:?} {after:?}");
    let shown = hospital.operator.json(&["gateway", "show", "imaging"]).unwrap();
    assert_eq!(shown["tunnel_key"]["serial"], after[0].0, "{shown}");
    assert_eq!(shown["tunnel_key"]["post_quantum"], true, "{shown}");
    // What the controller was told last may be a few seconds old.
    wait::until_ok(PATIENCE, "the controller to know", || {
        let shown = hospital.operator.json(&["gateway", "show", "imaging"])?;
        anyhow::ensure!(shown["tunnels"][0]["psk"] == "ml-kem-768", "{shown}");
        Ok(())
    })
    .unwrap();
    let audit = hospital.operator.json(&["audit", "list"]).unwrap().to_string();
    assert!(audit.contains("gateway rotate") && audit.contains("void at once"), "{audit}");
    wait::until(PATIENCE, "as many pings", || (pinging.received() >= PINGS).then_some(())).unwrap();
    let series = pinging.stop().unwrap();
    assert!(series.sent >= PINGS, "{series:?}");
    assert_eq!(series.lost(), 0, "{series:?}");
    eprintln!("{} pings across {rotations} rotations, none lost", series.sent);
}

#[test]
fn floods_of_handshakes_stop_neither_traffic_nor_a_gateway_that_starts() {
    /// Handshakes at once, and pings under way: fewer than any buffer holds.
    const BURST: usize = 64;
    const WINDOW: usize = 32;
    let test = "floods_of_handshakes_stop_neither_traffic_nor_a_gateway_that_starts";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let (wireguard, _) = recorded(&mut fixture.hospital);
    let hospital = &mut fixture.hospital;
    let handshake = wireguard
        .iter()
        .find(|frame| {
            attack::datagram(frame)
                .is_some_and(|(_, payload)| payload.len() == 148 && payload[0] == 1)
        })
        .expect("a handshake was recorded")
        .clone();
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (ended, count) = (stop.clone(), sent.clone());
    // Genuine first messages, which cost the gateway a look each, from hundreds of addresses.
    let campus = hospital.campus.clone();
    let mut queue = Queue::at(&hospital.gateways["servers"].host, 51_820).unwrap();
    let flood = std::thread::spawn(move || {
        let end = End::open(&campus, "u-servers").unwrap();
        let flood: Vec<_> = (3..250)
            .map(|last| attack::from_another(&handshake, Ipv4Addr::new(10, 20, 7, last)))
            .collect();
        while !ended.load(Relaxed) {
            for burst in flood.chunks(BURST) {
                // No faster than the gateway takes them: what finds its socket's buffer full never came to it.
                while queue.waiting().unwrap() > 0 && !ended.load(Relaxed) {
                    std::thread::sleep(Duration::from_micros(500));
                }
                for one in burst {
                    end.send(one).unwrap();
                }
                count.fetch_add(burst.len() as u64, Relaxed);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let flooded = |more: u64| {
        let before = sent.load(Relaxed);
        wait::until(Duration::from_secs(60), "the flood", || {
            (sent.load(Relaxed) - before > more).then_some(())
        })
        .unwrap();
    };
    let (ct, pacs) = (hospital.machine("ct-1").host.clone(), at("pacs-1"));
    let full = || {
        let of = |name| overrun(&hospital.gateways[name].host).unwrap();
        of("imaging") + of("servers")
    };
    let (before, full_before) = (drops(&hospital.gateways["servers"]).unwrap(), full());
    let pinging = Pinging::start_within(&ct, pacs, 1_000_000, BEAT, WINDOW).unwrap();
    flooded(10_000);
    wait::until(Duration::from_secs(60), "answers under the flood", || {
        (pinging.received() > 200).then_some(())
    })
    .unwrap();
    wait::until_ok(Duration::from_secs(60), "the gateway to have turned the flood away", || {
        let after = drops(&hospital.gateways["servers"])?;
        anyhow::ensure!(sum(&after) - sum(&before) >= 9_000, "{before:?}, {after:?}");
        Ok(())
    })
    .unwrap();
    let series = pinging.stop().unwrap();
    let (after, full) = (drops(&hospital.gateways["servers"]).unwrap(), full() - full_before);
    println!(
        "under the flood: {} of {} pings lost; {full} datagrams found a socket full",
        series.lost(),
        series.sent
    );
    assert_eq!(series.lost(), 0, "{full} found a socket full; {before:?}, {after:?}; {series:?}");

    let start = Instant::now();
    hospital.gateway("imaging").kill().unwrap();
    hospital.gateway("imaging").start().unwrap();
    wait::until_ok(Duration::from_secs(60), "the gateway to be back under the flood", || {
        let series = ping::ping(&ct, pacs, 5, BEAT)?;
        anyhow::ensure!(series.lost() == 0, "{series:?}");
        Ok(())
    })
    .unwrap();
    let took = start.elapsed();
    flooded(1_000);
    stop.store(true, Relaxed);
    flood.join().unwrap();
    println!(
        "{} handshakes; a gateway that started meanwhile was back after {} ms",
        sent.load(Relaxed),
        took.as_millis()
    );
}
