//! `policy suggest|simulate`: a policy out of recorded traffic, and recorded traffic under a policy.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anteroom_controller_core::decide::Party;
use anteroom_controller_core::names::Names;
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::simulate::{Broken, simulate as judge};
use anteroom_controller_core::suggest::{Doubt, Options, Suggestion, suggest as learn};
use anteroom_controller_core::surface::{Criticality, Surface, Surfaces};
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;
use serde::Serialize;

use super::mud::extend_suggestion;
use super::policy::{deliver, read};
use crate::args::SurfaceArgs;
use crate::change::{self, ChangeError};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{count, table};
use crate::output::time::{Moment, ago};
use crate::recognised::Recognised;
use crate::recorded::Recorded;
use crate::remote::Remote;
use crate::standing::model_as_it_is;

/// Most lines of what would break that people get to see; JSON has all.
const LINES: usize = 500;

#[derive(Debug, Serialize)]
struct Suggested {
    policy: String,
    /// Where it was written.
    file: Option<String>,
    rules: Vec<RuleRow>,
    /// What is new in the sites' infrastructure: each device of the site may reach it, in the clear.
    infrastructure: Vec<ServerRow>,
    /// How many rules beyond these came of MUD files.
    by_makers: usize,
    questions: Vec<QuestionRow>,
    /// Edges that it was learnt from, and that nothing could be learnt from.
    edges: usize,
    no_evidence: usize,
    /// Edges that found no room, and those that were there and made some.
    turned_away: u64,
    forgotten: u64,
    first_seen: Option<Moment>,
    last_seen: Option<Moment>,
    /// Devices that were watched too little to be enforced, the most critical first.
    uncovered: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RuleRow {
    name: String,
    confidence: String,
    /// Pairs that it opens, and those of them that were seen.
    opens: u64,
    seen: u64,
    essential: bool,
}

#[derive(Debug, Serialize)]
struct ServerRow {
    site: String,
    kind: &'static str,
    address: Ipv4Addr,
    confidence: String,
    /// Pairs of a device and a service that it opens, and those of them that were seen.
    opens: u64,
    seen: u64,
}

#[derive(Debug, Serialize)]
struct QuestionRow {
    from: String,
    to: String,
    service: String,
    why: &'static str,
    flows: u64,
    last_seen: Moment,
}

/// `anteroom policy suggest`.
pub(super) fn suggest(
    out: Option<&Path>,
    extend: Option<&Path>,
    muds: &[(String, PathBuf)],
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let resolved = match extend {
        Some(path) => Resolved::from_text(&model, &path.display().to_string(), &read(path)?),
        None => Resolved::new(&model),
    };
    let recorded = Recorded::load(remote, resolved.map_err(ChangeError::from)?)?;
    recorded.warn_of_gaps(output)?;
    let Some((first, last)) = recorded.history.span() else {
        return Err(Error::Other(
            "no traffic of a confirmed device is recorded yet, so there is nothing to learn from: `anteroom device list` shows the \
             devices, `anteroom flows` the traffic"
                .into(),
        ));
    };
    let recognised = Recognised::load(remote, Some(&recorded.history))?;
    let classes = recognised.sure_classes(&model);
    let mut found = learn(&recorded.resolved, &recorded.history, &classes, &Options::default())
        .map_err(ChangeError::from)?;
    let text = std::mem::take(&mut found.text);
    let (text, by_makers) =
        extend_suggestion(&model, (&recorded.history, &recognised), text, muds, output)?;
    found.text = text;
    if let Some(path) = out {
        deliver(path, extend, &found.text)?;
    }
    let suggested = Suggested { by_makers, ..suggested(found, &recorded, out, (first, last)) };
    output.data(&suggested, |suggested| match out {
        Some(path) => told(suggested, path),
        None => suggested.policy.trim_end().to_owned(),
    })?;
    Ok(Exit::Ok)
}

fn suggested(
    found: Suggestion,
    recorded: &Recorded,
    out: Option<&Path>,
    (first, last): (UnixMillis, UnixMillis),
) -> Suggested {
    let Recorded { resolved, history, .. } = recorded;
    let names = Names::of(&resolved.model);
    let called = |party| match party {
        Party::Member(id) => names.member(id),
        Party::Address(address) => address.to_string(),
    };
    let uncovered = recorded.coverage().into_iter().filter(|(_, found)| !found.enough);
    let surfaces = Surfaces::of(resolved);
    let mut uncovered: Vec<_> = uncovered.map(|(id, _)| id).collect();
    uncovered.sort_by_key(|id| Reverse(surfaces.member(*id).criticality()));
    Suggested {
        policy: found.text,
        file: out.map(|path| path.display().to_string()),
        rules: found
            .rules
            .into_iter()
            .map(|rule| RuleRow {
                name: rule.name,
                confidence: rule.confidence.to_string(),
                opens: rule.opens,
                seen: rule.seen,
                essential: rule.essential,
            })
            .collect(),
        infrastructure: found
            .servers
            .into_iter()
            .map(|server| ServerRow {
                site: server.site.to_string(),
                kind: server.kind.key(),
                address: server.address,
                confidence: server.confidence.to_string(),
                opens: server.opens,
                seen: server.seen,
            })
            .collect(),
        by_makers: 0,
        questions: found
            .questions
            .into_iter()
            .map(|question| QuestionRow {
                from: called(question.from),
                to: called(question.to),
                service: question.service.to_string(),
                why: match question.doubt {
                    Doubt::SeenOnce => "seen-once",
                    Doubt::Scanner => "scanner",
                    Doubt::RanOut => "ran-out",
                    Doubt::LongAgo => "long-ago",
                },
                flows: question.flows,
                last_seen: Moment(question.last),
            })
            .collect(),
        edges: history.len(),
        no_evidence: found.no_evidence,
        turned_away: recorded.turned_away,
        forgotten: recorded.forgotten,
        first_seen: Some(Moment(first)),
        last_seen: Some(Moment(last)),
        uncovered: uncovered.into_iter().map(|id| names.member(id)).collect(),
    }
}

fn told(suggested: &Suggested, path: &Path) -> String {
    let path = path.display();
    let essential = suggested.rules.iter().filter(|rule| rule.essential).count();
    let mut text = format!(
        "Written to {path}: {} ({essential} essential), learnt from {}.",
        count(suggested.rules.len(), "new rule", "new rules"),
        count(suggested.edges, "edge", "edges"),
    );
    if !suggested.infrastructure.is_empty() {
        let found = count(suggested.infrastructure.len(), "server", "servers");
        text.push_str(&format!(
            "\n{found} more in the sites' infrastructure, open to each device of its site in the clear."
        ));
    }
    if suggested.by_makers > 0 {
        text.push_str(&format!(
            "\n{} more by makers' MUD files.",
            count(suggested.by_makers, "rule", "rules")
        ));
    }
    if !suggested.questions.is_empty() {
        text.push_str(&format!(
            "\n{} at its end: what was seen and is in no rule.",
            count(suggested.questions.len(), "question", "questions")
        ));
    }
    if !suggested.uncovered.is_empty() {
        text.push_str(&format!(
            "\n{} watched too little to be enforced: `anteroom device list` says how much was seen of each.",
            if suggested.uncovered.len() == 1 {
                "1 device was".to_owned()
            } else {
                format!("{} devices were", suggested.uncovered.len())
            }
        ));
    }
    text.push_str(&format!(
        "\nRead it, then: anteroom policy simulate {path} --over 14d, and anteroom policy plan {path}"
    ));
    text
}

#[derive(Debug, Serialize)]
struct Simulated {
    file: String,
    since: Moment,
    /// Edges that were judged, and their flows.
    edges: usize,
    flows: u64,
    broken_flows: u64,
    broken: Vec<BrokenRow>,
    by_device: Vec<DeviceRow>,
    /// Whether only the traffic of some devices was asked for.
    #[serde(skip)]
    chosen: bool,
}

#[derive(Debug, Serialize)]
struct BrokenRow {
    device: String,
    from: String,
    to: String,
    service: String,
    /// Whether an essential rule carries it today.
    essential: bool,
    /// The greater criticality of its two ends.
    criticality: Option<Criticality>,
    flows: u64,
    /// Days with traffic, of the last 64.
    days: u32,
    last_seen: Moment,
    reason: String,
}

#[derive(Debug, Serialize)]
struct DeviceRow {
    device: String,
    criticality: Option<Criticality>,
    edges: usize,
    flows: u64,
    essential: usize,
}

/// `anteroom policy simulate`.
pub(super) fn simulate(
    path: &Path,
    over: Duration,
    devices: &[String],
    wanted: &SurfaceArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let text = read(path)?;
    let file = path.display().to_string();
    let model = model_as_it_is(remote, output)?;
    let mut enforced = BTreeSet::new();
    for name in devices {
        enforced.insert(model.find_device(name).map_err(ChangeError::from)?.0);
    }
    let recorded = Recorded::of(remote, &model)?;
    recorded.warn_of_gaps(output)?;
    let Recorded { resolved, history, now, .. } = &recorded;
    let since = UnixMillis(now.0.saturating_sub(millis(over)));
    let found = judge(resolved, &file, &text, history, &enforced, since, *now)
        .map_err(ChangeError::from)?;
    let names = Names::of(&resolved.model);
    // What the file itself says of its segments counts.
    let after = Resolved::from_text(&resolved.model, &file, &text).map_err(ChangeError::from)?;
    let surfaces = Surfaces::of(&after);
    let ends = |broken: &Broken| broken.ends.map(|party| surfaces.party(party).clone());
    let mut chosen: Vec<(Broken, [Surface; 2])> =
        found.broken.iter().map(|broken| (broken.clone(), ends(broken))).collect();
    chosen.retain(|(_, [from, to])| wanted.fits_either([from, to]));
    wanted.sort(&mut chosen, |(_, [from, to])| [from, to]);
    let mut by_device: BTreeMap<String, DeviceRow> = BTreeMap::new();
    let row = |(broken, _): &(Broken, _)| {
        let device = names.member(broken.device);
        let sum = by_device.entry(device.clone()).or_insert_with(|| DeviceRow {
            device: device.clone(),
            criticality: surfaces.member(broken.device).criticality(),
            edges: 0,
            flows: 0,
            essential: 0,
        });
        sum.edges += 1;
        sum.flows = sum.flows.saturating_add(broken.flows);
        sum.essential += usize::from(broken.essential);
        let protocol = match broken.service.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::IcmpEcho => 1,
        };
        BrokenRow {
            device,
            from: broken.from.clone(),
            to: broken.to.clone(),
            service: names.service(protocol, broken.service.first),
            essential: broken.essential,
            criticality: broken.criticality,
            flows: broken.flows,
            days: broken.days,
            last_seen: Moment(broken.last),
            reason: broken.reason.explanation().to_owned(),
        }
    };
    let broken: Vec<BrokenRow> = chosen.iter().map(row).collect();
    let mut by_device: Vec<DeviceRow> = by_device.into_values().collect();
    by_device.sort_by_key(|row| (row.essential == 0, Reverse(row.criticality)));
    let simulated = Simulated {
        file,
        since: Moment(since),
        edges: found.edges,
        flows: found.flows,
        broken_flows: broken.iter().fold(0, |sum, row| sum.saturating_add(row.flows)),
        broken,
        by_device,
        chosen: wanted.chooses(),
    };
    output.data(&simulated, |simulated| render(simulated, *now))?;
    Ok(if simulated.broken.is_empty() { Exit::Ok } else { Exit::Refused })
}

fn render(simulated: &Simulated, now: UnixMillis) -> String {
    let head = format!(
        "{} with {} since {}: ",
        count(simulated.edges, "edge", "edges"),
        count(usize::try_from(simulated.flows).unwrap_or(usize::MAX), "flow", "flows"),
        simulated.since
    );
    if simulated.edges == 0 {
        return format!("{head}nothing was recorded that this could be judged by.");
    }
    if simulated.broken.is_empty() {
        return format!(
            "{head}{} would break none {}.",
            simulated.file,
            if simulated.chosen { "that was asked for" } else { "of them" }
        );
    }
    let lines = simulated.broken.iter().take(LINES).map(|row| {
        vec![
            row.from.clone(),
            row.to.clone(),
            row.service.clone(),
            if row.essential { "ESSENTIAL".into() } else { "-".into() },
            word(row.criticality),
            row.flows.to_string(),
            row.days.to_string(),
            ago(row.last_seen.0, now),
            row.reason.clone(),
        ]
    });
    let mut text = table(
        &[
            "FROM",
            "TO",
            "SERVICE",
            "ESSENTIAL",
            "CRITICALITY",
            "FLOWS",
            "DAYS",
            "LAST SEEN",
            "WHY DROPPED",
        ],
        lines,
    );
    if simulated.broken.len() > LINES {
        text.push_str(&format!("\nand {} more: --json has them", simulated.broken.len() - LINES));
    }
    let devices = simulated.by_device.iter().map(|row| {
        vec![
            row.device.clone(),
            word(row.criticality),
            row.edges.to_string(),
            row.flows.to_string(),
            row.essential.to_string(),
        ]
    });
    let devices = table(&["DEVICE", "CRITICALITY", "EDGES", "FLOWS", "ESSENTIAL"], devices);
    format!(
        "{text}\n\n{devices}\n\n{head}{} would break {} with {} flows.",
        simulated.file,
        count(simulated.broken.len(), "edge", "edges"),
        simulated.broken_flows
    )
}

fn word(criticality: Option<Criticality>) -> String {
    criticality.map_or_else(|| "-".into(), |word| word.to_string())
}

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
