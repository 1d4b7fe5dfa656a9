//! From blocks to an ordinary policy file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;

use super::blocks::Grant;
use super::bundle::{Bundle, End, bundles};
use super::confidence::confidence;
use super::facts::{CLASS, Facts, Kind, LOCATION, Place, RUNGS, hull};
use super::infrastructure::{self, Server};
use super::questions::{self, Line};
use super::{Confidence, Doubt, Options, Question, SuggestedRule};
use crate::decide::{Flow, Party, candidates};
use crate::policy::drafting::{Drafting, Space, array, covers, date, quote, quoted};
use crate::resolve::Resolved;
use crate::words::counted;

/// How many of a class make it odd that one alone does something.
const MANY: usize = 10;
/// What stands before the questions.
const QUESTIONS: &str = "# Seen, and in no rule: is any of it wanted?";
/// How a question begins.
const QUESTION: &str = "# - ";

/// What was written.
pub(super) struct Written {
    pub(super) text: String,
    pub(super) rules: Vec<SuggestedRule>,
}

pub(super) fn write(
    resolved: &Resolved,
    facts: &Facts,
    servers: &[Server],
    grants: &[Grant],
    questions: &[Question],
    options: &Options,
) -> Written {
    let mut writer = Writer::new(resolved, facts);
    writer.infrastructure = infrastructure::write(resolved, &mut writer.head, servers);
    let rules: Vec<SuggestedRule> =
        bundles(resolved, facts, grants).iter().map(|bundle| writer.rule(bundle)).collect();
    let text = writer.finish(questions, options);
    Written { text, rules }
}

/// A service of a rule.
struct Called {
    name: String,
    /// Those of its ports that were seen between the rule's ends.
    ports: Vec<PortMatch>,
    /// In how many other places it was seen, where it follows from them.
    like: usize,
}

struct Writer<'a> {
    resolved: &'a Resolved,
    facts: &'a Facts,
    drafting: Drafting<'a>,
    ends: BTreeMap<End, String>,
    head: String,
    infrastructure: String,
    segments: String,
    rules: String,
}

impl<'a> Writer<'a> {
    fn new(resolved: &'a Resolved, facts: &'a Facts) -> Self {
        let mut head = without_questions(&resolved.model.policy);
        if !head.is_empty() && !head.ends_with('\n') {
            head.push('\n');
        }
        Self {
            resolved,
            facts,
            drafting: Drafting::new(resolved, facts.until),
            ends: BTreeMap::new(),
            head,
            infrastructure: String::new(),
            segments: String::new(),
            rules: String::new(),
        }
    }

    fn rule(&mut self, bundle: &Bundle<'_>) -> SuggestedRule {
        let services = self.called(bundle);
        let hint = services.first().map(|found| found.name.clone()).unwrap_or_default();
        let to = self.end(&bundle.to, &hint, &bundle.from);
        let from = self.end(&bundle.from, &hint, &bundle.to);
        let name = self.drafting.name(Space::Rules, &format!("{from}-to-{to}"));
        let sizes = [self.size(&bundle.from), self.size(&bundle.to)];
        let ports: usize = services.iter().map(|found| self.drafting.ports(&found.name)).sum();
        let opens = sizes[0].saturating_mul(sizes[1]).saturating_mul(ports as u64);
        let seen: u64 = bundle.grants.iter().map(|grant| grant.seen.len() as u64).sum();
        let froms: BTreeSet<u32> = bundle.seen_at(|pair| pair.0);
        let tos: BTreeSet<u32> = bundle.seen_at(|pair| pair.1);
        // What wasn't seen here has no moments of its own.
        let mut sums =
            bundle.grants.iter().filter(|grant| !grant.seen.is_empty()).map(|grant| grant.sum);
        let mut sum = sums.next().unwrap_or(bundle.grants[0].sum);
        sums.for_each(|more| sum.add(&more));
        let only = bundle.grants.iter().all(|grant| grant.callers == 1);
        let alone = only && froms.first().is_some_and(|from| self.is_one_of_many(*from));
        let confidence = match confidence(&sum, froms.len() as u64, tos.len() as u64, sizes) {
            _ if alone => Confidence::Low,
            found => found,
        };
        if seen == 0 {
            let _ = write!(
                self.rules,
                "\n# Not seen here; it was in {} other places, and in nine of ten where both are.\n# Confidence: low. It opens {opens} pairs.\n",
                services.iter().map(|found| found.like).max().unwrap_or(0),
            );
        } else {
            let _ = write!(
                self.rules,
                "\n# Seen: {} of {} who may open, {} of {} who answer; {} on {}, {} to {}.\n# Confidence: {confidence}. {}\n",
                froms.len(),
                sizes[0],
                tos.len(),
                sizes[1],
                counted(sum.flows, "flow"),
                counted(sum.days.count_ones().into(), "day"),
                date(sum.first),
                date(sum.last),
                match opens.saturating_sub(seen) {
                    0 => "It opens nothing beyond what was seen.".to_owned(),
                    more =>
                        format!("It opens {opens} pairs, {more} beyond the {seen} that were seen."),
                },
            );
        }
        if alone {
            self.rules.push_str(
                "# It is the only one of its class that does so: is it set up wrongly?\n",
            );
        }
        for found in &services {
            let name = &found.name;
            if found.ports.is_empty() && seen > 0 {
                let _ = writeln!(
                    self.rules,
                    "# \"{name}\" wasn't seen here; it was in {} other places, and in nine of ten where both are.",
                    found.like
                );
            } else if let Some(ports) = self.drafting.some_of(name, &found.ports) {
                let were = if found.ports.len() == 1 { "was" } else { "were" };
                let _ = writeln!(self.rules, "# Of \"{name}\" only {ports} {were} seen.");
            }
        }
        let outside = [&froms, &tos]
            .into_iter()
            .flatten()
            .any(|party| matches!(self.facts.parties[*party as usize], Party::Address(_)));
        let listed: Vec<String> =
            services.iter().map(|found| format!("\"{}\"", found.name)).collect();
        let _ = write!(
            self.rules,
            "[rule.{}]\nfrom = \"{from}\"\nto = \"{to}\"\nservices = [{}]\n",
            quoted(&name),
            listed.join(", ")
        );
        if outside {
            self.rules.push_str("clear = true # an address without a gateway\n");
        }
        if bundle.essential {
            self.rules.push_str(
                "essential = true # around the clock, from devices that watch patients\n",
            );
        }
        SuggestedRule { name, confidence, opens, seen, essential: bundle.essential }
    }

    /// The services of a bundle by their names in the policy, each once, in the order of what was seen.
    fn called(&mut self, bundle: &Bundle<'_>) -> Vec<Called> {
        let mut by_port: BTreeMap<u32, (bool, usize)> = BTreeMap::new();
        for grant in &bundle.grants {
            let (seen, like) = by_port.entry(grant.service).or_default();
            *seen |= !grant.seen.is_empty();
            *like = grant.like.max(*like);
        }
        let mut found: Vec<Called> = Vec::new();
        let (resolved, facts) = (self.resolved, self.facts);
        let seen_ports: Vec<PortMatch> =
            by_port.keys().map(|service| facts.services[*service as usize]).collect();
        let ends = [bundle.from.parties(facts), bundle.to.parties(facts)];
        // What a rule's end closed isn't opened again because a service has it beside what was seen.
        let fits = |ports: &[PortMatch]| {
            let mut others = ports.iter().filter(|port| !seen_ports.contains(port));
            others.all(|port| !facts.opened.reopens(resolved, ends, port))
        };
        for (service, (seen, like)) in by_port {
            let name = self.drafting.service_that(facts.services[service as usize], fits);
            let place = found.iter().position(|known| known.name == name).unwrap_or_else(|| {
                found.push(Called { name, ports: Vec::new(), like: 0 });
                found.len() - 1
            });
            let called = &mut found[place];
            called.like = called.like.max(like);
            if seen {
                called.ports.push(self.facts.services[service as usize]);
            }
        }
        found
    }

    /// Whether a device is one of many of its class, so that what it alone does is odd.
    fn is_one_of_many(&self, party: u32) -> bool {
        let class = self.facts.ladder[party as usize][RUNGS - 1];
        self.facts.cells[RUNGS - 1][class as usize].parties.len() >= MANY
    }

    /// How many a rule's end stands for.
    fn size(&self, end: &End) -> u64 {
        match end {
            End::Cell((rung, cell)) => self.facts.cells[usize::from(*rung)][*cell as usize].size,
            End::Listed(parties) => parties.len() as u64,
        }
    }

    /// The name of a rule's end, written down where it has none yet.
    fn end(&mut self, end: &End, service: &str, far: &End) -> String {
        if let Some(name) = self.ends.get(end) {
            return name.clone();
        }
        let parties = end.parties(self.facts);
        let rung = match end {
            End::Cell((rung, _)) => usize::from(*rung),
            End::Listed(_) => 0,
        };
        let name = match (&self.facts.parties[parties[0] as usize], parties.len()) {
            (Party::Member(id), 1) => self.resolved.model.member_name(*id).map(ToString::to_string),
            (Party::Member(_), _) => None,
            (Party::Address(_), _) => Some(self.external(parties, rung)),
        };
        let name = name.unwrap_or_else(|| self.segment(end, parties, service, far));
        self.ends.insert(end.clone(), name.clone());
        name
    }

    fn external(&mut self, parties: &[u32], rung: usize) -> String {
        let nets: BTreeSet<_> = if rung == 0 {
            parties.iter().map(|party| hull(&self.facts.parties, &[*party])).collect()
        } else {
            BTreeSet::from([hull(&self.facts.parties, parties)])
        };
        self.drafting.external(&nets)
    }

    fn segment(&mut self, end: &End, parties: &[u32], service: &str, far: &End) -> String {
        let facts = self.facts;
        let Kind::Label(class) = &facts.kinds[facts.class[parties[0] as usize] as usize] else {
            // Cells of more than one device are those of a label.
            return self.listed("devices", parties, "");
        };
        let base = class.clone();
        let (rung, cell) = match end {
            End::Cell(at) => *at,
            End::Listed(_) => {
                let far = self.ends.get(far).cloned().unwrap_or_default();
                let called = if far.is_empty() { service.to_owned() } else { far };
                return self.listed(&format!("{base}-of-{called}"), parties, "");
            }
        };
        let site = match facts.parties[parties[0] as usize] {
            Party::Member(id) => self.resolved.site_of(id),
            Party::Address(_) => None,
        };
        let label = |class: &str| format!("label.{CLASS} = {}", quote(class));
        let (name, matches) = match (usize::from(rung), site) {
            (rung, _) if rung == RUNGS - 1 => (base, label(class)),
            (2, Some(site)) => {
                (format!("{base}-{site}"), format!("site = \"{site}\", {}", label(class)))
            }
            (1, Some(site)) => match &facts.places[cell as usize] {
                Place::Location(place) => (
                    format!("{base}-{place}"),
                    format!(
                        "site = \"{site}\", {}, label.{LOCATION} = {}",
                        label(class),
                        quote(place)
                    ),
                ),
                Place::Subnet(net) => {
                    let short = net.to_string().replace(['.', '/'], "-");
                    return self.listed(&format!("{base}-{short}"), parties, &format!(" in {net}"));
                }
                Place::Nowhere => return self.listed(&base, parties, ""),
            },
            _ => return self.listed(&base, parties, ""),
        };
        let of = |named: fn(&Facts, &u32) -> bool| -> Vec<u32> {
            parties.iter().copied().filter(|party| named(facts, party)).collect()
        };
        let adopted = of(|facts, party| facts.adopted.contains(party));
        let recognised = of(|facts, party| facts.recognised.contains_key(party));
        let mut by_name = [adopted.as_slice(), recognised.as_slice()].concat();
        by_name.sort_unstable();
        if by_name.is_empty()
            && let Some(same) = self.same_match(&matches)
        {
            return same;
        }
        let name = self.drafting.name(Space::Ends, &name);
        let members = self.members(&by_name);
        if !adopted.is_empty() {
            let who = if recognised.is_empty() {
                "The devices by name".to_owned()
            } else {
                self.members(&adopted).join(", ")
            };
            let _ = write!(
                self.segments,
                "\n# {who} have no label; their conversations are those of {}. Confirm the label, and take them out here.",
                quote(class)
            );
        }
        let sure = recognised.iter().filter_map(|party| facts.recognised.get(party));
        if let (Some(least), Some(most)) = (sure.clone().min(), sure.max()) {
            let who = if adopted.is_empty() {
                "The devices by name".to_owned()
            } else {
                self.members(&recognised).join(", ")
            };
            let range =
                if least == most { format!("{least}") } else { format!("{least} to {most}") };
            let _ = write!(
                self.segments,
                "\n# {who} have no label; they are recognised as {}, {range} % sure. Confirm the label, and take them out here.",
                quote(class)
            );
        }
        let _ = write!(self.segments, "\n[segment.{}]\n", quoted(&name));
        if !by_name.is_empty() {
            let _ = writeln!(self.segments, "members = {}", array(&members));
        }
        let _ = writeln!(self.segments, "match = {{ {matches} }}");
        name
    }

    /// The policy's own segment that is just this match.
    fn same_match(&self, matches: &str) -> Option<String> {
        let text = format!("format = 1\n[segment.x]\nmatch = {{ {matches} }}\n");
        let wanted =
            crate::policy::parse("", &text).ok()?.unplaced().segments.into_values().next()?;
        let known = self.resolved.policy.clone().unplaced().segments;
        known.into_iter().find(|(_, segment)| *segment == wanted).map(|(name, _)| name.to_string())
    }

    fn listed(&mut self, name: &str, parties: &[u32], whence: &str) -> String {
        let name = self.drafting.name(Space::Ends, name);
        let members = self.members(parties);
        let _ = write!(
            self.segments,
            "\n# {} devices{whence}.\n[segment.{}]\nmembers = {}\n",
            members.len(),
            quoted(&name),
            array(&members)
        );
        name
    }

    fn members(&self, parties: &[u32]) -> Vec<String> {
        let mut names: Vec<String> = parties
            .iter()
            .filter_map(|party| match self.facts.parties[*party as usize] {
                Party::Member(id) => self.resolved.model.member_name(id),
                Party::Address(_) => None,
            })
            .map(|name| format!("\"{name}\""))
            .collect();
        names.sort_unstable();
        names
    }

    fn finish(self, questions: &[Question], options: &Options) -> String {
        let asked = self.asked(questions, options);
        let mut text = self.head;
        let Drafting { external_text, service_text, .. } = self.drafting;
        let sections =
            [self.infrastructure, external_text, self.segments, service_text, self.rules];
        if sections.iter().any(|section| !section.is_empty()) {
            text.push_str("\n# Suggested from what was seen until ");
            text.push_str(&date(self.facts.until));
            text.push_str(". Read it before you apply it.\n");
        }
        sections.iter().for_each(|section| text.push_str(section));
        text + &asked
    }

    /// What only people can answer.
    fn asked(&self, questions: &[Question], options: &Options) -> String {
        if questions.is_empty() {
            return String::new();
        }
        let mut text = format!("\n{QUESTIONS}\n");
        let mut shown = 0;
        for line in questions::lines(questions, options.lines_of_questions) {
            shown += line.questions.len();
            let _ = writeln!(text, "{QUESTION}{}", self.question(&line));
        }
        if let Some(more) = questions.len().checked_sub(shown).filter(|more| *more > 0) {
            let _ = writeln!(text, "{QUESTION}and {more} more");
        }
        text
    }

    fn question(&self, line: &Line<'_>) -> String {
        let first = line.questions[0];
        let label = |party| crate::parties::label(self.resolved, party);
        let flows = line.questions.iter().map(|question| question.flows).sum();
        let last = line.questions.iter().map(|question| question.last).max().unwrap_or(first.last);
        format!(
            "{} to {}, {}: {}, last on {}; {}",
            label(first.from),
            label(first.to),
            match line.questions.len() {
                1 => first.service.to_string(),
                ports => format!("{} on {ports} ports", first.service.protocol.word()),
            },
            counted(flows, "flow"),
            date(last),
            match first.doubt {
                Doubt::SeenOnce => "seen on one day".to_owned(),
                Doubt::Scanner => "from a device that looks as if it were scanning".to_owned(),
                Doubt::RanOut => self.ran_out(first),
                Doubt::LongAgo => "not since".to_owned(),
            }
        )
    }

    /// The rule that opened it last.
    fn ran_out(&self, question: &Question) -> String {
        let Question { from, to, service, .. } = *question;
        let flow = Flow { from, to, protocol: service.protocol, port: service.first };
        let mut found: Option<(UnixMillis, &Name)> = None;
        candidates(self.resolved, &flow, &mut |_, rule| {
            let over = rule.expires.filter(|_| covers(rule, &service));
            found = found.max(over.map(|end| (end, &rule.name)));
        });
        found.map_or_else(
            || "a rule opened it that is over".to_owned(),
            |(end, rule)| format!("rule.{rule} opened it until {}", date(end)),
        )
    }
}

/// A policy without the questions of an earlier suggestion, which are asked anew.
fn without_questions(text: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut asked = false;
    for line in text.lines() {
        asked = line == QUESTIONS || (asked && line.starts_with(QUESTION));
        if line == QUESTIONS && kept.last().is_some_and(|line| line.is_empty()) {
            kept.pop();
        }
        if !asked {
            kept.push(line);
        }
    }
    kept.iter().flat_map(|line| [*line, "\n"]).collect()
}
