//! What the policy permits the devices of a class, as a MUD file.

use std::collections::BTreeSet;

use anteroom_proto::id::MemberId;
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::time::UnixMillis;

use super::{Allow, Mud, Opens, Peer};
use crate::resolve::{Resolved, Side};

/// What the URI of a segment of ours begins with, where a MUD file has to name one.
pub const SEGMENT_URN: &str = "urn:x-anteroom:segment:";

/// The MUD file of `members`: what rules in force at `now` let each of them do, and others do to each of them. Members behind a name in a rule are named as a
/// controller class by [`SEGMENT_URN`], addresses of externals as they are, name and time servers by the classes that the RFC has for them.
#[must_use]
pub fn of_class(
    resolved: &Resolved,
    class: &str,
    members: &BTreeSet<MemberId>,
    url: &str,
    now: UnixMillis,
) -> Mud {
    let mut allows = BTreeSet::new();
    let mut unread = Vec::new();
    // A rule for some of a class isn't one of the class.
    let all_in = |side: &Side| {
        !members.is_empty() && members.iter().all(|id| side.members.binary_search(id).is_ok())
    };
    let some_in = |side: &Side| members.iter().any(|id| side.members.binary_search(id).is_ok());
    for rule in resolved.rules.iter().filter(|rule| !rule.expired(now)) {
        let ends = [(Opens::Device, rule.from, rule.to), (Opens::Peer, rule.to, rule.from)];
        for (opens, own, far) in ends {
            let (own, far) = (resolved.side(own), resolved.side(far));
            if !all_in(own) {
                if some_in(own) {
                    unread.push(format!(
                        "rule.{} is for some of the class only, and isn't in the file",
                        rule.name
                    ));
                }
                continue;
            }
            let externals =
                far.externals.iter().filter_map(|name| resolved.policy.externals.get(name));
            let mut peers: Vec<Peer> = externals
                .flat_map(|external| &external.prefixes)
                .map(|net| Peer::Network(*net))
                .collect();
            if !far.members.is_empty() {
                peers.push(Peer::Controller(format!("{SEGMENT_URN}{}", far.name)));
            }
            for peer in peers {
                allows.extend(rule.ports.iter().map(|service| Allow {
                    opens,
                    peer: peer.clone(),
                    service: *service,
                }));
            }
        }
    }
    let sites: BTreeSet<_> = members.iter().filter_map(|id| resolved.site_of(*id)).collect();
    for entry in sites.iter().filter_map(|site| resolved.policy.infrastructure.get(*site)) {
        let port = |protocol, port| PortMatch { protocol, first: port, last: port };
        let mut add = |name: &str, service| {
            let peer = Peer::Controller(format!("urn:ietf:params:mud:{name}"));
            allows.insert(Allow { opens: Opens::Device, peer, service });
        };
        if !entry.dns.is_empty() {
            add("dns", port(Protocol::Udp, 53));
            add("dns", port(Protocol::Tcp, 53));
        }
        if !entry.ntp.is_empty() {
            add("ntp", port(Protocol::Udp, 123));
        }
    }
    // The maker and model that all of them have.
    let common = |label: &str| -> Option<String> {
        let labels = members.iter().map(|id| resolved.model.devices.get(id)?.labels.get(label));
        let mut values = labels.collect::<BTreeSet<Option<&String>>>().into_iter();
        match (values.next(), values.next()) {
            (Some(Some(value)), None) => Some(value.clone()),
            _ => None,
        }
    };
    Mud {
        url: url.to_owned(),
        last_update: crate::export::moment(now),
        cache_validity: 48,
        is_supported: true,
        systeminfo: Some(class.chars().take(60).collect()),
        manufacturer: common("vendor"),
        model: common("model"),
        allows: allows.into_iter().collect(),
        unread,
    }
}
