//! `blast`: how far a device could reach if it fell.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use anteroom_controller_core::blast::{BlastRadius, Radii, Spread, enforced, services};
use anteroom_controller_core::edit::EditError;
use anteroom_controller_core::problem::did_you_mean;
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::surface::{Criticality, Surface, Surfaces};
use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;
use serde::Serialize;

use super::policy::read;
use crate::args::BlastArgs;
use crate::change::ChangeError;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{count, table};
use crate::output::time::now;
use crate::remote::Remote;
use crate::standing::model_as_it_is;

/// What is compared, and how far one could reach under each.
#[derive(Debug, Serialize)]
struct Shown {
    /// Whose: a member's or segment's name, or none for the hospital.
    of: Option<String>,
    /// Services that rules name: a member that nothing holds one back from counts so often.
    services: usize,
    /// Devices on which a life may hang, in the whole hospital.
    life_support: usize,
    /// `today`, `policy`, and the draft's file.
    under: Vec<String>,
    /// All that were looked at together, under each of these.
    together: Vec<Together>,
    /// Those that reach furthest.
    devices: Vec<Row>,
    left_out: usize,
}

#[derive(Debug, Serialize)]
struct Together {
    members: usize,
    /// Members that aren't counted: nobody knows where they are.
    unknown: usize,
    reached: usize,
    average: usize,
    external_pairs: usize,
    worst: Option<String>,
    worst_reached: usize,
}

#[derive(Debug, Serialize)]
struct Row {
    device: String,
    /// None for a client.
    mode: Option<String>,
    criticality: Option<Criticality>,
    /// Under each of what is compared; none where nobody knows where it is.
    radius: Vec<Option<BlastRadius>>,
    #[serde(skip)]
    surface: Surface,
}

/// `anteroom blast`.
pub(super) fn blast(
    args: &BlastArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let draft = args.policy.as_deref().map(|path| Ok((path, read(path)?)));
    let draft = draft.transpose().map_err(|error: Error| error)?;
    let model = model_as_it_is(remote, output)?;
    let today = Resolved::new(&model).map_err(ChangeError::from)?;
    let policy = enforced(&today, "policy", &model.policy).map_err(ChangeError::from)?;
    let mut under = vec!["today".to_owned(), "policy".to_owned()];
    let mut compared = vec![today, policy];
    if let Some((path, text)) = draft {
        let file = path.display().to_string();
        compared.push(enforced(&compared[0], &file, &text).map_err(ChangeError::from)?);
        under.push(file);
    }
    let newest = compared.last().unwrap_or(&compared[0]);
    let of = args.name.as_deref().map(|name| members(newest, name)).transpose()?;
    // Each column goes by its own policy's words; who is asked for, and in which order, by the newest's.
    let surfaces = Surfaces::of(newest);
    let all = services(&compared.iter().collect::<Vec<_>>());
    let at = now();
    let radii: Vec<Radii> =
        compared.iter().map(|one| Radii::of(one, &Surfaces::of(one), all, at)).collect();
    let ids: Vec<MemberId> = of.map_or_else(
        || model.devices.keys().chain(model.clients.keys()).copied().collect(),
        |found| found.into_iter().collect(),
    );
    let ids: Vec<MemberId> =
        ids.into_iter().filter(|id| args.surface.fits(surfaces.member(*id))).collect();
    let name =
        |id: MemberId| model.member_name(id).map_or_else(|| id.to_string(), ToString::to_string);
    let together = radii.iter().map(|radii| {
        let spread = radii.spread(ids.iter().copied());
        let average = spread.average();
        let Spread { members, unknown, reached, external_pairs, worst } = spread;
        Together {
            members,
            unknown,
            reached,
            average,
            external_pairs,
            worst: worst.map(|(id, _)| name(id)),
            worst_reached: worst.map_or(0, |(_, found)| found.reached),
        }
    });
    let together = together.collect();
    let mut devices: Vec<Row> = ids
        .iter()
        .map(|id| Row {
            device: name(*id),
            mode: model.devices.get(id).map(|device| device.mode.to_string()),
            criticality: surfaces.member(*id).criticality(),
            radius: radii.iter().map(|radii| radii.get(*id)).collect(),
            surface: surfaces.member(*id).clone(),
        })
        .collect();
    // What reaches as far as another today is told apart by what a policy leaves it.
    let reach = |found: &BlastRadius| (found.reached, found.external_pairs);
    devices.sort_by_cached_key(|row| {
        let radii = row.radius.iter().map(|found| found.as_ref().map(reach));
        (Reverse(radii.collect::<Vec<_>>()), row.device.clone())
    });
    args.surface.sort(&mut devices, |row| [&row.surface, &row.surface]);
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let left_out = devices.len().saturating_sub(limit);
    devices.truncate(limit);
    let lives = model.devices.keys().filter(|id| surfaces.member(**id).is_life_support());
    let shown = Shown {
        of: args.name.clone(),
        services: all,
        life_support: lives.count(),
        under,
        together,
        devices,
        left_out,
    };
    output.data(&shown, render)?;
    Ok(Exit::Ok)
}

/// The member, or the members of the segment, with this name.
fn members(resolved: &Resolved, name: &str) -> Result<BTreeSet<MemberId>, Error> {
    if let Some(id) = resolved.model.member_named(name) {
        return Ok([id].into());
    }
    let segment = resolved.policy.segments.keys().any(|segment| segment.as_str() == name);
    if let Some(side) = resolved.side_named(name).filter(|_| segment) {
        return Ok(resolved.side(side).members.iter().copied().collect());
    }
    let model = &resolved.model;
    let known = model.devices.values().map(|device| device.name.as_str());
    let known = known
        .chain(model.clients.values().map(|client| client.name.as_str()))
        .chain(resolved.policy.segments.keys().map(Name::as_str));
    let suggestion = did_you_mean(name, known);
    let name = name.chars().take(80).collect();
    let unknown = EditError::Unknown { kind: "device, client or segment", name, suggestion };
    Err(ChangeError::from(unknown).into())
}

fn render(shown: &Shown) -> String {
    let whose = shown.of.as_deref().unwrap_or("The hospital");
    let rows = shown.under.iter().zip(&shown.together).map(|(under, found)| {
        vec![
            heading(under),
            found.reached.to_string(),
            found.average.to_string(),
            found
                .worst
                .as_ref()
                .map_or_else(|| "-".into(), |name| format!("{name}: {}", found.worst_reached)),
            found.external_pairs.to_string(),
        ]
    });
    let members = shown.together.first().map_or(0, |found| found.members);
    let unknown = shown.together.first().map_or(0, |found| found.unknown);
    let sums = table(&["UNDER", "PAIRS", "OF ONE, ON AVERAGE", "FURTHEST", "OF EXTERNALS"], rows);
    let mut text = format!(
        "{whose}: {}. Pairs of a member and a service that one of them reaches if it falls; whom nothing holds it back from counts \
         with each of {}.\n\n{sums}\n",
        count(members, "member", "members"),
        count(shown.services, "service", "services"),
    );
    let mut headers = vec!["DEVICE".to_owned(), "CRITICALITY".into(), "MODE".into()];
    headers.extend(shown.under.iter().map(|under| heading(under).to_uppercase()));
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let rows = shown.devices.iter().map(|row| {
        let criticality = match row.criticality {
            Some(Criticality::LifeSupport) => "LIFE SUPPORT".to_owned(),
            Some(word) => word.to_string(),
            None => "-".into(),
        };
        let mut cells =
            vec![row.device.clone(), criticality, row.mode.clone().unwrap_or_else(|| "-".into())];
        cells
            .extend(row.radius.iter().map(|found| found.as_ref().map_or_else(|| "?".into(), cell)));
        cells
    });
    if !shown.devices.is_empty() {
        text.push_str(&format!("\n{}\n", table(&headers, rows)));
    }
    if shown.left_out > 0 {
        text.push_str(&format!("and {} more: --limit\n", shown.left_out));
    }
    text.push_str(&format!(
        "\n\"policy\" is what is in force, were every device in enforce. {} in the hospital.",
        count(shown.life_support, "life-support device", "life-support devices")
    ));
    if unknown > 0 {
        text.push_str(&format!(
            "\n{} behind no approved gateway: nobody knows where (?), and nothing here counts them.",
            count(unknown, "more device is", "more devices are")
        ));
    }
    if let Some(file) = shown.under.get(2) {
        text.push_str(&format!(
            "\nSegments and criticality are shown as {file} has them; each column counts what is life support by its own policy."
        ));
    }
    text
}

fn heading(under: &str) -> String {
    match under {
        "policy" => "policy enforced".into(),
        "today" => "today".into(),
        file => format!("{file} enforced"),
    }
}

/// A radius in few words.
fn cell(found: &BlastRadius) -> String {
    let mut more = Vec::new();
    if found.unguarded > 0 {
        more.push(format!("{} on any port", count(found.unguarded, "member", "members")));
    }
    if found.neighbours > 0 {
        more.push(format!("{} on its port", found.neighbours));
    }
    if found.life_support > 0 {
        more.push(format!("{} life support", found.life_support));
    }
    if more.is_empty() {
        found.reached.to_string()
    } else {
        format!("{} ({})", found.reached, more.join(", "))
    }
}
