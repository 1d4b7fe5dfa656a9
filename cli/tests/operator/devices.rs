//! Devices: confirmed as they were sighted and looked at, labelled, and brought from mode to mode.

use anteroom_proto::api::{ModelUpdate, SightingsAway};
use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;

use crate::changes::{MAC, POLICY, ana_key, hospital};
use crate::controller::{Controller, State};
use crate::person::{Person, Ran, shown_plan};

#[test]
fn a_device_is_confirmed_as_it_was_sighted() {
    let controller = Controller::start();
    let ana = Person::logged_in(&controller);
    ana.gateway(&controller, "imaging", 1);
    ana.gateway(&controller, "ward", 2);
    let ran = ana.run(&["device", "confirm", MAC, "--name", "ct-1", "--yes"]);
    assert!(ran.fails(1).starts_with(&format!("error: no gateway has seen {MAC} yet")), "{ran:#?}");
    controller.see("imaging", MAC, "10.20.1.10");
    let new = ana.run(&["--json", "device", "list", "--new"]).ok().json();
    assert_eq!((&new[0]["mac"], &new[0]["state"]), (&MAC.into(), &"new".into()), "{new}");
    controller.see("ward", MAC, "10.20.2.10");
    let ran = ana.run(&["device", "confirm", MAC, "--name", "ct-1", "--yes"]);
    let text = ran.fails(64);
    assert!(text.contains("was seen at several gateways: imaging port1, ward port1"), "{text}");
    let words = ["device", "confirm", MAC, "--name", "ct-1", "--gateway", "imaging"];
    let ran = ana.run(&[&words[..], &["--label", "class=ct", "--yes"]].concat()).ok();
    assert!(ran.out.contains("Also sends: broadcast"), "{ran:#?}");
    let model = controller.state().model();
    let (_, device) = model.device_named("ct-1").unwrap();
    assert_eq!(device.addresses, ["10.20.1.10/32".parse().unwrap()]);
    assert_eq!(device.prefix_len, Some(24));
    assert_eq!(device.router.unwrap().address.to_string(), "10.20.1.254");
    assert_eq!(device.mode, Mode::Observe);
    assert_eq!(device.mode_since, 3, "the revision that confirmed it");
    let ran = ana.run(&[&words[..3], &["--name", "ct-2", "--gateway", "imaging"]].concat());
    assert!(ran.fails(1).contains("is confirmed already, as ct-1"), "{ran:#?}");
    let list = ana.run(&["device", "list"]).ok().out;
    assert!(list.contains("| ct-1              | observe | 10.20.1.10 "), "{list}");
    assert!(
        list.find("NOTES").is_some_and(|place| place < 100),
        "notes alone may be longer: {list}"
    );
    let new = list.lines().find(|line| line.contains("| new")).unwrap();
    let wide = ana.run(&["device", "list", "--wide"]).ok().out;
    assert!(wide.contains(" imaging ") && wide.contains("LAST SEEN"), "{wide}");
    let mac = new.split_whitespace().nth(1).unwrap();
    assert!(mac.parse::<anteroom_proto::mac::MacAddr>().is_ok(), "what `confirm` takes: {new}");
}

#[test]
fn all_sightings_are_listed_and_what_is_not_kept_is_said() {
    let (controller, ana) = hospital();
    for at in 0..7 {
        controller.see("imaging", &format!("02:00:00:00:07:{at:02x}"), &format!("10.20.7.{at}"));
    }
    let listed = ana.run(&["--json", "device", "list", "--new"]).ok();
    assert!(!listed.err.contains("not shown"), "{listed:#?}");
    let seen = |number: u8| {
        let mac = format!("02:00:00:00:07:{number:02x}");
        listed.json().as_array().unwrap().iter().filter(|row| row["mac"] == mac).count()
    };
    assert_eq!((0..7).map(seen).collect::<Vec<_>>(), [1; 7], "over several pages: {listed:#?}");
    let model = controller.state().model();
    let imaging = model.gateways.iter().find(|(_, gateway)| gateway.name.as_str() == "imaging");
    let gateway = *imaging.unwrap().0;
    let away = SightingsAway { count: 5120, last: None };
    controller.state().sightings_away.insert(gateway, away);
    for words in [&["device", "list"][..], &["device", "list", "--new"]] {
        let ran = ana.run(words).ok();
        assert!(ran.err.contains("gateway imaging: 5120 sightings of"), "{ran:#?}");
        assert!(ran.err.contains("not shown"), "{ran:#?}");
    }
    let status = ana.run(&["--json", "status"]).out;
    assert!(status.contains("5120 sightings"), "{status}");
}

#[test]
fn a_device_is_not_confirmed_with_the_addresses_of_others() {
    let (controller, ana) = hospital();
    let servers = format!("{POLICY}\n[infrastructure.north]\nntp = [\"10.20.4.32\"]\n");
    let file = ana.write("servers.toml", &servers);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    let claim = |mac: &str, addresses: &[&str]| {
        controller.see("imaging", mac, addresses[0]);
        let mut state = controller.state();
        let record = state.sightings.last_mut().unwrap();
        record.sighting.addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    };
    let (first, second, mac) = ("02:00:00:00:05:01", "02:00:00:00:05:02", "02:00:00:00:02:07");
    claim(first, &["10.20.4.32", "10.20.4.10", "10.20.2.15", "10.20.2.16"]);
    claim(second, &["10.20.4.32"]);
    claim(mac, &["10.20.1.77", "10.20.4.32"]);
    let addresses = |name: &str| {
        let model = controller.state().model();
        model.device_named(name).unwrap().1.addresses.clone()
    };
    let ran = ana.run(&["device", "confirm", first, "--name", "pump-5", "--yes"]).ok();
    assert_eq!(addresses("pump-5"), ["10.20.2.15/32".parse().unwrap()], "{ran:#?}");
    for words in [
        "10.20.4.32: the policy has it in [infrastructure.north], under ntp",
        "10.20.4.10: it is pacs-1's",
        "10.20.2.16: one address is taken by itself, which is 10.20.2.15",
    ] {
        assert!(ran.err.contains(words), "{words}: {ran:#?}");
    }
    let ran = ana.run(&["device", "confirm", second, "--name", "pump-6", "--yes"]);
    assert!(ran.fails(64).contains("no address that 02:00:00:00:05:02 was seen with"), "{ran:#?}");
    // Who asks for it by name is told what comes of it.
    let words = ["device", "confirm", second, "--name", "pump-6", "--address", "10.20.4.32"];
    let ran = ana.run(&[&words[..], &["--yes"]].concat());
    assert!(ran.fails(4).contains("is also the address of pump-6"), "{ran:#?}");
    ana.run(&[&words[..], &["--yes", "--force", "--reason", "it is the server"]].concat()).ok();
    assert_eq!(addresses("pump-6"), ["10.20.4.32/32".parse().unwrap()]);

    let list = ana.write("list.csv", &format!("Name;MAC\nPump 7;{mac}\n"));
    let ran = ana.run(&["asset", "import", &list, "--new", "--yes"]).ok();
    assert!(ran.out.contains("it was seen with 10.20.4.32, and"), "{ran:#?}");
    assert!(controller.state().model().device_named("pump-7").is_none());
}

#[test]
fn a_device_is_confirmed_by_the_plan_that_was_looked_at() {
    let (controller, ana) = hospital();
    let mac = "02:00:00:00:09:09";
    controller.see("imaging", mac, "10.20.1.99");
    let list = ana.write("list.csv", &format!("Name;MAC\nCT 9;{mac}\n"));
    let confirm = ["device", "confirm", mac, "--name", "ct-9"];
    for words in [&confirm[..], &["asset", "import", &list, "--new"]] {
        let looked_at = shown_plan(&ana.run(words), 64);
        assert_eq!(
            shown_plan(&ana.run(words), 64),
            looked_at,
            "nothing changed in between: {words:?}"
        );
    }
    let looked_at = shown_plan(&ana.run(&confirm), 64);
    let before = controller.state().revisions.len();
    // Another plan than this isn't confirmed, not even with --yes.
    for other in ["0123abcd", "ffffffff"] {
        let ran = ana.run(&[&confirm[..], &["--yes", "--confirm", other]].concat());
        assert!(
            ran.fails(4).contains(&format!("this is plan {looked_at}, and not {other}")),
            "{ran:#?}"
        );
    }
    assert_eq!(controller.state().revisions.len(), before);
    ana.run(&[&confirm[..], &["--confirm", &looked_at]].concat()).ok();
    assert_eq!(controller.state().revisions.len(), before + 1);
    let (id, _) = controller.state().model().device_named("ct-9").unwrap();
    // Who comes second with the same plan is told whose the place is.
    let ran = ana.run(&[&confirm[..], &["--confirm", &looked_at]].concat());
    assert!(ran.fails(1).contains("ct-9"), "{ran:#?}");
    assert_eq!(controller.state().revisions.len(), before + 1);
    // At another place, and on another revision, it is another device and another plan.
    let other = "02:00:00:00:09:0a";
    controller.see("imaging", other, "10.20.1.98");
    let confirm = ["device", "confirm", other, "--name", "ct-10"];
    let second = shown_plan(&ana.run(&confirm), 64);
    assert_ne!(second, looked_at);
    ana.run(&[&confirm[..], &["--confirm", &second]].concat()).ok();
    assert_ne!(controller.state().model().device_named("ct-10").unwrap().0, id);
}

#[test]
fn a_plan_that_was_looked_at_is_confirmed_as_it_was_or_not_at_all() {
    let (controller, ana) = hospital();
    let key = ana_key(&ana);
    let mac = "02:00:00:00:09:09";
    controller.see("imaging", mac, "10.20.1.99");
    let confirm = ["device", "confirm", mac, "--name", "ct-9"];
    let by_id = |id: &str| ana.run(&[&confirm[..], &["--confirm", id]].concat());
    let is_there = || controller.state().model().device_named("ct-9").is_some();
    let refused = |ran: &Ran, old: &str| {
        let new = shown_plan(ran, 4);
        let text = ran.fails(4);
        assert!(text.contains(&format!("this is plan {new}, and not {old}")), "{ran:#?}");
        assert!(text.contains(&format!("--confirm {new}")), "{ran:#?}");
        assert!(!is_there(), "{ran:#?}");
        new
    };
    let first = shown_plan(&ana.run(&confirm), 64);
    // Something changed before it was confirmed: the device's own address, and then anything else.
    let sightings = controller.state().sightings.clone();
    controller.state().sightings.retain(|record| record.sighting.mac.to_string() != mac);
    controller.see("imaging", mac, "10.20.1.98");
    let second = refused(&by_id(&first), &first);
    controller.state().sightings = sightings;
    assert_eq!(shown_plan(&ana.run(&confirm), 64), first);
    ana.run(&["device", "label", "ct-1", "floor=2", "--yes"]).ok();
    let third = refused(&by_id(&first), &first);
    assert_ne!(second, third);
    // Somebody is faster while this one is handed in: with another change, and then with the very same device.
    let faster = |number: u64, mode: Mode| {
        let key = key.clone();
        move |state: &mut State| {
            let revision = state.revise(&key, |model| {
                model.set_mode("pacs-1", mode, number).unwrap();
            });
            let (action, subject) = ("device mode".into(), "pacs-1".into());
            let update = ModelUpdate { revision, action, subject, reason: None };
            assert_eq!(state.update(update, key.public()).0, 200);
        }
    };
    let number = controller.state().revisions.len() as u64 + 1;
    controller.state().before_update = Some(Box::new(faster(number, Mode::Protect)));
    let ran = by_id(&third);
    assert!(ran.fails(1).contains("nothing was changed: ana made revision"), "{ran:#?}");
    let fourth = refused(&by_id(&third), &third);
    let taken = {
        let key = key.clone();
        move |state: &mut State| {
            let revision = state.revise(&key, |model| {
                let mut device = model.device_named("ct-1").unwrap().1.clone();
                device.name = "ct-other".parse().unwrap();
                device.attachment.mac = mac.parse().unwrap();
                device.addresses = vec!["10.20.1.99/32".parse().unwrap()];
                device.mode = Mode::Observe;
                model.confirm_device(MemberId::from_bytes([9; 16]), device).unwrap();
            });
            let (action, subject) = ("device confirm".into(), "ct-other".into());
            let update = ModelUpdate { revision, action, subject, reason: None };
            assert_eq!(state.update(update, key.public()).0, 200);
        }
    };
    controller.state().before_update = Some(Box::new(taken));
    let ran = by_id(&fourth);
    assert!(ran.fails(1).contains("(device confirm ct-other) meanwhile"), "{ran:#?}");
    assert!(by_id(&fourth).fails(1).contains("ct-other"), "whose it is now");
    assert!(!is_there());
}

#[test]
fn who_is_held_at_a_port_joins_it_in_its_mode() {
    let (controller, ana) = hospital();
    let enforce = ["device", "mode", "ct-1", "enforce", "--confirm", "ct-1", "--yes"];
    let force = ["--force", "--reason", "r"];
    let held = |mac: &str, address: &str| {
        controller.see("imaging", mac, address);
        controller.state().sightings.last_mut().unwrap().sighting.held = true;
    };
    let modes = |names: &[&str]| {
        let model = controller.state().model();
        let mode = |name: &&str| model.device_named(name).map(|(_, device)| device.mode);
        names.iter().map(mode).collect::<Vec<_>>()
    };
    held("02:00:00:00:08:01", "10.20.1.81");
    held("02:00:00:00:08:02", "10.20.1.82");
    let confirm = ["device", "confirm", "02:00:00:00:08:01", "--name", "ct-2", "--yes"];
    let list = ana.write("list.csv", "Name;MAC\nCT 3;02:00:00:00:08:02\n");
    let import = ["asset", "import", &list, "--new", "--yes"];
    // A trial ends for all at a port together, and somebody new has nothing to go back to.
    ana.run(&[&enforce[..], &force, &["--confirm-within", "15m"]].concat()).ok();
    let ran = ana.run(&confirm);
    assert!(ran.fails(4).contains("ct-1 is enforced on trial at port1"), "{ran:#?}");
    assert!(ran.err.contains("`anteroom device keep ct-1`"), "{ran:#?}");
    let ran = ana.run(&import).ok();
    assert!(ran.out.contains("ct-1 is enforced on trial at port1"), "{ran:#?}");
    assert_eq!(modes(&["ct-2", "ct-3"]), [None, None]);
    ana.run(&["device", "keep", "ct-1", "--yes"]).ok();
    let ran = ana.run(&confirm).ok();
    assert!(ran.out.contains("enforce, as ct-1 at the same port"), "{ran:#?}");
    assert!(ran.out.contains("Its gateway has held it"), "{ran:#?}");
    ana.run(&import).ok();
    assert_eq!(modes(&["ct-1", "ct-2", "ct-3"]), [Some(Mode::Enforce); 3]);
    // From then on they change together.
    let together = ["device", "mode", "ct-1", "ct-2", "ct-3", "protect", "--yes"];
    ana.run(&together).ok();
    assert_eq!(modes(&["ct-1", "ct-2", "ct-3"]), [Some(Mode::Protect); 3]);
    // Who isn't held is watched first, like anybody.
    ana.run(&[
        "device",
        "mode",
        "pacs-1",
        "enforce",
        "--confirm",
        "pacs-1",
        "--yes",
        "--force",
        "--reason",
        "r",
    ])
    .ok();
    controller.see("server-room", "02:00:00:00:08:03", "10.20.4.83");
    let ran = ana.run(&["device", "confirm", "02:00:00:00:08:03", "--name", "pacs-2", "--yes"]);
    assert!(ran.fails(4).contains("0 % was seen"), "{ran:#?}");
}

#[test]
fn labels_and_modes_change_and_say_when_nothing_does() {
    let (controller, ana) = hospital();
    ana.run(&["device", "label", "ct-1", "vendor=siemens", "class=", "--yes"]).ok();
    let shown = ana.run(&["--json", "device", "show", "ct-1"]).ok().json();
    assert_eq!(shown["labels"], serde_json::json!({ "vendor": "siemens" }));
    let before = controller.state().revisions.len() as u64;
    let ran = ana.run(&["--json", "device", "mode", "ct-1", "pacs-1", "protect", "--yes"]).ok();
    let done = ran.json();
    assert_eq!((&done["revision"], &done["changed"]), (&(before + 1).into(), &true.into()));
    let model = controller.state().model();
    for name in ["ct-1", "pacs-1"] {
        let (_, device) = model.device_named(name).unwrap();
        assert_eq!((device.mode, device.mode_since), (Mode::Protect, before + 1), "{name}");
    }
    let again = ana.run(&["--json", "device", "mode", "ct-1", "protect", "--yes"]).ok().json();
    assert_eq!(again["changed"], false);
    assert_eq!(controller.state().revisions.len() as u64, before + 1);
    let ran = ana.run(&["device", "mode", "ct-9", "protect", "--yes"]);
    assert!(
        ran.fails(1).starts_with("error: no device \"ct-9\"; did you mean \"ct-1\"?"),
        "{ran:#?}"
    );
    let ran = ana.run(&["device", "mode", "protect", "ct-1"]);
    assert!(ran.fails(64).contains("The mode comes last"), "{ran:#?}");
}
