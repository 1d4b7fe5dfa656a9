//! Asking before anything is signed.

use anteroom_controller_core::plan::Plan;

use super::Request;
use crate::error::Error;
use crate::output::Output;

/// What stands for "yes, I mean it".
#[derive(Debug, Clone)]
pub enum Confirm {
    /// A yes, or `--yes`.
    Yes,
    /// Each of these names, typed or given with `--confirm`: care may be cut off.
    Names {
        /// What must be named.
        wanted: Vec<String>,
        /// What was given on the command line.
        given: Vec<String>,
    },
}

/// Makes sure that there is a reason where one is needed, by asking for it where a person can be asked.
pub(super) fn reason(request: &mut Request, output: &mut Output<'_>) -> Result<(), Error> {
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

/// Asks whether to go on with `plan`, unless the command line has said so already.
pub(super) fn ask(request: &Request, plan: &Plan, output: &mut Output<'_>) -> Result<(), Error> {
    let unchanged = || Error::Usage("not confirmed. Nothing was changed.".into());
    match &request.confirm {
        Confirm::Yes if request.args.yes => Ok(()),
        Confirm::Yes if !output.is_interactive() => Err(Error::Usage(format!(
            "this changes what {} do, and there is no terminal to ask on: add --yes if you mean it. Nothing was changed.",
            crate::output::table::count(plan.affected.len(), "gateway does", "gateways")
                .replace("does do", "does")
        ))),
        Confirm::Yes => match output.ask("Go on? Type yes:")?.to_ascii_lowercase().as_str() {
            "yes" | "y" => Ok(()),
            _ => Err(unchanged()),
        },
        Confirm::Names { wanted, given } => {
            let missing: Vec<&String> =
                wanted.iter().filter(|name| !given.contains(name)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if !output.is_interactive() {
                return Err(Error::Usage(format!(
                    "this can cut off care, so --yes isn't enough: add --confirm {} if you mean it. Nothing was changed.",
                    wanted.join(",")
                )));
            }
            for name in missing {
                let answer = output
                    .ask(&format!("This can cut off care. Type the name {name} to go on:"))?;
                if answer != *name {
                    return Err(unchanged());
                }
            }
            Ok(())
        }
    }
}
