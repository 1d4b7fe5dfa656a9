//! `flows`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use anteroom_controller_core::model::Model;
use anteroom_controller_core::names::Names;
use anteroom_proto::api::{Edge, EdgeQuery};
use anteroom_proto::verdict::Verdict;
use serde::Serialize;

use crate::args::Flows;
use crate::change::{self, ChangeError};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{bytes, table};
use crate::output::time::{Moment, ago, now};
use crate::remote::Remote;

/// How often `--follow` looks.
const EVERY: Duration = Duration::from_secs(1);

/// What one end of a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// A confirmed device.
    Device,
    /// A client.
    Client,
    /// A named prefix: an address, not an identity.
    External,
    /// An address that nobody named.
    Outside,
}

/// One end of a flow.
#[derive(Debug, Clone, Serialize)]
struct End {
    kind: Kind,
    name: Option<String>,
    address: IpAddr,
}

impl End {
    fn text(&self) -> String {
        match (self.kind, &self.name) {
            (Kind::Device | Kind::Client, Some(name)) => name.clone(),
            (Kind::External, Some(name)) => format!("{name} (external {})", self.address),
            _ => format!("outside {}", self.address),
        }
    }
}

/// An edge, with names.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FlowRow {
    from: End,
    to: End,
    service: String,
    protocol: u8,
    port: u16,
    verdict: Verdict,
    /// Whether the packets went on unprotected.
    in_the_clear: bool,
    rule: Option<String>,
    flows: u64,
    packets: u64,
    bytes: u64,
    first_seen: Moment,
    last_seen: Moment,
    gateway: String,
    local_mac: String,
}

impl FlowRow {
    /// `edge` with the names that `model` has for its ends.
    pub(super) fn new(edge: &Edge, model: &Model, names: &Names) -> Self {
        let member = |id: Option<_>, address| {
            let id = id.filter(|id| model.member_name(*id).is_some())?;
            let kind = if model.clients.contains_key(&id) { Kind::Client } else { Kind::Device };
            Some(End { kind, name: Some(names.member(id)), address })
        };
        let other = |address: IpAddr| {
            let name = names.address(edge.gateway, address);
            let kind = if name == address.to_string() {
                return End { kind: Kind::Outside, name: None, address };
            } else if model.device_named(&name).is_some() {
                Kind::Device
            } else if model.client_named(&name).is_some() {
                Kind::Client
            } else {
                Kind::External
            };
            End { kind, name: Some(name), address }
        };
        // Traffic from before a device was confirmed bears no id yet.
        let known = edge.member.or_else(|| names.member_of(edge.gateway, edge.mac));
        let local = member(known, edge.local).unwrap_or_else(|| other(edge.local));
        let remote = member(edge.remote_member, edge.remote).unwrap_or_else(|| other(edge.remote));
        let (from, to) = if edge.outbound { (local, remote) } else { (remote, local) };
        let in_the_clear = matches!(
            edge.verdict,
            Verdict::Clear | Verdict::ClearTunnelDown | Verdict::WouldDrop(_)
        );
        Self {
            from,
            to,
            service: names.service(edge.protocol, edge.port),
            protocol: edge.protocol,
            port: edge.port,
            verdict: edge.verdict,
            in_the_clear,
            rule: edge.rule.map(|rule| names.rule(rule)),
            flows: edge.flows,
            packets: edge.packets_out.saturating_add(edge.packets_in),
            bytes: edge.bytes_out.saturating_add(edge.bytes_in),
            first_seen: Moment(edge.first),
            last_seen: Moment(edge.last),
            gateway: names.gateway(edge.gateway),
            local_mac: edge.mac.to_string(),
        }
    }

    fn verdict_text(&self) -> String {
        let clear = if self.in_the_clear { ", in the clear" } else { "" };
        format!("{}{clear}", self.verdict)
    }

    fn touches(&self, wanted: &str) -> bool {
        [&self.from, &self.to].into_iter().any(|end| {
            end.name.as_deref() == Some(wanted)
                || wanted.parse::<IpAddr>().is_ok_and(|address| address == end.address)
        })
    }
}

/// Flows as a table.
pub(super) fn render(rows: &[FlowRow]) -> String {
    let now = now();
    let lines = rows.iter().map(|row| {
        vec![
            row.from.text(),
            row.to.text(),
            row.service.clone(),
            row.verdict_text(),
            row.rule.clone().unwrap_or_else(|| "-".into()),
            row.flows.to_string(),
            bytes(row.bytes),
            ago(row.last_seen.0, now),
            row.gateway.clone(),
        ]
    });
    table(
        &["FROM", "TO", "SERVICE", "VERDICT", "RULE", "FLOWS", "BYTES", "LAST SEEN", "SEEN BY"],
        lines,
    )
}

fn render_line(row: &FlowRow) -> String {
    format!(
        "{} {} -> {} {} {} ({} flows, {}, rule {}, seen by {})",
        row.last_seen,
        row.from.text(),
        row.to.text(),
        row.service,
        row.verdict_text(),
        row.flows,
        bytes(row.bytes),
        row.rule.as_deref().unwrap_or("none"),
        row.gateway
    )
}

/// `anteroom flows`.
pub(super) fn flows(
    args: &Flows,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let mut model = change::fetch(remote)?.model;
    let verdict = match args {
        Flows { dropped: true, .. } => Some("drop"),
        Flows { would_drop: true, .. } => Some("would-drop"),
        Flows { clear: true, .. } => Some("clear"),
        _ => None,
    };
    let mut query = EdgeQuery {
        member: None,
        verdict: verdict.map(str::to_owned),
        since: None,
        limit: Some(args.limit),
    };
    let filter = filter(args, &model, &mut query)?;
    let names = Names::of(&model);
    let mut rows = load(remote, &query, &model, &names, filter)?;
    if !args.follow {
        output.data(&rows, |rows| {
            if rows.is_empty() { "No traffic recorded that fits.".into() } else { render(rows) }
        })?;
        return Ok(Exit::Ok);
    }
    // What was printed of an edge, so that an edge is printed again only when it grew.
    let mut printed: BTreeMap<String, u64> = BTreeMap::new();
    let mut newest = 0;
    loop {
        rows.sort_by_key(|row| row.last_seen);
        for row in &rows {
            let key = format!(
                "{} {:?} {:?} {} {}",
                row.gateway, row.from, row.to, row.service, row.verdict
            );
            if printed.insert(key, row.packets) != Some(row.packets) {
                output.stream(row, render_line)?;
            }
            newest = newest.max(row.last_seen.0.0);
        }
        if printed.len() > 100_000 {
            printed.clear();
        }
        sleep(EVERY);
        // Edges are summed up to a moment: look again at those of the last one.
        query.since = newest.checked_sub(1);
        model = change::fetch(remote)?.model;
        rows = load(remote, &query, &model, &Names::of(&model), filter)?;
    }
}

fn load(
    remote: &mut Remote,
    query: &EdgeQuery,
    model: &Model,
    names: &Names,
    filter: Option<&str>,
) -> Result<Vec<FlowRow>, Error> {
    let edges = remote.edges(query)?;
    let rows = edges.iter().map(|edge| FlowRow::new(edge, model, names));
    Ok(rows.filter(|row| filter.is_none_or(|wanted| row.touches(wanted))).collect())
}

/// What the controller can't filter by: an address, or the name of an external.
fn filter<'a>(
    args: &'a Flows,
    model: &Model,
    query: &mut EdgeQuery,
) -> Result<Option<&'a str>, Error> {
    let Some(name) = args.name.as_deref() else { return Ok(None) };
    let client = model.client_named(name).map(|(id, _)| id);
    match client.map_or_else(|| model.find_device(name).map(|(id, _)| id), Ok) {
        Ok(id) => {
            query.member = Some(id);
            Ok(None)
        }
        Err(error) => {
            let external = anteroom_controller_core::policy::parse("policy", &model.policy)
                .is_ok_and(|policy| policy.externals.contains_key(name));
            if external || name.parse::<IpAddr>().is_ok() {
                Ok(Some(name))
            } else {
                Err(ChangeError::from(error).into())
            }
        }
    }
}
