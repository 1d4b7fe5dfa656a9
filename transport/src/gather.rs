//! Fewer and larger messages to the kernel, where packets are carried.
//!
//! quinn hands over ten datagrams of a connection at a time, though the kernel takes more in one message (`UDP_SEGMENT`), and
//! each message costs as much as some of them. Here whatever one turn of a connection sends to one place goes out at
//! the turn's end, together.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

/// Most bytes in one message: with IP's headers they are still fewer than 65,536.
const LONGEST: usize = 65_000;
/// How often a connection that has more to do may go on before others get their turn.
const TURNS: usize = 2;

thread_local! {
    /// Where what is sent in this turn goes, while one is under way.
    static TURN: RefCell<Option<Run>> = const { RefCell::new(None) };
    /// The room for it, lent to one connection after the other.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Datagrams that are to go out as one message.
#[derive(Default)]
struct Run {
    bytes: Vec<u8>,
    /// Length of each but the last; 0 while there are none.
    segment: usize,
    way: Option<Way>,
}

/// Where a run goes, and how.
struct Way {
    socket: Arc<dyn AsyncUdpSocket>,
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<std::net::IpAddr>,
}

impl Run {
    /// Whether `transmit` can go behind what is there.
    fn goes_on_with(&self, socket: &Arc<dyn AsyncUdpSocket>, transmit: &Transmit<'_>) -> bool {
        let Some(way) = &self.way else { return false };
        let len = transmit.contents.len();
        let segments = (self.bytes.len() + len).div_ceil(self.segment.max(1));
        Arc::ptr_eq(&way.socket, socket)
            && way.destination == transmit.destination
            && way.ecn == transmit.ecn
            && way.src_ip == transmit.src_ip
            // A shorter one ends a message. Behind a single one there is none: that may be a probe which is longer than the
            // path takes, and together with it both are lost, and the socket with all its messages to come is taken for one
            // that can't send several at once.
            && self.bytes.len().is_multiple_of(self.segment.max(1))
            && (len >= self.segment || self.bytes.len() > self.segment)
            && transmit.segment_size.map_or(len <= self.segment, |size| size == self.segment)
            && self.bytes.len() + len <= LONGEST
            && segments <= socket.max_transmit_segments()
    }

    /// Takes datagrams for the end of the turn. What can't go with them goes out first.
    fn take(
        &mut self,
        socket: &Arc<dyn AsyncUdpSocket>,
        transmit: &Transmit<'_>,
    ) -> io::Result<()> {
        if !self.goes_on_with(socket, transmit) {
            self.send()?;
            self.segment = transmit.segment_size.unwrap_or(transmit.contents.len());
            self.way = Some(Way {
                socket: socket.clone(),
                destination: transmit.destination,
                ecn: transmit.ecn,
                src_ip: transmit.src_ip,
            });
        }
        self.bytes.extend_from_slice(transmit.contents);
        Ok(())
    }

    /// Hands everything to the kernel. It stays where the socket would block.
    fn send(&mut self) -> io::Result<()> {
        let Some(way) = &self.way else { return Ok(()) };
        let several = self.bytes.len() > self.segment;
        let sent = way.socket.try_send(&Transmit {
            destination: way.destination,
            ecn: way.ecn,
            contents: &self.bytes,
            segment_size: several.then_some(self.segment),
            src_ip: way.src_ip,
        });
        if !matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.bytes.clear();
            self.way = None;
        }
        sent
    }
}

/// Whether a driver was woken, by itself or by others, and who is to be told.
struct Woken {
    task: Mutex<Waker>,
    woken: AtomicBool,
    /// While it is in its turn nobody has to be told: it looks by itself.
    in_turn: AtomicBool,
}

impl Woken {
    fn tell(&self) {
        self.task.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if !self.in_turn.load(Ordering::SeqCst) {
            self.tell();
        }
    }
}

/// Drives a connection or an endpoint by turns.
struct Turns {
    driver: Pin<Box<dyn Future<Output = ()> + Send>>,
    run: Run,
    /// Says when the socket takes what is left of a turn.
    room: Option<Pin<Box<dyn UdpPoller>>>,
    woken: Arc<Woken>,
    waker: Waker,
    /// The driver has ended, and what it sent last isn't out yet.
    done: bool,
}

/// Takes the run back from the thread, whatever the driver does.
struct InTurn<'a>(&'a mut Run);

impl<'a> InTurn<'a> {
    fn begin(run: &'a mut Run) -> Self {
        if run.bytes.is_empty() {
            run.bytes = ROOM.take();
        }
        TURN.set(Some(std::mem::take(run)));
        Self(run)
    }
}

impl Drop for InTurn<'_> {
    fn drop(&mut self) {
        *self.0 = TURN.take().unwrap_or_default();
    }
}

impl Turns {
    fn new(driver: Pin<Box<dyn Future<Output = ()> + Send>>) -> Self {
        let woken = Arc::new(Woken {
            task: Mutex::new(Waker::noop().clone()),
            woken: AtomicBool::new(false),
            in_turn: AtomicBool::new(false),
        });
        let waker = woken.clone().into();
        Self { driver, run: Run::default(), room: None, waker, woken, done: false }
    }

    /// Sends what a turn left. Pending where the socket doesn't take it yet.
    fn send(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.run.send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // As for any datagram: whoever misses it asks again. What is wrong with the socket for longer, the driver
                // hears when it sends next.
                Ok(()) | Err(_) => {
                    self.room = None;
                    return Poll::Ready(());
                }
            }
            let Some(way) = &self.run.way else { continue };
            let room = self.room.get_or_insert_with(|| way.socket.clone().create_io_poller());
            match room.as_mut().poll_writable(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.run = Run::default();
                }
            }
        }
    }
}

impl Future for Turns {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        {
            let mut task = this.woken.task.lock().unwrap_or_else(PoisonError::into_inner);
            task.clone_from(context.waker());
        }
        // Nothing else can go out before that has.
        std::task::ready!(this.send(context));
        if this.done {
            return Poll::Ready(());
        }
        this.woken.in_turn.store(true, Ordering::SeqCst);
        let mut polled = Poll::Pending;
        for _ in 0..TURNS {
            this.woken.woken.store(false, Ordering::SeqCst);
            let turn = InTurn::begin(&mut this.run);
            polled = this.driver.as_mut().poll(&mut Context::from_waker(&this.waker));
            drop(turn);
            if polled.is_ready() || !this.woken.woken.load(Ordering::SeqCst) {
                break;
            }
        }
        this.woken.in_turn.store(false, Ordering::SeqCst);
        let sent = this.send(context);
        if sent.is_ready() {
            ROOM.set(std::mem::take(&mut this.run.bytes));
        }
        if polled.is_pending() && sent.is_ready() && this.woken.woken.load(Ordering::SeqCst) {
            this.woken.tell();
        }
        // Its last word isn't out yet.
        this.done = polled.is_ready();
        if this.done { sent } else { Poll::Pending }
    }
}

/// The runtime of endpoints that carry packets: tokio, by turns.
#[derive(Debug)]
pub(crate) struct Gathering;

impl Runtime for Gathering {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(Turns::new(future));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(Socket(TokioRuntime.wrap_udp_socket(socket)?)))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// A socket that takes what is sent in a turn for its end.
struct Socket(Arc<dyn AsyncUdpSocket>);

impl fmt::Debug for Socket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        TURN.with_borrow_mut(|turn| match turn {
            Some(run) => run.take(&self.0, transmit),
            None => self.0.try_send(transmit),
        })
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

#[cfg(test)]
mod tests;
