//! What gateways saw, and what an operator is to know of what isn't kept.

use std::collections::BTreeMap;

use anteroom_proto::api::{SightingRecord, SightingsAway};
use anteroom_proto::id::GatewayId;
use anteroom_proto::time::UnixMillis;

use crate::error::Error;
use crate::output::Output;
use crate::output::table::count;
use crate::output::time::{ago, now};

/// Most that a controller without pages gives.
const MOST_OF_OLDER: usize = 10_000;
/// What found no room longer ago, in milliseconds, isn't news any more.
const NEWS: u64 = 7 * 24 * 60 * 60 * 1000;

/// What gateways saw.
#[derive(Debug, Default)]
pub struct Sightings {
    /// What is kept, in no order that matters.
    pub records: Vec<SightingRecord>,
    away: BTreeMap<GatewayId, SightingsAway>,
    cut: bool,
}

impl Sightings {
    pub(crate) fn of_older(records: Vec<SightingRecord>) -> Self {
        let cut = records.len() >= MOST_OF_OLDER;
        Self { records, cut, ..Self::default() }
    }

    pub(crate) fn add(
        &mut self,
        records: Vec<SightingRecord>,
        away: BTreeMap<GatewayId, SightingsAway>,
    ) {
        self.records.extend(records);
        self.away.extend(away);
    }

    /// Says what isn't among them.
    ///
    /// # Errors
    /// When the output can't be written.
    pub(crate) fn warn_of_missing(
        &self,
        name: impl Fn(GatewayId) -> String,
        output: &mut Output<'_>,
    ) -> Result<(), Error> {
        self.missing(name, now()).iter().try_for_each(|missing| output.warn(missing))
    }

    /// What isn't among them, a sentence for each gateway where that is news; `name` is what a gateway is called.
    pub(crate) fn missing(
        &self,
        name: impl Fn(GatewayId) -> String,
        now: UnixMillis,
    ) -> Vec<String> {
        let news = |away: &&SightingsAway| {
            away.last.is_none_or(|last| now.0.saturating_sub(last.0) < NEWS)
        };
        let of_gateway = |(gateway, away): (&GatewayId, &SightingsAway)| {
            let last = away.last.map(|last| format!(", last {}", ago(last, now)));
            format!(
                "gateway {}: {} of addresses that nobody confirmed not shown, since it has as many as are kept{}. \
                 Many addresses at one port are made up, or belong to machines that change theirs: look at the port, \
                 and confirm what is a device.",
                name(*gateway),
                count(usize::try_from(away.count).unwrap_or(usize::MAX), "sighting", "sightings"),
                last.unwrap_or_default()
            )
        };
        let mut missing: Vec<String> =
            self.away.iter().filter(|(_, away)| news(away)).map(of_gateway).collect();
        if self.cut {
            missing.push(format!(
                "more sightings not shown: this controller gives the newest {MOST_OF_OLDER} alone, a newer one all."
            ));
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_said_while_it_is_news() {
        let mut sightings = Sightings::default();
        let [recent, old, unknown] = [1, 2, 3].map(|byte| GatewayId::from_bytes([byte; 16]));
        let away = |last: Option<u64>| SightingsAway { count: 12, last: last.map(UnixMillis) };
        sightings.add(
            Vec::new(),
            [
                (recent, away(Some(8 * NEWS - 60_000))),
                (old, away(Some(7 * NEWS))),
                (unknown, away(None)),
            ]
            .into(),
        );
        let name = |gateway: GatewayId| format!("ward-{}", gateway.as_bytes()[0]);
        let missing = sightings.missing(name, UnixMillis(8 * NEWS));
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(missing[0].starts_with("gateway ward-1: 12 sightings of"), "{missing:?}");
        assert!(missing[0].contains("not shown") && missing[0].contains(", last "), "{missing:?}");
        assert!(missing[1].starts_with("gateway ward-3: 12 sightings of"), "{missing:?}");
        assert!(!missing[1].contains(", last "), "{missing:?}");
        assert!(Sightings::default().missing(name, UnixMillis(0)).is_empty());
    }
}
