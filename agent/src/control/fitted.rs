//! Reports as a controller reads them: one of another release takes none with fields that it doesn't know.

use anteroom_proto::v1::telemetry::Report;
use anteroom_proto::v1::{
    TELLS_AWAY, TELLS_HINTS, TELLS_PSK, TELLS_SHUT_OFF, TELLS_TCP, TELLS_TRIALS, ToController,
};

/// What the controller reads in reports beyond version 1's basics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reads {
    psk: bool,
    tcp: bool,
    shut_off: bool,
    hints: bool,
    trials: bool,
    away: bool,
}

impl Reads {
    /// As a controller says it.
    pub(super) fn of(what: &[String]) -> Self {
        let reads = |wanted| what.iter().any(|one| one == wanted);
        Self {
            psk: reads(TELLS_PSK),
            tcp: reads(TELLS_TCP),
            shut_off: reads(TELLS_SHUT_OFF),
            hints: reads(TELLS_HINTS),
            trials: reads(TELLS_TRIALS),
            away: reads(TELLS_AWAY),
        }
    }

    /// `report`, with nothing in it that isn't read.
    pub(super) fn fitted(self, report: &Report) -> ToController {
        let mut report = report.clone();
        if !self.psk {
            report.tunnels.iter_mut().for_each(|tunnel| tunnel.secrecy = None);
        }
        if !self.shut_off {
            report.tunnels.iter_mut().for_each(|tunnel| tunnel.shut_off = false);
        }
        if !self.hints {
            report.hints.clear();
        }
        if !self.tcp {
            for relay in &mut report.relays {
                // Before it said so, a controller refused fields of a relay that it didn't know.
                relay.over_tcp = false;
                relay.number = None;
            }
        }
        if !self.trials {
            report.trials.clear();
            report.held_back.clear();
        }
        if !self.away {
            report.relays_away.clear();
        }
        ToController::Report(Box::new(report))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use anteroom_proto::approval::Place;
    use anteroom_proto::id::{BootId, GatewayId, MemberId};
    use anteroom_proto::key::IdentityKey;
    use anteroom_proto::mode::Mode;
    use anteroom_proto::rollout::{HeldBackReport, TrialReport};
    use anteroom_proto::time::UnixMillis;
    use anteroom_proto::v1::telemetry::{RelayAway, RelayUse, Secrecy, TunnelState};

    use super::*;

    fn report() -> Report {
        let tunnel = TunnelState {
            gateway: GatewayId::from_bytes([1; 16]),
            client: false,
            live: true,
            round_trip: None,
            revision: None,
            authority: None,
            endpoint: None,
            path_mtu: None,
            relay: None,
            path: None,
            shut_off: true,
            secrecy: Some(Secrecy::MlKem768),
        };
        let key = IdentityKey::from_seed(&[2; 32]).public();
        Report {
            boot: BootId::from_bytes([3; 16]),
            sequence: 1,
            at: UnixMillis(1),
            sightings: Vec::new(),
            edges: Vec::new(),
            drops: BTreeMap::new(),
            overflow: 0,
            tunnels: vec![tunnel],
            alarms: Vec::new(),
            bypasses: Vec::new(),
            relays: vec![RelayUse {
                key,
                round_trip: None,
                carries: 1,
                over_tcp: true,
                number: Some(3),
            }],
            relays_away: vec![RelayAway { key, seconds: 90, error: "timed out".into() }],
            hints: Vec::new(),
            trials: vec![TrialReport {
                member: MemberId::from_bytes([4; 16]),
                since: Place::new(0, 1),
                left: 1,
                over: None,
            }],
            held_back: vec![HeldBackReport {
                member: MemberId::from_bytes([5; 16]),
                signed: Mode::Enforce,
                mode: Mode::Protect,
            }],
        }
    }

    /// A report's relay as controllers from before `TELLS_TCP` read it.
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct EarlierRelayUse {
        carries: u32,
        #[expect(dead_code, reason = "named so that it is no unknown field")]
        key: serde::de::IgnoredAny,
        #[expect(dead_code, reason = "named so that it is no unknown field")]
        round_trip: serde::de::IgnoredAny,
    }

    #[test]
    fn an_earlier_controller_takes_the_relays_of_a_report() {
        let relay = |reads: Reads| {
            let ToController::Report(report) = reads.fitted(&report()) else {
                panic!("not a report");
            };
            report.relays[0]
        };
        let earlier = |relay: &RelayUse| {
            let cbor = anteroom_proto::cbor::encode(relay);
            anteroom_proto::cbor::decode::<EarlierRelayUse>(&cbor, cbor.len())
        };
        for (psk, shut_off) in [(false, false), (true, true)] {
            let told = relay(Reads { psk, shut_off, ..Reads::default() });
            assert_eq!(earlier(&told).map(|relay| relay.carries).ok(), Some(1), "{told:?}");
        }
        let told = relay(Reads { tcp: true, ..Reads::default() });
        assert_eq!((told.over_tcp, told.number), (true, Some(3)));
        assert!(earlier(&told).is_err(), "it would refuse what isn't taken out");
    }

    #[test]
    fn a_controller_is_told_what_it_says_it_reads_and_no_more() {
        let said = |what: &[&str]| {
            let what: Vec<String> = what.iter().map(|one| (*one).to_owned()).collect();
            let message = Reads::of(&what).fitted(&report());
            let cbor = anteroom_proto::cbor::encode(&message);
            let holds = |word: &str| cbor.windows(word.len()).any(|bytes| bytes == word.as_bytes());
            [
                holds("psk"),
                holds("over_tcp"),
                holds("shut_off"),
                holds("trials"),
                holds("relays_away"),
            ]
        };
        assert_eq!(said(&[]), [false; 5], "an earlier controller's fields");
        assert_eq!(said(&[TELLS_PSK]), [true, false, false, false, false]);
        assert_eq!(said(&[TELLS_SHUT_OFF]), [false, false, true, false, false]);
        assert_eq!(said(&[TELLS_TCP, "of a later release"]), [false, true, false, false, false]);
        assert_eq!(said(&[TELLS_TRIALS]), [false, false, false, true, false]);
        assert_eq!(said(&[TELLS_AWAY]), [false, false, false, false, true]);
        assert_eq!(said(&[TELLS_PSK, TELLS_TCP]), [true, true, false, false, false]);
        let held_back = |what: &[String]| match Reads::of(what).fitted(&report()) {
            ToController::Report(report) => report.held_back.len(),
            other => panic!("not a report: {other:?}"),
        };
        assert_eq!((held_back(&[]), held_back(&[TELLS_TRIALS.to_owned()])), (0, 1));
    }
}
