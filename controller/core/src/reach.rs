//! Whom a client may reach, as its configuration must say it.

use std::collections::BTreeMap;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::time::UnixMillis;
use ipnet::Ipv4Net;

use crate::resolve::Resolved;

/// The devices behind one gateway that rules open to a client, or that may open to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The gateway: a peer of the client's.
    pub gateway: GatewayId,
    /// The devices, sorted.
    pub devices: Vec<MemberId>,
}

impl Reach {
    /// The addresses of the devices: what goes to this peer, and what is taken from it.
    #[must_use]
    pub fn addresses(&self, resolved: &Resolved) -> Vec<Ipv4Net> {
        let all = self.devices.iter().flat_map(|id| reachable_at(resolved, *id));
        let mut addresses: Vec<Ipv4Net> = all.collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }
}

/// Whom a client may reach at `now`, by gateway. Modes don't matter: they change, and its configuration needn't.
#[must_use]
pub fn reach(resolved: &Resolved, client: MemberId, now: UnixMillis) -> Vec<Reach> {
    let mut found: BTreeMap<GatewayId, Vec<MemberId>> = BTreeMap::new();
    for side in resolved.sides_of(client).iter().map(|id| resolved.side(*id)) {
        let to = side.from_rules.iter().map(|rule| (rule, resolved.rules[*rule].to));
        let from = side.to_rules.iter().map(|rule| (rule, resolved.rules[*rule].from));
        for (_, far) in to.chain(from).filter(|(rule, _)| !resolved.rules[**rule].expired(now)) {
            for id in &resolved.side(far).members {
                if let Some(device) = resolved.model.devices.get(id) {
                    found.entry(device.attachment.gateway).or_default().push(*id);
                }
            }
        }
    }
    let reach = found.into_iter().map(|(gateway, mut devices)| {
        devices.sort_unstable();
        devices.dedup();
        Reach { gateway, devices }
    });
    reach.collect()
}

/// The addresses at which a device is found without asking anybody: fixed ones, and networks behind it. A device
/// with dynamic addresses alone has none.
#[must_use]
pub fn reachable_at(resolved: &Resolved, device: MemberId) -> Vec<Ipv4Net> {
    let Some(device) = resolved.model.devices.get(&device) else { return Vec::new() };
    let is_fixed = device.addresses.iter().any(|net| net.prefix_len() == 32);
    if is_fixed { device.addresses.clone() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{HOUR, NOW, client, gateway_id, hospital, member_id};

    #[test]
    fn a_client_reaches_what_rules_open_either_way_until_they_end() {
        let mut model = hospital();
        model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "service")]);
        model.policy.push_str(
            "[rule.there]\nfrom = \"laptop-1\"\nto = \"ct\"\nservices = [\"vnc\"]\n\
             [rule.back]\nfrom = \"pacs-1\"\nto = \"laptop-1\"\nservices = [\"dicom\"]\n\
             [rule.soon]\nfrom = \"laptop-1\"\nto = \"pump-1\"\nservices = [\"vnc\"]\nexpires = 2026-11-22T01:00:00Z\n",
        );
        let resolved = Resolved::new(&model).unwrap();
        let reached = |now| -> Vec<(GatewayId, Vec<MemberId>)> {
            let found = reach(&resolved, member_id(70), now);
            found.into_iter().map(|reach| (reach.gateway, reach.devices)).collect()
        };
        let imaging = (gateway_id(1), vec![member_id(1)]);
        let ward = (gateway_id(2), vec![member_id(3)]);
        let server = (gateway_id(3), vec![member_id(5)]);
        assert_eq!(reached(NOW), [imaging.clone(), ward, server.clone()]);
        assert_eq!(
            reached(UnixMillis(NOW.0 + HOUR)),
            [imaging, server],
            "the third rule has ended"
        );
        let addresses = |at: usize| reach(&resolved, member_id(70), NOW)[at].addresses(&resolved);
        assert_eq!(addresses(0), ["10.20.1.10/32".parse().unwrap()]);
        model.devices.get_mut(&member_id(1)).unwrap().addresses =
            vec!["10.20.1.0/24".parse().unwrap()];
        let resolved = Resolved::new(&model).unwrap();
        let imaging = &reach(&resolved, member_id(70), NOW)[0];
        assert_eq!(imaging.devices, [member_id(1)]);
        assert_eq!(imaging.addresses(&resolved), [], "nobody can say where a dynamic one is");
    }
}
