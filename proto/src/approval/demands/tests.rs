use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;
use crate::approval::tests::{MEMBER, ORGANISATION, approvals, at, chain};
use crate::authority::AuthorityChain;
use crate::id::{GatewayId, SiteId};
use crate::intent::{Infrastructure, Member, OnFailure};
use crate::rollout::Rollout;

const FOR_GOOD: Step = Step::Enforce { trial: None };
const WAIVE: Step = Step::Waive {};

fn operators() -> AuthorityChain {
    chain(&[(&[1, 2, 3], 0, None)])
}

fn device(mode: Mode) -> Device {
    Device {
        member: Member {
            id: MEMBER,
            gateway: GatewayId::from_bytes([6; 16]),
            overlay: Ipv6Addr::LOCALHOST,
            site: SiteId::of("north"),
            vlan: None,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            addresses: Vec::new(),
            mode,
            mode_since: 1,
            quarantined: false,
        },
        port: "port1".parse().unwrap(),
        prefix_len: None,
        router: None,
        on_failure: OnFailure::Default,
        rollout: Rollout::default(),
        two_person: true,
    }
}

fn approved(mut device: Device, step: Step, revision: u64, seeds: &[u8]) -> Device {
    device.rollout.approvals.extend(approvals(step, at(revision), seeds));
    device
}

fn free(device: Device) -> Device {
    Device { two_person: false, ..device }
}

fn trial(since: u64, within: u64) -> Option<Trial> {
    Some(Trial { since: Place::new(0, since), within, back_to: Mode::Protect, expects: Vec::new() })
}

fn leaf(devices: &[Device]) -> Intent {
    Intent {
        organisation: ORGANISATION,
        gateway: GatewayId::from_bytes([6; 16]),
        overlay: Ipv6Addr::LOCALHOST,
        site: SiteId::of("north"),
        devices: devices.to_vec(),
        members: Vec::new(),
        peers: Vec::new(),
        clients: Vec::new(),
        segments: Vec::new(),
        externals: Vec::new(),
        rules: Vec::new(),
        infrastructure: Infrastructure::default(),
        bypasses: Vec::new(),
        identity: None,
    }
}

/// A gateway, as far as this goes.
struct Gateway {
    chain: AuthorityChain,
    held: Option<(Intent, Place)>,
    demands: Demands,
}

impl Gateway {
    fn new() -> Self {
        Self { chain: operators(), held: None, demands: Demands::default() }
    }

    /// Takes a leaf. Gives the steps that lack an approval, after looking that a restart changes nothing.
    fn take(&mut self, revision: u64, devices: &[Device]) -> Vec<Step> {
        let signed = leaf(devices);
        let voters = Voters { organisation: ORGANISATION, chain: &self.chain };
        let mut now = signed.clone();
        let held = self.held.as_ref().map(|(held, at)| (held, *at));
        let upheld = self.demands.uphold(&mut now, at(revision), held, &voters);
        let mut again = signed;
        let restarted = upheld.demands.uphold_again(&mut again, at(revision));
        assert_eq!(again, now, "after a restart something else is in force");
        assert_eq!(restarted.demands, upheld.demands);
        assert_eq!(restarted.held_back, upheld.held_back);
        self.held = Some((now, at(revision)));
        self.demands = upheld.demands;
        upheld.held_back.iter().map(|back| back.step).collect()
    }

    /// The one device, as it is in force.
    fn device(&self) -> &Device {
        &self.held.as_ref().unwrap().0.devices[0]
    }

    fn mode(&self) -> Mode {
        self.device().member.mode
    }
}

#[test]
fn a_device_that_one_operator_enforces_is_held_in_protect() {
    for before in [Mode::Observe, Mode::Protect] {
        let mut gateway = Gateway::new();
        assert_eq!(gateway.take(3, &[device(before)]), []);
        for seeds in [&[][..], &[1], &[1, 1], &[1, 9]] {
            let bad = approved(device(Mode::Enforce), FOR_GOOD, 4, seeds);
            assert_eq!(gateway.take(4, &[bad]), [FOR_GOOD], "{seeds:?}");
            assert_eq!(gateway.mode(), Mode::Protect);
        }
        let good = approved(device(Mode::Enforce), FOR_GOOD, 5, &[1, 3]);
        assert_eq!(gateway.take(5, std::slice::from_ref(&good)), []);
        assert_eq!(gateway.mode(), Mode::Enforce);
        // Later revisions carry it on, and back is one operator's.
        assert_eq!(gateway.take(9, &[good]), []);
        assert_eq!(gateway.take(10, &[device(Mode::Protect)]), []);
        assert_eq!(gateway.mode(), Mode::Protect);
    }
}

/// A device that one operator may enforce.
fn neighbour(mode: Mode, port: &str) -> Device {
    let mut other = free(device(mode));
    other.member.id = MemberId::from_bytes([7; 16]);
    other.member.mac = MacAddr([2, 0, 0, 0, 0, 7]);
    other.port = port.parse().unwrap();
    other
}

#[test]
fn a_device_is_not_enforced_by_way_of_its_neighbour_on_the_port() {
    for before in [Mode::Observe, Mode::Protect] {
        for ordered in [Mode::Enforce, Mode::Unrecognised] {
            let mut gateway = Gateway::new();
            gateway.take(3, &[device(before), neighbour(before, "port1")]);
            let bad = [device(before), neighbour(ordered, "port1")];
            assert_eq!(gateway.take(4, &bad), [FOR_GOOD]);
            let modes = |gateway: &Gateway| {
                let (now, _) = gateway.held.as_ref().unwrap();
                [0, 1].map(|index: usize| now.devices[index].member.mode)
            };
            assert_eq!(modes(&gateway), [before, Mode::Protect]);
            // Nor where the order of both lacks approvals.
            let bad = [device(Mode::Enforce), neighbour(ordered, "port1")];
            assert_eq!(gateway.take(5, &bad), [FOR_GOOD; 2]);
            assert_eq!(modes(&gateway), [Mode::Protect; 2]);
            // With two for the one that wants it the neighbour is one operator's.
            let one = approved(device(Mode::Enforce), FOR_GOOD, 6, &[1, 2]);
            assert_eq!(gateway.take(6, &[one, neighbour(ordered, "port1")]), []);
            assert_eq!(modes(&gateway), [Mode::Enforce, ordered]);
            assert_eq!(gateway.take(7, &[device(before), neighbour(ordered, "port2")]), []);
            assert_eq!(modes(&gateway), [before, ordered], "another port");
        }
    }
}

#[test]
fn the_rest_of_a_leaf_is_in_force_whatever_one_device_lacks() {
    let mut gateway = Gateway::new();
    let other = |mode, quarantined| {
        let mut other = neighbour(mode, "port2");
        other.member.quarantined = quarantined;
        other
    };
    gateway.take(3, &[device(Mode::Protect), other(Mode::Protect, false)]);
    let lacking = gateway.take(4, &[device(Mode::Enforce), other(Mode::Enforce, true)]);
    assert_eq!(lacking, [FOR_GOOD]);
    let (now, _) = gateway.held.unwrap();
    assert_eq!(now.devices[0].member.mode, Mode::Protect);
    assert_eq!(now.devices[1], other(Mode::Enforce, true));
}

#[test]
fn approvals_of_what_was_taken_back_do_not_come_again() {
    for terms in [None, trial(7, 60_000)] {
        let step = Step::enforce(terms.as_ref());
        let mut good = approved(device(Mode::Enforce), step, 7, &[1, 2]);
        good.rollout.trial.clone_from(&terms);
        let mut gateway = Gateway::new();
        assert_eq!(gateway.take(7, std::slice::from_ref(&good)), []);
        gateway.take(10, &[device(Mode::Protect)]);
        assert_eq!(gateway.take(11, std::slice::from_ref(&good)), [step], "replayed");
        assert_eq!(gateway.mode(), Mode::Protect);
        // Nor for a revision that is yet to come.
        let early = approved(device(Mode::Enforce), FOR_GOOD, 14, &[1, 2]);
        assert_eq!(gateway.take(13, &[early]), [FOR_GOOD]);
    }
}

#[test]
fn what_stands_stands_for_whoever_sees_it_first() {
    let good = approved(device(Mode::Enforce), FOR_GOOD, 7, &[1, 2]);
    // Operator 2 has left at revision 9.
    let mut late = Gateway::new();
    late.chain = chain(&[(&[1, 2, 3], 0, None), (&[1, 3], 0, Some(at(9)))]);
    assert_eq!(
        late.take(12, std::slice::from_ref(&good)),
        [],
        "it was elsewhere, or lost what it held"
    );
    let mut away = Gateway { chain: late.chain.clone(), ..Gateway::new() };
    away.take(3, &[device(Mode::Protect)]);
    assert_eq!(away.take(12, std::slice::from_ref(&good)), [], "it was away");
    let after = approved(device(Mode::Enforce), FOR_GOOD, 12, &[1, 2]);
    let mut gateway = Gateway { chain: late.chain, ..Gateway::new() };
    assert_eq!(gateway.take(12, &[after]), [FOR_GOOD], "he had left by then");
}

#[test]
fn the_terms_of_a_trial_are_two_persons_and_so_is_its_end() {
    let mut gateway = Gateway::new();
    let on = |within| {
        let mut on = device(Mode::Enforce);
        on.rollout.trial = trial(7, within);
        on
    };
    let step = Step::enforce(trial(7, 60_000).as_ref());
    let good = approved(on(60_000), step, 7, &[1, 2]);
    assert_eq!(gateway.take(7, std::slice::from_ref(&good)), []);
    let longer = Step::enforce(trial(7, 3_600_000).as_ref());
    let mut changed = good.clone();
    changed.rollout.trial = trial(7, 3_600_000);
    assert_eq!(gateway.take(8, &[changed]), [longer]);
    assert_eq!(gateway.device().rollout.trial, trial(7, 60_000), "it goes on as it was");
    let mut kept = good;
    kept.rollout.trial = None;
    assert_eq!(gateway.take(9, std::slice::from_ref(&kept)), [FOR_GOOD]);
    assert_eq!(gateway.device().rollout.trial, trial(7, 60_000));
    assert_eq!(gateway.take(10, &[approved(kept, FOR_GOOD, 10, &[3, 2])]), []);
    assert_eq!(gateway.device().rollout.trial, None);
}

#[test]
fn a_demand_on_what_is_enforced_opens_and_cuts_off_nothing() {
    let mut gateway = Gateway::new();
    assert_eq!(gateway.take(3, &[free(device(Mode::Enforce))]), []);
    assert_eq!(gateway.take(4, &[device(Mode::Enforce)]), []);
    assert_eq!(gateway.mode(), Mode::Enforce);
    // From then on it is two persons'.
    gateway.take(5, &[device(Mode::Protect)]);
    assert_eq!(gateway.take(6, &[device(Mode::Enforce)]), [FOR_GOOD]);
}

#[test]
fn one_operator_alone_drops_no_demand() {
    for mode in [Mode::Protect, Mode::Enforce] {
        let mut gateway = Gateway::new();
        gateway.take(7, &[device(Mode::Protect)]);
        let dropped = |seeds: &[u8]| approved(free(device(mode)), WAIVE, 8, seeds);
        let lacking = gateway.take(8, &[dropped(&[1])]);
        assert_eq!(lacking.first(), Some(&WAIVE));
        assert_eq!(gateway.mode(), Mode::Protect);
        // Not in the next revision either.
        assert_eq!(gateway.take(9, &[dropped(&[1])]).first(), Some(&WAIVE));
        let mut gateway = Gateway::new();
        gateway.take(7, &[device(Mode::Protect)]);
        assert_eq!(gateway.take(8, &[dropped(&[1, 3])]), []);
        assert_eq!(gateway.mode(), mode);
    }
}

#[test]
fn a_waiver_is_spent_by_the_next_demand() {
    let waived = approved(free(device(Mode::Enforce)), WAIVE, 8, &[1, 3]);
    let mut gateway = Gateway::new();
    gateway.take(7, &[device(Mode::Protect)]);
    assert_eq!(gateway.take(8, std::slice::from_ref(&waived)), []);
    gateway.take(20, &[device(Mode::Protect)]);
    assert_eq!(gateway.take(21, std::slice::from_ref(&waived)), [WAIVE, FOR_GOOD], "an old waiver");
    assert_eq!(gateway.mode(), Mode::Protect);
    // A gateway that was away all the time learns of both at once.
    let mut late = Gateway::new();
    late.take(5, &[device(Mode::Protect)]);
    assert_eq!(late.take(12, &[waived]), []);
}

#[test]
fn a_device_that_leaves_is_remembered_by_its_id_and_its_addresses() {
    let replaced = || {
        let mut other = free(device(Mode::Enforce));
        other.member.id = MemberId::from_bytes([9; 16]);
        other
    };
    for back in [free(device(Mode::Enforce)), replaced()] {
        let mut gateway = Gateway::new();
        gateway.take(7, &[device(Mode::Protect)]);
        assert_eq!(gateway.take(8, &[]), []);
        assert_eq!(gateway.take(9, &[]), []);
        let lacking = gateway.take(10, std::slice::from_ref(&back));
        assert_eq!(lacking.first(), Some(&WAIVE), "{}", back.member.id);
        assert_eq!(gateway.mode(), Mode::Protect);
    }
    // Under another address first, and then another device with the old one.
    let mut gateway = Gateway::new();
    gateway.take(7, &[device(Mode::Protect)]);
    let mut moved = device(Mode::Protect);
    moved.member.mac = MacAddr([2, 0, 0, 0, 0, 99]);
    assert_eq!(gateway.take(8, std::slice::from_ref(&moved)), []);
    assert_eq!(gateway.take(9, &[replaced(), moved]), [WAIVE, FOR_GOOD]);
}

#[test]
fn a_device_comes_back_as_it_was() {
    let good = approved(device(Mode::Enforce), FOR_GOOD, 3, &[1, 2]);
    let mut gateway = Gateway::new();
    gateway.take(3, std::slice::from_ref(&good));
    gateway.take(5, std::slice::from_ref(&good));
    gateway.take(6, &[]);
    assert_eq!(gateway.take(12, std::slice::from_ref(&good)), [], "elsewhere for a while");
    assert_eq!(gateway.mode(), Mode::Enforce);
}

#[test]
fn what_was_lost_of_the_memory_opens_nothing() {
    let held = leaf(&[device(Mode::Enforce)]);
    let demands = Demands::of(&held, at(7));
    let chain = operators();
    let voters = Voters { organisation: ORGANISATION, chain: &chain };
    let mut next = held.clone();
    let upheld = demands.uphold(&mut next, at(8), Some((&held, at(7))), &voters);
    assert_eq!((next, upheld.held_back), (held, Vec::new()));
}

#[test]
fn no_more_devices_are_remembered_than_there_is_room_for() {
    let mut gateway = Gateway::new();
    gateway.take(1, &[device(Mode::Protect)]);
    for turn in 0..5_u64 {
        let crowd: Vec<Device> = (0..1000_u64)
            .map(|number| {
                let mut one = device(Mode::Protect);
                let number = turn * 1000 + number;
                let mut id = [0; 16];
                id[..8].copy_from_slice(&number.to_be_bytes());
                one.member.id = MemberId::from_bytes(id);
                let [.., a, b, c] = number.to_be_bytes();
                one.member.mac = MacAddr([2, 1, 0, a, b, c]);
                one
            })
            .collect();
        gateway.take(2 + turn, &crowd);
    }
    assert_eq!(gateway.demands.devices.len(), MAX_REMEMBERED);
    let here = gateway.demands.devices.iter().filter(|known| known.seen == at(6)).count();
    assert_eq!(here, 1000, "those that are here come first");
}

proptest! {
    /// [`Gateway::take`] looks each time that what is taken is taken again, to the same effect.
    #[test]
    fn whatever_is_taken_is_in_force_after_a_restart(
        steps in proptest::collection::vec((0_u8..3, any::<bool>(), 0_u8..3, 0_u64..3, 0_u8..8, any::<bool>()), 1..12),
    ) {
        let mut gateway = Gateway::new();
        let mut allowed = false;
        for (revision, (mode, two, on, back, seeds, here)) in (1..).zip(steps) {
            let mode = [Mode::Observe, Mode::Protect, Mode::Enforce][usize::from(mode)];
            let mut one = device(mode);
            one.two_person = two;
            one.rollout.trial = (mode == Mode::Enforce && on > 0).then(|| trial(1, 60_000 * u64::from(on)).unwrap());
            let seeds: Vec<u8> = (1..=3).filter(|seed| seeds >> (seed - 1) & 1 == 1).collect();
            let step = Step::enforce(one.rollout.trial.as_ref());
            let at: u64 = u64::saturating_sub(revision, back);
            let one = approved(approved(one, step, at, &seeds), WAIVE, at, &seeds);
            if here {
                allowed |= !two || (seeds.len() >= 2);
                gateway.take(revision, &[one]);
                prop_assert!(gateway.mode() != Mode::Enforce || allowed, "revision {revision}");
            } else {
                gateway.take(revision, &[]);
            }
        }
    }
}
