//! The next authority document: operators who come and go, a controller that was restored or has another key.

use std::sync::Arc;

use anteroom_proto::api::{AuthorityUpdate, ModelRevisionBody, RevisionInfo};
use anteroom_proto::authority::{Authority, AuthorityChain, Operator, RootId};
use anteroom_proto::key::Hash;

use super::{ChangeError, check_text, describe_authority, invalid, model};
use crate::audit::actor;
use crate::clock;
use crate::distribution::Event;
use crate::state::{Controller, Current};
use crate::store::{NewAudit, NewRevision};

/// Takes the authority document that `operator` signed (or the recovery key, which goes by a name here as well):
/// checks that it follows the newest one and names the newest revision, stores it with its audit entry, and has it
/// distributed.
///
/// A controller that was restored, or has another key than before, takes one that begins a new incarnation and no
/// other; and with it the newest revision, where it has lost that one.
///
/// # Errors
/// [`ChangeError`], which names what doesn't fit.
pub async fn authority(
    controller: &Controller,
    operator: &Operator,
    update: AuthorityUpdate,
) -> Result<(), ChangeError> {
    let AuthorityUpdate { document, lost: documents, revision, action, subject, reason } = update;
    check_text("action", &action)?;
    check_text("subject", &subject)?;
    check_text("reason", reason.as_deref().unwrap_or_default())?;
    let _changing = controller.changing.lock().await;
    let before = controller
        .authority()
        .ok_or_else(|| ChangeError::Conflict("nobody has claimed this controller yet".into()))?;
    let mut after = AuthorityChain::clone(&before);
    if !documents.is_empty() && controller.restored().is_none() {
        return Err(invalid("lost: this controller wasn't restored, and has lost nothing"));
    }
    check_moved(&before, documents.first().unwrap_or(&document))?;
    for document in &documents {
        after.extend(document).map_err(|error| invalid(format!("lost: {error}")))?;
    }
    let last = after.newest().incarnation;
    after.extend(&document).map_err(|error| invalid(format!("document: {error}")))?;
    let (was, is) = (before.newest(), after.newest());
    if is.signer() != operator.key {
        return Err(ChangeError::Forbidden(
            "document: somebody else signed it than who is logged in".into(),
        ));
    }
    if !is.controller_keys().contains(&controller.identity.public()) {
        return Err(invalid(format!(
            "document: it doesn't name this controller's key ({}): hand it in at the controller that it names",
            controller.identity.public().fingerprint()
        )));
    }
    check_incarnation(controller, last, is)?;
    let lost = match check_root(controller, is.root)? {
        None => None,
        Some(root) => Some(recover(&after, root, revision).await?),
    };
    let now = clock::now();
    let (text_before, text_after) = describe_authority(was, is);
    let audit = NewAudit {
        at: now,
        actor: actor(operator),
        action: action.clone(),
        subject: subject.clone(),
        reason: reason.clone(),
        before: text_before,
        after: text_after,
        revision: lost.as_ref().map(|(current, _)| current.root.number),
        root: lost.as_ref().map(|(current, _)| current.signed_root().hash()),
    };
    let stored = lost.as_ref().map(|(current, body)| NewRevision {
        info: RevisionInfo {
            number: current.root.number,
            at: now,
            operator: current.root.signer(),
            action,
            subject,
            reason,
        },
        root: body.root.clone(),
        model_hash: current.root.model,
        model: body.model.clone(),
        affected: current.compiled.leaves.keys().copied().collect(),
    });
    let first = was.number.saturating_add(1);
    let mut new = documents;
    new.push(document);
    if !controller.store.add_authority(first, &new, stored.as_ref(), &audit).await? {
        return Err(moved(&before));
    }
    tracing::info!(number = is.number, operator = audit.actor, action = audit.action, "authority");
    controller.set_authority(after);
    controller.set_restored(None);
    controller.tell(Event::Authority).await;
    if let Some((current, _)) = lost {
        let before = controller.current();
        let after = Arc::new(current);
        controller.set_current(after.clone());
        controller.tell(Event::Model { before, after }).await;
    }
    Ok(())
}

fn moved(chain: &AuthorityChain) -> ChangeError {
    ChangeError::Conflict(format!(
        "the newest authority document is {} by now: read it, and make the change again on top of it",
        chain.newest().number
    ))
}

/// Tells a document that comes too late from one that is wrong.
fn check_moved(
    chain: &AuthorityChain,
    document: &anteroom_proto::cose::Signed<Authority>,
) -> Result<(), ChangeError> {
    let asked =
        document.verify_self_named().map_err(|error| invalid(format!("document: {error}")))?;
    if asked.number <= chain.newest().number { Err(moved(chain)) } else { Ok(()) }
}

fn check_incarnation(
    controller: &Controller,
    before: u64,
    is: &Authority,
) -> Result<(), ChangeError> {
    match (controller.restored(), is.incarnation.checked_sub(before)) {
        (Some(_), Some(1)) | (None, Some(0)) => Ok(()),
        (Some(_), _) => Err(ChangeError::Conflict(format!(
            "document: {WAITING}; the document must begin incarnation {}",
            before.saturating_add(1)
        ))),
        (None, _) => Err(ChangeError::Conflict(
            "document: it begins a new incarnation, but this controller was neither restored nor given another key"
                .into(),
        )),
    }
}

/// Why nothing else is taken.
pub(super) const WAITING: &str = "this controller was restored from a backup, or has another key than before, and waits for an operator to sign that: `anteroom controller restored`, or `anteroom controller replace CODE`";

/// The root that the document names, where it isn't the one that is held.
fn check_root(
    controller: &Controller,
    named: Option<RootId>,
) -> Result<Option<RootId>, ChangeError> {
    let held = controller.current().map(|current| RootId {
        incarnation: current.root.incarnation,
        number: current.root.number,
        hash: current.signed_root().hash(),
    });
    match (held, named) {
        (held, named) if held == named => Ok(None),
        (held, Some(named))
            if controller.restored().is_some()
                && held.is_none_or(|held| held.place() < named.place()) =>
        {
            Ok(Some(named))
        }
        (held, _) => Err(ChangeError::Conflict(format!(
            "document.root: the newest revision is {}: read it, and make the change again on top of it",
            held.map_or(0, |held| held.number)
        ))),
    }
}

/// The revision that the document names and the controller has lost.
async fn recover(
    chain: &AuthorityChain,
    named: RootId,
    revision: Option<ModelRevisionBody>,
) -> Result<(Current, ModelRevisionBody), ChangeError> {
    let body = revision.ok_or_else(|| {
        ChangeError::Conflict(format!(
            "document.root: this controller hasn't got revision {}, and it didn't come along",
            named.number
        ))
    })?;
    let root = body
        .root
        .verify(chain.newest().organisation, &chain.all_operator_keys())
        .map_err(|error| invalid(format!("revision.root: {error}")))?;
    let hash: Hash = body.root.hash();
    if (hash, root.incarnation, root.number) != (named.hash, named.incarnation, named.number) {
        return Err(invalid("revision.root: it isn't the root that the document names"));
    }
    let bytes = body.model.clone();
    let built = tokio::task::spawn_blocking(move || model::build(root, &bytes.0))
        .await
        .map_err(|error| invalid(format!("revision.model: it can't be compiled: {error}")))?;
    Ok((built?, body))
}
