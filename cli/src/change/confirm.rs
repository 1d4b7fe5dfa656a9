//! Asking before anything is signed.

use anteroom_controller_core::plan::Plan;

use super::Request;
use crate::error::Error;
use crate::output::Output;
use crate::output::table::count;

/// What stands for "yes, I mean it".
#[derive(Debug, Clone)]
pub enum Confirm {
    /// A yes, or `--yes`; the plan's id as well where recorded traffic would break.
    Yes,
    /// Each of these names, typed or given with `--confirm`: care may be cut off.
    Names(Vec<String>),
}

/// How many digits of a plan's id people are shown and asked for.
pub(super) const ID_DIGITS: usize = 8;

/// Makes sure that there is a reason where one is needed, by asking for it where a person can be asked.
pub(crate) fn reason(request: &mut Request, output: &mut Output<'_>) -> Result<(), Error> {
    let blank = request.args.reason.as_deref().is_some_and(|reason| reason.trim().is_empty());
    if blank || (request.args.reason.is_none() && request.reason_needed) {
        if blank || !output.is_interactive() {
            return Err(Error::Usage(format!(
                "{} wants a reason for the audit log: add --reason \"…\". Nothing was changed.",
                request.action
            )));
        }
        let answer = output.ask("Reason, for the audit log:")?;
        if answer.is_empty() {
            return Err(Error::Usage(
                "a reason is wanted for the audit log. Nothing was changed.".into(),
            ));
        }
        request.args.reason = Some(answer);
    }
    Ok(())
}

/// Whether the command line confirms `plan` by its id, or by more of it than is shown.
///
/// # Errors
/// When it confirms another plan: whoever names one means that one, whatever else they say.
pub(super) fn by_id(request: &Request, plan: &Plan) -> Result<bool, Error> {
    let is_id = |word: &&String| {
        word.len() >= ID_DIGITS
            && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    // Names are asked for by themselves, and one may look like an id.
    if matches!(request.confirm, Confirm::Names(_)) {
        return Ok(false);
    }
    let given: Vec<&String> = request.args.confirm.iter().filter(is_id).collect();
    let id = plan.id.to_string();
    let Some(other) = given.first() else { return Ok(false) };
    if given.iter().any(|given| id.starts_with(given.as_str())) {
        return Ok(true);
    }
    Err(Error::Refused(format!(
        "this is plan {id:.ID_DIGITS$}, and not {other}, which --confirm names: something has changed since, or another change \
         was asked for. Look at it as it is now, and confirm it with --confirm {id:.ID_DIGITS$}. Nothing was changed."
    )))
}

/// Asks whether to go on with `plan`, unless the command line has said so already.
pub(super) fn ask(request: &Request, plan: &Plan, output: &mut Output<'_>) -> Result<(), Error> {
    if by_id(request, plan)? {
        return Ok(());
    }
    match &request.confirm {
        Confirm::Names(names) => {
            let question =
                |name: &str| format!("This can cut off care. Type the name {name} to go on:");
            wanted(names, &request.args.confirm, question, output)
        }
        // Who applies a plan has had it before their eyes.
        Confirm::Yes if !plan.would_break.is_empty() && request.plan.is_none() => {
            let id: String = plan.id.to_string().chars().take(ID_DIGITS).collect();
            let question = |id: &str| {
                format!("Recorded traffic would break. Type the plan's id {id} to go on:")
            };
            wanted(&[id], &request.args.confirm, question, output)
        }
        Confirm::Yes if request.args.yes => Ok(()),
        Confirm::Yes if !output.is_interactive() => Err(Error::Usage(format!(
            "this changes something at {}, and there is no terminal to ask on: add --yes if you mean it. Nothing was changed.",
            count(plan.affected.len(), "gateway", "gateways")
        ))),
        Confirm::Yes => match output.ask("Go on? Type yes:")?.to_ascii_lowercase().as_str() {
            "yes" | "y" => Ok(()),
            _ => Err(not_confirmed()),
        },
    }
}

/// Each of `words` must have been given, or is asked for.
fn wanted(
    words: &[String],
    given: &[String],
    question: impl Fn(&str) -> String,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let missing: Vec<&String> = words.iter().filter(|word| !given.contains(word)).collect();
    if !missing.is_empty() && !output.is_interactive() {
        return Err(Error::Usage(format!(
            "this can cut off care, so --yes isn't enough: add --confirm {} if you mean it. Nothing was changed.",
            words.join(",")
        )));
    }
    for word in missing {
        if output.ask(&question(word))? != *word {
            return Err(not_confirmed());
        }
    }
    Ok(())
}

fn not_confirmed() -> Error {
    Error::Usage("not confirmed. Nothing was changed.".into())
}
