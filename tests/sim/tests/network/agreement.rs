//! The controller's reference decision and the engines' policy, asked the same of the same random models: they must
//! come to the same verdict by the same rule, at whichever end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anteroom_agent_core::report::{Explanation, Party as Told, Question};
use anteroom_controller_core::compile::compile;
use anteroom_controller_core::decide::{Flow, Party, decide};
use anteroom_controller_core::model::{Attachment, Client, Device, Gateway, Model};
use anteroom_proto::id::{GatewayId, MemberId, OrganisationId, RuleId};
use anteroom_proto::intent::{Intent, OnFailure};
use anteroom_proto::key::TunnelSecret;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::verdict::{DropReason, Verdict};
use anteroom_sim::fleet::Fleet;
use anteroom_sim::plan::mac;
use anteroom_sim::random::Random;
use anteroom_sim::world::EPOCH;

const PORTS: [&str; 3] = ["port1", "port2", "port3"];
const SERVICES: [&str; 5] = ["dicom", "hl7", "ping", "high", "vnc"];
/// Ports at and around the edges of what the services open.
const ASKED: [(Protocol, u16); 9] = [
    (Protocol::Tcp, 104),
    (Protocol::Tcp, 2575),
    (Protocol::IcmpEcho, 0),
    (Protocol::Tcp, 5000),
    (Protocol::Tcp, 5900),
    (Protocol::Tcp, 6001),
    (Protocol::Udp, 9),
    (Protocol::Udp, 53),
    (Protocol::Udp, 123),
];

fn gateway(random: &mut Random, model: &mut Model, number: u8) {
    let site = if random.chance(75) { "north" } else { "south" };
    model.gateways.insert(
        GatewayId::from_bytes([number; 16]),
        Gateway {
            name: format!("gw-{number}").parse().unwrap(),
            site: site.parse().unwrap(),
            identity: [number; 32].try_into().unwrap(),
            former: Vec::new(),
            labels: BTreeMap::new(),
        },
    );
}

fn device(random: &mut Random, model: &mut Model, number: u8, gateways: u8) {
    // One in a few stands behind a gateway that isn't approved.
    let behind = 1 + random.below(usize::from(gateways) + 1);
    let behind = GatewayId::from_bytes([u8::try_from(behind).unwrap(); 16]);
    let port = (*random.pick(&PORTS)).parse().unwrap();
    // A port has one mode.
    let neighbour = model
        .devices
        .values()
        .find(|other| other.attachment.gateway == behind && other.attachment.port == port)
        .map(|other| other.mode);
    let mode = neighbour.unwrap_or(*random.pick(&[Mode::Observe, Mode::Protect, Mode::Enforce]));
    let class = format!("class-{}", random.below(3));
    let mut addresses = vec![Ipv4Addr::new(10, 0, 0, number).into()];
    if random.chance(15) {
        addresses.push(format!("10.0.{number}.0/29").parse().unwrap());
    }
    model.devices.insert(
        MemberId::from_bytes([number; 16]),
        Device {
            name: format!("dev-{number}").parse().unwrap(),
            attachment: Attachment { gateway: behind, port, vlan: None, mac: mac(0xde, number) },
            addresses,
            prefix_len: Some(24),
            router: None,
            labels: BTreeMap::from([("class".parse().unwrap(), class)]),
            mode,
            mode_since: 1,
            confirmed_at: EPOCH,
            quarantined: random.chance(15),
            on_failure: OnFailure::Default,
            rollout: anteroom_proto::rollout::Rollout::default(),
        },
    );
}

fn client(random: &mut Random, model: &mut Model, number: u8) {
    let class = format!("class-{}", random.below(3));
    let site = model.gateways.values().next().unwrap().site.clone();
    model.clients.insert(
        MemberId::from_bytes([100 + number; 16]),
        Client {
            name: format!("client-{number}").parse().unwrap(),
            site,
            key: TunnelSecret::from_bytes([100 + number; 32]).public(),
            address: Ipv4Addr::new(10, 0, 0, 100 + number),
            labels: BTreeMap::from([("class".parse().unwrap(), class)]),
            added_at: EPOCH,
        },
    );
}

fn policy(random: &mut Random, model: &Model) -> String {
    let devices = model.devices.values().map(|d| d.name.to_string());
    let names: Vec<String> =
        devices.chain(model.clients.values().map(|c| c.name.to_string())).collect();
    let some: Vec<String> = names.iter().step_by(2).map(|name| format!("\"{name}\"")).collect();
    let mut text = format!(
        "format = 1\n[infrastructure.north]\ndns = [\"192.0.2.53\"]\nntp = [\"192.0.2.3\"]\n\
         [external.out]\nprefixes = [\"192.0.2.0/28\"]\n\
         [external.wide]\nprefixes = [\"10.0.200.0/29\", \"192.0.2.0/24\"]\n\
         [segment.north]\nmatch = {{ site = \"north\" }}\n\
         [segment.class-0]\nmatch = {{ label.class = \"class-0\" }}\n\
         [segment.class-1]\nmatch = {{ label.class = \"class-1\", site = \"north\" }}\nexternals = [\"out\"]\n\
         [segment.class-2]\nmatch = {{ label.class = \"class-2\" }}\n\
         [segment.mixed]\nmembers = [{}]\nexternals = [\"wide\"]\n\
         [service.high]\nports = [\"tcp/5000-6000\", \"udp/9\"]\n",
        some.join(", ")
    );
    let ends: Vec<String> = ["north", "class-0", "class-1", "class-2", "mixed", "out", "wide"]
        .map(str::to_owned)
        .into();
    let ends = [ends, names].concat();
    for at in 0..random.below(10) {
        let (from, to) = (random.pick(&ends).clone(), random.pick(&ends).clone());
        let services = [random.pick(&SERVICES), random.pick(&SERVICES)].map(|s| format!("\"{s}\""));
        let (clear, essential) = (random.chance(50), random.chance(50));
        let _ = writeln!(
            text,
            "[rule.r{at}]\nfrom = \"{from}\"\nto = \"{to}\"\nservices = [{}]\nclear = {clear}\nessential = {essential}",
            services.join(", ")
        );
        if random.chance(30) {
            let year = if random.chance(50) { 2020 } else { 2040 };
            let _ = writeln!(text, "expires = {year}-01-01T00:00:00Z");
        }
    }
    text
}

fn model(random: &mut Random) -> Model {
    let mut model = Model::new(OrganisationId::from_bytes([1; 16]));
    let gateways = 1 + u8::try_from(random.below(5)).unwrap();
    for number in 1..=gateways {
        gateway(random, &mut model, number);
    }
    for number in 1..=u8::try_from(random.below(10)).unwrap() {
        device(random, &mut model, number, gateways);
    }
    for number in 1..=u8::try_from(random.below(3)).unwrap() {
        client(random, &mut model, number);
    }
    model.policy = policy(random, &model);
    model
}

/// How much of a flow a verdict stops.
const fn strictness(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Drop(_) => 3,
        Verdict::WouldDrop(_) => 2,
        Verdict::Clear | Verdict::ClearTunnelDown => 1,
        Verdict::Tunnel | Verdict::Local => 0,
    }
}

/// The verdict, with the two words for "no rule at all" taken as one: a gateway tells an external that some rule names
/// from an address that none does, which changes nothing of what happens.
const fn folded(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Drop(DropReason::NotVisible) => Verdict::Drop(DropReason::NoRule),
        Verdict::WouldDrop(DropReason::NotVisible) => Verdict::WouldDrop(DropReason::NoRule),
        other => other,
    }
}

fn shown(model: &Model) -> String {
    let mut text = model.policy.clone();
    for device in model.devices.values() {
        let _ = writeln!(
            text,
            "{} {:?} behind {} {}: {}{}, {:?}",
            device.name,
            device.addresses,
            device.attachment.gateway,
            device.attachment.port,
            device.mode,
            if device.quarantined { ", quarantined" } else { "" },
            device.labels
        );
    }
    for (id, gateway) in &model.gateways {
        let _ = writeln!(text, "{} {id} in {}", gateway.name, gateway.site);
    }
    text
}

/// Asks both about every flow between any two ends, and says how many were compared.
fn agree(seed: u64) -> usize {
    let mut random = Random::new(seed);
    let model = model(&mut random);
    let compiled = match compile(&model) {
        Ok(compiled) => compiled,
        Err(problems) => panic!("seed {seed}: {problems}\n{}", shown(&model)),
    };
    let intents: Vec<Intent> = compiled.leaves.values().map(|leaf| leaf.intent.clone()).collect();
    let fleet = Fleet::start(&intents, &PORTS, EPOCH);
    let mut ends: Vec<(Party, Ipv4Addr)> = model
        .devices
        .iter()
        .map(|(id, device)| (Party::Member(*id), device.addresses[0].addr()))
        .collect();
    let is_client =
        |party: &Party| matches!(party, Party::Member(id) if model.clients.contains_key(id));
    ends.extend(model.clients.iter().map(|(id, client)| (Party::Member(*id), client.address)));
    for address in [[192, 0, 2, 3], [192, 0, 2, 53], [10, 0, 200, 1], [203, 0, 113, 9]] {
        let address = Ipv4Addr::from(address);
        ends.push((Party::Address(address), address));
    }
    let home = |party: Party| match party {
        Party::Member(id) => {
            let gateway = model.devices.get(&id)?.attachment.gateway;
            model.gateways.contains_key(&gateway).then_some(gateway)
        }
        Party::Address(_) => None,
    };
    let mut compared = 0;
    for (from, source) in &ends {
        for (to, destination) in ends.iter().filter(|(to, _)| to != from) {
            for (protocol, port) in ASKED {
                let flow = Flow { from: *from, to: *to, protocol, port };
                let decision = decide(&compiled.resolved, &flow, EPOCH);
                if !decision.guarded {
                    continue;
                }
                let mut gateways: Vec<GatewayId> =
                    [*from, *to].into_iter().filter_map(home).collect();
                gateways.dedup();
                let service = PortMatch { protocol, first: port, last: port };
                let question = Question { from: *source, to: *destination, service };
                let told: Vec<_> = gateways
                    .iter()
                    .filter_map(|gateway| fleet.engine(*gateway))
                    .map(|engine| engine.explain(&question, fleet.now))
                    .collect();
                let strictest = told.iter().reduce(|a, b| {
                    if strictness(b.verdict) > strictness(a.verdict) { b } else { a }
                });
                let stranger = |told: &&Explanation| told.from == Told::Unknown;
                if is_client(from) && strictest.as_ref().is_some_and(stranger) {
                    // Its packets get no further than to a gateway that doesn't know it.
                    assert!(matches!(decision.verdict, Verdict::Drop(_)), "{decision:?}");
                    continue;
                }
                let verdict = strictest.map(|told| match told.verdict {
                    // Nobody connects them here, so that is how far it comes.
                    Verdict::Drop(DropReason::TunnelDown) if is_client(from) || is_client(to) => {
                        Verdict::Tunnel
                    }
                    verdict => folded(verdict),
                });
                let rule = decision.rule.as_ref().map(|name| RuleId::of(name.as_str()));
                let cited = rule.is_none() || told.iter().any(|told| told.rule == rule);
                assert!(
                    verdict == Some(folded(decision.verdict))
                        && (cited || !decision.verdict.passes()),
                    "seed {seed}: {source} to {destination} {service}: the controller says {decision:#?}, the \
                     engines say {told:#?} of\n{}",
                    shown(&model)
                );
                compared += 1;
            }
        }
    }
    compared
}

#[test]
fn engines_decide_as_the_controller_foretells() {
    // More with ANTEROOM_SIM_SEEDS=from-to.
    let range = std::env::var("ANTEROOM_SIM_SEEDS").unwrap_or_else(|_| "1-60".into());
    let (from, to) = range.split_once('-').expect("from-to");
    let seeds = from.parse::<u64>().expect("a number")..=to.parse().expect("a number");
    let compared: usize = seeds.map(agree).sum();
    assert!(compared > 1_000, "only {compared} flows were compared");
}
