//! What peers claim for their devices.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::claim::{AddressClaim, MAX_ADDRESSES};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::key::PublicKey;

use super::{At, CHECKS_A_SECOND, Holdings, Refusal};
use crate::peer::message::{ClaimAnswer, ClaimOutcome};

/// What one device elsewhere holds.
#[derive(Debug)]
pub(super) struct Other {
    signer: PublicKey,
    claim: AddressClaim,
    pub(super) signed: Signed<AddressClaim>,
    /// What of the claim isn't somebody else's.
    pub(super) granted: Vec<Ipv4Addr>,
}

impl Other {
    pub(super) fn waits(&self) -> bool {
        self.granted.len() < self.claim.addresses.len()
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let waits = |address: &Ipv4Addr| !self.granted.contains(address);
        self.claim.addresses.iter().copied().filter(waits)
    }

    /// Whether a new view bears the claim out. Addresses that it no longer does are left out. Where the peer has another
    /// identity key by now, the claim stands until one by that takes its place: the device has the address all the same.
    pub(super) fn still_stands(&mut self, at: &At<'_>, member: MemberId) -> bool {
        let stands = at.owns(self.claim.gateway, member) && at.peer(self.claim.gateway).is_some();
        self.granted.retain(|address| at.may_hold(member, *address));
        stands
    }
}

/// What became of a peer's claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    /// What the peer is told. Nothing, where the claim isn't even its own.
    pub(crate) answer: Option<ClaimAnswer>,
    /// Whether somebody holds something else than before.
    pub(crate) changed: bool,
}

impl Taken {
    const NOTHING: Self = Self { answer: None, changed: false };

    fn new(claim: &AddressClaim, outcome: ClaimOutcome) -> Self {
        let (member, number) = (claim.member, claim.number);
        Self { answer: Some(ClaimAnswer { member, number, outcome }), changed: false }
    }
}

impl Holdings {
    /// Whether another claim of a peer may be checked within this second.
    pub(crate) fn may_check(&mut self, gateway: GatewayId, now: Instant) -> bool {
        let (began, count) = self.checked.entry(gateway).or_insert((now, 0));
        if now.saturating_duration_since(*began) >= Duration::from_secs(1) {
            (*began, *count) = (now, 0);
        }
        *count += 1;
        *count <= CHECKS_A_SECOND
    }

    /// How many peers' claims are counted.
    #[cfg(test)]
    pub(crate) fn counted(&self) -> usize {
        self.checked.len()
    }

    /// Takes a claim that `gateway` made, if it may make it and it isn't older than what is known.
    pub(crate) fn take(
        &mut self,
        at: &At<'_>,
        gateway: GatewayId,
        signed: &Signed<AddressClaim>,
    ) -> Taken {
        let Some(peer) = at.peer(gateway) else { return Taken::NOTHING };
        let known = self.others.values().find(|other| other.signed == *signed);
        let claim = match known {
            // Told again: its signature was checked the first time.
            Some(known) if known.signer == peer.identity => known.claim.clone(),
            _ => match signed.verify(at.organisation(), &[peer.identity]) {
                Ok(claim) => claim.into_document(),
                Err(error) => {
                    tracing::debug!(%gateway, %error, "a peer's claim isn't believed");
                    return Taken::NOTHING;
                }
            },
        };
        let member = claim.member;
        if claim.gateway != gateway {
            return Taken::NOTHING;
        }
        if !at.owns(gateway, member) || claim.addresses.len() > MAX_ADDRESSES {
            return Taken::new(&claim, ClaimOutcome::Refused);
        }
        let before = self.others.get(&member).filter(|other| other.claim.gateway == gateway);
        // What a replaced key has signed keeps nothing out that the new one signs, whatever its number.
        if let Some(before) = before.filter(|before| before.signer == peer.identity) {
            let same = before.signed == *signed;
            if before.claim.number > claim.number || (before.claim.number == claim.number && !same)
            {
                return Taken::new(&claim, ClaimOutcome::Stale(before.signed.clone()));
            }
        }
        let had = before.map(|before| before.granted.clone()).unwrap_or_default();
        let mut taken = Taken::new(&claim, ClaimOutcome::Refused);
        let signed = signed.clone();
        let other = Other { signer: peer.identity, claim, signed, granted: Vec::new() };
        self.by_address.retain(|_, holder| *holder != member);
        self.others.insert(member, other);
        let outcome = self.settle_other(at, member);
        if let Some(answer) = &mut taken.answer {
            answer.outcome = outcome;
        }
        let has = self.others.get(&member).map(|other| other.granted.clone()).unwrap_or_default();
        taken.changed = has != had;
        taken
    }

    /// Grants what can be granted of a claim.
    fn settle_other(&mut self, at: &At<'_>, member: MemberId) -> ClaimOutcome {
        let Some(other) = self.others.get(&member) else { return ClaimOutcome::Refused };
        let (mut granted, mut outcome) = (Vec::new(), ClaimOutcome::Held);
        for address in other.claim.addresses.clone() {
            match self.check(at, member, address) {
                Ok(()) if granted.contains(&address) => {}
                Ok(()) => {
                    self.by_address.insert(address, member);
                    granted.push(address);
                }
                Err(Refusal::NotIts) => outcome = ClaimOutcome::Refused,
                Err(refusal) => {
                    self.clash(member, address, refusal.clash().flatten());
                    outcome = ClaimOutcome::Conflict(address);
                }
            }
        }
        if let Some(other) = self.others.get_mut(&member) {
            other.granted = granted;
        }
        outcome
    }

    /// Gives a device elsewhere what it waits for, if that became free.
    pub(super) fn grant_other(&mut self, at: &At<'_>, member: MemberId) -> bool {
        let Some(other) = self.others.get(&member) else { return false };
        let free = |address: &Ipv4Addr| {
            !other.granted.contains(address) && self.check(at, member, *address).is_ok()
        };
        if !other.claim.addresses.iter().any(free) {
            return false;
        }
        self.settle_other(at, member);
        true
    }

    /// Gives up what peers claimed that have been silent for longer than the leases that they spoke of.
    pub(super) fn forget_silent(
        &mut self,
        at: &At<'_>,
        silent_since: impl Fn(GatewayId) -> Option<Instant>,
    ) -> bool {
        let before = self.others.len();
        self.others.retain(|_, other| {
            let silent = silent_since(other.claim.gateway);
            let silent = silent.map(|since| at.now.saturating_duration_since(since));
            match (silent, other.claim.lease_seconds) {
                (Some(silent), Some(lease)) => silent.as_secs() <= u64::from(lease),
                _ => true,
            }
        });
        let changed = self.others.len() != before;
        if changed {
            self.index();
        }
        changed
    }
}

impl At<'_> {
    /// Whether a member is behind this peer.
    fn owns(&self, gateway: GatewayId, member: MemberId) -> bool {
        let entry = self.policy.find(member).and_then(|index| self.policy.member(index));
        entry.is_some_and(|entry| entry.gateway == gateway && !entry.is_here())
    }
}
