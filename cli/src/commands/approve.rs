//! `approve`: the second of two operators.

use std::collections::BTreeSet;

use anteroom_controller_core::approvals::Lacking;
use anteroom_controller_core::edit::EditError;
use anteroom_controller_core::model::Model;
use anteroom_proto::approval::Place;
use anteroom_proto::key::PublicKey;

use crate::args::Approve;
use crate::change::{self, ChangeError, Confirm, Proposal, Request, approval, lacking, place};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::join;
use crate::remote::Remote;

/// What stands for every kind of proposal in the audit log.
const ACTION: &str = "approve";

/// `anteroom approve`.
pub(super) fn approve(
    args: Approve,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let Approve { file, force, change: mut words } = args;
    let proposal = Proposal::read(&file)?;
    let refuse =
        |problem: String| Err(Error::file(&file, format!("{problem}. Nothing was changed")));
    change::not_proposed(&words)?;
    let current = change::fetch(remote)?;
    if proposal.organisation != current.model.organisation {
        return refuse("it is another organisation's".into());
    }
    if proposal.base != current.base {
        return refuse(format!(
            "it stands on revision {}, and {} is in force by now: have it proposed anew",
            proposal.base.number, current.base.number
        ));
    }
    let mut model = match Model::decode(&proposal.model.0) {
        Ok(model) if model.organisation == current.model.organisation => model,
        Ok(_) => return refuse("its model is another organisation's".into()),
        Err(error) => return refuse(format!("its model can't be read: {error}")),
    };
    let number = current.base.number + 1;
    let at = place(remote, number);
    let words_signed =
        proposal.words.verify(current.model.organisation, &remote.chain().newest().operator_keys());
    let said = match words_signed {
        Ok(said) if said.at == at && said.model == Model::hash(&proposal.model.0) => said,
        Ok(_) => {
            return refuse(
                "what its proposer signed is of another model or revision: it was altered".into(),
            );
        }
        Err(error) => return refuse(format!("no operator of now has signed it: {error}")),
    };
    let wanted = lacking(remote, &current.model, &model, at)?;
    if wanted.is_empty() {
        return refuse("nothing in it wants a second operator".into());
    }
    let own = remote.key().public();
    let proposers = take(&mut model, &proposal, remote, (own, &wanted, at))?;
    if said.signer() == own || !proposers.contains(&said.signer()) {
        return refuse(
            "no operator but you has approved of it: another one must propose it, or approve what you proposed".into(),
        );
    }
    for one in &wanted {
        let signed = approval(remote, &model, one, at);
        model.approve(signed).map_err(ChangeError::from)?;
    }
    let proposed_by = change::signer_name(remote, said.signer());
    let why = said.reason.as_deref().unwrap_or("no reason given");
    output
        .note(format_args!("{proposed_by} proposes: {} {} ({why})", said.action, said.subject))?;
    let reason = words.reason.take().unwrap_or_else(|| why.to_owned());
    let others: BTreeSet<_> =
        proposers.iter().filter(|key| **key != said.signer()).copied().collect();
    let also = if others.is_empty() {
        String::new()
    } else {
        let names = join(others.iter().map(|key| change::signer_name(remote, *key)));
        format!(", also approved by {names}")
    };
    words.reason = Some(format!("{reason} (proposed and approved by {proposed_by}{also})"));
    let subject = format!("{}: {}", said.action, said.subject);
    let mut request = Request::new(ACTION, subject, words);
    request.force = force;
    request.confirm = Confirm::Names(wanted.iter().map(|one| one.name.to_string()).collect());
    change::make(remote, output, request, &|now, revision| {
        if revision != number {
            return Err(EditError::Invalid {
                what: "the proposal".into(),
                problem: "another revision came before it: have it proposed anew".into(),
            });
        }
        *now = model.clone();
        Ok(())
    })
}

/// Puts the approvals of other operators into the model, of what is wanted and of nothing else: the file is from somebody.
/// Gives whose they are.
fn take(
    model: &mut Model,
    proposal: &Proposal,
    remote: &Remote,
    (own, wanted, at): (PublicKey, &[Lacking], Place),
) -> Result<BTreeSet<PublicKey>, Error> {
    let mut others = remote.chain().newest().operator_keys();
    others.retain(|key| *key != own);
    let mut proposers = BTreeSet::new();
    for signed in &proposal.approvals {
        let Ok(read) = signed.verify(model.organisation, &others) else { continue };
        let fits = |one: &Lacking| (one.member, one.step) == (read.member, read.step);
        if read.at == at && wanted.iter().any(fits) {
            proposers.insert(read.signer());
            model.approve(signed.clone()).map_err(ChangeError::from)?;
        }
    }
    Ok(proposers)
}
