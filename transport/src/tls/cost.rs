//! What a handshake costs, hybrid and classic: run on demand, for the figures in `docs/keys.md`.
//!
//! `cargo test --release -p anteroom-transport --lib -- --ignored --nocapture cost`

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, ServerConnection};

use super::*;

const ROUNDS: u32 = 2000;

/// How long this thread has worked.
fn worked() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// One handshake with keys at both ends: bytes there and back, and the time in which the server was at work.
fn shake(
    client: &Arc<rustls::ClientConfig>,
    server: &Arc<rustls::ServerConfig>,
) -> (usize, usize, Duration) {
    let name = ServerName::try_from("anteroom").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let (mut there, mut back, mut serving) = (0, 0, Duration::ZERO);
    let mut start = Instant::now();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    serving += start.elapsed();
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            there += client.write_tls(&mut bytes).unwrap();
        }
        start = Instant::now();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            back += server.write_tls(&mut bytes).unwrap();
        }
        serving += start.elapsed();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    (there, back, serving)
}

fn measure(group: &'static dyn rustls::crypto::SupportedKxGroup) -> Duration {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![group];
    let provider = Arc::new(provider);
    let (one, other) = (IdentityKey::from_seed(&[1; 32]), IdentityKey::from_seed(&[2; 32]));
    let pin = ServerPin::new(vec![one.public()]);
    let server =
        Arc::new(server_config_with(provider.clone(), &one, &[Protocol::Control]).unwrap());
    let client = Arc::new(client_config_with(provider, &other, &pin, Protocol::Control).unwrap());
    let (there, back, _) = shake(&client, &server);
    let (begin, start) = (worked(), Instant::now());
    let serving: Duration = (0..ROUNDS).map(|_| shake(&client, &server).2).sum();
    let (both, wall) = ((worked() - begin) / ROUNDS, start.elapsed());
    let share = serving.as_secs_f64() / wall.as_secs_f64();
    let served = both.mul_f64(share);
    println!(
        "{:?}: {both:.0?} of a core for both ends, {served:.0?} for the server ({:.0} handshakes a second); {there} bytes there, {back} back",
        group.name(),
        1.0 / served.as_secs_f64()
    );
    both
}

#[test]
#[ignore = "measures"]
fn cost_of_a_handshake() {
    for _ in 0..3 {
        let classic = measure(aws_lc_rs::kx_group::X25519);
        let hybrid = measure(aws_lc_rs::kx_group::X25519MLKEM768);
        assert!(hybrid > classic, "something else was measured: {hybrid:?} {classic:?}");
    }
}
