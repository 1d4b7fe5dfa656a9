//! By which connections a trial is measured: those that a device had lately.

use std::net::IpAddr;

use anteroom_proto::api::Edge;
use anteroom_proto::id::MemberId;
use anteroom_proto::rollout::{Expected, MAX_EXPECTED};
use anteroom_proto::time::UnixMillis;

use crate::model::Model;
use crate::names::Names;

/// How far back a connection counts as one that the device has, in milliseconds: two weeks.
pub const LOOK_BACK: u64 = 14 * 24 * 60 * 60 * 1000;

/// The connections of a device that were let pass and answered within [`LOOK_BACK`], as its own gateway recorded
/// them: the busiest first, at most [`MAX_EXPECTED`]. `accepted` says which of them the operator gives up.
///
/// Broadcasts, DHCP, and flows to many ports that were folded into one edge are none.
#[must_use]
pub fn baseline(
    model: &Model,
    device: MemberId,
    edges: &[Edge],
    accepted: impl Fn(&Edge) -> bool,
    now: UnixMillis,
) -> Vec<Expected> {
    let names = Names::of(model);
    let Some(gateway) = model.devices.get(&device).map(|device| device.attachment.gateway) else {
        return Vec::new();
    };
    let since = now.0.saturating_sub(LOOK_BACK);
    let mut found: Vec<(u64, Expected)> = edges
        .iter()
        .filter(|edge| edge.gateway == gateway && edge.last.0 >= since)
        .filter(|edge| {
            edge.member.or_else(|| names.member_of(edge.gateway, edge.mac)) == Some(device)
        })
        .filter(|edge| edge.verdict.passes() && edge.packets_out > 0 && edge.packets_in > 0)
        .filter(|edge| !accepted(edge))
        .filter_map(|edge| Some((edge.flows, expected(edge)?)))
        .collect();
    found.sort_by_key(|(flows, expected)| (std::cmp::Reverse(*flows), *expected));
    let mut kept: Vec<Expected> = Vec::new();
    for (_, expected) in found {
        if kept.len() < MAX_EXPECTED && !kept.contains(&expected) {
            kept.push(expected);
        }
    }
    kept
}

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
    use anteroom_proto::mode::Mode;
    use anteroom_proto::rhythm::Rhythm;
    use anteroom_proto::verdict::{DropReason, Verdict};

    use super::*;
    use crate::fixture::{self, NOW};

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
        let found = baseline(&model, id, &edges, |_| false, NOW);
        let ports: Vec<u16> = found.iter().map(|expected| expected.port).collect();
        assert_eq!(ports, [9100, 104, 4006], "{found:?}");
        let given_up = |edge: &Edge| edge.verdict == would;
        let found = baseline(&model, id, &edges, given_up, NOW);
        assert_eq!(found.iter().map(|expected| expected.port).collect::<Vec<_>>(), [104, 4006]);
    }

    #[test]
    fn the_busiest_are_kept_where_there_are_many() {
        let model = fixture::hospital();
        let (id, _) = model.device_named("ct-1").unwrap();
        let edges: Vec<Edge> = (1..=400_u16)
            .map(|port| edge(&model, "ct-1", [10, 20, 4, 11], port, u64::from(port)))
            .collect();
        let found = baseline(&model, id, &edges, |_| false, NOW);
        assert_eq!(found.len(), MAX_EXPECTED);
        assert!(found.iter().all(|expected| expected.port > 400 - 256));
    }
}
