//! Connections that haven't said who they are. Each network has a share of what there may be of them; where it is used up,
//! the one that has been silent for longest gives its place to the next: a gateway says who it is within milliseconds.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anteroom_transport::link::Carrier;
use anteroom_transport::network::network;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// One network may hold this part of the connections over each carrier that haven't said who they are, so that one machine
/// can't keep every gateway out.
const SHARE: usize = 8;
/// From this part of what there may be of unknown ones on, in all or of one network, an address must first show that it can
/// be reached: whoever sends in others' names takes no more than this from them.
const UNPROVED: usize = 4;
/// How long each may take to say who it is, whoever else wants its place: many gateways that come at once don't push each
/// other out.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 3_600_000 } else { 500 });

/// Why there is no room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// There are too many in all, or too many that came over TCP.
    All,
    /// There are too many from its network.
    Network,
}

/// A connection that hasn't said who it is.
#[derive(Debug)]
struct Stranger {
    network: IpAddr,
    carrier: Carrier,
    since: Instant,
    /// None: it was told to go.
    out: Option<oneshot::Sender<()>>,
}

/// All of them, in the order in which they came: `most` that stay, and as many that were told to go and have yet to.
#[derive(Debug)]
pub(super) struct Strangers {
    most: usize,
    next: u64,
    all: BTreeMap<u64, Stranger>,
    /// How many were told to go, ever.
    pub(super) pushed_out: u64,
}

/// Tells a connection that it is to go, for others.
pub(super) type Out = oneshot::Receiver<()>;

impl Strangers {
    pub(super) const fn new(most: usize) -> Self {
        Self { most, next: 0, all: BTreeMap::new(), pushed_out: 0 }
    }

    /// How many of one network there may be, over one carrier.
    fn share(&self) -> usize {
        (self.most / SHARE).max(1)
    }

    /// Takes one in, under the number that it has until it leaves. Somebody else is told to go for it where there must be.
    pub(super) fn enter(
        &mut self,
        address: IpAddr,
        carrier: Carrier,
        now: Instant,
    ) -> Result<(u64, Out), Full> {
        let network = network(address);
        let there =
            |stranger: &Stranger| stranger.network == network && stranger.carrier == carrier;
        // Who connects by TCP and says nothing takes no place of those who come back by QUIC.
        let by_tcp = |stranger: &Stranger| stranger.carrier == Carrier::Tcp;
        self.make_room(self.share(), there, now).ok_or(Full::Network)?;
        if carrier == Carrier::Tcp {
            self.make_room((self.most / 2).max(1), by_tcp, now).ok_or(Full::All)?;
        }
        self.make_room(self.most, |_| true, now).ok_or(Full::All)?;
        let (out, told) = oneshot::channel();
        let number = self.next;
        self.next += 1;
        self.all.insert(number, Stranger { network, carrier, since: now, out: Some(out) });
        Ok((number, told))
    }

    /// Sees to it that fewer than `most` of `these` stay, by telling the oldest to go. None where that can't be.
    fn make_room(
        &mut self,
        most: usize,
        these: impl Fn(&Stranger) -> bool,
        now: Instant,
    ) -> Option<()> {
        let [mut staying, mut leaving] = [0_usize; 2];
        for stranger in self.all.values().filter(|stranger| these(stranger)) {
            *if stranger.out.is_some() { &mut staying } else { &mut leaving } += 1;
        }
        if staying < most {
            return Some(());
        }
        let is_late = |stranger: &&mut Stranger| {
            stranger.out.is_some() && these(stranger) && now - stranger.since >= PATIENCE
        };
        let oldest = self.all.values_mut().find(is_late).filter(|_| leaving < most)?;
        // Who doesn't listen any more is leaving as it is.
        let _ = oldest.out.take()?.send(());
        self.pushed_out += 1;
        Some(())
    }

    /// One has gone, or has said who it is. None of its places are its own any more.
    pub(super) fn leave(&mut self, number: u64) {
        self.all.remove(&number);
    }

    /// One goes on from another address.
    pub(super) fn moved(&mut self, number: u64, address: IpAddr) {
        if let Some(stranger) = self.all.get_mut(&number) {
            stranger.network = network(address);
        }
    }

    /// Whether so many that came over QUIC are unknown, in all or from the network of `address`, that it must first show
    /// that it can be reached there. Below that there is room for it.
    pub(super) fn must_be_proved(&self, address: IpAddr) -> bool {
        let network = network(address);
        let there = |one: &&Stranger| one.network == network && one.carrier == Carrier::Quic;
        let there = self.all.values().filter(there).count();
        self.all.len() * UNPROVED >= self.most || there * UNPROVED >= self.share()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = PATIENCE;

    fn from(network: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, network])
    }

    fn is_out(out: &mut Out) -> bool {
        out.try_recv().is_ok()
    }

    #[test]
    fn where_a_share_is_full_the_oldest_silent_one_gives_way_and_no_young_one() {
        let (mut strangers, begun) = (Strangers::new(24), Instant::now());
        let mut held: Vec<_> =
            (0..3).map(|_| strangers.enter(from(1), Carrier::Quic, begun).unwrap()).collect();
        let young = strangers.enter(from(1), Carrier::Quic, begun).unwrap_err();
        assert_eq!(young, Full::Network, "they have just come");
        assert!(held.iter_mut().all(|(_, out)| !is_out(out)));
        let (number, _out) = strangers.enter(from(1), Carrier::Quic, begun + LATER).unwrap();
        let told: Vec<bool> = held.iter_mut().map(|(_, out)| is_out(out)).collect();
        assert_eq!(told, [true, false, false]);
        // As many as there may be can be on their way out, and no more.
        for _ in 0..2 {
            strangers.enter(from(1), Carrier::Quic, begun + LATER).unwrap();
        }
        let more = strangers.enter(from(1), Carrier::Quic, begun + LATER * 2);
        assert_eq!(more.unwrap_err(), Full::Network, "{strangers:?}");
        // Others have their own share, and who comes by TCP has another.
        for (network, carrier) in [(2, Carrier::Quic), (1, Carrier::Tcp)] {
            strangers.enter(from(network), carrier, begun).unwrap();
        }
        strangers.leave(held[0].0);
        strangers.enter(from(1), Carrier::Quic, begun + LATER * 2).unwrap();
        strangers.leave(number);
        assert_eq!((strangers.len(), strangers.pushed_out), (7, 4));
    }

    #[test]
    fn where_all_places_are_taken_the_oldest_of_all_gives_way_and_over_tcp_the_oldest_there() {
        let (mut strangers, begun) = (Strangers::new(16), Instant::now());
        let mut held = Vec::new();
        for network in 0..4 {
            for _ in 0..2 {
                held.push(strangers.enter(from(network), Carrier::Quic, begun).unwrap());
            }
        }
        for network in 0..4 {
            for _ in 0..2 {
                held.push(strangers.enter(from(network), Carrier::Tcp, begun).unwrap());
            }
        }
        let now = begun + LATER;
        strangers.enter(from(9), Carrier::Tcp, now).unwrap();
        assert!(is_out(&mut held[8].1) && !is_out(&mut held[0].1), "{strangers:?}");
        strangers.enter(from(9), Carrier::Quic, now).unwrap();
        assert!(is_out(&mut held[0].1), "{strangers:?}");
        strangers.moved(held[1].0, from(9));
        strangers.enter(from(9), Carrier::Quic, now).unwrap();
        assert!(is_out(&mut held[1].1), "it is there now, and the oldest: {strangers:?}");
    }
}
