//! By which connections a trial is measured: those that a device had lately.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use anteroom_proto::api::Edge;
use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::rollout::{Expected, MAX_EXPECTED};
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;

use crate::decide::{self, Flow, Party};
use crate::names::Names;
use crate::resolve::Resolved;

/// How far back a connection counts as one that the device has, in milliseconds: two weeks.
pub const LOOK_BACK: u64 = 14 * 24 * 60 * 60 * 1000;

/// The connections of a device that were let pass and answered within [`LOOK_BACK`], as its own gateway recorded
/// them: at most [`MAX_EXPECTED`], those of essential rules first, then what was seen on the most days, then what was seen last. (The
/// number of flows says little: a monitor's one connection for alarms lasts for weeks. Days keep a scan of one afternoon from taking the
/// places of what is there every day.) `names` are those of `resolved`'s model; `accepted` says which of them the operator gives up.
///
/// Broadcasts, DHCP, and flows to many ports that were folded into one edge are none.
#[must_use]
pub fn baseline(
    resolved: &Resolved,
    names: &Names,
    device: MemberId,
    edges: &[Edge],
    accepted: impl Fn(&Edge) -> bool,
    now: UnixMillis,
) -> Vec<Expected> {
    let model = &resolved.model;
    let Some(gateway) = model.devices.get(&device).map(|device| device.attachment.gateway) else {
        return Vec::new();
    };
    let since = now.0.saturating_sub(LOOK_BACK);
    let mut found: BTreeMap<Expected, (Rhythm, UnixMillis)> = BTreeMap::new();
    for edge in edges
        .iter()
        .filter(|edge| edge.gateway == gateway && edge.last.0 >= since)
        .filter(|edge| {
            edge.member.or_else(|| names.member_of(edge.gateway, edge.mac)) == Some(device)
        })
        .filter(|edge| edge.verdict.passes() && edge.packets_out > 0 && edge.packets_in > 0)
        .filter(|edge| !accepted(edge))
    {
        if let Some(expected) = expected(edge) {
            let (rhythm, last) = found.entry(expected).or_insert((Rhythm::default(), edge.last));
            rhythm.merge(&edge.rhythm);
            *last = edge.last.max(*last);
        }
    }
    let mut found: Vec<(Expected, (Rhythm, UnixMillis))> = found.into_iter().collect();
    found.sort_by_cached_key(|(expected, (rhythm, last))| {
        let essential = essential(resolved, device, expected, now).is_some();
        (!essential, Reverse(rhythm.active_days()), Reverse(*last), *expected)
    });
    found.into_iter().map(|(expected, _)| expected).take(MAX_EXPECTED).collect()
}

/// The essential rule that carries a connection of a device, where one does.
#[must_use]
pub fn essential<'a>(
    resolved: &'a Resolved,
    device: MemberId,
    expected: &Expected,
    now: UnixMillis,
) -> Option<&'a Name> {
    let protocol = match expected.protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        1 => Protocol::IcmpEcho,
        _ => return None,
    };
    let known = resolved.site_of(device).and_then(|site| resolved.member_at(site, expected.remote));
    let far = known.map_or(Party::Address(expected.remote), Party::Member);
    let near = Party::Member(device);
    let (from, to) = if expected.outbound { (near, far) } else { (far, near) };
    let flow = Flow { from, to, protocol, port: expected.port };
    decide::essential(resolved, &flow, now).map(|rule| &rule.name)
}

/// By what a device's trial is measured, in words; none where it is on none.
#[must_use]
pub fn words(resolved: &Resolved, device: MemberId, now: UnixMillis) -> Option<String> {
    let trial = resolved.model.devices.get(&device)?.rollout.trial.as_ref()?;
    let mut essentials = trial.expects.iter().filter_map(|expected| {
        let rule = essential(resolved, device, expected, now)?;
        Some(format!("{expected} (rule.{rule})"))
    });
    let named: Vec<String> = essentials.by_ref().take(MAX_NAMED).collect();
    let more = essentials.count();
    let essential = match (named.as_slice(), more) {
        ([], _) => "none of them essential".to_owned(),
        (named, 0) => format!("essential: {}", named.join(", ")),
        (named, more) => format!("essential: {} and {more} more", named.join(", ")),
    };
    Some(match trial.expects.len() {
        0 => "nothing: only the time ends it".to_owned(),
        1 => format!("1 connection, {essential}"),
        many => format!("{many} connections, {essential}"),
    })
}

/// Most essential connections that are named.
const MAX_NAMED: usize = 8;

fn expected(edge: &Edge) -> Option<Expected> {
    let IpAddr::V4(remote) = edge.remote else { return None };
    let unicast = !(remote.is_unspecified() || remote.is_multicast() || remote.is_broadcast());
    let named = match edge.protocol {
        6 => edge.port != 0,
        17 => edge.port != 0 && !matches!(edge.port, 67 | 68),
        1 => true,
        _ => false,
    };
    (unicast && named).then_some(Expected {
        remote,
        outbound: edge.outbound,
        protocol: edge.protocol,
        port: edge.port,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use anteroom_proto::approval::Place;
    use anteroom_proto::mode::Mode;
    use anteroom_proto::verdict::{DropReason, Verdict};

    use super::*;
    use crate::fixture::{self, NOW};
    use crate::model::Model;

    fn edge(model: &Model, name: &str, remote: [u8; 4], port: u16, flows: u64) -> Edge {
        let (id, device) = model.device_named(name).unwrap();
        Edge {
            gateway: device.attachment.gateway,
            mac: device.attachment.mac,
            member: Some(id),
            local: IpAddr::V4([10, 20, 1, 10].into()),
            remote: IpAddr::V4(remote.into()),
            remote_member: None,
            outbound: true,
            protocol: 6,
            port,
            verdict: Verdict::Clear,
            rule: None,
            flows,
            packets_out: 5,
            packets_in: 5,
            bytes_out: 500,
            bytes_in: 500,
            first: NOW,
            last: NOW,
            rhythm: Rhythm::default(),
        }
    }

    #[test]
    fn what_was_answered_lately_is_expected_and_nothing_else() {
        let mut model = fixture::hospital();
        model.set_mode("ct-1", Mode::Protect, 2).unwrap();
        let (id, _) = model.device_named("ct-1").unwrap();
        let plain = |port, flows| edge(&model, "ct-1", [10, 20, 4, 11], port, flows);
        let would = Verdict::WouldDrop(DropReason::NoRule);
        let edges = [
            plain(104, 7),
            Edge { verdict: would, ..plain(9100, 90) },
            // The same by another verdict.
            Edge { verdict: Verdict::Tunnel, ..plain(104, 3) },
            Edge { member: None, outbound: false, ..plain(4006, 2) },
            Edge { verdict: Verdict::Drop(DropReason::NoRule), ..plain(1, 50) },
            Edge { packets_in: 0, ..plain(2, 50) },
            Edge { last: UnixMillis(NOW.0 - LOOK_BACK - 1), ..plain(3, 50) },
            Edge { port: 0, ..plain(4, 50) },
            Edge { protocol: 17, ..plain(67, 50) },
            Edge { protocol: 50, ..plain(5, 50) },
            Edge { remote: IpAddr::V4([224, 0, 0, 1].into()), ..plain(6, 50) },
            Edge { remote: "fd00::1".parse().unwrap(), ..plain(7, 50) },
            edge(&model, "pacs-1", [10, 20, 4, 11], 8, 50),
        ];
        let resolved = Resolved::new(&model).unwrap();
        let found = baseline(&resolved, &Names::of(&resolved.model), id, &edges, |_| false, NOW);
        let ports: BTreeSet<u16> = found.iter().map(|expected| expected.port).collect();
        assert_eq!(ports, [9100, 104, 4006].into(), "{found:?}");
        let given_up = |edge: &Edge| edge.verdict == would;
        let found = baseline(&resolved, &Names::of(&resolved.model), id, &edges, given_up, NOW);
        let ports: BTreeSet<u16> = found.iter().map(|expected| expected.port).collect();
        assert_eq!(ports, [104, 4006].into());
    }

    #[test]
    fn what_is_essential_is_kept_where_there_are_many_then_what_is_there_each_day_then_what_was_seen_last()
     {
        let mut model = fixture::hospital();
        model.policy.push_str(
            "[external.nurses]\nprefixes = [\"10.20.9.9/32\"]\n[rule.vital]\nfrom = \"ct-1\"\nto = \"nurses\"\n\
             services = [\"hl7\"]\nessential = true\nclear = true\n",
        );
        let (id, _) = model.device_named("ct-1").unwrap();
        let mut edges: Vec<Edge> = (1..=400_u16)
            .map(|port| {
                let last = UnixMillis(NOW.0 - 1_000 * u64::from(port));
                Edge { last, ..edge(&model, "ct-1", [10, 20, 4, 11], 3_000 + port, 9_000) }
            })
            .collect();
        // One connection that lasts for weeks, and was told of before all others.
        let alarms = edge(&model, "ct-1", [10, 20, 9, 9], 2575, 1);
        edges.push(Edge { last: UnixMillis(NOW.0 - 10_000_000), ..alarms });
        // One on two days, before somebody tried all the others in one afternoon.
        let mut daily = edge(&model, "ct-1", [10, 20, 4, 11], 9_100, 2);
        daily.last = UnixMillis(NOW.0 - 20_000_000);
        const DAY: u64 = 24 * 60 * 60 * 1000;
        daily.rhythm.record(UnixMillis(NOW.0 - DAY), NOW);
        edges.push(daily);
        let resolved = Resolved::new(&model).unwrap();
        let found = baseline(&resolved, &Names::of(&resolved.model), id, &edges, |_| false, NOW);
        assert_eq!(found.len(), MAX_EXPECTED);
        assert_eq!(found[0].port, 2575, "the essential one first");
        assert_eq!(found[1].port, 9100, "then what is there on more days");
        assert!(found[2..].iter().all(|expected| expected.port <= 3_254), "then the newest");

        model.set_mode("ct-1", Mode::Protect, 2).unwrap();
        let told = |model: &Model| words(&Resolved::new(model).unwrap(), id, NOW);
        assert_eq!(told(&model), None);
        model.enforce_on_trial("ct-1", 60_000, found, Place::new(0, 3)).unwrap();
        let essential = "256 connections, essential: tcp/2575 to 10.20.9.9 (rule.vital)";
        assert_eq!(told(&model).as_deref(), Some(essential));
        model.enforce_on_trial("ct-1", 60_000, Vec::new(), Place::new(0, 4)).unwrap();
        assert_eq!(told(&model).as_deref(), Some("nothing: only the time ends it"));
    }
}
