//! What agents before this one have left on disk, as they wrote it: a program that is replaced goes on with it.
//!
//! `earlier/` is of an agent that knew no clients, no routers' own addresses, and no tunnel keys in the place of lost
//! ones: a device in enforce on `port1`, one DHCP and one DNS server, revision 4. What stands signed there isn't to be
//! made again with newer code.

use anteroom_proto::cbor;
use anteroom_proto::intent::{Intent, MAX_INTENT_LEN};
use anteroom_proto::view::SignedView;

use super::*;
use crate::testkit::{ORGANISATION, intent};

const FILES: [(&str, &[u8]); 7] = [
    ("authority", include_bytes!("earlier/authority")),
    ("enrolment", include_bytes!("earlier/enrolment")),
    ("floor", include_bytes!("earlier/floor")),
    ("identity", include_bytes!("earlier/identity")),
    ("learned", include_bytes!("earlier/learned")),
    ("tunnel-keys", include_bytes!("earlier/tunnel-keys")),
    ("view", include_bytes!("earlier/view")),
];

/// A state directory with these files, and the marker of a gateway that has ever enforced.
fn earlier() -> (TempDir, StateDir) {
    let (parent, state) = state();
    for (name, bytes) in FILES {
        fs::write(state.path().join(name), bytes).unwrap();
    }
    state.mark_enforced().unwrap();
    (parent, state)
}

#[test]
fn an_earlier_agents_view_and_keys_are_in_force_at_once() {
    let (_parent, state) = earlier();
    let held = Held::load(&state).unwrap();
    assert!(held.problems.is_empty(), "{}", problems(&held));
    assert!(!held.closed, "its ports would all be closed");
    assert_eq!(
        held.learned,
        Learned { agreed: Vec::new(), ..learned() },
        "it knew no pre-shared keys"
    );
    let enrolled = held.enrolled.unwrap();
    assert_eq!(enrolled.enrolment.organisation, ORGANISATION);
    let view = enrolled.view.unwrap();
    assert_eq!((view.revision, view.intent.devices[0].member.mode), (4, Mode::Enforce));
    assert_eq!(
        view.intent.infrastructure.dhcp,
        ["10.0.0.2".parse::<std::net::Ipv4Addr>().unwrap()]
    );
    assert!(view.intent.clients.is_empty() && view.intent.infrastructure.routers.is_empty());
    assert!(!enrolled.ring.newest().unsure);
    let keys = state.tunnel_keys().unwrap();
    let publics: Vec<_> = keys.iter().map(|key| key.secret.public()).collect();
    assert_eq!(publics, [enrolled.ring.newest().secret.public()], "no new one was made");
}

#[test]
fn what_holds_nothing_new_is_written_as_an_earlier_agent_reads_it() {
    let (_parent, state) = earlier();
    // The leaf that operators signed is these bytes: one more, and another document is meant.
    let view: SignedView = records::VIEW.read(state.path()).unwrap().unwrap();
    let read: Intent = cbor::decode(&view.intent.0, MAX_INTENT_LEN).unwrap();
    assert_eq!(cbor::encode(&read), view.intent.0);
    let key = state.tunnel_keys().unwrap().remove(0);
    let (_other, fresh) = super::state();
    let made = fresh.new_tunnel_key(&[], 0).unwrap();
    let with = |state: &StateDir| fs::read(state.path().join("tunnel-keys")).unwrap().len();
    assert_eq!(with(&fresh), with(&state), "{} and {}", made.serial, key.serial);

    // And what is new is written: another document.
    let mut more = intent(crate::testkit::GATEWAY, Mode::Enforce);
    let before = cbor::encode(&more);
    more.infrastructure.routers = vec!["10.0.0.3".parse().unwrap()];
    assert_ne!(cbor::encode(&more), before);
    assert_eq!(cbor::decode::<Intent>(&cbor::encode(&more), MAX_INTENT_LEN).unwrap(), more);
    fresh.replace_lost_tunnel_keys(UnixMillis(0)).unwrap();
    assert!(fresh.tunnel_keys().unwrap()[0].unsure && with(&fresh) > with(&state));
}
