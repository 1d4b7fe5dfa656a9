//! From ids in views and telemetry back to the names that people gave.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anteroom_proto::id::{ExternalId, GatewayId, MemberId, RuleId, SegmentId, SiteId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::service::{PortMatch, Protocol};
use ipnet::Ipv4Net;

use crate::model::Model;
use crate::policy::{self, POLICY_FILE, Policy, parse_all};
use crate::resolve::Addresses;
use crate::service_catalog;

/// Names by id.
#[derive(Debug, Clone, Default)]
pub struct Names {
    gateways: BTreeMap<GatewayId, Name>,
    site_of: BTreeMap<GatewayId, Name>,
    members: BTreeMap<MemberId, Name>,
    places: BTreeMap<(GatewayId, MacAddr), MemberId>,
    rules: BTreeMap<RuleId, Name>,
    segments: BTreeMap<SegmentId, Name>,
    externals: BTreeMap<ExternalId, Name>,
    sites: BTreeMap<SiteId, Name>,
    services: BTreeMap<Name, policy::Service>,
    addresses: Addresses,
    prefixes: Vec<(Ipv4Net, Name)>,
}

macro_rules! lookups {
    ($($(#[$doc:meta])* $method:ident, $field:ident, $id:ident;)*) => {
        impl Names {
            $($(#[$doc])*
            #[must_use]
            pub fn $method(&self, id: $id) -> String {
                self.$field.get(&id).map_or_else(|| id.to_string(), ToString::to_string)
            })*
        }
    };
}

lookups! {
    /// The gateway's name, or its id where it has none.
    gateway, gateways, GatewayId;
    /// The member's name, or its id where it has none.
    member, members, MemberId;
    /// The rule's name, or its id where it has none.
    rule, rules, RuleId;
    /// The segment's name, or its id where it has none.
    segment, segments, SegmentId;
    /// The external's name, or its id where it has none.
    external, externals, ExternalId;
    /// The site's name, or its id where it has none.
    site, sites, SiteId;
}

impl Names {
    /// The names in `model`, revoked gateways included. A policy with problems gives the names that can be read.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        let (policy, _) = parse_all(POLICY_FILE, &model.policy);
        let mut names = Self { addresses: Addresses::of(model), ..Self::default() };
        for (id, gateway) in model.revoked.iter().chain(&model.gateways) {
            names.gateways.insert(*id, gateway.name.clone());
            names.site_of.insert(*id, gateway.site.clone());
            names.sites.insert(SiteId::of(gateway.site.as_str()), gateway.site.clone());
        }
        for (id, device) in &model.devices {
            names.members.insert(*id, device.name.clone());
            names.places.insert((device.attachment.gateway, device.attachment.mac), *id);
        }
        for (id, client) in &model.clients {
            names.members.insert(*id, client.name.clone());
        }
        names.read(policy);
        names
    }

    fn read(&mut self, policy: Policy) {
        for (name, external) in policy.externals {
            let id = ExternalId::of(name.as_str());
            self.prefixes.extend(external.prefixes.iter().map(|prefix| (*prefix, name.clone())));
            self.externals.insert(id, name);
        }
        // The narrowest prefix names an address best.
        self.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
        let named = policy.segments.into_keys().map(|name| (SegmentId::of(name.as_str()), name));
        self.segments.extend(named);
        let named = policy.rules.into_keys().map(|name| (RuleId::of(name.as_str()), name));
        self.rules.extend(named);
        self.services.extend(policy.services);
    }

    /// The member that a gateway sees under this Ethernet address, where it is confirmed.
    #[must_use]
    pub fn member_of(&self, gateway: GatewayId, mac: MacAddr) -> Option<MemberId> {
        self.places.get(&(gateway, mac)).copied()
    }

    /// The member whose address this is, seen from behind `gateway`.
    #[must_use]
    pub fn member_at(&self, gateway: GatewayId, address: IpAddr) -> Option<MemberId> {
        let IpAddr::V4(address) = address else { return None };
        self.site_of.get(&gateway).and_then(|site| self.addresses.at(site, address))
    }

    /// Whose address this is, seen from behind `gateway`: a device's name, an external's, or the address itself.
    #[must_use]
    pub fn address(&self, gateway: GatewayId, address: IpAddr) -> String {
        let IpAddr::V4(v4) = address else { return address.to_string() };
        let member = self.member_at(gateway, address).and_then(|id| self.members.get(&id));
        member
            .or_else(|| self.external_holding(v4))
            .map_or_else(|| address.to_string(), ToString::to_string)
    }

    fn external_holding(&self, address: Ipv4Addr) -> Option<&Name> {
        self.prefixes.iter().find(|(prefix, _)| prefix.contains(&address)).map(|(_, name)| name)
    }

    /// Whether messages to a port name patients, as a rule.
    #[must_use]
    pub fn patient_data(&self, protocol: u8, port: u16) -> bool {
        let protocol = match protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            _ => return false,
        };
        let own = self.services.values();
        let own = own.map(|service| (service.ports.as_slice(), service.patient_data));
        service_catalog::patient_data(own, protocol, port)
    }

    /// What people call an IP protocol number and port: the service, the policy's own first, of which it is one,
    /// or `tcp/4006`, `icmp/echo`, `protocol 47`.
    #[must_use]
    pub fn service(&self, protocol: u8, port: u16) -> String {
        let known = match protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            1 => return "ping".to_owned(),
            other => return format!("protocol {other}"),
        };
        let holds = |ports: &[PortMatch]| ports.iter().any(|range| range.matches(known, port));
        let own =
            self.services.iter().find(|(_, own)| holds(&own.ports)).map(|(name, _)| name.as_str());
        let built_in = || service_catalog::all().iter().find(|service| holds(service.ports));
        let text = PortMatch { protocol: known, first: port, last: port }.to_string();
        match own.or_else(|| built_in().map(|service| service.name)) {
            Some(name) => format!("{name} ({text})"),
            None => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{gateway_id, hospital, mac, member_id};

    #[test]
    fn ids_become_names_again_and_unknown_ones_stay_ids() {
        let mut model = hospital();
        model.revoke_gateway("ward").unwrap();
        let names = Names::of(&model);
        assert_eq!(names.gateway(gateway_id(2)), "ward");
        assert_eq!(names.gateway(gateway_id(9)), gateway_id(9).to_string());
        assert_eq!(names.member(member_id(1)), "ct-1");
        assert_eq!(names.rule(RuleId::of("ct-to-pacs")), "ct-to-pacs");
        assert_eq!(names.rule(RuleId::of("gone")), RuleId::of("gone").to_string());
        assert_eq!(names.segment(SegmentId::of("ct")), "ct");
        assert_eq!(names.external(ExternalId::of("archive")), "archive");
        assert_eq!(names.site(SiteId::of("north")), "north");
        assert_eq!(names.member_of(gateway_id(1), mac(1)), Some(member_id(1)));
        assert_eq!(names.member_of(gateway_id(3), mac(1)), None);
    }

    #[test]
    fn addresses_and_ports_become_names_where_there_are_some() {
        let names = Names::of(&hospital());
        let at = |text: &str| names.address(gateway_id(1), text.parse().unwrap());
        assert_eq!(at("10.20.4.10"), "pacs-1");
        assert_eq!(at("10.20.4.20"), "archive");
        assert_eq!(at("10.20.9.9"), "10.20.9.9");
        assert_eq!(at("fe80::1"), "fe80::1");
        let member = |gateway, text: &str| names.member_at(gateway, text.parse().unwrap());
        assert_eq!(member(gateway_id(1), "10.20.4.10"), Some(member_id(5)));
        assert_eq!(member(gateway_id(1), "10.20.4.20"), None, "an external is no member");
        assert_eq!(member(gateway_id(9), "10.20.4.10"), None, "nobody knows that gateway's site");
        assert_eq!(member(gateway_id(1), "fe80::1"), None);
        assert_eq!(names.service(6, 104), "dicom (tcp/104)");
        assert_eq!(names.service(6, 4006), "ct-listen (tcp/4006)");
        assert_eq!(names.service(17, 40000), "udp/40000");
        assert_eq!(names.service(1, 0), "ping");
        assert_eq!(names.service(47, 0), "protocol 47");
        assert!(names.patient_data(6, 104) && !names.patient_data(17, 104));
        assert!(!names.patient_data(1, 0) && !names.patient_data(6, 4006));
    }

    #[test]
    fn a_policy_with_problems_gives_the_names_that_can_be_read() {
        let mut model = hospital();
        model.policy.push_str("[rule.bad]\nfrom = 1\n");
        assert_eq!(Names::of(&model).rule(RuleId::of("alarms")), "alarms");
    }
}
