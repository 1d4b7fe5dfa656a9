//! How many connections there may be: in all, from one address, and of those who haven't said who they are.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anteroom_transport::link::{Carrier, Connection};
use tokio::time::{Instant, sleep};

use super::strangers::{Full, Out, Strangers};
use crate::config::ConnectionLimits;

/// Why a connection isn't let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Turned {
    /// Too many in all.
    #[error("there are as many connections as there may be")]
    Total,
    /// Too many from this address.
    #[error("there are as many connections from this address as there may be")]
    Address,
    /// Too many that haven't said who they are.
    #[error("there are as many unknown connections as there may be")]
    Unknown,
    /// Too many from this address that haven't said who they are.
    #[error("there are as many unknown connections from this address as there may be")]
    UnknownAddress,
}

/// How often it is looked from where a connection comes.
const LOOK: Duration = Duration::from_secs(5);

/// How many were turned away since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TurnedAway {
    /// For want of room at all.
    pub total: u64,
    /// For want of room for their address.
    pub address: u64,
    /// For want of room for unknown ones.
    pub unknown: u64,
    /// For want of room for unknown ones from their address.
    pub unknown_address: u64,
    /// For others, since they were silent for longest.
    pub pushed_out: u64,
}

/// Connections from one address.
#[derive(Debug, Clone, Copy, Default)]
struct Here {
    all: usize,
    relayed: usize,
}

#[derive(Debug)]
struct Counts {
    total: usize,
    relayed: usize,
    per_address: HashMap<IpAddr, Here>,
    strangers: Strangers,
    turned: TurnedAway,
    told: TurnedAway,
}

/// Counts connections.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: ConnectionLimits,
    counts: Arc<Mutex<Counts>>,
}

/// One admitted connection, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    counts: Arc<Mutex<Counts>>,
    limits: ConnectionLimits,
    address: IpAddr,
    kind: Kind,
    out: Option<Out>,
}

/// What a connection is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It hasn't said who it is, and has this number among those.
    Unknown(u64),
    /// A gateway's.
    Known,
    /// A gateway's that is relayed: it has another one for control, so these are counted by themselves.
    Relayed,
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    // Counts are whole after every step.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counts {
    /// One that was counted like this isn't at this address any more.
    fn leaves(&mut self, address: IpAddr, kind: Kind) {
        if let Some(here) = self.per_address.get_mut(&address) {
            here.all -= usize::from(kind != Kind::Relayed);
            here.relayed -= usize::from(kind == Kind::Relayed);
            if here.all + here.relayed == 0 {
                self.per_address.remove(&address);
            }
        }
    }
}

impl Admission {
    /// Nobody is in yet.
    #[must_use]
    pub fn new(limits: ConnectionLimits) -> Self {
        let counts = Counts {
            total: 0,
            relayed: 0,
            per_address: HashMap::new(),
            strangers: Strangers::new(limits.unknown),
            turned: TurnedAway::default(),
            told: TurnedAway::default(),
        };
        Self { limits, counts: Arc::new(Mutex::new(counts)) }
    }

    /// Lets a connection from `address` over `carrier` in.
    ///
    /// # Errors
    /// [`Turned`], which is counted.
    pub fn admit(&self, address: IpAddr, carrier: Carrier) -> Result<Permit, Turned> {
        let address = address.to_canonical();
        let mut counts = lock(&self.counts);
        let here = counts.per_address.get(&address).copied().unwrap_or_default();
        if counts.total >= self.limits.gateways {
            counts.turned.total += 1;
            return Err(Turned::Total);
        }
        if here.all >= self.limits.gateways_per_address {
            counts.turned.address += 1;
            return Err(Turned::Address);
        }
        let entered = counts.strangers.enter(address, carrier, Instant::now());
        counts.turned.pushed_out = counts.strangers.pushed_out;
        let (number, out) = match entered {
            Ok(entered) => entered,
            Err(Full::All) => {
                counts.turned.unknown += 1;
                return Err(Turned::Unknown);
            }
            Err(Full::Network) => {
                counts.turned.unknown_address += 1;
                return Err(Turned::UnknownAddress);
            }
        };
        counts.total += 1;
        counts.per_address.entry(address).or_default().all += 1;
        let (counts, limits) = (self.counts.clone(), self.limits);
        Ok(Permit { counts, limits, address, kind: Kind::Unknown(number), out: Some(out) })
    }

    /// Whether so many that came over QUIC are unknown, in all or from the network of `address`, that it must first show
    /// that it can be reached there. Below that there is room for it, as far as the unknown ones go.
    #[must_use]
    pub fn must_be_proved(&self, address: IpAddr) -> bool {
        lock(&self.counts).strangers.must_be_proved(address.to_canonical())
    }

    /// How many were turned away, if more were since the last call.
    #[must_use]
    pub fn news(&self) -> Option<TurnedAway> {
        let mut counts = lock(&self.counts);
        let turned = counts.turned;
        (std::mem::replace(&mut counts.told, turned) != turned).then_some(turned)
    }

    /// Logs how many were turned away, if more were since the last call.
    pub fn log_news(&self) {
        if let Some(TurnedAway { total, address, unknown, unknown_address, pushed_out }) =
            self.news()
        {
            tracing::warn!(
                total,
                address,
                unknown,
                unknown_address,
                pushed_out,
                "gateways' connections were turned away; these are the counts since the start, by the limit \
                 that was reached (limits.gateways, limits.gateways_per_address, limits.unknown, and an eighth of that for \
                 one address and carrier); pushed out were those that said nothing for longest, for others"
            );
        }
    }
}

impl Permit {
    /// The connection has said who it is.
    pub fn known(&mut self) {
        if let Kind::Unknown(number) = self.kind {
            self.kind = Kind::Known;
            lock(&self.counts).strangers.leave(number);
        }
    }

    /// Ends once the connection, which hasn't said who it is, is to make room for others; never otherwise. There is one such
    /// future for each.
    pub(super) fn pushed_out(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let out = self.out.take();
        async {
            if let Some(out) = out
                && out.await.is_ok()
            {
                return;
            }
            std::future::pending::<()>().await;
        }
    }

    /// The connection has said who it is, and wants to be relayed. There may be as many of these as of all others.
    ///
    /// # Errors
    /// [`Turned`] where there are as many already, in all or from this address; it is counted.
    pub fn relayed(&mut self) -> Result<(), Turned> {
        self.known();
        if self.kind == Kind::Relayed {
            return Ok(());
        }
        let mut guard = lock(&self.counts);
        let counts = &mut *guard;
        let Some(here) = counts.per_address.get_mut(&self.address) else { return Ok(()) };
        if counts.relayed >= self.limits.gateways {
            counts.turned.total += 1;
            return Err(Turned::Total);
        }
        if here.relayed >= self.limits.gateways_per_address {
            counts.turned.address += 1;
            return Err(Turned::Address);
        }
        counts.total -= 1;
        counts.relayed += 1;
        here.all -= 1;
        here.relayed += 1;
        self.kind = Kind::Relayed;
        Ok(())
    }
}

impl Permit {
    /// The connection comes from another address now. However many are there already, it goes on.
    fn moved(&mut self, address: IpAddr) {
        let address = address.to_canonical();
        if address == self.address {
            return;
        }
        let mut counts = lock(&self.counts);
        counts.leaves(self.address, self.kind);
        self.address = address;
        let here = counts.per_address.entry(address).or_default();
        match self.kind {
            Kind::Relayed => here.relayed += 1,
            Kind::Known => here.all += 1,
            Kind::Unknown(number) => {
                here.all += 1;
                counts.strangers.moved(number, address);
            }
        }
    }

    /// Counts the connection where it comes from, for as long as this is polled, and tells `moved` of each change: over
    /// QUIC it goes on from another address.
    pub(crate) async fn follow(
        &mut self,
        connection: &Connection,
        mut moved: impl FnMut(IpAddr),
    ) -> Infallible {
        loop {
            sleep(LOOK).await;
            let address = connection.remote_address().ip();
            self.moved(address);
            moved(address);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        match self.kind {
            Kind::Relayed => counts.relayed -= 1,
            Kind::Known => counts.total -= 1,
            Kind::Unknown(number) => {
                counts.total -= 1;
                counts.strangers.leave(number);
            }
        }
        counts.leaves(self.address, self.kind);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use anteroom_proto::key::IdentityKey;
    use anteroom_transport::endpoint;
    use anteroom_transport::tls::Protocol;
    use tokio::net::UdpSocket;
    use tokio::sync::watch;

    use super::*;

    #[test]
    fn each_limit_holds_and_is_counted() {
        let limits = ConnectionLimits {
            gateways: 26,
            gateways_per_address: 4,
            unknown: 24,
            ..ConnectionLimits::default()
        };
        let admission = Admission::new(limits);
        assert_eq!(admission.news(), None);
        let from = |last| IpAddr::from([10, 0, 0, last]);
        let mut first = admission.admit(from(1), Carrier::Quic).unwrap();
        let mut others: Vec<_> =
            (0..2).map(|_| admission.admit(from(1), Carrier::Quic).unwrap()).collect();
        assert_eq!(admission.admit(from(1), Carrier::Quic).unwrap_err(), Turned::UnknownAddress);
        first.known();
        first.known();
        others.push(admission.admit(from(1), Carrier::Quic).unwrap());
        assert_eq!(admission.admit(from(1), Carrier::Quic).unwrap_err(), Turned::Address);
        for n in 2..9 {
            others.extend((0..3).map(|_| admission.admit(from(n), Carrier::Quic).unwrap()));
        }
        assert_eq!(admission.admit(from(9), Carrier::Quic).unwrap_err(), Turned::Unknown);
        for permit in &mut others[..2] {
            permit.known();
        }
        let _last = admission.admit(from(9), Carrier::Quic).unwrap();
        assert_eq!(admission.admit(from(9), Carrier::Quic).unwrap_err(), Turned::Total);
        let news =
            TurnedAway { total: 1, address: 1, unknown: 1, unknown_address: 1, pushed_out: 0 };
        assert_eq!(admission.news(), Some(news));
        assert_eq!(admission.news(), None, "it was told already");
        drop(others);
        assert!(admission.admit(from(9), Carrier::Quic).is_ok());
        assert_eq!(admission.news(), None);
    }

    #[test]
    fn one_network_and_who_comes_by_tcp_leave_room_for_the_others() {
        let limits = ConnectionLimits { unknown: 24, ..ConnectionLimits::default() };
        let admission = Admission::new(limits);
        let there = |net: u16, host: u16| IpAddr::from([0x2001, 0xdb8, 0, net, 0, 0, 0, host]);
        let mut held: Vec<_> =
            (0..3).map(|host| admission.admit(there(1, host), Carrier::Quic).unwrap()).collect();
        assert_eq!(
            admission.admit(there(1, 9), Carrier::Quic).unwrap_err(),
            Turned::UnknownAddress
        );
        for net in 2..6 {
            let here = (0..3).map(|host| admission.admit(there(net, host), Carrier::Tcp).unwrap());
            held.extend(here);
        }
        assert_eq!(admission.admit(there(7, 1), Carrier::Tcp).unwrap_err(), Turned::Unknown);
        for net in 7..10 {
            held.extend(
                (0..3).map(|host| admission.admit(there(net, host), Carrier::Quic).unwrap()),
            );
        }
        // Once they have said who they are, a whole network of them may be there.
        held.iter_mut().for_each(Permit::known);
        assert!(admission.admit(there(1, 9), Carrier::Tcp).is_ok());
        drop(held);
        let counts = lock(&admission.counts);
        assert_eq!(counts.strangers.len(), 0);
        assert!(counts.per_address.is_empty());
    }

    #[test]
    fn addresses_that_were_not_proved_fill_neither_a_network_nor_all() {
        let limits = ConnectionLimits { unknown: 256, ..ConnectionLimits::default() };
        let admission = Admission::new(limits);
        let from = |net: usize, host: u8| {
            let [.., high, low] = net.to_be_bytes();
            IpAddr::from([10, high, low, host])
        };
        let mut forged = Vec::new();
        while !admission.must_be_proved(from(0, 1)) {
            forged.push(admission.admit(from(0, 1), Carrier::Quic).unwrap());
        }
        assert_eq!(forged.len(), 8, "a quarter of an eighth");
        assert!(!admission.must_be_proved(from(0, 2)), "others needn't");
        // Who shows that it can be reached finds room, whichever way it comes, and whatever a neighbour does over TCP.
        let silent: Vec<_> =
            (0..32).map(|_| admission.admit(from(0, 1), Carrier::Tcp).unwrap()).collect();
        assert!(admission.admit(from(0, 1), Carrier::Tcp).is_err());
        assert!(admission.admit(from(0, 1), Carrier::Quic).is_ok());
        drop(silent);
        for net in 1.. {
            if admission.must_be_proved(from(net, 1)) {
                break;
            }
            forged.push(admission.admit(from(net, 1), Carrier::Quic).unwrap());
        }
        assert_eq!(forged.len(), 64, "a quarter of all");
        assert!(admission.admit(from(0, 1), Carrier::Quic).is_ok());
        drop(forged);
        assert!(!admission.must_be_proved(from(0, 1)));
    }

    #[test]
    fn relayed_connections_are_counted_by_themselves_for_as_long_as_they_last() {
        let limits = ConnectionLimits {
            gateways: 5,
            gateways_per_address: 3,
            unknown: 80,
            ..ConnectionLimits::default()
        };
        let admission = Admission::new(limits);
        let from = |last| admission.admit(IpAddr::from([10, 0, 0, last]), Carrier::Quic);
        let relayed = |last| {
            let mut permit = from(last).unwrap();
            permit.relayed().map(|()| permit)
        };
        let mut held: Vec<_> = (0..3).map(|_| relayed(1).unwrap()).collect();
        assert_eq!(relayed(1).unwrap_err(), Turned::Address);
        // None of control's places are theirs.
        let _control: Vec<_> = (0..3).map(|_| from(1).unwrap()).collect();
        held.extend((0..2).map(|_| relayed(2).unwrap()));
        assert_eq!(relayed(3).unwrap_err(), Turned::Total);
        held.pop();
        assert!(relayed(3).is_ok());
    }

    #[test]
    fn who_has_moved_is_counted_where_it_is() {
        let limits = ConnectionLimits { gateways_per_address: 1, ..ConnectionLimits::default() };
        let admission = Admission::new(limits);
        let from = |last| IpAddr::from([10, 0, 0, last]);
        let admit = |last| admission.admit(from(last), Carrier::Quic);
        let mut known = admit(1).unwrap();
        known.known();
        let mut relayed = admit(2).unwrap();
        relayed.relayed().unwrap();
        let mut unknown = admit(3).unwrap();
        known.moved(from(4));
        known.moved(IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 4]));
        relayed.moved(from(4));
        unknown.moved(from(5));
        for (free, taken) in [(1, 4), (2, 4), (3, 5)] {
            assert!(admit(free).is_ok(), "{free}");
            assert_eq!(admit(taken).unwrap_err(), Turned::Address, "{taken}");
        }
        let mut other = admit(2).unwrap();
        other.relayed().unwrap();
        // Where there are enough already, it stays all the same.
        unknown.moved(from(4));
        unknown.known();
        drop((known, relayed, unknown, other));
        let counts = lock(&admission.counts);
        assert_eq!((counts.total, counts.strangers.len(), counts.relayed), (0, 0, 0));
        assert!(counts.per_address.is_empty());
    }

    /// Carries datagrams between whoever asks at `near` and `server`, by the last of `far` that it was told to take.
    async fn translate(
        near: UdpSocket,
        far: [UdpSocket; 2],
        server: SocketAddr,
        by: watch::Receiver<usize>,
    ) {
        let mut client = server;
        let (mut out, mut first, mut second) = ([0; 2048], [0; 2048], [0; 2048]);
        loop {
            tokio::select! {
                Ok((len, from)) = near.recv_from(&mut out) => {
                    client = from;
                    let by = *by.borrow();
                    let _ = far[by].send_to(&out[..len], server).await;
                }
                Ok(len) = far[0].recv(&mut first) => { let _ = near.send_to(&first[..len], client).await; }
                Ok(len) = far[1].recv(&mut second) => { let _ = near.send_to(&second[..len], client).await; }
            }
        }
    }

    #[tokio::test]
    async fn a_connection_over_quic_is_followed_to_another_address() {
        let [server, client] = [1, 2].map(|seed| IdentityKey::from_seed(&[seed; 32]));
        let bind = |last: u8| UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), 0));
        let listener =
            endpoint::listen_for("127.0.0.1:0".parse().unwrap(), &server, &[Protocol::Relay])
                .unwrap();
        let near = bind(1).await.unwrap();
        let at = near.local_addr().unwrap();
        let far = [bind(1).await.unwrap(), bind(2).await.unwrap()];
        let (turn, by) = watch::channel(0);
        let nat = tokio::spawn(translate(near, far, listener.local_addr().unwrap(), by));
        let connection: Connection = loop {
            let servers = [server.public()];
            let connecting = endpoint::connect_for(at, &client, &servers, Protocol::Relay);
            let accepting = async { listener.accept().await.unwrap().await };
            if let (Ok(link), Ok(connection)) = tokio::join!(connecting, accepting) {
                // For as long as the test lasts.
                std::mem::forget(link);
                break connection.into();
            }
        };
        let admission = Admission::new(ConnectionLimits::default());
        let before = connection.remote_address().ip();
        assert_eq!(before, IpAddr::from([127, 0, 0, 1]));
        let mut permit = admission.admit(before, Carrier::Quic).unwrap();
        permit.known();
        turn.send_replace(1);
        let (moves, mut moved) = watch::channel(before);
        let now = IpAddr::from([127, 0, 0, 2]);
        let followed = async {
            tokio::select! {
                told = moved.wait_for(|address| *address == now) => drop(told.unwrap()),
                never = permit.follow(&connection, |address| { moves.send_replace(address); }) => match never {},
                closed = connection.closed() => panic!("{closed}"),
            }
        };
        tokio::time::timeout(Duration::from_secs(60), followed).await.expect("it wasn't followed");
        let addresses: Vec<IpAddr> = lock(&admission.counts).per_address.keys().copied().collect();
        assert_eq!(addresses, [now]);
        nat.abort();
    }

    #[test]
    fn nothing_is_left_when_all_have_gone() {
        let admission = Admission::new(ConnectionLimits::default());
        let mut permits: Vec<_> = (0..10)
            .map(|n| admission.admit(IpAddr::from([10, 0, 0, n / 2]), Carrier::Quic).unwrap())
            .collect();
        permits[0].known();
        permits[1].relayed().unwrap();
        permits[2].relayed().unwrap();
        drop(permits);
        let counts = lock(&admission.counts);
        let left = (counts.total, counts.strangers.len(), counts.relayed, counts.per_address.len());
        assert_eq!(left, (0, 0, 0, 0));
    }
}
