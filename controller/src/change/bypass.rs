//! An order for a bypass that was made, and perhaps used, while no controller was in reach.

use anteroom_controller_core::lint::moment;
use anteroom_proto::api::OfflineBypass;
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::bypass::MAX_REASON_LEN;

use super::{ChangeError, check_text, invalid};
use crate::audit::actor;
use crate::clock;
use crate::state::Controller;
use crate::store::NewAudit;

/// Notes in the audit log what an operator ordered without this controller. It changes nothing: gateways that hold
/// the order have verified it themselves, and views carry none that isn't in the model.
///
/// # Errors
/// [`ChangeError`], which names what doesn't fit.
pub async fn note_bypass(
    controller: &Controller,
    chain: &AuthorityChain,
    told: &OfflineBypass,
) -> Result<(), ChangeError> {
    // Who has left since may have signed it while they were one.
    let order = told
        .order
        .verify(chain.newest().organisation, &chain.all_operator_keys())
        .map_err(|error| invalid(format!("order: {error}")))?;
    check_text("order.reason", &order.reason)?;
    if order.reason.len() > MAX_REASON_LEN {
        return Err(invalid("order.reason: it is too long"));
    }
    let documents = chain.to_signed();
    let signer = documents
        .iter()
        .rev()
        .filter_map(|document| document.verify_self_named().ok())
        .find_map(|document| document.operator(order.signer()).map(actor))
        .unwrap_or_else(|| order.signer().fingerprint().to_string());
    let name = controller.current().and_then(|current| {
        let model = &current.model;
        let known =
            model.gateways.get(&order.gateway).or_else(|| model.revoked.get(&order.gateway));
        known.map(|gateway| gateway.name.to_string())
    });
    let after = match order.not_after {
        Some(end) => {
            format!("a file, signed {}: bypassed until {}", moment(order.signed_at), moment(end))
        }
        None => format!("a file, signed {}: not bypassed", moment(order.signed_at)),
    };
    let audit = NewAudit {
        at: clock::now(),
        actor: signer,
        action: "gateway bypass".into(),
        subject: name.unwrap_or_else(|| order.gateway.to_string()),
        reason: Some(order.reason.clone()).filter(|reason| !reason.is_empty()),
        after: Some(after),
        ..NewAudit::default()
    };
    controller.store.append_audit(&audit).await?;
    Ok(())
}
