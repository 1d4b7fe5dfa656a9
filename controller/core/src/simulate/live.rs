//! Live simulation: what the policy in force would drop of a device that is still observed.
//!
//! A gateway doesn't hold flows of observed devices against the policy: they are a wire. So it is done where they are read, by the same
//! decision that stands behind `why`, for edges as they are recorded.

use anteroom_proto::api::Edge;
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::{DropReason, Verdict};

use crate::decide::{End, would_drop};
use crate::ends;
use crate::names::Names;
use crate::resolve::Resolved;

/// Why the policy in force would have an edge recorded as would-drop, were its device in protect: nothing where the device isn't in
/// observe, where a rule allows the flows, and for kinds of traffic that no rule carries (broadcast, multicast and with them the first word of
/// DHCP, IPv6, other protocols): no policy changes what becomes of those, and plans name them. `names` are those of the model.
#[must_use]
pub fn of_edge(
    resolved: &Resolved,
    names: &Names,
    edge: &Edge,
    now: UnixMillis,
) -> Option<DropReason> {
    let passed = matches!(edge.verdict, Verdict::Clear | Verdict::Local);
    let own = ends::own(edge, names).filter(|_| passed)?;
    let device = resolved.model.devices.get(&own)?;
    if device.mode != Mode::Observe || ends::uncarried(edge, device).is_some() {
        return None;
    }
    let flow = ends::flow(resolved, edge, own)?;
    let end = if edge.outbound { End::From } else { End::To };
    would_drop(resolved, &flow, end, now)
}

#[cfg(test)]
mod tests {
    use anteroom_proto::rhythm::Rhythm;

    use super::*;
    use crate::fixture::{NOW, gateway_id, hospital, mac, member_id, set_modes};
    use crate::model::Model;

    fn edge(number: u32, remote: [u8; 4], outbound: bool, port: u16) -> Edge {
        Edge {
            gateway: gateway_id(number.div_ceil(2)),
            mac: mac(number),
            member: None,
            local: [10, 20, 1, 10].into(),
            remote: remote.into(),
            remote_member: None,
            outbound,
            protocol: 6,
            port,
            verdict: Verdict::Clear,
            rule: None,
            flows: 1,
            packets_out: 1,
            packets_in: 1,
            bytes_out: 1,
            bytes_in: 1,
            first: NOW,
            last: NOW,
            rhythm: Rhythm::default(),
        }
    }

    fn judged(model: &Model, edge: &Edge) -> Option<DropReason> {
        of_edge(&Resolved::new(model).unwrap(), &Names::of(model), edge, NOW)
    }

    #[test]
    fn an_observed_device_gets_the_verdict_that_protect_would_record() {
        let mut model = hospital();
        let images = edge(1, [10, 20, 4, 10], true, 104);
        let share = edge(3, [10, 20, 4, 10], true, 445);
        let scanned = edge(3, [10, 20, 9, 9], false, 22);
        assert_eq!(judged(&model, &images), None, "a rule allows it");
        assert_eq!(judged(&model, &share), Some(DropReason::NotVisible));
        assert_eq!(judged(&model, &scanned), Some(DropReason::NotVisible), "inbound too");
        let dropped = Edge { verdict: Verdict::Drop(DropReason::NoRule), ..share.clone() };
        assert_eq!(judged(&model, &dropped), None, "what was dropped is told as that");
        let tunnelled = Edge { protocol: 47, ..share.clone() };
        assert_eq!(judged(&model, &tunnelled), None, "no rule carries it: that is told elsewhere");
        for (group, port) in [
            ([224, 0, 0, 251], 5353),
            ([239, 255, 255, 250], 1900),
            ([255, 255, 255, 255], 67),
            ([10, 20, 1, 255], 137),
        ] {
            let to_all = Edge { protocol: 17, ..edge(3, group, true, port) };
            assert_eq!(judged(&model, &to_all), None, "no rule carries it either: {to_all:?}");
        }
        let host = Edge { protocol: 17, ..edge(3, [10, 20, 9, 255], true, 137) };
        let reason = Some(DropReason::NotVisible);
        assert_eq!(judged(&model, &host), reason, "a machine's own address in another network");
        let expired = "[rule.ct-to-pacs]\nexpires = 2020-01-01T00:00:00Z";
        let mut late = hospital();
        late.policy = late.policy.replace("[rule.ct-to-pacs]", expired);
        assert_eq!(judged(&late, &images), Some(DropReason::Expired));

        // In protect its gateway says so itself, and says the same.
        set_modes(&mut model, Mode::Protect, &["pump-1"]);
        assert_eq!(judged(&model, &share), None);
        let resolved = Resolved::new(&model).unwrap();
        let flow = ends::flow(&resolved, &share, member_id(3)).unwrap();
        let protect = crate::decide::decide(&resolved, &flow, NOW).verdict;
        assert_eq!(protect, Verdict::WouldDrop(DropReason::NotVisible));
        assert_eq!(would_drop(&resolved, &flow, End::From, NOW), protect.reason());
    }

    #[test]
    fn two_on_one_port_and_strangers_are_judged_by_nobody() {
        let mut model = hospital();
        let beside = edge(1, [10, 20, 1, 11], true, 445);
        assert!(judged(&model, &beside).is_some());
        let port = model.devices[&member_id(1)].attachment.port.clone();
        model.devices.get_mut(&member_id(2)).unwrap().attachment.port = port;
        assert_eq!(judged(&model, &beside), None, "no gateway stands between them");
        assert_eq!(judged(&model, &edge(77, [10, 20, 4, 10], true, 445)), None);
    }
}
