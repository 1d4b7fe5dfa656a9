//! A hostile device behind a gateway in enforce, with real packets: whom it passes for, whom it reaches, and what link
//! control may carry (statements 1, 2 and 3).

use std::time::{Duration, Instant};

use anteroom_e2e::attack::{self, BROADCAST, Mac};
use anteroom_e2e::place::{Place, listen, marked};
use anteroom_e2e::wire::End;
use anteroom_e2e::{Stage, drops, fixture, sum};
use anteroom_lab::ping::Pinging;
use anteroom_lab::wait;

const BEAT: Duration = Duration::from_millis(5);

#[test]
fn a_hostile_device_in_enforce_passes_for_nobody_and_reaches_nobody_it_may_not() {
    let test = "a_hostile_device_in_enforce_passes_for_nobody_and_reaches_nobody_it_may_not";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let place = Place::imaging(hospital);
    let pacs = hospital.machine("pacs-1");
    let pinging =
        Pinging::start(&hospital.machine("ct-1").host, pacs.address(), 1_000_000, BEAT).unwrap();
    let mut port = End::open(&hospital.machine("mri-1").host, "eth0").unwrap();
    let mut ends: Vec<(&str, End)> = ["ct-1", "pacs-1", "hl7-1", "monitor-1"]
        .map(|name| (name, End::open(&hospital.machine(name).host, "eth0").unwrap()))
        .into();
    ends.push(("the campus", End::open(&hospital.campus, "u-imaging").unwrap()));

    // What a rule opens it can do, so the attack reaches as far as it should.
    let allowed = attack::tcp(((place.own.1, 42_000), (place.member.1, 104)), 0x02);
    port.send(&attack::frame(place.router.0, place.own.0, 0x0800, &allowed)).unwrap();
    wait::until(Duration::from_secs(60), "DICOM to be open", || {
        listen(&mut ends[1].1, Duration::from_millis(20));
        ends[1].1.heard().iter().any(|frame| attack::is_marked(frame)).then_some(())
    })
    .unwrap();
    ends[1].1.take();

    let gateway = &hospital.gateways["imaging"];
    let before = sum(&drops(gateway).unwrap());
    let frames = place.forbidden();
    for part in frames.chunks(200) {
        for (_, frame) in part {
            port.send(frame).unwrap();
        }
        for (_, end) in &mut ends {
            end.listen(Duration::from_millis(5)).unwrap();
        }
    }
    // ARP requests are answered or not, and count as nothing.
    let sent = frames.iter().filter(|(name, _)| !name.starts_with("ARP")).count() as u64;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut counted = 0;
    while counted < sent * 95 / 100 && Instant::now() < deadline {
        counted = sum(&drops(gateway).unwrap()) - before;
    }
    let all = drops(gateway).unwrap();
    assert!(counted >= sent * 95 / 100, "{counted} of {sent} were counted: {all:?}");
    for (place_, end) in &mut ends {
        listen(end, Duration::from_millis(100));
        let came = marked(end, &frames);
        assert!(came.is_empty(), "{place_} heard {} of {sent}: {came:?}", came.len());
        assert_eq!(end.missed().unwrap(), 0, "{place_} was too slow to hear all");
    }
    // On the campus the device isn't seen at all, nor does anybody answer it.
    let campus = &ends[4].1;
    let spoke: Vec<_> = campus.heard().iter().filter(|frame| frame[6..12] == place.own.0).collect();
    assert!(spoke.is_empty(), "{spoke:02x?}");
    port.listen(Duration::from_millis(50)).unwrap();
    let answers: Vec<_> = port
        .heard()
        .iter()
        .filter(|frame| frame[..6] == place.own.0 && frame[12..14] != [8, 6])
        .filter(|frame| frame.get(26..30) != Some(&place.member.1.octets()[..]))
        .collect();
    assert!(answers.is_empty(), "it was answered: {answers:02x?}");
    // Nobody believes that it is somebody else.
    let own = place.own.0.map(|octet| format!("{octet:02x}")).join(":");
    for host in [&hospital.machine("ct-1").host, &hospital.router, &pacs.host] {
        let table = host.ip("neighbour show").unwrap();
        let wrong = |line: &&str| line.contains(&own) && !line.starts_with("10.20.1.12 ");
        let wrong: Vec<_> = table.lines().filter(wrong).collect();
        assert!(wrong.is_empty(), "{}: {table}", host.name());
    }
    let series = pinging.stop().unwrap();
    assert!(series.sent > 20 && series.lost() == 0, "the neighbour: {series:?}");
    println!("{} frames sent, none arrived", frames.len());
}

#[test]
fn link_control_crosses_enforce_by_its_own_group_addresses_only() {
    let test = "link_control_crosses_enforce_by_its_own_group_addresses_only";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let place = Place::imaging(hospital);
    let (own, neighbour) = (place.own.0, place.neighbour.0);
    let group = |last: u8| -> Mac { [1, 0x80, 0xc2, 0, 0, last] };
    let mut port = End::open(&hospital.machine("mri-1").host, "eth0").unwrap();
    let mut beside = End::open(&hospital.machine("ct-1").host, "eth0").unwrap();
    // At the gateway's own socket in the wall, as a switch speaks.
    let mut switch = End::open(&hospital.campus, "u-imaging").unwrap();
    let switch_mac: Mac = [2, 0, 0, 0, 0, 1];
    let frames = |from: Mac, unicast: &[Mac]| {
        let (mut passing, mut stopped) = (Vec::new(), Vec::new());
        for kind in [0x888e_u16, 0x88cc] {
            for last in 0..=0x21 {
                let frame = attack::frame(group(last), from, kind, &[1, 1, 0, 0, last, 0]);
                let passes = matches!(last, 0 | 3 | 0x0e);
                if passes { &mut passing } else { &mut stopped }.push(frame);
            }
            for to in unicast.iter().copied().chain([BROADCAST, [1, 0, 0x5e, 1, 2, 3]]) {
                stopped.push(attack::frame(to, from, kind, &[1, 1, 0, 0]));
            }
            // A priority is no VLAN.
            for tag in [0_u16, 0xe000, 1, 42] {
                let inner = [&tag.to_be_bytes()[..], &kind.to_be_bytes(), &[1, 1, 0, 0]].concat();
                let frame = attack::frame(group(3), from, 0x8100, &inner);
                let passes = tag & 0x0fff == 0;
                if passes { &mut passing } else { &mut stopped }.push(frame);
            }
        }
        // Spanning tree, slow protocols, flow control, MACsec and IP under the same addresses.
        for kind in [0x0026_u16, 0x8808, 0x8809, 0x88e5, 0x88f5, 0x0800, 0x86dd] {
            for last in [0, 1, 2, 3, 0x0e] {
                stopped.push(attack::frame(group(last), from, kind, &[0x42; 46]));
            }
        }
        (passing, stopped)
    };
    let heard = |end: &mut End, least: usize| {
        // What has to come may take long on a busy machine; what mustn't is waited for a little longer.
        let marked =
            |end: &End| end.heard().iter().filter(|frame| attack::is_marked(frame)).count();
        let deadline = Instant::now() + Duration::from_secs(30);
        while marked(end) < least && Instant::now() < deadline {
            listen(end, Duration::from_millis(10));
        }
        listen(end, Duration::from_millis(300));
        end.take().into_iter().filter(|frame| attack::is_marked(frame)).collect::<Vec<_>>()
    };

    // The device speaks to its switch: only that passes, byte for byte, and its neighbour hears none of it.
    let (passing, stopped) = frames(own, &[neighbour, switch_mac, place.router.0]);
    for frame in stopped.iter().chain(&passing) {
        port.send(frame).unwrap();
    }
    assert_eq!(heard(&mut switch, passing.len()), passing);
    assert_eq!(heard(&mut beside, 0), Vec::<Vec<u8>>::new(), "the neighbour");
    // Under another's Ethernet address nothing passes.
    for from in [neighbour, [2, 0, 0, 0, 0, 9], place.gateway[0].0] {
        let (passing, stopped) = frames(from, &[switch_mac]);
        for frame in stopped.iter().chain(&passing) {
            port.send(frame).unwrap();
        }
    }
    assert_eq!(heard(&mut switch, 0), Vec::<Vec<u8>>::new(), "as somebody else");
    // The switch speaks to its ports, and a stranger behind it under other addresses to the device.
    let (passing, stopped) = frames(switch_mac, &[own, neighbour]);
    for frame in stopped.iter().chain(&passing) {
        switch.send(frame).unwrap();
    }
    for end in [&mut port, &mut beside] {
        assert_eq!(heard(end, passing.len()), passing);
    }
}
