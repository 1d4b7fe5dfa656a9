use anteroom_proto::service::Protocol;
use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::compile::compile;
use crate::fixture::{POLICY, hospital, name};
use crate::problem::MAX_PROBLEMS;

/// The example of the design, whole.
const DESIGN: &str = r#"format = 1                               # unknown keys are errors
[infrastructure.north]                   # every device of the site
dhcp = ["10.20.0.2"]
dns = ["10.20.0.53"]
ntp = ["10.20.0.123"]
[external.pacs-vip]                      # has no gateway yet: clear
prefixes = ["10.20.4.11/32", "10.20.4.12/32"]
review = 2027-03-01                      # reminds; nothing closes
[segment.pacs]
externals = ["pacs-vip"]                 # later: members = ["pacs-1"], and no rule changes
[segment.ct]
match = { site = "north", label.class = "ct" }   # labels that an operator confirmed
[service.ct-listen]
ports = ["tcp/4006"]                     # "udp/5000-5010", "icmp/echo"
[rule.ct-to-pacs]                        # its name is cited by plan, why and audit
from = "ct"
to = "pacs"
services = ["dicom"]
clear = true                             # until the PACS has a gateway
[rule.vendor-4711]
from = "siemens-router"
to = "ct-1"
services = ["vnc"]
expires = 2026-12-01T18:00:00+01:00      # cuts live flows
reason = "PM ticket 4711"
[test.pump-kept-from-pacs]
from = "pump-7"
to = "pacs"
services = ["dicom"]
expect = "deny"
"#;

fn problems(text: &str) -> String {
    parse("policy.toml", text).expect_err("a problem was expected").to_string()
}

/// The problem of `text` behind a good first line.
fn problem(text: &str) -> String {
    problems(&format!("format = 1\n{text}"))
}

#[test]
fn the_designs_example_is_read() {
    let policy = parse("policy.toml", DESIGN).unwrap();
    let external = &policy.externals["pacs-vip"];
    assert_eq!(external.prefixes.len(), 2);
    assert_eq!(external.review, Some(UnixMillis(1_803_859_200_000)));
    let rule = &policy.rules["vendor-4711"];
    assert_eq!(rule.expires, Some(UnixMillis(1_796_144_400_000)));
    assert_eq!(rule.reason.as_deref(), Some("PM ticket 4711"));
    assert!(policy.rules["ct-to-pacs"].clear && !policy.rules["ct-to-pacs"].essential);
    assert_eq!(policy.rules["ct-to-pacs"].position, Position { line: 15, column: 7 });
    let matches = policy.segments["ct"].matches.as_ref().unwrap();
    assert_eq!(matches.site.as_ref().map(|site| site.value.clone()), Some(name("north")));
    assert_eq!(matches.labels, BTreeMap::from([(name("class"), "ct".to_owned())]));
    assert_eq!(policy.tests["pump-kept-from-pacs"].expect, Expect::Deny);
    let dicom = policy.ports("dicom").unwrap();
    assert!(dicom.iter().any(|ports| ports.matches(Protocol::Tcp, 104)));
}

#[test]
fn a_misspelt_service_is_named_with_its_place_and_what_was_meant() {
    let text = DESIGN.replace("[\"dicom\"]\nclear", "[\"dicm\"]\nclear");
    assert_snapshot!(problems(&text), @r#"policy.toml:18: rule.ct-to-pacs: no service "dicm"; did you mean "dicom"? Nothing was changed."#);
}

#[test]
fn what_isnt_toml_names_its_place() {
    assert_snapshot!(problem("[rule.x\nfrom = 1\n"), @"policy.toml:2: not TOML: unclosed table, expected `]`. Nothing was changed.");
    assert_snapshot!(problem("[rule.x]\nfrom = \"a\"\nfrom = \"b\"\n"), @"policy.toml:4: not TOML: duplicate key. Nothing was changed.");
    assert_snapshot!(problem("[rule.x]\n[rule.x]\n"), @"policy.toml:3: not TOML: duplicate key. Nothing was changed.");
    assert_snapshot!(problem("a = \"\u{0}\"\n"), @"policy.toml:2: not TOML: invalid basic string, expected non-double-quote visible characters, `\\`. Nothing was changed.");
}

#[test]
fn unknown_keys_are_errors_at_every_level() {
    assert_snapshot!(problem("rules = 1\n"), @r#"policy.toml:2: unknown key "rules"; did you mean "rule"? Nothing was changed."#);
    assert_snapshot!(problem("[rule.x]\nform = \"a\"\nto = \"b\"\nservices = [\"dicom\"]\n"), @r#"
    policy.toml:2: rule.x: "from" is missing: write from = "ct"
    policy.toml:3: rule.x: unknown key "form"; did you mean "from"?
    2 problems. Nothing was changed.
    "#);
    assert_snapshot!(problem("[segment.ct]\nmatch = { label.class = \"ct\", sit = \"north\" }\n"), @r#"policy.toml:3: segment.ct.match: unknown key "sit"; did you mean "site"? Nothing was changed."#);
    assert_snapshot!(problem("[infrastructure.north]\nradius = []\n"), @r#"policy.toml:3: infrastructure.north: unknown key "radius"; known here: dhcp, dns, ntp, routers. Nothing was changed."#);
}

#[test]
fn the_format_must_be_there_and_known() {
    assert_snapshot!(problems(""), @"policy.toml:1: format: missing: begin the file with format = 1. Nothing was changed.");
    assert_snapshot!(problems("format = 2\n"), @"policy.toml:1: format: this program reads format = 1 and no other. Nothing was changed.");
    assert_snapshot!(problems("format = \"1\"\n"), @"policy.toml:1: format: this program reads format = 1 and no other. Nothing was changed.");
}

#[test]
fn names_stand_for_one_thing() {
    assert_snapshot!(problem("[external.pacs]\nprefixes = [\"10.0.0.1\"]\n[segment.pacs]\nexternals = [\"pacs\"]\n"), @r#"policy.toml:4: segment.pacs: line 2 has "pacs" already; segments, members and externals share one namespace. Nothing was changed."#);
    assert_snapshot!(problem("[service.dicom]\nports = [\"tcp/4006\"]\n"), @r#"policy.toml:2: service.dicom: "dicom" is built in (tcp/104, tcp/11112) and can't be defined again: choose another name. Nothing was changed."#);
    assert_snapshot!(problem("[segment.CT]\nmembers = []\n"), @r#"policy.toml:2: segment.CT: "CT" can't be a name: use 1 to 63 of a-z, 0-9, "-", "_" and ".", beginning with a letter or digit. Nothing was changed."#);
    assert_snapshot!(problem("[segment.pacs]\nexternals = [\"pacs-vip\"]\n"), @r#"policy.toml:3: segment.pacs: no external "pacs-vip". Nothing was changed."#);
}

#[test]
fn externals_are_ipv4_prefixes() {
    let external = |prefixes: &str| problem(&format!("[external.x]\nprefixes = {prefixes}\n"));
    assert_snapshot!(external("[\"pacs.example.org\"]"), @r#"policy.toml:3: external.x: "pacs.example.org": externals can't go by DNS name yet, because whoever answers the name could open the rule: write the addresses in "prefixes". Nothing was changed."#);
    assert_snapshot!(external("[\"10.20.4.11/24\"]"), @r#"policy.toml:3: external.x: 10.20.4.11/24 has bits behind its length; did you mean "10.20.4.0/24"? Nothing was changed."#);
    assert_snapshot!(external("[\"2001:db8::/32\"]"), @"policy.toml:3: external.x: IPv6 isn't carried yet: write IPv4 prefixes. Nothing was changed.");
    assert_snapshot!(external("[\"10.20.4/24\"]"), @r#"policy.toml:3: external.x: "10.20.4/24" is not an IPv4 prefix: write it as 10.20.4.0/24 or 10.20.4.11/32. Nothing was changed."#);
    assert_snapshot!(external("[\"224.0.0.0/4\"]"), @"policy.toml:3: external.x: 224.0.0.0/4 is multicast, which no rule can open. Nothing was changed.");
    assert_snapshot!(external("[]"), @r#"policy.toml:3: external.x: "prefixes" is empty: write prefixes = ["10.20.4.11/32"]. Nothing was changed."#);
    assert_snapshot!(external("\"10.0.0.1\""), @r#"policy.toml:3: external.x: "prefixes" can't be text: write prefixes = ["10.20.4.11/32"]. Nothing was changed."#);
    assert_snapshot!(external("[1]"), @r#"policy.toml:3: external.x: "prefixes" can't hold a number: write prefixes = ["10.20.4.11/32"]. Nothing was changed."#);
    assert_snapshot!(problem("[external.x]\ndns = [\"pacs.example.org\"]\n"), @r#"policy.toml:3: external.x: externals can't go by DNS name yet, because whoever answers the name could open the rule: write the addresses in "prefixes". Nothing was changed."#);
    assert_snapshot!(problem("[external.x]\n"), @r#"policy.toml:2: external.x: "prefixes" is missing: write prefixes = ["10.20.4.11/32"]. Nothing was changed."#);
    assert_snapshot!(problem("[external.x]\nprefixes = [\"10.0.0.1\"]\nreview = 2027-03-01T00:00:00Z\n"), @r#"policy.toml:4: external.x: "review" is a day after 1970: write review = 2027-03-01. Nothing was changed."#);
}

#[test]
fn rules_have_two_ends_and_services() {
    assert_snapshot!(problem("[rule.x]\n"), @r#"
    policy.toml:2: rule.x: "from" is missing: write from = "ct"
    policy.toml:2: rule.x: "to" is missing: write to = "pacs"
    policy.toml:2: rule.x: "services" is missing: write services = ["dicom"]
    3 problems. Nothing was changed.
    "#);
    assert_snapshot!(problem("[rule.x]\nfrom = \"a\"\nto = \"b\"\nservices = [\"tcp/4006\"]\n"), @r#"policy.toml:5: rule.x: services go by name: add [service.NAME] with ports = ["tcp/4006"] and write NAME here. Nothing was changed."#);
    assert_snapshot!(problem("[rule.x]\nfrom = \"a\"\nto = \"b\"\nservices = [\"dhcp\"]\n"), @"policy.toml:5: rule.x: DHCP is infrastructure: list the servers in [infrastructure.SITE]. Nothing was changed.");
    assert_snapshot!(problem("[rule.x]\nfrom = \"a\"\nto = \"b\"\nservices = \"dicom\"\n"), @r#"policy.toml:5: rule.x: "services" can't be text: write services = ["dicom"]. Nothing was changed."#);
    assert_snapshot!(problem("[rule.x]\nfrom = \"a\"\nto = \"b\"\nservices = [\"dicom\"]\nclear = \"yes\"\n"), @r#"policy.toml:6: rule.x: "clear" can't be text: write clear = true. Nothing was changed."#);
    assert_snapshot!(problem("[rule.x]\nfrom = \"a\"\nto = \"b\"\nservices = [\"dicom\"]\nexpires = 2026-12-01\n"), @r#"policy.toml:6: rule.x: "expires" needs a date, a time and a zone: write expires = 2026-12-01T18:00:00+01:00. Nothing was changed."#);
    assert_snapshot!(problem("[rule.x]\nfrom = \"a\"\nto = \"b\"\nservices = [\"dicom\"]\nexpires = 1960-12-01T00:00:00Z\n"), @r#"policy.toml:6: rule.x: "expires" is no moment after 1970: write expires = 2026-12-01T18:00:00+01:00. Nothing was changed."#);
    assert_snapshot!(problem("[[rule]]\nfrom = \"a\"\n"), @"policy.toml:2: rule: write [rule.NAME] and its keys. Nothing was changed.");
    assert_snapshot!(problem("[rule]\nx = \"a to b\"\n"), @"policy.toml:3: rule.x: write [rule.x] and its keys, not text. Nothing was changed.");
    assert_snapshot!(problem("[test.x]\nfrom = \"a\"\nto = \"b\"\nservices = [\"dicom\"]\nexpect = \"denied\"\n"), @r#"policy.toml:6: test.x: "expect" is "allow" or "deny", not "denied". Nothing was changed."#);
}

#[test]
fn services_have_ports() {
    assert_snapshot!(problem("[service.x]\nports = [\"tcp/0\"]\n"), @r#"policy.toml:3: service.x: "tcp/0" is not a protocol with ports: write tcp/104, udp/5000-5010 or icmp/echo. Nothing was changed."#);
    assert_snapshot!(problem("[service.x]\nports = [\"104\"]\n"), @r#"policy.toml:3: service.x: "104" is not a protocol with ports: write tcp/104, udp/5000-5010 or icmp/echo. Nothing was changed."#);
    assert_snapshot!(problem("[service.x]\n"), @r#"policy.toml:2: service.x: "ports" is missing: write ports = ["tcp/4006"]. Nothing was changed."#);
}

#[test]
fn a_match_says_something() {
    assert_snapshot!(problem("[segment.x]\nmatch = {}\n"), @r#"policy.toml:3: segment.x.match: an empty match would hold every device: write match = { site = "north", label.class = "ct" }. Nothing was changed."#);
    assert_snapshot!(problem("[segment.x]\nmatch = \"ct\"\n"), @r#"policy.toml:3: segment.x: "match" must be a table: write match = { site = "north", label.class = "ct" }. Nothing was changed."#);
    assert_snapshot!(problem("[segment.x]\nmatch = { label = \"ct\" }\n"), @r#"policy.toml:3: segment.x.match: "label" needs the label's name: write label.class = "ct". Nothing was changed."#);
    assert_snapshot!(problem("[segment.x]\nmatch = { label.class = 7 }\n"), @r#"policy.toml:3: segment.x.match.label: "class" can't be a number: write class = "ct". Nothing was changed."#);
}

#[test]
fn everything_wrong_is_said_in_one_go_in_the_order_of_the_file() {
    assert_snapshot!(problems("format = 1\n[rule.b]\nfrom = 1\nto = \"x\"\nservices = [\"dicm\", \"htpp\"]\n[rule.a]\n"), @r#"
    policy.toml:3: rule.b: "from" can't be a number: write from = "ct"
    policy.toml:5: rule.b: no service "dicm"; did you mean "dicom"?
    policy.toml:5: rule.b: no service "htpp"; did you mean "http"?
    policy.toml:6: rule.a: "from" is missing: write from = "ct"
    policy.toml:6: rule.a: "to" is missing: write to = "pacs"
    policy.toml:6: rule.a: "services" is missing: write services = ["dicom"]
    6 problems. Nothing was changed.
    "#);
    let many: String = (0..200).map(|at| format!("[bad{at}.x]\n")).collect();
    let error = parse("policy.toml", &many).unwrap_err();
    assert_eq!(error.list.len(), MAX_PROBLEMS);
    assert_eq!(error.left_out, 201 - MAX_PROBLEMS);
    assert!(
        error
            .to_string()
            .ends_with("201 problems, of which the first 50 are shown. Nothing was changed.")
    );
}

#[test]
fn sizes_are_bounded() {
    let long = "#".repeat(MAX_POLICY_LEN + 1);
    assert_snapshot!(problems(&long), @"policy.toml: 4194305 bytes are more than the 4194304 that are read. Nothing was changed.");
    let deep = format!("format = 1\nx = {}1{}\n", "[".repeat(5000), "]".repeat(5000));
    assert!(problems(&deep).contains("policy.toml:2"), "{}", problems(&deep));
    let many: String = (0..10_001).map(|at| format!("[segment.s{at}]\n")).collect();
    assert_snapshot!(problem(&many), @"policy.toml:2: segment: 10001 entries are more than the 10000 that are read. Nothing was changed.");
    let reason = "x".repeat(1001);
    assert_snapshot!(problem(&format!("[rule.x]\nfrom = \"a\"\nto = \"b\"\nservices = [\"dicom\"]\nreason = \"{reason}\"\n")), @r#"policy.toml:6: rule.x: "reason" is longer than 1000 bytes. Nothing was changed."#);
    let key = "x".repeat(5000);
    assert!(problem(&format!("{key} = 1\n")).len() < 500);
    let service = "x".repeat(5000);
    let text = format!("[rule.x]\nfrom = \"a\"\nto = \"b\"\nservices = [\"{service}\"]\n");
    assert!(problem(&text).len() < 500);
}

#[test]
fn a_huge_line_of_entries_is_read_in_good_time() {
    let entries: String =
        (0..9_000).map(|at| format!("s{at} = {{ members = [\"d\"] }},")).collect();
    let policy = parse("policy.toml", &format!("format = 1\nsegment = {{ {entries} }}\n")).unwrap();
    assert_eq!(policy.segments.len(), 9_000);
}

#[test]
fn formatting_puts_things_in_order_and_keeps_comments() {
    let messy = r#"# What may talk at the north site.

  format=1
# who asks about it: ext. 4711
[rule.ct-to-pacs] # cited by why
services = [ "dicom","ping" ,]   # both


clear=true # for now
# the scanners
to   = "pacs"
from = 'ct'


[external.archive]
review=2027-03-01
prefixes = [ "10.20.4.20/32" ]
[segment.pacs]
externals=["archive"]
[segment.ct]
match={label.class="ct",site="north"}
[test]
[test.x]
expect="deny"
services=["dicom"]
to="ct"
from="pacs"
# the end
"#;
    assert_snapshot!(format("policy.toml", messy).unwrap(), @r#"
    # What may talk at the north site.

    format = 1

    [external.archive]
    prefixes = ["10.20.4.20/32"]
    review = 2027-03-01

    [segment.pacs]
    externals = ["archive"]

    [segment.ct]
    match = { site = "north", label.class = "ct" }

    # who asks about it: ext. 4711
    [rule.ct-to-pacs]  # cited by why
    from = 'ct'
    # the scanners
    to = "pacs"
    services = ["dicom", "ping"]  # both
    clear = true  # for now

    [test.x]
    from = "pacs"
    to = "ct"
    services = ["dicom"]
    expect = "deny"

    # the end
    "#);
}

#[test]
fn long_lists_get_a_line_each_and_lists_with_comments_stay() {
    let members: Vec<String> = (0..20).map(|at| format!("\"ct-{at}\"")).collect();
    let text = format!(
        "format = 1\n[segment.a]\nmembers = [{}]\n[segment.b]\nmembers = [ # whose\n  \"ct-1\", # ana's\n]\n",
        members.join(",")
    );
    let formatted = format("policy.toml", &text).unwrap();
    assert!(formatted.contains("members = [\n    \"ct-0\",\n    \"ct-1\",\n"), "{formatted}");
    assert!(formatted.contains("members = [ # whose\n  \"ct-1\", # ana's\n]\n"), "{formatted}");
    assert_eq!(format("policy.toml", &formatted).unwrap(), formatted);
}

#[test]
fn formatting_refuses_what_isnt_toml_and_passes_over_other_problems() {
    assert_snapshot!(format("p.toml", "format = \n").unwrap_err(), @"p.toml:1: not TOML: string values must be quoted, expected literal string. Nothing was changed.");
    assert_eq!(format("p.toml", "rules=1\r\n").unwrap(), "rules = 1\n");
}

#[test]
fn the_template_compiles_names_the_devices_and_is_formatted() {
    let mut model = hospital();
    model.devices.get_mut(&crate::fixture::member_id(2)).unwrap().labels.clear();
    model.policy = "format = 1\n".into();
    let text = template(&model);
    for part in [
        "[infrastructure.north]",
        "[segment.ct]",
        "#   ct-1: 10.20.1.10 (port1 of imaging, site north)",
        "#   mri-1:",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!(format("policy.toml", &text).unwrap(), text);
    model.policy = text;
    compile(&model).unwrap();
    let empty = crate::model::Model::new(model.organisation);
    parse("policy.toml", &template(&empty)).unwrap();
}

/// Texts near good ones: some bytes cut, doubled, swapped for others.
fn mutated() -> impl Strategy<Value = String> {
    let edit = (
        0usize..2000,
        0usize..40,
        prop::sample::select(vec![
            "",
            "\"",
            "[",
            "]",
            "{",
            "}",
            "=",
            "\n",
            "#",
            ".",
            ",",
            "1",
            "ü",
            "rule",
            "[rule.x]\n",
            "'''",
            "\r\n",
            "match",
            "-",
        ]),
    );
    (any::<bool>(), prop::collection::vec(edit, 1..6)).prop_map(|(design, edits)| {
        let mut text = if design { DESIGN } else { POLICY }.to_owned();
        for (at, len, with) in edits {
            let floor = |text: &str, at: usize| {
                (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
            };
            let (start, end) = (floor(&text, at), floor(&text, at + len));
            text.replace_range(start..end, with);
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_makes_the_parser_panic(text in prop_oneof!["\\PC{0,200}", mutated()]) {
        let _ = parse("policy.toml", &text);
        let mut model = hospital();
        let _ = model.set_policy("policy.toml", &text);
    }

    #[test]
    fn formatting_keeps_the_meaning_and_is_done_at_once(text in mutated()) {
        if let Ok(once) = format("policy.toml", &text) {
            let read = |text: &str| parse("policy.toml", text).map(Policy::unplaced).ok();
            prop_assert_eq!(read(&once), read(&text));
            prop_assert_eq!(format("policy.toml", &once).unwrap(), once);
        }
    }
}

#[test]
fn a_service_that_is_named_twice_is_named_once() {
    let text = "format = 1\n[rule.x]\nfrom = \"a\"\nto = \"b\"\nservices = [\"dicom\", \"hl7\", \"dicom\"]\n";
    let (policy, problems) = parse_all("policy.toml", text);
    assert!(problems.is_empty(), "{problems}");
    let services = &policy.rules["x"].services;
    assert_eq!(services.iter().map(|at| at.value.as_str()).collect::<Vec<_>>(), ["dicom", "hl7"]);
    let formatted = format("policy.toml", text).unwrap();
    assert!(formatted.contains("services = [\"dicom\", \"hl7\"]\n"), "{formatted}");
}
