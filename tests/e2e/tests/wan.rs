//! Underlays that misbehave, under the real programs: what is allowed comes through whole, and nothing else does.

#[path = "wan/uplinks.rs"]
mod uplinks;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_e2e::talk::{self, PATIENCE, Talk, bytes};
use anteroom_e2e::{Fixture, Stage, fixture};
use anteroom_lab::capture::Capture;
use anteroom_lab::hospital::{Hospital, Machine, address};
use anteroom_lab::ping::{self, Pinging};
use anteroom_lab::story::only_ciphertext;
use anteroom_lab::topology::Host;
use anteroom_lab::wait;
use anteroom_lab::wan::Attach;
use anteroom_lab::wan::conditions::Conditions;
use anteroom_lab::wan::link::{Link, Way};
use anteroom_lab::wan::nat::{Kind, Ports};
use anteroom_lab::wan::router::{NatRouter, Place};

/// What each transfer carries over a path that is as bad as it gets.
const PART: usize = 256 << 10;
/// Between pings.
const BEAT: Duration = Duration::from_millis(20);
/// How long a path may be gone on a machine that has a lot else to do. What it took is printed. That it takes less than two
/// seconds is what `tests/sim` shows, by a clock that no machine holds up.
const RECOVERY: Duration = Duration::from_secs(20);

/// An enforced hospital in which the CT and the PACS may talk.
fn hospital(test: &str) -> Option<Fixture> {
    let fixture = fixture(test, Stage::Enforced)?;
    talk::allow(&fixture.hospital);
    Some(fixture)
}

fn ends(hospital: &Hospital) -> (&Machine, &Machine) {
    (hospital.machine("ct-1"), hospital.machine("pacs-1"))
}

/// Pulls the router's cable out of the network where the CT's gateway stands.
fn unplug_router(hospital: &Hospital) -> [u8; 6] {
    let mac = hospital.router.mac("imaging").unwrap();
    hospital.router.ip("link delete imaging").unwrap();
    mac
}

/// Nobody whom no rule lets reaches the CT or the PACS, and the PACS no other port of the CT.
fn nothing_else_passes(hospital: &Hospital, when: &str) {
    let (ct, pacs) = ends(hospital);
    let hvac = &hospital.machine("hvac-1").host;
    for device in [ct, pacs] {
        let series = ping::ping(hvac, device.address(), 3, BEAT).unwrap();
        assert_eq!(series.received, 0, "a stranger reaches {} {when}", device.plan.name);
    }
    let listener = ct.host.enter(|| std::net::TcpListener::bind(ct.at(2_222))).unwrap().unwrap();
    let (target, patience) = (ct.at(2_222), Duration::from_secs(1));
    let reached = pacs.host.enter(|| std::net::TcpStream::connect_timeout(&target, patience));
    assert!(reached.unwrap().is_err(), "a port that no rule names answers {when}");
    drop(listener);
}

fn reaches(from: &Host, to: Ipv4Addr, when: &str) {
    wait::until_ok(PATIENCE, &format!("a ping {when}"), || {
        let series = ping::ping(from, to, 5, BEAT)?;
        anyhow::ensure!(series.received > 0, "{series:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_path_that_loses_delays_doubles_and_reorders_carries_all_that_is_allowed_and_nothing_else() {
    let test = "a_path_that_loses_delays_doubles_and_reorders_carries_all_that_is_allowed_and_nothing_else";
    let Some(fixture) = hospital(test) else { return };
    let hospital = &fixture.hospital;
    let (ct, pacs) = ends(hospital);
    let mac = unplug_router(hospital).map(|byte| format!("{byte:02x}")).join(":");
    let campus = Attach::Switch(&hospital.campus, "br-imaging");
    let link = Link::lay("wan", Attach::Host(&hospital.router, "imaging"), campus, 5).unwrap();
    hospital.router.ip(&format!("link set imaging address {mac}")).unwrap();
    hospital.router.address("imaging", address("imaging", 1), 24).unwrap();
    reaches(&ct.host, pacs.address(), "over a link that does nothing yet");

    let good = Conditions::default();
    let far = Duration::from_millis(100);
    let late = Duration::from_millis(8);
    let all = [
        ("that loses one in twenty", good.clone().losing(0.05)),
        ("of 200 ms there and back", good.clone().delayed(far, Duration::from_millis(5))),
        ("that reorders and doubles", good.clone().reordering(0.2, late).duplicating(0.1)),
        (
            "that does all of it, and is narrow",
            good.clone()
                .losing(0.03)
                .delayed(far / 4, Duration::from_millis(5))
                .reordering(0.05, late)
                .duplicating(0.05)
                .limited(20_000_000, 128 << 10),
        ),
    ];
    for (what, conditions) in all {
        link.set_both(&conditions);
        let before = link.counters(Way::There);
        let secret = vec![("what is sent".to_owned(), bytes(1, 64))];
        let capture = Capture::start(&hospital.campus, secret).unwrap();
        let took = [(ct, pacs), (pacs, ct)].map(|(from, to)| talk::transfer(from, to, PART));
        let series = ping::ping(&ct.host, pacs.address(), 100, BEAT / 2).unwrap();
        let seen = capture.stop().unwrap();
        only_ciphertext(&seen, ct.address(), pacs.address()).unwrap();
        let after = link.counters(Way::There);
        println!("a path {what}: {PART} bytes took {took:?}, {} of 100 pings lost", series.lost());
        // Of hundreds of which one in ten is lost, half never are.
        assert!(series.received >= 50, "a path {what}: {series:?}, {after:?}");
        let suffered = [
            (conditions.loss > 0.0, after.lost - before.lost),
            (conditions.reorder > 0.0, after.held - before.held),
            (conditions.duplicate > 0.0, after.duplicated - before.duplicated),
        ];
        assert!(suffered.iter().all(|(asked, count)| asked == &(*count > 0)), "{what}: {after:?}");
    }
    nothing_else_passes(hospital, "over a path that does all of it");

    // Cut, and mended: a connection that was open goes on.
    link.set_both(&good);
    let mut talk = Talk::start(ct, pacs);
    talk.goes_on(PART as u64, "before a cut");
    link.set_both(&Conditions::down());
    std::thread::sleep(Duration::from_secs(2));
    link.set_both(&good);
    talk.goes_on(PART as u64, "after a cut of 2 s");
    talk.stop();
}

/// Keeps pings going while something happens, and gives how long none was answered.
fn outage(from: &Machine, to: &Machine, what: &str, change: impl FnOnce()) -> Duration {
    let series = Pinging::start(&from.host, to.address(), u64::MAX, BEAT).unwrap();
    let answered = |more: u64| {
        let before = series.received();
        wait::until(PATIENCE, &format!("answers from {} {what}", to.plan.name), || {
            (series.received() >= before + more).then_some(())
        })
    };
    answered(10).unwrap();
    let begun = Instant::now();
    change();
    // More than can be under way still.
    answered(60).unwrap_or_else(|error| panic!("{error}, {:?} after", begun.elapsed()));
    let series = series.stop().unwrap();
    let gap = BEAT * u32::try_from(series.longest_gap).unwrap();
    println!("{what}: {} to {}: {gap:?} without an answer", from.plan.name, to.plan.name);
    gap
}

#[test]
fn a_gateway_that_gets_another_address_keeps_what_is_allowed() {
    let test = "a_gateway_that_gets_another_address_keeps_what_is_allowed";
    let Some(fixture) = hospital(test) else { return };
    let hospital = &fixture.hospital;
    let (ct, pacs) = ends(hospital);
    let gateway = &hospital.gateways["imaging"].host;
    let router = address("imaging", 1);
    // As systemd and DHCP clients set it: an interface's second address outlives the first.
    gateway
        .enter(|| std::fs::write("/proc/sys/net/ipv4/conf/all/promote_secondaries", "1"))
        .unwrap()
        .unwrap();
    let mut talk = Talk::start(ct, pacs);
    talk.goes_on(PART as u64, "before");
    // By hand: the old one goes first.
    let by_hand = |last| {
        gateway.readdress("uplink", address("imaging", last), 24, Some(router)).unwrap();
    };
    // As a DHCP client does it: the new one comes first.
    let by_dhcp = |last, old| {
        gateway.address("uplink", address("imaging", last), 24).unwrap();
        gateway.ip(&format!("address del {}/24 dev uplink", address("imaging", old))).unwrap();
        gateway.default_route(router).unwrap();
    };
    let mut gaps = vec![outage(ct, pacs, "another address by hand, under load", || by_hand(77))];
    talk.goes_on(PART as u64, "after another address by hand");
    gaps.push(outage(pacs, ct, "another address by DHCP, under load", || by_dhcp(78, 77)));
    talk.goes_on(PART as u64, "after another address by DHCP");
    nothing_else_passes(hospital, "after another address");
    talk.stop();
    // With nothing under way but what comes from the other end.
    gaps.push(outage(pacs, ct, "another address by hand, spoken to only", || by_hand(79)));
    gaps.push(outage(pacs, ct, "another address by DHCP, spoken to only", || by_dhcp(80, 79)));
    assert!(gaps.iter().all(|gap| *gap < RECOVERY), "{gaps:?}");
    // The controller sees it too.
    hospital.operator.ok(&["status", "--wait", "60"]).unwrap();
}

/// What a gateway says of another one, which is a peer.
fn peer(hospital: &Hospital, here: &str, there: &str) -> anyhow::Result<serde_json::Value> {
    let id = hospital.gateways[there].status()?["data_plane"]["engine"]["gateway"].clone();
    let status = hospital.gateways[here].status()?;
    let peers = status["data_plane"]["engine"]["peers"].as_array().cloned().unwrap_or_default();
    let peer = peers.into_iter().find(|peer| peer["gateway"] == id);
    peer.ok_or_else(|| anyhow::anyhow!("{here} knows no {there}: {status}"))
}

/// What a gateway says of the way to the other one: why packets go so, and whether they take a relay.
fn way(hospital: &Hospital, here: &str, there: &str) -> anyhow::Result<(String, bool)> {
    let peer = peer(hospital, here, there)?;
    Ok((peer["path"].as_str().unwrap_or_default().to_owned(), !peer["relay"].is_null()))
}

#[test]
fn gateways_behind_nats_at_both_ends_find_a_direct_path_where_there_can_be_one() {
    let test = "gateways_behind_nats_at_both_ends_find_a_direct_path_where_there_can_be_one";
    let Some(fixture) = hospital(test) else { return };
    let hospital = &fixture.hospital;
    let (ct, pacs) = ends(hospital);
    let networks = [("imaging", 1_u8), ("servers", 2)];
    let outside = |number, last| Ipv4Addr::new(100, 64, number, last);
    let place = |number, last| Place { address: outside(number, last), prefix: 24 };
    let routers = networks.map(|(network, number)| {
        hospital.router.ip(&format!("link delete {network}")).unwrap();
        let bridge = format!("br-{network}");
        let inside = Place { address: address(network, 1), prefix: 24 };
        let nat = NatRouter::set_up(
            &format!("nat-{number}"),
            (Attach::Switch(&hospital.campus, &bridge), inside),
            (Attach::Host(&hospital.router, network), place(number, 2)),
            Some(outside(number, 1)),
            Kind::port_restricted_cone(),
            number.into(),
        );
        hospital.router.address(network, outside(number, 1), 24).unwrap();
        nat.unwrap()
    });
    let random = |kind| Kind { ports: Ports::Random, ..kind };
    let kinds = [
        ("a full cone", random(Kind::full_cone())),
        ("a restricted cone", random(Kind::restricted_cone())),
        ("a port-restricted cone", random(Kind::port_restricted_cone())),
        ("a symmetric one", Kind::symmetric()),
    ];
    let pairs = (0..4).flat_map(|here| (here..4).map(move |there| (here, there)));
    for (last, (here, there)) in (10_u8..).zip(pairs) {
        // A symmetric one gets in where it needn't be known by its port.
        let direct = there < 3 || here < 2;
        let name = format!("{} and {}", kinds[here].0, kinds[there].0);
        let begun = Instant::now();
        // With an address of its own for each kind, so that no path of the one before passes for one of this.
        for ((router, kind), (_, number)) in routers.iter().zip([here, there]).zip(networks) {
            router.set_kind(kinds[kind].1.clone());
            router.set_address(place(number, last), Some(outside(number, 1)));
        }
        for ((here, _), (there, number)) in [(networks[0], networks[1]), (networks[1], networks[0])]
        {
            // Relays may have to be connected to anew, through other ports.
            wait::until_ok(2 * PATIENCE, &format!("the way behind {name}"), || {
                let peer = peer(hospital, here, there)?;
                let endpoint = peer["endpoint"].as_str().unwrap_or_default();
                let new = endpoint.starts_with(&format!("{}:", outside(number, last)));
                let proved = peer["path"] == "proved" && peer["relay"].is_null() && new;
                let wanted = if direct { proved } else { !peer["relay"].is_null() };
                anyhow::ensure!(wanted, "{here}: {peer}, {:?}", routers[0].counters());
                Ok(())
            })
            .unwrap();
        }
        let took = begun.elapsed();
        let lost = [(ct, pacs), (pacs, ct)].map(|(from, to)| {
            reaches(&from.host, to.address(), &format!("behind {name}"));
            ping::ping(&from.host, to.address(), 10, BEAT).unwrap().lost()
        });
        println!("behind {name}: direct {direct} after {took:?}, {lost:?} of 10 pings lost");
    }
    nothing_else_passes(hospital, "behind NATs at both ends");
    wait::until_ok(PATIENCE, "the status to say how imaging looks from outside", || {
        let status = hospital.gateways["imaging"].status()?;
        let places = status["data_plane"]["engine"]["outside"]["places"].to_string();
        anyhow::ensure!(places.contains(&format!("{}:", outside(1, 19))), "{places}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_router_that_forgets_what_it_translated_ends_no_flow() {
    let test = "a_router_that_forgets_what_it_translated_ends_no_flow";
    let Some(fixture) = hospital(test) else { return };
    let hospital = &fixture.hospital;
    let (ct, pacs) = ends(hospital);
    unplug_router(hospital);
    let outside = |last| Place { address: Ipv4Addr::new(100, 64, 1, last), prefix: 24 };
    let inside = Place { address: address("imaging", 1), prefix: 24 };
    let nat = NatRouter::set_up(
        "nat",
        (Attach::Switch(&hospital.campus, "br-imaging"), inside),
        (Attach::Host(&hospital.router, "imaging"), outside(2)),
        Some(outside(1).address),
        Kind::symmetric(),
        3,
    )
    .unwrap();
    hospital.router.address("imaging", outside(1).address, 24).unwrap();
    // For what isn't translated.
    hospital.router.ip(&format!("route add 10.20.1.0/24 via {}", outside(2).address)).unwrap();
    reaches(&ct.host, pacs.address(), "behind a router that translates");
    let mut talk = Talk::start(ct, pacs);
    talk.goes_on(PART as u64, "behind a router that translates");
    let mut gaps = Vec::new();
    // Each kind forgets what the one before had translated.
    let random = Kind { ports: Ports::Random, ..Kind::port_restricted_cone() };
    for (name, kind) in [
        ("full cone", Kind::full_cone()),
        ("restricted cone", Kind::restricted_cone()),
        ("firewall that translates nothing", Kind::firewall()),
        ("port-restricted cone with ports of its own", random),
        ("symmetric one", Kind::symmetric()),
    ] {
        let what = format!("a router that becomes a {name}, under load");
        gaps.push(outage(ct, pacs, &what, || nat.set_kind(kind)));
        talk.goes_on(PART as u64, &what);
    }
    let moved = || nat.set_address(outside(77), Some(outside(1).address));
    gaps.push(outage(pacs, ct, "another outside address, under load", moved));
    talk.goes_on(PART as u64, "after another outside address");
    nothing_else_passes(hospital, "behind a router that translates");
    talk.stop();
    gaps.push(outage(pacs, ct, "mappings forgotten, spoken to only", || nat.forget()));
    assert!(gaps.iter().all(|gap| *gap < RECOVERY), "{gaps:?}");
}
