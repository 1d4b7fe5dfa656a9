//! Changes to a model, as operators make them. Each checks what it is given and changes nothing when it fails.

use std::collections::BTreeMap;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::rollout::Rollout;
use anteroom_proto::text::steers;
use ipnet::Ipv4Net;

use crate::approvals::lasting;
use crate::model::{Attachment, Device, Gateway, Model};
use crate::policy::{POLICY_FILE, parse_all};
use crate::problem::{Problems, did_you_mean};
use crate::resolve::Resolved;
use crate::surface;

mod client;
mod host;
mod known;
mod rekey;
mod rollout;
mod swap;
#[cfg(test)]
mod tests;

pub use host::NewHost;
use known::is_free_in;
pub use rekey::MAX_FORMER;
pub use swap::Move;

/// Most labels of one thing.
pub const MAX_LABELS: usize = 64;
/// Longest label value in bytes.
pub const MAX_LABEL_LEN: usize = 256;
/// Most addresses of one device.
pub const MAX_ADDRESSES: usize = 16;
/// Most gateways, revoked ones included, and most devices of one organisation.
pub const MAX_THINGS: usize = 100_000;

/// Why a change can't be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Nothing has this name.
    #[error("no {kind} \"{name}\"{suggestion}")]
    Unknown {
        /// `device`, `gateway`, `client` or `site`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// ``; did you mean …?``, or nothing.
        suggestion: String,
    },
    /// Something else has this name, id, key, address or place.
    #[error("{what} {taken} is taken by {by}")]
    Taken {
        /// The kind of thing, such as `the name`.
        what: &'static str,
        /// The thing itself.
        taken: String,
        /// Who has it.
        by: String,
    },
    /// A value that can't be.
    #[error("{what}: {problem}")]
    Invalid {
        /// Of what.
        what: String,
        /// Why not, and what to do.
        problem: String,
    },
    /// The policy has problems.
    #[error(transparent)]
    Policy(#[from] Problems),
}

impl Model {
    /// The device with this name, or an error with a suggestion.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn find_device(&self, name: &str) -> Result<(MemberId, &Device), EditError> {
        self.device_named(name).ok_or_else(|| {
            unknown("device", name, self.devices.values().map(|device| device.name.as_str()))
        })
    }

    /// The approved gateway with this name, or an error with a suggestion.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn find_gateway(&self, name: &str) -> Result<(GatewayId, &Gateway), EditError> {
        self.gateway_named(name).ok_or_else(|| {
            unknown("gateway", name, self.gateways.values().map(|gateway| gateway.name.as_str()))
        })
    }

    /// Whether the device stands behind an approved gateway. One that doesn't is in no view.
    #[must_use]
    pub fn is_attached(&self, device: &Device) -> bool {
        self.gateways.contains_key(&device.attachment.gateway)
    }

    /// The device with the strictest mode at this port, beside whoever has this Ethernet address. Devices at one port have one mode.
    #[must_use]
    pub fn neighbour_at(&self, place: &Attachment) -> Option<&Device> {
        let beside = self.devices.values().filter(|device| {
            let at = &device.attachment;
            (at.gateway, &at.port) == (place.gateway, &place.port)
                && at.mac != place.mac
                && self.is_attached(device)
        });
        beside.max_by_key(|device| device.mode)
    }

    /// Adds a gateway.
    ///
    /// # Errors
    /// When its id or key is taken, by a revoked gateway too, or its name is taken, or a label can't be.
    pub fn approve_gateway(&mut self, id: GatewayId, gateway: Gateway) -> Result<(), EditError> {
        if self.gateways.len() + self.revoked.len() >= MAX_THINGS {
            return Err(too_many("gateways"));
        }
        for (other, found) in &self.gateways {
            if found.name == gateway.name {
                return Err(taken("the name", &gateway.name, format!("gateway {other}")));
            }
        }
        for (other, found) in self.gateways.iter().chain(&self.revoked) {
            let by = || {
                let revoked = if self.revoked.contains_key(other) { "revoked " } else { "" };
                format!("the {revoked}gateway \"{}\"; enrol it anew", found.name)
            };
            if *other == id {
                return Err(taken("the id", &id, by()));
            }
        }
        self.identity_is_free(gateway.identity)?;
        labels_fit(&format!("gateway {}", gateway.name), &gateway.labels)?;
        self.gateways.insert(id, gateway);
        Ok(())
    }

    /// Cuts a gateway off for good. Its devices stay in the model, detached: no segment holds them and no rule
    /// opens for them until they are confirmed behind another gateway.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn revoke_gateway(&mut self, name: &str) -> Result<GatewayId, EditError> {
        let (id, _) = self.find_gateway(name)?;
        if let Some(gateway) = self.gateways.remove(&id) {
            self.revoked.insert(id, gateway);
            self.bypasses.remove(&id);
        }
        Ok(id)
    }

    /// A member's name stands in one namespace with the policy's segments and externals.
    fn name_is_free(&self, name: &Name) -> Result<(), EditError> {
        is_free_in(&parse_all(POLICY_FILE, &self.policy).0, name)
    }

    /// Sets labels of a device; a label without a value is removed.
    ///
    /// # Errors
    /// [`EditError::Unknown`], or a value that can't be.
    pub fn label_device(
        &mut self,
        name: &str,
        labels: &[(Name, Option<String>)],
    ) -> Result<MemberId, EditError> {
        let (id, device) = self.find_device(name)?;
        let what = format!("device {name}");
        let changed = relabelled(&what, &device.labels, labels)?;
        let set = labels.iter().filter_map(|(label, value)| Some((label, value.as_ref()?)));
        words_fit(&what, set)?;
        if let Some(device) = self.devices.get_mut(&id) {
            device.labels = changed;
        }
        Ok(id)
    }

    /// Sets labels of a gateway; a label without a value is removed.
    ///
    /// # Errors
    /// [`EditError::Unknown`], or a value that can't be.
    pub fn label_gateway(
        &mut self,
        name: &str,
        labels: &[(Name, Option<String>)],
    ) -> Result<GatewayId, EditError> {
        let (id, gateway) = self.find_gateway(name)?;
        let changed = relabelled(&format!("gateway {name}"), &gateway.labels, labels)?;
        if let Some(gateway) = self.gateways.get_mut(&id) {
            gateway.labels = changed;
        }
        Ok(id)
    }

    /// Sets a device's mode for good, which ends a trial. `revision` is the number of the revision being made. A device
    /// that has the mode already stays as it is. What the mode would do is for [`crate::plan`] to say.
    ///
    /// # Errors
    /// [`EditError::Unknown`], or a mode that this program doesn't know.
    pub fn set_mode(
        &mut self,
        name: &str,
        mode: Mode,
        revision: u64,
    ) -> Result<MemberId, EditError> {
        let (id, _) = self.find_device(name)?;
        if mode == Mode::Unrecognised {
            return Err(EditError::Invalid {
                what: format!("the mode of device {name}"),
                problem: "choose observe, protect or enforce".into(),
            });
        }
        if mode != Mode::Enforce && self.devices.get(&id).is_some_and(Self::is_host) {
            return Err(EditError::Invalid {
                what: format!("the mode of {name}"),
                problem: "it is a host, which speaks through tunnels only: enforce is the one mode that it has".into(),
            });
        }
        if let Some(device) = self.devices.get_mut(&id) {
            // Who approved of a mode that stays goes on having approved of it.
            if device.mode != mode || device.rollout.trial.is_some() {
                let approvals = lasting(&device.rollout.approvals);
                device.rollout = Rollout { trial: None, approvals };
            }
            if device.mode != mode {
                device.mode = mode;
                device.mode_since = revision;
            }
        }
        Ok(id)
    }

    /// Lays quarantine over a device's mode, or lifts it.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn set_quarantine(&mut self, name: &str, quarantined: bool) -> Result<MemberId, EditError> {
        let (id, _) = self.find_device(name)?;
        if let Some(device) = self.devices.get_mut(&id) {
            device.quarantined = quarantined;
        }
        Ok(id)
    }

    /// Sets the policy; `file` is what problems call it.
    ///
    /// # Errors
    /// [`EditError::Policy`] with every problem of the text, names that name nothing included.
    pub fn set_policy(&mut self, file: &str, text: &str) -> Result<(), EditError> {
        Resolved::from_text(self, file, text)?;
        text.clone_into(&mut self.policy);
        Ok(())
    }
}

fn unknown<'a>(
    kind: &'static str,
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> EditError {
    let suggestion = did_you_mean(name, known);
    EditError::Unknown { kind, name: name.chars().take(80).collect(), suggestion }
}

fn taken(what: &'static str, taken: &impl ToString, by: String) -> EditError {
    EditError::Taken { what, taken: taken.to_string(), by }
}

fn too_many(what: &str) -> EditError {
    let problem = format!("there are {MAX_THINGS} already, and no more are kept");
    EditError::Invalid { what: what.to_owned(), problem }
}

fn relabelled(
    what: &str,
    before: &BTreeMap<Name, String>,
    changes: &[(Name, Option<String>)],
) -> Result<BTreeMap<Name, String>, EditError> {
    let mut labels = before.clone();
    for (label, value) in changes {
        match value {
            Some(value) => labels.insert(label.clone(), value.clone()),
            None => labels.remove(label),
        };
    }
    labels_fit(what, &labels)?;
    Ok(labels)
}

fn labels_fit(what: &str, labels: &BTreeMap<Name, String>) -> Result<(), EditError> {
    let invalid = |what: String, problem: String| Err(EditError::Invalid { what, problem });
    if labels.len() > MAX_LABELS {
        return invalid(
            what.to_owned(),
            format!("{} labels are more than {MAX_LABELS}", labels.len()),
        );
    }
    for (label, value) in labels {
        let what = format!("label {label} of {what}");
        if value.is_empty() {
            return invalid(what, "the value is empty: leave the label out instead".into());
        }
        if value.len() > MAX_LABEL_LEN {
            return invalid(what, format!("the value is longer than {MAX_LABEL_LEN} bytes"));
        }
        if value.chars().any(char::is_control) {
            return invalid(what, "the value has a control character in it".into());
        }
    }
    Ok(())
}

/// Whether labels that a change sets on a device or a client have one of their words, where there are words for them. Labels that
/// stay as they are aren't for this: one that no longer fits must be in the way of nothing else, a lint warns of it.
fn words_fit<'a>(
    what: &str,
    set: impl IntoIterator<Item = (&'a Name, &'a String)>,
) -> Result<(), EditError> {
    for (label, value) in set {
        let turned = || {
            value.chars().any(steers).then(|| {
                "the value has a character in it that changes the order in which text is shown"
                    .to_owned()
            })
        };
        if let Some(problem) = surface::problem(label.as_str(), value).or_else(turned) {
            return Err(EditError::Invalid { what: format!("label {label} of {what}"), problem });
        }
    }
    Ok(())
}

fn device_fits(device: &Device) -> Result<(), EditError> {
    let of = |what: &str| format!("{what} of device {}", device.name);
    let invalid = |what: String, problem: String| Err(EditError::Invalid { what, problem });
    if device.attachment.mac.is_group() || device.attachment.mac.0 == [0; 6] {
        let mac = device.attachment.mac;
        return invalid(of("the Ethernet address"), format!("{mac} is nobody's own"));
    }
    if device.attachment.vlan.is_some_and(|vlan| !(1..=4094).contains(&vlan)) {
        return invalid(of("the VLAN"), "choose one of 1 to 4094".into());
    }
    if device.prefix_len.is_some_and(|len| len > 32) {
        return invalid(of("the prefix length"), "it is at most 32".into());
    }
    if device.mode == Mode::Unrecognised {
        return invalid(of("the mode"), "choose observe, protect or enforce".into());
    }
    if device.addresses.len() > MAX_ADDRESSES {
        let count = device.addresses.len();
        return invalid(of("the addresses"), format!("{count} are more than {MAX_ADDRESSES}"));
    }
    for net in &device.addresses {
        if let Some(problem) = address_problem(*net) {
            return invalid(of("an address"), format!("{net} {problem}"));
        }
    }
    if let Some(router) = &device.router
        && address_problem(router.address.into()).is_some()
    {
        return invalid(of("the router"), format!("{} is nobody's own address", router.address));
    }
    labels_fit(&format!("device {}", device.name), &device.labels)
}

fn address_problem(net: Ipv4Net) -> Option<&'static str> {
    let address = net.addr();
    if net.prefix_len() < 8 {
        Some("is too wide: a prefix of 8 bits and more stands for \"dynamic within\"")
    } else if net.trunc() != net {
        Some("has bits behind its length: write the prefix's first address")
    } else if address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
    {
        Some("is nobody's own address")
    } else {
        None
    }
}
