//! What a gateway remembers of the devices on which two operators decide, and what of a leaf it doesn't put in force.
//!
//! Operators sign a leaf whole, and one of them alone can sign one that wants two. Its closings, and all that it says
//! of other devices, are in force as always; the device that lacks an approval is held back, in what one operator may
//! always order: on the terms that two agreed on before, or, where there are none, in protect, which is what its peers
//! take for the same as enforce ([`crate::mode::PairPath`]). What shares its port is held back with it, since a port has
//! the strictest mode of all that stand at it. So neither does a missing approval keep a gateway from
//! hearing of anything else, nor does it cut the device off.
//!
//! The demand outlives the leaf that it stood in: a device that leaves is remembered by its id and its Ethernet
//! addresses, until two have waived it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Place, Step, Voters};
use crate::id::MemberId;
use crate::intent::{Device, Intent};
use crate::mac::MacAddr;
use crate::mode::Mode;
use crate::name::Name;
use crate::rollout::Trial;

/// Most devices that a gateway remembers. Of those that left, the ones that it saw least lately make room.
pub const MAX_REMEMBERED: usize = 4096;
/// Most Ethernet addresses that are remembered of one device; the oldest makes room.
const MAX_ADDRESSES: usize = 8;

/// The demands that a gateway knows of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demands {
    /// By their ids.
    devices: Vec<Demanded>,
}

/// A device on which two operators decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Demanded {
    member: MemberId,
    /// Its Ethernet addresses, the newest last.
    macs: Vec<MacAddr>,
    /// The newest revision held that had it.
    seen: Place,
    /// On which terms it is enforced; none: it isn't.
    in_force: Option<Terms>,
}

/// How a device is enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Terms {
    trial: Option<Trial>,
}

impl Terms {
    fn of(device: &Device) -> Option<Self> {
        (device.member.mode == Mode::Enforce).then(|| Self { trial: device.rollout.trial.clone() })
    }
}

/// What became of a leaf in which two operators decide on devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upheld {
    /// What to remember with it.
    pub demands: Demands,
    /// The devices that aren't as the leaf has them, to be reported.
    pub held_back: Vec<HeldBack>,
}

/// A device that isn't as its leaf has it, since two operators must have approved of that, and haven't.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldBack {
    /// The device.
    pub member: MemberId,
    /// What lacks an approval.
    pub step: Step,
    /// The mode that the leaf has. Other gateways go by that.
    pub signed: Mode,
    /// The mode that it is in.
    pub mode: Mode,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { member, step, mode, .. } = self;
        write!(f, "{member}: two operators must approve to {step}, and fewer have: ")?;
        match (step, mode) {
            (Step::Waive {}, _) => f.write_str("two go on deciding")?,
            (_, Mode::Enforce) => f.write_str("it stays enforced as it was before")?,
            (_, mode) => write!(f, "it is in {mode}")?,
        }
        f.write_str(
            ". `anteroom device mode … --propose FILE`, then another operator's `anteroom approve FILE`",
        )
    }
}

/// What is known of a device from before.
struct Before {
    /// Approvals must be of later revisions.
    seen: Place,
    in_force: Option<Terms>,
}

impl Demands {
    /// Holds a leaf that has just come, of the revision at `at`, to what two operators must agree on: devices that lack an
    /// approval are changed in `intent`. `held` is the leaf in force, and of which revision it is.
    #[must_use]
    pub fn uphold(
        &self,
        intent: &mut Intent,
        at: Place,
        held: Option<(&Intent, Place)>,
        voters: &Voters<'_>,
    ) -> Upheld {
        let before = |device: &Device, known: Option<&Demanded>| {
            let id = device.member.id;
            let nothing = (None, Place::default());
            let (in_force, seen) = match known {
                Some(own) if own.member == id => (own.in_force.clone(), own.seen),
                // Under another id with the same Ethernet address nothing is in force, and nothing was seen.
                Some(_) => nothing,
                None => held
                    .and_then(|(held, at)| {
                        let found = held.devices.iter().find(|held| held.member.id == id)?;
                        Some((Terms::of(found), at))
                    })
                    .unwrap_or(nothing),
            };
            Before { seen, in_force }
        };
        self.go_through(intent, at, Some(voters), before)
    }

    /// The same for the leaf that is on disk, where this is what was remembered with it. Nothing is decided anew: what was in
    /// force then is again. Of a device that nothing is remembered of, all is in force, so that nothing opens by a loss.
    #[must_use]
    pub fn uphold_again(&self, intent: &mut Intent, at: Place) -> Upheld {
        let before = |device: &Device, known: Option<&Demanded>| {
            let own = known.filter(|known| known.member == device.member.id);
            let in_force = match (known, own) {
                (None, _) => Terms::of(device),
                (Some(_), own) => own.and_then(|own| own.in_force.clone()),
            };
            Before { seen: Place::default(), in_force }
        };
        self.go_through(intent, at, None, before)
    }

    /// What there is to remember with a leaf that is in force as it is.
    #[must_use]
    pub fn of(intent: &Intent, at: Place) -> Self {
        let devices = intent.devices.iter().filter(|device| device.two_person);
        let mut devices: Vec<Demanded> = devices
            .map(|device| Demanded {
                member: device.member.id,
                macs: vec![device.member.mac],
                seen: at,
                in_force: Terms::of(device),
            })
            .collect();
        devices.sort_by_key(|known| known.member);
        Self { devices }
    }

    /// What is remembered of a device: by its id, or by an Ethernet address of one that isn't among `here` any more.
    fn known(&self, device: &Device, here: &BTreeSet<MemberId>) -> Option<&Demanded> {
        let member = &device.member;
        if let Ok(at) = self.devices.binary_search_by_key(&member.id, |known| known.member) {
            return self.devices.get(at);
        }
        let has = |known: &&Demanded| known.macs.contains(&member.mac);
        // The newest address of a device that is here is its own, and not another one's.
        let free = |known: &&Demanded| {
            !here.contains(&known.member) || known.macs.last() != Some(&member.mac)
        };
        self.devices.iter().filter(has).find(free)
    }

    fn go_through(
        &self,
        intent: &mut Intent,
        at: Place,
        voters: Option<&Voters<'_>>,
        before: impl Fn(&Device, Option<&Demanded>) -> Before,
    ) -> Upheld {
        let here: BTreeSet<MemberId> =
            intent.devices.iter().map(|device| device.member.id).collect();
        let mut demands: Vec<Demanded> = Vec::new();
        let (mut held_back, mut waived) = (Vec::new(), Vec::new());
        for device in &mut intent.devices {
            let known = self.known(device, &here);
            if !device.two_person && known.is_none() {
                continue;
            }
            let before = before(device, known);
            let member = device.member.id;
            let agree = |device: &Device, step: Step| {
                let counts = |place: Place| before.seen < place && place <= at;
                voters.is_some_and(|voters| {
                    voters.agree(member, &device.rollout.approvals, step, counts)
                })
            };
            let signed = device.member.mode;
            if !device.two_person {
                if agree(device, Step::Waive {}) {
                    waived.extend(known.map(|known| known.member));
                    continue;
                }
                device.two_person = true;
                let step = Step::Waive {};
                held_back.push(HeldBack { member, step, signed, mode: signed });
            }
            let mut in_force = Terms::of(device);
            if let Some(wanted) = &in_force {
                let step = Step::enforce(wanted.trial.as_ref());
                let stands = before.in_force.as_ref() == Some(wanted);
                if !stands && !agree(device, step) {
                    in_force = before.in_force.clone();
                    match &in_force {
                        Some(terms) => device.rollout.trial.clone_from(&terms.trial),
                        None => device.member.mode = Mode::Protect,
                    }
                    let mode = device.member.mode;
                    held_back.push(HeldBack { member, step, signed, mode });
                }
            }
            let own = known.filter(|known| known.member == member);
            let mut macs = own.map(|known| known.macs.clone()).unwrap_or_default();
            macs.retain(|mac| *mac != device.member.mac);
            macs.push(device.member.mac);
            let excess = macs.len().saturating_sub(MAX_ADDRESSES);
            macs.drain(..excess);
            demands.push(Demanded { member, macs, seen: at, in_force });
        }
        held_back.extend(spare_ports(intent));
        // Those that left are remembered for as long as there is room.
        let mut left: Vec<&Demanded> = self
            .devices
            .iter()
            .filter(|known| !here.contains(&known.member) && !waived.contains(&known.member))
            .collect();
        left.sort_by_key(|known| std::cmp::Reverse(known.seen));
        let room = MAX_REMEMBERED.saturating_sub(demands.len());
        demands.extend(left.into_iter().take(room).cloned());
        demands.sort_by_key(|known| known.member);
        Upheld { demands: Self { devices: demands }, held_back }
    }
}

/// Keeps every port at which a device stands that two operators decide on, and that isn't enforced, from being enforced by
/// another device there: a port has one mode, the strictest. Gives those that aren't as the leaf has them.
fn spare_ports(intent: &mut Intent) -> Vec<HeldBack> {
    let spared: BTreeSet<Name> = intent
        .devices
        .iter()
        .filter(|device| device.two_person && device.member.mode < Mode::Enforce)
        .map(|device| device.port.clone())
        .collect();
    let mut held_back = Vec::new();
    for device in &mut intent.devices {
        if device.member.mode < Mode::Enforce || !spared.contains(&device.port) {
            continue;
        }
        let (member, signed) = (device.member.id, device.member.mode);
        let step = Step::enforce(device.rollout.trial.as_ref());
        device.member.mode = Mode::Protect;
        held_back.push(HeldBack { member, step, signed, mode: Mode::Protect });
    }
    held_back
}

#[cfg(test)]
mod tests;
