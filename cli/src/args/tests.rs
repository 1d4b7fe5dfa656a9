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
        "anteroom operator list",
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
