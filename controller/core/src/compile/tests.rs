use std::fmt::Write as _;

use anteroom_proto::cbor;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::mode::Mode;
use proptest::prelude::*;

use super::*;
use crate::fixture::{NOW, any_model, device, gateway, gateway_id, hospital, member_id, set_modes};

fn ids(members: &[intent::Member]) -> Vec<MemberId> {
    members.iter().map(|member| member.id).collect()
}

#[test]
fn a_gateway_learns_of_whom_its_devices_share_a_rule_with() {
    let compiled = compile(&hospital()).unwrap();
    let imaging = &compiled.leaves[&gateway_id(1)].intent;
    assert_eq!(ids(&imaging.members), [member_id(5)], "the scanners see the PACS");
    assert_eq!(imaging.peers.len(), 1);
    assert_eq!(imaging.peers[0].gateway, gateway_id(3));
    assert_eq!(imaging.peers[0].identity, hospital().gateways[&gateway_id(3)].identity);
    assert_eq!(imaging.externals.len(), 1);
    assert_eq!(imaging.rules.len(), 2);
    assert_eq!(imaging.infrastructure.dns, [std::net::Ipv4Addr::new(10, 20, 0, 53)]);
    let ward = &compiled.leaves[&gateway_id(2)].intent;
    assert_eq!(ids(&ward.members), [member_id(6)], "the monitor sees the HL7 engine");
    assert!(ward.externals.is_empty() && ward.rules.len() == 1 && ward.rules[0].essential);
    let server = &compiled.leaves[&gateway_id(3)].intent;
    assert_eq!(ids(&server.members), [member_id(1), member_id(4)]);
    assert!(server.externals.is_empty(), "the archive is on the PACS's own side");
    assert_eq!(server.devices.len(), 2);
}

#[test]
fn segments_in_a_leaf_hold_nobody_else() {
    let mut model = hospital();
    model.devices.extend([device(8, "ct-2", 2, "port3", [10, 20, 2, 12], "ct")]);
    let compiled = compile(&model).unwrap();
    let imaging = &compiled.leaves[&gateway_id(1)].intent;
    assert!(
        !ids(&imaging.members).contains(&member_id(8)),
        "scanners share no rule with each other"
    );
    for segment in &imaging.segments {
        assert!(!segment.members.contains(&member_id(8)), "{segment:?}");
    }
    let server = &compiled.leaves[&gateway_id(3)].intent;
    assert!(ids(&server.members).contains(&member_id(8)));
}

#[test]
fn a_gateway_without_devices_gets_an_empty_leaf_and_a_revoked_one_none() {
    let mut model = hospital();
    model.gateways.extend([gateway(4, "spare", "north")]);
    let compiled = compile(&model).unwrap();
    let spare = &compiled.leaves[&gateway_id(4)].intent;
    assert!(spare.devices.is_empty() && spare.members.is_empty() && spare.rules.is_empty());
    assert!(spare.peers.is_empty() && spare.segments.is_empty() && spare.externals.is_empty());
    model.revoke_gateway("server-room").unwrap();
    let after = compile(&model).unwrap();
    assert!(!after.leaves.contains_key(&gateway_id(3)));
    for leaf in after.leaves.values() {
        assert!(leaf.intent.peers.iter().all(|peer| peer.gateway != gateway_id(3)));
    }
    assert_eq!(compiled.affected(&after), [gateway_id(1), gateway_id(2), gateway_id(3)]);
}

#[test]
fn a_rule_to_oneself_alone_is_no_rule() {
    let mut model = hospital();
    model.policy = "format = 1\n[rule.x]\nfrom = \"ct-1\"\nto = \"ct-1\"\nservices = [\"dicom\"]\n[rule.y]\nfrom = \"ct-1\"\nto = \"mri-1\"\nservices = [\"dicom\"]\n".into();
    let compiled = compile(&model).unwrap();
    let imaging = &compiled.leaves[&gateway_id(1)].intent;
    assert_eq!(imaging.rules.len(), 1, "{:?}", imaging.rules);
    assert!(imaging.members.is_empty() && imaging.peers.is_empty());
}

#[test]
fn a_mode_concerns_those_who_share_a_rule() {
    let before = compile(&hospital()).unwrap();
    let mut model = hospital();
    set_modes(&mut model, Mode::Protect, &["monitor-1"]);
    let after = compile(&model).unwrap();
    assert_eq!(before.affected(&after), [gateway_id(2), gateway_id(3)]);
    set_modes(&mut model, Mode::Protect, &["pump-1"]);
    let pump = compile(&model).unwrap();
    assert_eq!(after.affected(&pump), [gateway_id(2)]);
    model.policy.push_str("# a comment\n");
    let comment = compile(&model).unwrap();
    assert!(pump.affected(&comment).is_empty());
    assert_eq!(pump.root, comment.root);
    assert_ne!(pump.model_hash, comment.model_hash);
}

#[test]
fn expiry_is_carried_for_the_gateway_to_judge() {
    let mut model = hospital();
    model.policy.push_str("[rule.past]\nfrom = \"pump-1\"\nto = \"hl7-1\"\nservices = [\"hl7\"]\nexpires = 2020-01-01T00:00:00Z\n");
    let compiled = compile(&model).unwrap();
    let ward = &compiled.leaves[&gateway_id(2)].intent;
    let end = anteroom_proto::time::UnixMillis(1_577_836_800_000);
    assert!(end < NOW);
    let expired = Condition::Known(KnownCondition::NotAfter(end));
    assert!(ward.rules.iter().any(|rule| rule.conditions == [expired.clone()]), "{:?}", ward.rules);
}

#[test]
fn overlay_addresses_are_told_apart_by_the_ids() {
    let compiled = compile(&hospital()).unwrap();
    let mut seen = BTreeSet::new();
    for leaf in compiled.leaves.values() {
        assert!(seen.insert(leaf.intent.overlay));
        for device in &leaf.intent.devices {
            assert!(seen.insert(device.member.overlay));
        }
    }
    assert_eq!(seen.len(), 9);
}

#[test]
fn everyone_to_everyone_is_refused_before_it_fills_the_memory() {
    let mut model = Model::new(OrganisationId::from_bytes([1; 16]));
    for number in 0..3000 {
        model.gateways.extend([gateway(number, &format!("gw-{number}"), "north")]);
        let [_, _, a, b] = number.to_be_bytes();
        model.devices.extend([device(
            number,
            &format!("d-{number}"),
            number,
            "p",
            [10, 1, a, b],
            "x",
        )]);
    }
    model.policy = "format = 1\n[segment.all]\nmatch = { site = \"north\" }\n[rule.x]\nfrom = \"all\"\nto = \"all\"\nservices = [\"ping\"]\n".into();
    let started_small = compile(&Model {
        gateways: model.gateways.clone().into_iter().take(50).collect(),
        ..model.clone()
    });
    assert!(started_small.is_ok());
    let error = compile(&model).unwrap_err().to_string();
    assert!(error.contains("narrow the segments"), "{error}");
}

/// A hundred sites of twenty gateways with ten devices each, three rules a site, and one PACS for all.
fn large() -> Model {
    let mut model = Model::new(OrganisationId::from_bytes([1; 16]));
    let mut policy = String::from("format = 1\n");
    for site in 0..100u32 {
        let place = format!("site-{site}");
        for class in ["ct", "pump", "viewer"] {
            let _ = writeln!(
                policy,
                "[segment.{class}-{site}]\nmatch = {{ site = \"{place}\", label.class = \"{class}\" }}"
            );
        }
        let _ = writeln!(
            policy,
            "[rule.a-{site}]\nfrom = \"ct-{site}\"\nto = \"viewer-{site}\"\nservices = [\"dicom\"]\n\
             [rule.b-{site}]\nfrom = \"ct-{site}\"\nto = \"d-0-0-0\"\nservices = [\"dicom\"]\n\
             [rule.c-{site}]\nfrom = \"pump-{site}\"\nto = \"viewer-{site}\"\nservices = [\"hl7\", \"ping\"]"
        );
        for at in 0..20u32 {
            let number = site * 20 + at;
            model.gateways.extend([gateway(number, &format!("gw-{number}"), &place)]);
            for unit in 0..10u32 {
                let class = ["ct", "pump", "viewer", "other"][(unit % 4) as usize];
                let called = format!("d-{site}-{at}-{unit}");
                let address = [10, site as u8, at as u8, unit as u8 + 1];
                let id = number * 10 + unit;
                model.devices.extend([device(
                    id,
                    &called,
                    number,
                    &format!("p{unit}"),
                    address,
                    class,
                )]);
            }
        }
    }
    model.policy = policy;
    model
}

#[test]
fn two_thousand_gateways_compile_in_seconds_and_a_change_concerns_few() {
    let mut model = large();
    let compiled = compile(&model).unwrap();
    assert_eq!((compiled.leaves.len(), model.devices.len()), (2000, 20_000));
    assert_eq!(compiled.resolved.rules.len(), 300);
    // Members of leaves in all: linear in what is shared, not the product of fleet and fleet.
    let shown: usize = compiled.leaves.values().map(|leaf| leaf.intent.members.len()).sum();
    assert!(shown < 400_000, "{shown}");
    set_modes(&mut model, Mode::Protect, &["d-50-3-1"]);
    let after = compile(&model).unwrap();
    let affected = compiled.affected(&after);
    assert!(affected.len() <= 20, "a pump concerns its site's viewers: {}", affected.len());
    for gateway in affected.iter().take(3) {
        let leaf = &after.leaves[gateway];
        assert!(after.proof(*gateway).unwrap().leads(leaf.hash, after.root));
    }
}

/// Whether two members stand on opposite ends of a rule.
fn share_a_rule(resolved: &Resolved, a: MemberId, b: MemberId) -> bool {
    resolved.rules.iter().any(|rule| {
        let (from, to) = (&resolved.side(rule.from).members, &resolved.side(rule.to).members);
        (from.contains(&a) && to.contains(&b)) || (from.contains(&b) && to.contains(&a))
    })
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_leaf_names_anyone_that_its_devices_share_no_rule_with(model in any_model()) {
        let compiled = compile(&model).unwrap();
        let resolved = &compiled.resolved;
        for (id, leaf) in &compiled.leaves {
            let own: Vec<MemberId> = leaf.intent.devices.iter().map(|device| device.member.id).collect();
            let mut gateways = BTreeSet::from([*id]);
            for (other, device) in &model.devices {
                let attached = model.is_attached(device);
                let shares = own.iter().any(|own| own != other && share_a_rule(resolved, *own, *other));
                let may = own.contains(other) || (attached && shares);
                if may {
                    gateways.insert(device.attachment.gateway);
                }
                prop_assert_eq!(
                    holds(&leaf.bytes, other.as_bytes()), may,
                    "{} in the leaf of {}\n{}", device.name, model.gateways[id].name, model.policy
                );
                prop_assert_eq!(holds(&leaf.bytes, &device.attachment.mac.0), may);
            }
            // Whoever is told of a gateway's new keys is found by its own peers.
            for peer in &leaf.intent.peers {
                let theirs = &compiled.leaves[&peer.gateway].intent.peers;
                prop_assert!(theirs.iter().any(|peer| peer.gateway == *id), "{}", model.policy);
            }
            for (other, client) in &model.clients {
                let may = own.iter().any(|own| share_a_rule(resolved, *own, *other));
                prop_assert_eq!(holds(&leaf.bytes, other.as_bytes()), may);
                prop_assert_eq!(holds(&leaf.bytes, client.key.as_bytes()), may);
            }
            for (other, gateway) in &model.gateways {
                let may = gateways.contains(other);
                prop_assert_eq!(holds(&leaf.bytes, other.as_bytes()), may);
                prop_assert!(!holds(&leaf.bytes, gateway.identity.as_bytes()) || (may && other != id));
                prop_assert!(!holds(&leaf.bytes, gateway.name.as_str().as_bytes()), "a name in a leaf");
            }
        }
    }

    #[test]
    fn the_same_model_gives_the_same_bytes_whatever_the_order_of_its_policy(model in any_model(), seed in any::<u64>()) {
        let compiled = compile(&model).unwrap();
        let again = compile(&Model::decode(&model.encode()).unwrap()).unwrap();
        prop_assert_eq!(compiled.root, again.root);
        prop_assert_eq!(compiled.model_hash, again.model_hash);
        let mut tables: Vec<&str> = model.policy.split("\n[").skip(1).collect();
        let turn = seed as usize % tables.len().max(1);
        tables.rotate_left(turn);
        tables.reverse();
        let shuffled = Model { policy: format!("format = 1\n[{}\n", tables.join("\n[")), ..model.clone() };
        prop_assert_eq!(compile(&shuffled).unwrap().root, compiled.root);
        for (id, leaf) in &compiled.leaves {
            prop_assert_eq!(&again.leaves[id].bytes, &leaf.bytes);
            prop_assert_eq!(&cbor::decode::<Intent>(&leaf.bytes, MAX_INTENT_LEN).unwrap(), &leaf.intent);
            prop_assert!(compiled.proof(*id).unwrap().leads(leaf.hash, compiled.root));
        }
        prop_assert_eq!(compiled.proof(gateway_id(77)), None);
    }
}
