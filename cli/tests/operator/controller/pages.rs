//! What is given page by page.

use std::collections::BTreeMap;

use anteroom_proto::api::*;
use serde_json::Value;

use super::{State, no, ok};

impl State {
    /// Pages of two sightings, whatever is asked for.
    pub(super) fn sightings_page(&self, query: &str) -> (u16, Value) {
        let after = query.split('&').find_map(|pair| pair.strip_prefix("after="));
        let from = after.map_or(0, |after| after.parse::<usize>().unwrap());
        let sightings: Vec<_> = self.sightings.iter().skip(from).take(2).cloned().collect();
        let end = from + sightings.len();
        let next = (end < self.sightings.len()).then(|| end.to_string());
        let away = if from == 0 { self.sightings_away.clone() } else { BTreeMap::new() };
        ok(&SightingsPage { sightings, next, away })
    }

    /// The newest edges that the query fits, as a controller gives them.
    pub(crate) fn newest_edges(&self, query: &str) -> Vec<&Edge> {
        let of = |key: &str| {
            let values = query.split('&').filter_map(|pair| pair.split_once('='));
            values.filter(|(name, _)| *name == key).find_map(|(_, value)| value.parse::<u64>().ok())
        };
        let since = of("since");
        let is_new = |edge: &&Edge| since.is_none_or(|since| edge.last.0 > since);
        let mut edges: Vec<&Edge> = self.edges.iter().filter(is_new).collect();
        edges.sort_by_key(|edge| std::cmp::Reverse(edge.last));
        edges.truncate(of("limit").map_or(1000, |limit| limit as usize));
        edges
    }

    /// Pages of two edges, whatever is asked for.
    pub(super) fn history(&mut self, query: &str) -> (u16, Value) {
        if self.without_history {
            return no(404, "not-found", "no such path");
        }
        let chosen = |word: &str| query.split('&').any(|pair| pair.starts_with(word));
        if self.chooses_nothing && (chosen("member=") || chosen("verdicts=")) {
            self.asked_to_choose += 1;
            return no(400, "invalid", "unknown field");
        }
        let after = query.split('&').find_map(|pair| pair.strip_prefix("after="));
        let from = after.map_or(0, |after| after.parse::<usize>().unwrap());
        let edges: Vec<Edge> = self.edges.iter().skip(from).take(2).cloned().collect();
        let end = from + edges.len();
        let next = (end < self.edges.len()).then_some(end as u64);
        let of_all = if from == 0 { self.recording.clone() } else { HistoryPage::default() };
        ok(&HistoryPage { edges, next, ..of_all })
    }
}
