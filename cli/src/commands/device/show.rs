//! `device show`.

use anteroom_controller_core::blast::{BlastRadius, Radii, services};
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::standing::Standing;
use anteroom_controller_core::surface::KEYS;
use anteroom_proto::api::EdgeQuery;
use anteroom_proto::inventory::Hint;
use serde::Serialize;

use super::GatewayNames;
use super::row::{DeviceRow, confirmed_row, notes, port, shown_addresses};
use crate::change::{self, ChangeError};
use crate::commands::cables::Ports;
use crate::commands::covered::{CoverageRow, judged};
use crate::commands::flows::{FlowRow, Known, render as render_flows};
use crate::commands::holdings::Holdings;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{count, facts, join, table};
use crate::output::time::{Moment, ago, now};
use crate::recognised::{explained, rows as rows_of};
use crate::remote::Remote;

/// How many of a device's flows `show` prints.
const FLOWS: u32 = 20;

#[derive(Debug, Serialize)]
struct DeviceDetail {
    #[serde(flatten)]
    row: DeviceRow,
    /// How far it could reach if it were compromised; nothing where the policy has problems, or it stands behind no approved gateway.
    blast_radius: Option<BlastRadius>,
    /// What it let be seen of itself.
    hints: Vec<HintRow>,
    /// Where it says that its maker's description of it is (RFC 8520).
    mud_urls: Vec<String>,
    flows: Vec<FlowRow>,
}

/// One thing that a device let be seen of itself.
#[derive(Debug, Serialize)]
struct HintRow {
    kind: &'static str,
    value: String,
    first_seen: Moment,
    last_seen: Moment,
}

impl HintRow {
    fn new(hint: &Hint) -> Self {
        Self {
            kind: hint.kind.word(),
            value: hint.value.clone(),
            first_seen: Moment(hint.first),
            last_seen: Moment(hint.last),
        }
    }
}

/// `anteroom device show`.
pub(in crate::commands) fn show(
    name: &str,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let (id, device) = model.find_device(name).map_err(ChangeError::from)?;
    let sightings = remote.sightings()?;
    let holdings = Holdings::new(&model, &sightings);
    let names = GatewayNames::load(&model, remote)?;
    let query = EdgeQuery { member: Some(id), limit: Some(FLOWS), ..EdgeQuery::default() };
    let edges = remote.edges(&query)?;
    let known = Known::of(model.clone());
    let (coverages, recognised) = judged(known.resolved(), remote)?;
    let coverage = coverages.get(&id).map(CoverageRow::new);
    let claims = rows_of(&recognised.device(id, device));
    let seen = (&Ports::of(&model), &holdings);
    let statuses = remote.gateways()?;
    let standing = Standing::of(&model, &statuses);
    let row = confirmed_row(id, device, &model, seen, known.surfaces(), &names);
    let row = row.with_told((id, device), &model, &statuses, &standing);
    let there = Resolved::new(&standing.apply(&model)).ok();
    let blast_radius = there.as_ref().and_then(|resolved| {
        Radii::one(resolved, known.surfaces(), services(&[resolved]), now(), id)
    });
    let detail = DeviceDetail {
        row: DeviceRow { coverage, claims, ..row },
        hints: recognised.hints(&device.attachment, Some(id)).iter().map(HintRow::new).collect(),
        mud_urls: recognised.mud_urls(&device.attachment, Some(id)),
        blast_radius,
        flows: edges.iter().map(|edge| FlowRow::new(edge, &known)).collect(),
    };
    output.data(&detail, render_detail)?;
    Ok(Exit::Ok)
}

fn render_detail(detail: &DeviceDetail) -> String {
    let (row, now) = (&detail.row, now());
    let maybe = |text: &Option<String>| text.clone().unwrap_or_default();
    let mode = match (&row.mode, &row.ordered, row.mode_since) {
        (Some(mode), Some(ordered), Some(since)) => {
            format!("{mode}, though revision {since} orders {ordered}")
        }
        (Some(mode), None, Some(since)) => format!("{mode}, since revision {since}"),
        _ => String::new(),
    };
    let port = port(row);
    let reach = detail.blast_radius.as_ref().map(|blast| {
        format!(
            "{} of members, {} of externals; {} on any port{}{}",
            count(blast.pairs, "service", "services"),
            blast.external_pairs,
            count(blast.unguarded, "member", "members"),
            match blast.neighbours {
                0 => String::new(),
                n => format!(", {n} of them because they share its port"),
            },
            match blast.life_support {
                0 => String::new(),
                1 => "; 1 of all members is life support".to_owned(),
                n => format!("; {n} of all members are life support"),
            }
        )
    });
    let mud = match detail.mud_urls.as_slice() {
        [] => String::new(),
        urls => {
            format!("{}; get it, look who signed it, and see `anteroom mud import`", join(urls))
        }
    };
    let said = &row.surface;
    let text = facts(&[
        ("Device", maybe(&row.name)),
        ("Id", maybe(&row.id)),
        ("Mode", mode),
        ("Behind", format!("{} {port}", row.gateway)),
        ("Site", maybe(&row.site)),
        ("MAC", row.mac.clone()),
        ("Addresses", shown_addresses(row)),
        ("Mask", row.prefix_len.map(|n| format!("/{n}")).unwrap_or_default()),
        ("Router", maybe(&row.router)),
        ("Criticality", maybe(&said.criticality.as_ref().map(ToString::to_string))),
        ("Sensitivity", maybe(&said.sensitivity.as_ref().map(ToString::to_string))),
        ("Owner", maybe(&said.owner.as_ref().map(ToString::to_string))),
        ("Location", maybe(&said.location.as_ref().map(ToString::to_string))),
        (
            "Labels",
            join(
                row.labels
                    .iter()
                    .filter(|(key, _)| !KEYS.contains(&key.as_str()))
                    .map(|(key, value)| format!("{key}={value}")),
            ),
        ),
        ("Confirmed", row.confirmed_at.map(|at| at.to_string()).unwrap_or_default()),
        ("Last seen", row.last_seen.map_or_else(|| "never".into(), |at| ago(at.0, now))),
        ("Coverage", row.coverage.as_ref().map(CoverageRow::long).unwrap_or_default()),
        ("Notes", notes(row)),
        ("If compromised, reaches", reach.unwrap_or_default()),
        ("Its maker's file, it says", mud),
    ]);
    let mut text = format!("{text}\n{}", explained(&row.claims));
    if !detail.hints.is_empty() {
        let lines = detail
            .hints
            .iter()
            .map(|hint| vec![hint.kind.to_owned(), hint.value.clone(), ago(hint.last_seen.0, now)]);
        text = format!("{text}\n{}\n", table(&["HINT", "VALUE", "LAST SEEN"], lines));
    }
    if detail.flows.is_empty() {
        format!("{text}\nNo traffic recorded.")
    } else {
        format!("{text}\n{}", render_flows(&detail.flows))
    }
}
