//! Asking gateways to replace their tunnel keys, until they have.

use anteroom_proto::id::GatewayId;
use anteroom_proto::v1::{Rotate, ToAgent};

use super::Distribution;

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
