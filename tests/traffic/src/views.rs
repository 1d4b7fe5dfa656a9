//! How long what people ask of a hospital's history takes: blast radius, map, live simulation, review, export.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anteroom_controller_core::blast::{self, Radii};
use anteroom_controller_core::coverage::{Wanted, coverage};
use anteroom_controller_core::decide::Party;
use anteroom_controller_core::export::{self, Observed, Stamp};
use anteroom_controller_core::history::{self, History};
use anteroom_controller_core::map::{self, Grain};
use anteroom_controller_core::model::Model;
use anteroom_controller_core::names::Names;
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::simulate::live::of_edge;
use anteroom_controller_core::simulate::simulate;
use anteroom_controller_core::stale::stale;
use anteroom_controller_core::surface::Surfaces;
use anteroom_proto::api::Edge;
use anteroom_proto::id::MemberId;
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::Verdict;

use crate::peak;

/// Prints what each takes: of the hospital as it is, all in observe, under `suggested`.
pub(crate) fn time(today: &Resolved, suggested: &Resolved, history: &History, now: UnixMillis) {
    let text = &suggested.model.policy;
    let enforced = timed("the hospital resolved, all in enforce", || {
        blast::enforced(today, "suggested", text)
    });
    let enforced = match enforced {
        Ok(enforced) => enforced,
        Err(problems) => return eprintln!("{problems}"),
    };
    far(today, &enforced, now);
    exact(today, history, now);

    // As it stands once the suggestion was applied and before anybody has left observe.
    let judged = timed("flows --would-drop", || {
        let names = Names::of(&suggested.model);
        let edges = history.edges().filter_map(|edge| recorded(&suggested.model, &edge));
        edges.filter(|edge| of_edge(suggested, &names, edge, now).is_some()).count()
    });
    println!("  {judged} edges that the suggestion would drop");
    let surfaces = Surfaces::of(suggested);
    for (what, grain) in [
        ("map by class", Grain::Class),
        ("map by segment", Grain::Segment),
        ("map by device", Grain::Each),
    ] {
        let map = timed(what, || {
            map::map(suggested, &surfaces, history, grain, UnixMillis(0), &|_| true)
        });
        println!("  {} nodes, {} lines", map.nodes.len(), map.lines.len());
    }
    let found = timed("policy stale", || stale(suggested, history, UnixMillis(0), now));
    println!("  {} rules, {} devices", found.rules.len(), found.devices.len());
    let broken = timed("policy simulate", || {
        simulate(today, "suggested", text, history, &BTreeSet::new(), UnixMillis(0), now)
    });
    if let Ok(broken) = broken {
        println!("  {} of {} flows broken", broken.broken_flows, broken.flows);
    }
    let observed = Observed {
        coverage: timed("coverage", || coverage(suggested, history, &Wanted::default(), now)),
        ..Observed::default()
    };
    let files = timed("export create", || {
        let stamp = Stamp {
            organisation: "measured".into(),
            made_at: String::new(),
            made_by: "anteroom-traffic".into(),
            revision: 1,
            history: None,
            turned_away: 0,
            audit: None,
        };
        let content = export::content(suggested, history, &observed, stamp, UnixMillis(0), now);
        export::files(&content).unwrap_or_default()
    });
    println!("  {} bytes", files.values().map(Vec::len).sum::<usize>());
    println!("peak memory with all of these: {} MiB", peak());
    if let Some(path) = std::env::var_os("EXPORT").map(std::path::PathBuf::from) {
        for (name, content) in files {
            if let Err(error) = std::fs::write(path.join(name), content) {
                eprintln!("{}: {error}", path.join(name).display());
            }
        }
    }
}

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let found = run();
    println!("{what}: {:.2?}", began.elapsed());
    found
}

/// How far one device could reach on average, in the flat network and under the suggestion.
fn far(today: &Resolved, enforced: &Resolved, at: UnixMillis) {
    let services = blast::services(&[today, enforced]);
    let [flat, policy] = [("today", today), ("enforced", enforced)].map(|(what, one)| {
        let what = format!("blast radius of all, {what}");
        let radii = timed(&what, || Radii::of(one, &Surfaces::of(one), services, at));
        radii.spread(one.model.devices.keys().copied()).average()
    });
    println!(
        "  of a device: {flat} pairs flat, {policy} under the suggestion, {services} services"
    );
}

/// The same under a policy in which many devices have a rule of their own, to a member that they talk to, beside one of all.
fn exact(today: &Resolved, history: &History, at: UnixMillis) {
    use std::fmt::Write as _;
    let mut text = String::from("format = 1\n");
    let mut own: BTreeSet<MemberId> = BTreeSet::new();
    for edge in history.edges() {
        let (Party::Member(from), Party::Member(to)) = (edge.from, edge.to) else { continue };
        let names = [from, to].map(|id| today.model.devices.get(&id).map(|device| &device.name));
        let [Some(one), Some(other)] = names else { continue };
        // A table of a policy has 10,000 entries at most.
        if own.len() < 9_999 && own.insert(from) {
            let _ = write!(
                text,
                "[rule.own-{one}]\nfrom = \"{one}\"\nto = \"{other}\"\nservices = [\"vnc\"]\n"
            );
        }
    }
    let all: Vec<String> =
        today.model.devices.values().map(|device| format!("\"{}\"", device.name)).collect();
    let _ = write!(
        text,
        "[segment.all-of-it]\nmembers = [{}]\n[rule.all-of-it]\nfrom = \"all-of-it\"\nto = \"all-of-it\"\nservices = [\"ping\"]\n",
        all.join(", ")
    );
    let enforced = match blast::enforced(today, "exact", &text) {
        Ok(enforced) => enforced,
        Err(problems) => {
            return eprintln!("{}", problems.to_string().lines().next().unwrap_or_default());
        }
    };
    let radii = timed(
        "blast radius of all, up to 9,999 with a rule of their own beside one of all",
        || Radii::of(&enforced, &Surfaces::of(&enforced), blast::services(&[&enforced]), at),
    );
    let average = radii.spread(enforced.model.devices.keys().copied()).average();
    println!("  of a device: {average} pairs, {} rules", enforced.rules.len());
}

/// An edge as the gateway of its first end would have reported it; none of those that begin outside.
fn recorded(model: &Model, edge: &history::Edge) -> Option<Edge> {
    let Party::Member(id) = edge.from else { return None };
    let device = model.devices.get(&id)?;
    let address = |id: &MemberId| {
        let net = model.devices.get(id).and_then(|device| device.addresses.first());
        net.map_or(Ipv4Addr::UNSPECIFIED, ipnet::Ipv4Net::addr)
    };
    let remote = match &edge.to {
        Party::Member(id) => address(id),
        Party::Address(address) => *address,
    };
    Some(Edge {
        gateway: device.attachment.gateway,
        mac: device.attachment.mac,
        member: Some(id),
        local: IpAddr::V4(address(&id)),
        remote: IpAddr::V4(remote),
        remote_member: None,
        outbound: true,
        protocol: match edge.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::IcmpEcho => 1,
        },
        port: edge.port,
        verdict: Verdict::Clear,
        rule: None,
        flows: edge.counts.flows,
        packets_out: edge.counts.packets,
        packets_in: edge.counts.packets_back,
        bytes_out: edge.counts.bytes,
        bytes_in: edge.counts.bytes_back,
        first: edge.first,
        last: edge.last,
        rhythm: edge.rhythm,
    })
}
