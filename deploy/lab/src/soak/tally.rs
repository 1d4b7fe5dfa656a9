//! What each kind of change cost.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::changes::Burst;
use crate::figures::percentile;
use crate::ping::Series;

/// What a burst of changes cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// The longest time in which no ping was answered.
    pub(super) gap: Duration,
    pub(super) lost: u64,
    pub(super) sent: u64,
    /// How long the machine kept a thread waiting meanwhile, at most.
    pub(super) stall: Duration,
}

impl Cost {
    /// That of pings between several pairs, one each `beat`.
    pub(super) fn of(series: &[Series], beat: Duration, stall: Duration) -> Self {
        let gap = |series: &Series| beat * u32::try_from(series.longest_gap).unwrap_or(u32::MAX);
        Self {
            gap: series.iter().map(gap).max().unwrap_or_default(),
            lost: series.iter().map(Series::lost).sum(),
            sent: series.iter().map(|series| series.sent).sum(),
            stall,
        }
    }
}

#[derive(Debug, Default)]
struct Row {
    /// Milliseconds without an answer each time, sorted.
    gaps: Vec<u64>,
    lost: u64,
    sent: u64,
}

/// In which company a change came.
const ALONE: &str = "alone, on good paths";
const IN_COMPANY: &str = "with others, or on others";

/// What each kind of change cost.
#[derive(Debug, Default)]
pub(super) struct Tally {
    rows: BTreeMap<(&'static str, &'static str), Row>,
    bursts: Vec<Value>,
    stall: Duration,
}

impl Tally {
    /// These changes were made; `good` says whether paths were good before.
    pub(super) fn note(&mut self, burst: &Burst, good: bool, cost: Cost) {
        let company = if good && burst.alone().is_some() { ALONE } else { IN_COMPANY };
        for change in burst.changes() {
            let row = self.rows.entry((change.name(), company)).or_default();
            row.gaps.push(millis(cost.gap));
            row.gaps.sort_unstable();
            row.lost += cost.lost;
            row.sent += cost.sent;
        }
        self.stall = self.stall.max(cost.stall);
        self.bursts.push(json!({
            "changes": burst.to_string(), "good_paths": good, "gap_ms": millis(cost.gap),
            "lost": cost.lost, "sent": cost.sent, "stall_ms": millis(cost.stall),
        }));
    }

    /// Changes that were made.
    pub(super) fn changes(&self) -> usize {
        self.rows.values().map(|row| row.gaps.len()).sum()
    }

    /// The worst that the machine did to any program.
    pub(super) const fn stall(&self) -> Duration {
        self.stall
    }

    /// As Markdown.
    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "change",
            "",
            "times",
            "no answer: median, worst ms",
            "pings lost",
            "of",
        ]);
        for ((name, company), row) in &self.rows {
            let at = |share| percentile(&row.gaps, share).unwrap_or(0);
            table.add_row([
                (*name).to_owned(),
                (*company).to_owned(),
                row.gaps.len().to_string(),
                format!("{}, {}", at(0.5), at(1.0)),
                row.lost.to_string(),
                row.sent.to_string(),
            ]);
        }
        table.to_string()
    }

    pub(super) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|((name, company), row)| {
            json!({ "change": name, "company": company, "gaps_ms": row.gaps, "lost": row.lost,
                    "sent": row.sent })
        });
        json!({ "kinds": rows.collect::<Vec<_>>(), "bursts": self.bursts,
                "stall_ms": millis(self.stall) })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::changes::Change;
    use super::*;

    #[test]
    fn each_kind_of_change_has_a_row_with_its_worst_for_each_company() {
        let cost = |lost, gap| Cost {
            gap: Duration::from_millis(gap),
            lost,
            sent: 100,
            stall: Duration::from_millis(3),
        };
        let mut tally = Tally::default();
        tally.note(&Burst::of(Change::Block), true, cost(10, 100));
        tally.note(&Burst::of(Change::Block), true, cost(50, 400));
        tally.note(&Burst::of(Change::Block), false, cost(1, 5));
        let both =
            Burst(vec![(Duration::ZERO, Change::Block), (Duration::from_secs(1), Change::Rotate)]);
        tally.note(&both, true, cost(0, 0));
        let table = tally.table();
        assert_eq!(table.lines().count(), 5, "{table}");
        assert!(table.contains("400, 400") && table.contains(" 60 "), "{table}");
        assert_eq!((tally.changes(), tally.json()["bursts"][3]["lost"].as_u64()), (5, Some(0)));
        assert_eq!(tally.stall(), Duration::from_millis(3));
    }

    #[test]
    fn of_several_pairs_the_longest_gap_counts_and_every_ping() {
        let series = |received, longest_gap| Series {
            sent: 100,
            received,
            times: Vec::new(),
            missing: Vec::new(),
            untaken: 0,
            longest_gap,
            first_reply_at: None,
            last_reply_at: None,
        };
        let both = [series(90, 10), series(60, 4)];
        let cost = Cost::of(&both, Duration::from_millis(10), Duration::ZERO);
        assert_eq!((cost.gap, cost.lost, cost.sent), (Duration::from_millis(100), 50, 200));
    }
}
