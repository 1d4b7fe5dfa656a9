use anteroom_proto::name::Name;
use proptest::prelude::*;

use super::*;
use crate::fixture::{NOW, any_model, client, device, hospital, member_id, name, set_modes};
use crate::model::Model;

/// The radius by going through everybody, which is what it means.
fn plainly(
    resolved: &Resolved,
    surfaces: &Surfaces,
    member: MemberId,
    services: usize,
) -> BlastRadius {
    let (model, mut found) = (&resolved.model, BlastRadius::default());
    let device = model.devices.get(&member);
    let Some(site) = resolved.site_of(member) else { return found };
    let quarantined = device.is_some_and(|device| device.quarantined);
    let mut pairs: BTreeSet<(MemberId, PortMatch)> = BTreeSet::new();
    let mut external_pairs: BTreeSet<(&Name, PortMatch)> = BTreeSet::new();
    for rule in &resolved.rules {
        let from = &resolved.side(rule.from).members;
        if !from.contains(&member) || rule.expired(NOW) || (quarantined && !rule.essential) {
            continue;
        }
        for port in &rule.ports {
            let to = resolved.side(rule.to);
            pairs.extend(to.members.iter().map(|id| (*id, *port)));
            external_pairs.extend(to.externals.iter().map(|name| (name, *port)));
        }
    }
    pairs.retain(|(id, _)| *id != member);
    if device.is_none() {
        pairs.retain(|(id, _)| !model.clients.contains_key(id));
        external_pairs.clear();
    }
    let open = |id: &MemberId| {
        let device = &model.devices[id];
        matches!(device.mode, Mode::Observe | Mode::Protect) && !device.quarantined
    };
    let mut free: BTreeSet<MemberId> = BTreeSet::new();
    for (id, other) in model.devices.iter().filter(|(id, _)| **id != member) {
        let Some(device) = device else { break };
        let same = |a: &crate::model::Attachment, b: &crate::model::Attachment| {
            a.gateway == b.gateway && a.port == b.port
        };
        let beside = same(&device.attachment, &other.attachment);
        found.neighbours += usize::from(beside);
        if resolved.site_of(*id) == Some(site) && (beside || (open(&member) && open(id))) {
            free.insert(*id);
        }
    }
    let by_rule: BTreeSet<MemberId> = pairs.iter().map(|(id, _)| *id).collect();
    let members: BTreeSet<MemberId> = free.union(&by_rule).copied().collect();
    let guarded = pairs.iter().filter(|(id, _)| !free.contains(id)).count();
    let lives = members.iter().filter(|id| surfaces.member(**id).is_life_support());
    BlastRadius {
        reached: free.len() * services + guarded,
        members: members.len(),
        life_support: lives.count(),
        pairs: pairs.len(),
        external_pairs: external_pairs.len(),
        unguarded: free.len(),
        ..found
    }
}

fn radii(model: &Model) -> Radii {
    let resolved = Resolved::new(model).unwrap();
    Radii::of(&resolved, &Surfaces::of(&resolved), 10, NOW)
}

fn radius(model: &Model, number: u32) -> (usize, usize, usize) {
    let found = radii(model).get(member_id(number)).unwrap();
    (found.pairs, found.external_pairs, found.unguarded)
}

proptest! {
    #[test]
    fn counting_together_comes_to_the_same_as_going_through_everybody(
        model in any_model(),
        lives in prop::collection::vec(any::<bool>(), 15),
    ) {
        let mut model = model;
        let labels = model.devices.values_mut().map(|device| &mut device.labels);
        let labels = labels.chain(model.clients.values_mut().map(|client| &mut client.labels));
        for (labels, _) in labels.zip(lives).filter(|(_, life)| *life) {
            labels.insert(name("criticality"), "life-support".into());
        }
        let Ok(resolved) = Resolved::new(&model) else { return Ok(()) };
        let surfaces = Surfaces::of(&resolved);
        let services = services(&[&resolved]);
        let radii = Radii::of(&resolved, &surfaces, services, NOW);
        for id in model.devices.keys().chain(model.clients.keys()) {
            let known = resolved.site_of(*id).is_some();
            prop_assert_eq!(
                radii.get(*id),
                known.then(|| plainly(&resolved, &surfaces, *id, services)),
                "{:?} under {}", model.member_name(*id), &model.policy
            );
        }
    }
}

#[test]
fn rules_modes_and_ports_make_the_radius() {
    let mut model = hospital();
    assert_eq!(radius(&model, 1), (2, 2, 5), "DICOM has two ports; five others watch as well");
    assert_eq!(radius(&model, 3), (0, 0, 5));
    set_modes(&mut model, Mode::Enforce, &["pacs-1", "hl7-1"]);
    assert_eq!(radius(&model, 1), (2, 2, 3));
    let found = radii(&model).get(member_id(1)).unwrap();
    assert_eq!((found.reached, found.members), (3 * 10 + 2, 4), "the archive by rule alone");
    set_modes(&mut model, Mode::Enforce, &["ct-1"]);
    assert_eq!(radius(&model, 1), (2, 2, 0));
    model.devices.get_mut(&member_id(2)).unwrap().attachment.port = name("port1");
    assert_eq!(radius(&model, 1), (2, 2, 1), "a neighbour on the port");
    assert_eq!(
        radii(&model).get(member_id(1)).unwrap().neighbours,
        1,
        "and it is said that the port is why"
    );
    model.set_quarantine("ct-1", true).unwrap();
    assert_eq!(radius(&model, 1), (0, 0, 1));
    model.revoke_gateway("server-room").unwrap();
    assert_eq!(radius(&model, 4), (0, 0, 2));
    assert_eq!(radii(&model).get(member_id(5)), None, "nobody knows where it is");
    assert_eq!(radii(&model).get(member_id(99)), None);
    let all = radii(&model).spread(model.devices.keys().copied());
    assert_eq!((all.members, all.unknown), (4, 2), "nor do they make the average better");
}

#[test]
fn lives_within_reach_are_counted() {
    let mut model = hospital();
    let critical = "[segment.monitors]\ncriticality = \"life-support\"";
    model.policy = model.policy.replace("[segment.monitors]", critical);
    let lives = |number| radii(&model).get(member_id(number)).map(|found| found.life_support);
    assert_eq!(lives(3), Some(1));
    assert_eq!(lives(4), Some(0), "not itself");
    let resolved = Resolved::new(&model).unwrap();
    let enforced = enforced(&resolved, "policy", &model.policy).unwrap();
    let all = Radii::of(&enforced, &Surfaces::of(&enforced), 10, NOW);
    assert_eq!(all.get(member_id(3)), Some(BlastRadius::default()));
    assert_eq!(
        super::enforced(&resolved, "draft", "format = 2").unwrap_err().to_string().find("draft"),
        Some(0)
    );
}

#[test]
fn a_spread_adds_up_and_names_the_worst() {
    let mut model = hospital();
    set_modes(&mut model, Mode::Enforce, &["pacs-1", "hl7-1", "ct-1", "monitor-1"]);
    let resolved = Resolved::new(&model).unwrap();
    assert_eq!(
        services(&[&resolved, &resolved]),
        4,
        "two of DICOM, one of HL7, one of the scanner"
    );
    let radii = Radii::of(&resolved, &Surfaces::of(&resolved), 4, NOW);
    let all = radii.spread(model.devices.keys().copied());
    let each = model.devices.keys().map(|id| radii.get(*id).unwrap().reached);
    assert_eq!((all.members, all.reached), (6, each.sum::<usize>()));
    assert_eq!(all.average(), (all.reached + 3) / 6);
    assert_eq!(all.worst.map(|(id, _)| id), Some(member_id(2)), "observed: {all:?}");
    let segment = resolved.side_named("ct").map(|id| resolved.side(id).members.clone());
    let segment = radii.spread(segment.unwrap());
    assert_eq!((segment.members, segment.reached), (1, 2));
    assert_eq!((radii.spread([]), radii.spread([]).average()), (Spread::default(), 0));
}

#[test]
fn a_client_reaches_what_rules_open_to_it_and_counts_for_whom_it_opens_to() {
    let mut model = hospital();
    model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "service")]);
    model.clients.extend([client(71, "laptop-2", [10, 20, 9, 71], "service")]);
    model.policy.push_str(
        "[rule.x]\nfrom = \"laptop-1\"\nto = \"pacs\"\nservices = [\"dicom\"]\n\
         [rule.y]\nfrom = \"laptop-1\"\nto = \"laptop-2\"\nservices = [\"dicom\"]\n\
         [rule.z]\nfrom = \"pump-1\"\nto = \"laptop-2\"\nservices = [\"vnc\"]\n",
    );
    assert_eq!(radius(&model, 70), (2, 0, 0), "the archive has no gateway, laptop-2 none either");
    assert_eq!(radius(&model, 3).0, 1, "laptop-2");
}

/// A hospital of `size` devices, of which each has a rule of its own beside one to a segment of all, or all are on one port.
fn wide(size: u32, one_port: bool) -> Model {
    use std::fmt::Write as _;
    let mut model = hospital();
    for number in 100..100 + size {
        let port = if one_port { "rack".to_owned() } else { format!("port{number}") };
        let called = format!("dev-{number}");
        let [_, _, high, low] = number.to_be_bytes();
        let address = [10, 20, 64 + high, low];
        model.devices.extend([device(number, &called, 1, &port, address, "wide")]);
        if !one_port {
            let next = 100 + (number + 1 - 100) % size;
            let _ = write!(
                model.policy,
                "[rule.own-{number}]\nfrom = \"dev-{number}\"\nto = \"dev-{next}\"\nservices = [\"vnc\"]\n"
            );
        }
    }
    model.policy.push_str(
        "[segment.wide]\nmatch = { label.class = \"wide\" }\n\
         [rule.wide]\nfrom = \"wide\"\nto = \"wide\"\nservices = [\"hl7\"]\n",
    );
    model
}

#[test]
fn work_grows_with_devices_and_not_with_their_square() {
    for one_port in [false, true] {
        let size = 600;
        let mut model = wide(size, one_port);
        model.devices.values_mut().for_each(|device| device.mode = Mode::Enforce);
        let resolved = Resolved::new(&model).unwrap();
        let surfaces = Surfaces::of(&resolved);
        let mut sums = Sums::of(&resolved, &surfaces, NOW);
        for number in [100, 250, 699] {
            let id = member_id(number);
            assert_eq!(
                sums.radius(id, 10),
                Some(plainly(&resolved, &surfaces, id, 10)),
                "{number}, one port: {one_port}"
            );
        }
        for id in model.devices.keys() {
            sums.radius(*id, 10).unwrap();
        }
        let most = 10 * model.devices.len();
        assert!(sums.looked_at < most, "{} members were gone through", sums.looked_at);
    }
}
