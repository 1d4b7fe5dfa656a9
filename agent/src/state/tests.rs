use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anteroom_agent_core::peer::KeyUse;
use anteroom_agent_core::report::{Learned, LearnedNextHop};
use anteroom_proto::id::GatewayId;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::operation::ViewNumber;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::view::Floor;
use tempfile::TempDir;

use super::*;
use crate::testkit::{Organisation, check_binding, nowhere};

mod crash;
mod earlier;
mod identity;

/// A state directory that goes away with its temporary parent.
pub(crate) fn state() -> (TempDir, StateDir) {
    let parent = tempfile::tempdir().unwrap();
    let state = StateDir::open(&parent.path().join("state")).unwrap();
    (parent, state)
}

fn learned() -> Learned {
    let next_hops = vec![LearnedNextHop {
        port: "port1".parse().unwrap(),
        device: MacAddr([2, 0, 0, 0, 0, 1]),
        address: "10.0.0.254".parse().unwrap(),
        mac: MacAddr([2, 0, 0, 0, 0, 0xfe]),
    }];
    let agreed = vec![GatewayId::from_bytes([5; 16])];
    Learned { next_hops, agreed, ..Learned::default() }
}

/// All that an enrolled gateway with a view has on disk.
pub(crate) fn fill(state: &StateDir, organisation: &Organisation, mode: Mode) {
    state.identity_or_new().unwrap();
    state.new_tunnel_key(&[], 0).unwrap();
    state.write_enrolment(&organisation.enrolment()).unwrap();
    state.write_authority(&organisation.followed()).unwrap();
    let view = organisation.view(4, 7, mode);
    state.write_view(&view).unwrap();
    state.write_floor(&organisation.verified(&view).floor(&Floor::default())).unwrap();
    state.write_learned(&learned()).unwrap();
    if mode == Mode::Enforce {
        state.mark_enforced().unwrap();
    }
}

fn problems(held: &Held) -> String {
    held.problems.iter().map(|problem| format!("{problem}\n")).collect()
}

#[test]
fn what_was_written_is_held_again() {
    let (_parent, state) = state();
    let organisation = Organisation::new(&[nowhere()]);
    fill(&state, &organisation, Mode::Enforce);
    let identity = state.identity_or_new().unwrap().public();
    let tunnel = state.tunnel_keys().unwrap().remove(0);

    let held = Held::load(&StateDir::open(state.path()).unwrap()).unwrap();
    assert!(held.problems.is_empty(), "{}", problems(&held));
    assert_eq!(held.learned, learned());
    assert!(!held.closed);
    let enrolled = held.enrolled.unwrap();
    assert_eq!(enrolled.enrolment, organisation.enrolment());
    assert_eq!(enrolled.identity.public(), identity);
    assert_eq!(enrolled.ring.newest().secret.public(), tunnel.secret.public());
    assert_eq!(enrolled.chain.unwrap(), organisation.followed());
    assert_eq!(enrolled.view.unwrap().revision, 4);
    assert_eq!(enrolled.floor.view, ViewNumber { incarnation: 0, sequence: 7 });

    let binding = tunnel.bind(&enrolled.enrolment, &enrolled.identity);
    assert_eq!(check_binding(&binding, identity).x25519, tunnel.secret.public());
}

#[test]
fn a_new_machine_holds_nothing_and_has_no_problem() {
    let (_parent, state) = state();
    let held = Held::load(&state).unwrap();
    assert!(held.enrolled.is_none() && !held.closed && held.problems.is_empty(), "{held:?}");
}

#[test]
fn files_and_directories_are_roots_alone() {
    let (_parent, state) = state();
    fill(&state, &Organisation::new(&[nowhere()]), Mode::Enforce);
    let marker = state.marker_file();
    for directory in [state.path(), marker.parent().unwrap()] {
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
        }
    }
}

#[test]
fn a_directory_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let (_parent, state) = state();
    for mode in [0o750, 0o701, 0o777] {
        fs::set_permissions(state.path(), fs::Permissions::from_mode(mode)).unwrap();
        let error = StateDir::open(state.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("chmod 700 {}", state.path().display())), "{error}");
    }
    let file = state.path().join("file");
    fs::set_permissions(state.path(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(&file, "x").unwrap();
    assert!(matches!(StateDir::open(&file), Err(StateError::Directory { .. })));
}

#[test]
fn one_agent_has_the_directory_at_a_time() {
    let (_parent, state) = state();
    let lock = state.lock().unwrap();
    assert!(matches!(state.lock(), Err(StateError::InUse { .. })));
    assert!(state.lock_enrolment().is_ok());
    drop(lock);
    assert!(state.lock().is_ok());
}

#[test]
fn a_draft_left_by_a_power_cut_is_in_nobodys_way() {
    let (_parent, state) = state();
    fs::write(state.path().join(".identity.new"), "half").unwrap();
    let identity = state.identity_or_new().unwrap();
    assert_eq!(state.identity().unwrap().unwrap().public(), identity.public());
}

/// Every byte flipped, and every length shorter, with steps for the longer files.
fn damages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let step = (bytes.len() / 400).max(1);
    let mut damaged: Vec<_> =
        (0..bytes.len()).step_by(step).map(|at| bytes[..at].to_vec()).collect();
    for at in 0..bytes.len() {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1 << (at % 8);
        damaged.push(flipped);
    }
    damaged.push([bytes, b"\n"].concat());
    damaged
}

#[test]
fn damage_at_any_byte_of_any_file_is_named_and_costs_that_file_only() {
    let (_parent, state) = state();
    let organisation = Organisation::new(&[nowhere()]);
    fill(&state, &organisation, Mode::Observe);
    let names = ["identity", "tunnel-keys", "enrolment", "authority", "view", "floor", "learned"];
    for name in names {
        let path = state.path().join(name);
        let whole = fs::read(&path).unwrap();
        for damaged in damages(&whole) {
            fs::write(&path, &damaged).unwrap();
            let keys = fs::read(state.path().join("tunnel-keys")).unwrap();
            let held = Held::load(&state).unwrap();
            let text = problems(&held);
            assert!(text.contains(&*path.to_string_lossy()), "{name}: {text}");
            assert!(!held.closed, "{name}");
            assert_eq!(held.learned == Learned::default(), name == "learned");
            match (name, &held.enrolled) {
                ("identity" | "enrolment", None) => {}
                (_, Some(enrolled)) => {
                    assert_eq!(enrolled.chain.is_none(), name == "authority");
                    let has_view = enrolled.view.is_some();
                    assert_eq!(has_view, !matches!(name, "authority" | "view"), "{name}");
                    // Lost with one file, the floor comes back from the other.
                    let sequence = enrolled.floor.view.sequence;
                    assert_eq!(sequence, 7, "{name}");
                }
                (_, None) => panic!("{name}: {text}"),
            }
            if name == "tunnel-keys" {
                let mended = fs::read(&path).unwrap();
                assert_ne!(mended, keys, "a new key was made");
            }
        }
        fs::write(&path, &whole).unwrap();
    }
    let held = Held::load(&state).unwrap();
    assert!(held.problems.is_empty(), "{}", problems(&held));
}

#[test]
fn damaged_ml_kem_keys_are_named_and_cost_no_tunnel_key() {
    let (_parent, state) = state();
    fill(&state, &Organisation::new(&[nowhere()]), Mode::Observe);
    let before = state.tunnel_keys().unwrap().remove(0);
    let path = state.path().join("kem-keys");
    let whole = fs::read(&path).unwrap();
    for at in [0, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        for damaged in [damaged, whole[..at].to_vec()] {
            fs::write(&path, damaged).unwrap();
            let held = Held::load(&state).unwrap();
            let text = problems(&held);
            assert!(text.contains(&*path.to_string_lossy()), "{text}");
            assert!(text.contains("without pre-shared keys"), "what it comes to: {text}");
            assert_eq!(held.problems.len(), 1, "{text}");
            let ring = held.enrolled.unwrap().ring;
            assert_eq!(ring.newest().secret.public(), before.secret.public());
            assert!(ring.newest().kem.is_none());
        }
    }
    fs::write(&path, whole).unwrap();
    assert!(Held::load(&state).unwrap().problems.is_empty());
}

#[test]
fn ml_kem_keys_of_given_up_tunnel_keys_go_at_the_next_start() {
    let (_parent, state) = state();
    fill(&state, &Organisation::new(&[nowhere()]), Mode::Observe);
    let old = state.tunnel_keys().unwrap();
    let new = state.new_tunnel_key(&old, 0).unwrap();
    let path = state.path().join("kem-keys");
    let both = fs::read(&path).unwrap();
    // As an earlier version leaves it: the old key is for clients alone by now, and its ML-KEM key is still there.
    let ring = Held::load(&state).unwrap().enrolled.unwrap().ring;
    let of_old = KeyUse { key: old[0].secret.public(), live: 0, away: 0, names: vec![] };
    let ring = ring.without_unneeded(&[of_old], Duration::ZERO, None).unwrap();
    state.write_tunnel_keys(&ring).unwrap();
    let one = fs::read(&path).unwrap();
    assert!(one.len() < both.len());
    fs::write(&path, &both).unwrap();
    let ring = Held::load(&state).unwrap().enrolled.unwrap().ring;
    state.drop_needless_kem_keys(&ring).unwrap();
    assert_eq!(fs::read(&path).unwrap(), one);
    let keys = state.tunnel_keys().unwrap();
    let publics = |keys: &[TunnelKey]| -> Vec<_> {
        keys.iter().map(|key| (key.serial, key.secret.public(), key.retired)).collect()
    };
    assert_eq!(publics(&keys), publics(&ring.all().cloned().collect::<Vec<_>>()));
    assert_eq!((keys[0].serial, keys[0].kem.is_some()), (new.serial, true));
    // What is as it should be isn't written again.
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    state.drop_needless_kem_keys(&ring).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
}

/// Keys are looked at in messages and logs by way of `Debug`.
#[test]
fn no_private_key_is_shown_by_debug() {
    let (_parent, state) = state();
    fill(&state, &Organisation::new(&[nowhere()]), Mode::Observe);
    let held = Held::load(&state).unwrap();
    let enrolled = held.enrolled.as_ref().unwrap();
    let who = (enrolled.enrolment.organisation, enrolled.enrolment.gateway);
    let own = enrolled.ring.own(who);
    let secret = own[0].secret.as_bytes();
    let kem = enrolled.ring.newest().kem.as_ref().unwrap().bytes();
    for shown in [format!("{held:?}"), format!("{own:?}"), format!("{:?}", enrolled.ring)] {
        for (what, bytes) in [("tunnel", &secret[..]), ("ML-KEM", &kem[..16])] {
            let list: Vec<String> = bytes[..8].iter().map(u8::to_string).collect();
            let hex: String = bytes[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!shown.contains(&list.join(", ")), "{what}");
            assert!(!shown.to_lowercase().contains(&hex), "{what}");
        }
    }
}

#[test]
fn files_of_a_newer_agent_stop_an_older_one() {
    let (_parent, state) = state();
    let newer = file::Kind { name: "floor", format: 2, max: 100, loss: "" };
    newer.write(state.path(), &7).unwrap();
    fill_enrolment(&state);
    let error = Held::load(&state).unwrap_err();
    assert!(matches!(error, StateError::Newer { found: 2, known: 1, .. }), "{error}");
}

fn fill_enrolment(state: &StateDir) {
    state.identity_or_new().unwrap();
    state.write_enrolment(&Organisation::new(&[nowhere()]).enrolment()).unwrap();
}

#[test]
fn a_file_under_anothers_name_is_refused() {
    let (_parent, state) = state();
    fill(&state, &Organisation::new(&[nowhere()]), Mode::Observe);
    fs::copy(state.path().join("learned"), state.path().join("identity")).unwrap();
    let error = state.identity().unwrap_err().to_string();
    assert!(error.contains("\"learned\"") && error.contains("enrol again"), "{error}");
}

fn view_problem(state: &StateDir) -> ViewError {
    let held = Held::load(state).unwrap();
    assert!(held.enrolled.unwrap().view.is_none());
    match held.problems.into_iter().next() {
        Some(StateError::View { error, .. }) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_older_or_foreign_view_put_back_on_disk_is_refused() {
    let (_parent, state) = state();
    let organisation = Organisation::new(&[nowhere()]);
    fill(&state, &organisation, Mode::Observe);
    for (view, what) in [
        (organisation.view(4, 6, Mode::Observe), "view"),
        (organisation.view(3, 8, Mode::Observe), "revision"),
    ] {
        state.write_view(&view).unwrap();
        match view_problem(&state) {
            ViewError::Rollback { what: found, .. } => assert_eq!(found, what),
            other => panic!("{other}"),
        }
    }
    let other = GatewayId::from_bytes([9; 16]);
    state.write_view(&organisation.view_for(other, 5, 9, Mode::Observe)).unwrap();
    assert!(matches!(view_problem(&state), ViewError::Gateway { .. }));
    let mut stranger = Organisation::new(&[nowhere()]);
    stranger.operator = anteroom_proto::key::IdentityKey::from_seed(&[99; 32]);
    state.write_view(&stranger.view(5, 9, Mode::Observe)).unwrap();
    assert!(matches!(view_problem(&state), ViewError::Signature(_)));
}

#[test]
fn another_chain_than_the_pinned_one_is_refused_and_no_view_with_it() {
    let (_parent, state) = state();
    fill(&state, &Organisation::new(&[nowhere()]), Mode::Observe);
    let other = Organisation::new(&["127.0.0.1:9".parse().unwrap()]);
    state.write_authority(&other.followed()).unwrap();
    let held = Held::load(&state).unwrap();
    assert!(matches!(held.problems.as_slice(), [StateError::Authority { .. }]), "{held:?}");
    let enrolled = held.enrolled.unwrap();
    assert!(enrolled.chain.is_none() && enrolled.view.is_none());
}

#[test]
fn a_view_outlives_the_operator_who_signed_it() {
    let (_parent, state) = state();
    let mut organisation = Organisation::new(&[nowhere()]);
    fill(&state, &organisation, Mode::Enforce);
    let other = anteroom_proto::key::IdentityKey::from_seed(&[77; 32]).public();
    organisation.extend(|next| next.operators[0].key = other);
    state.write_authority(&organisation.followed()).unwrap();
    let held = Held::load(&state).unwrap();
    assert!(held.enrolled.as_ref().unwrap().view.is_some(), "{}", problems(&held));
}

#[test]
fn a_gateway_that_ever_enforced_stays_closed_without_its_view() {
    let (_parent, state) = state();
    let organisation = Organisation::new(&[nowhere()]);
    fill(&state, &organisation, Mode::Enforce);
    assert!(!Held::load(&state).unwrap().closed);
    fs::remove_file(state.path().join("view")).unwrap();
    assert!(Held::load(&state).unwrap().closed);
    fs::remove_dir_all(state.path()).unwrap();
    let state = StateDir::open(state.path()).unwrap();
    assert!(Held::load(&state).unwrap().closed, "the marker went with the state");
    fs::write(state.marker_file(), "").unwrap();
    assert!(Held::load(&state).unwrap().closed, "a damaged marker counts");
    fs::remove_file(state.marker_file()).unwrap();
    assert!(!Held::load(&state).unwrap().closed);
}

#[test]
fn serials_of_tunnel_keys_rise_even_past_lost_ones() {
    let (_parent, state) = state();
    let one = state.new_tunnel_key(&[], 0).unwrap();
    let two = state.new_tunnel_key(std::slice::from_ref(&one), 0).unwrap();
    assert!(two.serial > one.serial);
    assert_eq!(state.tunnel_keys().unwrap(), [two.clone(), one]);
    fs::remove_file(Path::new(state.path()).join("tunnel-keys")).unwrap();
    assert!(state.new_tunnel_key(&[], two.serial).unwrap().serial > two.serial);
    // Lost on a machine whose clock went back: the time that was signed is a floor.
    let ahead = UnixMillis((two.serial + 5_000) * 1000);
    let new = state.replace_lost_tunnel_keys(ahead).unwrap();
    assert!(new.serial > two.serial + 5_000 && new.unsure);
    assert!(state.tunnel_keys().unwrap()[0].unsure, "over a restart too");
}

proptest::proptest! {
    #[test]
    fn anything_at_all_in_a_file_is_read_without_a_panic(
        body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        header in "anteroom-agent (floor|view|x) [0-9]{0,12} [0-9a-f]{0,70}",
    ) {
        let (_parent, state) = state();
        let path = state.path().join("floor");
        for bytes in [body.clone(), [header.as_bytes(), b"\n", &body].concat()] {
            fs::write(&path, bytes).unwrap();
            let read = records::FLOOR.read::<Floor>(state.path());
            proptest::prop_assert!(read.is_err(), "{:?}", read);
        }
    }
}

#[test]
fn tunnel_keys_that_were_replaced_lie_nowhere_on_the_disk() {
    let (_parent, state) = state();
    let first = state.new_tunnel_key(&[], 0).unwrap();
    // Another name for the blocks of the files of before.
    let old = ["tunnel-keys", "kem-keys"].map(|name| {
        let kept = state.path().join(format!("{name}-before"));
        fs::hard_link(state.path().join(name), &kept).unwrap();
        kept
    });
    state.new_tunnel_key(&[first], 0).unwrap();
    for kept in old {
        let left = fs::read(&kept).unwrap();
        assert!(!left.is_empty() && left.iter().all(|byte| *byte == 0), "{kept:?}: {left:?}");
    }
}
