//! What a revision changes, in words for the audit log.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anteroom_controller_core::lint::moment;
use anteroom_controller_core::model::{Client, Device, Gateway, Model};
use anteroom_proto::authority::{Authority, Relay};
use anteroom_proto::key::Hash;
use anteroom_proto::name::Name;

use crate::audit::actor;

/// Most characters of a description.
const MAX_LEN: usize = 4000;

/// What was there before and is no more, and what is there now: one line for each thing that changed. Nothing
/// where nothing did.
#[must_use]
pub fn describe(before: Option<&Model>, after: &Model) -> (Option<String>, Option<String>) {
    let empty = Model::new(after.organisation);
    compare(&lines(before.unwrap_or(&empty)), &lines(after))
}

/// The same for two authority documents.
#[must_use]
pub fn describe_authority(
    before: &Authority,
    after: &Authority,
) -> (Option<String>, Option<String>) {
    compare(&authority_lines(before), &authority_lines(after))
}

fn authority_lines(authority: &Authority) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    for operator in &authority.operators {
        lines.insert(format!("operator {}", operator.key), format!("operator {}", actor(operator)));
    }
    for controller in &authority.controllers {
        let key = controller.key;
        let line =
            format!("controller {} at {}", key.fingerprint(), controller.addresses.join(" "));
        lines.insert(format!("controller {key}"), line);
    }
    for relay in &authority.relays {
        let Relay { name, key, addresses } = relay;
        let (fingerprint, addresses) = (key.fingerprint(), addresses.join(" "));
        let line = format!("relay {name} ({fingerprint}) at {addresses}");
        lines.insert(format!("relay {key}"), line);
    }
    let recovery = authority.recovery.fingerprint();
    lines.insert("recovery".into(), format!("recovery key {recovery}"));
    lines.insert("incarnation".into(), format!("incarnation {}", authority.incarnation));
    lines.insert("number".into(), format!("authority document {}", authority.number));
    lines
}

fn compare(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
) -> (Option<String>, Option<String>) {
    let only = |these: &BTreeMap<String, String>, those: &BTreeMap<String, String>| {
        let differ: Vec<&str> = these
            .iter()
            .filter(|(key, line)| those.get(*key) != Some(*line))
            .map(|(_, line)| line.as_str())
            .collect();
        (!differ.is_empty()).then(|| shorten(&differ))
    };
    (only(old, new), only(new, old))
}

fn shorten(lines: &[&str]) -> String {
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let line: String = line.chars().take(400).collect();
        if text.len() + line.len() > MAX_LEN {
            let _ = write!(text, "\nand {} more", lines.len() - index);
            break;
        }
        if index > 0 {
            text.push('\n');
        }
        text.push_str(&line);
    }
    text
}

/// One line for each thing in the model, under a key that is the thing's own.
fn lines(model: &Model) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    for (id, known) in &model.gateways {
        lines.insert(id.to_string(), format!("gateway {}", gateway(known)));
    }
    for (id, known) in &model.revoked {
        lines.insert(format!("revoked {id}"), format!("revoked gateway {}", gateway(known)));
    }
    for (id, order) in &model.bypasses {
        let name = model.gateways.get(id).map_or_else(|| id.to_string(), |g| g.name.to_string());
        let state = match order.until {
            Some(until) => format!("bypassed until {}", moment(until)),
            None => "not bypassed".to_owned(),
        };
        lines.insert(format!("bypass {id}"), format!("gateway {name}: {state}"));
    }
    for (id, known) in &model.devices {
        lines.insert(id.to_string(), device(model, known));
    }
    for (id, known) in &model.clients {
        lines.insert(id.to_string(), format!("client {}", client(known)));
    }
    for (id, known) in &model.former_clients {
        lines.insert(format!("revoked {id}"), format!("revoked client {}", client(known)));
    }
    let policy = Hash::of("anteroom policy text", &[model.policy.as_bytes()]).to_string();
    let short: String = policy.chars().take(16).collect();
    let line = format!("policy {short}, {} lines", model.policy.lines().count());
    lines.insert("policy".into(), line);
    lines
}

fn labels(labels: &BTreeMap<Name, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("[{}]", pairs.join(" "))
}

fn gateway(gateway: &Gateway) -> String {
    let Gateway { name, site, identity, former: _, labels: own } = gateway;
    format!("{name}: site {site}, identity {}, labels {}", identity.fingerprint(), labels(own))
}

fn client(client: &Client) -> String {
    let Client { name, site, key, address, labels: own, added_at: _ } = client;
    let key = key.to_wireguard();
    format!("{name}: site {site}, address {address}, WireGuard key {key}, labels {}", labels(own))
}

fn device(model: &Model, device: &Device) -> String {
    let at = &device.attachment;
    let gateway = model
        .gateways
        .get(&at.gateway)
        .map_or_else(|| at.gateway.to_string(), |gateway| gateway.name.to_string());
    let addresses: Vec<String> = device.addresses.iter().map(ToString::to_string).collect();
    let mut line = format!(
        "device {}: mode {}, at {gateway}/{} {}, addresses {}, labels {}",
        device.name,
        device.mode_words(),
        at.port,
        at.mac,
        addresses.join(" "),
        labels(&device.labels)
    );
    if let Some(vlan) = at.vlan {
        let _ = write!(line, ", vlan {vlan}");
    }
    if let Some(router) = device.router {
        let _ = write!(line, ", router {}", router.address);
    }
    if device.quarantined {
        line.push_str(", quarantined");
    }
    for approval in &device.rollout.approvals {
        if let Ok(approval) = approval.verify_self_named() {
            let who = approval.signer().fingerprint();
            let _ = write!(line, ", {who} approves to {}", approval.step);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anteroom_proto::id::{GatewayId, OrganisationId};
    use anteroom_proto::key::IdentityKey;

    use super::*;

    #[test]
    fn only_what_changed_is_told() {
        let mut before = Model::new(OrganisationId::from_bytes([1; 16]));
        let gateway = |name: &str| Gateway {
            name: name.parse().unwrap(),
            site: "north".parse().unwrap(),
            identity: IdentityKey::from_seed(&[1; 32]).public(),
            former: Vec::new(),
            labels: BTreeMap::new(),
        };
        before.gateways.insert(GatewayId::from_bytes([1; 16]), gateway("imaging"));
        assert_eq!(describe(Some(&before), &before), (None, None));
        let mut after = before.clone();
        after.gateways.insert(GatewayId::from_bytes([2; 16]), gateway("ward"));
        let (was, is) = describe(Some(&before), &after);
        assert_eq!(was, None);
        assert!(is.as_ref().is_some_and(|is| is.starts_with("gateway ward: site north")), "{is:?}");
        after.policy.push_str("# more\n");
        let (was, is) = describe(Some(&before), &after);
        assert!(was.unwrap().starts_with("policy "));
        assert_eq!(is.unwrap().lines().count(), 2);
    }

    #[test]
    fn a_great_change_is_told_in_bounds() {
        let mut after = Model::new(OrganisationId::from_bytes([1; 16]));
        for n in 0..1000u16 {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_be_bytes());
            after.gateways.insert(
                GatewayId::from_bytes(id),
                Gateway {
                    name: format!("gateway-{n}").parse().unwrap(),
                    site: "north".parse().unwrap(),
                    identity: IdentityKey::from_seed(&[1; 32]).public(),
                    former: Vec::new(),
                    labels: BTreeMap::new(),
                },
            );
        }
        let (_, is) = describe(None, &after);
        let is = is.unwrap();
        assert!(is.len() < MAX_LEN + 100 && is.contains("more"), "{} bytes", is.len());
    }
}
