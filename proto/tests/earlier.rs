//! What agents, controllers and relays said to each other before these, as they wrote it: programs of one hospital aren't all
//! replaced at once, so each has to get on with those of before.
//!
//! `earlier/messages` is by programs that knew relays and tunnel keys that change, and nothing of what came after: TCP in
//! the place of QUIC, pre-shared keys, QUIC between gateways, other identity keys, hints, trials. A line each: who says it
//! to whom, what it is, and its CBOR. Lines are added, and never made again with newer code.

use std::fmt::Debug;

use anteroom_proto::cbor;
use anteroom_proto::relay::{FromRelay, ToRelay};
use anteroom_proto::v1::telemetry::PathReason;
use anteroom_proto::v1::{Hello, Rotate, ToAgent, ToController};
use data_encoding::HEXLOWER;
use serde::Serialize;
use serde::de::DeserializeOwned;

const MESSAGES: &str = include_str!("earlier/messages");

/// All messages of one kind, by name.
fn all<T: Serialize + DeserializeOwned + Debug>(kind: &str) -> Vec<(&'static str, T)> {
    let mut read = Vec::new();
    for line in MESSAGES.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [of, name, hex] = words[..] else { panic!("{line}") };
        if of == kind {
            let bytes = HEXLOWER.decode(hex.as_bytes()).unwrap();
            let message: T = cbor::decode(&bytes, bytes.len())
                .unwrap_or_else(|error| panic!("{kind} {name} can't be read: {error}"));
            // What holds nothing new is written as it was then: whoever reads that strictly goes on reading it.
            let again = HEXLOWER.encode(&cbor::encode(&message));
            assert_eq!(again, hex, "{kind} {name} is written otherwise: {message:?}");
            read.push((name, message));
        }
    }
    read
}

fn names<T>(messages: &[(&'static str, T)]) -> Vec<&'static str> {
    messages.iter().map(|(name, _)| *name).collect()
}

/// The fields that a message has in its outermost map.
fn fields<T: Serialize>(value: &T) -> Vec<String> {
    let bytes = cbor::encode(value);
    let read: std::collections::BTreeMap<String, serde::de::IgnoredAny> =
        cbor::decode(&bytes, bytes.len()).unwrap();
    read.into_keys().collect()
}

#[test]
fn what_earlier_agents_say_is_read_and_written_as_it_was() {
    let all = all::<ToController>("to-controller");
    let kinds = ["enrol", "hello", "ask-authority", "applied", "reachable", "report"];
    assert_eq!(names(&all), kinds);
    for (_, message) in all {
        match message {
            ToController::Hello(hello) => {
                assert_eq!((hello.quic, hello.reachable.quic), (None, None));
                assert_eq!(hello.capabilities, ["relay", "rotate"]);
                // Where an agent has news it says so beside what an earlier controller reads strictly.
                let news = Hello { quic: Some(443), ..(*hello).clone() };
                assert_eq!(fields(&news).len(), fields(&*hello).len() + 1);
                assert_eq!(fields(&news.reachable), fields(&hello.reachable));
            }
            ToController::Report(report) => {
                assert_eq!(report.tunnels[0].path, Some(PathReason::Died));
                assert_eq!(report.edges.len() + report.sightings.len(), 2);
            }
            _ => {}
        }
    }
}

#[test]
fn what_earlier_controllers_say_is_read_and_written_as_it_was() {
    let all = all::<ToAgent>("to-agent");
    let kinds = ["enrolled", "refused", "welcome", "authority", "pass", "rotate", "reported"];
    assert_eq!(names(&all), kinds);
    let rotate = all.into_iter().find(|(name, _)| *name == "rotate").map(|(_, message)| message);
    assert_eq!(rotate, Some(ToAgent::Rotate(Rotate { up_to: 9, now: true })));
}

#[test]
fn what_earlier_gateways_and_relays_say_is_read_and_written_as_it_was() {
    assert_eq!(names(&all::<ToRelay>("to-relay")), ["hello", "authority", "pass"]);
    let from = all::<FromRelay>("from-relay");
    let kinds = ["authority-wanted", "welcome", "peers", "pass-taken", "pass-refused", "refused"];
    assert_eq!(names(&from), kinds);
}
