//! Reports on their way: numbered, and kept until the controller says that it has them, over an orderly stop too.
//!
//! While the outbox is full nothing more is taken out of the engine, which folds what it sees in bounded tables
//! and counts what finds no room there. So nothing is lost here.

use std::collections::{BTreeMap, VecDeque};

use anteroom_agent_core::report::EngineReport;
use anteroom_proto::id::BootId;
use anteroom_proto::inventory::DeviceHints;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::{
    MAX_BYPASSES, MAX_EDGES, MAX_HELD_BACK, MAX_RELAYS, MAX_SIGHTINGS, MAX_TRIALS, Report,
};

use crate::relay::Relays;

/// With so many reports unacknowledged no more are taken in.
const FULL: usize = 8;

/// Devices of which one report tells hints. All that may be known of so many fits a message, beside the longest lists of the rest.
const DEVICES_OF_A_REPORT: usize = 4;

/// Reports on their way.
#[derive(Debug)]
pub(super) struct Outbox {
    boot: BootId,
    sequence: u64,
    waiting: VecDeque<Report>,
}

impl Outbox {
    pub(super) const fn new(boot: BootId) -> Self {
        Self { boot, sequence: 0, waiting: VecDeque::new() }
    }

    /// Takes in what a run before this one left, ahead of everything else.
    pub(super) fn take_left(&mut self, left: Vec<Report>) {
        for report in left.into_iter().rev().filter(|report| report.boot != self.boot) {
            self.waiting.push_front(report);
        }
    }

    /// Whether something that a run before this one left is still waiting.
    pub(super) fn has_left(&self) -> bool {
        self.waiting.iter().any(|report| report.boot != self.boot)
    }

    /// Whether there is room for what the engine has to tell.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < FULL
    }

    /// Takes in what the engine tells, in as many reports as it needs. Gives the new ones.
    pub(super) fn push(
        &mut self,
        report: EngineReport,
        mut hints: Vec<DeviceHints>,
        relays: &Relays,
        at: UnixMillis,
    ) -> impl Iterator<Item = &Report> {
        let before = self.waiting.len();
        let EngineReport {
            mut sightings,
            mut edges,
            drops,
            overflow,
            tunnels,
            alarms,
            bypasses,
            trials,
            held_back,
        } = report;
        let mut rest = Some((drops, overflow));
        while rest.is_some() || !sightings.is_empty() || !edges.is_empty() || !hints.is_empty() {
            let (drops, overflow) = rest.take().unwrap_or((BTreeMap::new(), 0));
            self.sequence += 1;
            self.waiting.push_back(Report {
                boot: self.boot,
                sequence: self.sequence,
                at,
                sightings: front(&mut sightings, MAX_SIGHTINGS),
                edges: front(&mut edges, MAX_EDGES),
                drops,
                overflow,
                // Each report stands for the state at its time.
                tunnels: tunnels.clone(),
                alarms: alarms.clone(),
                bypasses: bypasses.iter().copied().take(MAX_BYPASSES).collect(),
                relays: relays.connected.iter().copied().take(MAX_RELAYS).collect(),
                relays_away: relays.away.iter().take(MAX_RELAYS).cloned().collect(),
                hints: front(&mut hints, DEVICES_OF_A_REPORT),
                trials: trials.iter().take(MAX_TRIALS).cloned().collect(),
                held_back: held_back.iter().copied().take(MAX_HELD_BACK).collect(),
            });
        }
        self.waiting.iter().skip(before)
    }

    /// The controller has everything of a run up to `sequence`.
    pub(super) fn stored(&mut self, boot: BootId, sequence: u64) {
        self.waiting.retain(|report| report.boot != boot || report.sequence > sequence);
    }

    /// What the controller hasn't got yet, oldest first.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Report> {
        self.waiting.iter()
    }
}

fn front<T>(items: &mut Vec<T>, most: usize) -> Vec<T> {
    let rest = items.split_off(items.len().min(most));
    std::mem::replace(items, rest)
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use anteroom_proto::cbor;
    use anteroom_proto::claim::AddressClaim;
    use anteroom_proto::cose::Signed;
    use anteroom_proto::id::{GatewayId, MemberId, OrganisationId};
    use anteroom_proto::inventory::{Hint, HintKind, MAX_HINTS, MAX_VALUE};
    use anteroom_proto::key::IdentityKey;
    use anteroom_proto::mac::MacAddr;
    use anteroom_proto::v1::frame::MAX_TO_CONTROLLER;
    use anteroom_proto::v1::telemetry::{EdgeDelta, Sighting};
    use anteroom_proto::verdict::{DropReason, Verdict};

    use super::*;

    /// A report with nothing in it.
    pub(crate) fn report() -> Report {
        let mut outbox = Outbox::new(BootId::from_bytes([1; 16]));
        outbox
            .push(EngineReport::default(), Vec::new(), &Relays::default(), UnixMillis(1))
            .cloned()
            .collect::<Vec<_>>()
            .remove(0)
    }

    pub(crate) fn edge(port: u16) -> EdgeDelta {
        EdgeDelta {
            mac: MacAddr([0xff; 6]),
            member: Some(anteroom_proto::id::MemberId::from_bytes([0xff; 16])),
            local: IpAddr::V6([0xff; 16].into()),
            remote: IpAddr::V6([0xff; 16].into()),
            remote_member: Some(anteroom_proto::id::MemberId::from_bytes([0xff; 16])),
            outbound: true,
            protocol: 255,
            port,
            verdict: Verdict::WouldDrop(DropReason::ClearFromTunnelPeer),
            rule: Some(anteroom_proto::id::RuleId::of("x")),
            flows: u64::MAX,
            packets_out: u64::MAX,
            packets_in: u64::MAX,
            bytes_out: u64::MAX,
            bytes_in: u64::MAX,
            first: UnixMillis(u64::MAX),
            last: UnixMillis(u64::MAX),
        }
    }

    fn sighting(n: usize) -> Sighting {
        Sighting {
            port: "a-port-with-a-long-name".parse().unwrap(),
            mac: MacAddr([0xff; 6]),
            vlan: Some(4095),
            addresses: vec![Ipv4Addr::BROADCAST; 8],
            prefix_len: Some(32),
            router: Some((Ipv4Addr::BROADCAST, MacAddr([0xff; 6]))),
            member: Some(anteroom_proto::id::MemberId::from_bytes([0xff; 16])),
            held: true,
            kinds: ["broadcast", "multicast", "ipv6", "tagged", "non-ip"].map(String::from).into(),
            claim: Some(claim()),
            first_seen: UnixMillis(n as u64),
            last_seen: UnixMillis(u64::MAX),
        }
    }

    fn claim() -> Signed<AddressClaim> {
        let claim = AddressClaim {
            organisation: OrganisationId::from_bytes([0xff; 16]),
            gateway: GatewayId::from_bytes([0xff; 16]),
            member: MemberId::from_bytes([0xff; 16]),
            number: u64::MAX,
            addresses: vec![Ipv4Addr::BROADCAST; anteroom_proto::claim::MAX_ADDRESSES],
            lease_seconds: Some(u32::MAX),
        };
        Signed::sign(&claim, &IdentityKey::from_seed(&[1; 32]))
    }

    #[test]
    fn the_longest_reports_fit_a_message_and_leave_nothing_out() {
        let boot = BootId::from_bytes([1; 16]);
        let mut outbox = Outbox::new(boot);
        let report = EngineReport {
            sightings: (0..700).map(sighting).collect(),
            edges: (0..3000).map(edge).collect(),
            drops: BTreeMap::from([("no-rule".to_owned(), 5)]),
            overflow: 3,
            tunnels: Vec::new(),
            alarms: Vec::new(),
            bypasses: Vec::new(),
            trials: Vec::new(),
            held_back: Vec::new(),
        };
        let hint = |n: usize| Hint {
            kind: HintKind::DicomImplementation,
            value: format!("{n:03}{}", "ä".repeat(MAX_VALUE / 2 - 2)),
            first: UnixMillis(u64::MAX),
            last: UnixMillis(u64::MAX),
        };
        let hints: Vec<DeviceHints> = (0..12)
            .map(|n| DeviceHints {
                port: "a-port-with-a-long-name".parse().unwrap(),
                mac: MacAddr([n; 6]),
                vlan: Some(4095),
                member: Some(anteroom_proto::id::MemberId::from_bytes([0xff; 16])),
                hints: (0..MAX_HINTS).map(hint).collect(),
            })
            .collect();
        let reports: Vec<Report> = outbox
            .push(report.clone(), hints.clone(), &Relays::default(), UnixMillis(1))
            .cloned()
            .collect();
        assert_eq!(reports.iter().map(|report| report.sequence).collect::<Vec<_>>(), [1, 2, 3]);
        for report in &reports {
            let len = cbor::encode(report).len();
            assert!(len < MAX_TO_CONTROLLER, "{len} bytes");
        }
        let edges: Vec<_> = reports.iter().flat_map(|report| report.edges.clone()).collect();
        assert_eq!(edges, report.edges);
        let told: Vec<_> = reports.iter().flat_map(|report| report.hints.clone()).collect();
        assert_eq!(told, hints);
        let sightings: Vec<_> =
            reports.iter().flat_map(|report| report.sightings.clone()).collect();
        assert_eq!(sightings, report.sightings);
        assert_eq!(reports.iter().map(|report| report.overflow).sum::<u64>(), 3);
        assert_eq!(reports.iter().filter(|report| !report.drops.is_empty()).count(), 1);
    }

    #[test]
    fn reports_wait_until_they_are_stored_and_then_make_room() {
        let boot = BootId::from_bytes([1; 16]);
        let mut outbox = Outbox::new(boot);
        while outbox.has_room() {
            let _ =
                outbox.push(EngineReport::default(), Vec::new(), &Relays::default(), UnixMillis(1));
        }
        let sequences =
            |outbox: &Outbox| outbox.waiting().map(|report| report.sequence).collect::<Vec<_>>();
        assert_eq!(sequences(&outbox), (1..=FULL as u64).collect::<Vec<_>>());
        outbox.stored(BootId::from_bytes([2; 16]), 5);
        assert!(!outbox.has_room(), "another run's word counts for nothing");
        outbox.stored(boot, 6);
        assert_eq!(sequences(&outbox), (7..=FULL as u64).collect::<Vec<_>>());
        // What a run before this one left goes first, and is stored by that run's number.
        let before = BootId::from_bytes([2; 16]);
        let mut left = Outbox::new(before);
        let left: Vec<Report> = left
            .push(EngineReport::default(), Vec::new(), &Relays::default(), UnixMillis(1))
            .cloned()
            .collect();
        outbox.take_left(left);
        assert_eq!((sequences(&outbox), outbox.has_left()), (vec![1, 7, 8], true));
        outbox.stored(boot, 7);
        assert_eq!((sequences(&outbox), outbox.has_left()), (vec![1, 8], true));
        outbox.stored(before, 1);
        assert_eq!((sequences(&outbox), outbox.has_left()), (vec![8], false));
        outbox.stored(boot, u64::MAX);
        assert_eq!(sequences(&outbox), [0; 0]);
        assert_eq!(
            outbox
                .push(EngineReport::default(), Vec::new(), &Relays::default(), UnixMillis(1))
                .count(),
            1
        );
        assert_eq!(sequences(&outbox), [FULL as u64 + 1]);
    }
}
