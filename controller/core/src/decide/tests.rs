use anteroom_proto::intent::{Condition, Endpoint, Intent, KnownCondition, Member, Rule};
use proptest::prelude::*;

use super::*;
use crate::compile::{Compiled, compile};
use crate::fixture::{NOW, any_model, client, hospital, member_id, set_modes};

const DICOM: (Protocol, u16) = (Protocol::Tcp, 104);

fn between(from: Party, to: Party, (protocol, port): (Protocol, u16)) -> Flow {
    Flow { from, to, protocol, port }
}

fn member(number: u32) -> Party {
    Party::Member(member_id(number))
}

fn verdict(modes: &[(Mode, &[&str])], flow: Flow) -> (Verdict, Option<String>) {
    let mut model = hospital();
    for (mode, names) in modes {
        set_modes(&mut model, *mode, names);
    }
    let resolved = Resolved::new(&model).unwrap();
    let decision = decide(&resolved, &flow, NOW);
    (decision.verdict, decision.rule.map(|rule| rule.to_string()))
}

#[test]
fn an_allowed_pair_takes_the_path_of_the_matrix() {
    use Mode::{Enforce, Observe, Protect};
    let rule = |text: &str| Some(text.to_owned());
    let alarm = between(member(4), member(6), (Protocol::Tcp, 2575));
    let table = [
        (Observe, Observe, Verdict::Clear),
        (Observe, Protect, Verdict::Clear),
        (Protect, Observe, Verdict::Clear),
        (Protect, Protect, Verdict::Tunnel),
        (Protect, Enforce, Verdict::Tunnel),
        (Enforce, Enforce, Verdict::Tunnel),
        (Enforce, Observe, Verdict::Drop(DropReason::ClearNotAllowed)),
        (Observe, Enforce, Verdict::Drop(DropReason::ClearNotAllowed)),
    ];
    for (monitor, engine, expected) in table {
        let modes: [(Mode, &[&str]); 2] = [(monitor, &["monitor-1"]), (engine, &["hl7-1"])];
        assert_eq!(verdict(&modes, alarm), (expected, rule("alarms")), "{monitor} to {engine}");
    }
    let store = between(member(1), member(5), DICOM);
    let modes: [(Mode, &[&str]); 1] = [(Enforce, &["ct-1"])];
    assert_eq!(verdict(&modes, store), (Verdict::Clear, rule("ct-to-pacs")), "clear = true");
}

#[test]
fn what_no_rule_allows_depends_on_the_stricter_end() {
    use Mode::{Enforce, Observe, Protect};
    let stray = between(member(3), member(5), DICOM);
    let table = [
        (Observe, Observe, Verdict::Clear),
        (Protect, Observe, Verdict::WouldDrop(DropReason::NotVisible)),
        (Observe, Protect, Verdict::WouldDrop(DropReason::NotVisible)),
        (Enforce, Observe, Verdict::Drop(DropReason::NotVisible)),
        (Protect, Enforce, Verdict::Drop(DropReason::NotVisible)),
    ];
    for (pump, pacs, expected) in table {
        let modes: [(Mode, &[&str]); 2] = [(pump, &["pump-1"]), (pacs, &["pacs-1"])];
        assert_eq!(verdict(&modes, stray), (expected, None), "{pump} to {pacs}");
    }
    let back = between(member(5), member(1), DICOM);
    let modes: [(Mode, &[&str]); 1] = [(Enforce, &["ct-1", "pacs-1"])];
    assert_eq!(
        verdict(&modes, back).0,
        Verdict::Drop(DropReason::NoRule),
        "rules have a direction"
    );
}

#[test]
fn externals_and_infrastructure_pass_in_the_clear_and_strangers_dont() {
    let modes: [(Mode, &[&str]); 1] = [(Mode::Enforce, &["ct-1", "pacs-1"])];
    let to = |address: [u8; 4], service| {
        verdict(&modes, between(member(1), Party::Address(address.into()), service))
    };
    assert_eq!(to([10, 20, 4, 20], DICOM), (Verdict::Clear, Some("ct-to-pacs".into())));
    assert_eq!(to([10, 20, 4, 21], DICOM), (Verdict::Drop(DropReason::NotVisible), None));
    assert_eq!(to([10, 20, 0, 53], (Protocol::Udp, 53)), (Verdict::Clear, None));
    assert_eq!(to([10, 20, 0, 53], (Protocol::Udp, 54)).0, Verdict::Drop(DropReason::NotVisible));
    assert_eq!(to([10, 20, 0, 2], (Protocol::Udp, 67)).0, Verdict::Clear);
    assert_eq!(to([10, 20, 0, 123], (Protocol::Udp, 123)).0, Verdict::Clear);
    let intruder = between(Party::Address([10, 20, 9, 66].into()), member(5), DICOM);
    assert_eq!(verdict(&modes, intruder), (Verdict::Drop(DropReason::NotVisible), None));
    let back = between(Party::Address([10, 20, 4, 20].into()), member(1), (Protocol::Tcp, 4006));
    assert_eq!(verdict(&modes, back), (Verdict::Clear, Some("pacs-to-ct".into())));
}

#[test]
fn a_client_takes_the_tunnel_or_nothing() {
    use Mode::{Enforce, Observe, Protect};
    let laptop = member(70);
    let vnc = (Protocol::Tcp, 5900);
    let decided = |mode: Mode, from, to, service| {
        let mut model = hospital();
        model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "service")]);
        model.policy.push_str(
            "[segment.service]\nmatch = { label.class = \"service\", site = \"north\" }\n\
             [rule.there]\nfrom = \"service\"\nto = \"ct\"\nservices = [\"vnc\"]\n\
             [rule.back]\nfrom = \"ct-1\"\nto = \"laptop-1\"\nservices = [\"dicom\"]\n",
        );
        set_modes(&mut model, mode, &["ct-1", "pump-1"]);
        decide(&Resolved::new(&model).unwrap(), &between(from, to, service), NOW).verdict
    };
    let (ct, pump) = (member(1), member(3));
    for mode in [Protect, Enforce] {
        assert_eq!(decided(mode, laptop, ct, vnc), Verdict::Tunnel, "{mode}");
        assert_eq!(decided(mode, ct, laptop, DICOM), Verdict::Tunnel, "{mode}");
        // What isn't allowed of a client has no way round the tunnel, whatever the mode.
        assert_eq!(decided(mode, laptop, ct, DICOM), Verdict::Drop(DropReason::NoRule));
        assert_eq!(decided(mode, laptop, pump, vnc), Verdict::Drop(DropReason::NotVisible));
    }
    assert_eq!(decided(Enforce, ct, laptop, vnc), Verdict::Drop(DropReason::NoRule));
    assert_eq!(decided(Protect, ct, laptop, vnc), Verdict::WouldDrop(DropReason::NoRule));
    let observed = Verdict::Drop(DropReason::ClientOfObserved);
    assert_eq!(decided(Observe, laptop, ct, vnc), observed);
    assert_eq!(decided(Observe, ct, laptop, DICOM), Verdict::Clear, "it is a wire");
}

#[test]
fn quarantine_leaves_what_is_essential() {
    let mut model = hospital();
    set_modes(&mut model, Mode::Protect, &["monitor-1", "hl7-1", "pacs-1"]);
    model.set_quarantine("monitor-1", true).unwrap();
    model.set_quarantine("ct-1", true).unwrap();
    let resolved = Resolved::new(&model).unwrap();
    let alarm = decide(&resolved, &between(member(4), member(6), (Protocol::Tcp, 2575)), NOW);
    assert_eq!((alarm.verdict, alarm.essential), (Verdict::Tunnel, true));
    let store = decide(&resolved, &between(member(1), member(5), DICOM), NOW);
    assert_eq!(store.verdict, Verdict::Drop(DropReason::Quarantined));
    assert_eq!(store.dropped_at, Some(End::From));
    let ping = decide(&resolved, &between(member(4), member(5), (Protocol::IcmpEcho, 0)), NOW);
    assert_eq!(ping.verdict, Verdict::Drop(DropReason::Quarantined));
}

#[test]
fn a_rule_ends_when_it_says() {
    let mut model = hospital();
    set_modes(&mut model, Mode::Enforce, &["pump-1", "hl7-1"]);
    model.policy.push_str("[rule.x]\nfrom = \"pump-1\"\nto = \"hl7-1\"\nservices = [\"hl7\"]\nexpires = 2026-11-22T00:00:00Z\n");
    let resolved = Resolved::new(&model).unwrap();
    let flow = between(member(3), member(6), (Protocol::Tcp, 2575));
    let just_before = UnixMillis(NOW.0 - 1);
    assert_eq!(decide(&resolved, &flow, just_before).verdict, Verdict::Tunnel);
    assert_eq!(decide(&resolved, &flow, NOW).verdict, Verdict::Drop(DropReason::Expired));
    assert!(permits(&resolved, &flow, just_before).is_some());
    assert!(permits(&resolved, &flow, NOW).is_none());
}

#[test]
fn devices_of_one_gateway_meet_there_and_those_of_one_port_before() {
    let mut model = hospital();
    model.policy.push_str("[rule.x]\nfrom = \"ct-1\"\nto = \"mri-1\"\nservices = [\"dicom\"]\n");
    set_modes(&mut model, Mode::Enforce, &["ct-1", "mri-1"]);
    let decided = |model: &Model, flow| decide(&Resolved::new(model).unwrap(), &flow, NOW);
    assert_eq!(decided(&model, between(member(1), member(2), DICOM)).verdict, Verdict::Local);
    let back = decided(&model, between(member(2), member(1), DICOM));
    assert_eq!(back.verdict, Verdict::Drop(DropReason::NoRule));
    model.devices.get_mut(&member_id(2)).unwrap().attachment.port = "port1".parse().unwrap();
    let neighbours = decided(&model, between(member(2), member(1), DICOM));
    assert_eq!((neighbours.verdict, neighbours.guarded), (Verdict::Clear, false));
}

use crate::model::Model;

/// What a gateway makes of a flow, told by its leaf and nothing else. Written apart from `decide`, the way that a
/// packet engine looks things up: by address.
struct Engine<'a> {
    intent: &'a Intent,
}

impl Engine<'_> {
    fn known(&self, address: Ipv4Addr) -> Option<&Member> {
        let own = self.intent.devices.iter().map(|device| &device.member);
        own.chain(&self.intent.members)
            .find(|member| member.addresses.iter().any(|net| net.contains(&address)))
    }

    fn client(&self, address: Ipv4Addr) -> Option<MemberId> {
        let mut clients = self.intent.clients.iter();
        clients.find(|client| client.address == address).map(|client| client.id)
    }

    fn is(&self, end: Endpoint, address: Ipv4Addr) -> bool {
        let known = self.known(address).map(|member| member.id).or_else(|| self.client(address));
        let external = |id| {
            let found = self.intent.externals.iter().find(|external| external.id == id);
            known.is_none()
                && found
                    .is_some_and(|found| found.prefixes.iter().any(|net| net.contains(&address)))
        };
        match end {
            Endpoint::Member(id) => known == Some(id),
            Endpoint::External(id) => external(id),
            Endpoint::Segment(id) => self.intent.segments.iter().any(|segment| {
                segment.id == id
                    && (known.is_some_and(|known| segment.members.contains(&known))
                        || segment.externals.iter().any(|id| external(*id)))
            }),
        }
    }

    fn holds(rule: &Rule) -> bool {
        rule.conditions.iter().all(|condition| match condition {
            Condition::Known(KnownCondition::NotAfter(end)) => NOW < *end,
            Condition::Unknown(_) => false,
        })
    }

    /// The verdict's word without its reason, with the rule that lets the flow pass.
    fn judge(
        &self,
        own: Ipv4Addr,
        far: Ipv4Addr,
        opens: bool,
        (protocol, port): (Protocol, u16),
    ) -> (&'static str, Option<&Rule>) {
        let me = self.known(own).expect("a device of this gateway");
        let other = self.known(far);
        let local = other.is_some_and(|other| other.gateway == self.intent.gateway);
        let infrastructure = &self.intent.infrastructure;
        let known = other.is_some() || self.client(far).is_some();
        if opens && !known && port == 53 && infrastructure.dns.contains(&far) {
            return ("clear", None);
        }
        let quarantined = me.quarantined || other.is_some_and(|other| other.quarantined);
        let (from, to) = if opens { (own, far) } else { (far, own) };
        let matching = |rule: &&Rule| {
            self.is(rule.from, from)
                && self.is(rule.to, to)
                && rule.services.iter().any(|ports| ports.matches(protocol, port))
                && Self::holds(rule)
                && (!quarantined || rule.essential)
        };
        if self.client(far).is_some() {
            return match (self.intent.rules.iter().find(matching), me.mode) {
                (Some(rule), Mode::Protect | Mode::Enforce) => ("tunnel", Some(rule)),
                _ if !opens || quarantined => ("drop", None),
                (_, Mode::Observe) => ("clear", None),
                (_, Mode::Protect) => ("would-drop", None),
                _ => ("drop", None),
            };
        }
        let far_mode = other.map_or(Mode::Observe, |other| other.mode);
        let both_tunnel = me.mode != Mode::Observe && far_mode != Mode::Observe;
        let one_enforces = me.mode == Mode::Enforce || far_mode == Mode::Enforce;
        let passing = |rule: &&Rule| matching(rule) && (both_tunnel || !one_enforces || rule.clear);
        if let Some(rule) = self.intent.rules.iter().find(passing) {
            let path = if local {
                "local"
            } else if both_tunnel {
                "tunnel"
            } else {
                "clear"
            };
            return (path, Some(rule));
        }
        if quarantined && !self.intent.rules.iter().any(|rule| matching(&rule)) {
            return ("drop", None);
        }
        match me.mode {
            Mode::Observe if local => ("local", None),
            Mode::Observe => ("clear", None),
            Mode::Protect => ("would-drop", None),
            _ => ("drop", None),
        }
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Tunnel => "tunnel",
        Verdict::Local => "local",
        Verdict::Clear | Verdict::ClearTunnelDown => "clear",
        Verdict::WouldDrop(_) => "would-drop",
        Verdict::Drop(_) => "drop",
    }
}

/// Both ends' verdicts from their leaves, the stricter first.
fn by_leaves(
    compiled: &Compiled,
    ends: [(Option<&Device>, Ipv4Addr); 2],
    from_client: bool,
    service: (Protocol, u16),
) -> (&'static str, Option<anteroom_proto::id::RuleId>) {
    let strictness = ["tunnel", "local", "clear", "would-drop", "drop"];
    let rank = |word: &str| strictness.iter().position(|known| *known == word).unwrap();
    let mut found: Vec<(&'static str, Option<anteroom_proto::id::RuleId>)> = Vec::new();
    for (at, opens) in [(0, true), (1, false)] {
        let (Some(device), own) = ends[at] else { continue };
        let far = ends[1 - at].1;
        let leaf = &compiled.leaves[&device.attachment.gateway];
        let engine = Engine { intent: &leaf.intent };
        // A gateway that doesn't know a client takes nothing from it.
        let stranger = from_client && engine.client(far).is_none();
        let (word, rule) =
            if stranger { ("drop", None) } else { engine.judge(own, far, opens, service) };
        found.push((word, rule.map(|rule| rule.id)));
    }
    let strictest = found.iter().map(|(word, _)| *word).max_by_key(|word| rank(word)).unwrap();
    (strictest, found.iter().find_map(|(word, rule)| rule.filter(|_| *word == strictest)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_decision_is_what_the_leaves_say_at_both_ends(model in any_model()) {
        let compiled = compile(&model).unwrap();
        let resolved = &compiled.resolved;
        let attached = model.devices.iter().filter(|(_, device)| model.is_attached(device));
        let devices: Vec<(Party, Option<&Device>, Ipv4Addr)> = attached
            .map(|(id, device)| (Party::Member(*id), Some(device), device.addresses[0].addr()))
            .collect();
        let outside = [[192, 0, 2, 1], [192, 0, 2, 53], [192, 0, 2, 200], [10, 0, 0, 0], [203, 0, 113, 9]];
        let outside = outside.map(|address| (Party::Address(address.into()), None, Ipv4Addr::from(address)));
        let clients = model.clients.iter().map(|(id, client)| (Party::Member(*id), None, client.address));
        let parties: Vec<_> = devices.iter().copied().chain(clients).chain(outside).collect();
        let services = [DICOM, (Protocol::Tcp, 2575), (Protocol::IcmpEcho, 0), (Protocol::Tcp, 5500), (Protocol::Udp, 53)];
        for from in &parties {
            for to in parties.iter().filter(|to| to.2 != from.2) {
                let neighbours = matches!((from.1, to.1), (Some(a), Some(b)) if same_port(a, b));
                if neighbours || (from.1.is_none() && to.1.is_none()) {
                    continue;
                }
                for service in services {
                    let decision = decide(resolved, &between(from.0, to.0, service), NOW);
                    let (expected, rule) = by_leaves(
                        &compiled,
                        [(from.1, from.2), (to.1, to.2)],
                        model.clients.values().any(|client| client.address == from.2),
                        service,
                    );
                    prop_assert_eq!(
                        word(decision.verdict), expected,
                        "{} to {} {:?}: {:?}\n{}\n{:#?}", from.2, to.2, service, decision, model.policy, model.devices
                    );
                    if let Some(rule) = rule {
                        let cited = decision.rule.map(|name| anteroom_proto::id::RuleId::of(name.as_str()));
                        prop_assert_eq!(cited, Some(rule), "{} to {} {:?}", from.2, to.2, service);
                    }
                }
            }
        }
    }
}
