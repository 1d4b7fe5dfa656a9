//! An operator's new invite.

use anteroom_proto::api::NewInvite;
use anteroom_proto::authority::{AuthorityChain, Operator};

use super::{ChangeError, check_ready, check_text, invalid};
use crate::audit::actor;
use crate::clock;
use crate::state::Controller;
use crate::store::{NewAudit, StoredInvite};

/// Stores an invite that `operator` signed.
///
/// # Errors
/// [`ChangeError`], which names what doesn't fit.
pub async fn invite(
    controller: &Controller,
    chain: &AuthorityChain,
    operator: &Operator,
    new: &NewInvite,
) -> Result<(), ChangeError> {
    if let Some(reason) = &new.reason {
        check_text("reason", reason)?;
    }
    check_ready(controller)?;
    let invite = new
        .invite
        .verify(chain.newest().organisation, &[operator.key])
        .map_err(|error| invalid(format!("invite: {error}")))?;
    let now = clock::now();
    if invite.not_after <= now {
        return Err(invalid(
            "invite.not_after: it has lapsed already; is this machine's clock right?",
        ));
    }
    if let Some(current) = controller.current() {
        let model = &current.model;
        if model.gateways.contains_key(&invite.gateway)
            || model.revoked.contains_key(&invite.gateway)
        {
            return Err(invalid("invite.gateway: a gateway has this id already"));
        }
        if let Some((id, _)) = model.gateway_named(invite.name.as_str()) {
            return Err(ChangeError::Conflict(format!(
                "invite.name: {} is the name of an approved gateway ({id}); choose another, or revoke it first",
                invite.name
            )));
        }
    }
    let audit = NewAudit {
        at: now,
        actor: actor(operator),
        action: "gateway invite".into(),
        subject: format!("{} ({})", invite.name, invite.gateway),
        reason: new.reason.clone(),
        after: Some(format!("{} for site {}", invite.invite, invite.site)),
        ..NewAudit::default()
    };
    let stored = StoredInvite::new(&invite, &new.invite);
    if controller.store.add_invite(&stored, now, &audit).await? {
        tracing::info!(invite = %invite.invite, name = %invite.name, "invited");
        Ok(())
    } else {
        Err(ChangeError::Conflict("invite: its id, or its gateway's id, is taken".into()))
    }
}
