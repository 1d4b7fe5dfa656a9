//! A new revision of the model.

use std::sync::Arc;

use anteroom_controller_core::approvals::{self, Lacking};
use anteroom_controller_core::compile;
use anteroom_controller_core::model::{Gateway, Model};
use anteroom_proto::api::{ModelAccepted, ModelUpdate, RekeyState, RevisionInfo};
use anteroom_proto::approval::Place;
use anteroom_proto::authority::{AuthorityChain, Operator};
use anteroom_proto::cose::Verified;
use anteroom_proto::id::GatewayId;
use anteroom_proto::intent::IntentRoot;
use anteroom_proto::key::Hash;

use super::{ChangeError, check_ready, check_text, describe, invalid};
use crate::audit::actor;
use crate::clock;
use crate::distribution::{Event, check_offer};
use crate::state::{Controller, Current, client_keys};
use crate::store::{NewAudit, NewRevision};

/// Takes a revision that `operator` signed: checks that it follows the newest one and compiles to what was
/// signed, stores it with its audit entry, and has it distributed.
///
/// # Errors
/// [`ChangeError`], which names what doesn't fit.
pub async fn update(
    controller: &Controller,
    chain: &AuthorityChain,
    operator: &Operator,
    update: ModelUpdate,
) -> Result<ModelAccepted, ChangeError> {
    let ModelUpdate { revision, action, subject, reason } = update;
    check_text("action", &action)?;
    check_text("subject", &subject)?;
    check_text("reason", reason.as_deref().unwrap_or_default())?;
    let authority = chain.newest();
    let root = revision
        .root
        .verify(authority.organisation, &[operator.key])
        .map_err(|error| invalid(format!("revision.root: {error}")))?;
    let _changing = controller.changing.lock().await;
    check_ready(controller)?;
    let before = controller.current();
    check_place(&root, chain, before.as_deref())?;
    let bytes = revision.model;
    let (after, bytes) = tokio::task::spawn_blocking(move || {
        let after = build(root, &bytes.0);
        (after, bytes)
    })
    .await
    .map_err(|error| invalid(format!("revision.model: it can't be compiled: {error}")))?;
    let after = Arc::new(after?);
    check_gateways(controller, before.as_deref(), &after.model).await?;
    check_clients(before.as_deref(), &after.model)?;
    check_approvals(before.as_deref(), &after, chain)?;
    let keys = AdmittedKeys::of(controller, before.as_deref(), &after.model)?;
    let affected = match before.as_deref() {
        Some(before) if before.as_signed => before.compiled.affected(&after.compiled),
        _ => after.compiled.leaves.keys().copied().collect(),
    };
    // A gateway that was taken out has nothing more to apply.
    let affected: Vec<_> =
        affected.into_iter().filter(|id| after.compiled.leaves.contains_key(id)).collect();
    let number = after.root.number;
    let now = clock::now();
    let (was, is) = describe(before.as_deref().map(|before| &before.model), &after.model);
    let audit = NewAudit {
        at: now,
        actor: actor(operator),
        action: action.clone(),
        subject: subject.clone(),
        reason: reason.clone(),
        before: was,
        after: is,
        revision: Some(number),
        root: Some(revision.root.hash()),
    };
    let info = RevisionInfo { number, at: now, operator: operator.key, action, subject, reason };
    let stored = NewRevision {
        info,
        model_hash: after.root.model,
        root: revision.root,
        model: bytes,
        affected: affected.clone(),
    };
    if !controller.store.add_model(&stored, &audit).await? {
        return Err(conflict(before.as_deref()));
    }
    keys.keep();
    controller.set_current(after.clone());
    controller.tell(Event::Model { before, after }).await;
    tracing::info!(number, affected = affected.len(), operator = audit.actor, "revision");
    Ok(ModelAccepted { number, affected })
}

fn conflict(before: Option<&Current>) -> ChangeError {
    let newest = before.map_or(0, |before| before.root.number);
    ChangeError::Conflict(format!(
        "the newest revision is {newest} by now: read it, make the change again on top of it, and look at \
         the difference"
    ))
}

/// Checks that `root` stands where the next revision must.
fn check_place(
    root: &IntentRoot,
    chain: &AuthorityChain,
    before: Option<&Current>,
) -> Result<(), ChangeError> {
    let authority = chain.newest();
    let (number, previous) = match before {
        None => (1, Hash::ZERO),
        Some(before) => (before.root.number + 1, before.signed_root().hash()),
    };
    if (root.number, root.previous) != (number, previous) {
        return Err(conflict(before));
    }
    if root.authority != authority.number {
        return Err(ChangeError::Conflict(format!(
            "revision.root: it is signed under authority document {}, the newest is {}",
            root.authority, authority.number
        )));
    }
    if root.incarnation != authority.incarnation {
        return Err(invalid(format!(
            "revision.root: it is of incarnation {}, the controller is in {}",
            root.incarnation, authority.incarnation
        )));
    }
    Ok(())
}

/// Reads the model that `root` names and compiles it to what was signed.
pub(super) fn build(root: Verified<IntentRoot>, bytes: &[u8]) -> Result<Current, ChangeError> {
    if Model::hash(bytes) != root.model {
        return Err(invalid("revision.model: it isn't the model that the root names"));
    }
    let model =
        Model::decode(bytes).map_err(|error| invalid(format!("revision.model: {error}")))?;
    if model.organisation != root.organisation {
        return Err(invalid("revision.model: it belongs to another organisation"));
    }
    if model.encode() != bytes {
        return Err(invalid(
            "revision.model: it is written in another way than this version writes it; bring the command \
             line and the controller to the same release",
        ));
    }
    let compiled = compile::compile(&model)
        .map_err(|problems| invalid(format!("revision.model: {problems}")))?;
    if compiled.root != root.root {
        return Err(invalid(
            "revision.root: the controller compiles the model to something else than was signed; bring the \
             command line and the controller to the same release",
        ));
    }
    Ok(Current { root, model, compiled, as_signed: true })
}

/// Checks that each new gateway is one that enrolled with this key, and that what was revoked stays so.
async fn check_gateways(
    controller: &Controller,
    before: Option<&Current>,
    after: &Model,
) -> Result<(), ChangeError> {
    for (id, gateway) in &after.gateways {
        let place = format!("revision.model: gateway {}", gateway.name);
        if after.revoked.contains_key(id)
            || after.revoked.values().any(|revoked| {
                revoked.identity == gateway.identity || revoked.former.contains(&gateway.identity)
            })
        {
            return Err(invalid(format!("{place}: it was revoked; it can only enrol anew")));
        }
        let was = before.and_then(|before| before.model.gateways.get(id));
        check_former(was, gateway).map_err(|problem| invalid(format!("{place}: {problem}")))?;
        if was.is_some_and(|was| was.identity == gateway.identity) {
            continue;
        }
        if let Some(was) = was {
            check_rekey(controller, *id, was, gateway).await.map_err(|problem| match problem {
                ChangeError::Invalid(problem) => invalid(format!("{place}: {problem}")),
                other => other,
            })?;
            continue;
        }
        match controller.store.enrolment(*id).await? {
            Some(enrolment) if enrolment.identity == gateway.identity => {}
            Some(_) => {
                return Err(invalid(format!("{place}: it enrolled with another identity key")));
            }
            None => return Err(invalid(format!("{place}: it never enrolled"))),
        }
    }
    for (id, kept) in &after.revoked {
        let was = before.and_then(|before| before.model.gateways.get(id));
        check_former(was, kept).map_err(|problem| {
            invalid(format!("revision.model: gateway {}: {problem}", kept.name))
        })?;
    }
    for (id, gateway) in before.iter().flat_map(|before| &before.model.revoked) {
        let stays = |kept: &Gateway| {
            kept.identity == gateway.identity && kept.former.starts_with(&gateway.former)
        };
        if !after.revoked.get(id).is_some_and(stays) {
            return Err(invalid(format!(
                "revision.model: gateway {} was revoked and must stay so",
                gateway.name
            )));
        }
    }
    Ok(())
}

/// Checks that the keys which a gateway had before are remembered: they are never taken again.
fn check_former(was: Option<&Gateway>, is: &Gateway) -> Result<(), &'static str> {
    let wanted = was.into_iter().flat_map(|was| {
        let replaced = Some(was.identity).filter(|identity| *identity != is.identity);
        was.former.iter().copied().chain(replaced)
    });
    if was.is_some() && !wanted.eq(is.former.iter().copied()) {
        return Err("the identity keys that it had before aren't kept as such");
    }
    Ok(())
}

/// Checks that a gateway itself has offered the key that takes the place of the one that it has.
async fn check_rekey(
    controller: &Controller,
    id: GatewayId,
    was: &Gateway,
    is: &Gateway,
) -> Result<(), ChangeError> {
    let state = controller.store.rekey(id).await?;
    let Some(RekeyState { order, offer: Some(offer), .. }) = state else {
        return Err(ChangeError::Conflict(
            "the gateway offers no other identity key by now: ask it for one first".into(),
        ));
    };
    let organisation = match controller.authority() {
        Some(chain) => chain.newest().organisation,
        None => return Err(invalid("nobody has claimed this controller")),
    };
    check_offer(organisation, id, was.identity, &order, &offer).map_err(invalid)?;
    match offer.new_key() {
        Some(new) if new == is.identity => Ok(()),
        _ => Err(ChangeError::Conflict(
            "the gateway offers another identity key by now: look at that one".into(),
        )),
    }
}

/// Checks that two operators have approved of what wants two. Gateways check it, too.
fn check_approvals(
    before: Option<&Current>,
    after: &Current,
    chain: &AuthorityChain,
) -> Result<(), ChangeError> {
    let before = before.map(|before| &before.compiled);
    let at = Place::new(after.root.incarnation, after.root.number);
    let lacking = approvals::lacking(before, &after.compiled, at, chain);
    match lacking.first() {
        None => Ok(()),
        Some(Lacking { name, step, .. }) => Err(invalid(format!(
            "revision.model: device {name}: two operators must approve to {step}, and haven't both"
        ))),
    }
}

/// Keys of a revision's clients that no gateway may name from now on; from before it is stored, so that none does meanwhile.
/// Unless they are kept, those of the revision before are the clients' again.
struct AdmittedKeys<'a> {
    controller: &'a Controller,
    before: Option<&'a Current>,
    kept: bool,
}

impl<'a> AdmittedKeys<'a> {
    /// Refuses a client's key that is the own one of a gateway that wasn't revoked.
    fn of(
        controller: &'a Controller,
        before: Option<&'a Current>,
        after: &Model,
    ) -> Result<Self, ChangeError> {
        let revoked = |gateway| after.revoked.contains_key(&gateway);
        controller.tunnel_keys.admit_clients(client_keys(after), revoked).map_err(|taken| {
            let mut clients = after.clients.iter().chain(&after.former_clients);
            let client = clients.find(|(id, _)| **id == taken.client);
            let client = client.map_or_else(|| taken.client.to_string(), |(_, known)| known.name.to_string());
            let gateway = after.gateways.get(&taken.gateway).map_or_else(
                || format!("{}, which isn't approved,", taken.gateway),
                |known| known.name.to_string(),
            );
            invalid(format!(
                "revision.model: client {client}: gateway {gateway} names the WireGuard key {} as its own, and peers would leave it \
                 without. A client needs a key that was made on its own machine: have another one made there, and ask where this one is from. Where the gateway was stolen, revoke it first",
                taken.key.to_wireguard()
            ))
        })?;
        Ok(Self { controller, before, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for AdmittedKeys<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let before = self.before.map(|before| client_keys(&before.model));
            self.controller.tunnel_keys.set_clients(before.unwrap_or_default());
        }
    }
}

/// Checks that a client that was revoked stays so.
fn check_clients(before: Option<&Current>, after: &Model) -> Result<(), ChangeError> {
    for (id, client) in before.iter().flat_map(|before| &before.model.former_clients) {
        if after.former_clients.get(id).is_none_or(|kept| kept.key != client.key) {
            return Err(invalid(format!(
                "revision.model: client {} was revoked and must stay so",
                client.name
            )));
        }
    }
    Ok(())
}
