//! What happens to a hospital that soaks, and when: drawn by chance, the same for the same seed.

use std::fmt;
use std::time::Duration;

use crate::hospital::GATEWAYS;
use crate::wan::chance::Chance;
use crate::wan::nat::{Dependence, Kind, Ports};

/// The gateway whose underlay misbehaves.
pub(super) const FAR: &str = "imaging";
/// The gateway with two uplinks.
pub(super) const TWICE: &str = "ward";
/// Where gateways listen for tunnels.
pub(super) const TUNNELS: u16 = 51_820;
/// Between two changes that come together, at most.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a single change may keep what is allowed from going on: far beyond what any takes, and what people would
/// call broken.
const BROKEN: Duration = Duration::from_secs(10);
/// How much longer it takes where QUIC must first give a connection up (after ten seconds without a word), and TCP is tried
/// when QUIC gave no answer.
const UNTIL_TCP: Duration = Duration::from_secs(20);

/// How a path may be bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// One packet in twenty is lost.
    Loses,
    /// It loses, delays, doubles and reorders.
    Lossy,
    /// 200 ms there and back.
    Far,
    /// Some megabits a second.
    Narrow,
    /// A smaller MTU that a router tells of.
    Small,
    /// A smaller MTU that nobody tells of.
    BlackHole,
}

/// How a router treats addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Nat {
    /// Not at all.
    #[default]
    None,
    Firewall,
    FullCone,
    RestrictedCone,
    PortRestrictedCone,
    /// The same, with outside ports by chance.
    OtherPorts,
    /// Another outside port for each address.
    PerAddress,
    Symmetric,
    /// Mappings that are gone after half a minute.
    Forgetful,
}

impl Nat {
    /// All of them.
    const ALL: [Self; 9] = [
        Self::None,
        Self::Firewall,
        Self::FullCone,
        Self::RestrictedCone,
        Self::PortRestrictedCone,
        Self::OtherPorts,
        Self::PerAddress,
        Self::Symmetric,
        Self::Forgetful,
    ];

    pub(super) fn kind(self) -> Kind {
        let kind = match self {
            Self::None => Kind::router(),
            Self::Firewall => Kind::firewall(),
            Self::FullCone => Kind::full_cone(),
            Self::RestrictedCone => Kind::restricted_cone(),
            Self::PortRestrictedCone => Kind::port_restricted_cone(),
            Self::OtherPorts => Kind { ports: Ports::Random, ..Kind::port_restricted_cone() },
            Self::PerAddress => Kind { mapping: Dependence::Address, ..Kind::symmetric() },
            Self::Symmetric => Kind::symmetric(),
            Self::Forgetful => Kind::port_restricted_cone().lasting(Duration::from_secs(30)),
        };
        // What strangers send in others' names mustn't use up all places.
        Kind { most: 30_000, ..kind }
    }
}

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing passes for a while.
    Cut(Duration),
    /// No tunnel passes directly until it heals.
    Block,
    /// Nothing but short datagrams passes directly until it heals.
    HalfDead,
    /// Nothing but TCP passes until it heals.
    TcpOnly,
    /// The path is bad until it heals.
    Worsen(Bad),
    /// The routers of two gateways treat addresses so until it heals, and have forgotten whom they knew.
    Nat([Nat; 2]),
    /// The router in front of the gateway gets another outside address.
    Outside,
    /// All paths are good again.
    Heal,
    /// The gateway's uplink gets another address.
    Readdress,
    /// The uplink's cable is out for a while.
    Unplug(&'static str, Duration),
    /// Nothing passes by the first of two uplinks for a while.
    Silence(Duration),
    /// The second of two uplinks is dead for a while.
    Second(Duration),
    /// An agent is stopped in order and started.
    Restart(&'static str),
    /// An agent is killed and started.
    Kill(&'static str),
    /// An agent is killed and started with a clock that is wrong by so many days.
    Clock(&'static str, i64),
    /// Two agents are restarted, and take QUIC of each other from then on at this port, if at any.
    Quic(Option<u16>),
    /// The controller is killed, and started after a while.
    Controller(Duration),
    /// A relay that stands alone is killed, and started after a while.
    Relay(usize, Duration),
    /// Initiations from made-up senders, and recorded ones, come for a while.
    Flood(Duration),
    /// A relay gets another key, and another place.
    ReplaceRelay(usize),
    /// Every gateway takes another tunnel key.
    Rotate,
    /// A gateway takes another tunnel key, and the old one is void soon.
    RotateNow(&'static str),
    /// A gateway gets another identity key in the place of its own.
    Rekey(&'static str),
    /// A rule opens or closes.
    Revision,
    /// A revision that changes nothing for any flow.
    Label,
}

impl Change {
    fn draw(chance: &mut Chance) -> Self {
        let kind = chance.number() % 27;
        let gateway = GATEWAYS[below(GATEWAYS.len(), chance)];
        let relay = below(super::relays::COUNT, chance);
        let while_ = |most: u64, chance: &mut Chance| {
            Duration::from_millis(200) + chance.up_to(Duration::from_millis(most))
        };
        match kind {
            0 => Self::Cut(while_(4_000, chance)),
            1 => Self::Block,
            2 => Self::TcpOnly,
            3 | 4 => Self::Worsen(match below(6, chance) {
                0 => Bad::Loses,
                1 => Bad::Lossy,
                2 => Bad::Far,
                3 => Bad::Narrow,
                4 => Bad::Small,
                _ => Bad::BlackHole,
            }),
            5 | 6 => Self::Nat([0, 0].map(|_| Nat::ALL[below(Nat::ALL.len(), chance)])),
            7 => Self::Outside,
            8 => Self::Heal,
            9 => Self::Readdress,
            10 => Self::Unplug(gateway, while_(2_000, chance)),
            11 => Self::Silence(while_(6_000, chance)),
            12 => Self::Second(while_(6_000, chance)),
            13 => Self::Restart(gateway),
            14 => Self::Kill(gateway),
            15 => Self::Clock(gateway, [4_000, -9_000, -20_400, 0][below(4, chance)]),
            16 => Self::Controller(while_(5_000, chance)),
            17 => Self::Relay(relay, while_(5_000, chance)),
            18 => Self::Flood(while_(5_000, chance)),
            19 => Self::ReplaceRelay(relay),
            20 => Self::Rotate,
            21 => Self::RotateNow(gateway),
            22 => Self::Revision,
            23 => Self::Quic([None, Some(443), Some(TUNNELS)][below(3, chance)]),
            24 => Self::Rekey(gateway),
            25 => Self::HalfDead,
            _ => Self::Label,
        }
    }

    /// Whether an operator makes it, by a command that waits for gateways.
    pub(super) const fn is_by_operator(self) -> bool {
        matches!(
            self,
            Self::ReplaceRelay(_)
                | Self::Rotate
                | Self::RotateNow(_)
                | Self::Rekey(_)
                | Self::Revision
                | Self::Label
        )
    }

    /// How long it lasts, where it ends by itself and others may come meanwhile.
    pub(super) const fn lasts(self) -> Option<Duration> {
        match self {
            Self::Cut(time)
            | Self::Unplug(_, time)
            | Self::Silence(time)
            | Self::Second(time)
            | Self::Controller(time)
            | Self::Relay(_, time)
            | Self::Flood(time) => Some(time),
            _ => None,
        }
    }

    /// Whether it must cost no packet on paths that are good before and after.
    pub(super) const fn is_lossless(self) -> bool {
        self.is_by_operator()
            || matches!(
                self,
                Self::Controller(_)
                    | Self::Relay(..)
                    | Self::Second(_)
                    | Self::Flood(_)
                    | Self::Heal
            )
    }

    /// Whether the two can't come together: they are about the same thing, or one of them would only wait for the other.
    fn excludes(self, other: Self) -> bool {
        let of_relays = |one, other| {
            matches!(one, Self::ReplaceRelay(_))
                && matches!(other, Self::Controller(_) | Self::Relay(..))
        };
        self.name() == other.name()
            || self.is_by_operator() && other.is_by_operator()
            || of_relays(self, other)
            || of_relays(other, self)
    }

    /// Its kind, in words.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Cut(_) => "path cut for up to 4.2 s",
            Self::Block => "tunnels blocked, relays open",
            Self::HalfDead => "long datagrams blocked, relays open",
            Self::TcpOnly => "nothing but TCP passes",
            Self::Worsen(Bad::Loses) => "path loses 5 %",
            Self::Worsen(Bad::Lossy) => "path loses, delays, doubles, reorders",
            Self::Worsen(Bad::Far) => "path of 200 ms",
            Self::Worsen(Bad::Narrow) => "path of 20 Mbit/s",
            Self::Worsen(Bad::Small) => "path MTU 1,340, told",
            Self::Worsen(Bad::BlackHole) => "path MTU 1,340, black hole",
            Self::Nat(_) => "NATs at two gateways change kind",
            Self::Outside => "NAT gets another outside address",
            Self::Heal => "paths are good again",
            Self::Readdress => "uplink gets another address",
            Self::Unplug(..) => "uplink unplugged for up to 2.2 s",
            Self::Silence(_) => "first of two uplinks silent for up to 6.2 s",
            Self::Second(_) => "second of two uplinks dead for up to 6.2 s",
            Self::Restart(_) => "agent restarted",
            Self::Kill(_) => "agent killed and started",
            Self::Clock(..) => "agent killed, clock wrong by years",
            Self::Quic(None) => "agents restarted without QUIC of their own",
            Self::Quic(Some(TUNNELS)) => "agents restarted, QUIC and tunnels on one port",
            Self::Quic(_) => "agents restarted, QUIC of their own at 443",
            Self::Controller(_) => "controller dead for up to 5.2 s",
            Self::Relay(..) => "relay dead for up to 5.2 s",
            Self::Flood(_) => "flood of handshakes for up to 5.2 s",
            Self::ReplaceRelay(_) => "relay replaced",
            Self::Rotate => "all tunnel keys rotated",
            Self::RotateNow(_) => "a tunnel key rotated, old one void",
            Self::Rekey(_) => "an identity key replaced",
            Self::Revision => "a rule opens or closes",
            Self::Label => "a label changes",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self:?})", self.name())
    }
}

/// Changes that come one soon after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Burst(pub(super) Vec<(Duration, Change)>);

impl Burst {
    /// The next one: up to three changes.
    pub(super) fn draw(chance: &mut Chance) -> Self {
        // On bad paths alone nothing could be said of what must cost nothing.
        if chance.happens(0.25) {
            return Self::of(Change::Heal);
        }
        let count = match below(6, chance) {
            0..3 => 1,
            3 | 4 => 2,
            _ => 3,
        };
        let mut steps: Vec<(Duration, Change)> = Vec::new();
        while steps.len() < count {
            let change = Change::draw(chance);
            if steps.iter().all(|(_, other)| !change.excludes(*other)) {
                let pause = if steps.is_empty() { Duration::ZERO } else { chance.up_to(PAUSE) };
                steps.push((pause, change));
            }
        }
        Self(steps)
    }

    /// A change by itself.
    pub(super) fn of(change: Change) -> Self {
        Self(vec![(Duration::ZERO, change)])
    }

    pub(super) fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        self.0.iter().map(|(_, change)| *change)
    }

    /// The change, where it comes by itself.
    pub(super) fn alone(&self) -> Option<Change> {
        match self.0.as_slice() {
            [(_, change)] => Some(*change),
            _ => None,
        }
    }

    /// How long none of what is allowed may pass, at most; `until_tcp` says whether connections may have to be given up by QUIC
    /// first.
    pub(super) fn bound(&self, until_tcp: bool) -> Duration {
        let each = self.0.iter().map(|(pause, change)| *pause + change.lasts().unwrap_or_default());
        BROKEN + each.sum::<Duration>() + if until_tcp { UNTIL_TCP } else { Duration::ZERO }
    }
}

impl fmt::Display for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (pause, change)) in self.0.iter().enumerate() {
            if index > 0 {
                write!(f, ", {} ms later ", pause.as_millis())?;
            }
            write!(f, "{change}")?;
        }
        Ok(())
    }
}

fn below(end: usize, chance: &mut Chance) -> usize {
    (chance.number() % end as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_of_change_comes_sooner_or_later_and_a_seed_gives_the_same() {
        let drawn = |seed| {
            let mut chance = Chance::new(seed);
            (0..1_000).map(|_| Burst::draw(&mut chance)).collect::<Vec<_>>()
        };
        let bursts = drawn(1);
        let names: BTreeSet<&str> =
            bursts.iter().flat_map(Burst::changes).map(Change::name).collect();
        assert_eq!(names.len(), 32, "{names:?}");
        let sizes: BTreeSet<usize> = bursts.iter().map(|burst| burst.0.len()).collect();
        assert_eq!(sizes, BTreeSet::from([1, 2, 3]));
        assert_eq!(drawn(2), drawn(2));
        assert_ne!(drawn(2), drawn(3));
    }

    #[test]
    fn changes_that_come_together_leave_each_other_room() {
        let mut chance = Chance::new(7);
        for _ in 0..1_000 {
            let burst = Burst::draw(&mut chance);
            let changes: Vec<Change> = burst.changes().collect();
            let by_operator = changes.iter().filter(|change| change.is_by_operator()).count();
            assert!(by_operator <= 1, "{burst}");
            assert!(burst.0.iter().all(|(pause, _)| *pause < PAUSE) && burst.0[0].0.is_zero());
            assert!(
                burst.bound(false) >= BROKEN && burst.bound(true) == burst.bound(false) + UNTIL_TCP
            );
        }
        let together = [Change::ReplaceRelay(0), Change::Controller(PAUSE)];
        assert!(together[0].excludes(together[1]) && together[1].excludes(together[0]));
        assert!(!Change::Rotate.excludes(together[1]), "a rotation may meet a dead controller");
    }
}
