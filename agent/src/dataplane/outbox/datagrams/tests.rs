use std::time::{Duration, Instant};

use anteroom_lab::order::OneCore;
use proptest::prelude::*;

use super::*;
use crate::net::udp::DatagramRing;

/// A socket, and two others that it can send to.
struct Way {
    socket: UdpSocket,
    counters: UnderlayCounters,
    ends: [std::net::UdpSocket; 2],
}

impl Way {
    fn new() -> Self {
        let bind = || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        };
        Self {
            socket: UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap(),
            counters: UnderlayCounters::default(),
            ends: [bind(), bind()],
        }
    }

    fn put(&mut self, queue: &mut Datagrams, end: usize, tos: u8, bytes: &[u8]) {
        let to = self.ends[end].local_addr().unwrap();
        queue.put((&mut self.socket, &mut self.counters), to, tos, bytes.len() + 32, |room| {
            room[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        });
    }

    /// So many datagrams that came to one of the two, or those that came in time.
    fn received(&self, end: usize, count: usize) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        let mut all = Vec::new();
        while all.len() < count
            && let Ok(len) = self.ends[end].recv(&mut buffer)
        {
            all.push(buffer[..len].to_vec());
        }
        all
    }
}

/// How many datagrams each run has.
fn runs(queue: &Datagrams) -> Vec<usize> {
    queue.runs.iter().map(|run| (run.end - run.start).div_ceil(run.segment)).collect()
}

#[test]
fn a_run_is_for_one_owner_at_the_far_end_whose_socket_gets_it() {
    let _in_order = OneCore::stay();
    let (mut way, mut queue) = (Way::new(), Datagrams::default());
    let far = UdpSocket::bind_group("127.0.0.1:0".parse().unwrap(), 3, false).unwrap().sockets;
    let to = far[0].local_address().unwrap();
    let mut sent = vec![Vec::new(); far.len()];
    for (number, owner) in [1, 1, 2, 2, 2, 1, 0, 0].into_iter().enumerate() {
        let mut message = vec![number as u8; 200];
        message[..8].copy_from_slice(&[4, 0, 0, 0, 9, 9, 9, owner << 4 | 3]);
        queue.put((&mut way.socket, &mut way.counters), to, 0, 200, |room| {
            room.copy_from_slice(&message);
            200
        });
        sent[usize::from(owner)].push(message);
    }
    assert_eq!(runs(&queue), [2, 3, 1, 2]);
    queue.flush(&mut way.socket, &mut way.counters);
    let (mut ring, mut got) = (DatagramRing::default(), vec![Vec::new(); far.len()]);
    let end = Instant::now() + Duration::from_secs(30);
    while got.iter().map(Vec::len).sum::<usize>() < 8 && Instant::now() < end {
        for (socket, got) in far.iter().zip(&mut got) {
            ring.fetch(socket).unwrap();
            ring.lend(&mut 0, |messages| {
                got.extend(
                    messages.iter().flat_map(|all| all.bytes.chunks(200).map(<[u8]>::to_vec)),
                );
            });
        }
    }
    assert!(got == sent, "{:?}", got.iter().map(Vec::len).collect::<Vec<_>>());
}

#[test]
fn a_run_ends_with_a_shorter_one_or_before_anything_else() {
    let (mut way, mut queue) = (Way::new(), Datagrams::default());
    for len in [1000, 1000, 1000, 999] {
        way.put(&mut queue, 0, 0, &vec![1; len]);
    }
    assert_eq!(runs(&queue), [4]);
    for (end, tos, len) in [(0, 0, 999), (0, 0, 1000), (0, 8, 1000), (1, 8, 1000), (1, 8, 50)] {
        way.put(&mut queue, end, tos, &vec![1; len]);
    }
    assert_eq!(runs(&queue), [4, 1, 1, 1, 2]);
    queue.flush(&mut way.socket, &mut way.counters);
    assert_eq!(runs(&queue), [0; 0]);
    for _ in 0..MAX_SEGMENTS * 2 + 1 {
        way.put(&mut queue, 0, 0, &[1; 100]);
    }
    assert_eq!(runs(&queue), [MAX_SEGMENTS, MAX_SEGMENTS, 1]);
    queue.flush(&mut way.socket, &mut way.counters);
    for _ in 0..100 {
        way.put(&mut queue, 0, 0, &[1; 1472]);
    }
    assert_eq!(runs(&queue), [44, 44, 12], "44 of them are 64,768 bytes");
    queue.flush(&mut way.socket, &mut way.counters);
    assert_eq!(way.counters.sent, 9 + 129 + 100, "{:?}", way.counters);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_datagram_arrives_as_it_was_and_in_order(
        datagrams in prop::collection::vec(
            (0_usize..2, prop::sample::select(vec![0_u8, 0xb8]), 1_usize..4, 0_usize..4, 1_usize..7),
            1..14,
        ),
    ) {
        let (mut way, mut queue) = (Way::new(), Datagrams::default());
        let mut expected = [Vec::new(), Vec::new()];
        let mut number = 0_u32;
        for (end, tos, size, less, times) in datagrams {
            for _ in 0..times {
                let mut bytes = vec![size as u8; size * 350 - less];
                bytes[..4].copy_from_slice(&number.to_be_bytes());
                number += 1;
                way.put(&mut queue, end, tos, &bytes);
                expected[end].push(bytes);
            }
            if size == 3 {
                // Nothing that is written nowhere gets into a run.
                way.put(&mut queue, end, tos, &[]);
            }
        }
        queue.flush(&mut way.socket, &mut way.counters);
        prop_assert_eq!(way.counters, UnderlayCounters { sent: number.into(), ..UnderlayCounters::default() });
        for (end, expected) in expected.into_iter().enumerate() {
            prop_assert_eq!(way.received(end, expected.len()), expected);
        }
    }
}
