use std::net::Ipv4Addr;

use anteroom_proto::intent::Router;
use anteroom_proto::key::PublicKey;
use insta::assert_snapshot;

use super::*;
use crate::fixture::{client, device, gateway, gateway_id, hospital, mac, member_id, name};
use crate::model::Client;

/// Whatever fails leaves the model as it was.
fn refused(change: impl FnOnce(&mut Model) -> Result<(), EditError>) -> String {
    let mut model = hospital();
    let error = change(&mut model).expect_err("an error was expected");
    assert_eq!(model, hospital(), "a failed change changed something");
    error.to_string()
}

#[test]
fn gateways_are_approved_once() {
    let mut model = hospital();
    let (id, annex) = gateway(4, "annex", "south");
    model.approve_gateway(id, annex.clone()).unwrap();
    assert_eq!(model.gateways.get(&id), Some(&annex));
    assert_snapshot!(refused(|model| model.approve_gateway(gateway_id(9), gateway(9, "imaging", "north").1)), @"the name imaging is taken by gateway gw-00000001aaaaaaaaaaaaaaaaaaaaaaaa");
    assert_snapshot!(refused(|model| model.approve_gateway(gateway_id(1), gateway(9, "other", "north").1)), @r#"the id gw-00000001aaaaaaaaaaaaaaaaaaaaaaaa is taken by the gateway "imaging"; enrol it anew"#);
    let (_, mut twin) = gateway(9, "twin", "north");
    twin.identity = hospital().gateways[&gateway_id(1)].identity;
    assert!(
        refused(|model| model.approve_gateway(gateway_id(9), twin))
            .starts_with("the identity key ")
    );
}

#[test]
fn a_revoked_gateways_id_and_key_never_come_back_but_its_name_may() {
    let mut model = hospital();
    let revoked = model.revoke_gateway("imaging").unwrap();
    let before = model.clone();
    let old = model.revoked[&revoked].clone();
    let error = model.approve_gateway(revoked, old.clone()).unwrap_err();
    assert_snapshot!(error, @r#"the id gw-00000001aaaaaaaaaaaaaaaaaaaaaaaa is taken by the revoked gateway "imaging"; enrol it anew"#);
    let error = model.approve_gateway(gateway_id(9), old.clone()).unwrap_err().to_string();
    assert!(error.contains("the revoked gateway \"imaging\""), "{error}");
    assert_eq!(model, before);
    let renewed = Gateway { identity: PublicKey::try_from([9; 32]).unwrap(), ..old };
    model.approve_gateway(gateway_id(9), renewed).unwrap();
    assert_snapshot!(refused(|model| model.revoke_gateway("wrad").map(|_| ())), @r#"no gateway "wrad"; did you mean "ward"?"#);
}

#[test]
fn a_device_comes_back_behind_another_gateway_with_its_history() {
    let mut model = hospital();
    model.set_mode("ct-1", Mode::Enforce, 5).unwrap();
    model.revoke_gateway("imaging").unwrap();
    let (new_id, mut returning) = device(99, "ct-1", 2, "port3", [10, 20, 2, 50], "ct");
    returning.attachment.mac = mac(1);
    returning.labels = BTreeMap::from([(name("vendor"), "acme".to_owned())]);
    returning.confirmed_at = crate::fixture::NOW;
    assert_eq!(model.confirm_device(new_id, returning.clone()).unwrap(), member_id(1));
    let found = &model.devices[&member_id(1)];
    assert_eq!((found.mode, found.mode_since), (Mode::Enforce, 5));
    assert_eq!(found.attachment, returning.attachment);
    assert_eq!(found.addresses, returning.addresses);
    assert!(found.confirmed_at < crate::fixture::NOW);
    assert_eq!(found.labels.len(), 2);
    let mut stranger = returning;
    stranger.name = name("mri-1");
    stranger.attachment.mac = mac(77);
    let before = model.clone();
    let error = model.confirm_device(new_id, stranger).unwrap_err();
    assert_snapshot!(error, @"the name mri-1 is taken by a device with the Ethernet address 00:1b:00:00:00:02 whose gateway was revoked");
    assert_eq!(model, before);
}

#[test]
fn devices_have_names_places_and_addresses_of_their_own() {
    let confirm = |change: fn(&mut Device)| {
        refused(|model| {
            let (id, mut found) = device(9, "ct-9", 1, "port1", [10, 20, 1, 99], "ct");
            change(&mut found);
            model.confirm_device(id, found).map(|_| ())
        })
    };
    assert_snapshot!(confirm(|found| found.name = name("mri-1")), @r#"the name mri-1 is taken by a device behind gateway "imaging""#);
    assert_snapshot!(confirm(|found| found.name = name("pacs")), @"the name pacs is taken by the segment in line 11 of the policy");
    assert_snapshot!(confirm(|found| found.name = name("archive")), @"the name archive is taken by the external in line 6 of the policy");
    assert_snapshot!(confirm(|found| found.attachment.mac = mac(2)), @r#"the Ethernet address 00:1b:00:00:00:02 is taken by device "mri-1" in the same site"#);
    assert_snapshot!(confirm(|found| found.attachment.mac.0[0] = 1), @"the Ethernet address of device ct-9: 01:1b:00:00:00:09 is nobody's own");
    assert_snapshot!(confirm(|found| found.attachment.vlan = Some(4095)), @"the VLAN of device ct-9: choose one of 1 to 4094");
    assert_snapshot!(confirm(|found| found.attachment.gateway = gateway_id(8)), @r#"no gateway "gw-00000008aaaaaaaaaaaaaaaaaaaaaaaa""#);
    assert_snapshot!(confirm(|found| found.prefix_len = Some(33)), @"the prefix length of device ct-9: it is at most 32");
    assert_snapshot!(confirm(|found| found.addresses = vec!["224.0.0.1/32".parse().unwrap()]), @"an address of device ct-9: 224.0.0.1/32 is nobody's own address");
    assert_snapshot!(confirm(|found| found.addresses = vec!["10.0.0.1/24".parse().unwrap()]), @"an address of device ct-9: 10.0.0.1/24 has bits behind its length: write the prefix's first address");
    assert_snapshot!(confirm(|found| found.addresses = vec!["0.0.0.0/0".parse().unwrap()]), @r#"an address of device ct-9: 0.0.0.0/0 is too wide: a prefix of 8 bits and more stands for "dynamic within""#);
    assert_snapshot!(confirm(|found| found.addresses = vec!["10.0.0.1/32".parse().unwrap(); 17]), @"the addresses of device ct-9: 17 are more than 16");
    assert_snapshot!(confirm(|found| found.labels = BTreeMap::from([(name("class"), "c\nt".to_owned())])), @"label class of device ct-9: the value has a control character in it");
    assert_snapshot!(confirm(|found| found.mode = Mode::Unrecognised), @"the mode of device ct-9: choose observe, protect or enforce");
    let mut model = hospital();
    let (_, found) = device(9, "ct-9", 1, "port1", [10, 20, 1, 99], "ct");
    let error = model.confirm_device(member_id(1), found).unwrap_err().to_string();
    assert!(error.contains("device \"ct-1\""), "{error}");
}

#[test]
fn many_devices_are_confirmed_and_renamed_together_or_none() {
    let mut model = hospital();
    let one = |number: u32| {
        let called = format!("pump-{number}");
        device(number, &called, 1, "port1", [10, 20, 1, number as u8], "pump")
    };
    let before = model.clone();
    let twice = |second: fn(&mut Device)| {
        let (id, mut device) = one(91);
        second(&mut device);
        [one(90), (id, device)]
    };
    for (devices, wanted) in [
        (twice(|device| device.name = name("pump-90")), "the name pump-90 is taken by a device"),
        (twice(|device| device.attachment.mac = mac(90)), "is taken by device \"pump-90\""),
        (twice(|device| device.name = name("pacs")), "the segment in line 11"),
        ([one(90), (one(90).0, one(91).1)], "the id "),
    ] {
        let error = model.confirm_devices(devices).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
        assert_eq!(model, before);
    }
    model.confirm_devices((90..99).map(one)).unwrap();
    assert_eq!(model.devices.len(), before.devices.len() + 9);
    // A name is free once whoever had it has another one, and not before.
    let before = model.clone();
    let error = model.rename_devices([("pump-90", name("a")), ("pump-91", name("a"))]).unwrap_err();
    assert!(error.to_string().contains("is taken by device"), "{error}");
    let error = model.rename_devices([("pump-90", name("a")), ("pump-90", name("b"))]).unwrap_err();
    assert!(error.to_string().contains("no device \"pump-90\""), "{error}");
    assert_eq!(model, before);
    model.rename_devices([("pump-90", name("a")), ("pump-91", name("pump-90"))]).unwrap();
    assert_eq!(model.device_named("pump-90").unwrap().0, member_id(91));
    assert_eq!(model.device_named("a").unwrap().0, member_id(90));
}

#[test]
fn labels_are_set_and_removed() {
    let mut model = hospital();
    let set = |text: &str| Some(text.to_owned());
    model.label_device("ct-1", &[(name("vendor"), set("acme")), (name("class"), None)]).unwrap();
    assert_eq!(
        model.devices[&member_id(1)].labels,
        BTreeMap::from([(name("vendor"), "acme".to_owned())])
    );
    model.label_gateway("ward", &[(name("floor"), set("3"))]).unwrap();
    assert_eq!(model.gateways[&gateway_id(2)].labels.len(), 1);
    assert_snapshot!(refused(|model| model.label_device("ct-2", &[]).map(|_| ())), @r#"no device "ct-2"; did you mean "ct-1"?"#);
    assert_snapshot!(refused(|model| model.label_device("ct-1", &[(name("x"), set(""))]).map(|_| ())), @"label x of device ct-1: the value is empty: leave the label out instead");
    assert_snapshot!(refused(|model| model.label_gateway("ward", &[(name("x"), set(&"y".repeat(257)))]).map(|_| ())), @"label x of gateway ward: the value is longer than 256 bytes");
    let many: Vec<_> = (0..65).map(|at| (name(&format!("l{at}")), set("x"))).collect();
    assert_snapshot!(refused(|model| model.label_gateway("ward", &many).map(|_| ())), @"gateway ward: 65 labels are more than 64");
}

#[test]
fn a_mode_counts_from_the_revision_that_changed_it() {
    let mut model = hospital();
    model.set_mode("ct-1", Mode::Protect, 7).unwrap();
    model.set_mode("ct-1", Mode::Protect, 9).unwrap();
    let found = &model.devices[&member_id(1)];
    assert_eq!((found.mode, found.mode_since), (Mode::Protect, 7));
    assert_snapshot!(refused(|model| model.set_mode("ct-1", Mode::Unrecognised, 3).map(|_| ())), @"the mode of device ct-1: choose observe, protect or enforce");
    model.set_quarantine("ct-1", true).unwrap();
    assert!(model.devices[&member_id(1)].quarantined);
}

#[test]
fn a_policy_with_problems_isnt_taken() {
    assert_snapshot!(refused(|model| model.set_policy("north.toml", "format = 1\n[segment.x]\nmembers = [\"ct-l\"]\n")), @r#"north.toml:3: segment.x: no device "ct-l"; did you mean "ct-1"? Nothing was changed."#);
    let mut model = hospital();
    model.set_policy("north.toml", "format = 1\n").unwrap();
    assert_eq!(model.policy, "format = 1\n");
}

#[test]
fn a_client_is_added_once_and_revoked_for_good() {
    let mut model = hospital();
    let (id, laptop) = client(70, "laptop-1", [10, 20, 9, 70], "service");
    model.add_client(id, laptop.clone()).unwrap();
    let add = |model: &Model, number: u32, change: &dyn Fn(&mut Client)| {
        let (id, mut other) = client(number, "laptop-2", [10, 20, 9, 71], "service");
        change(&mut other);
        model.clone().add_client(id, other).map_err(|error| error.to_string())
    };
    assert_eq!(add(&model, 71, &|_| ()), Ok(()));
    let refused = |number, change: &dyn Fn(&mut Client)| add(&model, number, change).unwrap_err();
    assert_eq!(
        refused(71, &|c| c.name = name("laptop-1")),
        "the name laptop-1 is taken by another client"
    );
    assert_eq!(refused(71, &|c| c.name = name("ct-1")), "the name ct-1 is taken by a device");
    assert!(refused(71, &|c| c.name = name("pacs")).contains("the segment in line"));
    assert!(refused(71, &|c| c.site = name("nort")).starts_with("no site \"nort\"; did you mean"));
    let taken = refused(71, &|c| c.address = [10, 20, 1, 10].into());
    assert_eq!(taken, "the address 10.20.1.10 is taken by \"ct-1\" in the same site");
    assert!(refused(71, &|c| c.address = [224, 0, 0, 1].into()).contains("nobody's own"));
    assert!(refused(71, &|c| c.key = laptop.key).contains("for good"));
    assert!(refused(70, &|_| ()).starts_with("the id"));
    assert!(model.revoke_client("laptop").unwrap_err().to_string().contains("laptop-1"));
    assert_eq!(model.revoke_client("laptop-1").unwrap(), id);
    assert!(model.clients.is_empty() && model.former_clients.contains_key(&id));
    let again = client(70, "laptop-1", [10, 20, 9, 70], "service");
    assert!(model.clone().add_client(id, again.1.clone()).is_err(), "neither the id");
    assert!(model.clone().add_client(member_id(72), again.1).is_err(), "nor the key");
    let (id, anew) = client(73, "laptop-1", [10, 20, 9, 70], "service");
    model.add_client(id, anew).unwrap();
}

#[test]
fn a_client_gets_no_address_that_somebody_has_or_may_come_to_have() {
    let mut model = hospital();
    model.gateways.extend([gateway(4, "annex", "south")]);
    model.devices.extend([device(8, "pump-8", 4, "port1", [10, 20, 8, 10], "pump")]);
    for (number, router) in [(1, [10, 20, 1, 1]), (8, [10, 20, 8, 1])] {
        let device = model.devices.get_mut(&member_id(number)).unwrap();
        device.router = Some(Router { address: router.into(), mac: None });
    }
    for (number, net) in [(3, "10.20.2.0/24"), (8, "10.20.8.0/24")] {
        let device = model.devices.get_mut(&member_id(number)).unwrap();
        device.addresses = vec![net.parse().unwrap()];
    }
    let more = "routers = [\"10.20.9.1\"]\n[external.all]\nprefixes = [\"10.0.0.0/8\"]\n[external";
    model.policy = model.policy.replace("[external", more);
    let add = |address: [u8; 4]| {
        let (id, laptop) = client(70, "laptop-1", address, "service");
        model.clone().add_client(id, laptop).map_err(|error| error.to_string())
    };
    for (address, by) in [
        ([10, 20, 1, 1], "the router of \"ct-1\" in the same site"),
        ([10, 20, 2, 99], "\"pump-1\" in the same site, within its prefix 10.20.2.0/24"),
        ([10, 20, 0, 2], "a DHCP server in [infrastructure.north] of the policy"),
        ([10, 20, 0, 53], "a DNS server in [infrastructure.north] of the policy"),
        ([10, 20, 0, 123], "an NTP server in [infrastructure.north] of the policy"),
        ([10, 20, 9, 1], "a router in [infrastructure.north] of the policy"),
        ([10, 20, 4, 20], "the external \"archive\""),
    ] {
        let ip = Ipv4Addr::from(address);
        assert_eq!(add(address), Err(format!("the address {ip} is taken by {by}")));
    }
    for free in [[10, 20, 9, 70], [10, 20, 8, 1], [10, 20, 8, 99]] {
        assert_eq!(add(free), Ok(()), "{free:?}: what another site has is free in this one");
    }
}

#[test]
fn a_device_cannot_take_a_clients_name() {
    let mut model = hospital();
    let (id, laptop) = client(70, "laptop-1", [10, 20, 9, 70], "service");
    model.add_client(id, laptop).unwrap();
    let (id, device) = device(80, "laptop-1", 1, "port3", [10, 20, 1, 80], "ct");
    let error = model.confirm_device(id, device).unwrap_err().to_string();
    assert_eq!(error, "the name laptop-1 is taken by a client");
}

#[test]
fn a_label_whose_word_no_longer_fits_is_in_the_way_of_no_other_change() {
    let mut model = hospital();
    let high = |labels: &mut BTreeMap<Name, String>| {
        labels.insert(name("criticality"), "high".into());
        labels.insert(name("sensitivity"), "high".into());
    };
    model.devices.values_mut().for_each(|device| high(&mut device.labels));
    model.gateways.values_mut().for_each(|gateway| high(&mut gateway.labels));
    let set = |label: &str, value: &str| [(name(label), Some(value.to_owned()))];

    model.label_device("ct-1", &set("class", "scanner")).unwrap();
    model.bind_device("ct-1", &Move { mac: Some(mac(70)), ..Move::default() }).unwrap();
    assert_eq!(model.devices[&member_id(1)].labels["criticality"], "high", "it stays as it was");
    let error = model.label_device("ct-1", &set("criticality", "high")).unwrap_err().to_string();
    assert!(error.starts_with("label criticality of device ct-1: "), "{error}");
    model.label_device("ct-1", &[(name("sensitivity"), None)]).unwrap();
    model.label_device("ct-1", &set("criticality", "clinical")).unwrap();

    // Of gateways the words mean nothing.
    model.label_gateway("ward", &set("sensitivity", "highest")).unwrap();
    let (id, spare) = gateway(4, "spare", "north");
    model.approve_gateway(id, spare).unwrap();
    model.replace_gateway("ward", "spare", 7).unwrap();
    assert_eq!(model.gateways[&id].labels["sensitivity"], "highest");

    // A device that returns keeps what was said of it, and is told of no word that it doesn't bring.
    let mut returning = model.devices[&member_id(2)].clone();
    model.revoke_gateway("imaging").unwrap();
    returning.attachment.gateway = id;
    returning.labels = BTreeMap::from([(name("vendor"), "acme".to_owned())]);
    model.confirm_device(member_id(99), returning.clone()).unwrap();
    assert_eq!(model.devices[&member_id(2)].labels["criticality"], "high");
    model.revoke_gateway("spare").unwrap();
    let (id, other) = gateway(5, "other", "north");
    model.approve_gateway(id, other).unwrap();
    returning.attachment.gateway = id;
    returning.labels = BTreeMap::from([(name("criticality"), "vital".to_owned())]);
    let error = model.confirm_device(member_id(99), returning).unwrap_err().to_string();
    assert!(error.starts_with("label criticality of device "), "{error}");
}

#[test]
fn a_device_is_renamed_unless_the_policy_names_it_or_the_name_is_taken() {
    let mut model = hospital();
    let id = model.device_named("mri-1").unwrap().0;
    assert_eq!(model.rename_device("mri-1", name("mri-7")), Ok(id));
    assert_eq!(model.device_named("mri-7").unwrap().0, id);
    assert_eq!(model.rename_device("mri-7", name("mri-7")), Ok(id), "it has it already");
    let mut fails = |before: &str, after: &str| {
        let unchanged = model.clone();
        let error = model.rename_device(before, name(after)).unwrap_err().to_string();
        assert_eq!(model, unchanged);
        error
    };
    assert!(fails("mri-1", "x").contains("no device \"mri-1\""));
    assert!(fails("mri-7", "ct-1").contains("is taken by device"));
    assert!(fails("mri-7", "archive").contains("is taken by the external"));
    assert!(fails("pump-1", "pump-2").contains("the policy names it in line"), "a test does");
    model.policy.push_str("[segment.mine]\nmembers = [\"mri-7\"]\n");
    let error = model.rename_device("mri-7", name("mri-8")).unwrap_err().to_string();
    assert!(error.contains("the policy names it in line"), "{error}");
}
