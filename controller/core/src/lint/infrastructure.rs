//! Members that have the address of a server that the policy lists for a whole site.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;

use super::{Findings, Severity};
use crate::parties::member_label;
use crate::resolve::Resolved;

/// What has a member's address is that member, and no server that a whole site reaches without a rule.
pub(super) fn check(resolved: &Resolved, findings: &mut Findings) {
    let mut holders: BTreeMap<(&Name, Ipv4Addr), MemberId> = BTreeMap::new();
    for (id, device) in &resolved.model.devices {
        let Some(site) = resolved.site_of(*id) else { continue };
        let fixed = device.addresses.iter().filter(|net| net.prefix_len() == 32);
        fixed.for_each(|net| _ = holders.insert((site, net.addr()), *id));
    }
    for (id, client) in &resolved.model.clients {
        holders.insert((&client.site, client.address), *id);
    }
    for (site, servers) in &resolved.policy.infrastructure {
        // A server that gives addresses may stand behind a gateway: no rule can be written for what it does.
        let kinds = [
            ("dns", &servers.dns, Severity::Refusal),
            ("ntp", &servers.ntp, Severity::Refusal),
            ("dhcp", &servers.dhcp, Severity::Warning),
            ("routers", &servers.routers, Severity::Warning),
        ];
        for (kind, list, severity) in kinds {
            for address in list {
                let Some(id) = holders.get(&(site, *address)) else { continue };
                let label = member_label(resolved, *id);
                findings.add(
                    severity,
                    "infrastructure-is-member",
                    format!("infrastructure.{site}"),
                    format!(
                        "{address}, under {kind}, is also the address of {label}, so what is sent to it is sent to {label}, \
                         and enforced devices have no {kind} of it without a rule. If {label} isn't that server, confirm it \
                         with the address that it has; if it is, take it out of {kind} and write a rule.",
                    ),
                );
            }
        }
    }
}
