//! Relays that too few gateways reach: they are there for the day on which something else is lost, and nobody would miss them before.

use std::collections::BTreeMap;

use anteroom_proto::api::GatewayStatus;
use anteroom_proto::authority::Relay;
use anteroom_proto::v1::telemetry::RelayAway;

use crate::output::table::count;

/// For how many seconds a gateway has tried before that says something about the relay: it may just have been named, or start anew.
const PATIENCE: u64 = 60;
/// Most gateways and causes that are named.
const MOST_NAMED: usize = 3;

/// What is wrong with `relay`, where no gateway reaches it, or more have tried for a while in vain than do. `name` names a gateway.
/// Those that are offline, or don't say, count as neither.
pub(in crate::commands) fn missed(
    relay: &Relay,
    statuses: &[GatewayStatus],
    name: impl Fn(&GatewayStatus) -> String,
) -> Option<String> {
    let online = || statuses.iter().filter(|status| status.online);
    let reaches = |status: &&GatewayStatus| status.relays.iter().any(|at| at.key == relay.key);
    let tries = |status: &GatewayStatus| -> Option<RelayAway> {
        let away = status.relays_away.iter().find(|away| away.key == relay.key);
        away.filter(|away| away.seconds >= PATIENCE).cloned()
    };
    let there = online().filter(reaches).count();
    let mut away = Vec::new();
    let mut causes: BTreeMap<String, usize> = BTreeMap::new();
    for (status, one) in online().filter_map(|status| Some((status, tries(status)?))) {
        away.push(name(status));
        *causes.entry(one.error).or_default() += 1;
    }
    if away.is_empty() || there >= away.len() {
        return None;
    }
    away.sort();
    let gateways = count(away.len(), "gateway has", "gateways have");
    let here = if there == 0 { "none is connected".into() } else { format!("{there} connected") };
    let mut causes: Vec<(String, usize)> = causes.into_iter().collect();
    causes.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    let causes = causes.into_iter().map(|(cause, _)| cause);
    Some(format!(
        "{gateways} tried it for over a minute in vain ({}), {here}: {}. Is it on, does a firewall let gateways through to {}, and what does its own log say? Or take it out: anteroom relay remove {}",
        first(away.into_iter(), ", "),
        first(causes, "; "),
        relay.addresses.join(", "),
        relay.name
    ))
}

/// The first of `all`, and how many more there are.
fn first(all: impl ExactSizeIterator<Item = String>, between: &str) -> String {
    let more = all.len().saturating_sub(MOST_NAMED);
    let named: Vec<String> = all.take(MOST_NAMED).collect();
    let named = named.join(between);
    if more > 0 { format!("{named}{between}{more} more") } else { named }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::id::GatewayId;
    use anteroom_proto::key::IdentityKey;

    use super::*;

    fn relay() -> Relay {
        let key = IdentityKey::from_seed(&[1; 32]).public();
        Relay { name: "north".parse().unwrap(), key, addresses: vec!["10.20.1.90:4433".into()] }
    }

    /// A gateway that is online and at the relay (none), or has tried in vain for so many seconds.
    fn status(n: u8, tries: Option<u64>) -> GatewayStatus {
        let gateway = GatewayId::from_bytes([n; 16]);
        let key = relay().key;
        let at = match tries {
            None => serde_json::json!({ "relays": [{ "key": key, "carries": 0 }] }),
            Some(seconds) => serde_json::json!({
                "relays_away": [{ "key": key, "seconds": seconds, "error": "timed out" }]
            }),
        };
        let mut status = serde_json::json!({
            "gateway": gateway, "online": true, "wanted": 1, "problems": [], "ports": [],
            "tunnels": [], "drops": {}, "alarms": [], "bypasses": []
        });
        status.as_object_mut().unwrap().extend(at.as_object().unwrap().clone());
        serde_json::from_value(status).unwrap()
    }

    fn missed_by(statuses: &[GatewayStatus]) -> Option<String> {
        missed(&relay(), statuses, |status| format!("gw-{:x}", status.gateway.as_bytes()[0]))
    }

    #[test]
    fn a_relay_that_nobody_reaches_is_a_problem_with_what_gateways_say() {
        let told = missed_by(&[status(2, Some(90)), status(1, Some(60))]).unwrap();
        assert!(told.starts_with("2 gateways have tried"), "{told}");
        assert!(told.contains("(gw-1, gw-2), none is connected: timed out. "), "{told}");
        assert!(told.contains("through to 10.20.1.90:4433"), "{told}");
        let many: Vec<_> = (1..=5).map(|n| status(n, Some(90))).collect();
        let told = missed_by(&many).unwrap();
        assert!(told.contains("(gw-1, gw-2, gw-3, 2 more)"), "{told}");
    }

    #[test]
    fn a_relay_named_moments_ago_or_missed_by_some_alone_is_none() {
        assert_eq!(missed_by(&[]), None);
        assert_eq!(missed_by(&[status(1, Some(59)), status(2, Some(0))]), None, "moments ago");
        assert_eq!(missed_by(&[status(1, None), status(2, Some(900))]), None, "half of them");
        let most = [status(1, None), status(2, Some(900)), status(3, Some(900))];
        assert!(missed_by(&most).unwrap().contains("1 connected: timed out"));
        let away = [1, 2].map(|n| GatewayStatus { online: false, ..status(n, Some(900)) });
        assert_eq!(missed_by(&away), None, "offline gateways say nothing of relays");
        let silent = GatewayStatus { relays_away: Vec::new(), ..status(1, Some(900)) };
        assert_eq!(missed_by(&[silent]), None, "an agent that doesn't tell");
    }
}
