//! Asking gateways to replace their tunnel keys, until they have.

use anteroom_proto::id::GatewayId;
use anteroom_proto::v1::{Rotate, ToAgent};

use super::{Distribution, TunnelEnds};

impl Distribution {
    /// Takes note of what operators want of a gateway, and asks it.
    pub(super) fn want_rotation(&mut self, gateway: GatewayId, rotate: Rotate) {
        let wanted = &mut self.known.entry(gateway).or_default().rotate;
        // As the store has it: what is to go at once isn't given more time by a later wish.
        let now = |before: &Rotate| before.up_to >= rotate.up_to && before.now;
        let now = rotate.now || wanted.as_ref().is_some_and(now);
        let up_to = wanted.map_or(0, |before| before.up_to).max(rotate.up_to);
        *wanted = Some(Rotate { up_to, now });
        self.ask_to_rotate(gateway);
    }

    /// What a gateway is to replace that comes with older keys than it had, as when it was put back from an image of its disk: peers
    /// take none below the newest that they have seen of it, and it has lost that one.
    pub(super) fn lost(&self, gateway: GatewayId, ends: &TunnelEnds) -> Option<Rotate> {
        let before = &self.known.get(&gateway)?.ends;
        let up_to = before.serials.iter().max().copied()?;
        let anew = before.signer != ends.signer;
        if anew || ends.serials.iter().any(|serial| *serial >= up_to) {
            return None;
        }
        tracing::warn!(%gateway, newest = up_to, "it has lost the newest of its tunnel keys: it is asked for another");
        Some(Rotate { up_to, now: false })
    }

    /// Asks a connected gateway, unless it has done it, or can't.
    pub(super) fn ask_to_rotate(&self, gateway: GatewayId) {
        let Some(known) = self.known.get(&gateway) else { return };
        let Some(rotate) = known.rotate else { return };
        let serials = &known.ends.serials;
        let newer = serials.iter().any(|serial| *serial > rotate.up_to);
        // In an emergency the old ones are to be gone, too.
        let done = newer && (!rotate.now || serials.iter().all(|serial| *serial > rotate.up_to));
        if !done && self.controller.online.rotates(gateway) {
            self.controller.online.send(gateway, ToAgent::Rotate(rotate));
        }
    }
}
