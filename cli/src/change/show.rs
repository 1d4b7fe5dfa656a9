//! The difference, for a person to judge before they sign.

use std::fmt::Write;

use anteroom_controller_core::lint::{Finding, Severity};
use anteroom_controller_core::plan::Plan;

use super::confirm::ID_DIGITS;
use crate::output::table::table;
use crate::output::time::{ago, now};

/// Most lines of each kind that people get to see.
const LINES: usize = 500;

/// What `plan` would do, in words and tables.
#[must_use]
pub fn render_plan(plan: &Plan) -> String {
    let id: String = plan.id.to_string().chars().take(ID_DIGITS).collect();
    let (base, next) = (plan.base.number, plan.base.number + 1);
    let mut text = format!("Revision {base} -> {next} (plan {id})\n");
    section(&mut text, "Changes", plan.changes.iter().map(|change| format!("  {change}")));
    section(&mut text, "Opens", plan.opened.iter().map(|what| format!("  + {what}")));
    section(&mut text, "Closes", plan.closed.iter().map(|what| format!("  - {what}")));
    if !plan.would_break.is_empty() {
        let now = now();
        let rows = plan.would_break.iter().take(LINES).map(|broken| {
            vec![
                broken.from.clone(),
                broken.to.clone(),
                broken.service.clone(),
                if broken.essential.is_some() { "ESSENTIAL".into() } else { "-".into() },
                broken.criticality.map_or_else(|| "-".into(), |word| word.to_string()),
                broken.flows.to_string(),
                ago(broken.last, now),
                broken.reason.clone(),
            ]
        });
        let rows = table(
            &["FROM", "TO", "SERVICE", "ESSENTIAL", "CRITICALITY", "FLOWS", "LAST SEEN", "WHY"],
            rows,
        );
        let _ = writeln!(text, "Would break (recorded traffic that passes today):\n{rows}");
        more(&mut text, plan.would_break.len());
    }
    section(&mut text, "Warnings", plan.warnings.iter().map(|finding| format!("  ! {finding}")));
    section(&mut text, "Refused", plan.refusals.iter().map(refusal));
    if plan.left_out > 0 {
        let _ = writeln!(text, "{} more lines are left out.", plan.left_out);
    }
    let names: Vec<&str> = plan.affected.iter().map(|gateway| gateway.name.as_str()).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let _ = write!(text, "Gateways affected: {names}");
    text
}

fn section(text: &mut String, title: &str, lines: impl ExactSizeIterator<Item = String>) {
    let all = lines.len();
    let lines: Vec<String> = lines.take(LINES).collect();
    if !lines.is_empty() {
        let _ = writeln!(text, "{title}:\n{}", lines.join("\n"));
        more(text, all);
    }
}

/// Says how many of `all` lines aren't shown.
fn more(text: &mut String, all: usize) {
    if all > LINES {
        let _ = writeln!(text, "  … and {} more: --json has them", all - LINES);
    }
}

fn refusal(finding: &Finding) -> String {
    let always = if finding.severity == Severity::Error { " (can't be forced)" } else { "" };
    format!("  x {finding}{always}")
}

/// Why `plan` stops here.
pub(super) fn refused(plan: &Plan, forced: bool) -> String {
    let lines: Vec<String> = plan.refusals.iter().map(refusal).collect();
    let forcible = plan.refusals.iter().all(|finding| finding.severity == Severity::Refusal);
    let end = if forcible && !forced {
        "\nNothing was changed. If it must be all the same: --force --reason \"…\""
    } else {
        "\nNothing was changed."
    };
    format!("the plan refuses this:\n{}{end}", lines.join("\n"))
}
