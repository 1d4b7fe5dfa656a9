//! When hardware fails: a gateway is bypassed, a spare takes its place, a device gets another mainboard or port.

use anteroom_proto::bypass::MAX_BYPASS;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::intent::OnFailure;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;

use super::{EditError, device_fits, labels_fit, taken, unknown};
use crate::model::{Bypass, Device, Model};

#[cfg(test)]
mod tests;

/// Where a device moves to: what is left out stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Move {
    /// The gateway, by name.
    pub gateway: Option<String>,
    /// The port of it.
    pub port: Option<Name>,
    /// The Ethernet address.
    pub mac: Option<MacAddr>,
}

impl Model {
    /// Has peers meet a gateway's devices in the clear until `until`, as far as rules open to them. `serial` orders
    /// the orders for one gateway, `now` is the operator's clock, `revision` the revision being made.
    ///
    /// # Errors
    /// [`EditError::Unknown`]; a time that is over or too far away; an order that isn't the newest.
    pub fn bypass_gateway(
        &mut self,
        name: &str,
        until: UnixMillis,
        serial: u64,
        now: UnixMillis,
        revision: u64,
    ) -> Result<GatewayId, EditError> {
        let (id, _) = self.find_gateway(name)?;
        let lasts = until.0.saturating_sub(now.0);
        if lasts == 0 || lasts > MAX_BYPASS {
            let hours = MAX_BYPASS / 3_600_000;
            return Err(EditError::Invalid {
                what: format!("the bypass of gateway {name}"),
                problem: format!("it lasts up to {hours} hours: order another one when it ends"),
            });
        }
        self.order(id, name, Bypass { serial, until: Some(until), since: revision })?;
        Ok(id)
    }

    /// Ends the bypass of a gateway, and makes every older order void, those in files included.
    ///
    /// # Errors
    /// [`EditError::Unknown`]; an order that isn't the newest.
    pub fn end_bypass(
        &mut self,
        name: &str,
        serial: u64,
        revision: u64,
    ) -> Result<GatewayId, EditError> {
        let (id, _) = self.find_gateway(name)?;
        self.order(id, name, Bypass { serial, until: None, since: revision })?;
        Ok(id)
    }

    fn order(&mut self, id: GatewayId, name: &str, order: Bypass) -> Result<(), EditError> {
        if self.bypasses.get(&id).is_some_and(|before| before.serial >= order.serial) {
            return Err(EditError::Invalid {
                what: format!("the bypass of gateway {name}"),
                problem: "a newer order is in force: check this machine's clock".into(),
            });
        }
        self.bypasses.insert(id, order);
        Ok(())
    }

    /// Has the approved gateway `new`, a spare without devices, take over everything of `old`, which is revoked:
    /// devices with their ports, modes and times, site, labels, and a bypass that is in force. Says which devices
    /// moved.
    ///
    /// # Errors
    /// [`EditError::Unknown`]; a spare that is no spare; labels that don't fit together.
    pub fn replace_gateway(
        &mut self,
        old: &str,
        new: &str,
        revision: u64,
    ) -> Result<Vec<MemberId>, EditError> {
        let (old_id, before) = self.find_gateway(old)?;
        let (new_id, spare) = self.find_gateway(new)?;
        let invalid = |problem: String| EditError::Invalid {
            what: format!("replacing gateway {old} by {new}"),
            problem,
        };
        if old_id == new_id {
            return Err(invalid("they are the same".into()));
        }
        let own = self.devices.values().find(|device| device.attachment.gateway == new_id);
        if let Some(device) = own {
            return Err(invalid(format!(
                "{new} has a device of its own, {}: a spare has none",
                device.name
            )));
        }
        let (site, mut labels) = (before.site.clone(), spare.labels.clone());
        labels.extend(before.labels.clone());
        labels_fit(&format!("gateway {new}"), &labels)?;
        if let Some(spare) = self.gateways.get_mut(&new_id) {
            spare.site = site;
            spare.labels = labels;
        }
        let mut moved = Vec::new();
        for (id, device) in &mut self.devices {
            if device.attachment.gateway == old_id {
                device.attachment.gateway = new_id;
                moved.push(*id);
            }
        }
        if let Some(order) = self.bypasses.get(&old_id).filter(|order| order.until.is_some()) {
            let order = Bypass { since: revision, ..*order };
            self.bypasses.insert(new_id, order);
        }
        self.revoke_gateway(old)?;
        Ok(moved)
    }

    /// Says that a device is elsewhere now, or has another Ethernet address: a mainboard was swapped, a cable
    /// moved. It stays the same device: mode, history, labels and the time for which it was watched are kept.
    ///
    /// # Errors
    /// [`EditError::Unknown`]; a place that is taken or in another site; an address that can't be.
    pub fn bind_device(&mut self, name: &str, to: &Move) -> Result<MemberId, EditError> {
        let (id, device) = self.find_device(name)?;
        let mut moved = device.clone();
        if let Some(gateway) = &to.gateway {
            moved.attachment.gateway = self.find_gateway(gateway)?.0;
        }
        if let Some(port) = &to.port {
            moved.attachment.port = port.clone();
        }
        if let Some(mac) = to.mac {
            moved.attachment.mac = mac;
        }
        device_fits(&moved)?;
        let Some(gateway) = self.gateways.get(&moved.attachment.gateway) else {
            let known = self.gateways.values().map(|gateway| gateway.name.as_str());
            return Err(unknown("gateway", &moved.attachment.gateway.to_string(), known));
        };
        let before = device.attachment.gateway;
        let site = self.gateways.get(&before).or_else(|| self.revoked.get(&before));
        if let Some(site) = site.map(|gateway| &gateway.site).filter(|site| **site != gateway.site)
        {
            return Err(EditError::Invalid {
                what: format!("the gateway of device {name}"),
                problem: format!(
                    "{} stands in site {}, the device in {site}, whose addresses are others: confirm it there as a new device",
                    gateway.name, gateway.site
                ),
            });
        }
        let holder = self.devices.iter().find(|(other, found)| {
            **other != id
                && found.attachment.mac == moved.attachment.mac
                && self
                    .gateways
                    .get(&found.attachment.gateway)
                    .is_some_and(|found| found.site == gateway.site)
        });
        if let Some((_, holder)) = holder {
            let by = format!("device \"{}\" in the same site", holder.name);
            return Err(taken("the Ethernet address", &moved.attachment.mac, by));
        }
        self.devices.insert(id, moved);
        Ok(id)
    }

    /// Says what a device's port does while its gateway's agent is dead.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn set_on_failure(
        &mut self,
        name: &str,
        on_failure: OnFailure,
    ) -> Result<MemberId, EditError> {
        let (id, _) = self.find_device(name)?;
        if let Some(device) = self.devices.get_mut(&id) {
            *device = Device { on_failure, ..device.clone() };
        }
        Ok(id)
    }
}
