//! The threads that carry traffic, and what the system takes off them.

use crate::dataplane;

/// The threads that carry traffic.
pub(super) fn carrying(status: &dataplane::Status) -> impl Iterator<Item = Vec<String>> {
    let worked = |millis: Option<u64>| {
        millis.map_or_else(|| "-".into(), |ms| format!("{}.{:03} s", ms / 1000, ms % 1000))
    };
    let dash = || "-".to_owned();
    let packet = vec!["packets".into(), worked(status.threads.packet_ms), dash(), dash(), dash()];
    let lanes = (1..).zip(&status.threads.lanes).map(move |(number, thread)| {
        let counters = &thread.counters;
        let lost = counters.missed
            + counters.truncated
            + counters.queue_full
            + counters.too_big
            + counters.unreachable
            + counters.egress_failed;
        vec![
            format!("lanes {number}"),
            worked(thread.worked_ms),
            counters.received.to_string(),
            counters.sent.to_string(),
            lost.to_string(),
        ]
    });
    std::iter::once(packet).chain(lanes)
}

/// Which offloads are in use, and where.
pub(super) fn offloads(status: &dataplane::Status) -> Vec<Vec<String>> {
    let word = |on: bool| if on { "on" } else { "off" }.to_owned();
    let mut rows = Vec::new();
    for interface in &status.interfaces {
        let offloads = &interface.offloads;
        let mut row =
            |what: &str, state| rows.push(vec![what.into(), interface.name.clone(), state]);
        row("super-frames", word(offloads.super_frames));
        row("merging (GRO)", offloads.gro.map_or_else(|| "unknown".into(), word));
    }
    let underlay = &status.underlay;
    let kinds = [
        ("udp segmentation", &underlay.segmentation),
        ("udp merging (GRO)", &underlay.merging),
        ("lanes apart", &underlay.steering),
    ];
    for (what, state) in kinds {
        rows.push(vec![what.into(), "underlay".into(), state.to_string()]);
    }
    let threads = &status.threads;
    rows.push(vec!["lane threads".into(), "underlay".into(), threads.chosen.clone()]);
    let lanes =
        (1..).zip(&threads.lanes).map(|(n, lane)| (format!("lanes {n}"), &lane.short_turns));
    for (name, state) in std::iter::once(("packets".into(), &threads.short_turns)).chain(lanes) {
        if let Some(state) = state {
            rows.push(vec!["short turns".into(), name, state.to_string()]);
        }
    }
    rows
}
