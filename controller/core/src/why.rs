//! Why a flow passes or doesn't, in words, and what to do about it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use anteroom_proto::api::Edge;
use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::Verdict;
use serde::{Deserialize, Serialize};

use self::recorded::Found;
use crate::decide::{Flow, Party, decide};
use crate::lint::moment;
use crate::names::Names;
use crate::parties::{addresses, label, representatives};
use crate::problem::did_you_mean;
use crate::resolve::Resolved;
use crate::service_catalog;

mod advice;
mod recorded;
#[cfg(test)]
mod tests;

/// The answer to `why SRC DST SERVICE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhyAnswer {
    /// One answer for each outcome that differs, at most [`MAX_ANSWERS`].
    pub answers: Vec<Answer>,
    /// How many pairs and ports were looked at.
    pub looked_at: usize,
}

/// Most answers to one question.
pub const MAX_ANSWERS: usize = 16;
/// Most flows that one question looks at.
const MAX_FLOWS: usize = 100_000;

/// The answer for one pair and port, and for those that fare alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Who opens.
    pub from: String,
    /// Mode of that device, or `client`, where it is one.
    pub from_mode: Option<String>,
    /// To whom.
    pub to: String,
    /// Mode of that device, or `client`, where it is one.
    pub to_mode: Option<String>,
    /// Protocol and port.
    pub service: String,
    /// What happens: the text of a verdict.
    pub verdict: String,
    /// The rule that allows it, or would.
    pub rule: Option<String>,
    /// What that means, in a sentence or two.
    pub explanation: String,
    /// The last time that it was dropped, or would have been, as recorded.
    pub last_drop: Option<LastDrop>,
    /// What a gateway did that isn't what the model says, where it did so last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradiction: Option<Contradiction>,
    /// What to do next, in a sentence.
    pub next_step: Option<String>,
    /// Policy text that would do it.
    pub snippet: Option<String>,
    /// How many more of the pairs and ports fare alike.
    pub alike: usize,
}

/// A recorded drop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastDrop {
    /// When.
    pub at: UnixMillis,
    /// The gateway that recorded it, by name.
    pub gateway: String,
    /// The verdict's text.
    pub verdict: String,
    /// How many flows.
    pub flows: u64,
}

/// What a gateway did last with a flow, though the model says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contradiction {
    /// When, by the gateway's time.
    pub at: UnixMillis,
    /// The gateway, by name.
    pub gateway: String,
    /// Its verdict's text.
    pub verdict: String,
    /// How far that moment lies ahead of the asking machine's clock, in milliseconds, where it is an hour or more.
    pub ahead_ms: Option<u64>,
    /// Why it may have, in a sentence or two.
    pub explanation: String,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gateway, verdict, explanation, .. } = self;
        write!(
            f,
            "{gateway} judged otherwise, {verdict}: {explanation} `anteroom gateway show {gateway}` tells what it holds."
        )
    }
}

/// What telemetry tells of flows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recorded<'a> {
    /// Traffic, as gateways saw it.
    pub edges: &'a [Edge],
    /// When the newest revision was signed: what gateways did before says nothing against it.
    pub signed_at: UnixMillis,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyError {
    /// Neither a name nor an address.
    #[error("no device, segment or external \"{text}\", and it isn't an IPv4 address{suggestion}")]
    Party {
        /// What was asked.
        text: String,
        /// ``; did you mean …?``, or nothing.
        suggestion: String,
    },
    /// Not a service.
    #[error(
        "no service \"{text}\", and it isn't protocol and port such as tcp/104 or icmp/echo{suggestion}"
    )]
    Service {
        /// What was asked.
        text: String,
        /// ``; did you mean …?``, or nothing.
        suggestion: String,
    },
    /// A name that stands for nobody.
    #[error("\"{text}\" has no members and no externals, so there is nobody to ask about")]
    Empty {
        /// What was asked.
        text: String,
    },
    /// Both ends are the same.
    #[error("\"{text}\" at both ends: traffic with oneself passes no gateway")]
    Same {
        /// What was asked.
        text: String,
    },
    /// Too many pairs and ports.
    #[error("that is more than {MAX_FLOWS} flows: ask about smaller segments")]
    TooLarge,
}

impl fmt::Display for WhyAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, answer) in self.answers.iter().enumerate() {
            if place > 0 {
                writeln!(f)?;
            }
            write!(f, "{answer}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = |mode: &Option<String>| {
            mode.as_ref().map(|mode| format!(" ({mode})")).unwrap_or_default()
        };
        let alike = match self.alike {
            0 => String::new(),
            more => format!(", and {more} more alike"),
        };
        writeln!(
            f,
            "{}{} -> {}{}: {}{alike}",
            self.from,
            mode(&self.from_mode),
            self.to,
            mode(&self.to_mode),
            self.service
        )?;
        writeln!(f, "  {}: {}", self.verdict, self.explanation)?;
        if let Some(drop) = &self.last_drop {
            let (at, gateway) = (moment(drop.at), &drop.gateway);
            writeln!(f, "  last: {} at {gateway}, {at}, {} flows", drop.verdict, drop.flows)?;
        }
        if let Some(contradiction) = &self.contradiction {
            writeln!(f, "  but: {contradiction}")?;
        }
        if let Some(step) = &self.next_step {
            writeln!(f, "  next: {step}")?;
        }
        for line in self.snippet.iter().flat_map(|snippet| snippet.lines()) {
            let indent = if line.is_empty() { "" } else { "    " };
            writeln!(f, "{indent}{line}")?;
        }
        Ok(())
    }
}

/// Explains what happens when `from` opens `service` to `to`. Ends are names of devices, segments or externals, or
/// addresses; a service is a name, or protocol and port.
///
/// # Errors
/// [`WhyError`], which says what couldn't be understood and what may have been meant.
pub fn explain(
    resolved: &Resolved,
    from: &str,
    to: &str,
    service: &str,
    recorded: &Recorded<'_>,
    now: UnixMillis,
) -> Result<WhyAnswer, WhyError> {
    let (openers, responders) = (parties(resolved, from)?, parties(resolved, to)?);
    let ports: Vec<(PortMatch, u16)> = ports(resolved, service)?
        .iter()
        .flat_map(|ports| resolved.telling_ports(ports).into_iter().map(|port| (*ports, port)))
        .collect();
    if openers.len().saturating_mul(responders.len()).saturating_mul(ports.len()) > MAX_FLOWS {
        return Err(WhyError::TooLarge);
    }
    let names = Names::of(&resolved.model);
    let mut outcomes: BTreeMap<(Verdict, Option<Name>), usize> = BTreeMap::new();
    let mut answers: Vec<Answer> = Vec::new();
    let mut looked_at = 0;
    for opener in &openers {
        for responder in responders.iter().filter(|responder| *responder != opener) {
            for (ports, port) in &ports {
                let protocol = ports.protocol;
                let flow = Flow { from: *opener, to: *responder, protocol, port: *port };
                let decision = decide(resolved, &flow, now);
                looked_at += 1;
                let key = (decision.verdict, decision.rule.clone());
                if let Some(place) = outcomes.get(&key) {
                    if let Some(answer) = answers.get_mut(*place) {
                        answer.alike += 1;
                    }
                    continue;
                }
                outcomes.insert(key, answers.len());
                if answers.len() < MAX_ANSWERS {
                    let asked = Asked { resolved, from, to, service, now };
                    answers.push(asked.answer(&flow, &decision, &names, recorded));
                }
            }
        }
    }
    if answers.is_empty() {
        return Err(WhyError::Same { text: cut(from) });
    }
    Ok(WhyAnswer { answers, looked_at })
}

/// A question with what it is asked of.
struct Asked<'a> {
    resolved: &'a Resolved,
    from: &'a str,
    to: &'a str,
    service: &'a str,
    now: UnixMillis,
}

impl Asked<'_> {
    fn answer(
        &self,
        flow: &Flow,
        decision: &crate::decide::Decision,
        names: &Names,
        recorded: &Recorded<'_>,
    ) -> Answer {
        let mode = |party| match party {
            Party::Member(id) if self.resolved.model.clients.contains_key(&id) => {
                Some("client".to_owned())
            }
            Party::Member(id) => {
                self.resolved.model.devices.get(&id).map(|device| device.mode.to_string())
            }
            Party::Address(_) => None,
        };
        let advice = self.advice(flow, decision);
        let found = Found::of(self.resolved, flow, names, recorded.edges);
        Answer {
            from: label(self.resolved, flow.from),
            from_mode: mode(flow.from),
            to: label(self.resolved, flow.to),
            to_mode: mode(flow.to),
            service: PortMatch { protocol: flow.protocol, first: flow.port, last: flow.port }
                .to_string(),
            verdict: decision.verdict.to_string(),
            rule: decision.rule.as_ref().map(ToString::to_string),
            explanation: advice.explanation,
            last_drop: found.last_drop(),
            contradiction: found.contradiction(decision.verdict, recorded, self.now),
            next_step: advice.next_step,
            snippet: advice.snippet,
            alike: 0,
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Who is meant by a name or an address.
fn parties(resolved: &Resolved, text: &str) -> Result<Vec<Party>, WhyError> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        let members = resolved.members_at(address);
        return Ok(match members.as_slice() {
            [] => vec![Party::Address(address)],
            _ => members.into_iter().map(Party::Member).collect(),
        });
    }
    if let Some(id) = resolved.model.member_named(text) {
        return Ok(vec![Party::Member(id)]);
    }
    let found = if let Some((name, _)) = resolved.policy.externals.get_key_value(text) {
        addresses(&resolved.policy, name).into_iter().map(Party::Address).collect()
    } else if let Some(side) = resolved.side_named(text) {
        by_outcome(resolved, representatives(resolved, resolved.side(side)), side)
    } else {
        let policy = &resolved.policy;
        let devices = resolved.model.devices.values().map(|device| device.name.as_str());
        let known = policy.segments.keys().chain(policy.externals.keys()).map(Name::as_str);
        let clients = resolved.model.clients.values().map(|client| client.name.as_str());
        let suggestion = did_you_mean(text, known.chain(devices).chain(clients));
        return Err(WhyError::Party { text: cut(text), suggestion });
    };
    if found.is_empty() { Err(WhyError::Empty { text: cut(text) }) } else { Ok(found) }
}

/// Modes, quarantine and gateways tell members apart that rules don't: one for each kind of those is added.
fn by_outcome(
    resolved: &Resolved,
    mut parties: Vec<Party>,
    side: crate::resolve::SideId,
) -> Vec<Party> {
    let mut kinds: BTreeMap<_, usize> = BTreeMap::new();
    for id in &resolved.side(side).members {
        let Some(device) = resolved.model.devices.get(id) else { continue };
        let sides = resolved.sides_of(*id);
        let seen = kinds.entry((sides, device.mode, device.quarantined)).or_default();
        *seen += 1;
        if *seen <= 2 && !parties.contains(&Party::Member(*id)) {
            parties.push(Party::Member(*id));
        }
    }
    parties
}

/// What is meant by a service's name, or by protocol and port.
fn ports(resolved: &Resolved, text: &str) -> Result<Vec<PortMatch>, WhyError> {
    if let Some(ports) = resolved.policy.ports(text) {
        return Ok(ports.to_vec());
    }
    text.parse().map(|ports| vec![ports]).map_err(|_| {
        let built_in = service_catalog::all().iter().map(|service| service.name);
        let known = resolved.policy.services.keys().map(Name::as_str).chain(built_in);
        WhyError::Service { text: cut(text), suggestion: did_you_mean(text, known) }
    })
}
