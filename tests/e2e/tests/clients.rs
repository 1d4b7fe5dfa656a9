//! Stock WireGuard programs as clients of a hospital in enforce.

#[path = "clients/found.rs"]
mod found;

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use anteroom_e2e::client::{Laptop, Pair, Stock, key_pair};
use anteroom_e2e::{Fixture, Stage, fixture};
use anteroom_lab::hospital::{Hospital, address};
use anteroom_lab::story::{POLICY, open_tcp};
use anteroom_lab::topology::Host;
use anteroom_lab::wait;

/// How long what is to be refused is tried.
const NEVER: Duration = Duration::from_millis(1200);
const SOON: Duration = Duration::from_secs(60);

const RULES: &str = r#"
[service.service-port]
ports = ["tcp/5900"]
[service.upload]
ports = ["tcp/7000"]
[rule.service]
from = "laptop-7"
to = "ct-1"
services = ["service-port"]
[rule.ward-service]
from = "laptop-7"
to = "monitor-1"
services = ["service-port"]
[rule.upload]
from = "ct-1"
to = "laptop-7"
services = ["upload"]
"#;

/// A laptop that is a client, on the CT scanner's own network as far as that goes, and connected.
fn connected(fixture: &Fixture, stock: Vec<String>) -> Laptop {
    let hospital = &fixture.hospital;
    let operator = &hospital.operator;
    let own = address("imaging", 77);
    let site = operator.json(&["gateway", "show", "imaging"]).unwrap()["site"].clone();
    let site = site.as_str().unwrap();
    let ip = own.to_string();
    let (private, public) = key_pair().unwrap();
    let add =
        ["client", "add", "laptop-7", "--site", site, "--address", &ip, "--key", &public, "--yes"];
    let added = operator.json(&add).unwrap();
    let interface = added["config"].as_str().unwrap();
    let interface =
        interface.replace("[Interface]", &format!("[Interface]\nPrivateKey = {private}"));
    assert!(interface.contains(&private), "{interface}");
    assert!(!interface.contains("[Peer]"), "no rule names it yet: {interface}");
    let policy = operator.write_policy("clients.toml", &format!("{POLICY}{RULES}")).unwrap();
    operator.apply(&policy, "service").unwrap();
    let shown = operator.json(&["client", "show", "laptop-7"]).unwrap();
    let peers = shown["config"].as_str().unwrap();
    assert_eq!(peers.matches("[Peer]").count(), 2, "{peers}");
    for device in ["ct-1", "monitor-1"] {
        let ip = hospital.machine(device).address();
        assert!(peers.contains(&format!("AllowedIPs = {ip}/32\n")), "{device}: {peers}");
    }
    let mut laptop = Laptop::place(hospital, stock, fixture.directory(), own).unwrap();
    laptop.move_to(77).unwrap();
    laptop.start(&format!("{interface}{peers}")).unwrap();
    laptop
}

fn to<'a>(hospital: &'a Hospital, name: &str, port: u16) -> (&'a Host, Ipv4Addr, u16) {
    let machine = hospital.machine(name);
    (&machine.host, machine.address(), port)
}

fn refused(from: &Host, to: (Ipv4Addr, u16), what: &str) {
    let opened = open_tcp(from, to, NEVER);
    assert!(opened.is_err(), "{what}: {opened:?}");
}

/// The Ethernet address that a machine has for a neighbour, if it has one.
fn neighbour(host: &Host, of: Ipv4Addr) -> Option<String> {
    let text = host.ip(&format!("neigh show {of}")).unwrap();
    let mut words = text.split_whitespace();
    words.find(|word| *word == "lladdr")?;
    words.next().map(str::to_owned)
}

/// Handshake, both ways, what is refused, a rekey, a move, the end.
fn a_stock_client_works(fixture: &Fixture, stock: Vec<String>) {
    let hospital = &fixture.hospital;
    let mut laptop = connected(fixture, stock);
    let (ct, ct_at, _) = to(hospital, "ct-1", 0);

    // The laptop opens, to a device that takes it for a neighbour and to one that has it behind its router.
    let mut there = Pair::open(&laptop.host, to(hospital, "ct-1", 5900), SOON).unwrap();
    there.exchange(300_000).unwrap();
    let mut ward = Pair::open(&laptop.host, to(hospital, "monitor-1", 5900), SOON).unwrap();
    ward.exchange(100_000).unwrap();
    for pair in [&there, &ward] {
        assert_eq!(
            pair.answered.peer_addr().unwrap().ip(),
            laptop.address,
            "as the device sees it"
        );
    }
    // The device opens.
    let host = laptop.host.clone();
    let upload = (&host, laptop.address, 7000);
    let mut back = Pair::open(ct, upload, SOON).unwrap();
    back.exchange(300_000).unwrap();
    assert_eq!(back.answered.peer_addr().unwrap().ip(), ct_at);

    // None of them is the wiser: the client is a neighbour with an address of its own, or behind the real router.
    let mac = neighbour(ct, laptop.address).expect("the CT knows its neighbour");
    assert!(mac.starts_with("02:61:6e:"), "{mac}");
    let monitor = &hospital.machine("monitor-1").host;
    assert_eq!(neighbour(monitor, laptop.address), None);
    let router = neighbour(monitor, address("ward", 1));
    assert!(router.is_some(), "it is sent to by way of the router, as any other member behind it");

    // What no rule opens.
    refused(&laptop.host, (ct_at, 104), "a port that isn't the laptop's");
    refused(ct, (laptop.address, 9), "a port that isn't the CT's");
    refused(monitor, (laptop.address, 7000), "the monitor, which may not open");
    let spoofed = address("imaging", 78);
    laptop.host.ip(&format!("address add {spoofed}/32 dev wg0")).unwrap();
    laptop.host.ip(&format!("route replace {ct_at}/32 dev wg0 src {spoofed}")).unwrap();
    refused(&laptop.host, (ct_at, 5900), "another's address");
    laptop.host.ip(&format!("route replace {ct_at}/32 dev wg0 src {}", laptop.address)).unwrap();
    let pacs = hospital.machine("pacs-1").address();
    let honest = laptop.config().to_owned();
    let own = format!("AllowedIPs = {ct_at}/32");
    assert!(honest.contains(&own), "{honest}");
    laptop.start(&honest.replace(&own, &format!("{own}, {pacs}/32"))).unwrap();
    refused(&laptop.host, (pacs, 104), "through a gateway to another's device");

    // Another handshake: the laptop's program starts anew. What was open goes on.
    laptop.start(&honest).unwrap();
    there.exchange(100_000).unwrap();
    back.exchange(100_000).unwrap();

    // The gateways change their tunnel keys; its configuration names the one that stays, for its next handshake too.
    let before = hospital.operator.json(&["client", "show", "laptop-7"]).unwrap()["config"].clone();
    hospital.operator.ok(&["gateway", "rotate", "--all", "--timeout", "60s"]).unwrap();
    there.exchange(100_000).unwrap();
    laptop.start(&honest).unwrap();
    there.exchange(100_000).unwrap();
    back.exchange(100_000).unwrap();
    let after = hospital.operator.json(&["client", "show", "laptop-7"]).unwrap()["config"].clone();
    assert_eq!(before, after, "a client's configuration stays as it is");

    // It moves, address and port, with connections open; who speaks first is the laptop.
    laptop.move_to(78).unwrap();
    laptop.set(&["listen-port", "40123"]).unwrap();
    there.exchange(100_000).unwrap();
    back.exchange(100_000).unwrap();
    Pair::open(ct, upload, SOON).unwrap().exchange(1000).unwrap();
    let status =
        wait::until_ok(Duration::from_secs(60), "the laptop's new place in the status", || {
            let status = hospital.operator.command(&["--json", "status"])?.json()?;
            let seen = status["clients"][0]["seen_at"].as_str().unwrap_or_default().to_owned();
            anyhow::ensure!(seen == format!("{}:40123", laptop.at()), "{}", status["clients"]);
            Ok(status)
        });
    let status = status.unwrap();
    assert!(status["clients"][0]["live_at"].as_array().unwrap().contains(&"imaging".into()));

    // Its end cuts what is open.
    let revoke = ["client", "revoke", "laptop-7", "--reason", "stolen", "--confirm", "laptop-7"];
    hospital.operator.ok(&revoke).unwrap();
    there.answered.set_read_timeout(Some(NEVER)).unwrap();
    laptop_cut(&mut there);
    refused(&laptop.host, (ct_at, 5900), "a revoked client");
    refused(ct, (laptop.address, 7000), "towards a revoked client");
    let audit = hospital.operator.json(&["audit", "list"]).unwrap().to_string();
    assert!(audit.contains("client add") && audit.contains("client revoke"), "{audit}");
}

/// Nothing that the laptop sends arrives any more.
fn laptop_cut(pair: &mut Pair) {
    use std::io::{Read as _, Write as _};
    let _ = pair.opened.write_all(b"still there?");
    let mut buffer = [0; 16];
    let got = pair.answered.read(&mut buffer);
    assert!(got.is_err(), "something came through: {got:?}");
}

#[test]
fn wireguard_go_is_a_client_like_any() {
    let Some(command) = Stock::WireguardGo.installed() else { return };
    let Some(fixture) = fixture("wireguard_go_is_a_client_like_any", Stage::Enforced) else {
        return;
    };
    a_stock_client_works(&fixture, command);
}

#[test]
fn boringtun_cli_is_a_client_like_any() {
    let Some(command) = Stock::BoringtunCli.installed() else { return };
    let Some(fixture) = fixture("boringtun_cli_is_a_client_like_any", Stage::Enforced) else {
        return;
    };
    a_stock_client_works(&fixture, command);
}

/// WireGuard changes keys every two minutes: here it does.
#[test]
#[ignore = "takes more than two minutes"]
fn keys_change_under_traffic_and_nothing_is_lost() {
    let Some(command) = Stock::WireguardGo.installed() else { return };
    let name = "keys_change_under_traffic_and_nothing_is_lost";
    let Some(fixture) = fixture(name, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let laptop = connected(&fixture, command);
    let mut there = Pair::open(&laptop.host, to(hospital, "ct-1", 5900), SOON).unwrap();
    let mut ward = Pair::open(&laptop.host, to(hospital, "monitor-1", 5900), SOON).unwrap();
    let first = laptop.handshakes().unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(130) {
        there.exchange(2000).unwrap();
        ward.exchange(2000).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    let last = laptop.handshakes().unwrap();
    assert!(first.iter().zip(&last).all(|(first, last)| last > first), "{first:?} {last:?}");
}

/// A host: a machine of the management network that runs the agent itself. Rules name it `laptop-7`, as the others.
fn host(fixture: &mut Fixture) -> Ipv4Addr {
    let own = address("imaging", 77);
    let hospital = &mut fixture.hospital;
    hospital.add_spare("laptop-7", "mgmt", 77).unwrap();
    let site = hospital.operator.json(&["gateway", "show", "imaging"]).unwrap()["site"].clone();
    let config = hospital.gateway("laptop-7").config.clone();
    let text = std::fs::read_to_string(&config).unwrap();
    let kept: String = text
        .lines()
        .take_while(|line| !line.starts_with('['))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&config, format!("{kept}[host]\n")).unwrap();
    let site = site.as_str().unwrap();
    let invite = ["client", "invite", "laptop-7", "--site", site];
    let invite = hospital.operator.json(&invite).unwrap()["invite"].as_str().unwrap().to_owned();
    let machine = hospital.gateway("laptop-7");
    machine.enroll(&invite).unwrap();
    machine.start().unwrap();
    machine.wait_running().unwrap();
    let fingerprint = machine.fingerprint().unwrap();
    let operator = &hospital.operator;
    let ip = own.to_string();
    let approve =
        ["client", "approve", "laptop-7", "--address", &ip, "--fingerprint", &fingerprint];
    wait::until_ok(SOON, "the host to be approved", || {
        operator.ok(&[&approve[..], &["--yes"]].concat())
    })
    .unwrap();
    let policy = operator.write_policy("hosts.toml", &format!("{POLICY}{RULES}")).unwrap();
    operator.apply(&policy, "service").unwrap();
    own
}

/// The routes to members.
fn through(host: &Host) -> String {
    let all = host.ip("-4 route show table all").unwrap();
    all.lines().filter(|line| line.contains("table 42919 ")).collect::<Vec<_>>().join("\n")
}

/// What of a machine's network isn't the TUN device's: addresses, routes, rules and packet filter.
fn own_network(host: &Host) -> String {
    let all = ["-4 address show", "-4 route show table all", "rule show"].map(|what| {
        let text = host.ip(what).unwrap();
        let own =
            text.lines().filter(|line| !line.contains("anteroom0") && !line.contains("valid_lft"));
        own.map(str::trim_end).collect::<Vec<_>>().join("\n")
    });
    all.join("\n")
}

#[test]
fn a_host_is_a_member_by_an_agent_of_its_own() {
    let name = "a_host_is_a_member_by_an_agent_of_its_own";
    let Some(mut fixture) = fixture(name, Stage::Enforced) else { return };
    let own = host(&mut fixture);
    let hospital = &mut fixture.hospital;
    let machine = hospital.gateway("laptop-7").host.clone();
    let (ct, ct_at) = (hospital.machine("ct-1").host.clone(), hospital.machine("ct-1").address());
    let monitor =
        (hospital.machine("monitor-1").host.clone(), hospital.machine("monitor-1").address());
    let pacs = hospital.machine("pacs-1").address();

    // What rules open, either way, from its own address.
    let mut there = Pair::open(&machine, (&ct, ct_at, 5900), SOON).unwrap();
    there.exchange(3_000_000).unwrap();
    let mut ward = Pair::open(&machine, (&monitor.0, monitor.1, 5900), SOON).unwrap();
    ward.exchange(300_000).unwrap();
    for pair in [&there, &ward] {
        assert_eq!(pair.answered.peer_addr().unwrap().ip(), own, "as the device sees it");
    }
    let mut back = Pair::open(&ct, (&machine, own, 7000), SOON).unwrap();
    back.exchange(300_000).unwrap();

    // Nor does it from the network that the machine itself is in, whatever listens there: only its other addresses are open.
    let neighbour = hospital.controller.host.clone();
    let at = address("mgmt", 77);
    neighbour.ip(&format!("route add {own}/32 via {at}")).unwrap();
    let listening =
        [own, at].map(|at| machine.enter(|| TcpListener::bind((at, 7777))).unwrap().unwrap());
    open_tcp(&neighbour, (at, 7777), SOON).unwrap();
    refused(&neighbour, (own, 7777), "a neighbour that is no member");
    neighbour.ip(&format!("route del {own}/32")).unwrap();
    drop(listening);

    // What none opens: another port, another direction, another member, which has no route either.
    refused(&machine, (ct_at, 104), "a port that isn't the host's");
    refused(&ct, (own, 9), "a port that isn't the CT's");
    refused(&monitor.0, (own, 7000), "the monitor, which may not open");
    let routes = through(&machine);
    assert!(routes.contains(&ct_at.to_string()) && !routes.contains(&pacs.to_string()), "{routes}");
    machine.ip(&format!("route add {pacs}/32 dev anteroom0 src {own}")).unwrap();
    refused(&machine, (pacs, 104), "a member with which it shares no rule");
    machine.ip("address add 10.20.1.99/32 dev lo").unwrap();
    machine
        .ip(&format!("route replace {ct_at}/32 dev anteroom0 src 10.20.1.99 table 42919"))
        .unwrap();
    refused(&machine, (ct_at, 5900), "another's address");
    machine.ip(&format!("route del {ct_at}/32 dev anteroom0 table 42919")).unwrap();
    machine.ip("address del 10.20.1.99/32 dev lo").unwrap();
    // Somebody took a route away: it is put back.
    wait::until(SOON, "the route to be put back", || {
        through(&machine).contains(&format!("{ct_at} ")).then_some(())
    })
    .unwrap();
    there.exchange(10_000).unwrap();

    // Killed, it leaves its machine's network as it was; it comes back with what it had on disk, without a controller.
    hospital.controller.kill().unwrap();
    hospital.gateway("laptop-7").kill().unwrap();
    wait::until(SOON, "the device to go", || {
        machine.ip("link show anteroom0").is_err().then_some(())
    })
    .unwrap();
    let bare = own_network(&machine);
    assert!(!bare.contains(&own.to_string()) && !bare.contains(&ct_at.to_string()), "{bare}");
    hospital.gateway("laptop-7").start().unwrap();
    hospital.gateway("laptop-7").wait_running().unwrap();
    assert_eq!(own_network(&machine), bare, "the rest of the machine's network");
    there.exchange(10_000).unwrap();
    Pair::open(&machine, (&ct, ct_at, 5900), SOON).unwrap().exchange(1000).unwrap();
    Pair::open(&ct, (&machine, own, 7000), SOON).unwrap().exchange(1000).unwrap();
    let status = hospital.gateway("laptop-7").status().unwrap();
    assert_eq!(status["data_plane"]["interfaces"][0]["name"], "host", "{status}");

    // Its device is taken away under it: the agent makes another.
    machine.ip("link del anteroom0").unwrap();
    wait::until(SOON, "the route to be back", || {
        through(&machine).contains(&format!("{ct_at} ")).then_some(())
    })
    .unwrap();
    Pair::open(&machine, (&ct, ct_at, 5900), SOON).unwrap().exchange(1000).unwrap();

    // Revoked, it is cut off at once.
    hospital.controller.start().unwrap();
    let mut there = Pair::open(&machine, (&ct, ct_at, 5900), SOON).unwrap();
    let revoke = ["client", "revoke", "laptop-7", "--reason", "stolen", "--confirm", "laptop-7"];
    wait::until_ok(SOON, "the host to be revoked", || hospital.operator.ok(&revoke)).unwrap();
    there.answered.set_read_timeout(Some(NEVER)).unwrap();
    laptop_cut(&mut there);
    refused(&machine, (ct_at, 5900), "a revoked host");
    refused(&ct, (own, 7000), "towards a revoked host");
}
