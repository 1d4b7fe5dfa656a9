use anteroom_proto::key::Hash;
use insta::assert_snapshot;

use super::*;
use crate::fixture::{client, device, gateway, hospital, member_id, name};

/// The problems of the hospital with `more` behind its policy.
fn problem(more: &str) -> String {
    let mut model = hospital();
    model.policy.push_str(more);
    Resolved::new(&model).expect_err("a problem was expected").to_string()
}

#[test]
fn segments_hold_members_by_site_label_and_name() {
    let mut model = hospital();
    model.gateways.extend([gateway(4, "annex", "south")]);
    model.devices.extend([device(7, "ct-2", 4, "port1", [10, 30, 1, 10], "ct")]);
    let resolved = Resolved::new(&model).unwrap();
    let side = |name: &str| resolved.side(resolved.side_named(name).unwrap());
    assert_eq!(side("ct").members, [member_id(1)]);
    assert_eq!(side("pacs").members, [member_id(5)]);
    assert_eq!(side("pacs").externals, [name("archive")]);
    assert_eq!(side("hl7-1").members, [member_id(6)]);
    let rule = resolved.rules.iter().find(|rule| rule.name.as_str() == "ct-to-pacs").unwrap();
    assert_eq!(
        (rule.from, rule.to),
        (resolved.side_named("ct").unwrap(), resolved.side_named("pacs").unwrap())
    );
    assert_eq!(resolved.sides_of(member_id(1)), [rule.from]);
    assert!(resolved.rules.is_sorted_by_key(|rule| rule.id));
}

#[test]
fn names_that_name_nothing_are_reported_with_what_was_meant() {
    assert_snapshot!(problem("[rule.x]\nfrom = \"ct-l\"\nto = \"pacz\"\nservices = [\"dicom\"]\n"), @r#"
    policy.toml:39: rule.x: no segment, device or external "ct-l"; did you mean "ct-1"?
    policy.toml:40: rule.x: no segment, device or external "pacz"; did you mean "pacs"?
    2 problems. Nothing was changed.
    "#);
    assert_snapshot!(problem("[segment.x]\nmembers = [\"pacs-2\", \"ct\", \"archive\"]\n"), @r#"
    policy.toml:39: segment.x: no device "pacs-2"; did you mean "pacs-1"?
    policy.toml:39: segment.x: "ct" is a segment, and a segment can't hold another: use its members or a match
    policy.toml:39: segment.x: "archive" is an external: list it in "externals"
    3 problems. Nothing was changed.
    "#);
    assert_snapshot!(problem("[test.x]\nfrom = \"nobody-at-all\"\nto = \"pacs\"\nservices = [\"dicom\"]\nexpect = \"deny\"\n"), @r#"policy.toml:39: test.x: no segment, device or external "nobody-at-all". Nothing was changed."#);
    assert_snapshot!(problem("[segment.ct-1]\nmembers = []\n"), @r#"policy.toml:38: segment.ct-1: a device has the name "ct-1" already; segments, members and externals share one namespace. Nothing was changed."#);
}

#[test]
fn problems_of_the_text_and_of_its_names_come_together() {
    assert_snapshot!(problem("[rule.x]\nfrom = \"ct-l\"\nto = \"pacs\"\nservices = [\"dicm\"]\nfoo = 1\n"), @r#"
    policy.toml:39: rule.x: no segment, device or external "ct-l"; did you mean "ct-1"?
    policy.toml:41: rule.x: no service "dicm"; did you mean "dicom"?
    policy.toml:42: rule.x: unknown key "foo"; known here: from, to, services, clear, essential, expires, reason
    3 problems. Nothing was changed.
    "#);
}

#[test]
fn ids_that_collide_are_refused() {
    // Four bytes are few enough to find two names with one id.
    let mut seen: BTreeMap<RuleId, usize> = BTreeMap::new();
    let (a, b) = (0usize..)
        .find_map(|at| seen.insert(RuleId::of(&format!("r{at}")), at).map(|other| (other, at)))
        .unwrap();
    let rule =
        |at: usize| format!("[rule.r{at}]\nfrom = \"ct\"\nto = \"pacs\"\nservices = [\"dicom\"]\n");
    let error = problem(&(rule(a) + &rule(b)));
    assert!(error.contains("by chance its id in views is the same as that of rule.r"), "{error}");
}

#[test]
fn two_things_of_one_name_are_refused() {
    let mut model = hospital();
    model.devices.get_mut(&member_id(1)).unwrap().name = name("mri-1");
    model.policy = "format = 1\n".into();
    let error = Resolved::new(&model).unwrap_err().to_string();
    assert_snapshot!(error, @"model: device mri-1: two devices have this name. Nothing was changed.");
}

#[test]
fn a_revoked_gateways_devices_are_in_no_segment_and_hurt_no_rule() {
    let mut model = hospital();
    model.revoke_gateway("server-room").unwrap();
    let resolved = Resolved::new(&model).unwrap();
    let side = |name: &str| resolved.side(resolved.side_named(name).unwrap());
    assert!(side("pacs").members.is_empty() && side("hl7-1").members.is_empty());
    assert_eq!(resolved.detached.keys().map(Name::as_str).collect::<Vec<_>>(), ["hl7-1", "pacs-1"]);
    assert_eq!(resolved.member_at(&name("north"), Ipv4Addr::new(10, 20, 4, 10)), None);
}

#[test]
fn a_fixed_address_comes_before_a_prefix_and_a_narrow_prefix_before_a_wide_one() {
    let mut model = hospital();
    for (number, net) in [(1, "10.20.0.0/16"), (2, "10.20.4.0/24")] {
        model.devices.get_mut(&member_id(number)).unwrap().addresses = vec![net.parse().unwrap()];
    }
    let resolved = Resolved::new(&model).unwrap();
    let at = |address: [u8; 4]| resolved.member_at(&name("north"), address.into());
    assert_eq!(at([10, 20, 4, 10]), Some(member_id(5)));
    assert_eq!(at([10, 20, 4, 99]), Some(member_id(2)));
    assert_eq!(at([10, 20, 9, 9]), Some(member_id(1)));
    assert_eq!(at([10, 21, 9, 9]), None);
}

#[test]
fn telling_ports_begin_every_stretch_that_rules_treat_alike() {
    let mut model = hospital();
    model.policy.push_str("[service.s]\nports = [\"tcp/100-200\", \"udp/7\", \"tcp/65535\"]\n[rule.x]\nfrom = \"ct\"\nto = \"pacs\"\nservices = [\"s\"]\n");
    let resolved = Resolved::new(&model).unwrap();
    let telling = |text: &str| resolved.telling_ports(&text.parse().unwrap());
    assert_eq!(telling("tcp/90-300"), [90, 100, 104, 105, 201]);
    assert_eq!(telling("tcp/150"), [150]);
    assert_eq!(telling("udp/1-9"), [1, 7, 8]);
    assert_eq!(telling("tcp/65000-65535"), [65000, 65535]);
    assert_eq!(telling("icmp/echo"), [0]);
}

#[test]
fn a_models_hash_is_that_of_its_bytes_and_nothing_else() {
    let model = hospital();
    let hash = Model::hash(&model.encode());
    assert_ne!(hash, Hash::ZERO);
    assert_eq!(Model::decode(&model.encode()).unwrap(), model);
}

#[test]
fn a_model_without_clients_is_written_as_before_there_were_any() {
    let mut model = hospital();
    model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "ct")]);
    let with = model.encode();
    let names = |bytes: &[u8]| {
        ["clients", "former_clients"]
            .map(|name| bytes.windows(name.len()).any(|window| window == name.as_bytes()))
    };
    assert_eq!(names(&with), [true, false]);
    model.clients.clear();
    let without = model.encode();
    assert_eq!(names(&without), [false, false]);
    assert_eq!(Model::decode(&without).unwrap(), model);
}

#[test]
fn clients_are_members_by_name_site_and_label() {
    let mut model = hospital();
    model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "ct")]);
    model.policy.push_str("[rule.x]\nfrom = \"laptop-1\"\nto = \"pacs\"\nservices = [\"dicom\"]\n");
    let resolved = Resolved::new(&model).unwrap();
    let side = |name: &str| resolved.side(resolved.side_named(name).unwrap());
    assert_eq!(side("ct").members, [member_id(1), member_id(70)]);
    assert_eq!(side("ct").gateways.len(), 1, "no gateway stands in front of a client");
    assert_eq!(side("laptop-1").members, [member_id(70)]);
    assert_eq!(resolved.member_at(&name("north"), [10, 20, 9, 70].into()), Some(member_id(70)));
    assert_eq!(resolved.site_of(member_id(70)), Some(&name("north")));
}

#[test]
fn clients_that_share_a_key_an_id_or_a_name_are_refused() {
    let problem = |change: &dyn Fn(&mut Model)| {
        let mut model = hospital();
        model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "ct")]);
        model.clients.extend([client(71, "laptop-2", [10, 20, 9, 71], "ct")]);
        Resolved::new(&model).unwrap();
        change(&mut model);
        Resolved::new(&model).expect_err("a problem was expected").to_string()
    };
    let key = model_key(70);
    let shared = problem(&|model| model.clients.get_mut(&member_id(71)).unwrap().key = key);
    assert!(shared.contains("client laptop-2: another client has this key"), "{shared}");
    let former = problem(&|model| {
        let (_, old) = client(70, "old", [10, 20, 9, 72], "ct");
        model.former_clients.insert(member_id(72), old);
    });
    assert!(former.contains("client laptop-1: another client has this key, or had it"), "{former}");
    let named =
        problem(&|model| model.clients.get_mut(&member_id(71)).unwrap().name = name("ct-1"));
    assert!(named.contains("client ct-1: another member has this name"), "{named}");
    let id = problem(&|model| {
        let (_, found) = gateway(9, "gw-9", "north");
        model.gateways.insert(member_id(70).into(), found);
    });
    assert!(id.contains("client laptop-1: something else has its id"), "{id}");
}

fn model_key(number: u32) -> anteroom_proto::key::TunnelPublicKey {
    client(number, "x", [10, 20, 9, 70], "ct").1.key
}
