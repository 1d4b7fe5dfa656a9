//! Policy text that is written behind a policy: names that nothing else has, services, externals.
//! [`crate::suggest`] and [`crate::mud`] write with it, so that both say the same the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;
use ipnet::Ipv4Net;
use toml_edit::Value;

use super::key;
use crate::resolve::{Resolved, ResolvedRule};
use crate::service_catalog;
use crate::words::slug;

/// How long until an external is to be looked at again.
const REVIEW: u64 = 365 * 86_400_000;

/// What stands in one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// Segments, externals and members.
    Ends,
    /// Rules.
    Rules,
}

/// Heads of a policy that is being drafted: the externals and services that its new rules need.
pub(crate) struct Drafting<'a> {
    resolved: &'a Resolved,
    /// The day from which externals are reviewed on.
    from: UnixMillis,
    taken: [BTreeSet<String>; 2],
    externals: BTreeMap<BTreeSet<Ipv4Net>, String>,
    services: BTreeMap<PortMatch, String>,
    /// The text of new externals.
    pub(crate) external_text: String,
    /// The text of new services.
    pub(crate) service_text: String,
}

impl<'a> Drafting<'a> {
    /// Behind the policy of `resolved`, on the day `from`.
    pub(crate) fn new(resolved: &'a Resolved, from: UnixMillis) -> Self {
        let policy = &resolved.policy;
        let model = &resolved.model;
        let names = policy.segments.keys().chain(policy.externals.keys());
        let members = model.devices.values().map(|device| &device.name);
        let clients = model.clients.values().map(|client| &client.name);
        let former = model.former_clients.values().map(|client| &client.name);
        let names = names.chain(members).chain(clients).chain(former);
        Self {
            resolved,
            from,
            taken: [
                names.map(ToString::to_string).collect(),
                policy.rules.keys().map(ToString::to_string).collect(),
            ],
            externals: BTreeMap::new(),
            services: BTreeMap::new(),
            external_text: String::new(),
            service_text: String::new(),
        }
    }

    /// Whether something is called so.
    pub(crate) fn is_taken(&self, space: Space, name: &str) -> bool {
        self.taken[space as usize].contains(name)
    }

    /// A name that nothing else has, as near to `wanted` as it gets.
    pub(crate) fn name(&mut self, space: Space, wanted: &str) -> String {
        let wanted = slug(wanted).map_or_else(|| "unnamed".to_owned(), |name| name.to_string());
        let mut number = 1;
        loop {
            let suffix = if number == 1 { String::new() } else { format!("-{number}") };
            let room = wanted.len().min(Name::MAX_LEN - suffix.len());
            let name = format!("{}{suffix}", wanted.get(..room).unwrap_or(&wanted));
            if self.taken[space as usize].insert(name.clone()) {
                return name;
            }
            number += 1;
        }
    }

    /// The external that is just these networks: the policy's own, or a new one, with a day on which to look at it again.
    pub(crate) fn external(&mut self, nets: &BTreeSet<Ipv4Net>) -> String {
        let mut known = self.resolved.policy.externals.iter();
        let same =
            known.find(|(_, one)| one.prefixes.iter().copied().collect::<BTreeSet<_>>() == *nets);
        if let Some((name, _)) = same {
            return name.to_string();
        }
        if let Some(name) = self.externals.get(nets) {
            return name.clone();
        }
        let first = nets.first().map(ToString::to_string).unwrap_or_default();
        let first = first.trim_end_matches("/32").replace(['.', '/'], "-");
        let name = self.name(Space::Ends, &format!("outside-{first}"));
        let list: Vec<String> = nets.iter().map(|net| format!("\"{net}\"")).collect();
        let review = UnixMillis(self.from.0.saturating_add(REVIEW));
        let _ = write!(
            self.external_text,
            "\n[external.{}]\nprefixes = {}\nreview = {}\n",
            quoted(&name),
            array(&list),
            date(review)
        );
        self.externals.insert(nets.clone(), name.clone());
        name
    }

    /// The name of the service that holds this port: the policy's own that is just that, one that is built in, or a new one. Of those
    /// that are built in it is one that opens nothing but what is `named`.
    pub(crate) fn service_within(&mut self, port: PortMatch, named: &[PortMatch]) -> String {
        self.service_that(port, |ports| ports.iter().all(|port| named.contains(port)))
    }

    /// The same, of those that are built in one whose ports fit.
    pub(crate) fn service_that(
        &mut self,
        port: PortMatch,
        fits: impl Fn(&[PortMatch]) -> bool,
    ) -> String {
        let own = &self.resolved.policy.services;
        let own =
            own.iter().find(|(_, known)| known.ports == [port]).map(|(name, _)| name.to_string());
        let built_in = || {
            let all = service_catalog::all().iter();
            let fitting = all.filter(|one| one.ports.contains(&port) && fits(one.ports));
            fitting.min_by_key(|one| one.ports.len()).map(|one| one.name.to_owned())
        };
        let made = || self.services.get(&port).cloned();
        if let Some(name) = own.or_else(built_in).or_else(made) {
            return name;
        }
        let wanted = port.to_string().replace('/', "-");
        let mut name = wanted.clone();
        let mut number = 2;
        while self.resolved.policy.ports(&name).is_some() {
            name = format!("{wanted}-{number}");
            number += 1;
        }
        let _ = write!(self.service_text, "\n[service.{}]\nports = [\"{port}\"]\n", quoted(&name));
        self.services.insert(port, name.clone());
        name
    }

    /// How many ports a service opens.
    pub(crate) fn ports(&self, service: &str) -> usize {
        self.resolved.policy.ports(service).map_or(1, <[PortMatch]>::len)
    }

    /// These ports of a service in words (`tcp/104 and tcp/11112`), where it opens others besides.
    pub(crate) fn some_of(&self, service: &str, ports: &[PortMatch]) -> Option<String> {
        if ports.len() >= self.ports(service) {
            return None;
        }
        let (last, first) = ports.split_last()?;
        let first: Vec<String> = first.iter().map(ToString::to_string).collect();
        Some(match first.as_slice() {
            [] => last.to_string(),
            first => format!("{} and {last}", first.join(", ")),
        })
    }
}

/// Whether a rule is for all of a service, be it over or not.
pub(crate) fn covers(rule: &ResolvedRule, service: &PortMatch) -> bool {
    rule.ports.iter().any(|ports| {
        ports.protocol == service.protocol
            && ports.first <= service.first
            && service.last <= ports.last
    })
}

/// A name as a key.
pub(crate) fn quoted(name: &str) -> String {
    name.parse::<Name>().map_or_else(|_| quote(name), |name| key(&name))
}

/// Text as a TOML string.
pub(crate) fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// A list, on several lines where one would be too long.
pub(crate) fn array(items: &[String]) -> String {
    let line = format!("[{}]", items.join(", "));
    if line.len() <= 100 { line } else { format!("[\n    {},\n]", items.join(",\n    ")) }
}

/// A day.
pub(crate) fn date(at: UnixMillis) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| "1970-01-01".to_owned(), |at| at.strftime("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use anteroom_proto::service::Protocol;

    use super::*;
    use crate::fixture::{NOW, hospital};

    fn port(first: u16, last: u16) -> PortMatch {
        PortMatch { protocol: Protocol::Tcp, first, last }
    }

    #[test]
    fn what_the_policy_has_is_named_and_the_rest_is_written_once() {
        let resolved = Resolved::new(&hospital()).unwrap();
        let mut drafting = Drafting::new(&resolved, NOW);
        assert_eq!(
            drafting.service_that(port(104, 104), |_| true),
            "dicom",
            "one that is built in and holds it"
        );
        assert_eq!(
            drafting.service_that(port(4006, 4006), |_| true),
            "ct-listen",
            "the policy's own"
        );
        assert_eq!(drafting.service_text, "");
        for _ in 0..2 {
            assert_eq!(drafting.service_that(port(50_001, 50_003), |_| true), "tcp-50001-50003");
        }
        assert_eq!(
            drafting.service_text,
            "\n[service.tcp-50001-50003]\nports = [\"tcp/50001-50003\"]\n"
        );
        let some = |drafting: &Drafting<'_>, ports: &[PortMatch]| drafting.some_of("dicom", ports);
        assert_eq!(some(&drafting, &[port(104, 104)]).as_deref(), Some("tcp/104"));
        assert_eq!(some(&drafting, &[port(104, 104), port(11112, 11112)]), None);
        let outside = BTreeSet::from(["10.9.0.5/32".parse().unwrap()]);
        for _ in 0..2 {
            assert_eq!(drafting.external(&outside), "outside-10-9-0-5");
        }
        assert_eq!(
            drafting.external_text,
            "\n[external.outside-10-9-0-5]\nprefixes = [\"10.9.0.5/32\"]\nreview = 2027-11-22\n"
        );
        let known = &resolved.policy.externals.iter().next().unwrap();
        let same = known.1.prefixes.iter().copied().collect();
        assert_eq!(drafting.external(&same), known.0.as_str());
    }

    #[test]
    fn names_are_nobody_elses_and_fit() {
        let resolved = Resolved::new(&hospital()).unwrap();
        let mut drafting = Drafting::new(&resolved, NOW);
        let mut name = |wanted: &str| drafting.name(Space::Ends, wanted);
        assert_eq!([name("ct-1"), name("ct-1")], ["ct-1-2", "ct-1-3"], "a device has the first");
        assert_eq!([name("Röntgen Süd"), name("")], ["roentgen-sued", "unnamed"]);
        let long = "x".repeat(80);
        for name in [name(&long), name(&long)] {
            assert!(name.parse::<Name>().is_ok(), "{name}");
        }
    }

    #[test]
    fn a_rule_covers_a_service_by_one_of_its_ranges() {
        let mut model = hospital();
        model.policy.push_str(
            "[service.two]\nports = [\"tcp/10-20\", \"tcp/40-50\"]\n[rule.two]\nfrom = \"ct-1\"\nto = \"pump-1\"\nservices = [\"two\"]\n",
        );
        let resolved = Resolved::new(&model).unwrap();
        let rule = resolved.rules.iter().find(|rule| rule.name.as_str() == "two").unwrap();
        for (first, last, covered) in [(10, 20, true), (45, 50, true), (15, 45, false)] {
            assert_eq!(covers(rule, &port(first, last)), covered, "{first}-{last}");
        }
        let other = PortMatch { protocol: Protocol::Udp, ..port(10, 20) };
        assert!(!covers(rule, &other));
    }
}
