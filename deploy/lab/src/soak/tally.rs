//! What each kind of change cost.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::figures::percentile;
use crate::ping::Series;

#[derive(Debug, Default)]
struct Row {
    /// How long no ping was answered each time, in milliseconds, sorted.
    gaps: Vec<u64>,
    lost: u64,
    sent: u64,
}

/// What each kind of change cost.
#[derive(Debug, Default)]
pub(super) struct Tally {
    rows: BTreeMap<String, Row>,
}

impl Tally {
    /// A change was made while these pings went on, one each `beat`.
    pub(super) fn note(&mut self, change: String, series: &Series, beat: Duration) {
        let row = self.rows.entry(change).or_default();
        let gap = u128::from(series.longest_gap) * beat.as_millis();
        row.gaps.push(u64::try_from(gap).unwrap_or(u64::MAX));
        row.gaps.sort_unstable();
        row.lost += series.lost();
        row.sent += series.sent;
    }

    /// As Markdown.
    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["change", "times", "no answer: median, worst ms", "pings lost", "of"]);
        for (name, row) in &self.rows {
            let at = |share| percentile(&row.gaps, share).unwrap_or(0);
            table.add_row([
                name.clone(),
                row.gaps.len().to_string(),
                format!("{}, {}", at(0.5), at(1.0)),
                row.lost.to_string(),
                row.sent.to_string(),
            ]);
        }
        table.to_string()
    }

    pub(super) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(name, row)| {
            json!({ "change": name, "gaps_ms": row.gaps, "lost": row.lost, "sent": row.sent })
        });
        Value::Array(rows.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_change_has_a_row_with_its_worst() {
        let series = |received, longest_gap| Series {
            sent: 100,
            received,
            times: Vec::new(),
            longest_gap,
            first_reply_at: None,
            last_reply_at: None,
        };
        let mut tally = Tally::default();
        tally.note("cut".into(), &series(90, 10), Duration::from_millis(10));
        tally.note("cut".into(), &series(50, 40), Duration::from_millis(10));
        tally.note("rotation".into(), &series(100, 0), Duration::from_millis(10));
        let table = tally.table();
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(table.contains("400, 400") && table.contains(" 60 "), "{table}");
        assert_eq!(tally.json()[1]["lost"], 0);
    }
}
