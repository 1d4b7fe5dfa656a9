use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll};

use anteroom_proto::key::IdentityKey;
use quinn::UdpPoller;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::*;
use crate::endpoint::{connect_for, listen_for, peer_key};
use crate::tls::Protocol;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const DEADLINE: Duration = Duration::from_secs(60);

fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

/// Asks until there is an answer.
async fn ask(socket: &UdpSocket, at: SocketAddr, nonce: u64) -> SocketAddr {
    let asking = async {
        let mut buffer = [0; 100];
        loop {
            socket.send_to(&mirror::question(nonce), at).await.unwrap();
            let answer = timeout(Duration::from_millis(500), socket.recv_from(&mut buffer)).await;
            let Ok(Ok((len, from))) = answer else { continue };
            assert_eq!((from, len), (at, mirror::LEN));
            match mirror::parse_answer(&buffer[..len]) {
                Some((to, place)) if to == nonce => return place,
                _ => {}
            }
        }
    };
    timeout(DEADLINE, asking).await.expect("no answer")
}

#[tokio::test]
async fn a_relay_says_where_a_question_came_from_beside_its_connections() {
    let relay = listen_for(LOOPBACK, &key(1), &[Protocol::Relay]).unwrap();
    let at = relay.local_addr().unwrap();
    let accepting = tokio::spawn({
        let relay = relay.clone();
        async move { relay.accept().await.unwrap().await.unwrap() }
    });
    let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
    assert_eq!(ask(&socket, at, 1).await, socket.local_addr().unwrap());
    // Whatever else comes is QUIC's to drop.
    for garbage in [&[][..], &[7], &[7; 32], &mirror::question(3)[..31], &[0x40; 1_200]] {
        socket.send_to(garbage, at).await.unwrap();
    }
    let link = connect_for(at, &key(2), &[key(1).public()], Protocol::Relay).await.unwrap();
    let connection = accepting.await.unwrap();
    assert_eq!(peer_key(&connection), Some(key(2).public()));
    assert_eq!(ask(&socket, at, 4).await, socket.local_addr().unwrap());
    // One may be lost.
    let sending = async {
        loop {
            link.connection().send_datagram(vec![7; 32].into()).unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let got = tokio::select! {
        got = timeout(DEADLINE, connection.read_datagram()) => got.unwrap().unwrap(),
        () = sending => return,
    };
    assert_eq!(&got[..], [7; 32], "what is inside QUIC is nobody's question");
}

/// A socket that gives what it is told, and keeps what it is given.
#[derive(Debug, Default)]
struct Fake {
    sent: Mutex<Vec<(SocketAddr, Vec<u8>)>>,
}

impl AsyncUdpSocket for Fake {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        panic!("nobody waits")
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = (transmit.destination, transmit.contents.to_vec());
        self.sent.lock().unwrap().push(sent);
        Ok(())
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        _: &mut [IoSliceMut<'_>],
        _: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(LOOPBACK)
    }
}

fn meta(len: usize, stride: usize) -> RecvMeta {
    RecvMeta { addr: "192.0.2.1:9".parse().unwrap(), len, stride, ecn: None, dst_ip: None }
}

#[test]
fn merged_datagrams_are_told_apart_and_others_left_as_they_are() {
    let fake = Arc::new(Fake::default());
    let mirror = Mirror::new(fake.clone());
    let quic = [0x40; 32];
    let mut merged = [quic, super::mirror::question(1), quic, super::mirror::question(2)].concat();
    merged.extend(&quic[..20]);
    let mut meta = meta(merged.len(), 32);
    mirror.reflect(&mut merged, &mut meta);
    assert_eq!((meta.len, meta.stride), (84, 32));
    assert!(merged[..84].iter().all(|byte| *byte == 0x40));
    let sent = fake.sent.lock().unwrap();
    let nonces = sent.iter().map(|(_, bytes)| super::mirror::parse_answer(bytes).unwrap().0);
    assert_eq!(nonces.collect::<Vec<_>>(), [1, 2]);
    drop(sent);
    // What the system says of a buffer that it didn't fill is believed no further than that goes.
    for (len, stride) in [(0, 0), (10, 0), (5_000, 7), (usize::MAX, usize::MAX)] {
        let mut buffer = vec![7; 64];
        mirror.reflect(&mut buffer, &mut self::meta(len, stride));
    }
}

#[test]
fn one_address_gets_few_answers_a_second_and_all_together_too() {
    let mut allowances = Allowances::new();
    let begun = Instant::now();
    let one = IpAddr::from([192, 0, 2, 1]);
    let mut passed = 0;
    for millis in 0..10_000 {
        let now = begun + Duration::from_millis(millis);
        passed += u32::from(allowances.take(one, now));
    }
    assert!((BURST..=BURST + 10 * PER_SECOND).contains(&passed), "{passed} in 10 s");
    let now = begun + Duration::from_secs(20);
    let all = (0..100_000_u32).filter(|n| allowances.take(IpAddr::from(n.to_be_bytes()), now));
    assert_eq!(all.count(), FOR_ANYBODY as usize);
    // Those who are connected have what is left, whoever else asks.
    let gateways: Vec<_> = (0..100).map(|n| IpAddr::from([203, 0, 113, n])).collect();
    let here: Vec<_> = gateways.iter().map(|ip| expect(*ip)).collect();
    assert!(
        gateways.iter().all(|ip| allowances.take(*ip, now)),
        "{} answered",
        allowances.answered
    );
    assert!(!allowances.take(IpAddr::from([192, 0, 2, 9]), now));
    drop(here);
    assert!(!allowances.take(gateways[0], now), "it is a stranger again");
    // Neighbours in one IPv6 network are one.
    let mut allowances = Allowances::new();
    let near = (0..1_000_u16).map(|n| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, n]));
    assert_eq!(near.filter(|ip| allowances.take(*ip, now)).count(), BURST as usize);
}

#[test]
fn who_has_moved_is_expected_where_it_is() {
    let [before, now] = [[2u16, 1], [3, 1]]
        .map(|[net, host]| IpAddr::from([0x2001, 0xdb8, 0xbeef, net, 0, 0, 0, host]));
    let is_expected = |address| expected().contains_key(&network(address));
    let mut one = expect(before);
    let other = expect(before);
    one.follow(before);
    one.follow(now);
    assert!(is_expected(before) && is_expected(now));
    drop(other);
    assert!(!is_expected(before) && is_expected(now));
    drop(one);
    assert!(!is_expected(now));
}
