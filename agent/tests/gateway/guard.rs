//! The gateway itself is silent on its uplink: what it didn't ask for gets no answer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anteroom_agent::net::ports;
use anteroom_agent::net::wiring::Wiring;
use anteroom_lab::namespace::in_private_network;
use anteroom_lab::{ping, programs, wait};

use crate::bench::{Bench, GATEWAY, NETWORK, PATIENCE, TUNNEL_PORT, block_on};

/// How long silence has to last. What would break it comes within a few milliseconds here.
const SILENCE: Duration = Duration::from_millis(300);

fn isolate(bench: &Bench) -> Vec<String> {
    bench
        .gateway
        .enter(|| block_on(ports::isolate(&bench.config, &Wiring::closed(&bench.config))))
        .unwrap()
        .expect("the ports can be isolated")
}

fn release(bench: &Bench) {
    let warnings = bench.gateway.enter(|| block_on(ports::release(&bench.config))).unwrap();
    assert_eq!(warnings.expect("the ports can be released"), [""; 0]);
}

/// What a stranger on the network gets from the gateway, in words.
fn scan(bench: &Bench, listening: u16, closed: u16) -> Vec<&'static str> {
    let mut found = Vec::new();
    let connect = |port: u16| {
        let to = SocketAddr::from((GATEWAY, port));
        bench.network.enter(|| TcpStream::connect_timeout(&to, SILENCE)).unwrap()
    };
    let _listener =
        bench.gateway.enter(|| TcpListener::bind((GATEWAY, listening))).unwrap().unwrap();
    match connect(listening) {
        Ok(_) => found.push("open TCP port"),
        Err(error) if error.kind() == ErrorKind::TimedOut => {}
        Err(error) => panic!("{error}"),
    }
    match connect(closed) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => found.push("TCP reset"),
        Err(error) if error.kind() == ErrorKind::TimedOut => {}
        other => panic!("{other:?}"),
    }
    let udp = bench.network.enter(|| UdpSocket::bind((NETWORK, 0))).unwrap().unwrap();
    udp.connect((GATEWAY, closed)).unwrap();
    udp.set_read_timeout(Some(SILENCE)).unwrap();
    udp.send(b"anyone?").unwrap();
    match udp.recv(&mut [0; 100]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => found.push("UDP unreachable"),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("{other:?}"),
    }
    let series = ping::ping(&bench.network, GATEWAY, 3, Duration::from_millis(20)).unwrap();
    if series.lost() < 3 {
        found.push("echo reply");
    }
    found
}

#[test]
fn a_scan_finds_nothing_and_what_is_needed_still_works() {
    if !in_private_network("guard::a_scan_finds_nothing_and_what_is_needed_still_works") {
        return;
    }
    let bench = Bench::new(1500, "\"tcp/22\"");
    let everything = ["open TCP port", "TCP reset", "UDP unreachable", "echo reply"];
    bench.wait_uplink_live();
    let finds = |listening, expected: &[&str]| {
        let mut found = Vec::new();
        // What is there may take longer to answer, on a busy machine, than silence is waited for.
        wait::until(PATIENCE, "the scan to find what is there", || {
            found = scan(&bench, listening, 81);
            let odd = found.iter().find(|what| !expected.contains(what));
            assert_eq!(odd, None, "nothing but {expected:?} may be found");
            (found == expected).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {found:?}, not {expected:?}"));
    };
    finds(80, &everything);

    // Twice, since a restart isolates again.
    assert_eq!(isolate(&bench), [""; 0]);
    assert_eq!(isolate(&bench), [""; 0]);
    assert_eq!(scan(&bench, 80, 81), [""; 0]);
    finds(22, &["open TCP port"]);
    if let Some(nmap) = programs::find("nmap") {
        let options = ["-n", "-Pn", "-sS", "-sU", "-p", "T:20-30,U:100-110", "--max-retries", "0"];
        let target = GATEWAY.to_string();
        let arguments = [&options[..], &["--host-timeout", "20s", &target]].concat();
        let report = bench.network.run(nmap, &arguments).unwrap();
        assert!(!report.contains("unreach"), "{report}");
        assert!(report.contains("22/tcp  closed"), "management isn't reachable:\n{report}");
        assert_eq!(report.matches("/tcp  closed").count(), 1, "{report}");
        assert!(!report.contains("udp closed") && !report.contains("udp  closed"), "{report}");
    }
    own_connections_work(&bench);
    tunnels_come_in(&bench);

    release(&bench);
    finds(80, &everything);
    let flags = bench.gateway.ip("link show port0").unwrap();
    assert!(!flags.contains("NOARP") && flags.contains("state DOWN"), "{flags}");
}

/// The gateway asks, by TCP, UDP and echo, and is answered.
fn own_connections_work(bench: &Bench) {
    let listener = bench.network.enter(|| TcpListener::bind((NETWORK, 4433))).unwrap().unwrap();
    let to = SocketAddr::from((NETWORK, 4433));
    let mut stream =
        bench.gateway.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
    let (mut other, _) = listener.accept().unwrap();
    other.write_all(b"welcome").unwrap();
    let mut buffer = [0; 7];
    stream.read_exact(&mut buffer).unwrap();

    let server = bench.network.enter(|| UdpSocket::bind((NETWORK, 4433))).unwrap().unwrap();
    let client = bench.gateway.enter(|| UdpSocket::bind((GATEWAY, 0))).unwrap().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"hello", to).unwrap();
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"welcome", from).unwrap();
    assert_eq!(client.recv(&mut buffer).expect("QUIC's answers come in"), 7);

    let series = ping::ping(&bench.gateway, NETWORK, 3, Duration::from_millis(20)).unwrap();
    assert_eq!(series.lost(), 0);
}

/// Strangers' datagrams reach the tunnels' port, and fill no connection table.
fn tunnels_come_in(bench: &Bench) {
    let tracked = || {
        let count = "/proc/sys/net/netfilter/nf_conntrack_count";
        let count = bench.gateway.enter(|| std::fs::read_to_string(count)).unwrap();
        count.ok().map(|count| count.trim().parse::<u32>().unwrap())
    };
    let before = tracked();
    let tunnel = bench.gateway.enter(|| UdpSocket::bind((GATEWAY, TUNNEL_PORT))).unwrap().unwrap();
    tunnel.set_read_timeout(Some(PATIENCE)).unwrap();
    let peer = bench.network.enter(|| UdpSocket::bind((NETWORK, 0))).unwrap().unwrap();
    peer.send_to(b"handshake", (GATEWAY, TUNNEL_PORT)).unwrap();
    let mut buffer = [0; 100];
    let (_, from) = tunnel.recv_from(&mut buffer).expect("a tunnel's datagram comes in");
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    tunnel.send_to(b"answer", from).unwrap();
    assert_eq!(peer.recv(&mut buffer).expect("the answer goes out"), 6);
    let after = tracked();
    assert!(after <= before, "a tunnel is tracked: {before:?} connections, then {after:?}");
}
