use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anteroom_proto::key::IdentityKey;
use anteroom_transport::direct::Direct;
use proptest::prelude::*;

use super::*;
use crate::net::offload::Offload;
use crate::net::sys::Sent;
use crate::net::udp::{DatagramRing, Run, UdpSocket as Tunnels};

const DEADLINE: Duration = Duration::from_secs(60);

fn eventfd() -> Arc<EventFd> {
    Arc::new(EventFd::new().unwrap())
}

proptest! {
    #[test]
    fn tunnels_get_what_is_theirs_in_order_and_quic_the_rest(
        messages in proptest::collection::vec(
            (1_usize..1_500, proptest::collection::vec(any::<u8>(), 0..9_000)), 0..6),
    ) {
        let from = |port: usize| SocketAddr::from(([192, 0, 2, 1], 1 + port as u16));
        let shared = Shared::default();
        let mut buffers = messages.clone();
        let mut came: Vec<RxDatagram<'_>> = (buffers.iter_mut().enumerate())
            .map(|(port, (segment, bytes))| RxDatagram { from: from(port), segment: *segment, bytes })
            .collect();
        let own: Vec<(SocketAddr, Vec<u8>)> = sort(&shared, &mut came)
            .iter()
            .flat_map(|message| {
                let none = message.bytes.is_empty().then(Vec::new);
                let parts = message.bytes.chunks(message.segment).map(<[u8]>::to_vec);
                none.into_iter().chain(parts).map(|bytes| (message.from, bytes)).collect::<Vec<_>>()
            })
            .collect();
        let all: Vec<(SocketAddr, Vec<u8>)> = (messages.iter().enumerate())
            .flat_map(|(port, (segment, bytes))| {
                let none = bytes.is_empty().then(Vec::new);
                let parts = bytes.chunks(*segment).map(<[u8]>::to_vec);
                none.into_iter().chain(parts).map(|bytes| (from(port), bytes)).collect::<Vec<_>>()
            })
            .collect();
        let (quic, expected): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, bytes)| bytes.first().is_some_and(|byte| byte & 0x40 != 0));
        prop_assert_eq!(own, expected);
        let (passed, turned_away) = shared.quic.counts();
        prop_assert_eq!(passed + turned_away, quic.len() as u64);
        let over = std::iter::from_fn(|| shared.quic.take());
        let over: Vec<_> = over.map(|stray| (stray.from, Vec::from(stray.bytes))).collect();
        prop_assert_eq!(&over[..], &quic[..over.len()]);
    }
}

#[test]
fn what_is_handed_over_wakes_the_worker_and_the_port_is_free_once_it_is_closed() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let worker = eventfd();
    let port = OnePort::new(socket, worker.clone());
    let quics = port.socket().unwrap();
    assert_eq!(quics.local_addr().unwrap(), at);
    port.shared.others.put(at, b"one");
    port.shared.others.put(at, b"two");
    assert_eq!(worker.read().unwrap(), 2);
    port.close();
    assert!(matches!(port.socket(), Err(NoSocket::Ended)));
}

/// Runs of both kinds that the kernel hands over whole, as it does with what it merged.
#[tokio::test]
async fn each_side_of_a_port_gets_its_own_out_of_what_the_kernel_merged() {
    for count in [1, 4] {
        let group = Tunnels::bind_group("127.0.0.1:0".parse().unwrap(), count, true).unwrap();
        assert_eq!(group.sockets.len(), count);
        let merges = group.sockets.iter().all(|socket| *socket.merging() == Offload::On);
        let to = group.sockets[0].local_address().unwrap();
        let quic = group.quic.expect("this kernel steers");
        assert_eq!(quic.local_addr().unwrap(), to);
        let port = OnePort::new(quic, eventfd());
        let shared = port.shared.clone();
        let socket = port.socket().unwrap();
        let identity = IdentityKey::from_seed(&[1; 32]);
        let direct = Direct::open(socket, &identity, true, Some(shared.clone())).unwrap();

        let mut sender = Tunnels::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let from = sender.local_address().unwrap();
        let mut rings: Vec<DatagramRing> = (0..count).map(|_| DatagramRing::default()).collect();
        let (mut sent, mut heard, mut all_quic) = (Vec::new(), Vec::new(), 0);
        for round in 0..40_u8 {
            // Each kind first in turn; types of tunnels with and without an owner, and what is nobody's.
            let firsts: [[u8; 8]; 8] = [
                [4, 0, 0, 0, 9, 9, 9, 0x20],
                [0x40, 1, 2, 3, 4, 5, 6, 7],
                [1, 0, 0, 0, 1, 1, 1, 1],
                [0xc0, 0, 0, 0, 1, 20, 0, 0],
                [4, 0, 0, 0, 9, 9, 9, 0x10],
                [5, 0, 0, 0, 1, 1, 1, 1],
                [0x80, 0, 0, 0, 1, 1, 1, 1],
                [0x7f, 0, 0, 0, 0, 0, 0, 0],
            ];
            let mut run = Vec::new();
            for number in 0..8_u8 {
                let mut datagram = vec![number; 60];
                datagram[..8].copy_from_slice(&firsts[usize::from((number + round) % 8)]);
                (datagram[8], datagram[9]) = (round, number);
                if is_quic(&datagram) {
                    all_quic += 1;
                } else {
                    sent.push(datagram.clone());
                }
                run.extend(datagram);
            }
            let mut outcome = Sent::default();
            let run = Run { to, tos: 0, segment: 60, bytes: &run };
            sender.send(std::iter::once(run), &mut outcome);
            assert_eq!(outcome.sent, 8, "{outcome:?}");
            let end = Instant::now() + DEADLINE;
            while heard.len() < sent.len() || direct.turned_away() < all_quic {
                assert!(
                    Instant::now() < end,
                    "{} of {}, {} of {all_quic}: {shared:?}",
                    heard.len(),
                    sent.len(),
                    direct.turned_away()
                );
                for (socket, ring) in group.sockets.iter().zip(&mut rings) {
                    ring.fetch(socket).unwrap();
                    ring.lend(&mut 0, |messages| {
                        for message in sort(&shared, messages) {
                            assert_eq!(message.from, from);
                            heard.extend(message.bytes.chunks(message.segment).map(<[u8]>::to_vec));
                        }
                    });
                }
                while let Some(stray) = shared.others.take() {
                    assert_eq!(stray.from, from);
                    heard.push(stray.bytes.into());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        heard.sort_by_key(|datagram| (datagram[8], datagram[9]));
        assert_eq!(heard, sent);
        assert_eq!(direct.turned_away(), all_quic);
        let (to_quic, to_others) = (shared.quic.counts(), shared.others.counts());
        if merges {
            assert!(to_quic.0 > 0 && to_others.0 > 0, "{shared:?}: nothing was merged");
        }
        assert_eq!((to_quic.1, to_others.1), (0, 0));
    }
}
