//! The real programs, with a network between two gateways that lets no tunnel through for a while: the controller
//! relays, or relays that stand alone, which come and go; and where the two take QUIC of each other, nobody has to.

#[path = "relays/crowds.rs"]
mod crowds;
#[path = "relays/hostile.rs"]
mod hostile;
#[path = "relays/keys.rs"]
mod keys;
#[path = "relays/quic.rs"]
mod quic;
#[path = "relays/thief.rs"]
mod thief;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anteroom_e2e::talk::{self, Talk};
use anteroom_e2e::{Fixture, Stage, fixture, program, with_underlay};
use anteroom_lab::clinical::hl7::{self, Engine, Monitor};
use anteroom_lab::figures;
use anteroom_lab::hospital::{self, Hospital};
use anteroom_lab::ping::Pinging;
use anteroom_lab::process::Process;
use anteroom_lab::stall::Stalls;
use anteroom_lab::topology::Host;
use anteroom_lab::wan::Attach;
use anteroom_lab::wan::nat::{Egress, Kind, Refused};
use anteroom_lab::wan::router::{NatRouter, Place};
use anteroom_lab::{story, wait};
use anteroom_proto::key::IdentityKey;
use anteroom_proto::v1::telemetry::FIRST_DIRECT;
use anteroom_transport::endpoint;
use anteroom_transport::tls::Protocol;
use anyhow::{Context as _, ensure};
use serde_json::Value;

const BEAT: Duration = Duration::from_millis(5);
/// More pings than the test takes time for.
const MANY: u64 = 1_000_000;
/// How long anything may take before the test fails.
const DEADLINE: Duration = Duration::from_secs(60);
/// Pings under way at most where none may be lost: fewer than any buffer on the way holds.
const WINDOW: usize = 32;
/// A machine that kept a thread waiting for so long may have held up what tells a dead path from a good one.
const STALL: Duration = Duration::from_millis(400);

/// What a gateway says of the ways to its peers: whether a relay reaches them, and which packets take.
fn ways(hospital: &Hospital, gateway: &str) -> anyhow::Result<Vec<(Value, Value)>> {
    let status = hospital.gateways[gateway].status()?;
    let peers = status["data_plane"]["engine"]["peers"].as_array().cloned().unwrap_or_default();
    let way = |peer: &Value| (peer["path"].clone(), peer["relay"].clone());
    Ok(peers.iter().filter(|peer| peer["client"] != true).map(way).collect())
}

/// Waits until packets to all peers of both gateways go so.
fn wait_for(hospital: &Hospital, what: &str, path: &str, relayed: bool) {
    wait_until(hospital, what, |why, relay| why == path && relay.is_null() != relayed);
}

fn wait_until(hospital: &Hospital, what: &str, so: impl Fn(&Value, &Value) -> bool) {
    for gateway in ["imaging", "servers"] {
        wait::until_ok(DEADLINE, what, || {
            let ways = ways(hospital, gateway)?;
            if !ways.is_empty() && ways.iter().all(|(why, relay)| so(why, relay)) {
                return Ok(());
            }
            let status = hospital.gateways[gateway].status()?;
            anyhow::bail!("{gateway}: {ways:?}, {}, {}", status["relays"], status["direct"])
        })
        .unwrap();
    }
}

#[test]
fn the_controller_relays_while_no_tunnel_gets_through_and_only_then() {
    let test = "the_controller_relays_while_no_tunnel_gets_through_and_only_then";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    wait_for(hospital, "direct paths with a relay behind them", "proved", false);
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
    let pinging = Pinging::start(&ct.host, pacs, MANY, BEAT).unwrap();
    wait::until(DEADLINE, "pings", || (pinging.received() > 100).then_some(())).unwrap();

    // The router lets no tunnel through any more. The controller's port is another.
    let rule = "pref 10 ipproto udp dport 51820 blackhole";
    hospital.router.ip(&format!("rule add {rule}")).unwrap();
    wait_for(hospital, "packets to take the relay", "died", true);
    let before = pinging.received();
    wait::until(DEADLINE, "pings through the relay", || {
        (pinging.received() > before + 400).then_some(())
    })
    .unwrap();
    let series = pinging.stop().unwrap();
    // One gap: from the direct path's end to the relay. It is about a second; a busy machine may be late. How soon it is,
    // tests without a clock show.
    let gap = BEAT * u32::try_from(series.longest_gap).unwrap_or(u32::MAX);
    eprintln!("{gap:?} without an answer, {} pings sent, {} lost", series.sent, series.lost());

    let stalls = Stalls::watch().unwrap();
    let pinging = Pinging::start_within(&ct.host, pacs, MANY, BEAT, WINDOW).unwrap();
    wait::until(DEADLINE, "pings", || (pinging.received() > 100).then_some(())).unwrap();
    hospital.router.ip(&format!("rule del {rule}")).unwrap();
    wait_for(hospital, "packets to go directly", "proved", false);
    let before = pinging.received();
    wait::until(DEADLINE, "pings beside the relay", || {
        (pinging.received() > before + 400).then_some(())
    })
    .unwrap();
    let series = pinging.stop().unwrap();
    let stall = stalls.worst();
    eprintln!(
        "from the relay to the direct path: {} of {} pings lost; a thread waited for {stall:?} at worst",
        series.lost(),
        series.sent
    );
    assert!(series.lost() == 0 || stall >= STALL, "{series:?}, {stall:?}");
}

/// Whether all connections of a gateway to controller and relays take TCP, as the gateway says and the operator hears; or
/// none does.
fn wait_for_carrier(hospital: &Hospital, over_tcp: bool) {
    for gateway in ["imaging", "servers"] {
        wait::until_ok(DEADLINE * 2, "connections to take what gets through", || {
            let status = hospital.gateways[gateway].status()?;
            let (control, relays) = (&status["control"], status["relays"].as_array());
            let relays = relays.filter(|relays| !relays.is_empty()).context("no relays")?;
            let so = |at: &Value| at["over_tcp"] == over_tcp && !at["connected"].is_null();
            let all = so(control) && relays.iter().all(|at| so(at) && at["connected"] == true);
            ensure!(all, "{gateway}: {control}, {relays:?}");
            let shown = hospital.operator.ok(&["gateway", "show", gateway])?;
            let said = shown.stdout.matches("over TCP (slower): UDP doesn't get through").count();
            ensure!(said == if over_tcp { 2 } else { 0 }, "{}", shown.stdout);
            Ok(())
        })
        .unwrap();
    }
}

/// How often each connection of the two gateways was left for one over TCP because nothing got through it, and not when QUIC gave it up.
fn silences(hospital: &Hospital) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for gateway in ["imaging", "servers"] {
        let status = hospital.gateways[gateway].status().unwrap();
        let relays = status["relays"].as_array().cloned().unwrap_or_default();
        for (place, at) in std::iter::once(&status["control"]).chain(&relays).enumerate() {
            let count = at["silences"].as_u64().unwrap_or_else(|| panic!("{gateway}: {at}"));
            all.insert(format!("{gateway}, connection {place}"), count);
        }
    }
    all
}

/// Puts a firewall between each gateway's network and all others, which lets nothing out but TCP to port 443, and in what
/// answers that.
fn only_tcp_443(hospital: &Hospital) -> Vec<NatRouter> {
    let router = &hospital.router;
    let firewall = |(number, network): (u8, &str)| {
        let outside = |last| Ipv4Addr::new(100, 64, number, last);
        router.ip(&format!("link delete {network}")).unwrap();
        let bridge = format!("br-{network}");
        let inside = Place { address: hospital::address(network, 1), prefix: 24 };
        let firewall = NatRouter::set_up(
            &format!("wall-{number}"),
            (Attach::Switch(&hospital.campus, &bridge), inside),
            (Attach::Host(router, network), Place { address: outside(2), prefix: 24 }),
            Some(outside(1)),
            Kind::firewall().letting_out(Egress::only_tcp_443()),
            number.into(),
        );
        router.address(network, outside(1), 24).unwrap();
        let behind = hospital::address(network, 0);
        router.ip(&format!("route add {behind}/24 via {}", outside(2))).unwrap();
        firewall.unwrap()
    };
    (1..).zip(hospital::GATEWAYS).map(firewall).collect()
}

#[test]
fn where_nothing_but_tcp_to_443_gets_through_all_works_over_that_and_quic_is_taken_again() {
    let test =
        "where_nothing_but_tcp_to_443_gets_through_all_works_over_that_and_quic_is_taken_again";
    let Some(mut fixture) = fixture(test, Stage::Built) else { return };
    let firewalls = only_tcp_443(&fixture.hospital);
    fixture.hospital.controller.quic_port = 443;
    fixture.hospital.start_anteroom().unwrap();
    let hospital = &fixture.hospital;
    for device in hospital.devices() {
        device.announce().unwrap();
    }
    story::approve_all(hospital).unwrap();
    story::wait_for_inventory(hospital).unwrap();
    story::confirm_all(hospital).unwrap();
    figures::enforce(hospital).unwrap();
    talk::allow(hospital);
    wait_for_carrier(hospital, true);

    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
    let took = talk::transfer(ct, pacs, 4 << 20);
    let series = Pinging::start(&ct.host, pacs.address(), 200, BEAT * 2).unwrap();
    wait::until(DEADLINE, "pings", || (series.received() > 100).then_some(())).unwrap();
    let series = series.stop().unwrap();
    let median = series.times.get(series.times.len() / 2);
    println!("over TCP: 4 MiB took {took:?}; {} pings lost, {median:?} us", series.lost());
    let (sender, receiver) = (hospital.machine("monitor-1"), hospital.machine("hl7-1"));
    let engine = Engine::start(&receiver.host, hl7::PORT).unwrap();
    let monitor = Monitor::start(&sender.host, receiver.at(hl7::PORT), BEAT * 20).unwrap();
    let alarms = |more: u64, when: &str| {
        let before = monitor.count().acknowledged;
        wait::until(DEADLINE, &format!("HL7 {when}"), || {
            (monitor.count().acknowledged >= before + more).then_some(())
        })
        .unwrap();
    };
    alarms(10, "over TCP");
    for firewall in &firewalls {
        // Tunnels and QUIC were tried, and nothing of them left.
        let counters = firewall.counters();
        let refused = counters.refused.get(&Refused::Egress).copied().unwrap_or_default();
        assert!(refused > 0, "{counters:?}");
    }

    // The firewalls let all out: QUIC is taken, and then the direct path.
    let mut talk = Talk::start(ct, pacs);
    talk.goes_on(64 << 10, "over TCP");
    for firewall in &firewalls {
        firewall.set_egress(Egress::All);
    }
    wait_for_carrier(hospital, false);
    talk.goes_on(64 << 10, "over QUIC");
    wait_for(hospital, "packets to go directly", "proved", false);
    talk.goes_on(64 << 10, "directly");
    alarms(10, "directly");

    // They shut again under way: nobody waits until QUIC is given up.
    let before_that = silences(hospital);
    let stalls = Stalls::watch().unwrap();
    let pinging = Pinging::start(&ct.host, pacs.address(), MANY, BEAT).unwrap();
    wait::until(DEADLINE, "pings", || (pinging.received() > 100).then_some(())).unwrap();
    for firewall in &firewalls {
        firewall.set_egress(Egress::only_tcp_443());
    }
    wait_for(hospital, "packets to take the relay", "died", true);
    wait_for_carrier(hospital, true);
    let before = pinging.received();
    wait::until(DEADLINE, "pings over TCP again", || {
        (pinging.received() > before + 400).then_some(())
    })
    .unwrap();
    let (series, stall) = (pinging.stop().unwrap(), stalls.worst());
    let gap = BEAT * u32::try_from(series.longest_gap).unwrap_or(u32::MAX);
    println!(
        "all UDP blocked under way: {gap:?} without an answer, {} of {} pings lost; a thread waited for {stall:?} at worst",
        series.lost(),
        series.sent
    );
    // Not by a clock, which says most of the machine: each connection was left because it was silent.
    let now = silences(hospital);
    let left = |(place, before): (&String, &u64)| now.get(place).is_some_and(|now| now > before);
    assert!(before_that.iter().all(left), "{before_that:?}, {now:?}; {gap:?}, {stall:?}");
    talk.goes_on(64 << 10, "over TCP again");
    talk.stop();
    alarms(10, "over TCP again");
    let count = monitor.finish(&engine, DEADLINE);
    assert_eq!((count.lost, count.reconnects), (0, 0), "{count:?}");
}

/// Relays of their own machines, and who uses them.
struct Relays {
    fixture: Fixture,
    running: Vec<Process>,
}

impl Relays {
    /// Makes a relay on a machine of the hospital and starts it. Gives the code that it printed.
    fn start(&mut self, name: &str, machine: &str, port: u16) -> String {
        let hospital = &self.fixture.hospital;
        let machine = hospital.machine(machine);
        let directory = self.fixture.directory().join(name);
        let dir = directory.display().to_string();
        let pin = hospital.operator.json(&["whoami"]).unwrap()["authority_hash"].clone();
        let (listen, at) = (format!("0.0.0.0:{port}"), format!("{}:{port}", machine.address()));
        let made = machine
            .host
            .command(&hospital.programs.controller)
            .args(["relay-init", "--dir", &dir, "--listen", &listen, "--advertise", &at])
            .args(["--authority", pin.as_str().unwrap()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stdout).into_owned();
        assert!(made.status.success(), "{said}{}", String::from_utf8_lossy(&made.stderr));
        let mut command = machine.host.command(&hospital.programs.controller);
        command.args(["relay", "--dir", &dir]);
        let log = hospital.logs.join(format!("{name}.log"));
        let mut process = Process::spawn(name, &mut command, &log).unwrap();
        // Nobody has named it: it prints its code at each start until somebody does.
        let code = wait::until_ok(DEADLINE, "the relay's code", || {
            process.must_run()?;
            let text = std::fs::read_to_string(&log)?;
            let code = text.split_whitespace().find(|word| word.starts_with("anteroom-relay-1."));
            code.map(str::to_owned).with_context(|| text.clone())
        })
        .unwrap();
        assert!(said.contains(&code), "init printed another code than {code}: {said}");
        self.running.push(process);
        code
    }

    /// Waits until both gateways are connected to the relays of these names and no others but the controller, as the
    /// controller has heard.
    fn wait_for_guests(&self, names: &[&str]) {
        let hospital = &self.fixture.hospital;
        wait::until_ok(DEADLINE, "gateways to be at the relays", || {
            let list = hospital.operator.json(&["relay", "list"])?;
            let rows = list.as_array().context("rows")?;
            let relays: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
            ensure!(relays == names, "{list}");
            for row in rows {
                let guests = row["gateways"].as_array().context("gateways")?;
                let here = |name: &str| guests.iter().any(|guest| guest["gateway"] == name);
                ensure!(here("imaging") && here("servers"), "{list}");
            }
            Ok(())
        })
        .unwrap();
    }

    /// Key of the relay that a gateway's packets take now; none where they go directly.
    fn in_use(&self, gateway: &str) -> anyhow::Result<Option<String>> {
        let status = self.fixture.hospital.gateways[gateway].status()?;
        let peers = status["data_plane"]["engine"]["peers"].as_array().cloned();
        let number = peers.into_iter().flatten().find_map(|peer| peer["relay"].as_u64());
        let relays = status["relays"].as_array().context("relays")?;
        let relay = relays.iter().find(|relay| relay["number"].as_u64() == number);
        Ok(number.and(relay).and_then(|relay| relay["key"].as_str()).map(str::to_owned))
    }

    /// Keys of the relays by name, as operators have them.
    fn keys(&self) -> Vec<(String, String)> {
        let list = self.fixture.hospital.operator.json(&["relay", "list"]).unwrap();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let rows = list.as_array().cloned().unwrap_or_default();
        rows.iter().filter_map(|row| Some((text(&row["name"])?, text(&row["key"])?))).collect()
    }

    fn signed(&self, words: &[&str]) {
        let all = [words, &["--reason", "test", "--yes"]].concat();
        self.fixture.hospital.operator.ok(&all).unwrap();
    }

    /// Waits until a gateway has nothing to do with a key any more, and its packets go on.
    fn wait_left(&self, key: &str, pinging: &Pinging) {
        for gateway in ["imaging", "servers"] {
            wait::until_ok(DEADLINE, "gateways to leave the relay", || {
                let status = self.fixture.hospital.gateways[gateway].status()?;
                let relays = status["relays"].as_array().context("relays")?;
                ensure!(relays.iter().all(|relay| relay["key"] != key), "{gateway}: {relays:?}");
                ensure!(self.in_use(gateway)?.is_some(), "{gateway} has no relay: {status}");
                Ok(())
            })
            .unwrap();
        }
        let before = pinging.received();
        wait::until(DEADLINE, "pings by another relay", || {
            (pinging.received() > before + 200).then_some(())
        })
        .unwrap();
    }
}

#[test]
fn gateways_leave_a_relay_that_is_removed_or_replaced_and_traffic_goes_on_by_another() {
    let test = "gateways_leave_a_relay_that_is_removed_or_replaced_and_traffic_goes_on_by_another";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let mut relays = Relays { fixture, running: Vec::new() };
    let codes = [("east", "ws-1"), ("west", "hvac-1")].map(|(name, machine)| {
        let code = relays.start(name, machine, 4_500);
        relays.signed(&["relay", "add", name, "--code", &code]);
        code
    });
    assert_ne!(codes[0], codes[1]);
    relays.wait_for_guests(&["east", "west"]);

    wait_for(&relays.fixture.hospital, "direct paths", "proved", false);

    // No tunnel gets through, and there is no controller to relay: the two do, whichever is nearer.
    relays.fixture.hospital.controller.kill().unwrap();
    let hospital = &relays.fixture.hospital;
    hospital.router.ip("rule add pref 10 ipproto udp dport 51820 blackhole").unwrap();
    let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1").address());
    let pinging = Pinging::start(&ct.host, pacs, MANY, BEAT).unwrap();
    wait_for(hospital, "packets to take a relay", "died", true);
    wait::until(DEADLINE, "pings", || (pinging.received() > 100).then_some(())).unwrap();
    pinging.stop().unwrap();
    let pinging = Pinging::start(&ct.host, pacs, MANY, BEAT).unwrap();

    // The controller is back. The relay that packets take is removed under them: which one is told while there is no other
    // than the two, since packets may move to the controller's as soon as that is there.
    let used = wait::until_ok(DEADLINE, "a relay in use", || {
        relays.in_use("imaging")?.context("imaging takes none")
    })
    .unwrap();
    relays.fixture.hospital.controller.start().unwrap();
    relays.wait_for_guests(&["east", "west"]);
    let keys = relays.keys();
    let (stolen, _) = keys.iter().find(|(_, key)| *key == used).expect("it stands alone");
    let (other, old) = keys.iter().find(|(_, key)| *key != used).expect("there is another");
    relays.signed(&["relay", "remove", stolen]);
    relays.wait_left(&used, &pinging);
    relays.wait_for_guests(&[other]);

    // The other one is stolen, and a new one takes its place in one step.
    let code = relays.start("new", "ws-1", 4_501);
    relays.signed(&["relay", "replace", other, "--code", &code]);
    relays.wait_left(old, &pinging);
    relays.wait_for_guests(&[other]);
    let now = relays.keys();
    assert!(now.len() == 1 && now[0].0 == *other && now[0].1 != *old, "{now:?}");

    let series = pinging.stop().unwrap();
    let gap = BEAT * u32::try_from(series.longest_gap).unwrap_or(u32::MAX);
    assert!(gap < DEADLINE, "{gap:?} without an answer, {} of {}", series.lost(), series.sent);
    eprintln!("{gap:?} without an answer at most, {} of {} lost", series.lost(), series.sent);
}

/// That a gateway has nothing to do with another one: no tunnel, no connection of their own, no lane.
fn is_without(hospital: &Hospital, gateway: &str, other: &Value) -> anyhow::Result<()> {
    let status = hospital.gateways[gateway].status()?;
    let engine = &status["data_plane"]["engine"];
    let all = [&engine["peers"], &engine["lanes"], &status["direct"]["peers"]];
    let id = other.as_str().context("an id")?;
    for part in all {
        ensure!(!part.to_string().contains(id), "{gateway} still has {id}: {part}");
    }
    Ok(())
}

#[test]
fn a_gateway_that_is_revoked_loses_every_way_that_it_had_and_finds_no_new_one() {
    let test = "a_gateway_that_is_revoked_loses_every_way_that_it_had_and_finds_no_new_one";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    talk::allow(&fixture.hospital);
    let mut relays = Relays { fixture, running: Vec::new() };
    let code = relays.start("east", "ws-1", 4_500);
    relays.signed(&["relay", "add", "east", "--code", &code]);
    let hospital = &mut relays.fixture.hospital;
    for gateway in ["imaging", "servers"] {
        quic::take_quic(hospital, gateway, 443);
    }
    relays.wait_for_guests(&["east"]);
    let hospital = &relays.fixture.hospital;
    wait_for(hospital, "direct paths with a relay behind them", "proved", false);
    let [ct, pacs] = ["ct-1", "pacs-1"].map(|name| hospital.machine(name).clone());
    let stolen =
        hospital.gateways["imaging"].status().unwrap()["data_plane"]["engine"]["gateway"].clone();

    // It has lanes, and a connection of its own, which packets take.
    wait::until_ok(DEADLINE, "lanes", || {
        talk::transfer(&ct, &pacs, 4 << 20);
        let status = hospital.gateways["servers"].status()?;
        let lanes = &status["data_plane"]["engine"]["lanes"];
        ensure!(lanes.to_string().contains(stolen.as_str().context("an id")?), "{lanes}");
        Ok(())
    })
    .unwrap();
    let rule = "pref 10 ipproto udp dport 51820 blackhole";
    hospital.router.ip(&format!("rule add {rule}")).unwrap();
    wait_until(hospital, "packets to go by QUIC", |_, relay| {
        relay.as_u64().is_some_and(|number| number >= FIRST_DIRECT.into())
    });
    let pinging = Pinging::start(&ct.host, pacs.address(), MANY, BEAT).unwrap();
    wait::until(DEADLINE, "pings by QUIC", || (pinging.received() > 100).then_some(())).unwrap();

    story::revoke(hospital, "imaging").unwrap();
    wait::until_ok(DEADLINE, "servers to be without it", || {
        is_without(hospital, "servers", &stolen)
    })
    .unwrap();
    // What was answered before that has come.
    wait::until_ok(DEADLINE, "no more answers", || {
        let before = pinging.received();
        std::thread::sleep(Duration::from_secs(1));
        ensure!(pinging.received() == before, "{} came", pinging.received() - before);
        Ok(())
    })
    .unwrap();
    let heard = pinging.received();

    // Nobody tells it anything any more, and its agent begins anew with all that it had: the keys, the view, the pass. It
    // is let in at the relay, for its pass is genuine. But the peer is nobody's there whose pass doesn't name it.
    relays.fixture.hospital.controller.kill().unwrap();
    let gateway = relays.fixture.hospital.gateway("imaging");
    gateway.kill().unwrap();
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
    let hospital = &relays.fixture.hospital;
    wait::until_ok(DEADLINE, "the relay to let it in with its old pass", || {
        let status = hospital.gateways["imaging"].status()?;
        let at = status["relays"].as_array().context("relays")?.iter();
        let in_ = at.filter(|relay| relay["connected"] == true).count();
        ensure!(in_ == 1, "{}", status["relays"]);
        Ok(())
    })
    .unwrap();
    let anew = Pinging::start(&ct.host, pacs.address(), 400, BEAT).unwrap();
    // By WireGuard's own path as well, with lanes or without.
    hospital.router.ip(&format!("rule del {rule}")).unwrap();
    let anew = anew.finish().unwrap();
    assert_eq!((anew.received, pinging.stop().unwrap().received), (0, heard), "{anew:?}");
    let status = hospital.gateways["imaging"].status().unwrap();
    let relays_ = status["relays"].as_array().unwrap();
    assert!(relays_.iter().all(|relay| relay["peers"] == 0), "{relays_:?}");
    is_without(hospital, "servers", &stolen).unwrap();
    let peers = &status["data_plane"]["engine"]["peers"];
    assert!(peers.as_array().unwrap().iter().all(|peer| peer["live"] == false), "{peers}");
}
