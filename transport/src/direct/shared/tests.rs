use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Wake};

use proptest::prelude::*;
use quinn::UdpPoller;
use quinn::udp::Transmit;

use super::*;

/// A socket that gives what it was given, merged as it is.
#[derive(Debug)]
struct Canned(Mutex<VecDeque<(SocketAddr, usize, Vec<u8>)>>, SocketAddr);

impl AsyncUdpSocket for Canned {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        unreachable!("nothing is sent")
    }

    fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
        unreachable!("nothing is sent")
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut waiting = self.0.lock().unwrap();
        let mut count = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta) {
            let Some((addr, stride, bytes)) = waiting.pop_front() else { break };
            buffer[..bytes.len()].copy_from_slice(&bytes);
            *meta = RecvMeta { addr, len: bytes.len(), stride, ..RecvMeta::default() };
            count += 1;
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.1)
    }
}

#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counter {
    fn waker(self: &Arc<Self>) -> Waker {
        self.clone().into()
    }
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

/// All that QUIC gets to see.
fn receive(port: &Sifted<OnePort>, taker: &Arc<Counter>) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut seen = Vec::new();
    let waker = taker.waker();
    loop {
        let mut rooms = [vec![0; 70_000], vec![0; 70_000]];
        let mut bufs = rooms.each_mut().map(|room| IoSliceMut::new(room));
        let mut meta = [RecvMeta::default(); 2];
        let Poll::Ready(count) =
            port.poll_recv(&mut Context::from_waker(&waker), &mut bufs, &mut meta)
        else {
            return seen;
        };
        for (room, meta) in rooms.iter().zip(&meta).take(count.unwrap()) {
            let datagrams = room[..meta.len].chunks(meta.stride.max(1));
            seen.extend(datagrams.map(|bytes| (meta.addr, bytes.to_vec())));
        }
    }
}

fn strays(strays: &Strays) -> Vec<(SocketAddr, Vec<u8>)> {
    std::iter::from_fn(|| strays.take()).map(|stray| (stray.from, stray.bytes.into())).collect()
}

/// What the kernel may make of a sender's datagrams: all as long as the first, but the last.
fn merged() -> impl Strategy<Value = (usize, Vec<u8>)> {
    (1_usize..1_500, proptest::collection::vec(any::<u8>(), 1..9_000))
}

proptest! {
    #[test]
    fn each_datagram_comes_to_its_own_side_once_and_in_order(
        messages in proptest::collection::vec(merged(), 0..6),
        handed_over in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..100), 0..6),
        ipv6: bool,
    ) {
        let local: SocketAddr =
            if ipv6 { "[::1]:51820" } else { "127.0.0.1:51820" }.parse().unwrap();
        let named = |port: u16| match at(port) {
            SocketAddr::V4(v4) if ipv6 => SocketAddr::from((v4.ip().to_ipv6_mapped(), port)),
            other => other,
        };
        let mut waiting = VecDeque::new();
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for (port, (stride, bytes)) in (1..).zip(&messages) {
            waiting.push_back((named(port), *stride, bytes.clone()));
            for datagram in bytes.chunks(*stride) {
                if datagram[0] & 0x40 != 0 {
                    own.push((named(port), datagram.to_vec()));
                } else {
                    others.push((at(port), datagram.to_vec()));
                }
            }
        }
        let shared = Arc::new(Shared::default());
        let socket = Arc::new(Canned(Mutex::new(waiting), local));
        let port = OnePort::over(socket, shared.clone()).unwrap();
        let mut first = Vec::new();
        for datagram in &handed_over {
            shared.quic.put(at(99), datagram);
            if !datagram.is_empty() {
                first.push((named(99), datagram.clone()));
            }
        }
        let seen = receive(&port, &Arc::default());
        let expected = first.into_iter().chain(own).collect::<Vec<_>>();
        prop_assert_eq!(seen, expected);
        // More than there is room for is counted, and what came first is there.
        let (passed, turned_away) = shared.others.counts();
        prop_assert_eq!(passed + turned_away, others.len() as u64);
        let over = strays(&shared.others);
        prop_assert_eq!(over.len() as u64, passed);
        if turned_away == 0 {
            prop_assert_eq!(over, others);
        } else {
            prop_assert!(passed >= MOST as u64 || others.len() > MOST);
            prop_assert_eq!(&over[..], &others[..over.len()]);
        }
    }
}

#[test]
fn what_waits_to_be_handed_over_is_bounded_and_counted_and_wakes_who_takes_it() {
    let waiting = Strays::default();
    let (first, second) = (Arc::<Counter>::default(), Arc::<Counter>::default());
    waiting.put(at(1), b"before anybody takes");
    waiting.wake(&first.waker());
    waiting.put(at(1), b"one");
    waiting.wake(&second.waker());
    waiting.put(at(1), b"two");
    let woken = [&first, &second].map(|counter| counter.0.load(Ordering::Relaxed));
    assert_eq!(woken, [1, 1]);
    assert_eq!(strays(&waiting).len(), 3);

    for _ in 0..MOST + 7 {
        waiting.put(at(1), b"short");
    }
    assert_eq!(waiting.counts(), (MOST as u64 + 3, 7));
    assert_eq!(strays(&waiting).len(), MOST);
    let long = vec![0; 60_000];
    for _ in 0..40 {
        waiting.put(at(1), &long);
    }
    let fits = strays(&waiting).len();
    assert_eq!(fits, MOST_BYTES / long.len());
    waiting.put(at(1), &long);
    assert_eq!(strays(&waiting).len(), 1, "there is room again");
}
