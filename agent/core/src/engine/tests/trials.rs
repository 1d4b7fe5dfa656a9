//! Devices that are enforced on trial: when they go back, and what they go back to.

use std::ops::Range;

use anteroom_proto::approval::Place;
use anteroom_proto::rollout::{Expected, Failing, Rollout, Trial, TrialReport, Why};

use super::*;
use crate::trial::{ATTEMPTS, TrialState, effective};

const PORT: PortId = PortId::device(0);
const DEVICE: [u8; 4] = [10, 20, 1, 10];
/// In the external that a rule names.
const ARCHIVE: [u8; 4] = [10, 20, 9, 5];
/// Somebody whom no rule names.
const PRINTER: [u8; 4] = [10, 20, 8, 8];
const MINUTE: Duration = Duration::from_secs(60);

fn expected(remote: [u8; 4], port: u16) -> Expected {
    Expected { remote: remote.into(), outbound: true, protocol: 6, port }
}

/// The view in which device 10 is enforced on the trial that revision `since` ordered.
fn on_trial(since: u64, back_to: Mode) -> Arc<View> {
    let mut view = (*view([Mode::Enforce, Mode::Enforce], &["tcp/104"])).clone();
    view.intent.devices[0].rollout = Rollout {
        trial: Some(Trial {
            since: Place::new(0, since),
            within: 60_000,
            back_to,
            expects: vec![expected(ARCHIVE, 104), expected(PRINTER, 9100)],
        }),
        ..Rollout::default()
    };
    Arc::new(view)
}

fn confirmed() -> Arc<View> {
    view([Mode::Enforce, Mode::Enforce], &["tcp/104"])
}

/// The engine with its device's router known, so that what is allowed gets out.
fn begun(view: Arc<View>, now: Instant) -> Engine {
    let mut engine = engine(Limits::default(), now);
    engine.apply(view, now);
    let router = "10.20.1.1".parse().unwrap();
    let heard = crate::wire::arp::request(mac(0x77), router, DEVICE.into());
    let _ = feed(&mut engine, PortId::UPLINK, VnetHeader::default(), &heard, now);
    engine
}

/// Sends a SYN of device 10. Says whether it went out.
fn opens(engine: &mut Engine, remote: [u8; 4], (from, to): (u16, u16), now: Instant) -> bool {
    let packet = ipv4(DEVICE, remote, 6, &tcp(from, to, 2, &[]));
    let bytes = frame(mac(0x77), mac(10), &packet);
    let out = feed(engine, PORT, VnetHeader::default(), &bytes, now);
    out.frames.iter().any(|(port, ..)| port.is_uplink())
}

fn answers(engine: &mut Engine, remote: [u8; 4], (from, to): (u16, u16), now: Instant) {
    let packet = ipv4(remote, DEVICE, 6, &tcp(to, from, 0x12, &[]));
    let bytes = frame(mac(10), mac(0x77), &packet);
    let _ = feed(engine, PortId::UPLINK, VnetHeader::default(), &bytes, now);
}

fn turn(engine: &mut Engine, now: Instant) {
    engine.handle_timeout(now, &mut Kept::default());
}

fn mode(engine: &Engine, now: Instant) -> Mode {
    engine.status(now).devices.iter().find(|device| device.mac == mac(10)).unwrap().mode
}

fn told(engine: &Engine, now: Instant) -> TrialReport {
    engine.status(now).trials.into_iter().next().expect("no trial is told")
}

fn why(engine: &Engine, now: Instant) -> Option<Why> {
    told(engine, now).over.map(|over| over.why)
}

#[test]
fn a_device_that_nobody_confirms_goes_back_to_protect_when_the_time_is_over() {
    let now = start();
    let mut engine = begun(on_trial(7, Mode::Protect), now);
    assert_eq!(told(&engine, now).left, 60_000);
    assert!(!opens(&mut engine, PRINTER, (40_000, 9100), now), "it is enforced meanwhile");
    let end = now + MINUTE;
    assert!(engine.poll_timeout().is_some_and(|(due, _)| due <= end));
    turn(&mut engine, end - Duration::from_millis(1));
    assert_eq!((mode(&engine, end), why(&engine, end)), (Mode::Enforce, None));
    turn(&mut engine, end);
    assert_eq!((mode(&engine, end), why(&engine, end)), (Mode::Protect, Some(Why::Unconfirmed)));
    assert!(opens(&mut engine, PRINTER, (40_000, 9100), end), "a known flow is judged anew");
    let edges = engine.report(end).edges;
    let would = |edge: &anteroom_proto::v1::telemetry::EdgeDelta| {
        matches!(edge.verdict, anteroom_proto::verdict::Verdict::WouldDrop(_))
    };
    assert!(edges.iter().any(would), "protect records it: {edges:#?}");
    // Its neighbour on another port isn't on trial.
    let other =
        engine.status(end).devices.iter().find(|device| device.mac == mac(11)).unwrap().mode;
    assert_eq!(other, Mode::Enforce);
}

#[test]
fn the_same_trial_in_a_newer_view_goes_on_and_never_begins_again() {
    let now = start();
    let mut engine = begun(on_trial(7, Mode::Protect), now);
    let half = now + MINUTE / 2;
    engine.apply(on_trial(7, Mode::Protect), half);
    assert_eq!(told(&engine, half).left, 30_000);
    turn(&mut engine, now + MINUTE);
    engine.apply(on_trial(7, Mode::Protect), now + MINUTE);
    assert_eq!(mode(&engine, now + MINUTE), Mode::Protect, "it is over, whoever sends it again");
    let later = now + 2 * MINUTE;
    engine.apply(on_trial(8, Mode::Protect), later);
    assert_eq!(mode(&engine, later), Mode::Enforce, "operators ordered another");
    engine.apply(confirmed(), later);
    turn(&mut engine, later + 2 * MINUTE);
    assert_eq!(mode(&engine, later + 2 * MINUTE), Mode::Enforce, "confirmed");
    assert!(engine.status(later).trials.is_empty());
}

#[test]
fn a_trial_that_was_confirmed_in_time_never_ends() {
    let now = start();
    let mut engine = begun(on_trial(7, Mode::Protect), now);
    engine.apply(confirmed(), now + MINUTE / 2);
    for seconds in 0..200 {
        turn(&mut engine, now + Duration::from_secs(seconds));
    }
    assert_eq!(mode(&engine, now + 4 * MINUTE), Mode::Enforce);
    assert!(engine.trials().is_empty());
}

#[test]
fn only_protect_is_gone_back_to() {
    for back_to in [Mode::Observe, Mode::Enforce, Mode::Unrecognised] {
        let now = start();
        let mut engine = begun(on_trial(7, back_to), now);
        assert!(engine.status(now).trials.is_empty());
        turn(&mut engine, now + 2 * MINUTE);
        assert_eq!(mode(&engine, now), Mode::Enforce, "{back_to} isn't opened by itself");
    }
}

#[test]
fn a_connection_that_was_answered_before_and_is_dropped_now_ends_it() {
    let mut now = start();
    let mut engine = begun(on_trial(7, Mode::Protect), now);
    for attempt in 0..ATTEMPTS {
        assert_eq!(mode(&engine, now), Mode::Enforce, "after {attempt} attempts");
        // A burst is one attempt.
        for from in 40_000..40_020 {
            assert!(!opens(&mut engine, PRINTER, (from, 9100), now));
        }
        now += Duration::from_millis(1_100);
        turn(&mut engine, now);
    }
    assert_eq!(mode(&engine, now), Mode::Protect);
    let failing = Failing {
        what: expected(PRINTER, 9100),
        reason: Some("no-rule".into()),
        attempts: ATTEMPTS,
    };
    let failing = Failing { reason: Some("not-visible".into()), ..failing };
    assert_eq!(why(&engine, now), Some(Why::Failing(failing)));
    assert!(opens(&mut engine, PRINTER, (41_000, 9100), now));
}

#[test]
fn a_packet_that_is_sent_again_is_the_same_attempt() {
    let begin = start();
    let mut engine = begun(on_trial(7, Mode::Protect), begin);
    let mut sent_again = |from: u16, at: u64| {
        for seconds in [0, 1, 3, 7, 15] {
            let now = begin + Duration::from_secs(at + seconds);
            assert!(!opens(&mut engine, PRINTER, (from, 9100), now));
            turn(&mut engine, now);
        }
        mode(&engine, begin)
    };
    assert_eq!(sent_again(40_000, 0), Mode::Enforce);
    assert_eq!(sent_again(40_001, 16), Mode::Enforce);
    // The third attempt goes out at last, when it is sent again.
    let third = begin + Duration::from_secs(32);
    assert!(!opens(&mut engine, PRINTER, (40_002, 9100), third));
    turn(&mut engine, third);
    assert_eq!(mode(&engine, third), Mode::Protect);
}

#[test]
fn what_others_send_in_the_name_of_an_expected_one_ends_nothing() {
    let mut now = start();
    let mut engine = begun(on_trial(7, Mode::Protect), now);
    for attempt in 0..20 {
        // As the printer's answer, and as the printer that opens a connection.
        answers(&mut engine, PRINTER, (40_000 + attempt, 9100), now);
        let packet = ipv4(PRINTER, DEVICE, 6, &tcp(41_000 + attempt, 9100, 2, &[]));
        let bytes = frame(mac(10), mac(0x77), &packet);
        let _ = feed(&mut engine, PortId::UPLINK, VnetHeader::default(), &bytes, now);
        now += Duration::from_millis(1_100);
        turn(&mut engine, now);
    }
    assert_eq!((mode(&engine, now), why(&engine, now)), (Mode::Enforce, None));
}

#[test]
fn what_was_never_answered_before_ends_nothing() {
    let mut now = start();
    let mut engine = begun(on_trial(7, Mode::Protect), now);
    for port in 1..50 {
        assert!(!opens(&mut engine, PRINTER, (40_000, port), now));
        assert!(!opens(&mut engine, [10, 20, 8, 9], (40_000, 9100), now));
        now += Duration::from_secs(1);
        turn(&mut engine, now);
    }
    assert_eq!((mode(&engine, now), why(&engine, now)), (Mode::Enforce, None));
}

#[test]
fn an_allowed_connection_that_nobody_answers_any_more_ends_it_and_an_answer_begins_anew() {
    let mut now = start();
    let mut engine = begun(on_trial(7, Mode::Protect), now);
    now += Duration::from_secs(11);
    let mut attempt = |engine: &mut Engine, from: u16, answered: bool| {
        assert!(opens(engine, ARCHIVE, (from, 104), now), "{:?}", engine.status(now).drops);
        if answered {
            answers(engine, ARCHIVE, (from, 104), now);
        }
        for _ in 0..9 {
            now += Duration::from_secs(1);
            turn(engine, now);
        }
        now
    };
    let _ = (attempt(&mut engine, 1, false), attempt(&mut engine, 2, false));
    let at = attempt(&mut engine, 3, true);
    assert_eq!((mode(&engine, at), why(&engine, at)), (Mode::Enforce, None));
    let mut engine = {
        // A longer one, so that time alone doesn't end it.
        let mut view = (*on_trial(9, Mode::Protect)).clone();
        view.intent.devices[0].rollout.trial.as_mut().unwrap().within = 600_000;
        engine.apply(Arc::new(view), at);
        engine
    };
    for _ in 0..11 {
        let _ = attempt(&mut engine, 4, true);
    }
    let mut at = at;
    for from in 5..8 {
        at = attempt(&mut engine, from, false);
    }
    let failing = Failing { what: expected(ARCHIVE, 104), reason: None, attempts: ATTEMPTS };
    assert_eq!(why(&engine, at), Some(Why::Failing(failing)));
    assert_eq!(mode(&engine, at), Mode::Protect);
}

#[test]
fn an_earlier_run_of_the_agent_counts() {
    let now = start();
    let first = begun(on_trial(7, Mode::Protect), now);
    let [kept] = <[TrialState; 1]>::try_from(first.trials()).unwrap();
    assert_eq!(kept.ends, now + MINUTE);
    // Started again in the middle: it ends when it would have.
    let half = now + MINUTE / 2;
    let mut second = engine(Limits::default(), half);
    second.restore_trials(vec![kept.clone()]);
    second.apply(on_trial(7, Mode::Protect), half);
    assert_eq!(told(&second, half).left, 30_000);
    turn(&mut second, now + MINUTE);
    assert_eq!(mode(&second, now + MINUTE), Mode::Protect);
    // What was kept prolongs nothing.
    let late = TrialState { ends: now + 100 * MINUTE, ..kept.clone() };
    let mut third = engine(Limits::default(), now);
    third.restore_trials(vec![late]);
    third.apply(on_trial(7, Mode::Protect), now);
    assert_eq!(told(&third, now).left, 60_000);
    // One that was over stays so from the first frame on.
    let over = second.trials();
    let mut fourth = engine(Limits::default(), now);
    fourth.restore_trials(over.clone());
    let view = on_trial(7, Mode::Protect);
    fourth.apply(view.clone(), now);
    assert_eq!(mode(&fourth, now), Mode::Protect);
    let modes = |trials: &[TrialState]| {
        let view = effective(&view, trials).into_owned();
        view.intent.devices.iter().map(|device| device.member.mode).collect::<Vec<_>>()
    };
    assert_eq!(modes(&over), [Mode::Protect, Mode::Enforce]);
    assert_eq!(modes(&[kept]), [Mode::Enforce, Mode::Enforce]);
}

#[test]
fn devices_that_share_a_port_go_back_together() {
    let now = start();
    let mut view = (*on_trial(7, Mode::Protect)).clone();
    view.intent.devices[1].port = view.intent.devices[0].port.clone();
    let mut trial = view.intent.devices[0].rollout.clone();
    trial.trial.as_mut().unwrap().expects.clear();
    view.intent.devices[1].rollout = trial;
    let mut engine = begun(Arc::new(view), now);
    let mut now = now;
    for attempt in 0..u16::from(ATTEMPTS) {
        assert!(!opens(&mut engine, PRINTER, (40_000 + attempt, 9100), now));
        now += Duration::from_millis(1_100);
    }
    turn(&mut engine, now);
    let modes: Vec<Mode> = engine.status(now).devices.iter().map(|device| device.mode).collect();
    assert_eq!(modes, [Mode::Protect, Mode::Protect]);
    assert!(opens(&mut engine, PRINTER, (41_000, 9100), now));
}

#[test]
fn a_device_that_moves_to_another_port_goes_back_with_its_neighbours_of_now() {
    let now = start();
    let mut view = (*on_trial(7, Mode::Protect)).clone();
    let trial = view.intent.devices[0].rollout.clone();
    let elsewhere = view.intent.devices[1].port.clone();
    view.intent.devices[1].rollout = trial.clone();
    view.intent.devices[1].rollout.trial.as_mut().unwrap().expects.clear();
    // Two ports at first: one goes back and the other stays.
    let both = |port: &anteroom_proto::name::Name| {
        let mut view = view.clone();
        view.intent.devices[0].port = port.clone();
        Arc::new(view)
    };
    let apart = both(&view.intent.devices[0].port);
    let mut engine = begun(apart, now);
    engine.apply(both(&elsewhere), now);
    let gone = |engine: &Engine| {
        engine.trials().iter().map(|trial| trial.over.is_some()).collect::<Vec<_>>()
    };
    let mut at = now;
    for attempt in 0..u16::from(ATTEMPTS) {
        let packet = ipv4(DEVICE, PRINTER, 6, &tcp(40_000 + attempt, 9100, 2, &[]));
        let _ = feed(
            &mut engine,
            PortId::device(1),
            VnetHeader::default(),
            &frame(mac(0x77), mac(10), &packet),
            at,
        );
        at += Duration::from_millis(1_100);
    }
    turn(&mut engine, at);
    assert_eq!(gone(&engine), [true, true]);
}

#[test]
fn peers_agree_on_a_pair_whether_a_trial_is_over_or_not() {
    let now = start();
    let mut engine = begun(on_trial(7, Mode::Protect), now);
    let digest = |engine: &Engine| engine.policy.as_ref().unwrap().relation(OTHER);
    let before = digest(&engine);
    turn(&mut engine, now + MINUTE);
    assert_eq!(digest(&engine), before);
    engine.apply(confirmed(), now + MINUTE);
    assert_eq!(digest(&engine), before, "nor do they have to know of it");
}

/// A member behind another gateway.
const PACS: [u8; 4] = [10, 20, 4, 20];

/// As [`on_trial`], measured by one connection, with `change` made to it.
fn measured_by(what: Expected, change: impl FnOnce(&mut View)) -> Arc<View> {
    let mut view = (*on_trial(7, Mode::Protect)).clone();
    let trial = view.intent.devices[0].rollout.trial.as_mut().unwrap();
    (trial.expects, trial.within) = (vec![what], 600_000);
    change(&mut view);
    Arc::new(view)
}

fn passes(engine: &mut Engine, flags: u8, outbound: bool, now: Instant) {
    let (from, to) = if outbound { (DEVICE, ARCHIVE) } else { (ARCHIVE, DEVICE) };
    let ports = if outbound { (40_000, 104) } else { (104, 40_000) };
    let packet = ipv4(from, to, 6, &tcp(ports.0, ports.1, flags, &[1; 8]));
    let (port, macs) = if outbound {
        (PORT, (mac(0x77), mac(10)))
    } else {
        (PortId::UPLINK, (mac(10), mac(0x77)))
    };
    let _ = feed(engine, port, VnetHeader::default(), &frame(macs.0, macs.1, &packet), now);
}

#[test]
fn a_connection_that_is_refused_is_not_answered() {
    let mut now = start();
    let mut engine = begun(measured_by(expected(ARCHIVE, 104), |_| ()), now);
    now += Duration::from_secs(11);
    for from in 1..=u16::from(ATTEMPTS) {
        assert_eq!(why(&engine, now), None, "after {} attempts", from - 1);
        assert!(opens(&mut engine, ARCHIVE, (from, 104), now));
        let packet = ipv4(ARCHIVE, DEVICE, 6, &tcp(104, from, 0x14, &[]));
        let bytes = frame(mac(10), mac(0x77), &packet);
        let _ = feed(&mut engine, PortId::UPLINK, VnetHeader::default(), &bytes, now);
        now += Duration::from_millis(1_100);
        turn(&mut engine, now);
    }
    let failing = Failing { what: expected(ARCHIVE, 104), reason: None, attempts: ATTEMPTS };
    assert_eq!(why(&engine, now), Some(Why::Failing(failing)));
}

#[test]
fn a_connection_from_before_that_falls_silent_ends_it() {
    let begin = start();
    for silent in [true, false] {
        let mut engine = begun(view([Mode::Protect, Mode::Enforce], &["tcp/104"]), begin);
        for (flags, outbound) in [(0x02, true), (0x12, false), (0x10, true), (0x18, false)] {
            passes(&mut engine, flags, outbound, begin);
        }
        engine.apply(measured_by(expected(ARCHIVE, 104), |_| ()), begin);
        let mut now = begin;
        for second in 0..120 {
            now = begin + Duration::from_secs(second);
            passes(&mut engine, 0x18, true, now);
            if !silent {
                passes(&mut engine, 0x10, false, now);
            }
            turn(&mut engine, now);
        }
        let failing = Failing { what: expected(ARCHIVE, 104), reason: None, attempts: ATTEMPTS };
        assert_eq!(why(&engine, now), silent.then_some(Why::Failing(failing)));
    }
}

/// A connection of the device to the archive that says something every second, and is answered until second `silent`. Says why the trial
/// is over after two minutes.
fn falls_silent(
    engine: &mut Engine,
    begin: Instant,
    seconds: Range<u64>,
    silent: u64,
) -> Option<Why> {
    let mut now = begin;
    for second in 0..seconds.end {
        now = begin + Duration::from_secs(second);
        if seconds.contains(&second) {
            passes(engine, 0x18, true, now);
            if second < silent {
                passes(engine, 0x10, false, now);
            }
        }
        turn(engine, now);
    }
    why(engine, now)
}

#[test]
fn a_connection_that_begins_while_things_settle_and_falls_silent_ends_it() {
    let failing = Failing { what: expected(ARCHIVE, 104), reason: None, attempts: ATTEMPTS };
    for (silent, ended) in [(20, Some(Why::Failing(failing))), (200, None)] {
        let begin = start();
        let mut engine = begun(measured_by(expected(ARCHIVE, 104), |_| ()), begin);
        turn(&mut engine, begin + Duration::from_secs(1));
        let opened = begin + Duration::from_secs(3);
        for (flags, outbound) in [(0x02, true), (0x12, false), (0x10, true)] {
            passes(&mut engine, flags, outbound, opened);
        }
        assert_eq!(falls_silent(&mut engine, begin, 4..120, silent), ended, "from {silent} s on");
    }
}

#[test]
fn a_connection_that_is_picked_up_after_a_restart_and_falls_silent_ends_it() {
    let failing = Failing { what: expected(ARCHIVE, 104), reason: None, attempts: ATTEMPTS };
    for (silent, ended) in [(20, Some(Why::Failing(failing))), (200, None)] {
        let begin = start();
        let view = measured_by(expected(ARCHIVE, 104), |_| ());
        let first = begun(view.clone(), begin);
        let again = begin + Duration::from_secs(30);
        let mut engine = engine(Limits::default(), again);
        engine.restore_trials(first.trials());
        engine.apply(view, again);
        let router = "10.20.1.1".parse().unwrap();
        let heard = crate::wire::arp::request(mac(0x77), router, DEVICE.into());
        let _ = feed(&mut engine, PortId::UPLINK, VnetHeader::default(), &heard, again);
        assert_eq!(falls_silent(&mut engine, again, 2..120, silent), ended, "from {silent} s on");
    }
}

#[test]
fn a_connection_that_outlasts_a_quarantine_and_falls_silent_ends_it() {
    let begin = start();
    let quarantined = |yes: bool| {
        measured_by(expected(ARCHIVE, 104), |view| {
            if yes {
                view.operation.quarantined.push(MemberId::from_bytes([10; 16]));
            }
        })
    };
    let mut engine = begun(quarantined(false), begin);
    for (flags, outbound) in [(0x02, true), (0x12, false), (0x10, true)] {
        passes(&mut engine, flags, outbound, begin);
    }
    assert_eq!(falls_silent(&mut engine, begin, 1..20, 20), None);
    let cut_off = begin + Duration::from_secs(20);
    engine.apply(quarantined(true), cut_off);
    assert_eq!(falls_silent(&mut engine, cut_off, 1..20, 0), None, "the controller did that");
    let released = begin + Duration::from_secs(40);
    engine.apply(quarantined(false), released);
    let failing = Failing { what: expected(ARCHIVE, 104), reason: None, attempts: ATTEMPTS };
    let over = falls_silent(&mut engine, released, 1..120, 10);
    let status = engine.status(released + 2 * MINUTE);
    assert_eq!(over, Some(Why::Failing(failing)), "{:?}", status.drops);
}

#[test]
fn what_a_controller_brings_about_ends_no_trial_and_a_path_that_never_was_does() {
    let tries = |change: &dyn Fn(&mut View), worked: bool| {
        let mut now = start();
        let mut engine = begun(measured_by(expected(PACS, 104), change), now);
        if worked {
            engine.peer_states.get_mut(&OTHER).unwrap().live = true;
            engine.look_at_trials(now);
            engine.peer_states.get_mut(&OTHER).unwrap().live = false;
        }
        now += Duration::from_secs(11);
        for from in 0..10 {
            if why(&engine, now).is_some() {
                break;
            }
            assert!(!opens(&mut engine, PACS, (40_000 + from, 104), now));
            now += Duration::from_millis(1_100);
            turn(&mut engine, now);
        }
        (why(&engine, now).is_some(), engine.status(now).drops)
    };
    let ends = |change: &dyn Fn(&mut View), worked| {
        let (ends, drops) = tries(change, worked);
        assert!(!drops.is_empty(), "nothing was dropped");
        ends
    };
    assert!(ends(&|_| (), false), "no tunnel ever came up");
    assert!(!ends(&|_| (), true), "the peer's gateway died");
    assert!(!ends(&|view| view.operation.suspended.push(OTHER), false), "it was suspended");
    let device = MemberId::from_bytes([10; 16]);
    assert!(!ends(&|view| view.operation.quarantined.push(device), false), "it is quarantined");
}

#[test]
fn a_neighbour_that_is_enforced_for_good_keeps_a_device_where_it_is_and_nobody_is_told_otherwise() {
    let now = start();
    let shared = |firm: bool| {
        let mut view = (*on_trial(7, Mode::Protect)).clone();
        view.intent.devices[1].port = view.intent.devices[0].port.clone();
        if !firm {
            view.intent.devices[1].rollout = view.intent.devices[0].rollout.clone();
        }
        Arc::new(view)
    };
    let mut engine = begun(shared(true), now);
    let later = now + 2 * MINUTE;
    turn(&mut engine, later);
    assert_eq!((mode(&engine, later), why(&engine, later)), (Mode::Enforce, None));
    assert_eq!(
        effective(&shared(true), &engine.trials()).intent.devices[0].member.mode,
        Mode::Enforce
    );
    assert!(!opens(&mut engine, PRINTER, (40_000, 9100), later));
    // Once nothing holds it, its time has been over for long; the other one's begins.
    engine.apply(shared(false), later);
    turn(&mut engine, later);
    let whys: Vec<Option<Why>> = engine
        .status(later)
        .trials
        .into_iter()
        .map(|told| told.over.map(|over| over.why))
        .collect();
    let neighbour = Why::Neighbour { member: MemberId::from_bytes([10; 16]) };
    assert_eq!(whys, [Some(Why::Unconfirmed), Some(neighbour)]);
    assert!(opens(&mut engine, PRINTER, (40_001, 9100), later));
}

#[test]
fn a_device_that_is_held_back_is_told_in_the_mode_that_it_is_in() {
    use anteroom_proto::approval::{HeldBack, Step, Upheld};
    use anteroom_proto::rollout::HeldBackReport;

    let now = start();
    let member = MemberId::from_bytes([10; 16]);
    let step = Step::Enforce { trial: None };
    let held = |mode, view: &mut View| {
        view.intent.devices[0].member.mode = mode;
        let back = HeldBack { member, step, signed: Mode::Enforce, mode };
        view.upheld = Upheld { held_back: vec![back], ..Upheld::default() };
    };
    let told = |engine: &mut Engine, now| engine.report(now).held_back;
    let in_protect = HeldBackReport { member, signed: Mode::Enforce, mode: Mode::Protect };
    let mut plain = (*confirmed()).clone();
    held(Mode::Protect, &mut plain);
    let mut engine = begun(Arc::new(plain), now);
    assert_eq!(told(&mut engine, now), [in_protect]);
    assert!(opens(&mut engine, PRINTER, (40_000, 9100), now), "it is in protect");
    // On the terms of before: nothing is told until that trial is over.
    let mut before = (*on_trial(7, Mode::Protect)).clone();
    held(Mode::Enforce, &mut before);
    engine.apply(Arc::new(before), now);
    assert_eq!((told(&mut engine, now), mode(&engine, now)), (Vec::new(), Mode::Enforce));
    turn(&mut engine, now + MINUTE);
    assert_eq!(told(&mut engine, now + MINUTE), [in_protect]);
}
