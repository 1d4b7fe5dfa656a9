//! `policy stale`.

use std::time::Duration;

use anteroom_controller_core::stale::{Difference, stale as review};
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use serde::Serialize;

use super::learn::millis;
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
}

#[derive(Debug, Serialize)]
struct Row {
    name: Name,
    /// When it was last used or seen; of an external, its day of review.
    at: Option<Moment>,
}

/// `anteroom policy stale`.
pub(super) fn stale(
    over: Duration,
    record: bool,
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
    let rows = |list: &std::collections::BTreeMap<Name, Option<UnixMillis>>| {
        let rows = list.iter().map(|(name, at)| Row { name: name.clone(), at: at.map(Moment) });
        rows.collect::<Vec<_>>()
    };
    let externals = found.externals.iter();
    let reviewed = Reviewed {
        at: Moment(*now),
        since: Moment(since),
        rules: rows(&found.rules),
        externals: externals
            .map(|(name, review)| Row { name: name.clone(), at: Some(Moment(*review)) })
            .collect(),
        devices: rows(&found.devices),
        compared_with: before.as_ref().map(|before| Moment(before.at)),
        difference: before.as_ref().map(|before| found.since(&before.found)),
        recorded: record,
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
        let lines = rows.iter().map(|row| vec![row.name.to_string(), used(row)]);
        text.push_str(&format!("{what} {title}:\n{}\n\n", table(&[kind, last], lines)));
    }
    if text.is_empty() {
        text = format!("Nothing is stale: all was used or seen since {since}.\n\n");
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
