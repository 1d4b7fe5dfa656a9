//! Replacing identity keys: what gateways are asked, what they offered, and which of their tunnel keys peers are told.
//!
//! Peers believe a tunnel key where the identity key in their own leaf signed it. So from the revision on that names the
//! new key they are told the bindings that came with the offer, until the gateway itself comes with the new key.

use anteroom_proto::api::RekeyState;
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, OrganisationId};
use anteroom_proto::key::PublicKey;
use anteroom_proto::rekey::{RekeyOffer, RekeyOrder};
use anteroom_proto::v1::ToAgent;

use super::{Distribution, Known};

/// A replacement that isn't done.
#[derive(Debug)]
pub(super) struct Rekey {
    order: Signed<RekeyOrder>,
    offered: Option<Offered>,
}

/// What a gateway offered.
#[derive(Debug, PartialEq, Eq)]
struct Offered {
    new: PublicKey,
    /// Its tunnel keys for other gateways, bound by that key.
    keys: Vec<Signed<TunnelKeyBinding>>,
}

impl Offered {
    /// Of an offer that was checked when it came.
    fn of(offer: &RekeyOffer) -> Option<Self> {
        let new = offer.new_key()?;
        let for_gateways = |key: &&Signed<TunnelKeyBinding>| {
            key.verify_self_named().is_ok_and(|binding| !binding.is_for_clients())
        };
        Some(Self { new, keys: offer.keys.iter().filter(for_gateways).cloned().collect() })
    }
}

impl Rekey {
    /// As the store has it.
    pub(super) fn stored(state: RekeyState) -> Self {
        let offered = state.offer.as_ref().and_then(Offered::of);
        Self { order: state.order, offered }
    }
}

impl Known {
    /// The tunnel keys that a peer is told whose leaf names this gateway by `identity`.
    pub(super) fn keys_by(&self, identity: PublicKey) -> &[Signed<TunnelKeyBinding>] {
        let offered = self.rekey.as_ref().and_then(|rekey| rekey.offered.as_ref());
        match offered {
            Some(offered) if offered.new == identity && self.ends.signer != Some(identity) => {
                &offered.keys
            }
            _ => &self.ends.keys,
        }
    }
}

impl Distribution {
    /// Takes note of an order, and passes it on.
    pub(super) fn want_rekey(&mut self, gateway: GatewayId, order: Signed<RekeyOrder>) {
        self.known.entry(gateway).or_default().rekey = Some(Rekey { order, offered: None });
        self.ask_to_rekey(gateway);
    }

    /// Passes the order on to a connected gateway that can follow it.
    pub(super) fn ask_to_rekey(&mut self, gateway: GatewayId) {
        let Some(rekey) = self.known.get(&gateway).and_then(|known| known.rekey.as_ref()) else {
            return;
        };
        let Some(chain) = self.controller.authority() else { return };
        let (order, newest) = (rekey.order.clone(), chain.newest());
        // Nobody follows an order of somebody who is no operator any more.
        let stands = order.verify(newest.organisation, &newest.operator_keys()).is_ok();
        if stands && self.controller.online.rekeys(gateway) {
            // Whoever signed it may be an operator by the newest document alone.
            self.inform(gateway, &chain);
            self.controller.online.send(gateway, ToAgent::Rekey(Box::new(order)));
        }
    }

    /// Takes note of what a gateway offers.
    pub(super) fn take_offer(&mut self, gateway: GatewayId, offer: &RekeyOffer) {
        let Some(rekey) = self.known.get_mut(&gateway).and_then(|known| known.rekey.as_mut())
        else {
            return;
        };
        let offered = Offered::of(offer);
        if rekey.offered != offered {
            rekey.offered = offered;
            // Peers are told nothing of it before it is approved.
            let current = self.controller.current();
            let new = offer.new_key();
            if new.is_some_and(|new| current.is_some_and(|now| now.approves(gateway, new))) {
                self.touch_peers(gateway);
            }
        }
    }

    /// A gateway has connected: where it came with the key that it offered, that is done.
    pub(super) fn end_rekey(&mut self, gateway: GatewayId) {
        let identity = self.controller.online.identity(gateway);
        let Some(known) = self.known.get_mut(&gateway) else { return };
        let offered = known.rekey.as_ref().and_then(|rekey| rekey.offered.as_ref());
        if offered.is_some_and(|offered| Some(offered.new) == identity) {
            known.rekey = None;
        }
    }
}

/// What a gateway offers, where it was asked for that: `order` is the newest, `identity` the key that it has.
///
/// # Errors
/// A sentence on what doesn't fit.
pub fn check_offer(
    organisation: OrganisationId,
    gateway: GatewayId,
    identity: PublicKey,
    order: &Signed<RekeyOrder>,
    offer: &RekeyOffer,
) -> Result<(), String> {
    let stated =
        offer.verify(organisation, gateway, identity).map_err(|error| error.to_string())?;
    // It was checked when it came.
    let order = order.verify_self_named().map_err(|error| error.to_string())?;
    if order.withdraw || order.number != stated.order {
        return Err(format!(
            "another identity key was offered upon order {}, and that isn't the newest",
            stated.order
        ));
    }
    Ok(())
}
