//! What devices here hold: by lease, or by use.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::claim::{AddressClaim, MAX_ADDRESSES};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, MemberId};

use super::{At, Holdings, Refusal, Told};
use crate::table::Map;

/// How long an address must have been silent before its device may turn to another by using it.
const TURNED: Duration = Duration::from_secs(30);
/// How long an address outlives its lease each time that its device was heard with it: some clients are late.
const LATE: Duration = Duration::from_secs(300);
/// How often a device may come to hold something else, once it has done so [`AT_ONCE`] times at once. Each time costs
/// a signature here and a check at each peer that is told.
const PACE: Duration = Duration::from_secs(1);
/// How many changes a device may make at once: one for each address that it may hold.
const AT_ONCE: u32 = MAX_ADDRESSES as u32;

/// A lease of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    seconds: u32,
    until: Instant,
}

/// An address of a device here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    address: Ipv4Addr,
    lease: Option<Lease>,
    /// When the device was last heard with it.
    used: Instant,
    /// False while somebody else has it: it waits.
    granted: bool,
}

/// What one device here holds, and who was told.
#[derive(Debug)]
pub(super) struct Own {
    held: Vec<Held>,
    /// The newest claim.
    pub(super) claim: Option<Signed<AddressClaim>>,
    pub(super) number: u64,
    pub(super) told: Map<GatewayId, Told>,
    pub(super) reported: bool,
    pace: Pace,
}

/// What a device may still change.
#[derive(Debug, Clone, Copy)]
struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, since: now }
    }

    /// Whether another change may be made now, which it then is.
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_secs() / PACE.as_secs();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        let left = self.left.saturating_add(passed).min(AT_ONCE);
        if passed > 0 {
            self.since = if left == AT_ONCE { now } else { self.since + PACE * passed };
        }
        self.left = left.saturating_sub(1);
        left > 0
    }
}

impl Own {
    pub(super) fn granted(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.held.iter().filter(|held| held.granted).map(|held| held.address)
    }

    pub(super) fn waits(&self) -> bool {
        self.held.iter().any(|held| !held.granted)
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.held.iter().filter(|held| !held.granted).map(|held| held.address)
    }

    /// For how long the claim is to stand once this gateway is silent.
    fn lease_seconds(&self) -> Option<u32> {
        let leases = self.held.iter().filter(|held| held.granted).map(|held| held.lease);
        let seconds: Option<Vec<u32>> = leases.map(|lease| Some(lease?.seconds)).collect();
        seconds.and_then(|seconds| seconds.into_iter().max())
    }
}

/// What is known of how a device uses an address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    pub(crate) address: Ipv4Addr,
    /// Whether using an address is enough to have it: in observe, and where no server gives addresses.
    pub(crate) suffices: bool,
    /// Whether the device is only watched, so that even a lease doesn't bind it.
    pub(crate) watched: bool,
}

impl Holdings {
    /// A device used an address that it doesn't hold. Returns whether it holds it now.
    ///
    /// The first address of a device that nothing is known of is believed in every mode: its lease may be older
    /// than this gateway's memory.
    pub(crate) fn used(&mut self, at: &At<'_>, member: MemberId, seen: Use) -> bool {
        if at.own(member).is_none() {
            return false;
        }
        if self.check(at, member, seen.address).is_err() {
            return false;
        }
        if let Some(own) = self.own.get(&member) {
            let prefix = at.prefix_of(member, seen.address);
            let before = own.held.iter().find(|held| at.prefix_of(member, held.address) == prefix);
            let turned = before.is_none_or(|held| {
                let silent = at.now.saturating_duration_since(held.used) >= TURNED;
                silent && (held.lease.is_none() || seen.watched)
            });
            if !(seen.suffices && turned) {
                return false;
            }
        }
        self.hold(
            at,
            member,
            Held { address: seen.address, lease: None, used: at.now, granted: false },
        )
    }

    /// A device was heard with an address that it holds.
    pub(crate) fn heard(&mut self, member: MemberId, address: Ipv4Addr, now: Instant) {
        let Some(own) = self.own.get_mut(&member) else { return };
        if let Some(held) = own.held.iter_mut().find(|held| held.address == address) {
            held.used = now;
        }
    }

    /// A listed server gave a device an address. Returns whether anything changed for others.
    pub(crate) fn leased(
        &mut self,
        at: &At<'_>,
        member: MemberId,
        address: Ipv4Addr,
        seconds: u32,
    ) -> bool {
        if at.own(member).is_none() {
            return false;
        }
        match self.check(at, member, address) {
            // Pinned for it, or outside its prefixes: the view knows better.
            Err(Refusal::NotIts) => return false,
            Err(Refusal::Taken(Some(holder))) if holder == member => return false,
            // Whoever it is that it was taken from goes on having it, and so does this device with what it has.
            Err(Refusal::Reserved) => {
                self.clash(member, address, None);
                return false;
            }
            Err(Refusal::Taken(holder)) => {
                let may = at.policy.find(member).and_then(|index| at.policy.member(index));
                if !may.is_some_and(|entry| entry.may_hold(address)) {
                    return false;
                }
                self.clash(member, address, holder);
                // Whoever gave it can't take away what the device has by it. One that has nothing waits.
                let prefix = at.prefix_of(member, address);
                let has =
                    |held: &Held| held.granted && at.prefix_of(member, held.address) == prefix;
                if self.own.get(&member).is_some_and(|own| own.held.iter().any(has)) {
                    return false;
                }
            }
            Ok(()) => {}
        }
        let until = at.now.checked_add(Duration::from_secs(u64::from(seconds))).unwrap_or(at.now);
        let lease = Some(Lease { seconds, until });
        self.hold(at, member, Held { address, lease, used: at.now, granted: false })
    }

    /// A device gave an address back, declined it, or a server took it away.
    pub(crate) fn released(&mut self, at: &At<'_>, member: MemberId, address: Ipv4Addr) -> bool {
        let Some(own) = self.own.get_mut(&member) else { return false };
        let before = own.held.len();
        own.held.retain(|held| held.address != address);
        own.held.len() != before && self.restate(at, member)
    }

    /// A server took away whatever a device has leased.
    pub(crate) fn refused(&mut self, at: &At<'_>, member: MemberId) -> bool {
        let Some(own) = self.own.get_mut(&member) else { return false };
        let before = own.held.len();
        own.held.retain(|held| held.lease.is_none());
        own.held.len() != before && self.restate(at, member)
    }

    /// Puts an address in the place of the one that the device had within the same prefix.
    fn hold(&mut self, at: &At<'_>, member: MemberId, new: Held) -> bool {
        let number = self.number;
        let map = Map::with_hasher(self.own.hasher().clone());
        let own = self.own.entry(member).or_insert_with(|| Own {
            held: Vec::new(),
            claim: None,
            number,
            told: map,
            reported: false,
            pace: Pace::new(at.now),
        });
        let had = own.lease_seconds();
        if let Some(same) = own.held.iter_mut().find(|held| held.address == new.address) {
            // A renewal is news for nobody, unless it is for another time.
            *same = Held { granted: same.granted, ..new };
            let news = !same.granted || own.lease_seconds() != had;
            if !(news && own.pace.take(at.now)) {
                return false;
            }
        } else {
            // Giving up needs no leave: it takes as many changes to have something to give up.
            if !own.pace.take(at.now) {
                return false;
            }
            let prefix = at.prefix_of(member, new.address);
            own.held.retain(|held| at.prefix_of(member, held.address) != prefix);
            if own.held.len() >= MAX_ADDRESSES {
                own.held.remove(0);
            }
            own.held.push(new);
        }
        self.restate(at, member)
    }

    /// Grants what can be granted, and signs what is so now.
    fn restate(&mut self, at: &At<'_>, member: MemberId) -> bool {
        self.by_address.retain(|_, holder| *holder != member);
        let Some(own) = self.own.get(&member) else { return false };
        let mut held = own.held.clone();
        for one in &mut held {
            one.granted = self.check(at, member, one.address).is_ok();
            if one.granted {
                self.by_address.insert(one.address, member);
            }
        }
        let Some(own) = self.own.get_mut(&member) else { return false };
        own.held = held;
        self.sign(at, member);
        true
    }

    pub(super) fn sign(&mut self, at: &At<'_>, member: MemberId) {
        // The time keeps numbers above those of a run that was forgotten; nothing depends on it.
        self.number = self.number.saturating_add(1).max(at.wall.0);
        let Some(own) = self.own.get_mut(&member) else { return };
        let claim = AddressClaim {
            organisation: at.organisation(),
            gateway: self.gateway,
            member,
            number: self.number,
            addresses: own.granted().collect(),
            lease_seconds: own.lease_seconds(),
        };
        own.number = self.number;
        own.claim = Some(Signed::sign(&claim, &self.key));
        own.reported = false;
        own.address(at, member);
        for told in own.told.values_mut() {
            told.again(at.now);
        }
        self.due = Some(at.now);
    }

    /// Gives up what a new view doesn't let a device have.
    pub(super) fn review_own(&mut self, at: &At<'_>, member: MemberId) {
        let Some(own) = self.own.get_mut(&member) else { return };
        let before = own.held.len();
        own.held.retain(|held| at.may_hold(member, held.address));
        if own.held.len() != before {
            self.restate(at, member);
        }
    }

    /// Gives a device what it waits for, if that became free.
    pub(super) fn grant_own(&mut self, at: &At<'_>, member: MemberId) -> bool {
        let Some(own) = self.own.get(&member) else { return false };
        let free = |held: &&Held| !held.granted && self.check(at, member, held.address).is_ok();
        own.held.iter().any(|held| free(&held)) && self.restate(at, member)
    }

    /// Ends leases that ran out, but of devices that are still heard with the address.
    pub(super) fn end_leases(&mut self, at: &At<'_>) -> bool {
        let mut ended = Vec::new();
        for (member, own) in &mut self.own {
            let before = own.held.len();
            own.held.retain_mut(|held| {
                let Some(lease) = held.lease.filter(|lease| lease.until <= at.now) else {
                    return true;
                };
                held.lease = Some(Lease { until: at.now + LATE, ..lease });
                held.granted && at.now.saturating_duration_since(held.used) < LATE
            });
            if own.held.len() != before {
                ended.push(*member);
            }
        }
        for member in &ended {
            self.restate(at, *member);
        }
        !ended.is_empty()
    }

    /// A claim of this gateway's earlier run.
    pub(super) fn take_back_own(
        &mut self,
        at: &At<'_>,
        claim: &AddressClaim,
        signed: Signed<AddressClaim>,
    ) {
        self.number = self.number.max(claim.number);
        let member = claim.member;
        if at.own(member).is_none() || self.own.contains_key(&member) {
            return;
        }
        let granted: Vec<Ipv4Addr> = claim.addresses.iter().copied().take(MAX_ADDRESSES).collect();
        let all = granted.iter().all(|address| self.check(at, member, *address).is_ok());
        let lease = claim.lease_seconds.map(|seconds| Lease {
            seconds,
            // How much of it has passed isn't known. The device knows, and renews it.
            until: at.now + Duration::from_secs(u64::from(seconds)),
        });
        let held = granted
            .into_iter()
            .filter(|address| at.may_hold(member, *address))
            .map(|address| Held { address, lease, used: at.now, granted: true });
        let own = Own {
            held: held.collect(),
            claim: Some(signed),
            number: claim.number,
            told: Map::with_hasher(self.own.hasher().clone()),
            reported: false,
            pace: Pace::new(at.now),
        };
        for address in own.granted() {
            self.by_address.entry(address).or_insert(member);
        }
        self.own.insert(member, own);
        if !all {
            self.restate(at, member);
        }
    }
}
