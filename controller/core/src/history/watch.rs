//! When gateways watched, and whom.
//!
//! What no gateway told may not have happened, or nobody may have looked. The days on which a device's own gateway reported
//! anything tell the two apart.

use std::collections::BTreeMap;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::time::UnixMillis;

use crate::model::Device;

const DAY: u64 = 86_400_000;

/// The days on which gateways reported, and the members of which they told. An edge adds one of each at most.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    gateways: BTreeMap<GatewayId, Rhythm>,
    /// First and last packet that a gateway told of a member behind it.
    members: BTreeMap<MemberId, BTreeMap<GatewayId, (UnixMillis, UnixMillis)>>,
}

impl Watch {
    pub(super) const fn new() -> Self {
        Self { gateways: BTreeMap::new(), members: BTreeMap::new() }
    }

    /// A gateway told of these days.
    pub(super) fn told(&mut self, gateway: GatewayId, when: &Rhythm) {
        self.gateways.entry(gateway).or_default().merge(when);
    }

    /// A gateway told of a member behind it.
    pub(super) fn told_of(
        &mut self,
        member: MemberId,
        gateway: GatewayId,
        (first, last): (UnixMillis, UnixMillis),
    ) {
        let by_gateway = self.members.entry(member).or_default();
        let span = by_gateway.entry(gateway).or_insert((first, last));
        *span = (span.0.min(first), span.1.max(last));
    }

    /// The newest day of which a gateway told, in days since 1970-01-01.
    #[must_use]
    pub fn newest_day(&self) -> Option<u32> {
        self.gateways.values().filter_map(Rhythm::newest_day).max()
    }

    /// The days on which `device`, which is member `id`, was watched, as bits counted back from `today`: bit 0 is `today`. A
    /// gateway watches the device that is behind it from what it first told of it on, or from when the device was confirmed if no other
    /// gateway ever told of it; one behind which it was before did so until what it last told of it.
    #[must_use]
    pub fn days_of(&self, id: MemberId, device: &Device, today: u32) -> u64 {
        let Some(by_gateway) = self.members.get(&id) else { return 0 };
        let alone = by_gateway.len() == 1;
        let day = |at: UnixMillis| u32::try_from(at.0 / DAY).unwrap_or(u32::MAX);
        let mut days = 0;
        for (gateway, (first, last)) in by_gateway {
            let here = device.attachment.gateway == *gateway;
            let since = if here && alone { device.confirmed_at.min(*first) } else { *first };
            let until = if here { today } else { day(*last).min(today) };
            let told = self.gateways.get(gateway).map_or(0, |told| told.days_before(today));
            days |= told & between(today - until, today.checked_sub(day(since)));
        }
        days
    }
}

/// The bits from `newest` to `oldest`; none where `oldest` is none, a day to come.
fn between(newest: u32, oldest: Option<u32>) -> u64 {
    let Some(oldest) = oldest else { return 0 };
    let up_to = |bit: u32| u64::MAX.checked_shl(bit).unwrap_or(0);
    up_to(newest) & !up_to(oldest.saturating_add(1))
}
