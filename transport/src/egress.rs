//! By which way this process's connections leave the machine, where it has more than one.
//!
//! One process, one way: whoever knows which one is good [says so](steer), and each socket that was opened to connect
//! somewhere follows, those that are open included. QUIC goes on from the other address by itself. TCP can't: such connections
//! end, and are made anew, as do those whose own address is no longer this machine's.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use socket2::SockRef;
use tokio::sync::watch;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Datagrams: it follows at any time.
    Datagrams,
    /// A stream that is about to be connected: it stays where it was led.
    Stream,
}

/// Has a socket leave by the way that is good now.
pub type Steer = dyn Fn(BorrowedFd<'_>, Kind) + Send + Sync;

struct Egress {
    steer: Option<Arc<Steer>>,
    sockets: Vec<Weak<UdpSocket>>,
}

static EGRESS: Mutex<Egress> = Mutex::new(Egress { steer: None, sockets: Vec::new() });
static TURNS: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));
/// How many turns there were. It is read for each packet.
static TAKEN: AtomicU64 = AtomicU64::new(0);
static MOVES: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));
/// What every socket carries. 0: nothing.
static MARK: AtomicU32 = AtomicU32::new(0);
static DOUBTS: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));
static MTU: LazyLock<watch::Sender<Option<u16>>> = LazyLock::new(|| watch::Sender::new(None));

/// Has every socket of a connection go by `how` from now on: those that there are, and those to come.
pub fn steer(how: Arc<Steer>) {
    let mut egress = EGRESS.lock().unwrap_or_else(PoisonError::into_inner);
    for socket in egress.sockets.iter().filter_map(Weak::upgrade) {
        how(socket.as_fd(), Kind::Datagrams);
    }
    egress.steer = Some(how);
    TAKEN.fetch_add(1, Ordering::Relaxed);
    drop(egress);
    TURNS.send_modify(|turns| *turns += 1);
    moved();
}

/// Changes whenever another way is taken.
#[must_use]
pub fn turns() -> watch::Receiver<u64> {
    TURNS.subscribe()
}

/// How often another way was taken.
pub(crate) fn taken() -> u64 {
    TAKEN.load(Ordering::Relaxed)
}

/// Has connections see whether the addresses that they come from are still this machine's.
pub fn moved() {
    MOVES.send_modify(|moves| *moves += 1);
}

/// Changes whenever the network may be another one: another way is taken, or this machine's addresses have changed.
#[must_use]
pub fn moves() -> watch::Receiver<u64> {
    MOVES.subscribe()
}

/// Has every socket that goes out of this process carry `mark` from now on (`SO_MARK`, which takes CAP_NET_ADMIN): by that the machine's
/// rules of routing tell this process's own packets from all others. To be called before the first is opened.
pub fn mark(mark: u32) {
    MARK.store(mark, Ordering::Relaxed);
}

/// Marks a socket, where sockets [are to be](mark).
///
/// # Errors
/// What the kernel says: the process lacks the capability.
pub fn marked(socket: BorrowedFd<'_>) -> io::Result<()> {
    match MARK.load(Ordering::Relaxed) {
        0 => Ok(()),
        mark => SockRef::from(&socket).set_mark(mark),
    }
}

/// Has connections see whether anything gets through yet: something else that should be answered isn't.
pub fn doubt() {
    DOUBTS.send_modify(|doubts| *doubts += 1);
}

/// Changes whenever something isn't answered that should be.
#[must_use]
pub fn doubts() -> watch::Receiver<u64> {
    DOUBTS.subscribe()
}

/// Says how many bytes of IP the interface takes in one piece by which connections leave now.
pub fn carries(mtu: u16) {
    MTU.send_if_modified(|told| told.replace(mtu) != Some(mtu));
}

/// How many bytes of IP that interface takes in one piece, as it changes. None: nobody has said.
#[must_use]
pub fn mtu() -> watch::Receiver<Option<u16>> {
    MTU.subscribe()
}

/// Whether nothing can come from `address` any more, since no interface has it.
pub(crate) fn is_gone(mut address: SocketAddr) -> bool {
    address.set_port(0);
    UdpSocket::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// Leads a socket that is about to be connected.
pub(crate) fn lead(socket: BorrowedFd<'_>) -> io::Result<()> {
    marked(socket)?;
    let egress = EGRESS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(how) = &egress.steer {
        how(socket, Kind::Stream);
    }
    Ok(())
}

/// Has a socket follow for as long as what this gives is kept.
pub(crate) fn follow(socket: &UdpSocket) -> io::Result<Arc<UdpSocket>> {
    marked(socket.as_fd())?;
    let socket = Arc::new(socket.try_clone()?);
    let mut egress = EGRESS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(how) = &egress.steer {
        how(socket.as_fd(), Kind::Datagrams);
    }
    egress.sockets.retain(|socket| socket.strong_count() > 0);
    egress.sockets.push(Arc::downgrade(&socket));
    Ok(socket)
}

/// Held by tests that steer, which is for the whole process.
#[cfg(test)]
pub(crate) fn steering() -> std::sync::MutexGuard<'static, ()> {
    static STEERING: Mutex<()> = Mutex::new(());
    STEERING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn an_address_is_gone_where_no_interface_has_it() {
        for (address, gone) in
            [("127.0.0.1:9", false), ("203.0.113.77:9", true), ("[2001:db8::77]:9", true)]
        {
            // Without IPv6 nothing is known of its addresses.
            let known = address.starts_with('[').then(|| UdpSocket::bind("[::1]:0").is_ok());
            let gone = gone && known != Some(false);
            assert_eq!(is_gone(address.parse().unwrap()), gone, "{address}");
        }
    }

    #[test]
    fn sockets_follow_from_their_beginning_to_their_end_and_no_longer() {
        let _alone = steering();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut moves = moves();
        let own = socket.local_addr().unwrap();
        let counting = || {
            let count = Arc::new(AtomicUsize::new(0));
            let counter = count.clone();
            // Other tests' sockets come and go.
            let how = move |socket: BorrowedFd<'_>, kind| {
                let at = SockRef::from(&socket).local_addr().ok();
                let same = at.and_then(|at| at.as_socket()) == Some(own) && kind == Kind::Datagrams;
                counter.fetch_add(usize::from(same), Relaxed);
            };
            (count, Arc::new(how) as Arc<Steer>)
        };
        let (before, how) = counting();
        let kept = follow(&socket).unwrap();
        steer(how);
        assert_eq!(before.load(Relaxed), 1, "one that was there");
        assert!(moves.has_changed().unwrap(), "another way is another network");
        moves.mark_unchanged();
        moved();
        assert!(moves.has_changed().unwrap());
        let other = follow(&socket).unwrap();
        assert_eq!(before.load(Relaxed), 2, "one that came later");
        drop(kept);
        let (after, how) = counting();
        steer(how);
        assert_eq!((before.load(Relaxed), after.load(Relaxed)), (2, 1), "one that is gone");
        drop(other);
        steer(Arc::new(|_: BorrowedFd<'_>, _| {}));
    }
}
