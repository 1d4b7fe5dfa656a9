//! Models that tests share: the lab's hospital, and random ones.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_proto::id::{GatewayId, MemberId, OrganisationId};
use anteroom_proto::intent::OnFailure;
use anteroom_proto::key::{PublicKey, TunnelSecret};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use proptest::prelude::*;

use crate::model::{Attachment, Client, Device, Gateway, Model};

/// 2026-11-22T00:00:00Z.
pub(crate) const NOW: UnixMillis = UnixMillis(1_795_305_600_000);
pub(crate) const HOUR: u64 = 3_600_000;

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn gateway_id(number: u32) -> GatewayId {
    let mut bytes = [0xaa; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    GatewayId::from_bytes(bytes)
}

pub(crate) fn member_id(number: u32) -> MemberId {
    let mut bytes = [0xdd; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    MemberId::from_bytes(bytes)
}

pub(crate) fn gateway(number: u32, called: &str, site: &str) -> (GatewayId, Gateway) {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    let gateway = Gateway {
        name: name(called),
        site: name(site),
        identity: PublicKey::try_from(key).unwrap(),
        former: Vec::new(),
        labels: BTreeMap::new(),
    };
    (gateway_id(number), gateway)
}

pub(crate) fn mac(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr([0, 0x1b, a, b, c, d])
}

pub(crate) fn device(
    number: u32,
    called: &str,
    gateway: u32,
    port: &str,
    address: [u8; 4],
    class: &str,
) -> (MemberId, Device) {
    let device = Device {
        name: name(called),
        attachment: Attachment {
            gateway: gateway_id(gateway),
            port: name(port),
            vlan: None,
            mac: mac(number),
        },
        addresses: vec![Ipv4Addr::from(address).into()],
        prefix_len: Some(24),
        router: None,
        labels: BTreeMap::from([(name("class"), class.to_owned())]),
        mode: Mode::Observe,
        mode_since: 1,
        confirmed_at: UnixMillis(NOW.0 - 48 * HOUR),
        quarantined: false,
        on_failure: OnFailure::Default,
        rollout: anteroom_proto::rollout::Rollout::default(),
    };
    (member_id(number), device)
}

/// A client of site north.
pub(crate) fn client(
    number: u32,
    called: &str,
    address: [u8; 4],
    class: &str,
) -> (MemberId, Client) {
    let mut secret = [9; 32];
    secret[..4].copy_from_slice(&number.to_be_bytes());
    let client = Client {
        name: name(called),
        site: name("north"),
        key: TunnelSecret::from_bytes(secret).public(),
        address: address.into(),
        labels: BTreeMap::from([(name("class"), class.to_owned())]),
        added_at: NOW,
    };
    (member_id(number), client)
}

/// The policy of DESIGN's style for the lab's hospital.
pub(crate) const POLICY: &str = r#"format = 1
[infrastructure.north]
dhcp = ["10.20.0.2"]
dns = ["10.20.0.53"]
ntp = ["10.20.0.123"]
[external.archive]
prefixes = ["10.20.4.20/32"]
review = 2027-03-01
[segment.ct]
match = { site = "north", label.class = "ct" }
[segment.pacs]
members = ["pacs-1"]
externals = ["archive"]
[segment.monitors]
match = { label.class = "monitor" }
[service.ct-listen]
ports = ["tcp/4006"]
[rule.ct-to-pacs]
from = "ct"
to = "pacs"
services = ["dicom"]
clear = true
[rule.pacs-to-ct]
from = "pacs"
to = "ct"
services = ["ct-listen"]
clear = true
[rule.alarms]
from = "monitors"
to = "hl7-1"
services = ["hl7"]
essential = true
[test.pump-kept-from-pacs]
from = "pump-1"
to = "pacs"
services = ["dicom"]
expect = "deny"
"#;

/// Three gateways with two devices each, as in the lab; all in observe.
pub(crate) fn hospital() -> Model {
    let mut model = Model::new(OrganisationId::from_bytes([1; 16]));
    model.gateways.extend([
        gateway(1, "imaging", "north"),
        gateway(2, "ward", "north"),
        gateway(3, "server-room", "north"),
    ]);
    model.devices.extend([
        device(1, "ct-1", 1, "port1", [10, 20, 1, 10], "ct"),
        device(2, "mri-1", 1, "port2", [10, 20, 1, 11], "mri"),
        device(3, "pump-1", 2, "port1", [10, 20, 2, 10], "pump"),
        device(4, "monitor-1", 2, "port2", [10, 20, 2, 11], "monitor"),
        device(5, "pacs-1", 3, "port1", [10, 20, 4, 10], "pacs"),
        device(6, "hl7-1", 3, "port2", [10, 20, 4, 11], "hl7"),
    ]);
    POLICY.clone_into(&mut model.policy);
    model
}

pub(crate) fn set_modes(model: &mut Model, mode: Mode, names: &[&str]) {
    for called in names {
        model.set_mode(called, mode, 2).unwrap();
    }
}

#[derive(Debug, Clone)]
struct RandomRule {
    from: usize,
    to: usize,
    services: Vec<usize>,
    clear: bool,
    essential: bool,
    expires: Option<bool>,
}

const SERVICES: [&str; 5] = ["dicom", "hl7", "ping", "high", "vnc"];

/// Models of up to five gateways in two sites, up to ten devices and three clients, any modes, any rules. Addresses are
/// unique over both sites.
pub(crate) fn any_model() -> impl Strategy<Value = Model> {
    let devices = prop::collection::vec(
        (0u32..5, 0usize..3, 0u8..3, prop::bool::weighted(0.15), 0u8..3),
        0..10,
    );
    let rule = (
        0usize..20,
        0usize..20,
        prop::collection::vec(0usize..SERVICES.len(), 1..3),
        any::<bool>(),
        any::<bool>(),
        prop::option::weighted(0.3, any::<bool>()),
    )
        .prop_map(|(from, to, services, clear, essential, expires)| RandomRule {
            from,
            to,
            services,
            clear,
            essential,
            expires,
        });
    let clients = prop::collection::vec(0u8..3, 0..3);
    (1u32..=5, devices, clients, prop::collection::vec(rule, 0..10)).prop_map(
        |(gateways, devices, clients, rules)| {
            let mut model = Model::new(OrganisationId::from_bytes([1; 16]));
            for number in 0..gateways {
                let site = if number % 2 == 0 { "north" } else { "south" };
                let (id, found) = gateway(number, &format!("gw-{number}"), site);
                model.gateways.insert(id, found);
            }
            let mut names: Vec<String> =
                ["north", "class-0", "class-1", "class-2", "mixed", "out", "wide"]
                    .map(str::to_owned)
                    .to_vec();
            for (at, (behind, class, mode, quarantined, port)) in (0u8..).zip(&devices) {
                // Some stand behind a gateway that isn't approved.
                let (id, mut found) = device(
                    100 + u32::from(at),
                    &format!("dev-{at}"),
                    *behind,
                    &format!("port{port}"),
                    [10, 0, 0, at + 1],
                    &format!("class-{class}"),
                );
                found.mode = [Mode::Observe, Mode::Protect, Mode::Enforce][usize::from(*mode)];
                found.quarantined = *quarantined;
                names.push(found.name.to_string());
                model.devices.insert(id, found);
            }
            for (at, class) in (0u8..).zip(&clients) {
                let class = format!("class-{class}");
                let address = [10, 0, 0, 200 + at];
                let (id, found) =
                    client(200 + u32::from(at), &format!("client-{at}"), address, &class);
                names.push(found.name.to_string());
                model.clients.insert(id, found);
            }
            model.policy = random_policy(&names, &rules);
            model
        },
    )
}

fn random_policy(names: &[String], rules: &[RandomRule]) -> String {
    use std::fmt::Write as _;
    let members: Vec<String> =
        names.iter().skip(7).step_by(2).map(|name| format!("\"{name}\"")).collect();
    let mut text = format!(
        "format = 1\n[infrastructure.north]\ndns = [\"192.0.2.53\"]\n\
         [external.out]\nprefixes = [\"192.0.2.0/28\"]\n[external.wide]\nprefixes = [\"10.0.0.0/29\", \"192.0.2.0/24\"]\n\
         [segment.north]\nmatch = {{ site = \"north\" }}\n\
         [segment.class-0]\nmatch = {{ label.class = \"class-0\" }}\n\
         [segment.class-1]\nmatch = {{ label.class = \"class-1\", site = \"north\" }}\nexternals = [\"out\"]\n\
         [segment.class-2]\nmatch = {{ label.class = \"class-2\" }}\n\
         [segment.mixed]\nmembers = [{}]\nexternals = [\"wide\"]\n[service.high]\nports = [\"tcp/5000-6000\", \"udp/9\"]\n",
        members.join(", ")
    );
    for (at, rule) in rules.iter().enumerate() {
        let (from, to) = (&names[rule.from % names.len()], &names[rule.to % names.len()]);
        let services: Vec<String> =
            rule.services.iter().map(|at| format!("\"{}\"", SERVICES[*at])).collect();
        let _ = writeln!(
            text,
            "[rule.r{at}]\nfrom = \"{from}\"\nto = \"{to}\"\nservices = [{}]\nclear = {}\nessential = {}",
            services.join(", "),
            rule.clear,
            rule.essential
        );
        if let Some(past) = rule.expires {
            let _ = writeln!(text, "expires = {}-01-01T00:00:00Z", if past { 2020 } else { 2040 });
        }
    }
    text
}
