//! What a decision means, and what would change it.

use std::fmt::Write as _;

use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::Asked;
use crate::decide::{Decision, End, Flow, Party, permits};
use crate::model::Device;
use crate::parties::label;
use crate::policy::key;
use crate::service_catalog;

pub(super) struct Advice {
    pub(super) explanation: String,
    pub(super) next_step: Option<String>,
    pub(super) snippet: Option<String>,
}

impl Advice {
    fn just(explanation: impl Into<String>) -> Self {
        Self { explanation: explanation.into(), next_step: None, snippet: None }
    }
}

impl Asked<'_> {
    fn device(&self, party: Party) -> Option<&Device> {
        let Party::Member(id) = party else { return None };
        self.resolved.model.devices.get(&id)
    }

    fn is_client(&self, party: Party) -> bool {
        matches!(party, Party::Member(id) if self.resolved.model.clients.contains_key(&id))
    }

    fn gateway(&self, party: Party) -> Option<&Name> {
        let device = self.device(party)?;
        let gateway = self.resolved.model.gateways.get(&device.attachment.gateway);
        gateway.map(|gateway| &gateway.name)
    }

    pub(super) fn advice(&self, flow: &Flow, decision: &Decision) -> Advice {
        if !decision.guarded {
            return Advice::just(self.unguarded(flow));
        }
        let rule = decision.rule.as_ref();
        let allowed = rule.map(|rule| format!("Allowed by rule.{rule}")).unwrap_or_default();
        match decision.verdict {
            Verdict::Tunnel => {
                let end = |party| match self.gateway(party) {
                    Some(gateway) => gateway.to_string(),
                    None => format!("client {}", label(self.resolved, party)),
                };
                let (a, b) = (end(flow.from), end(flow.to));
                Advice::just(format!("{allowed}, through the tunnel between {a} and {b}."))
            }
            Verdict::Local => {
                let gateway = self.gateway(flow.from).map(ToString::to_string).unwrap_or_default();
                let allowed =
                    if rule.is_some() { allowed } else { "Passes without a rule".to_owned() };
                Advice::just(format!("{allowed}, from port to port of {gateway}."))
            }
            Verdict::Clear | Verdict::ClearTunnelDown if decision.infrastructure => Advice::just(
                "Passes in the clear as infrastructure of the site, which needs no rule.",
            ),
            Verdict::Clear | Verdict::ClearTunnelDown => {
                let allowed =
                    if rule.is_some() { allowed } else { "Passes without a rule".to_owned() };
                Advice::just(format!("{allowed}, in the clear, because {}.", self.why_clear(flow)))
            }
            Verdict::WouldDrop(reason) => {
                let explanation = format!(
                    "Passes in the clear for now, because {}. In enforce it would be dropped: {}",
                    self.why_clear(flow),
                    reason.explanation()
                );
                self.remedy(flow, decision, reason, explanation)
            }
            Verdict::Drop(reason) => {
                let end = if decision.dropped_at == Some(End::To) { flow.to } else { flow.from };
                let gateway = self.gateway(end).map(ToString::to_string).unwrap_or_default();
                let explanation = format!(
                    "Dropped by {gateway}, the gateway in front of {}: {}",
                    label(self.resolved, end),
                    reason.explanation()
                );
                self.remedy(flow, decision, reason, explanation)
            }
        }
    }

    fn unguarded(&self, flow: &Flow) -> String {
        match (self.gateway(flow.from), self.device(flow.from)) {
            (Some(gateway), Some(device)) => format!(
                "Both share {} of {gateway}, so no gateway stands between them.",
                device.attachment.port
            ),
            _ if self.is_client(flow.from) && self.is_client(flow.to) => {
                "Both are clients, and nothing carries traffic between two clients.".to_owned()
            }
            _ if self.is_client(flow.from) || self.is_client(flow.to) => {
                "A client reaches devices behind gateways and nothing else.".to_owned()
            }
            _ => {
                "Neither end is a device behind an approved gateway, so Anteroom has no part in it."
                    .to_owned()
            }
        }
    }

    fn why_clear(&self, flow: &Flow) -> String {
        let ends = [flow.from, flow.to];
        for end in ends {
            let id = self.device(end).map(|device| device.attachment.gateway);
            let until = id.and_then(|id| self.resolved.model.bypassed(id, self.now));
            if let (Some(until), Some(gateway)) = (until, self.gateway(end)) {
                let until = crate::lint::moment(until);
                return format!("gateway {gateway} is bypassed until {until}");
            }
        }
        for end in ends {
            if let Some(device) = self.device(end).filter(|device| device.mode == Mode::Observe) {
                return format!("{} is in observe", device.name);
            }
        }
        for end in ends {
            if self.gateway(end).is_none() {
                let label = label(self.resolved, end);
                return format!("{label} has no gateway: an address, not an identity");
            }
        }
        match self.device(flow.from) {
            Some(device) => format!("{} is in {}", device.name, device.mode),
            None => "no device is in enforce".to_owned(),
        }
    }

    fn remedy(
        &self,
        flow: &Flow,
        decision: &Decision,
        reason: DropReason,
        explanation: String,
    ) -> Advice {
        let rule = decision.rule.as_ref().map(ToString::to_string).unwrap_or_default();
        let mut snippet = None;
        let next_step = match reason {
            DropReason::NoRule | DropReason::NotVisible => {
                snippet = self.snippet(flow);
                let back = Flow { from: flow.to, to: flow.from, ..*flow };
                match permits(self.resolved, &back, self.now) {
                    Some(back) => format!(
                        "rule.{} opens the other way only, replies included. If this way is needed too, add a rule:",
                        back.name
                    ),
                    None => "if it is needed, add a rule:".to_owned(),
                }
            }
            DropReason::ClearNotAllowed => {
                let observed = [flow.from, flow.to]
                    .into_iter()
                    .find_map(|end| self.device(end).filter(|device| device.mode == Mode::Observe));
                match observed {
                    Some(device) => format!(
                        "`anteroom device mode {} protect`, so that the pair takes the tunnel, or write clear = true \
                         in rule.{rule}",
                        device.name
                    ),
                    None => format!(
                        "write clear = true in rule.{rule}, or put a gateway in front of the other end"
                    ),
                }
            }
            DropReason::Expired => {
                format!("give rule.{rule} a new \"expires\", or take it out for good")
            }
            DropReason::Quarantined => {
                let quarantined = [flow.from, flow.to]
                    .into_iter()
                    .find_map(|end| self.device(end).filter(|device| device.quarantined));
                let name = quarantined.map(|device| device.name.to_string()).unwrap_or_default();
                format!(
                    "{name} is quarantined: release it, or mark a rule essential that must survive quarantine"
                )
            }
            DropReason::ClientOfObserved => {
                let device = self.device(flow.from).or_else(|| self.device(flow.to));
                let name = device.map(|device| device.name.to_string()).unwrap_or_default();
                format!("`anteroom device mode {name} protect`, so that the pair takes the tunnel")
            }
            DropReason::UnknownMode => "update this program: a newer one set the mode".to_owned(),
            _ => return Advice::just(explanation),
        };
        Advice { explanation, next_step: Some(next_step), snippet }
    }

    /// Policy text that would allow the flow, as a person could add it to the file.
    fn snippet(&self, flow: &Flow) -> Option<String> {
        let mut text = String::new();
        let from = self.end(flow.from, self.from, &mut text)?;
        let to = self.end(flow.to, self.to, &mut text)?;
        let service = self.service_name(flow, &mut text)?;
        let clear = [(flow.from, &from), (flow.to, &to)]
            .into_iter()
            .any(|(end, name)| self.in_the_clear(end) || self.holds_clear(name));
        let rule = self.free(&format!("{from}-to-{to}"), |name| {
            self.resolved.policy.rules.contains_key(name)
        })?;
        let _ = write!(
            text,
            "[rule.{}]\nfrom = \"{from}\"\nto = \"{to}\"\nservices = [\"{service}\"]\n",
            key(&rule)
        );
        if clear {
            text.push_str("clear = true\n");
        }
        Some(text)
    }

    /// Whether traffic with a party can't take a tunnel.
    fn in_the_clear(&self, party: Party) -> bool {
        let observed = self.device(party).is_some_and(|device| device.mode == Mode::Observe);
        observed || (self.gateway(party).is_none() && !self.is_client(party))
    }

    /// Whether a segment of this name holds somebody whose traffic can't take a tunnel.
    fn holds_clear(&self, segment: &str) -> bool {
        let side = self.resolved.side_named(segment).map(|id| self.resolved.side(id));
        side.is_some_and(|side| {
            let clear = |id: &_| self.in_the_clear(Party::Member(*id));
            !side.externals.is_empty() || side.members.iter().any(clear)
        })
    }

    /// The name for one end: as it was asked for, or a new external for an address.
    fn end(&self, party: Party, asked: &str, text: &mut String) -> Option<String> {
        let policy = &self.resolved.policy;
        if policy.segments.contains_key(asked) || policy.externals.contains_key(asked) {
            return Some(asked.to_owned());
        }
        if let Party::Member(id) = party {
            return self.resolved.model.member_name(id).map(ToString::to_string);
        }
        let Party::Address(address) = party else { return None };
        let holding = policy.externals.iter().find(|(_, external)| {
            external.prefixes.iter().any(|net| net.addr() == address && net.prefix_len() == 32)
        });
        if let Some((name, _)) = holding {
            return Some(name.to_string());
        }
        let host = format!("host-{}", address.to_string().replace('.', "-"));
        let name = self.free(&host, |name| {
            policy.segments.contains_key(name)
                || policy.externals.contains_key(name)
                || self.resolved.model.member_named(name).is_some()
        })?;
        let _ = write!(text, "[external.{name}]\nprefixes = [\"{address}/32\"]\n\n");
        Some(name.to_string())
    }

    fn service_name(&self, flow: &Flow, text: &mut String) -> Option<String> {
        let policy = &self.resolved.policy;
        if policy.ports(self.service).is_some() {
            return Some(self.service.to_owned());
        }
        let exactly = PortMatch { protocol: flow.protocol, first: flow.port, last: flow.port };
        let is = |ports: &[PortMatch]| ports == [exactly];
        let own = policy.services.iter().find(|(_, service)| is(&service.ports));
        if let Some((name, _)) = own {
            return Some(name.to_string());
        }
        let built_in = service_catalog::all().iter().find(|service| is(service.ports));
        if let Some(service) = built_in {
            return Some(service.name.to_owned());
        }
        let asked: PortMatch = self.service.parse().ok()?;
        let base = asked.to_string().replace('/', "-");
        let name = self.free(&base, |name| policy.ports(name).is_some())?;
        let _ = write!(text, "[service.{name}]\nports = [\"{asked}\"]\n\n");
        Some(name.to_string())
    }

    /// `base`, or `base-2` and so on where it is taken, cut to the length of a name.
    #[allow(clippy::unused_self, reason = "reads as one of the steps of a snippet")]
    fn free(&self, base: &str, taken: impl Fn(&str) -> bool) -> Option<Name> {
        let base: String = base.chars().take(Name::MAX_LEN - 4).collect();
        let more = (2..1000).map(|number| format!("{base}-{number}"));
        let name = std::iter::once(base.clone()).chain(more).find(|name| !taken(name))?;
        name.parse().ok()
    }
}
