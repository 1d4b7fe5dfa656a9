//! The policy's own tests.

use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;

use super::{Findings, Severity};
use crate::decide::{Flow, Party, permits};
use crate::parties::{label, representatives};
use crate::policy::{Expect, Test};
use crate::resolve::Resolved;

/// Most flows that one test looks at.
const MAX_FLOWS: usize = 500_000;

/// Judges each test by what rules allow at `now`, whatever the modes: what would hold in enforce.
pub(super) fn check(resolved: &Resolved, now: UnixMillis, findings: &mut Findings) {
    for (name, test) in &resolved.policy.tests {
        let subject = format!("test.{name}");
        match run(resolved, test, now) {
            Outcome::Holds => {}
            Outcome::Fails(message) => {
                findings.add(Severity::Error, "test-failed", subject, message);
            }
            Outcome::Nobody(side) => findings.add(
                Severity::Warning,
                "test-of-nobody",
                subject,
                format!("It proves nothing, because nobody is in \"{side}\"."),
            ),
            Outcome::TooLarge => findings.add(
                Severity::Error,
                "test-too-large",
                subject,
                format!("It would look at more than {MAX_FLOWS} flows: name smaller segments."),
            ),
        }
    }
}

enum Outcome {
    Holds,
    Fails(String),
    Nobody(String),
    TooLarge,
}

fn run(resolved: &Resolved, test: &Test, now: UnixMillis) -> Outcome {
    let parties = |name: &str| {
        let side = resolved.side_named(name).map(|id| resolved.side(id));
        side.map(|side| representatives(resolved, side)).unwrap_or_default()
    };
    let (from, to) = (parties(test.from.value.as_str()), parties(test.to.value.as_str()));
    for (end, parties) in [(&test.from, &from), (&test.to, &to)] {
        if parties.is_empty() {
            return Outcome::Nobody(end.value.to_string());
        }
    }
    let services = test.services.iter();
    let ports: Vec<(PortMatch, u16)> = services
        .filter_map(|service| resolved.policy.ports(service.value.as_str()))
        .flatten()
        .flat_map(|ports| resolved.telling_ports(ports).into_iter().map(|port| (*ports, port)))
        .collect();
    if from.len().saturating_mul(to.len()).saturating_mul(ports.len()) > MAX_FLOWS {
        return Outcome::TooLarge;
    }
    for from in &from {
        for to in to.iter().filter(|to| *to != from) {
            // Between two addresses no gateway stands, so there is nothing to test.
            if matches!((from, to), (Party::Address(_), Party::Address(_))) {
                continue;
            }
            for (ports, port) in &ports {
                let protocol = ports.protocol;
                let flow = Flow { from: *from, to: *to, protocol, port: *port };
                let one = PortMatch { protocol, first: *port, last: *port };
                let who =
                    || format!("{} to {}: {one}", label(resolved, *from), label(resolved, *to));
                match (permits(resolved, &flow, now), test.expect) {
                    (Some(rule), Expect::Deny) => {
                        return Outcome::Fails(format!(
                            "It expects deny, but rule.{} allows {}.",
                            rule.name,
                            who()
                        ));
                    }
                    (None, Expect::Allow) => {
                        return Outcome::Fails(format!(
                            "It expects allow, but no rule allows {}.",
                            who()
                        ));
                    }
                    _ => {}
                }
            }
        }
    }
    Outcome::Holds
}
