use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// A socket that keeps what it is given, as single datagrams, and blocks when it is told to.
#[derive(Debug, Default)]
struct Kept {
    datagrams: Mutex<Vec<(SocketAddr, Vec<u8>)>>,
    /// Datagrams in each message.
    messages: Mutex<Vec<usize>>,
    /// Whether each call in turn would block; none after them.
    blocks: Mutex<VecDeque<bool>>,
    waits: Mutex<Option<Waker>>,
}

#[derive(Debug)]
struct Waits(Arc<Kept>);

impl UdpPoller for Waits {
    fn poll_writable(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        *self.0.waits.lock().unwrap() = Some(context.waker().clone());
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A handle to it, as quinn holds one.
#[derive(Debug)]
struct Handle(Arc<Kept>);

impl AsyncUdpSocket for Handle {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Waits(self.0.clone()))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.0.blocks.lock().unwrap().pop_front().unwrap_or(false) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        assert!(transmit.contents.len() <= LONGEST, "{} bytes", transmit.contents.len());
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        let parts = transmit.contents.chunks(size);
        self.0.messages.lock().unwrap().push(parts.len());
        let mut datagrams = self.0.datagrams.lock().unwrap();
        datagrams.extend(parts.map(|part| (transmit.destination, part.to_vec())));
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
        Ok(place(0))
    }

    fn max_transmit_segments(&self) -> usize {
        64
    }
}

fn place(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 4433))
}

/// What one call hands over: to whom, length of each but the last, all lengths.
#[derive(Debug, Clone)]
struct Call {
    to: u8,
    size: usize,
    count: usize,
    last: usize,
}

impl Call {
    fn contents(&self, mark: &mut u8) -> Vec<Vec<u8>> {
        (0..self.count)
            .map(|n| {
                *mark = mark.wrapping_add(1);
                vec![*mark; if n + 1 == self.count { self.last } else { self.size }]
            })
            .collect()
    }
}

/// Sends calls turn by turn as quinn does: what would block is tried again at the next turn.
fn send_all(turns: Vec<Vec<Call>>, kept: &Arc<Kept>) -> Vec<(SocketAddr, Vec<u8>)> {
    let socket = Socket(Arc::new(Handle(kept.clone())));
    let (mut expected, mut mark) = (Vec::new(), 0);
    let mut turns: VecDeque<VecDeque<(Call, Vec<Vec<u8>>)>> = turns
        .into_iter()
        .map(|calls| {
            calls
                .into_iter()
                .map(|call| {
                    let contents = call.contents(&mut mark);
                    (call, contents)
                })
                .collect()
        })
        .collect();
    for (call, contents) in turns.iter().flatten() {
        expected.extend(contents.iter().map(|part| (place(call.to), part.clone())));
    }
    let driver = std::future::poll_fn(move |context| {
        while let Some(calls) = turns.front_mut() {
            while let Some((call, contents)) = calls.front() {
                let whole = contents.concat();
                let sent = socket.try_send(&Transmit {
                    destination: place(call.to),
                    ecn: None,
                    contents: &whole,
                    segment_size: (call.count > 1).then_some(call.size),
                    src_ip: None,
                });
                if sent.is_err() {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                calls.pop_front();
            }
            turns.pop_front();
            if !turns.is_empty() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Pending
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut turns = Turns::new(Box::pin(driver));
        // Nothing is left to do once a whole turn sends nothing and nobody was woken.
        let mut quiet = 0;
        while quiet < 3 {
            let before = kept.datagrams.lock().unwrap().len();
            let blocked = kept.blocks.lock().unwrap().len();
            let polled = Pin::new(&mut turns).poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending());
            let after = kept.datagrams.lock().unwrap().len();
            let same = before == after && blocked == kept.blocks.lock().unwrap().len();
            quiet = if same { quiet + 1 } else { 0 };
        }
    });
    expected
}

#[test]
fn what_a_connection_sends_in_its_turns_goes_out_in_one_message() {
    let kept = Arc::default();
    let full = Call { to: 1, size: 1_452, count: 10, last: 1_452 };
    let expected =
        send_all(vec![vec![full.clone(), full.clone()], vec![full.clone(), full]], &kept);
    assert_eq!(*kept.datagrams.lock().unwrap(), expected);
    assert_eq!(*kept.messages.lock().unwrap(), [40]);
}

#[test]
fn a_message_ends_with_a_shorter_one_and_before_a_longer_one_or_another_place() {
    let kept = Arc::default();
    let call = |to, size, count, last| Call { to, size, count, last };
    let calls = vec![
        call(1, 1_200, 3, 700),
        call(1, 1_200, 2, 1_200),
        call(1, 900, 1, 900),
        call(1, 1_300, 1, 1_300),
        call(2, 1_300, 1, 1_300),
        call(1, 1_300, 1, 1_300),
    ];
    let expected = send_all(vec![calls], &kept);
    assert_eq!(*kept.datagrams.lock().unwrap(), expected);
    assert_eq!(*kept.messages.lock().unwrap(), [3, 3, 1, 1, 1]);
}

#[test]
fn behind_a_single_one_nothing_shorter_goes_in_its_message() {
    let kept = Arc::default();
    let call = |size| Call { to: 1, size, count: 1, last: size };
    // The first looks for what the path takes, and may be more than that.
    let expected = send_all(vec![vec![call(1_452), call(60), call(60), call(40)]], &kept);
    assert_eq!(*kept.datagrams.lock().unwrap(), expected);
    assert_eq!(*kept.messages.lock().unwrap(), [1, 3]);
}

#[test]
fn a_last_word_goes_out_though_the_socket_takes_nothing_at_first() {
    let kept = Arc::new(Kept::default());
    *kept.blocks.lock().unwrap() = [true, true].into();
    let socket = Socket(Arc::new(Handle(kept.clone())));
    let driver = std::future::poll_fn(move |_| {
        let said = Transmit {
            destination: place(1),
            ecn: None,
            contents: b"closed",
            segment_size: None,
            src_ip: None,
        };
        socket.try_send(&said).unwrap();
        Poll::Ready(())
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut turns = Turns::new(Box::pin(driver));
        let mut poll = || Pin::new(&mut turns).poll(&mut Context::from_waker(Waker::noop()));
        assert!(poll().is_pending(), "it isn't out yet");
        while poll().is_pending() {}
    });
    assert_eq!(*kept.datagrams.lock().unwrap(), [(place(1), b"closed".to_vec())]);
}

#[test]
fn what_the_socket_does_not_take_yet_goes_out_before_anything_else() {
    let kept = Arc::new(Kept::default());
    *kept.blocks.lock().unwrap() = [true, true, false, true].into();
    let full = Call { to: 1, size: 1_452, count: 10, last: 1_000 };
    let expected = send_all(vec![vec![full.clone()], vec![full.clone()], vec![full]], &kept);
    assert_eq!(*kept.datagrams.lock().unwrap(), expected);
    assert!(kept.waits.lock().unwrap().is_some(), "it waited for room");
}

proptest! {
    #[test]
    fn every_datagram_goes_out_once_and_in_order(
        turns in prop::collection::vec(
            prop::collection::vec((0_u8..2, 1_usize..4, 1_usize..11, 1_usize..=100), 0..5), 0..8),
        blocks in prop::collection::vec(any::<bool>(), 0..12),
    ) {
        let turns = turns.into_iter().map(|calls| {
            calls.into_iter().map(|(to, size, count, last)| {
                let size = size * 484;
                Call { to, size, count, last: (size * last / 100).max(1) }
            }).collect()
        }).collect();
        let kept = Arc::new(Kept { blocks: Mutex::new(blocks.into()), ..Kept::default() });
        let expected = send_all(turns, &kept);
        prop_assert_eq!(&*kept.datagrams.lock().unwrap(), &expected);
    }
}
