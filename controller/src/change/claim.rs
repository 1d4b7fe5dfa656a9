//! The first operator takes the controller over.

use anteroom_proto::api::Claim;
use anteroom_proto::authority::AuthorityChain;
use subtle::ConstantTimeEq;

use super::{ChangeError, invalid};
use crate::audit::actor;
use crate::clock;
use crate::state::Controller;
use crate::store::NewAudit;

/// Stores the first authority document, if `claim` knows the one-time secret.
///
/// # Errors
/// [`ChangeError`], in particular where the controller has been claimed already.
pub async fn claim(controller: &Controller, claim: &Claim) -> Result<(), ChangeError> {
    let mut secret = controller.claim_secret.lock().await;
    if controller.authority().is_some() {
        return Err(ChangeError::Conflict(
            "this controller has been claimed already: log in with its address and fingerprint"
                .into(),
        ));
    }
    let right = secret
        .as_ref()
        .is_some_and(|secret| bool::from(secret.as_slice().ct_eq(claim.secret.0.as_slice())));
    if !right {
        return Err(ChangeError::Forbidden(
            "secret: it isn't this controller's. Print the setup code with `anteroom-controller setup-code`"
                .into(),
        ));
    }
    let chain = AuthorityChain::follow_unpinned(std::slice::from_ref(&claim.authority))
        .map_err(|error| invalid(format!("authority: {error}")))?;
    let first = chain.newest();
    if !first.controller_keys().contains(&controller.identity.public()) {
        return Err(invalid(format!(
            "authority: it doesn't name this controller's key ({})",
            controller.identity.public().fingerprint()
        )));
    }
    let operators: Vec<String> = first.operators.iter().map(actor).collect();
    let audit = NewAudit {
        at: clock::now(),
        actor: first.operator(first.signer()).map(actor).unwrap_or_default(),
        action: "claim".into(),
        subject: first.organisation.to_string(),
        after: Some(format!("operators: {}", operators.join(", "))),
        ..NewAudit::default()
    };
    if !controller.store.claim(&claim.authority, &audit).await? {
        return Err(ChangeError::Conflict("this controller has been claimed already".into()));
    }
    tracing::info!(organisation = %first.organisation, operator = audit.actor, "claimed");
    controller.set_authority(chain);
    *secret = None;
    if let Err(error) = controller.directory.remove_claim_secret() {
        tracing::warn!(%error, "the used claim secret is still there; it is of no use any more");
    }
    Ok(())
}
