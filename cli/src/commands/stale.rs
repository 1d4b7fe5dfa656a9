//! `policy stale`.

use std::time::Duration;

use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::stale::{Difference, stale as review};
use anteroom_controller_core::surface::{Criticality, Surface, Surfaces};
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use serde::Serialize;

use super::learn::millis;
use crate::args::SurfaceArgs;
use crate::change;
use crate::error::{Error, Exit};
use crate::home::Review;
use crate::output::Output;
use crate::output::table::{count, table};
use crate::output::time::{Moment, ago};
use crate::recorded::Recorded;
use crate::remote::Remote;

#[derive(Debug, Serialize)]
struct Reviewed {
    at: Moment,
    since: Moment,
    rules: Vec<Row>,
    externals: Vec<Row>,
    devices: Vec<Row>,
    /// When the review was recorded that it is compared with; none where none was.
    compared_with: Option<Moment>,
    difference: Option<Difference>,
    recorded: bool,
    /// Whether only some devices were asked for.
    #[serde(skip)]
    chosen: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    name: Name,
    /// When it was last used or seen; of an external, its day of review.
    at: Option<Moment>,
    /// Of a device how much care hangs on it, of a rule on the more critical of its two ends.
    criticality: Option<Criticality>,
}

/// What is said of who stands behind a name.
struct Said<'a> {
    resolved: &'a Resolved,
    surfaces: &'a Surfaces,
    wanted: &'a SurfaceArgs,
}

impl<'a> Said<'a> {
    /// The rows that are wanted, in the order that is.
    fn rows<'b>(
        &self,
        found: impl Iterator<Item = (&'b Name, Option<UnixMillis>)>,
        who: fn(&Self, &Name) -> Vec<&'a Surface>,
    ) -> Vec<Row> {
        let nothing = Surface::default();
        let mut rows: Vec<(Row, Surface)> = Vec::new();
        for (name, at) in found {
            let said = who(self, name);
            let fits = |surface: &&&Surface| self.wanted.fits(surface);
            let most = said.iter().filter(fits).max_by_key(|surface| surface.criticality());
            let Some(most) = most.copied().or((!self.wanted.chooses()).then_some(&nothing)) else {
                continue;
            };
            let criticality = most.criticality();
            rows.push((Row { name: name.clone(), at: at.map(Moment), criticality }, most.clone()));
        }
        self.wanted.sort(&mut rows, |(_, surface)| [surface, surface]);
        rows.into_iter().map(|(row, _)| row).collect()
    }

    fn device(&self, name: &Name) -> Vec<&'a Surface> {
        let device = self.resolved.model.device_named(name.as_str());
        device.map(|(id, _)| self.surfaces.member(id)).into_iter().collect()
    }

    fn external(&self, name: &Name) -> Vec<&'a Surface> {
        let found = self.resolved.policy.externals.get(name).into_iter();
        found.flat_map(|one| &one.prefixes).map(|net| self.surfaces.address(net.addr())).collect()
    }

    fn rule(&self, name: &Name) -> Vec<&'a Surface> {
        let Some(rule) = self.resolved.rules.iter().find(|rule| rule.name == *name) else {
            return Vec::new();
        };
        let sides = [rule.from, rule.to].map(|side| self.resolved.side(side));
        let members = sides.iter().flat_map(|side| &side.members);
        let mut said: Vec<&Surface> = members.map(|id| self.surfaces.member(*id)).collect();
        let externals = sides.iter().flat_map(|side| &side.externals);
        said.extend(externals.flat_map(|name| self.external(name)));
        said
    }
}

/// `anteroom policy stale`.
pub(super) fn stale(
    over: Duration,
    record: bool,
    wanted: &SurfaceArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let organisation = model.organisation;
    let recorded = Recorded::of(remote, &model)?;
    recorded.warn_of_gaps(output)?;
    let Recorded { resolved, history, now, .. } = &recorded;
    let since = UnixMillis(now.0.saturating_sub(millis(over)));
    let begin = history.span().map(|(first, _)| first);
    if begin.is_none_or(|first| first > since) {
        output.warn(match begin {
            Some(first) => format!(
                "nothing is recorded from before {}: what wasn't seen since then may only be rare",
                Moment(first)
            ),
            None => "nothing is recorded yet".to_owned(),
        })?;
    }
    let found = review(resolved, history, since, *now);
    let before = remote.home().review()?.filter(|before| before.organisation == organisation);
    let externals = found.externals.iter().map(|(name, review)| (name, Some(*review)));
    let said = Said { resolved, surfaces: &Surfaces::of(resolved), wanted };
    let reviewed = Reviewed {
        at: Moment(*now),
        since: Moment(since),
        rules: said.rows(found.rules.iter().map(|(name, at)| (name, *at)), Said::rule),
        externals: said.rows(externals, Said::external),
        devices: said.rows(found.devices.iter().map(|(name, at)| (name, *at)), Said::device),
        compared_with: before.as_ref().map(|before| Moment(before.at)),
        difference: before.as_ref().map(|before| found.since(&before.found)),
        recorded: record,
        chosen: wanted.chooses(),
    };
    if record {
        remote.home().write_review(&Review { organisation, at: *now, found })?;
    }
    output.data(&reviewed, |reviewed| render(reviewed, *now))?;
    Ok(Exit::Ok)
}

fn render(reviewed: &Reviewed, now: UnixMillis) -> String {
    let since = reviewed.since;
    let mut text = String::new();
    let used = |row: &Row| row.at.map_or_else(|| "never".to_owned(), |at| ago(at.0, now));
    for (title, kind, rows) in [
        ("that no flow used", "RULE", &reviewed.rules),
        ("past their day of review", "EXTERNAL", &reviewed.externals),
        ("that weren't seen", "DEVICE", &reviewed.devices),
    ] {
        if rows.is_empty() {
            continue;
        }
        let (what, last) = match kind {
            "RULE" => (count(rows.len(), "rule", "rules"), "LAST USED"),
            "EXTERNAL" => (count(rows.len(), "external", "externals"), "TO BE REVIEWED"),
            _ => (count(rows.len(), "device", "devices"), "LAST SEEN"),
        };
        let lines = rows.iter().map(|row| {
            let criticality = row.criticality.map_or_else(|| "-".into(), |word| word.to_string());
            vec![row.name.to_string(), criticality, used(row)]
        });
        let lines = table(&[kind, "CRITICALITY", last], lines);
        text.push_str(&format!("{what} {title}:\n{lines}\n\n"));
    }
    if text.is_empty() {
        let what = if reviewed.chosen { "Nothing that was asked for" } else { "Nothing" };
        text = format!("{what} is stale: all was used or seen since {since}.\n\n");
    } else {
        text.push_str(&format!("Not used or seen since {since}.\n"));
    }
    match (&reviewed.difference, reviewed.compared_with) {
        (Some(difference), Some(at)) => {
            let lines = |mark: &str, list: &[String]| -> String {
                list.iter().map(|line| format!("  {mark} {line}\n")).collect()
            };
            let (new, settled) = (lines("+", &difference.new), lines("-", &difference.settled));
            if new.is_empty() && settled.is_empty() {
                text.push_str(&format!("The same as in the review of {at}."));
            } else {
                text.push_str(&format!(
                    "Since the review of {at} (+ new, - settled):\n{new}{settled}"
                ));
            }
        }
        _ => text.push_str("No earlier review was recorded here to compare it with."),
    }
    if reviewed.recorded {
        text.push_str("\nKept here for the next one to be compared with.");
    }
    text
}
