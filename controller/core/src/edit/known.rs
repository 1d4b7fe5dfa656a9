//! Devices confirmed and renamed, one or thousands at once: what is taken is gathered once for all of them.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::id::MemberId;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;

use super::{EditError, MAX_THINGS, device_fits, labels_fit, taken, too_many, unknown, words_fit};
use crate::model::{Device, Model};
use crate::policy::{POLICY_FILE, Policy, parse_all};

/// Names and Ethernet addresses that are taken.
struct Known {
    policy: Policy,
    /// Who the policy means by name, and the first line in which it does.
    named: BTreeMap<String, usize>,
    devices: BTreeMap<Name, MemberId>,
    clients: BTreeSet<Name>,
    macs: BTreeMap<MacAddr, Vec<MemberId>>,
}

impl Known {
    fn of(model: &Model) -> Self {
        let (policy, _) = parse_all(POLICY_FILE, &model.policy);
        let mut named = BTreeMap::new();
        let members = policy.segments.values().flat_map(|segment| &segment.members);
        let rules = policy.rules.values().flat_map(|rule| [&rule.from, &rule.to]);
        let tests = policy.tests.values().flat_map(|test| [&test.from, &test.to]);
        for at in members.chain(rules).chain(tests) {
            named.entry(at.value.to_string()).or_insert(at.position.line);
        }
        let mut macs: BTreeMap<MacAddr, Vec<MemberId>> = BTreeMap::new();
        for (id, device) in &model.devices {
            macs.entry(device.attachment.mac).or_default().push(*id);
        }
        Self {
            policy,
            named,
            devices: model.devices.iter().map(|(id, one)| (one.name.clone(), *id)).collect(),
            clients: model.clients.values().map(|client| client.name.clone()).collect(),
            macs,
        }
    }
}

/// A member's name stands in one namespace with the policy's segments and externals.
pub(super) fn is_free_in(policy: &Policy, name: &Name) -> Result<(), EditError> {
    let entry = |kind: &str, line: usize| {
        taken("the name", name, format!("the {kind} in line {line} of the policy"))
    };
    if let Some(segment) = policy.segments.get(name) {
        return Err(entry("segment", segment.position.line));
    }
    match policy.externals.get(name) {
        Some(external) => Err(entry("external", external.position.line)),
        None => Ok(()),
    }
}

impl Model {
    /// Takes a device into the model. A detached device of the same name and Ethernet address is attached
    /// again: it keeps its id, its mode, its history and its labels, to which those of `device` are added.
    /// Says under which id the device is in the model.
    ///
    /// # Errors
    /// When its name, id or place is taken, its gateway isn't approved, or a value can't be.
    pub fn confirm_device(&mut self, id: MemberId, device: Device) -> Result<MemberId, EditError> {
        self.confirm(&mut Known::of(self), id, device)
    }

    /// Takes many devices into the model, as [`Self::confirm_device`] does with one.
    ///
    /// # Errors
    /// As there, for the first of which it is so. None is taken in then.
    pub fn confirm_devices(
        &mut self,
        devices: impl IntoIterator<Item = (MemberId, Device)>,
    ) -> Result<(), EditError> {
        let mut known = Known::of(self);
        let mut next = self.clone();
        for (id, device) in devices {
            next.confirm(&mut known, id, device)?;
        }
        *self = next;
        Ok(())
    }

    fn confirm(
        &mut self,
        known: &mut Known,
        id: MemberId,
        mut device: Device,
    ) -> Result<MemberId, EditError> {
        let Some(gateway) = self.gateways.get(&device.attachment.gateway) else {
            let known = self.gateways.values().map(|gateway| gateway.name.as_str());
            return Err(unknown("gateway", &device.attachment.gateway.to_string(), known));
        };
        device_fits(&device)?;
        words_fit(&format!("device {}", device.name), &device.labels)?;
        let (mac, site) = (device.attachment.mac, &gateway.site);
        let mut returning = None;
        let same_name = known.devices.get(&device.name);
        if let Some((other, found)) = same_name.and_then(|id| self.devices.get_key_value(id)) {
            let by = match self.gateways.get(&found.attachment.gateway) {
                None if found.attachment.mac == mac => {
                    returning = Some(*other);
                    None
                }
                None => Some(format!(
                    "a device with the Ethernet address {} whose gateway was revoked",
                    found.attachment.mac
                )),
                Some(gateway) => Some(format!("a device behind gateway \"{}\"", gateway.name)),
            };
            if let Some(by) = by {
                return Err(taken("the name", &device.name, by));
            }
        }
        if let Some(found) = self.devices.get(&id).filter(|found| found.name != device.name) {
            return Err(taken("the id", &id, format!("device \"{}\"", found.name)));
        }
        for found in
            known.macs.get(&mac).into_iter().flatten().filter_map(|id| self.devices.get(id))
        {
            let attached = self.gateways.get(&found.attachment.gateway);
            if found.name != device.name && attached.is_some_and(|gateway| gateway.site == *site) {
                let by = format!("device \"{}\" in the same site", found.name);
                return Err(taken("the Ethernet address", &mac, by));
            }
        }
        if returning.is_none() {
            if self.devices.len() >= MAX_THINGS {
                return Err(too_many("devices"));
            }
            if known.clients.contains(&device.name) {
                return Err(taken("the name", &device.name, "a client".to_owned()));
            }
            is_free_in(&known.policy, &device.name)?;
        }
        let id = returning.unwrap_or(id);
        if let Some(before) = self.devices.get(&id) {
            let mut labels = before.labels.clone();
            labels.append(&mut device.labels);
            labels_fit(&format!("device {}", device.name), &labels)?;
            device.labels = labels;
            device.mode = before.mode;
            device.mode_since = before.mode_since;
            device.confirmed_at = before.confirmed_at;
            device.quarantined = before.quarantined;
            device.rollout = before.rollout.clone();
        }
        known.devices.insert(device.name.clone(), id);
        if returning.is_none() {
            known.macs.entry(mac).or_default().push(id);
        }
        self.devices.insert(id, device);
        Ok(id)
    }

    /// Calls a device otherwise. It stays the same device, with its history.
    ///
    /// # Errors
    /// [`EditError::Unknown`]; when the name is taken, or the policy names the device: what the policy says must stay what it means.
    pub fn rename_device(&mut self, name: &str, after: Name) -> Result<MemberId, EditError> {
        self.rename(&mut Known::of(self), name, after)
    }

    /// Calls many devices otherwise, one after the other, as [`Self::rename_device`] does with one.
    ///
    /// # Errors
    /// As there, for the first of which it is so. None is renamed then.
    pub fn rename_devices<'a>(
        &mut self,
        names: impl IntoIterator<Item = (&'a str, Name)>,
    ) -> Result<(), EditError> {
        let mut known = Known::of(self);
        let mut next = self.clone();
        for (name, after) in names {
            next.rename(&mut known, name, after)?;
        }
        *self = next;
        Ok(())
    }

    fn rename(
        &mut self,
        known: &mut Known,
        name: &str,
        after: Name,
    ) -> Result<MemberId, EditError> {
        let Some(id) = known.devices.get(name).copied() else {
            return self.find_device(name).map(|(id, _)| id);
        };
        if name == after.as_str() {
            return Ok(id);
        }
        if let Some(other) = known.devices.get(&after) {
            return Err(taken("the name", &after, format!("device {other}")));
        }
        if known.clients.contains(&after) {
            return Err(taken("the name", &after, "a client".to_owned()));
        }
        is_free_in(&known.policy, &after)?;
        if let Some(line) = known.named.get(name) {
            return Err(EditError::Invalid {
                what: format!("the new name {after} of device {name}"),
                problem: format!(
                    "the policy names it in line {line}: take it out there first, or keep the name"
                ),
            });
        }
        known.devices.remove(name);
        known.devices.insert(after.clone(), id);
        if let Some(device) = self.devices.get_mut(&id) {
            device.name = after;
        }
        Ok(id)
    }
}
