//! What happens to a hospital that soaks.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::hospital::{GATEWAYS, Hospital, address};
use crate::wan::chance::Chance;
use crate::wan::conditions::Conditions;
use crate::wan::link::Link;

/// The gateway whose underlay misbehaves.
const FAR: &str = "imaging";
/// Lets no tunnel through, and the controller's port.
const BLOCK: &str = "pref 10 ipproto udp dport 51820 blackhole";
/// How soon a service manager starts a dead agent anew.
const RESTART: Duration = Duration::from_millis(100);

/// How a path may be bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
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

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing passes for a while.
    Cut(Duration),
    /// No tunnel passes directly until it heals.
    Block,
    /// The path is bad until it heals.
    Worsen(Bad),
    /// All paths are good again.
    Heal,
    /// The gateway's uplink gets another address.
    Readdress,
    /// The uplink's cable is out for a while.
    Unplug(&'static str, Duration),
    /// An agent is stopped in order and started.
    Restart(&'static str),
    /// An agent is killed and started.
    Kill(&'static str),
    /// The controller is killed, and started after a while.
    Controller(Duration),
    /// Every gateway takes another tunnel key.
    Rotate,
    /// A gateway takes another tunnel key, and the old one is void soon.
    RotateNow(&'static str),
    /// A rule opens or closes.
    Revision,
    /// A revision that changes nothing for any flow.
    Label,
}

impl Change {
    /// The next one.
    pub(super) fn draw(chance: &mut Chance) -> Self {
        let kind = chance.number() % 17;
        let gateway = GATEWAYS[(chance.number() % GATEWAYS.len() as u64) as usize];
        let while_ = |most: u64, chance: &mut Chance| {
            Duration::from_millis(200) + chance.up_to(Duration::from_millis(most))
        };
        match kind {
            0 => Self::Cut(while_(4_000, chance)),
            1 | 2 => Self::Block,
            3 | 4 => Self::Worsen(match chance.number() % 5 {
                0 => Bad::Lossy,
                1 => Bad::Far,
                2 => Bad::Narrow,
                3 => Bad::Small,
                _ => Bad::BlackHole,
            }),
            5..=7 => Self::Heal,
            8 => Self::Readdress,
            9 => Self::Unplug(gateway, while_(2_000, chance)),
            10 => Self::Restart(gateway),
            11 => Self::Kill(gateway),
            12 => Self::Controller(while_(5_000, chance)),
            13 => Self::Rotate,
            14 => Self::RotateNow(gateway),
            15 => Self::Revision,
            _ => Self::Label,
        }
    }

    /// Whether an operator makes it, by a command that waits for gateways.
    pub(super) const fn is_by_operator(self) -> bool {
        matches!(self, Self::Rotate | Self::RotateNow(_) | Self::Revision | Self::Label)
    }

    /// Whether it lasts for a while in which another change may come.
    pub(super) const fn lasts(self) -> bool {
        matches!(self, Self::Cut(_) | Self::Unplug(..) | Self::Controller(_))
    }

    /// Whether it must cost no packet on a path that is good before and after.
    pub(super) const fn is_lossless(self) -> bool {
        matches!(
            self,
            Self::Controller(_)
                | Self::Rotate
                | Self::RotateNow(_)
                | Self::Revision
                | Self::Label
                | Self::Heal
        )
    }

    /// Its kind, in words.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Cut(_) => "path cut for up to 4.2 s",
            Self::Block => "tunnels blocked, relay open",
            Self::Worsen(_) => "path gets worse",
            Self::Heal => "path is good again",
            Self::Readdress => "uplink gets another address",
            Self::Unplug(..) => "uplink unplugged for up to 2.2 s",
            Self::Restart(_) => "agent restarted",
            Self::Kill(_) => "agent killed and started",
            Self::Controller(_) => "controller dead for up to 5.2 s",
            Self::Rotate => "all tunnel keys rotated",
            Self::RotateNow(_) => "a tunnel key rotated, old one void",
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

/// What the path between the gateways is like.
#[derive(Debug)]
pub(super) struct Underlay {
    link: Link,
    blocked: bool,
    worse: bool,
    /// The last octet of the far gateway's address.
    last: u8,
}

impl Underlay {
    /// A good one.
    pub(super) fn new(link: Link) -> Self {
        Self { link, blocked: false, worse: false, last: 2 }
    }

    /// In which company a change comes.
    pub(super) const fn is(&self) -> &'static str {
        match (self.blocked, self.worse) {
            (false, false) => "",
            (true, false) => ", relayed",
            (false, true) => ", on a bad path",
            (true, true) => ", relayed on a bad path",
        }
    }

    /// Prepares the gateways as systemd does: an interface's second address outlives its first.
    pub(super) fn settle(&self, hospital: &Hospital) -> Result<()> {
        let host = &hospital.gateways[FAR].host;
        let promote = "/proc/sys/net/ipv4/conf/all/promote_secondaries";
        host.enter(|| std::fs::write(promote, "1"))?.context("promote_secondaries")
    }

    /// Makes a change, or begins one that [lasts](Change::lasts).
    pub(super) fn begin(&mut self, hospital: &mut Hospital, change: Change) -> Result<()> {
        match change {
            Change::Cut(_) => {
                self.link.set_both(&Conditions::down());
                Ok(())
            }
            Change::Block if self.blocked => Ok(()),
            Change::Block => {
                self.blocked = true;
                hospital.router.ip(&format!("rule add {BLOCK}")).map(drop)
            }
            Change::Worsen(how) => {
                self.worse = true;
                self.link.set_both(&conditions(how));
                Ok(())
            }
            Change::Heal => self.heal(hospital),
            Change::Readdress => {
                self.last = if self.last >= 99 { 70 } else { self.last.max(69) + 1 };
                let (new, router) = (address(FAR, self.last), address(FAR, 1));
                hospital.gateway(FAR).host.readdress("uplink", new, 24, Some(router))
            }
            Change::Unplug(gateway, _) => {
                hospital.campus.ip(&format!("link set u-{gateway} down")).map(drop)
            }
            Change::Restart(gateway) => {
                let gateway = hospital.gateway(gateway);
                gateway.stop()?;
                gateway.start()?;
                gateway.wait_running()
            }
            Change::Kill(gateway) => {
                let gateway = hospital.gateway(gateway);
                gateway.kill()?;
                std::thread::sleep(RESTART);
                gateway.start()?;
                gateway.wait_running()
            }
            Change::Controller(_) => hospital.controller.kill(),
            Change::Rotate | Change::RotateNow(_) | Change::Revision | Change::Label => Ok(()),
        }
    }

    /// Ends a change that [lasts](Change::lasts).
    pub(super) fn end(&mut self, hospital: &mut Hospital, change: Change) -> Result<()> {
        match change {
            Change::Cut(time) => {
                std::thread::sleep(time);
                self.heal(hospital)
            }
            Change::Unplug(gateway, time) => {
                std::thread::sleep(time);
                hospital.campus.ip(&format!("link set u-{gateway} up")).map(drop)
            }
            Change::Controller(time) => {
                std::thread::sleep(time);
                hospital.controller.start()
            }
            _ => Ok(()),
        }
    }

    fn heal(&mut self, hospital: &Hospital) -> Result<()> {
        self.link.set_both(&Conditions::default());
        self.worse = false;
        if std::mem::take(&mut self.blocked) {
            hospital.router.ip(&format!("rule del {BLOCK}"))?;
        }
        Ok(())
    }
}

fn conditions(how: Bad) -> Conditions {
    let good = Conditions::default();
    let ms = Duration::from_millis;
    match how {
        Bad::Lossy => {
            good.losing(0.02).delayed(ms(10), ms(3)).reordering(0.02, ms(5)).duplicating(0.02)
        }
        Bad::Far => good.delayed(ms(100), ms(5)),
        Bad::Narrow => good.limited(20_000_000, 128 << 10),
        Bad::Small => good.with_path_mtu(1_340, address(FAR, 1)),
        Bad::BlackHole => good.swallowing_above(1_340),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_of_change_comes_sooner_or_later_and_a_seed_gives_the_same() {
        let drawn = |seed| {
            let mut chance = Chance::new(seed);
            (0..500).map(|_| Change::draw(&mut chance)).collect::<Vec<_>>()
        };
        let names: BTreeSet<&str> = drawn(1).into_iter().map(Change::name).collect();
        assert_eq!(names.len(), 13, "{names:?}");
        assert_eq!(drawn(2), drawn(2));
        assert_ne!(drawn(2), drawn(3));
    }
}
