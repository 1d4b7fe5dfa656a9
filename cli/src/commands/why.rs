//! `why`.

use std::fmt::Write;

use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::why::{Answer, Recorded, WhyAnswer, explain};
use anteroom_proto::api::EdgeQuery;

use crate::args::Why;
use crate::change::{ChangeError, Current};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::facts;
use crate::output::time::{ago, now};
use crate::remote::Remote;
use crate::standing::current_as_it_is;

/// Most edges that are searched for a recorded drop.
const EDGES: u32 = 10_000;

/// `anteroom why`.
pub(super) fn why(args: &Why, remote: &mut Remote, output: &mut Output<'_>) -> Result<Exit, Error> {
    let Current { model, signed_at, .. } = current_as_it_is(remote, output)?;
    let edges = remote.edges(&EdgeQuery { limit: Some(EDGES), ..EdgeQuery::default() })?;
    let recorded = Recorded { edges: &edges, signed_at };
    let resolved = Resolved::new(&model).map_err(ChangeError::from)?;
    let answer = explain(&resolved, &args.from, &args.to, &args.service, &recorded, now())
        .map_err(|error| Error::Other(error.to_string()))?;
    output.data(&answer, render)?;
    Ok(Exit::Ok)
}

fn render(answer: &WhyAnswer) -> String {
    let mut text = String::new();
    for one in &answer.answers {
        let _ = writeln!(text, "{}", render_one(one));
    }
    if answer.looked_at > answer.answers.len() {
        let _ = writeln!(
            text,
            "{} pairs and ports were looked at; those that differ are shown.",
            answer.looked_at
        );
    }
    text
}

fn render_one(answer: &Answer) -> String {
    let end = |name: &str, mode: &Option<String>| match mode {
        Some(mode) => format!("{name} ({mode})"),
        None => format!("{name} (no device: an address, not an identity)"),
    };
    let last = answer.last_drop.as_ref().map(|drop| {
        format!(
            "{}, {} at {}, {} flows",
            drop.verdict,
            ago(drop.at, now()),
            drop.gateway,
            drop.flows
        )
    });
    let clear = if answer.verdict.starts_with("would-drop") { ", in the clear" } else { "" };
    let alike = match answer.alike {
        0 => String::new(),
        more => format!(", and {more} more alike"),
    };
    let mut text = format!("{} -> {}: {}{alike}\n", answer.from, answer.to, answer.service);
    text.push_str(&facts(&[
        ("  Verdict", format!("{}{clear}", answer.verdict)),
        ("  Rule", answer.rule.clone().unwrap_or_else(|| "none".into())),
        ("  From", end(&answer.from, &answer.from_mode)),
        ("  To", end(&answer.to, &answer.to_mode)),
        ("  Why", answer.explanation.clone()),
        ("  Last drop", last.unwrap_or_else(|| "none recorded".into())),
        ("  But", answer.contradiction.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("  Next step", answer.next_step.clone().unwrap_or_default()),
    ]));
    if let Some(snippet) = &answer.snippet {
        let _ = writeln!(text, "\n{}", snippet.trim_end());
    }
    text
}
