//! An identity key that is replaced, the power gone at each step of it.

use anteroom_proto::intent::Intent;
use anteroom_proto::key::{IdentityKey, PublicKey};

use super::*;
use crate::state::file::WRITES_LEFT;
use crate::testkit::{GATEWAY, intent};

fn offer(state: &StateDir, orders: &[u64]) -> Vec<PublicKey> {
    let mut nexts = state.next_identities().unwrap();
    for order in orders {
        nexts = nexts.with(StateDir::new_identity(*order).unwrap(), &[]);
    }
    state.write_next_identities(&nexts).unwrap();
    nexts.iter().map(|next| next.key.public()).collect()
}

fn held(state: &StateDir) -> PublicKey {
    state.identity().unwrap().unwrap().public()
}

/// The view on disk names `identity`.
fn approve(state: &StateDir, organisation: &Organisation, identity: PublicKey) {
    let intent = Intent { identity: Some(identity), ..intent(GATEWAY, Mode::Observe) };
    state.write_view(&organisation.view_of(&intent, 9, 9)).unwrap();
}

#[test]
fn an_offered_key_is_taken_with_the_view_that_names_it_and_the_one_before_is_gone() {
    let (_parent, state) = state();
    let organisation = Organisation::new(&[nowhere()]);
    fill(&state, &organisation, Mode::Observe);
    let old = held(&state);
    let seed = state.identity().unwrap().unwrap().to_seed().to_vec();
    let offered = offer(&state, &[5, 7]);
    let mode = fs::metadata(state.path().join("identity-next")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Offered, and nothing more: a restart finds both.
    let enrolled = Held::load(&state).unwrap().enrolled.unwrap();
    assert_eq!(enrolled.identity.public(), old);
    assert_eq!(enrolled.nexts.iter().count(), 2);
    let stranger = IdentityKey::from_seed(&[99; 32]).public();
    let error = state.adopt_identity(stranger).unwrap_err().to_string();
    assert!(error.contains(&stranger.fingerprint().to_string()), "{error}");
    assert_eq!(held(&state), old, "what isn't here isn't taken");

    // The view is on disk, and the power went before the key was put in its place.
    approve(&state, &organisation, offered[0]);
    let enrolled = Held::load(&state).unwrap().enrolled.unwrap();
    assert_eq!(enrolled.identity.public(), offered[0]);
    assert_eq!(held(&state), old, "looking changes nothing");
    // Another link to the file shows what becomes of the bytes.
    let link = state.path().join("link");
    fs::hard_link(state.path().join("identity"), &link).unwrap();
    state.adopt_identity(offered[0]).unwrap();
    assert_eq!(held(&state), offered[0]);
    let left = fs::read(&link).unwrap();
    assert!(!left.is_empty() && left.iter().all(|byte| *byte == 0), "the old file is overwritten");
    fs::remove_file(&link).unwrap();
    for entry in fs::read_dir(state.path()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap_or_default();
        assert!(!bytes.windows(32).any(|part| part == seed), "the old key is still there");
    }
    // What was ordered later is still on offer; what was ordered before is done.
    let nexts = state.next_identities().unwrap();
    assert_eq!((nexts.done, nexts.iter().count()), (5, 1));
    assert!(nexts.find(offered[1]).is_some());
    state.adopt_identity(offered[0]).unwrap();
    assert_eq!(held(&state), offered[0]);
}

#[test]
fn a_view_that_names_a_key_that_is_not_here_is_told_and_changes_nothing() {
    let (_parent, state) = state();
    let organisation = Organisation::new(&[nowhere()]);
    fill(&state, &organisation, Mode::Observe);
    let old = held(&state);
    approve(&state, &organisation, IdentityKey::from_seed(&[99; 32]).public());
    let held = Held::load(&state).unwrap();
    assert!(problems(&held).contains("isn't here"), "{}", problems(&held));
    assert_eq!(held.enrolled.unwrap().identity.public(), old);
}

#[test]
fn whenever_the_power_goes_the_key_that_counts_is_there() {
    for writes in 0.. {
        let (_parent, state) = state();
        let organisation = Organisation::new(&[nowhere()]);
        fill(&state, &organisation, Mode::Observe);
        let offered = offer(&state, &[5]);
        approve(&state, &organisation, offered[0]);
        WRITES_LEFT.set(Some(writes));
        let done = state.adopt_identity(offered[0]);
        WRITES_LEFT.set(None);
        let enrolled = Held::load(&state).unwrap().enrolled.unwrap();
        assert_eq!(enrolled.identity.public(), offered[0], "after {writes} writes");
        state.adopt_identity(offered[0]).unwrap();
        assert_eq!(held(&state), offered[0], "after {writes} writes");
        assert!(state.next_identities().unwrap().is_empty());
        if done.is_ok() {
            assert!(writes > 1, "it takes more than {writes} writes");
            break;
        }
    }
}

#[test]
fn offers_are_bounded_and_never_push_out_what_is_in_use() {
    let (_parent, state) = state();
    state.identity_or_new().unwrap();
    let first = offer(&state, &[1])[0];
    let mut nexts = state.next_identities().unwrap();
    for order in 2..20 {
        nexts = nexts.with(StateDir::new_identity(order).unwrap(), &[first]);
    }
    assert_eq!(nexts.iter().count(), 4);
    assert!(nexts.find(first).is_some() && nexts.newest() == 19);
    let left = nexts.withdrawn(30, &[first]);
    assert_eq!((left.iter().count(), left.newest()), (1, 30));
    assert!(nexts.withdrawn(30, &[]).is_empty());
}

#[test]
fn a_damaged_offer_costs_nothing_but_the_offer() {
    let (_parent, state) = state();
    let organisation = Organisation::new(&[nowhere()]);
    fill(&state, &organisation, Mode::Observe);
    offer(&state, &[5]);
    fs::write(state.path().join("identity-next"), b"nonsense").unwrap();
    let loaded = Held::load(&state).unwrap();
    assert!(problems(&loaded).contains("identity-next"), "{}", problems(&loaded));
    let enrolled = loaded.enrolled.unwrap();
    assert_eq!(enrolled.identity.public(), held(&state));
    assert!(enrolled.nexts.is_empty());
}
