//! `policy plan|apply|rollback`.

use std::cmp::Reverse;
use std::path::Path;

use anteroom_controller_core::plan::{Plan, WouldBreak};

use super::policy::{replace, unified};
use crate::args::{ChangeArgs, SortBy, SurfaceArgs};
use crate::change::{self, ChangeError, Request, fetch_revision, render_plan};
use crate::error::{Error, Exit};
use crate::home::Home;
use crate::output::Output;
use crate::remote::Remote;

/// `anteroom policy plan`.
pub(super) fn plan(
    path: &Path,
    text: &str,
    out: Option<&Path>,
    wanted: &SurfaceArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    by_criticality_alone(wanted)?;
    let current = change::fetch(remote)?;
    let mut model = current.model.clone();
    let file = path.display().to_string();
    model.set_policy(&file, text).map_err(ChangeError::from)?;
    let plan = change::plan_now(remote, &current, &model)?;
    let difference = unified(
        &current.model.policy,
        &model.policy,
        &format!("revision {}", current.base.number),
        &file,
    );
    let shown = Plan { would_break: chosen(&plan.would_break, wanted), ..plan.clone() };
    output.data(&shown, |shown| {
        if shown.is_empty() && difference.is_empty() {
            return "Nothing would change.".into();
        }
        format!("{difference}\n{}", render_plan(shown))
    })?;
    if let Some(out) = out {
        let json = serde_json::to_string_pretty(&plan).map_err(|error| Error::file(out, error))?;
        replace(out, &format!("{json}\n"))?;
        output.note(format_args!(
            "\nPlan written to {}. To put it into force: anteroom policy apply {} --reason \"…\"",
            out.display(),
            out.display()
        ))?;
    }
    Ok(if plan.refusals.is_empty() { Exit::Ok } else { Exit::Refused })
}

/// A plan knows of the ends of what it would break how critical they are, and no more.
fn by_criticality_alone(wanted: &SurfaceArgs) -> Result<(), Error> {
    let SurfaceArgs { sensitivity, owner, location, sort, .. } = wanted;
    let other = !sensitivity.is_empty() || owner.is_some() || location.is_some();
    if other || sort.is_some_and(|by| by != SortBy::Criticality) {
        return Err(Error::Usage(
            "a plan goes by criticality alone: `anteroom policy simulate` takes the others".into(),
        ));
    }
    Ok(())
}

/// Those of the lines that would break that are asked for.
fn chosen(lines: &[WouldBreak], wanted: &SurfaceArgs) -> Vec<WouldBreak> {
    let fits = |line: &&WouldBreak| wanted.fits_criticality(line.criticality);
    let mut lines: Vec<WouldBreak> = lines.iter().filter(fits).cloned().collect();
    if wanted.sort.is_some() {
        lines.sort_by_key(|line| Reverse(line.criticality));
    }
    lines
}

/// `anteroom policy apply`.
pub(super) fn apply(
    path: &Path,
    text: &str,
    force: bool,
    args: ChangeArgs,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let file = path.display().to_string();
    // TOML never begins with a brace, and a plan always does.
    let plan: Option<Plan> = if text.trim_start().starts_with('{') {
        let plan = serde_json::from_str(text).map_err(|error| {
            Error::file(path, format!("not a plan as `anteroom policy plan --out` writes it: {error}. Nothing was changed"))
        })?;
        Some(plan)
    } else {
        anteroom_controller_core::policy::parse(&file, text).map_err(ChangeError::from)?;
        None
    };
    let policy = plan.as_ref().map_or(text, |plan| plan.policy.as_str()).to_owned();
    let mut request = Request::new("policy apply", file.as_str(), args);
    request.force = force;
    request.reason_needed = true;
    request.plan = plan;
    change::make(&mut Remote::open(home)?, output, request, &|model, _| {
        model.set_policy(&file, &policy)
    })
}

/// `anteroom policy rollback`.
pub(super) fn rollback(
    number: u64,
    force: bool,
    args: ChangeArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let (_, model) = fetch_revision(remote, number)?;
    let name = format!("revision {number}");
    let mut request = Request::new("policy rollback", format!("to {name}"), args);
    request.force = force;
    request.reason_needed = true;
    change::make(remote, output, request, &|current, _| current.set_policy(&name, &model.policy))
}
