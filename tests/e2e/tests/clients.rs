//! Stock WireGuard programs as clients of a hospital in enforce.

use std::net::Ipv4Addr;
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
