//! Translation of addresses in each way that matters (RFC 4787). No packets, no clock.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::chance::Chance;

/// What of the other end something depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dependence {
    /// Nothing: "endpoint-independent".
    Independent,
    /// Its address.
    Address,
    /// Its address and port.
    AddressAndPort,
}

impl Dependence {
    /// What counts of `remote`.
    fn key(self, remote: SocketAddrV4) -> Option<SocketAddrV4> {
        match self {
            Self::Independent => None,
            Self::Address => Some(SocketAddrV4::new(*remote.ip(), 0)),
            Self::AddressAndPort => Some(remote),
        }
    }
}

/// Which outside port an inside one gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The same, where it is free.
    Preserved,
    /// Any.
    Random,
}

/// What may leave at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Egress {
    /// Everything.
    All,
    /// Everything but UDP.
    NoUdp,
    /// What goes to these: a protocol's number and a port.
    Only(Vec<(u8, u16)>),
    /// Datagrams of UDP of so many bytes at most, from the IP header on, and all that goes to these ports.
    Short(usize, Vec<u16>),
}

impl Egress {
    /// Nothing but TCP to port 443.
    #[must_use]
    pub fn only_tcp_443() -> Self {
        Self::Only(vec![(TCP, 443)])
    }

    /// Nothing but TCP and UDP to port 443: QUIC, but no WireGuard.
    #[must_use]
    pub fn only_443() -> Self {
        Self::Only(vec![(TCP, 443), (UDP, 443)])
    }

    fn allows(&self, protocol: u8, to: SocketAddrV4) -> bool {
        match self {
            Self::All | Self::Short(..) => true,
            Self::NoUdp => protocol != UDP,
            Self::Only(list) => list.contains(&(protocol, to.port())),
        }
    }

    /// Whether a packet of so many bytes, from the IP header on, isn't too long to go to `remote`, or to come from there.
    #[must_use]
    pub fn allows_length(&self, protocol: u8, remote: SocketAddrV4, bytes: usize) -> bool {
        match self {
            Self::Short(most, but) => {
                protocol != UDP || bytes <= *most || but.contains(&remote.port())
            }
            _ => true,
        }
    }
}

/// TCP's number.
pub const TCP: u8 = 6;
/// UDP's number.
pub const UDP: u8 = 17;

/// How a router treats what goes out and comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Whether addresses are translated. A router that only filters doesn't.
    pub translates: bool,
    /// What an outside port depends on.
    pub mapping: Dependence,
    /// Who may answer.
    pub filtering: Dependence,
    /// Which outside port it is.
    pub ports: Ports,
    /// Whether an inside host reaches another by its outside address.
    pub hairpins: bool,
    /// How long an unused mapping of anything but TCP lasts.
    pub lifetime: Duration,
    /// How long an unused mapping of TCP lasts.
    pub tcp_lifetime: Duration,
    /// Whether what comes in keeps a mapping alive, as what goes out does.
    pub kept_by_answers: bool,
    /// Most mappings at once.
    pub most: usize,
    /// What may leave at all.
    pub egress: Egress,
}

impl Kind {
    /// "Full cone": one outside port, and everybody may answer.
    #[must_use]
    pub fn full_cone() -> Self {
        Self {
            translates: true,
            mapping: Dependence::Independent,
            filtering: Dependence::Independent,
            ports: Ports::Preserved,
            hairpins: false,
            lifetime: Duration::from_secs(120),
            tcp_lifetime: Duration::from_secs(7200),
            kept_by_answers: true,
            most: 4096,
            egress: Egress::All,
        }
    }

    /// "Restricted cone": one outside port, and hosts that were spoken to may answer.
    #[must_use]
    pub fn restricted_cone() -> Self {
        Self { filtering: Dependence::Address, ..Self::full_cone() }
    }

    /// "Port-restricted cone": one outside port, and only who was spoken to may answer. Most homes have it.
    #[must_use]
    pub fn port_restricted_cone() -> Self {
        Self { filtering: Dependence::AddressAndPort, ..Self::full_cone() }
    }

    /// "Symmetric": another outside port, by chance, for everyone who is spoken to.
    #[must_use]
    pub fn symmetric() -> Self {
        Self {
            mapping: Dependence::AddressAndPort,
            ports: Ports::Random,
            ..Self::port_restricted_cone()
        }
    }

    /// A router that neither translates nor filters.
    #[must_use]
    pub fn router() -> Self {
        Self { translates: false, ..Self::full_cone() }
    }

    /// A firewall that lets answers in and translates nothing.
    #[must_use]
    pub fn firewall() -> Self {
        Self { translates: false, ..Self::port_restricted_cone() }
    }

    /// The same, but for what may leave at all.
    #[must_use]
    pub fn letting_out(self, egress: Egress) -> Self {
        Self { egress, ..self }
    }

    /// The same, but for how long unused mappings last.
    #[must_use]
    pub fn lasting(self, lifetime: Duration) -> Self {
        Self { lifetime, ..self }
    }

    /// The same with hairpinning.
    #[must_use]
    pub fn hairpinning(self) -> Self {
        Self { hairpins: true, ..self }
    }

    fn lifetime_of(&self, protocol: u8) -> Duration {
        if protocol == TCP { self.tcp_lifetime } else { self.lifetime }
    }
}

/// Why something doesn't pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// It may not leave.
    Egress,
    /// There is no mapping that it could come in by.
    Unmapped,
    /// The mapping isn't for whoever sent it.
    Filtered,
    /// There are as many mappings as there may be.
    Full,
}

/// Somebody inside, by protocol, and what counts of the other end.
type Inside = (u8, SocketAddrV4, Option<SocketAddrV4>);
/// A place outside, by protocol.
type Outside = (u8, SocketAddrV4);

#[derive(Debug)]
struct Mapping {
    inside: SocketAddrV4,
    key: Inside,
    used: Instant,
    spoken_to: HashSet<SocketAddrV4>,
}

/// The mappings of one router.
#[derive(Debug)]
pub struct Nat {
    kind: Kind,
    address: Ipv4Addr,
    chance: Chance,
    by_inside: HashMap<Inside, Outside>,
    mappings: HashMap<Outside, Mapping>,
}

impl Nat {
    /// One with the outside address `address` and no mapping.
    #[must_use]
    pub fn new(kind: Kind, address: Ipv4Addr, seed: u64) -> Self {
        Self {
            kind,
            address,
            chance: Chance::new(seed),
            by_inside: HashMap::new(),
            mappings: HashMap::new(),
        }
    }

    /// How it treats what passes.
    #[must_use]
    pub const fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Its outside address.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// How many mappings there are, stale ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Whether there is no mapping.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// Another way of treating what passes. Mappings are forgotten, as at a restart of the router.
    pub fn set_kind(&mut self, kind: Kind) {
        self.kind = kind;
        self.forget();
    }

    /// What may leave from now on. Mappings stay, and are of no use to what may not leave.
    pub fn set_egress(&mut self, egress: Egress) {
        self.kind.egress = egress;
    }

    /// Another outside address. Mappings are forgotten.
    pub fn set_address(&mut self, address: Ipv4Addr) {
        self.address = address;
        self.forget();
    }

    /// Forgets all mappings.
    pub fn forget(&mut self) {
        self.by_inside.clear();
        self.mappings.clear();
    }

    /// Where something from `inside` to `remote` seems to come from.
    ///
    /// # Errors
    /// [`Refused::Egress`] and [`Refused::Full`].
    pub fn outbound(
        &mut self,
        protocol: u8,
        inside: SocketAddrV4,
        remote: SocketAddrV4,
        now: Instant,
    ) -> Result<SocketAddrV4, Refused> {
        if !self.kind.egress.allows(protocol, remote) {
            return Err(Refused::Egress);
        }
        let key = (protocol, inside, self.kind.mapping.key(remote));
        let lifetime = self.kind.lifetime_of(protocol);
        let held = self.by_inside.get(&key).copied();
        let fresh = held.filter(|outside| {
            self.mappings.get(outside).is_some_and(|mapping| now < mapping.used + lifetime)
        });
        let outside = match fresh {
            Some(outside) => outside,
            None => {
                if let Some(stale) = held {
                    self.mappings.remove(&stale);
                }
                let outside = (protocol, self.place(protocol, inside, now)?);
                self.by_inside.insert(key, outside);
                let spoken_to = HashSet::new();
                self.mappings.insert(outside, Mapping { inside, key, used: now, spoken_to });
                outside
            }
        };
        if let Some(mapping) = self.mappings.get_mut(&outside) {
            mapping.used = now;
            if mapping.spoken_to.len() < self.kind.most {
                mapping.spoken_to.insert(remote);
            }
        }
        Ok(outside.1)
    }

    /// To whom inside something from `remote` to `outside` goes.
    ///
    /// # Errors
    /// [`Refused::Unmapped`], [`Refused::Filtered`] and [`Refused::Egress`].
    pub fn inbound(
        &mut self,
        protocol: u8,
        outside: SocketAddrV4,
        remote: SocketAddrV4,
        now: Instant,
    ) -> Result<SocketAddrV4, Refused> {
        if !self.kind.egress.allows(protocol, remote) {
            return Err(Refused::Egress);
        }
        if !self.kind.translates && self.kind.filtering == Dependence::Independent {
            return Ok(outside);
        }
        let lifetime = self.kind.lifetime_of(protocol);
        let mapping = self
            .mappings
            .get_mut(&(protocol, outside))
            .filter(|mapping| now < mapping.used + lifetime)
            .ok_or(Refused::Unmapped)?;
        let open = match self.kind.filtering {
            Dependence::Independent => true,
            Dependence::Address => mapping.spoken_to.iter().any(|known| known.ip() == remote.ip()),
            Dependence::AddressAndPort => mapping.spoken_to.contains(&remote),
        };
        if !open {
            return Err(Refused::Filtered);
        }
        if self.kind.kept_by_answers {
            mapping.used = now;
        }
        Ok(mapping.inside)
    }

    /// To whom inside a report goes of what they sent from `outside`.
    #[must_use]
    pub fn owner(&self, protocol: u8, outside: SocketAddrV4, now: Instant) -> Option<SocketAddrV4> {
        let mapping = self.mappings.get(&(protocol, outside))?;
        (now < mapping.used + self.kind.lifetime_of(protocol)).then_some(mapping.inside)
    }

    /// A free place outside.
    fn place(
        &mut self,
        protocol: u8,
        inside: SocketAddrV4,
        now: Instant,
    ) -> Result<SocketAddrV4, Refused> {
        if self.mappings.len() >= self.kind.most {
            self.sweep(now);
        }
        if self.mappings.len() >= self.kind.most {
            return Err(Refused::Full);
        }
        if !self.kind.translates {
            return Ok(inside);
        }
        let mut port = match self.kind.ports {
            Ports::Preserved => inside.port(),
            Ports::Random => self.chance.port(),
        };
        // With more places than mappings, chance finds a free one soon.
        for _ in 0..1000 {
            let place = SocketAddrV4::new(self.address, port);
            let lifetime = self.kind.lifetime_of(protocol);
            match self.mappings.get(&(protocol, place)) {
                None => return Ok(place),
                Some(mapping) if now >= mapping.used + lifetime => {
                    let key = mapping.key;
                    self.by_inside.remove(&key);
                    self.mappings.remove(&(protocol, place));
                    return Ok(place);
                }
                Some(_) => port = self.chance.port(),
            }
        }
        Err(Refused::Full)
    }

    /// Forgets what has lapsed.
    fn sweep(&mut self, now: Instant) {
        let kind = &self.kind;
        self.mappings
            .retain(|(protocol, _), mapping| now < mapping.used + kind.lifetime_of(*protocol));
        let mappings = &self.mappings;
        self.by_inside.retain(|_, outside| mappings.contains_key(outside));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    const INSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 51820);

    fn remote(host: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, host), port)
    }

    #[test]
    fn each_kind_maps_and_filters_as_its_name_says() {
        use Dependence::{Address, AddressAndPort, Independent};
        let now = Instant::now();
        for mapping in [Independent, Address, AddressAndPort] {
            for filtering in [Independent, Address, AddressAndPort] {
                let kind = Kind { mapping, filtering, ports: Ports::Random, ..Kind::full_cone() };
                let mut nat = Nat::new(kind, US, 5);
                let mut out = |to| nat.outbound(UDP, INSIDE, to, now).unwrap();
                let place = out(remote(1, 1));
                assert_eq!(place.ip(), &US);
                assert_eq!(place, out(remote(1, 1)));
                assert_eq!(place == out(remote(1, 2)), mapping < AddressAndPort);
                assert_eq!(place == out(remote(2, 1)), mapping == Independent);
                // Somebody who was never spoken to, and another port of somebody who was.
                let stranger = nat.inbound(UDP, place, remote(9, 9), now);
                assert_eq!(stranger.is_ok(), filtering == Independent, "{mapping:?} {filtering:?}");
                let port = nat.inbound(UDP, place, remote(1, 9), now);
                assert_eq!(port.is_ok(), filtering < AddressAndPort, "{mapping:?} {filtering:?}");
                assert_eq!(nat.inbound(UDP, place, remote(1, 1), now), Ok(INSIDE));
                assert_eq!(nat.inbound(TCP, place, remote(1, 1), now), Err(Refused::Unmapped));
            }
        }
    }

    #[test]
    fn ports_are_preserved_where_they_are_free() {
        let now = Instant::now();
        let mut nat = Nat::new(Kind::port_restricted_cone(), US, 1);
        let first = nat.outbound(UDP, INSIDE, remote(1, 1), now).unwrap();
        assert_eq!(first.port(), INSIDE.port());
        let other = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), INSIDE.port());
        let second = nat.outbound(UDP, other, remote(1, 1), now).unwrap();
        assert_ne!(second.port(), first.port());
        assert_eq!(nat.inbound(UDP, second, remote(1, 1), now), Ok(other));
    }

    #[test]
    fn mappings_lapse_unless_they_are_used() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let kind = Kind::symmetric().lasting(Duration::from_secs(30));
        let mut nat = Nat::new(kind.clone(), US, 1);
        let place = nat.outbound(UDP, INSIDE, remote(1, 1), at(0)).unwrap();
        assert_eq!(nat.inbound(UDP, place, remote(1, 1), at(29)), Ok(INSIDE));
        assert_eq!(nat.outbound(UDP, INSIDE, remote(1, 1), at(58)), Ok(place));
        assert_eq!(nat.inbound(UDP, place, remote(1, 1), at(88)), Err(Refused::Unmapped));
        assert_ne!(nat.outbound(UDP, INSIDE, remote(1, 1), at(88)), Ok(place));
        assert_eq!(nat.len(), 1);
        // One that answers don't keep alive.
        let mut nat = Nat::new(Kind { kept_by_answers: false, ..kind }, US, 1);
        let place = nat.outbound(UDP, INSIDE, remote(1, 1), at(0)).unwrap();
        assert!(nat.inbound(UDP, place, remote(1, 1), at(29)).is_ok());
        assert!(nat.inbound(UDP, place, remote(1, 1), at(31)).is_err());
    }

    #[test]
    fn there_are_only_so_many_and_stale_ones_make_room() {
        let start = Instant::now();
        let kind = Kind { most: 10, ..Kind::symmetric() };
        let mut nat = Nat::new(kind, US, 1);
        for port in 1..=10 {
            nat.outbound(UDP, INSIDE, remote(1, port), start).unwrap();
        }
        assert_eq!(nat.outbound(UDP, INSIDE, remote(1, 11), start), Err(Refused::Full));
        let later = start + Duration::from_secs(121);
        assert!(nat.outbound(UDP, INSIDE, remote(1, 11), later).is_ok());
        assert_eq!((nat.len(), nat.by_inside.len()), (1, 1));
    }

    #[test]
    fn another_address_forgets_what_was() {
        let now = Instant::now();
        let mut nat = Nat::new(Kind::full_cone(), US, 1);
        let place = nat.outbound(UDP, INSIDE, remote(1, 1), now).unwrap();
        nat.set_address(Ipv4Addr::new(203, 0, 113, 2));
        assert_eq!(nat.inbound(UDP, place, remote(1, 1), now), Err(Refused::Unmapped));
        let place = nat.outbound(UDP, INSIDE, remote(1, 1), now).unwrap();
        assert_eq!(place.ip(), &Ipv4Addr::new(203, 0, 113, 2));
    }

    #[test]
    fn a_mere_router_lets_everybody_in_and_out() {
        let now = Instant::now();
        let mut nat = Nat::new(Kind::router(), US, 1);
        assert_eq!(nat.inbound(UDP, INSIDE, remote(9, 9), now), Ok(INSIDE));
        assert_eq!(nat.outbound(UDP, INSIDE, remote(1, 1), now), Ok(INSIDE));
        nat.set_egress(Egress::NoUdp);
        assert_eq!(nat.inbound(UDP, INSIDE, remote(9, 9), now), Err(Refused::Egress));
    }

    #[test]
    fn a_firewall_translates_nothing_and_lets_out_what_it_is_told() {
        let now = Instant::now();
        let mut nat = Nat::new(Kind::firewall().letting_out(Egress::only_tcp_443()), US, 1);
        assert_eq!(nat.outbound(UDP, INSIDE, remote(1, 443), now), Err(Refused::Egress));
        assert_eq!(nat.outbound(TCP, INSIDE, remote(1, 80), now), Err(Refused::Egress));
        assert_eq!(nat.outbound(TCP, INSIDE, remote(1, 443), now), Ok(INSIDE));
        assert_eq!(nat.inbound(TCP, INSIDE, remote(1, 443), now), Ok(INSIDE));
        assert_eq!(nat.inbound(TCP, INSIDE, remote(2, 443), now), Err(Refused::Filtered));
        nat.set_egress(Egress::only_443());
        assert!(nat.outbound(UDP, INSIDE, remote(1, 443), now).is_ok());
        nat.set_egress(Egress::NoUdp);
        assert_eq!(nat.inbound(UDP, INSIDE, remote(1, 443), now), Err(Refused::Egress));
        assert!(nat.outbound(TCP, INSIDE, remote(1, 22), now).is_ok());
    }
}
