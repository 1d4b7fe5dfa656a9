//! `flows`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use anteroom_controller_core::model::Model;
use anteroom_controller_core::names::Names;
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::simulate::live::of_edge;
use anteroom_controller_core::surface::{Criticality, Surface, Surfaces};
use anteroom_proto::api::{Edge, EdgeQuery};
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::{DropReason, Verdict};
use serde::Serialize;

use crate::args::Flows;
use crate::change::{self, ChangeError};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{bytes, table};
use crate::output::time::{Moment, ago, now};
use crate::recorded::{Only, each_of};
use crate::remote::Remote;

/// How often `--follow` looks.
const EVERY: Duration = Duration::from_secs(1);
/// Edges that a controller gives at one go, the newest first.
const PAGE: u32 = 10_000;
/// Most rows that `--follow` prints of one look, the newest.
const MOST_ROWS: usize = 100_000;

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
    criticality: Option<Criticality>,
    #[serde(skip)]
    surface: Surface,
}

impl End {
    fn new(kind: Kind, name: Option<String>, address: IpAddr, surface: &Surface) -> Self {
        let criticality = surface.criticality();
        Self { kind, name, address, criticality, surface: surface.clone() }
    }

    fn text(&self) -> String {
        let life = if self.surface.is_life_support() { " (life support)" } else { "" };
        format!("{}{life}", self.called())
    }

    fn called(&self) -> String {
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
    /// Why the policy in force would drop it, of a device in observe, where it would.
    would_drop: Option<DropReason>,
    /// Whether the packets went on unprotected.
    in_the_clear: bool,
    /// Whether messages of its service name patients, as a rule.
    patient_data: bool,
    rule: Option<String>,
    flows: u64,
    packets: u64,
    bytes: u64,
    first_seen: Moment,
    last_seen: Moment,
    gateway: String,
    local_mac: String,
}

/// A model, and what is looked up in it for each edge.
pub(super) struct Known {
    model: Model,
    names: Names,
    surfaces: Surfaces,
    /// None where the policy has problems.
    resolved: Option<Resolved>,
    /// What is known of an address that isn't one of IPv4.
    nothing: Surface,
    /// By which moment rules are judged.
    now: UnixMillis,
}

impl Known {
    pub(super) fn of(model: Model) -> Self {
        let resolved = Resolved::new(&model).ok();
        let surfaces = resolved.as_ref().map_or_else(|| Surfaces::of_labels(&model), Surfaces::of);
        let names = Names::of(&model);
        Self { names, surfaces, resolved, model, nothing: Surface::default(), now: now() }
    }

    /// The model with its policy; none where the policy has problems.
    pub(super) const fn resolved(&self) -> Option<&Resolved> {
        self.resolved.as_ref()
    }

    /// How much hangs on each device.
    pub(super) const fn surfaces(&self) -> &Surfaces {
        &self.surfaces
    }

    /// Why the policy in force would drop an edge of an observed device.
    fn would_drop(&self, edge: &Edge) -> Option<DropReason> {
        of_edge(self.resolved.as_ref()?, &self.names, edge, self.now)
    }

    /// The members at both ends of an edge, the reporting gateway's own first. Traffic from before a device was confirmed bears no id.
    fn members(&self, edge: &Edge) -> [Option<MemberId>; 2] {
        let own = edge.member.or_else(|| self.names.member_of(edge.gateway, edge.mac));
        [(own, edge.local), (edge.remote_member, edge.remote)].map(|(id, address)| {
            id.filter(|id| self.model.member_name(*id).is_some())
                .or_else(|| self.names.member_at(edge.gateway, address))
        })
    }

    fn surface(&self, member: Option<MemberId>, address: IpAddr) -> &Surface {
        match (member, address) {
            (Some(id), _) => self.surfaces.member(id),
            (None, IpAddr::V4(address)) => self.surfaces.address(address),
            (None, IpAddr::V6(_)) => &self.nothing,
        }
    }

    fn end(&self, gateway: GatewayId, member: Option<MemberId>, address: IpAddr) -> End {
        let surface = self.surface(member, address);
        if let Some(id) = member {
            let client = self.model.clients.contains_key(&id);
            let kind = if client { Kind::Client } else { Kind::Device };
            return End::new(kind, Some(self.names.member(id)), address, surface);
        }
        let name = self.names.address(gateway, address);
        if name == address.to_string() {
            End::new(Kind::Outside, None, address, surface)
        } else {
            End::new(Kind::External, Some(name), address, surface)
        }
    }
}

impl FlowRow {
    /// `edge` with the names that `known` has for its ends.
    pub(super) fn new(edge: &Edge, known: &Known) -> Self {
        let names = &known.names;
        let [own, far] = known.members(edge);
        let local = known.end(edge.gateway, own, edge.local);
        let remote = known.end(edge.gateway, far, edge.remote);
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
            would_drop: known.would_drop(edge),
            in_the_clear,
            patient_data: names.patient_data(edge.protocol, edge.port),
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
        let mut text = self.verdict.to_string();
        if self.in_the_clear && self.patient_data {
            text.push_str(", patient data in the clear");
        } else if matches!(self.verdict, Verdict::WouldDrop(_)) {
            text.push_str(", in the clear");
        } else if self.patient_data {
            text.push_str(", patient data");
        }
        if let Some(reason) = self.would_drop {
            text.push_str(&format!("; policy would drop it ({reason})"));
        }
        text
    }

    fn ends(&self) -> [&Surface; 2] {
        [&self.from.surface, &self.to.surface]
    }

    fn touches(&self, wanted: &str) -> bool {
        [&self.from, &self.to].into_iter().any(|end| {
            end.name.as_deref() == Some(wanted)
                || wanted.parse::<IpAddr>().is_ok_and(|address| address == end.address)
        })
    }
}

/// What the controller can't choose by.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    args: &'a Flows,
    /// An address, or the name of an external.
    touching: Option<&'a str>,
}

impl Wanted<'_> {
    /// The row of an edge that is wanted. Of the others, which may be millions, none is made.
    fn row(&self, edge: &Edge, known: &Known) -> Option<FlowRow> {
        let [own, far] = known.members(edge);
        let ends = [known.surface(own, edge.local), known.surface(far, edge.remote)];
        let would_drop =
            || matches!(edge.verdict, Verdict::WouldDrop(_)) || known.would_drop(edge).is_some();
        if !self.args.surface.fits_either(ends) || (self.args.would_drop && !would_drop()) {
            return None;
        }
        let row = FlowRow::new(edge, known);
        self.touching.is_none_or(|touching| row.touches(touching)).then_some(row)
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
    let mut known = Known::of(change::fetch(remote)?.model);
    let verdict = match args {
        Flows { dropped: true, .. } => Some("drop"),
        // Of devices in observe it isn't recorded, but worked out here.
        Flows { would_drop: true, .. } => None,
        Flows { clear: true, .. } => Some("clear"),
        _ => None,
    };
    let mut query = EdgeQuery {
        member: None,
        verdict: verdict.map(str::to_owned),
        since: None,
        limit: Some(args.limit),
    };
    let wanted = Wanted { args, touching: filter(args, &known.model, &mut query)? };
    // What only this end can tell is chosen from all that is recorded, not from the newest.
    let mut rows = if args.would_drop || args.surface.chooses() || wanted.touching.is_some() {
        let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
        choose(remote, &query, &known, wanted, limit, output)?
    } else {
        load(remote, &query, &known, wanted)?
    };
    if !args.follow {
        args.surface.sort(&mut rows, FlowRow::ends);
        output.data(&rows, |rows| {
            if rows.is_empty() { "No traffic recorded that fits.".into() } else { render(rows) }
        })?;
        return Ok(Exit::Ok);
    }
    // What was printed of an edge, so that an edge is printed again only when it grew.
    let mut printed: BTreeMap<String, u64> = BTreeMap::new();
    let mut newest = rows.iter().map(|row| row.last_seen.0.0).max().unwrap_or_default();
    loop {
        rows.sort_by_key(|row| row.last_seen);
        for row in &rows {
            let key = format!(
                "{} {:?} {:?} {:?} {:?} {} {}",
                row.gateway,
                row.from.name,
                row.from.address,
                row.to.name,
                row.to.address,
                row.service,
                row.verdict
            );
            if printed.insert(key, row.packets) != Some(row.packets) {
                output.stream(row, render_line)?;
            }
        }
        if printed.len() > MOST_ROWS {
            printed.clear();
        }
        sleep(EVERY);
        // Edges are summed up to a moment: look again at those of the last one.
        query.since = newest.checked_sub(1);
        known = Known::of(change::fetch(remote)?.model);
        rows = grown(remote, &query, &known, wanted, &mut newest, output)?;
    }
}

/// What is wanted of all edges that grew since `query.since`, and in `newest` when the last of them did, wanted or not.
fn grown(
    remote: &mut Remote,
    query: &EdgeQuery,
    known: &Known,
    wanted: Wanted<'_>,
    newest: &mut u64,
    output: &mut Output<'_>,
) -> Result<Vec<FlowRow>, Error> {
    let edges = remote.edges(&EdgeQuery { limit: Some(PAGE), ..query.clone() })?;
    *newest = edges.iter().map(|edge| edge.last.0).fold(*newest, u64::max);
    if edges.len() < PAGE as usize {
        return Ok(edges.iter().filter_map(|edge| wanted.row(edge, known)).collect());
    }
    // More than one page of them grew: those behind it are found in the whole history alone.
    choose(remote, query, known, wanted, MOST_ROWS, output)
}

fn load(
    remote: &mut Remote,
    query: &EdgeQuery,
    known: &Known,
    wanted: Wanted<'_>,
) -> Result<Vec<FlowRow>, Error> {
    let edges = remote.edges(query)?;
    Ok(edges.iter().filter_map(|edge| wanted.row(edge, known)).collect())
}

/// The newest of all recorded edges that are wanted, `limit` at most.
fn choose(
    remote: &mut Remote,
    query: &EdgeQuery,
    known: &Known,
    wanted: Wanted<'_>,
    limit: usize,
    output: &mut Output<'_>,
) -> Result<Vec<FlowRow>, Error> {
    let verdicts: &[&str] = match query.verdict.as_deref() {
        Some("drop") => &["drop"],
        Some("clear") => &["clear"],
        // What was let through may be what the policy in force would drop.
        _ if wanted.args.would_drop => &["would-drop", "clear", "local"],
        _ => &[],
    };
    let only = Only { member: query.member, verdicts };
    let mut rows: Vec<FlowRow> = Vec::new();
    let newest = |rows: &mut Vec<FlowRow>| {
        rows.sort_by_key(|row| Reverse(row.last_seen));
        rows.truncate(limit);
    };
    let told = each_of(remote, &only, &mut |edge| {
        let own = edge.member.or_else(|| known.names.member_of(edge.gateway, edge.mac));
        let of_member = query.member.is_none_or(|id| [own, edge.remote_member].contains(&Some(id)));
        let of_kind = match query.verdict.as_deref() {
            Some("drop") => matches!(edge.verdict, Verdict::Drop(_)),
            Some("clear") => matches!(edge.verdict, Verdict::Clear | Verdict::ClearTunnelDown),
            _ => true,
        };
        let is_new = query.since.is_none_or(|since| edge.last.0 > since);
        if !(of_member && of_kind && is_new) {
            return;
        }
        rows.extend(wanted.row(&edge, known));
        if rows.len() >= limit.saturating_mul(2) {
            newest(&mut rows);
        }
    })?;
    let Some(told) = told else {
        // A controller from before it kept a history: the newest are all that it tells.
        return load(remote, query, known, wanted);
    };
    told.warn(output)?;
    newest(&mut rows);
    Ok(rows)
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
