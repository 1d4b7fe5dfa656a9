//! Power cuts: at every step of a write, and at any moment of a program that writes all the time.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::state::Held;

/// What a power cut at each step of replacing `old` by `new` leaves: the file, and the draft beside it. With a file
/// system that keeps its order nothing else can be seen; the draft may hold any part of what was written to it.
fn steps(old: &[u8], new: &[u8]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let cuts = (0..new.len()).step_by(new.len() / 97 + 1).chain([new.len()]);
    let mut steps = vec![(old.to_vec(), None)];
    steps.extend(cuts.map(|cut| (old.to_vec(), Some(new[..cut].to_vec()))));
    steps.push((new.to_vec(), None));
    steps
}

#[test]
fn a_power_cut_at_any_step_leaves_the_old_or_the_new() {
    let organisation = Organisation::new(&[nowhere()]);
    let (_parent, state) = state();
    fill(&state, &organisation, Mode::Enforce);
    let (file, draft) = (state.path().join("view"), state.path().join(".view.new"));
    let old = fs::read(&file).unwrap();
    state.write_view(&organisation.view(5, 8, Mode::Enforce)).unwrap();
    let new = fs::read(&file).unwrap();
    for (number, (view, drafted)) in steps(&old, &new).into_iter().enumerate() {
        fs::write(&file, &view).unwrap();
        match &drafted {
            Some(bytes) => fs::write(&draft, bytes).unwrap(),
            None => drop(fs::remove_file(&draft)),
        }
        let held = Held::load(&state).unwrap();
        assert_eq!(problems(&held), "", "step {number}");
        let expected = if view == new { 5 } else { 4 };
        assert_eq!(held.enrolled.unwrap().view.unwrap().revision, expected, "step {number}");
        assert!(!held.closed);
        // And what was left behind is in nobody's way.
        state.write_view(&organisation.view(6, 9, Mode::Enforce)).unwrap();
        assert_eq!(Held::load(&state).unwrap().enrolled.unwrap().view.unwrap().revision, 6);
    }
}

#[test]
fn between_view_and_floor_and_before_the_marker_a_power_cut_opens_nothing() {
    let organisation = Organisation::new(&[nowhere()]);
    let (_parent, state) = state();
    fill(&state, &organisation, Mode::Observe);
    // The marker is first, then the view, then the floor.
    state.mark_enforced().unwrap();
    let held = Held::load(&state).unwrap();
    assert_eq!((held.closed, held.enrolled.unwrap().view.unwrap().revision), (false, 4));
    state.write_view(&organisation.view(5, 8, Mode::Enforce)).unwrap();
    let held = Held::load(&state).unwrap();
    let enrolled = held.enrolled.unwrap();
    assert_eq!(enrolled.view.unwrap().revision, 5);
    assert_eq!(enrolled.floor.revision, (0, 5), "the view on disk counts, whatever the floor says");
    fs::remove_file(state.path().join("view")).unwrap();
    assert!(Held::load(&state).unwrap().closed);
}

/// Writes views for ever, and says each number once it is on disk.
fn write_for_ever(state: &StateDir, first: u64) -> ! {
    let organisation = Organisation::new(&[nowhere()]);
    for number in first.. {
        let view = organisation.view(number, number + 3, Mode::Enforce);
        state.mark_enforced().unwrap();
        state.write_view(&view).unwrap();
        println!("kept {number}");
        state.write_floor(&organisation.verified(&view).floor(&Floor::default())).unwrap();
        state.write_learned(&learned()).unwrap();
    }
    unreachable!("numbers don't end");
}

#[test]
fn killed_at_any_moment_it_finds_the_newest_view_that_it_spoke_of_or_the_next() {
    const INSIDE: &str = "ANTEROOM_TEST_WRITES";
    if let Some(place) = std::env::var_os(INSIDE) {
        let state = StateDir::open(Path::new(&place)).unwrap();
        let first = Held::load(&state).unwrap().enrolled.unwrap().view.unwrap().revision + 1;
        write_for_ever(&state, first);
    }
    let (_parent, state) = state();
    // The child's organisation is this one: both come from the same seeds; addresses aren't compared.
    fill(&state, &Organisation::new(&[nowhere()]), Mode::Enforce);
    let mut newest = 4;
    for round in 0..40_u64 {
        let name = std::thread::current().name().expect("a test's thread has its name").to_owned();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture", "--test-threads", "1"])
            .env(INSIDE, state.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let kept = |line: &String| line.rsplit_once("kept ").and_then(|(_, n)| n.parse().ok());
        // From its first word on, at another moment each time.
        let first: u64 = lines.by_ref().find_map(|line| kept(&line)).expect("it writes");
        assert_eq!(first, newest + 1, "round {round}");
        std::thread::sleep(Duration::from_micros(round * 617 % 9000));
        child.kill().unwrap();
        child.wait().unwrap();
        let last = lines.filter_map(|line| kept(&line)).last().unwrap_or(first);
        let held = Held::load(&state).unwrap();
        assert_eq!(problems(&held), "", "round {round}");
        assert!(!held.closed);
        newest = held.enrolled.unwrap().view.unwrap().revision;
        assert!((last..=last + 1).contains(&newest), "round {round}: {newest} after {last}");
    }
}
