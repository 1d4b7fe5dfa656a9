use clap::CommandFactory;

use super::*;

#[test]
fn the_tree_is_sound() {
    Cli::command().debug_assert();
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn every_command_of_the_contract_is_understood() {
    for line in [
        "anteroom login anteroom-setup-1.x --name ana --recovery-out r.key",
        "anteroom login https://c:8443 --fingerprint 00aa00aa00aa00aa00aa00aa00aa00aa00aa00aa00aa00aa00aa00aa00aa00aa --name ben",
        "anteroom logout",
        "anteroom whoami --json",
        "anteroom --json status --wait 30",
        "anteroom status --watch",
        "anteroom gateway invite imaging --site north --valid 24h --out f --reason r",
        "anteroom gateway pending",
        "anteroom gateway approve imaging --fingerprint aaaa-bbbb --reason r --yes",
        "anteroom gateway list",
        "anteroom gateway show imaging",
        "anteroom gateway label imaging floor=2 wing= --yes",
        "anteroom gateway revoke imaging --reason r --confirm imaging",
        "anteroom device list --new",
        "anteroom device list --is class=ct --is model=unknown",
        "anteroom device rules --shipped",
        "anteroom device rules own.toml",
        "anteroom device learn -o learnt.toml",
        "anteroom device show ct-1",
        "anteroom device confirm 00:1b:21:aa:bb:cc --name ct-1 --address 10.0.0.1 --address 10.1.0.0/24 --prefix-len 24 --router 10.0.0.254 --label class=ct --label vendor=x --gateway imaging --reason r --yes",
        "anteroom device label ct-1 class=ct --reason r",
        "anteroom device mode ct-1 mri-1 protect --reason r --force --yes",
        "anteroom device mode ct-1 mri-1 enforce --confirm ct-1,mri-1",
        "anteroom policy init --out f",
        "anteroom policy fmt f --check",
        "anteroom policy check f",
        "anteroom policy plan f --out p",
        "anteroom policy apply p --reason r --yes --no-wait --timeout 10s",
        "anteroom policy rollback 3 --reason r",
        "anteroom policy history",
        "anteroom policy show 3",
        "anteroom policy diff 3",
        "anteroom policy diff 3 4",
        "anteroom why ct-1 pacs-1 dicom",
        "anteroom flows ct-1 --dropped --follow",
        "anteroom flows --would-drop",
        "anteroom flows --clear",
        "anteroom flows --would-drop --criticality life-support,unset --owner x --sort criticality",
        "anteroom blast",
        "anteroom blast ct --policy f --limit 5 --location B2 --json",
        "anteroom device list --sensitivity patient-data --sort owner",
        "anteroom map --by segment --criticality clinical",
        "anteroom policy simulate f --criticality life-support",
        "anteroom policy plan f --sort criticality",
        "anteroom policy stale --location B2",
        "anteroom operator list",
        "anteroom operator add anteroom-operator-1.x --fingerprint aaaa-bbbb --reason r --yes",
        "anteroom operator remove ben --reason r --confirm ben",
        "anteroom operator recover --recovery-key f --recovery-out g --reason r --confirm zoe",
        "anteroom controller restored --force --reason r --yes",
        "anteroom controller replace anteroom-controller-1.x --reason r --yes",
        "anteroom audit list --limit 5",
        "anteroom audit verify --home /nowhere",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}\n{error}");
        }
    }
}

#[test]
fn misuse_is_named() {
    for (line, part) in [
        ("anteroom", "Usage"),
        ("anteroom gateway invite Imaging --site north", "can't be a name"),
        ("anteroom gateway invite imaging --site north --valid 24", "write 90s, 10m, 24h or 7d"),
        ("anteroom device confirm 00:1b --name ct-1", "is not an Ethernet address"),
        (
            "anteroom device confirm 00:1b:21:aa:bb:cc --name ct-1 --address 10.0.0.5/24",
            "did you mean 10.0.0.0/24",
        ),
        ("anteroom device mode ct-1", "required"),
        ("anteroom device mode ct-1 enforce --force", "--reason"),
        ("anteroom device label ct-1 class", "is not a label"),
        ("anteroom flows --dropped --clear", "cannot be used with"),
        ("anteroom login https://c --fingerprint zz --name ana", "64 hexadecimal digits"),
    ] {
        let error = parse(line).unwrap_err().to_string();
        assert!(error.contains(part), "{line}\n{error}");
    }
}

#[test]
fn labels_are_set_and_removed() {
    assert_eq!(parse_label("class=ct"), Ok(("class".parse().unwrap(), Some("ct".into()))));
    assert_eq!(parse_label("note=a=b"), Ok(("note".parse().unwrap(), Some("a=b".into()))));
    assert_eq!(parse_label("class="), Ok(("class".parse().unwrap(), None)));
    assert!(parse_label("class").is_err());
    assert!(parse_label("Class=ct").is_err());
}

/// The commands in a text, as a person would type them.
fn commands(text: &str) -> Vec<Vec<String>> {
    text.split('`')
        .filter(|part| part.starts_with("anteroom "))
        .map(|part| part.split(' ').map(str::to_owned).collect())
        .collect()
}

#[test]
fn every_command_that_a_refusal_names_can_be_typed() {
    use anteroom_controller_core::lint::{Evidence, lint};
    use anteroom_controller_core::model::{Attachment, Device, Gateway, Model};
    use anteroom_controller_core::resolve::Resolved;
    use anteroom_proto::api::SightingRecord;
    use anteroom_proto::id::{GatewayId, MemberId, OrganisationId};
    use anteroom_proto::intent::OnFailure;
    use anteroom_proto::mac::MacAddr;
    use anteroom_proto::mode::Mode;
    use anteroom_proto::time::UnixMillis;
    use anteroom_proto::v1::telemetry::Sighting;

    let now = UnixMillis(1_800_000_000_000);
    let mut model = Model::new(OrganisationId::from_bytes([1; 16]));
    let gateway = GatewayId::from_bytes([2; 16]);
    model.gateways.insert(
        gateway,
        Gateway {
            name: "ward".parse().unwrap(),
            site: "north".parse().unwrap(),
            identity: [7; 32].try_into().unwrap(),
            former: Vec::new(),
            labels: std::collections::BTreeMap::new(),
        },
    );
    for (number, name, port, mode) in [
        (1_u8, "pump-1", "port1", Mode::Enforce),
        (2, "pump-2", "port1", Mode::Observe),
        (3, "central-1", "port2", Mode::Observe),
    ] {
        let mac = MacAddr([2, 0, 0, 0, 0, number]);
        let attachment = Attachment { gateway, port: port.parse().unwrap(), vlan: None, mac };
        model.devices.insert(
            MemberId::from_bytes([number; 16]),
            Device {
                name: name.parse().unwrap(),
                attachment,
                addresses: vec![std::net::Ipv4Addr::new(10, 0, 0, number).into()],
                prefix_len: None,
                router: None,
                labels: std::collections::BTreeMap::new(),
                mode,
                mode_since: 1,
                confirmed_at: now,
                quarantined: false,
                on_failure: OnFailure::Default,
                rollout: anteroom_proto::rollout::Rollout::default(),
            },
        );
    }
    model.policy = "format = 1\n[external.archive]\nprefixes = [\"10.9.0.0/24\"]\n\
        [rule.a]\nfrom = \"pump-1\"\nto = \"central-1\"\nservices = [\"hl7\"]\n\
        [rule.b]\nfrom = \"pump-1\"\nto = \"archive\"\nservices = [\"dicom\"]\n"
        .to_owned();
    let sighting = Sighting {
        port: "port1".parse().unwrap(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        vlan: None,
        addresses: Vec::new(),
        prefix_len: None,
        router: None,
        member: None,
        held: false,
        kinds: vec!["ipv6".to_owned()],
        claim: None,
        first_seen: now,
        last_seen: now,
    };
    let sightings = vec![SightingRecord { gateway, sighting, first_seen: now }];
    let resolved = Resolved::new(&model).unwrap();
    let found = lint(&resolved, &Evidence { sightings, ..Evidence::default() }, now);
    for code in ["observed-too-briefly", "kinds-not-carried", "clear-unasked", "port-mixed-modes"] {
        let with_code: Vec<_> = found.iter().filter(|finding| finding.code == code).collect();
        assert!(!with_code.is_empty(), "{code} wasn't found: {found:#?}");
        for finding in with_code {
            let commands = commands(&finding.message);
            assert!(!commands.is_empty(), "no command in: {finding}");
            for words in commands {
                if let Err(error) = Cli::try_parse_from(&words) {
                    panic!("{words:?} can't be typed: {error}");
                }
            }
        }
    }
}
