//! By what gateways reach controller and relays, and why they left what they took before.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::paths::BEHIND;
use crate::hospital::Hospital;

/// The connections of the gateways whose paths change: whether each takes TCP, and how often one over QUIC was left as soon as
/// nothing got through it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Carriers(BTreeMap<String, (bool, u64)>);

impl Carriers {
    /// As the gateways say.
    pub(super) fn read(hospital: &Hospital) -> Result<Self> {
        let mut all = Self::default();
        for (gateway, _) in BEHIND {
            let status = hospital.gateways[gateway].status()?;
            all.note(gateway, &status).with_context(|| format!("{gateway}: {status}"))?;
        }
        Ok(all)
    }

    fn note(&mut self, gateway: &str, status: &Value) -> Result<()> {
        let relays = status["relays"].as_array().context("no relays")?;
        for at in std::iter::once(&status["control"]).chain(relays) {
            let name = at["number"].as_u64().map(|number| format!("relay {number}"));
            let name = name.as_deref().unwrap_or("controller");
            let over_tcp = at["over_tcp"].as_bool().context("no over_tcp")?;
            let silences = at["silences"].as_u64().context("no silences")?;
            self.0.insert(format!("{gateway}, {name}"), (over_tcp, silences));
        }
        Ok(())
    }

    /// Those that took QUIC `before` and take TCP now though they weren't left for their silence: QUIC gave them up, after 10 s
    /// without a word.
    pub(super) fn given_up(&self, before: &Self) -> Vec<String> {
        let given_up = self.0.iter().filter(|(name, (over_tcp, silences))| {
            let then = before.0.get(*name);
            then.is_some_and(|(over_tcp_then, then)| {
                *over_tcp && !over_tcp_then && silences <= then
            })
        });
        given_up.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn connections_that_quic_gave_up_are_told_from_those_that_were_left_for_their_silence() {
        let at = |controller: (bool, u64), relays: [(bool, u64); 2]| {
            let one = |(over_tcp, silences)| json!({"over_tcp": over_tcp, "silences": silences});
            let relay = |number: usize| {
                let mut relay = one(relays[number]);
                relay["number"] = number.into();
                relay
            };
            let mut all = Carriers::default();
            let status = json!({"control": one(controller), "relays": [relay(0), relay(1)]});
            all.note("ward", &status).unwrap();
            all
        };
        let before = at((false, 3), [(false, 0), (true, 1)]);
        let none: [&str; 0] = [];
        assert_eq!(before.given_up(&before), none);
        assert_eq!(at((true, 4), [(true, 1), (true, 1)]).given_up(&before), none);
        assert_eq!(at((true, 4), [(false, 0), (true, 1)]).given_up(&before), none, "not left yet");
        let late = at((true, 3), [(true, 0), (true, 1)]).given_up(&before);
        assert_eq!(late, ["ward, controller", "ward, relay 0"]);
        assert!(Carriers::default().note("ward", &json!({"relays": [], "control": {}})).is_err());
    }
}
