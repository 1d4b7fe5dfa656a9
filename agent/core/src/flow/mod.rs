//! Flows: who opened them, what was decided about them, and what passed.

mod chunks;
mod index;
mod interned;
mod key;
mod moment;
mod state;
mod table;

use anteroom_proto::id::{GatewayId, MemberId, RuleId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::verdict::Verdict;

use interned::Id;
pub(crate) use key::{FlowKey, Zone};
pub(crate) use moment::{Moment, Origin};
pub(crate) use state::{State, Tracker};
pub(crate) use table::{FlowIndex, FlowTable, Passed};

use crate::lane::pace::Pace;
use crate::peer::PeerSlot;
use crate::station::{Share, StationId};
use crate::wire::FiveTuple;

/// What was decided about a flow, and holds until the epoch changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Judgement {
    pub(crate) verdict: Verdict,
    /// The rule that allows it, or would if its conditions were met.
    pub(crate) rule: Option<RuleId>,
    /// The gateway at the other end of the tunnel, where the verdict is one.
    pub(crate) peer: Option<GatewayId>,
    /// The member at the other end, where there is one.
    pub(crate) remote: Option<MemberId>,
    /// The gateway that owns the member at the other end: its tunnel may deliver what passes, whatever path packets
    /// take from here.
    pub(crate) owner: Option<GatewayId>,
    /// Whether clear packets are taken, too, though an enforced device's path is the tunnel: the other end hasn't
    /// followed yet.
    pub(crate) clear_taken: bool,
}

impl Judgement {
    /// A verdict that has nothing to do with a peer.
    pub(crate) const fn of(verdict: Verdict, rule: Option<RuleId>) -> Self {
        Self { verdict, rule, peer: None, remote: None, owner: None, clear_taken: false }
    }
}

/// Packets and bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Count {
    pub(crate) const fn add(&mut self, packets: u64, bytes: u64) {
        self.packets = self.packets.saturating_add(packets);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// That a packet of one direction came through all stages, and what of it they looked at besides the flow's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proof {
    /// Void once what stages go by has another stamp.
    pub(crate) stamp: u64,
    /// The peer whose tunnel it took, or none.
    pub(crate) peer: PeerSlot,
    /// The Ethernet address at the other end, as the packet named it.
    pub(crate) mac: MacAddr,
}

/// Which way a packet goes, as its device has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// From the device.
    Leaving,
    /// To the device.
    Coming,
}

/// What a [`Proof`] has besides its stamp.
#[derive(Debug, Clone, Copy)]
struct Proven {
    peer: PeerSlot,
    mac: MacAddr,
}

impl Proven {
    const NOTHING: Self = Self { peer: PeerSlot::NONE, mac: MacAddr([0; 6]) };
}

/// Packets and bytes of one direction that weren't reported yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Few {
    packets: u32,
    bytes: u32,
}

/// What was counted of a flow since it was last reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct News {
    /// Whether the flow itself wasn't counted yet.
    pub(crate) opened: bool,
    /// From the initiator, and from the responder.
    pub(crate) counts: [Count; 2],
    pub(crate) first: Moment,
    pub(crate) last: Moment,
}

/// How a flow begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beginning {
    pub(crate) key: FlowKey,
    /// Whether the initiator is the key's lower end.
    pub(crate) initiator_low: bool,
    /// The device that the flow belongs to: of two, the initiator.
    pub(crate) station: StationId,
    /// Whose share of the table it uses up.
    pub(crate) share: Share,
    /// Whether the initiator is `station`.
    pub(crate) outbound: bool,
    pub(crate) judgement: Judgement,
    /// The epoch that the judgement belongs to.
    pub(crate) epoch: u64,
    pub(crate) tracker: Tracker,
    pub(crate) state: State,
    pub(crate) now: Moment,
}

/// A flow. There may be a million: what all of its kind have in common is kept once, and what each packet needs comes
/// first.
#[derive(Debug, Clone)]
#[repr(C)]
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    /// What the judgement says is to be done.
    pub(crate) verdict: Verdict,
    pub(crate) state: State,
    /// Whether the initiator is the key's lower end.
    initiator_low: bool,
    pub(crate) tracker: Tracker,
    /// Whether there is a proof of packets from the device, and to it.
    proven: [bool; 2],
    /// Whether the initiator is `station`.
    pub(crate) outbound: bool,
    /// Whether the flow itself wasn't reported yet.
    opened: bool,
    /// The device that the flow belongs to: of two, the initiator.
    pub(crate) station: StationId,
    /// Of both proofs.
    stamp: u64,
    /// When its last packet came.
    pub(crate) last: Moment,
    /// From the initiator, and from the responder, since they were last reported.
    unreported: [Few; 2],
    /// How much the device sends, and by which lane.
    pub(crate) pace: Pace,
    /// Of packets from the device, and of packets to it.
    proofs: [Proven; 2],
    /// The first packet that wasn't reported.
    first: Moment,
    /// The epoch that the judgement belongs to.
    pub(crate) epoch: u64,
    pub(crate) created: Moment,
    /// From the initiator, and from the responder, as they were reported.
    reported: [Count; 2],
    judgement: Id,
    /// Whose share of the table it uses up.
    pub(crate) share: Share,
}

/// Unreported bytes or packets of one direction from which on they are to be reported at once: far from where they
/// would run over.
const MANY: u32 = 1 << 31;

impl Flow {
    fn new(beginning: &Beginning, judgement: Id) -> Self {
        Self {
            key: beginning.key,
            verdict: beginning.judgement.verdict,
            state: beginning.state,
            initiator_low: beginning.initiator_low,
            tracker: beginning.tracker,
            proven: [false; 2],
            outbound: beginning.outbound,
            opened: true,
            stamp: 0,
            last: beginning.now,
            unreported: [Few::default(); 2],
            pace: Pace::default(),
            proofs: [Proven::NOTHING; 2],
            first: beginning.now,
            epoch: beginning.epoch,
            created: beginning.now,
            reported: [Count::default(); 2],
            judgement,
            share: beginning.share,
            station: beginning.station,
        }
    }

    /// The tuple of its first packet.
    pub(crate) const fn tuple(&self) -> FiveTuple {
        self.key.tuple(self.initiator_low)
    }

    /// Whether a packet in this direction of the key comes from the initiator.
    #[inline]
    pub(crate) const fn is_forward(&self, upwards: bool) -> bool {
        upwards == self.initiator_low
    }

    /// The other device, where both are here.
    pub(crate) const fn other(&self) -> Option<StationId> {
        self.key.zone().other(self.station)
    }

    /// What is proven of packets that go this way.
    #[inline]
    pub(crate) const fn proof(&self, side: Side) -> Option<Proof> {
        if !self.proven[side as usize] {
            return None;
        }
        let Proven { peer, mac } = self.proofs[side as usize];
        Some(Proof { stamp: self.stamp, peer, mac })
    }

    /// Leaves a proof for packets that go this way. One of the other way with another stamp is void then.
    pub(crate) fn prove(&mut self, side: Side, proof: Proof) {
        let Proof { stamp, peer, mac } = proof;
        if self.stamp != stamp {
            self.disprove();
        }
        self.stamp = stamp;
        self.proofs[side as usize] = Proven { peer, mac };
        self.proven[side as usize] = true;
    }

    /// Voids what was proven.
    fn disprove(&mut self) {
        self.proven = [false; 2];
    }

    /// From the initiator, and from the responder, since the flow began.
    pub(crate) fn totals(&self) -> [Count; 2] {
        let mut totals = self.reported;
        for (total, few) in totals.iter_mut().zip(self.unreported) {
            total.add(few.packets.into(), few.bytes.into());
        }
        totals
    }

    /// Whether its responder answers: with more than that it refuses.
    pub(crate) fn is_answered(&self) -> bool {
        match self.state {
            State::Established | State::Finished | State::Answered => true,
            State::HalfOpen | State::Reset => self.tracker.accepted(),
            State::Dropped | State::PickedUp | State::OneWay => false,
            State::Other => self.totals()[1].packets > 0,
        }
    }

    /// Whether there is something to be reported.
    fn has_news(&self) -> bool {
        self.opened || self.unreported.iter().any(|few| few.packets > 0)
    }

    /// Counts packets of one direction. Says whether they are to be reported at once.
    fn count(&mut self, passed: &Passed, now: Moment) -> bool {
        if self.unreported.iter().all(|few| few.packets == 0) {
            self.first = now;
        }
        let few = &mut self.unreported[usize::from(!passed.forward)];
        few.packets = few.packets.saturating_add(u32::try_from(passed.packets).unwrap_or(MANY));
        few.bytes = few.bytes.saturating_add(u32::try_from(passed.bytes).unwrap_or(MANY));
        few.packets.max(few.bytes) >= MANY
    }

    /// Takes back what was counted from a responder that refuses: whoever reads of packets both ways takes them for a conversation.
    const fn uncount_answer(&mut self) {
        self.unreported[1] = Few { packets: 0, bytes: 0 };
    }

    /// Takes out what was counted since the last time.
    pub(crate) fn take_news(&mut self) -> News {
        let counts = self
            .unreported
            .map(|few| Count { packets: few.packets.into(), bytes: few.bytes.into() });
        self.unreported = [Few::default(); 2];
        for (known, more) in self.reported.iter_mut().zip(counts) {
            known.add(more.packets, more.bytes);
        }
        let opened = std::mem::take(&mut self.opened);
        News { opened, counts, first: self.first, last: self.last }
    }
}
