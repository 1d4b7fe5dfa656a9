//! Having a gateway offer another identity key.

use anteroom_proto::api::{RekeyAnswer, RekeyRequest};
use anteroom_proto::authority::{AuthorityChain, Operator};
use anteroom_proto::rekey::{MAX_AHEAD, RekeyOffer};

use super::{ChangeError, check_ready, check_text, invalid};
use crate::audit::actor;
use crate::clock;
use crate::distribution::Event;
use crate::state::Controller;
use crate::store::NewAudit;

/// Notes an operator's order that a gateway offers another identity key, or forgets those that it offered, and passes it
/// on where the gateway is connected.
///
/// # Errors
/// [`ChangeError`], which names what doesn't fit. Nobody is asked then.
pub async fn rekey(
    controller: &Controller,
    chain: &AuthorityChain,
    operator: &Operator,
    request: &RekeyRequest,
) -> Result<RekeyAnswer, ChangeError> {
    check_ready(controller)?;
    check_text("reason", request.reason.as_deref().unwrap_or_default())?;
    let organisation = chain.newest().organisation;
    let verified = request
        .order
        .verify(organisation, &[operator.key])
        .map_err(|error| invalid(format!("order: {error}")))?;
    let gateway = verified.gateway;
    let ahead = verified.number.saturating_sub(clock::now().0);
    if ahead > MAX_AHEAD {
        return Err(invalid(format!(
            "order: by its number it is given {} s from now, and would shut out others until then: your clock or this controller's is wrong, set it and try again",
            ahead / 1000
        )));
    }
    // An offer isn't withdrawn while it is being approved.
    let _changing = controller.changing.lock().await;
    let current = controller
        .current()
        .ok_or_else(|| ChangeError::Conflict("there are no gateways yet".into()))?;
    let known = current
        .model
        .gateways
        .get(&gateway)
        .ok_or_else(|| invalid(format!("order: there is no gateway {gateway}")))?;
    let before = controller.store.rekey(gateway).await?;
    let offered = before.as_ref().and_then(|before| before.offer.as_ref());
    if offered.and_then(RekeyOffer::new_key) == Some(known.identity) {
        return Err(ChangeError::Conflict(format!(
            "{} hasn't come yet with the identity key that was approved last: wait until it is back",
            known.name
        )));
    }
    let before = before.and_then(|before| before.order.verify_self_named().ok());
    if let Some(before) = before.filter(|before| before.number >= verified.number) {
        return Err(ChangeError::Conflict(format!(
            "order: it is number {}, and {} was given before: try again",
            verified.number, before.number
        )));
    }
    let answer = match controller.online.contains(gateway) {
        false => RekeyAnswer::Offline,
        true if controller.online.rekeys(gateway) => RekeyAnswer::Asked,
        true => return Ok(RekeyAnswer::Unable),
    };
    let after = if verified.withdraw {
        "keys that were offered and not approved are forgotten"
    } else {
        "asked to offer another identity key"
    };
    let audit = NewAudit {
        at: clock::now(),
        actor: actor(operator),
        action: if verified.withdraw { "gateway rekey withdraw" } else { "gateway rekey ask" }
            .into(),
        subject: known.name.to_string(),
        reason: request.reason.clone().filter(|reason| !reason.is_empty()),
        before: Some(format!("identity {}", known.identity.fingerprint())),
        after: Some(after.into()),
        ..NewAudit::default()
    };
    controller.store.want_rekey(gateway, &request.order, &audit).await?;
    controller.tell(Event::Rekey { gateway, order: request.order.clone() }).await;
    Ok(answer)
}
