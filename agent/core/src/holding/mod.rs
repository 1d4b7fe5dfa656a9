//! Holdings: who has which of the addresses that are dynamic within a prefix.
//!
//! A device here comes to hold an address by a lease that a listed server gave it, or by using it first. Its gateway
//! signs that as a claim and tells the peers that share a rule with the device; what peers claim for theirs is taken
//! after the same checks. Whoever holds an address keeps it until it is given up: no one else's word takes it away.

mod delivery;
mod other;
mod own;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anteroom_proto::claim::AddressClaim;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, MemberId, OrganisationId};
use anteroom_proto::intent::PeerGateway;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::time::UnixMillis;

use ipnet::Ipv4Net;

use crate::policy::{MemberIndex, Policy};
use crate::table::{Map, Seeds};
use delivery::Told;
use other::Other;
use own::Own;
pub(crate) use own::Use;

/// How often ends of leases and untold claims are looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// Most claims that are kept over a restart; of more, peers tell theirs again.
const MAX_KEPT: usize = 8_192;
/// How often addresses that somebody waits for are named to people.
const NAMED: Duration = Duration::from_secs(60);
/// Most clashes between two looks.
const MAX_CLASHES: usize = 64;
/// Most claims of one peer whose signatures are checked within a second.
const CHECKS_A_SECOND: u32 = 64;

/// All holdings that one gateway knows of.
#[derive(Debug)]
pub(crate) struct Holdings {
    gateway: GatewayId,
    key: IdentityKey,
    /// The highest number of a claim of this gateway.
    number: u64,
    own: Map<MemberId, Own>,
    others: Map<MemberId, Other>,
    by_address: Map<Ipv4Addr, MemberId>,
    /// What an earlier run knew, until a view tells what of it counts.
    restored: Vec<Signed<AddressClaim>>,
    /// Addresses that were refused since somebody last asked.
    clashes: Vec<Clash>,
    /// When those that wait were last named.
    named: Option<Instant>,
    /// Claims of each peer that were checked within the second that began then.
    checked: Map<GatewayId, (Instant, u32)>,
    due: Option<Instant>,
}

/// Where and when something happens: what every change must know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) policy: &'a Policy,
    /// Addresses of this gateway itself.
    pub(crate) own_addresses: &'a [IpAddr],
    pub(crate) now: Instant,
    pub(crate) wall: UnixMillis,
}

impl At<'_> {
    fn organisation(&self) -> OrganisationId {
        self.policy.view.intent.organisation
    }

    fn peer(&self, gateway: GatewayId) -> Option<&PeerGateway> {
        let peers = &self.policy.view.peers;
        peers.iter().map(|peer| &peer.gateway).find(|peer| peer.gateway == gateway)
    }

    /// The member, where it is a device of this gateway.
    fn own(&self, member: MemberId) -> Option<MemberIndex> {
        let index = self.policy.find(member)?;
        self.policy.member(index)?.is_here().then_some(index)
    }

    /// Whether operators let a member have an address: it lies within a prefix of its own, and they named nobody
    /// else who has it.
    fn may_hold(&self, member: MemberId, address: Ipv4Addr) -> bool {
        self.prefix_of(member, address).is_some_and(|within| {
            !self.policy.is_pinned(address) && !self.is_reserved(within, address)
        })
    }

    /// Whether an address is this gateway's, or a server's, router's or external's.
    fn is_reserved(&self, within: Ipv4Net, address: Ipv4Addr) -> bool {
        self.own_addresses.contains(&address.into()) || self.policy.is_reserved(within, address)
    }

    /// The prefix within which a member may have an address.
    fn prefix_of(&self, member: MemberId, address: Ipv4Addr) -> Option<Ipv4Net> {
        let entry = self.policy.find(member).and_then(|index| self.policy.member(index))?;
        entry.prefix_of(address)
    }
}

/// An address that a member was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clash {
    pub(crate) member: MemberId,
    pub(crate) address: Ipv4Addr,
    /// Who has it, where that is known.
    pub(crate) holder: Option<MemberId>,
}

/// Why an address isn't held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Operators don't let the member have it.
    NotIts,
    /// This member has it.
    Taken(Option<MemberId>),
    /// It is this gateway's, or a server's, router's or external's.
    Reserved,
}

impl Refusal {
    /// Who has the address, where somebody is known to. None: there is nothing for people to settle.
    const fn clash(self) -> Option<Option<MemberId>> {
        match self {
            Self::NotIts => None,
            Self::Taken(holder) => Some(holder),
            Self::Reserved => Some(None),
        }
    }
}

impl Holdings {
    /// Nobody holds anything.
    pub(crate) fn new(gateway: GatewayId, key: IdentityKey, seeds: &mut Seeds) -> Self {
        Self {
            gateway,
            key,
            number: 0,
            own: seeds.map(),
            others: seeds.map(),
            by_address: seeds.map(),
            restored: Vec::new(),
            clashes: Vec::new(),
            named: None,
            checked: seeds.map(),
            due: None,
        }
    }

    /// What a member holds.
    pub(crate) fn of(&self, member: MemberId) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let own = self.own.get(&member).into_iter().flat_map(Own::granted);
        let other = self.others.get(&member).into_iter().flat_map(|other| other.granted.clone());
        own.chain(other)
    }

    /// Everything that is held, and by whom.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Ipv4Addr, MemberId)> + '_ {
        self.by_address.iter().map(|(address, member)| (*address, *member))
    }

    /// Whether `member` can have `address` now.
    fn check(&self, at: &At<'_>, member: MemberId, address: Ipv4Addr) -> Result<(), Refusal> {
        if at.policy.is_pinned(address) {
            let holder = at.policy.at(address).and_then(|index| at.policy.member(index));
            return Err(Refusal::Taken(holder.map(|holder| holder.id)));
        }
        let within = at.prefix_of(member, address).ok_or(Refusal::NotIts)?;
        if at.is_reserved(within, address) {
            return Err(Refusal::Reserved);
        }
        match self.by_address.get(&address) {
            Some(holder) if *holder != member => Err(Refusal::Taken(Some(*holder))),
            _ => Ok(()),
        }
    }

    /// Takes over a view: what it doesn't bear out any longer is given up. Returns whether anything changed.
    pub(crate) fn reconcile(&mut self, at: &At<'_>) -> bool {
        let before: Vec<(Ipv4Addr, MemberId)> = self.all().collect();
        let gone: Vec<MemberId> =
            self.own.keys().filter(|member| at.own(**member).is_none()).copied().collect();
        for member in gone {
            self.own.remove(&member);
        }
        let own: Vec<MemberId> = self.own.keys().copied().collect();
        for member in own {
            self.review_own(at, member);
        }
        self.others.retain(|member, other| other.still_stands(at, *member));
        self.checked.retain(|gateway, _| at.peer(*gateway).is_some());
        self.index();
        for signed in std::mem::take(&mut self.restored) {
            self.take_back(at, signed);
        }
        self.grant_waiting(at);
        self.address_peers(at);
        self.due = Some(at.now);
        let mut after: Vec<(Ipv4Addr, MemberId)> = self.all().collect();
        let mut before = before;
        before.sort_unstable();
        after.sort_unstable();
        before != after
    }

    /// Finds anew who has which address.
    fn index(&mut self) {
        self.by_address.clear();
        let own = self.own.iter().flat_map(|(id, own)| own.granted().map(|a| (a, *id)));
        let others = self
            .others
            .iter()
            .flat_map(|(id, other)| other.granted.iter().map(|address| (*address, *id)));
        let all: Vec<(Ipv4Addr, MemberId)> = own.chain(others).collect();
        for (address, member) in all {
            self.by_address.entry(address).or_insert(member);
        }
    }

    /// Gives addresses that became free to whoever waits for them. Returns whether anything changed.
    fn grant_waiting(&mut self, at: &At<'_>) -> bool {
        let mut changed = false;
        let own: Vec<MemberId> =
            self.own.iter().filter(|(_, own)| own.waits()).map(|(id, _)| *id).collect();
        for member in own {
            changed |= self.grant_own(at, member);
        }
        let others: Vec<MemberId> =
            self.others.iter().filter(|(_, other)| other.waits()).map(|(id, _)| *id).collect();
        for member in others {
            changed |= self.grant_other(at, member);
        }
        changed
    }

    /// Ends leases, forgets what silent peers claimed, and passes on what became free. Returns whether anything
    /// changed.
    pub(crate) fn look(
        &mut self,
        at: &At<'_>,
        silent_since: impl Fn(GatewayId) -> Option<Instant>,
    ) -> bool {
        let mut changed = self.end_leases(at);
        changed |= self.forget_silent(at, silent_since);
        changed |= self.grant_waiting(at);
        if self.named.is_none_or(|at_last| at.now.saturating_duration_since(at_last) >= NAMED) {
            self.named = Some(at.now);
            self.name_waiting(at);
        }
        changed
    }

    fn clash(&mut self, member: MemberId, address: Ipv4Addr, holder: Option<MemberId>) {
        let clash = Clash { member, address, holder };
        if self.clashes.len() < MAX_CLASHES && !self.clashes.contains(&clash) {
            self.clashes.push(clash);
        }
    }

    /// What was refused since the last call, for people to settle.
    pub(crate) fn take_clashes(&mut self) -> Vec<Clash> {
        std::mem::take(&mut self.clashes)
    }

    fn name_waiting(&mut self, at: &At<'_>) {
        let own = self.own.iter().flat_map(|(id, own)| own.waiting().map(|a| (*id, a)));
        let others = self.others.iter().flat_map(|(id, other)| other.waiting().map(|a| (*id, a)));
        let waiting: Vec<(MemberId, Ipv4Addr)> = own.chain(others).take(MAX_CLASHES).collect();
        for (member, address) in waiting {
            let refusal = self.check(at, member, address).err();
            if let Some(holder) = refusal.and_then(Refusal::clash) {
                self.clash(member, address, holder);
            }
        }
    }

    /// All claims that are worth keeping over a restart. Those that wait for an address come last, so that whoever
    /// has it has it afterwards.
    pub(crate) fn claims(&self) -> Vec<Signed<AddressClaim>> {
        let own = self.own.values().filter_map(|own| Some((0, own.claim.clone()?)));
        let others =
            self.others.values().map(|other| (1 + u8::from(other.waits()), other.signed.clone()));
        let mut claims: Vec<_> = own.chain(others).take(MAX_KEPT).collect();
        claims.sort_by(|a, b| (a.0, a.1.as_bytes()).cmp(&(b.0, b.1.as_bytes())));
        // Before the first view nobody knows which of them count.
        self.restored.iter().cloned().chain(claims.into_iter().map(|claim| claim.1)).collect()
    }

    /// Takes back what an earlier run knew. It counts from the next view on, as far as that bears it out.
    pub(crate) fn restore(&mut self, claims: Vec<Signed<AddressClaim>>) {
        self.restored = claims;
        self.restored.truncate(MAX_KEPT);
    }

    /// A claim of an earlier run: checked as if it came anew, since files can be written by others.
    fn take_back(&mut self, at: &At<'_>, signed: Signed<AddressClaim>) {
        let organisation = at.organisation();
        if let Ok(claim) = signed.verify(organisation, &[self.key.public()])
            && claim.gateway == self.gateway
        {
            self.take_back_own(at, &claim, signed);
            return;
        }
        let signer = at.policy.view.peers.iter().map(|peer| peer.gateway.identity);
        let signers: Vec<_> = signer.collect();
        if let Ok(claim) = signed.verify(organisation, &signers) {
            let gateway = claim.gateway;
            self.take(at, gateway, &signed);
        }
    }

    /// Devices here whose claims changed since the last call.
    pub(crate) fn take_news(&mut self) -> Vec<MemberId> {
        let news = self.own.iter_mut().filter(|(_, own)| !own.reported);
        news.map(|(member, own)| {
            own.reported = true;
            *member
        })
        .collect()
    }

    /// The newest claim for a device here.
    pub(crate) fn claim_of(&self, member: MemberId) -> Option<&Signed<AddressClaim>> {
        self.own.get(&member)?.claim.as_ref()
    }
}
