//! What people read: facts line by line, and tables.

use std::fmt::Write;
use std::time::Duration;

use anteroom_agent_core::report::{Explanation, FlowInfo, Party};
use anteroom_proto::v1::Unlisted;
use comfy_table::{ContentArrangement, Table, presets};

use crate::bypass::Followed;
use crate::control::{Alarm, ControlStatus, system_time};
use crate::dataplane;
use crate::enroll::Enrolled;
use crate::keys::is_ahead;
use crate::local::protocol::AgentStatus;
use crate::net::host::TurnedAway;
use crate::state::{Enrolment, Sealing};
use crate::text::printable;

mod threads;
mod ways;

/// Lines of "name: value", the values under each other.
#[derive(Default)]
struct Facts(Vec<(&'static str, String)>);

impl Facts {
    #[allow(clippy::needless_pass_by_value, reason = "callers hand over what they just made")]
    fn add(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        self.0.push((name, one_line(&value.to_string())));
        self
    }

    fn text(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
        self.0.iter().fold(String::new(), |mut text, (name, value)| {
            let _ = writeln!(text, "{:<width$} {value}", format!("{name}:"));
            text
        })
    }
}

fn table(headers: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headers.to_vec());
    let mut empty = true;
    for row in rows {
        table.add_row(row.iter().map(|cell| one_line(cell)));
        empty = false;
    }
    if empty { String::new() } else { format!("{table}\n") }
}

/// Much of what is shown was written by others: none of it steers the terminal, nor looks like another line.
fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\u{fffd}")
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".into();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A span of milliseconds, in the unit that suits it.
fn span(millis: u64) -> String {
    let seconds = Duration::from_millis(millis).as_secs();
    match seconds {
        0 => format!("{millis} ms"),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// How often something happened.
fn times(count: u64) -> String {
    if count == 1 { "once".into() } else { format!("{count} times") }
}

pub(super) fn enrolled(enrolled: &Enrolled, host: bool) -> String {
    let mut facts = Facts::default();
    facts
        .add("gateway", enrolled.gateway)
        .add("organisation", enrolled.organisation)
        .add("fingerprint", enrolled.fingerprint);
    let (unit, approve, until) = if host {
        ("anteroom-host", "client approve NAME --address IP", "it reaches no member")
    } else {
        ("anteroom-agent", "gateway approve NAME", "it is a wire")
    };
    format!(
        "This machine is enrolled.\n\n{}\nNext: start the agent here (`systemctl enable --now {unit}`). An operator sees it under\n`anteroom gateway pending`, compares the fingerprint, and runs\n`anteroom {approve} --fingerprint {}`. Until then {until}.\n",
        facts.text(),
        enrolled.fingerprint
    )
}

/// How private keys are kept.
pub(super) fn keys(sealing: Sealing, finished: bool, identity: bool, tunnels: usize) -> String {
    let kept = match sealing {
        Sealing::None => "in plain files that only root can read".to_owned(),
        sealing => format!("sealed with {sealing}"),
    };
    if !identity && tunnels == 0 {
        return format!("There are no private keys yet. They will be kept {kept}.\n");
    }
    if !finished {
        return format!(
            "A change was cut short: not all keys are kept {kept} yet. The agent finishes it when it starts next; or stop the agent and repeat `anteroom-agent keys --seal {sealing}`.\n"
        );
    }
    let identity = if identity { "the identity key and " } else { "" };
    let plural = if tunnels == 1 { "" } else { "s" };
    format!("Kept {kept}, and can be opened: {identity}{tunnels} tunnel key{plural}.\n")
}

pub(super) fn identity(
    enrolment: Option<&Enrolment>,
    fingerprint: Option<&str>,
    offered: &[String],
) -> String {
    let mut facts = Facts::default();
    match enrolment {
        Some(enrolment) => {
            facts.add("gateway", enrolment.gateway).add("organisation", enrolment.organisation)
        }
        None => facts.add("gateway", "not enrolled: run `anteroom-agent enroll INVITE`"),
    };
    facts.add("fingerprint", fingerprint.unwrap_or("no key yet: enrolling makes it"));
    for offered in offered {
        facts.add("offered instead", offered);
    }
    facts.text()
}

pub(super) fn followed(followed: &Followed) -> String {
    let mut text = if followed.bypassed {
        let lasts = followed.lasts_ms.map_or_else(
            || "until its time is over".into(),
            |lasts| format!("for {} at most", span(lasts)),
        );
        format!(
            "BYPASSED: what rules open to the devices of {} goes in the clear, {lasts}.\n",
            followed.gateway
        )
    } else {
        format!("The bypass of {} is ended.\n", followed.gateway)
    };
    if let Some(problem) = &followed.unkept {
        let _ = writeln!(text, "It won't outlive a restart of the agent: {problem}");
    }
    text
}

pub(super) fn status(status: &AgentStatus) -> String {
    let mut facts = Facts::default();
    facts.add("situation", status.situation.explanation());
    if let Some(identity) = &status.identity {
        facts.add("gateway", identity.gateway).add("fingerprint", &identity.fingerprint);
    }
    if let Some(gateway) = status.locked {
        facts.add("gateway", gateway);
    }
    if let Some(control) = &status.control {
        add_control(&mut facts, control);
    }
    facts.add("agent", format!("{}, up {}", status.version, span(status.uptime_ms)));
    for open in status.data_plane.iter().flat_map(|plane| &plane.engine.bypasses) {
        let source =
            if open.from_file { "by a file that was loaded here" } else { "by the controller" };
        let left = open.until.0.saturating_sub(system_time().0);
        let until = format!("for {} more by this machine's clock", span(left));
        facts.add(
            "BYPASSED",
            format!(
                "{}, {until}, ordered {source}: what rules open to its devices goes in the clear",
                open.gateway
            ),
        );
    }
    for problem in &status.problems {
        facts.add("problem", problem);
    }
    if let Some(address) = status.direct.listening {
        facts.add("QUIC", format!("peers may connect at {address}; nobody else is answered"));
    }
    if let Some(problem) = &status.direct.problem {
        facts.add("QUIC", problem);
    }
    if let Some((passed, lost)) = status.direct.strays {
        let lost = if lost > 0 { format!(", {lost} found no room") } else { String::new() };
        let port = "shares the tunnels' UDP port";
        facts.add("QUIC", format!("{port}: {passed} datagrams were handed over{lost}"));
    }
    let mut text = facts.text();
    if let Some(data_plane) = &status.data_plane {
        add_data_plane(&mut text, data_plane);
    }
    let headers =
        ["relay", "addresses", "state", "round trip", "peers there", "dropped", "last error"];
    push_table(&mut text, &table(&headers, ways::relays(&status.relays)));
    let headers = ["peer by QUIC", "address", "connected by", "round trip", "last error"];
    push_table(&mut text, &table(&headers, ways::links(&status.direct.peers)));
    text
}

fn add_control(facts: &mut Facts, control: &ControlStatus) {
    match control.connected {
        Some(address) if control.over_tcp => facts.add(
            "controller",
            format!("connected to {address} over TCP (slower): UDP doesn't get through"),
        ),
        Some(address) => facts.add("controller", format!("connected to {address}")),
        None => facts.add("controller", "not connected; what is in force stays in force"),
    };
    if let Some(error) = &control.last_error {
        facts.add("last error", error);
    }
    for Alarm { what, first, last, count } in &control.alarms {
        let spread = Duration::from_millis(last.0.saturating_sub(first.0)).as_secs();
        facts.add("ALARM", format!("{what} ({} within {spread} s)", times(*count)));
    }
    if let Some(key) = control.keys.iter().find(|key| key.serves.contains("gateways")) {
        let now = system_time();
        let age = if is_ahead(key.made, now) {
            "made when a clock was ahead, or this one is behind".into()
        } else {
            format!("{} old", span(now.0.saturating_sub(key.made.0)))
        };
        let psk = if key.post_quantum { "with" } else { "without" };
        let waits = if control.new_key_waits {
            "; a new one is due, and waits for a controller that tells peers of it"
        } else {
            ""
        };
        let said = format!("serial {}, {age}, {psk} an ML-KEM-768 key{waits}", key.serial);
        facts.add("tunnel key", said);
    }
    if control.approved == Some(false) {
        facts.add("approval", "waiting for an operator: `anteroom gateway pending`");
    }
    if let Some(applied) = &control.applied {
        if applied.revision > 0 {
            facts.add("revision", format!("{} (view {})", applied.revision, applied.number));
        }
        if let Some(refused) = &applied.refused {
            facts.add("refused", refused);
        }
        for problem in &applied.problems {
            facts.add("problem", problem);
        }
    }
    if control.unstored_reports > 1 {
        facts.add("reports waiting", control.unstored_reports);
    }
}

fn add_data_plane(text: &mut String, status: &dataplane::Status) {
    let engine = &status.engine;
    for problem in &status.host_problems {
        let _ = writeln!(text, "On this host: {problem}.");
    }
    let ports = engine.ports.iter().map(|port| {
        vec![
            port.name.to_string(),
            or_dash(port.mode),
            port.devices.to_string(),
            port.unknown.to_string(),
            match (port.unlisted, port.mode) {
                (Unlisted::Pass, Some(_)) => "UNLISTED ONES PASS in the clear".into(),
                _ if port.held => "held".into(),
                _ => "pass".into(),
            },
            port.frames_in.to_string(),
            port.frames_out.to_string(),
        ]
    });
    let headers = ["port", "mode", "devices", "unknown", "unknown ones", "frames in", "frames out"];
    push_table(text, &table(&headers, ports));
    for port in engine.ports.iter().filter(|port| port.devices > 1) {
        let _ = writeln!(
            text,
            "{}: {} devices share it; they have one mode, and nothing keeps them from each other.",
            port.name, port.devices
        );
    }
    for port in engine.ports.iter().filter(|port| port.turned_away > 0) {
        let _ = writeln!(
            text,
            "{}: as many unknown addresses as it may have; {} frames of others went unrecorded.",
            port.name, port.turned_away
        );
    }
    add_alarms(text, &engine.alarms);
    for trial in &engine.trials {
        let _ = match &trial.over {
            None => writeln!(
                text,
                "{} is enforced on trial: it goes back to protect in {} unless an operator confirms.",
                trial.member,
                span(trial.left)
            ),
            Some(over) => writeln!(
                text,
                "{} is back in protect, its trial is over: {}.",
                trial.member, over.why
            ),
        };
    }
    let devices = engine.devices.iter().map(|device| {
        vec![
            device.member.to_string(),
            device.port.to_string(),
            device.mac.to_string(),
            list(&device.addresses),
            if device.quarantined {
                format!("{}, quarantined", device.mode)
            } else {
                device.mode.to_string()
            },
            device.flows.to_string(),
            device.drops.values().sum::<u64>().to_string(),
            device.heard_ms.map_or_else(|| "-".into(), |ms| format!("{} ago", span(ms))),
        ]
    });
    let headers = ["device", "port", "mac", "addresses", "mode", "flows", "drops", "heard"];
    push_table(text, &table(&headers, devices));
    let headers =
        ["peer", "tunnel", "psk", "lanes", "round trip", "path", "path mtu", "revision", "address"];
    let peers = engine.peers.iter().map(|peer| {
        let nearer = engine.nearer.get(&peer.gateway).copied();
        ways::tunnel(peer, nearer, engine.lanes.get(&peer.gateway))
    });
    push_table(text, &table(&headers, peers));
    if let Some(underlays) = &status.underlays {
        let _ = writeln!(
            text,
            "The underlay is {}, for {}: {}.",
            underlays.using,
            span(underlays.for_ms),
            underlays.why
        );
        if let Some(after) = underlays.back_after_ms {
            let good = underlays
                .good_ms
                .map_or_else(|| "isn't".to_owned(), |good| format!("has been for {}", span(good)));
            let _ = writeln!(
                text,
                "The first underlay is taken again once it has been good for {}; it {good}.",
                span(after)
            );
        }
        for one in underlays.interfaces.iter().filter(|one| !one.usable) {
            let _ = writeln!(text, "Underlay {} has no carrier or no address.", one.interface);
        }
    }
    if !engine.outside.places.is_empty() {
        let places = list(&engine.outside.places);
        let varies = match engine.outside.varies {
            Some(true) => ", another port for each destination",
            _ => "",
        };
        let _ = writeln!(text, "Tunnels look from outside as if they came from {places}{varies}.");
    }
    if engine.lanes_turned_away > 0 {
        let _ = writeln!(
            text,
            "A lane, or a peer's key for lanes, was turned away {}; bulk takes lane 0 meanwhile.",
            times(engine.lanes_turned_away)
        );
    }
    if engine.tunnels_turned_away > 0 {
        let _ = writeln!(
            text,
            "A peer, or a tunnel with one more of a peer's keys, was turned away {}: there is room for no more.",
            times(engine.tunnels_turned_away)
        );
    }
    let outside = status.outside_tunnel.iter().flat_map(TurnedAway::reasons);
    let outside = outside.filter(|(_, count)| *count > 0);
    let row = |reason: &str, count: u64| vec![reason.to_owned(), count.to_string()];
    let drops = engine.drops.iter().map(|(reason, count)| row(reason, *count));
    let drops = drops.chain(outside.map(|(reason, count)| row(reason, count)));
    push_table(text, &table(&["dropped because", "packets"], drops));
    let interfaces = status.interfaces.iter().map(|interface| {
        let counters = &interface.counters;
        vec![
            interface.name.clone(),
            interface.interface.clone(),
            if interface.open { "open" } else { "down" }.into(),
            counters.received.to_string(),
            counters.sent.to_string(),
            (counters.missed + counters.truncated + counters.unknown_gso).to_string(),
            (counters.queue_full + counters.egress_failed).to_string(),
        ]
    });
    let counters = &status.underlay.counters;
    let lost_out =
        counters.queue_full + counters.egress_failed + counters.too_big + counters.unreachable;
    let underlay = vec![
        "underlay".into(),
        status.underlay.listen.clone(),
        "open".into(),
        counters.received.to_string(),
        counters.sent.to_string(),
        (counters.missed + counters.truncated).to_string(),
        lost_out.to_string(),
    ];
    let headers = ["side", "interface", "state", "received", "sent", "lost in", "lost out"];
    push_table(text, &table(&headers, interfaces.chain([underlay])));
    push_table(text, &table(&["offload", "where", "state"], threads::offloads(status).into_iter()));
    if !status.threads.lanes.is_empty() {
        push_table(
            text,
            &table(&["thread", "worked", "received", "sent", "lost"], threads::carrying(status)),
        );
    }
}

fn add_alarms(text: &mut String, alarms: &[anteroom_proto::alarm::Alarm]) {
    let rows = alarms.iter().map(|alarm| {
        vec![
            alarm.kind.as_str().to_uppercase(),
            alarm.port.as_ref().map_or_else(|| "uplink".into(), ToString::to_string),
            alarm.mac.to_string(),
            or_dash(alarm.address),
            or_dash(alarm.member),
            alarm.count.to_string(),
            alarm.kind.explanation().into(),
        ]
    });
    let headers = ["ALARM", "seen at", "mac", "address", "device", "frames", "meaning"];
    push_table(text, &table(&headers, rows));
}

fn push_table(text: &mut String, table: &str) {
    if !table.is_empty() {
        text.push('\n');
        text.push_str(table);
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        other => format!("ip/{other}"),
    }
}

pub(super) fn flows(flows: &[FlowInfo]) -> String {
    if flows.is_empty() {
        return "No flows.\n".into();
    }
    let rows = flows.iter().map(|flow| {
        vec![
            flow.port.to_string(),
            protocol(flow.protocol),
            format!("{}:{}", flow.initiator, flow.initiator_port),
            format!("{}:{}", flow.responder, flow.responder_port),
            flow.verdict.to_string(),
            or_dash(flow.rule),
            flow.state.clone(),
            format!("{} / {}", flow.bytes_out, flow.bytes_in),
            span(flow.age_ms),
            span(flow.idle_ms),
        ]
    });
    let headers = [
        "port",
        "protocol",
        "from",
        "to",
        "verdict",
        "rule",
        "state",
        "bytes out / in",
        "age",
        "idle",
    ];
    table(&headers, rows)
}

fn party(party: &Party) -> String {
    let device =
        |kind: &str, member: &dyn ToString, at: String, mode: &dyn ToString, quarantined| {
            let quarantined = if quarantined { ", quarantined" } else { "" };
            format!("{kind} {} {at}, {}{quarantined}", member.to_string(), mode.to_string())
        };
    match party {
        Party::Device { member, port, mode, quarantined } => {
            device("device", member, format!("on {port}"), mode, *quarantined)
        }
        Party::Member { member, gateway, mode, quarantined } => {
            device("member", member, format!("behind {gateway}"), mode, *quarantined)
        }
        Party::External => "an external (an address, not an identity)".into(),
        Party::Infrastructure => "infrastructure of the site".into(),
        Party::Unknown => "unknown here".into(),
    }
}

pub(super) fn why(why: &Explanation) -> String {
    let mut facts = Facts::default();
    let question = &why.question;
    facts
        .add("from", format!("{} ({})", question.from, party(&why.from)))
        .add("to", format!("{} ({})", question.to, party(&why.to)))
        .add("service", question.service)
        .add("verdict", why.verdict)
        .add("because", &why.because)
        .add("path", &why.path);
    if let Some(rule) = why.rule {
        facts.add("rule", rule);
    }
    if let Some(state) = &why.tunnel {
        facts.add("tunnel", ways::tunnel(state, None, None).join(", "));
    }
    if let Some(flow) = &why.flow {
        let idle = span(flow.idle_ms);
        facts.add("live flow", format!("{}, {}, idle {idle}", flow.verdict, flow.state));
    }
    if let Some(drop) = &why.last_drop {
        facts.add(
            "last drop",
            format!(
                "{} from {}:{} to {}:{}, {} in a row",
                drop.reason,
                or_dash(drop.source),
                drop.source_port,
                or_dash(drop.destination),
                drop.destination_port,
                drop.count
            ),
        );
    }
    if !why.next_step.is_empty() {
        facts.add("next", &why.next_step);
    }
    facts.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hosts_kernel_turned_away_or_refused_is_shown() {
        let now = std::time::Instant::now();
        let mut plane = crate::bare::plane_status(crate::bare::bare_engine(now).status(now));
        let shown = |plane: &dataplane::Status| {
            let mut text = String::new();
            add_data_plane(&mut text, plane);
            text
        };
        assert!(!shown(&plane).contains("outside-tunnel"), "on a gateway");
        let away = TurnedAway { packets_in: 7, arp_out: 9, ..TurnedAway::default() };
        plane.outside_tunnel = Some(away);
        let text = shown(&plane);
        let row = |reason: &str| {
            let line = text.lines().find(|line| line.split(' ').any(|word| word == reason));
            line.map(|line| line.split(' ').filter(|word| word.parse::<u64>().is_ok()).collect())
        };
        assert!(!text.contains("On this host"), "{text}");
        plane.host_problems = vec!["no member is reached: 10.20.9.8 is this machine's".into()];
        let problem = "On this host: no member is reached: 10.20.9.8 is this machine's.\n";
        assert!(shown(&plane).contains(problem), "{}", shown(&plane));
        assert_eq!(row("outside-tunnel-in"), Some(vec!["7"]), "{text}");
        assert_eq!(row("outside-tunnel-arp-out"), Some(vec!["9"]), "{text}");
        assert_eq!(row("outside-tunnel-out"), None, "{text}");
        let json = serde_json::to_value(&plane).unwrap();
        assert_eq!(json["outside_tunnel"]["packets_in"], 7);
    }

    #[test]
    fn what_others_wrote_stays_in_its_place() {
        let evil = "it said: \x1b[2J\ncontroller: connected";
        let mut facts = Facts::default();
        facts.add("last error", evil);
        let rows = table(&["error"], std::iter::once(vec![evil.to_owned()]));
        for (text, lines) in [(facts.text(), 1), (rows, 3)] {
            assert_eq!(text.lines().count(), lines, "{text:?}");
            assert!(!text.contains('\x1b') && text.contains("controller: connected"), "{text:?}");
        }
    }
}
