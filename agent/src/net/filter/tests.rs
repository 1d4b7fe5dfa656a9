use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::ping;
use anteroom_lab::topology::{self, Host};

use std::path::Path;

use super::wire::{self, Isolation, Standing, Wanted};
use super::*;
use crate::config::Config;
use crate::net::nft::NETLINK_NETFILTER;
use crate::net::wiring::Wiring;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const PATIENCE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_millis(300);

fn pair() -> (Host, Host) {
    let [gateway, stranger] = ["gateway", "stranger"].map(|name| Host::create(name).unwrap());
    topology::cable((&gateway, "port0", None), (&stranger, "eth0")).unwrap();
    gateway.address("port0", GATEWAY, 24).unwrap();
    stranger.address("eth0", STRANGER, 24).unwrap();
    (gateway, stranger)
}

fn session() -> Session {
    Session::open(NETLINK_NETFILTER).unwrap()
}

/// Closed ports at these interfaces.
fn isolate(ports: &[&str]) -> Result<Standing, NftError> {
    let text = "[uplink]\ninterface = \"up0\"\n[underlay]\nlisten = \"0.0.0.0:51820\"\n";
    let ports_text: String = (ports.iter().enumerate())
        .map(|(i, port)| format!("[[port]]\nname = \"port{i}\"\ninterface = \"{port}\"\n"))
        .collect();
    let config = Config::parse(Path::new("test.toml"), &(text.to_owned() + &ports_text)).unwrap();
    let wiring = Wiring::closed(&config);
    wire::build(&session(), &Wanted { uplink: "up0", ports, wiring: &wiring }, false)
}

#[test]
fn without_connection_tracking_the_gateway_is_silent_and_can_ask() {
    let test = "net::filter::tests::without_connection_tracking_the_gateway_is_silent_and_can_ask";
    if !in_private_network(test) {
        return;
    }
    let (gateway, stranger) = pair();
    let management = ["tcp/22".parse().unwrap()];
    let guard = Guard {
        interfaces: vec!["port0"],
        tunnel_port: 51820,
        quic_port: None,
        management: &management,
    };
    gateway.enter(|| guard.batch(Guarding::Untracked, true).commit()).unwrap().unwrap();

    for port in [80, 40_000] {
        let connected = stranger
            .enter(|| TcpStream::connect_timeout(&SocketAddr::from((GATEWAY, port)), SILENCE))
            .unwrap();
        assert_eq!(connected.unwrap_err().kind(), ErrorKind::TimedOut, "tcp/{port}");
        let udp = stranger.enter(|| UdpSocket::bind((STRANGER, 0))).unwrap().unwrap();
        udp.connect((GATEWAY, port)).unwrap();
        udp.set_read_timeout(Some(SILENCE)).unwrap();
        udp.send(b"anyone?").unwrap();
        assert_eq!(udp.recv(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock, "udp/{port}");
    }
    assert_eq!(ping::ping(&stranger, GATEWAY, 3, Duration::from_millis(20)).unwrap().lost(), 3);

    let listener = gateway.enter(|| TcpListener::bind((GATEWAY, 22))).unwrap().unwrap();
    stranger
        .enter(|| TcpStream::connect_timeout(&SocketAddr::from((GATEWAY, 22)), PATIENCE))
        .unwrap()
        .expect("management stays reachable");
    drop(listener);

    let to = SocketAddr::from((STRANGER, 4433));
    let listener = stranger.enter(|| TcpListener::bind(to)).unwrap().unwrap();
    let mut stream = gateway.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
    listener.accept().unwrap().0.write_all(b"welcome").unwrap();
    let mut buffer = [0; 7];
    stream.read_exact(&mut buffer).unwrap();
    let server = stranger.enter(|| UdpSocket::bind(to)).unwrap().unwrap();
    let client = gateway.enter(|| UdpSocket::bind((GATEWAY, 0))).unwrap().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"hello", to).unwrap();
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"welcome", from).unwrap();
    assert_eq!(client.recv(&mut buffer).expect("an answer"), 7);
    assert_eq!(ping::ping(&gateway, STRANGER, 3, Duration::from_millis(20)).unwrap().lost(), 0);
}

#[test]
fn the_nft_tool_reads_what_we_wrote() {
    if !in_private_network("net::filter::tests::the_nft_tool_reads_what_we_wrote") {
        return;
    }
    let Some(nft) = anteroom_lab::programs::find("nft") else {
        eprintln!("skipped: `nft` isn't installed");
        return;
    };
    let (gateway, _stranger) = pair();
    let management = ["tcp/22".parse().unwrap(), "icmp/echo".parse().unwrap()];
    let wanted = Guard {
        interfaces: vec!["port0"],
        tunnel_port: 51820,
        quic_port: Some(443),
        management: &management,
    };
    let list = || {
        let listed = gateway.run(&nft, &["list", "ruleset"]).unwrap();
        listed.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect()
    };
    let expect = |lines: Vec<String>, expected: &[&str]| {
        for line in expected {
            assert!(lines.iter().any(|l| l == line), "no line {line:?} in\n{}", lines.join("\n"));
        }
    };
    gateway
        .enter(|| {
            let standing = Standing { isolation: Isolation::Full, can_forward: true };
            assert_eq!(isolate(&["port0"]).unwrap(), standing);
            assert_eq!(guard(&session(), &wanted).unwrap(), Guarding::Tracked);
        })
        .unwrap();
    expect(
        list(),
        &[
            "table netdev anteroom {",
            "type filter hook ingress device \"port0\" priority -500; policy drop;",
            "type filter hook egress device \"port0\" priority -500; policy drop;",
            "meta mark 0x616e7465 accept",
            "table inet anteroom_guard {",
            "type filter hook input priority filter - 10; policy accept;",
            "iifname \"port0\" jump guarded",
            "udp dport 51820 accept",
            "udp dport 443 accept",
            "iifname \"port0\" udp dport 443 @th,64,8 & 0xc0 == 0xc0 jump quic_doorstep",
            "oifname \"port0\" udp sport 443 @th,64,8 & 0xc0 == 0xc0 jump quic_shakes",
            "meta nfproto ipv4 udp sport 67 udp dport 68 accept",
            "icmpv6 type nd-neighbor-solicit accept",
            "tcp dport 22 accept",
            "icmp type echo-request accept",
            "icmpv6 type echo-request accept",
            "ct state established,related accept",
            "counter packets 0 bytes 0 drop",
            "iifname \"port0\" drop",
            "type filter hook prerouting priority raw; policy accept;",
            "iifname \"port0\" udp dport 51820 notrack",
            "oifname \"port0\" udp sport 51820 notrack",
            "type filter hook prerouting priority raw - 10; policy accept;",
        ],
    );
    gateway.enter(release).unwrap().unwrap();
    let left: Vec<String> = list();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn what_is_refused_leaves_the_old_filter_in_force() {
    if !in_private_network("net::filter::tests::what_is_refused_leaves_the_old_filter_in_force") {
        return;
    }
    let (gateway, stranger) = pair();
    gateway.enter(|| isolate(&["port0"])).unwrap().unwrap();
    let refused = || {
        let mut batch = Batch::default();
        batch.remove_table(Family::Netdev, PORTS);
        batch.table(Family::Netdev, PORTS);
        batch.rule(Family::Netdev, PORTS, "nowhere", &[Expression::Accept]);
        batch.commit()
    };
    let error = gateway.enter(refused).unwrap().unwrap_err().to_string();
    assert!(error.contains("a rule of chain nowhere: "), "{error}");
    let series = ping::ping(&stranger, GATEWAY, 2, Duration::from_millis(20)).unwrap();
    assert_eq!(series.lost(), 2);
}

#[test]
fn an_absent_port_keeps_no_other_from_being_isolated() {
    if !in_private_network("net::filter::tests::an_absent_port_keeps_no_other_from_being_isolated")
    {
        return;
    }
    let (gateway, stranger) = pair();
    gateway.enter(|| isolate(&["absent0", "port0"])).unwrap().unwrap();
    let series = ping::ping(&stranger, GATEWAY, 2, Duration::from_millis(20)).unwrap();
    assert_eq!(series.lost(), 2);
}
