//! `policy stale`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use anteroom_controller_core::resolve::{Resolved, ResolvedRule, SideId};
use anteroom_controller_core::stale::{Difference, stale as review};
use anteroom_controller_core::surface::{Criticality, Surface, Surfaces};
use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use serde::Serialize;

use super::learn::millis;
use crate::args::SurfaceArgs;
use crate::error::{Error, Exit};
use crate::home::Review;
use crate::output::Output;
use crate::output::table::{count, table};
use crate::output::time::{Moment, ago};
use crate::recorded::Recorded;
use crate::remote::Remote;
use crate::standing::model_as_it_is;

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

/// What is said of who stands behind a name. Names are looked up once, and so is what those of a side say: both may be thousands.
struct Said<'a> {
    resolved: &'a Resolved,
    surfaces: &'a Surfaces,
    wanted: &'a SurfaceArgs,
    devices: BTreeMap<&'a Name, MemberId>,
    rules: BTreeMap<&'a Name, &'a ResolvedRule>,
    /// The most critical one of each side that is wanted, where one is.
    sides: RefCell<BTreeMap<SideId, Option<&'a Surface>>>,
}

impl<'a> Said<'a> {
    fn new(resolved: &'a Resolved, surfaces: &'a Surfaces, wanted: &'a SurfaceArgs) -> Self {
        let devices = resolved.model.devices.iter().map(|(id, device)| (&device.name, *id));
        let rules = resolved.rules.iter().map(|rule| (&rule.name, rule));
        let sides = RefCell::default();
        Self {
            resolved,
            surfaces,
            wanted,
            devices: devices.collect(),
            rules: rules.collect(),
            sides,
        }
    }

    /// The rows that are wanted, in the order that is.
    fn rows<'b>(
        &self,
        found: impl Iterator<Item = (&'b Name, Option<UnixMillis>)>,
        who: fn(&Self, &Name) -> Option<&'a Surface>,
    ) -> Vec<Row> {
        let nothing = Surface::default();
        let mut rows: Vec<(Row, &Surface)> = Vec::new();
        for (name, at) in found {
            let most = who(self, name).or((!self.wanted.chooses()).then_some(&nothing));
            let Some(most) = most else { continue };
            let criticality = most.criticality();
            rows.push((Row { name: name.clone(), at: at.map(Moment), criticality }, most));
        }
        self.wanted.sort(&mut rows, |(_, surface)| [*surface, *surface]);
        rows.into_iter().map(|(row, _)| row).collect()
    }

    /// The most critical of those that are wanted.
    fn most(&self, found: impl Iterator<Item = &'a Surface>) -> Option<&'a Surface> {
        let fits = found.filter(|surface| self.wanted.fits(surface));
        fits.max_by_key(|surface| surface.criticality())
    }

    fn device(&self, name: &Name) -> Option<&'a Surface> {
        let id = self.devices.get(name)?;
        self.most([self.surfaces.member(*id)].into_iter())
    }

    fn external(&self, name: &Name) -> Option<&'a Surface> {
        self.most([self.surfaces.external(name)].into_iter())
    }

    fn rule(&self, name: &Name) -> Option<&'a Surface> {
        let rule = self.rules.get(name)?;
        self.most([rule.from, rule.to].into_iter().filter_map(|side| self.side(side)))
    }

    fn side(&self, id: SideId) -> Option<&'a Surface> {
        if let Some(known) = self.sides.borrow().get(&id) {
            return *known;
        }
        let side = self.resolved.side(id);
        let members = side.members.iter().map(|id| self.surfaces.member(*id));
        let externals = side.externals.iter().map(|name| self.surfaces.external(name));
        let found = self.most(members.chain(externals));
        self.sides.borrow_mut().insert(id, found);
        found
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
    let model = model_as_it_is(remote, output)?;
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
    let surfaces = Surfaces::of(resolved);
    let said = Said::new(resolved, &surfaces, wanted);
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
    let never = if recorded.turned_away.max(recorded.forgotten) > 0 || recorded.cut_off {
        "never, as far as is recorded"
    } else {
        "never"
    };
    output.data(&reviewed, |reviewed| render(reviewed, *now, never))?;
    Ok(Exit::Ok)
}

fn render(reviewed: &Reviewed, now: UnixMillis, never: &str) -> String {
    let since = reviewed.since;
    let mut text = String::new();
    let used = |row: &Row| row.at.map_or_else(|| never.to_owned(), |at| ago(at.0, now));
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
