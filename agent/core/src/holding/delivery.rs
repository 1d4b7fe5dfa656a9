//! Telling peers: each claim goes to each gateway that shares a rule with the device, until that one has answered.

use std::time::{Duration, Instant};

use anteroom_proto::claim::AddressClaim;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{BootId, GatewayId, MemberId};
use anteroom_proto::key::IdentityKey;

use super::own::Own;
use super::{At, Holdings, LOOK};
use crate::peer::message::{ClaimAnswer, ClaimOutcome};

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Most claims that are told at once; the others follow with the next look.
const BURST: usize = 256;

/// How far the telling of one claim to one peer has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// None: it has the newest claim.
    next: Option<Instant>,
    pause: Duration,
    /// The peer's run that has it. Another run may have lost it.
    boot: Option<BootId>,
}

impl Told {
    const fn untold(now: Instant) -> Self {
        Self { next: Some(now), pause: LOOK, boot: None }
    }

    /// Begins anew.
    pub(super) fn again(&mut self, now: Instant) {
        *self = Self { boot: self.boot, ..Self::untold(now) };
    }
}

/// A claim that is to be told now.
#[derive(Debug, Clone)]
pub(crate) struct Due {
    pub(crate) gateway: GatewayId,
    pub(crate) claim: Signed<AddressClaim>,
}

impl Own {
    /// Finds out who is to be told: gateways with a member that shares a rule with the device.
    pub(super) fn address(&mut self, at: &At<'_>, member: MemberId) {
        let Some(index) = at.own(member) else { return };
        let audience = at.policy.audience(index);
        self.told.retain(|gateway, _| audience.contains(gateway));
        for gateway in audience {
            self.told.entry(gateway).or_insert(Told::untold(at.now));
        }
    }
}

impl Holdings {
    /// Finds out anew who is to be told of which device: a view says who shares a rule with it.
    pub(super) fn address_peers(&mut self, at: &At<'_>) {
        for (member, own) in &mut self.own {
            own.address(at, *member);
        }
    }

    /// Signs claims with another key from now on.
    pub(crate) fn set_key(&mut self, key: IdentityKey) {
        self.key = key;
    }

    /// The same, and claims that stand are signed anew and told again: what peers hold by the key before goes on until
    /// they have heard.
    pub(crate) fn sign_anew(&mut self, at: &At<'_>, key: IdentityKey) {
        self.key = key;
        let claimed = self.own.iter().filter(|(_, own)| own.claim.is_some());
        let claimed: Vec<MemberId> = claimed.map(|(member, _)| *member).collect();
        for member in claimed {
            self.sign(at, member);
        }
    }

    /// When there is something to tell.
    pub(crate) const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// A peer came up, or began a new run: it is told at once what it may not know.
    pub(crate) fn peer_is_up(&mut self, gateway: GatewayId, boot: Option<BootId>, now: Instant) {
        for own in self.own.values_mut() {
            let Some(told) = own.told.get_mut(&gateway) else { continue };
            if told.next.is_some() || told.boot != boot {
                told.again(now);
                self.due = Some(now);
            }
        }
    }

    /// Whether a peer runs anew since it was told something: it may have forgotten that.
    pub(crate) fn is_new_run(&self, gateway: GatewayId, boot: Option<BootId>) -> bool {
        self.own.values().any(|own| {
            let told = own.told.get(&gateway);
            told.is_some_and(|told| told.next.is_none() && told.boot != boot)
        })
    }

    /// What is to be told now to peers that are up.
    pub(crate) fn take_due(&mut self, at: &At<'_>, up: impl Fn(GatewayId) -> bool) -> Vec<Due> {
        let (mut due, mut next) = (Vec::new(), None);
        for own in self.own.values_mut() {
            let Some(claim) = &own.claim else { continue };
            for (gateway, told) in &mut own.told {
                let Some(when) = told.next else { continue };
                if when <= at.now && up(*gateway) && due.len() < BURST {
                    due.push(Due { gateway: *gateway, claim: claim.clone() });
                    told.next = Some(at.now + told.pause);
                    told.pause = (told.pause * 2).min(LONGEST_PAUSE);
                }
                let when = told.next.unwrap_or(when).max(at.now + LOOK);
                next = Some(next.map_or(when, |next: Instant| next.min(when)));
            }
        }
        self.due = next;
        due
    }

    /// A peer's answer to a claim. Returns whether this gateway's claims had to be signed anew.
    pub(crate) fn answered(
        &mut self,
        at: &At<'_>,
        (gateway, boot): (GatewayId, Option<BootId>),
        answer: ClaimAnswer,
    ) -> bool {
        let member = answer.member;
        let current = |number| self.own.get(&member).is_some_and(|own| own.number == number);
        match answer.outcome {
            ClaimOutcome::Held if current(answer.number) => {
                if let Some(told) =
                    self.own.get_mut(&member).and_then(|own| own.told.get_mut(&gateway))
                {
                    *told = Told { next: None, pause: LOOK, boot };
                }
                false
            }
            ClaimOutcome::Conflict(address) if current(answer.number) => {
                let held = self.of(member).any(|held| held == address);
                if held {
                    self.clash(member, address, None);
                }
                false
            }
            ClaimOutcome::Stale(newer) => self.catch_up(at, member, &newer),
            // Views differ for a while. It is told again.
            _ => false,
        }
    }

    /// A peer holds a newer claim of this gateway than it knows of: an earlier run was forgotten.
    fn catch_up(&mut self, at: &At<'_>, member: MemberId, newer: &Signed<AddressClaim>) -> bool {
        let Ok(claim) = newer.verify(at.organisation(), &[self.key.public()]) else { return false };
        let older = self.own.get(&member).is_none_or(|own| claim.number < own.number);
        if claim.gateway != self.gateway || claim.member != member || older {
            return false;
        }
        self.number = self.number.max(claim.number);
        self.sign(at, member);
        true
    }
}
