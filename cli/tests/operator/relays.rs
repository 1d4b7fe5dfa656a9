//! Relays that gateways reach or not, as an operator hears of it.

use anteroom_proto::authority::Relay;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::{IdentityKey, PublicKey};
use anteroom_proto::v1::telemetry::{RelayAway, RelayUse};

use crate::changes::{ana_key, hospital};
use crate::controller::Controller;
use crate::person::Person;

fn key() -> PublicKey {
    IdentityKey::from_seed(&[90; 32]).public()
}

/// Names the relay `north` in the authority document.
fn named(controller: &Controller, ana: &Person) {
    let mut state = controller.state();
    let mut next = state.authority().newest().next(state.chain.last().unwrap());
    let addresses = vec!["10.20.1.90:4433".into()];
    next.relays = vec![Relay { name: "north".parse().unwrap(), key: key(), addresses }];
    state.chain.push(Signed::sign(&next, &ana_key(ana)));
}

/// What a gateway tells from now on: that it has tried for so many seconds in vain, or (none) that it is connected.
fn tells(controller: &Controller, gateway: GatewayId, tries: Option<u64>) {
    let mut state = controller.state();
    let error = || "the relay says nothing".to_owned();
    let away = tries.map(|seconds| RelayAway { key: key(), seconds, error: error() });
    let at = RelayUse { key: key(), round_trip: None, carries: 0, over_tcp: false, number: None };
    let at = if tries.is_none() { vec![at] } else { vec![] };
    state.relays_away.insert(gateway, away.into_iter().collect());
    state.at_relays.insert(gateway, at);
}

#[test]
fn a_relay_that_gateways_try_in_vain_is_a_problem_until_they_reach_it() {
    let (controller, ana) = hospital();
    named(&controller, &ana);
    let gateways: Vec<_> = controller.state().model().gateways.keys().copied().collect();
    let well = |what: &str| {
        let ran = ana.run(&["status"]).ok();
        assert!(ran.out.contains("All is well"), "{what}: {ran:#?}");
    };
    well("nobody has said anything yet");
    for gateway in &gateways {
        tells(&controller, *gateway, Some(59));
    }
    well("named moments ago");

    for gateway in &gateways {
        tells(&controller, *gateway, Some(90));
    }
    let ran = ana.run(&["status"]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    for words in [
        "relay north: 2 gateways have tried it for over a minute in vain (imaging, server-room)",
        "none is connected: the relay says nothing.",
        "10.20.1.90:4433",
        "anteroom relay remove north",
    ] {
        assert!(ran.out.contains(words), "{words:?} isn't in {ran:#?}");
    }
    let json = ana.run(&["--json", "status"]).json();
    assert_eq!(json["problems"][0]["subject"], "relay north", "{json:#}");

    // A gateway that is offline says nothing of relays any more, and one that is there makes up for one that isn't.
    tells(&controller, gateways[0], None);
    well("half of them are there");
    controller.state().offline.push(gateways[1]);
    let ran = ana.run(&["status"]);
    assert!(ran.code == 2 && !ran.out.contains("relay north"), "{ran:#?}");
}
