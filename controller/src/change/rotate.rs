//! Having gateways replace their tunnel keys.

use std::collections::BTreeMap;

use anteroom_proto::api::{RotateAnswer, RotateRequest};
use anteroom_proto::authority::Operator;
use anteroom_proto::id::GatewayId;
use anteroom_proto::v1::Rotate;

use super::{ChangeError, check_ready, check_text, invalid};
use crate::audit::actor;
use crate::clock;
use crate::distribution::{Event, TunnelEnds};
use crate::state::Controller;
use crate::store::NewAudit;

/// Notes that gateways are to replace the tunnel keys that they have now, and asks those that are connected.
///
/// # Errors
/// [`ChangeError`], which names what doesn't fit. Nobody is asked then.
pub async fn rotate(
    controller: &Controller,
    operator: &Operator,
    request: &RotateRequest,
) -> Result<RotateAnswer, ChangeError> {
    check_ready(controller)?;
    check_text("reason", request.reason.as_deref().unwrap_or_default())?;
    let current = controller
        .current()
        .ok_or_else(|| ChangeError::Conflict("there are no gateways yet".into()))?;
    let mut names = Vec::new();
    for gateway in &request.gateways {
        match current.model.gateways.get(gateway) {
            Some(known) => names.push(known.name.to_string()),
            None => return Err(invalid(format!("gateways: there is no gateway {gateway}"))),
        }
    }
    if names.is_empty() {
        return Err(invalid("gateways: name one at least"));
    }
    let mut facts = controller.store.gateways().await?;
    let wanted: BTreeMap<GatewayId, Rotate> = request
        .gateways
        .iter()
        .map(|gateway| {
            let reachable = facts.remove(gateway).and_then(|facts| facts.reachable);
            let serials = reachable.map(TunnelEnds::from_stored).unwrap_or_default().serials;
            let up_to = serials.into_iter().max().unwrap_or_default();
            (*gateway, Rotate { up_to, now: request.now })
        })
        .collect();
    let all = names.len() == current.model.gateways.len() && names.len() > 1;
    names.sort();
    let subject = if all { format!("all {} gateways", names.len()) } else { names.join(", ") };
    let after =
        if request.now { "new tunnel keys, the old ones void at once" } else { "new tunnel keys" };
    let audit = NewAudit {
        at: clock::now(),
        actor: actor(operator),
        action: "gateway rotate".into(),
        subject,
        reason: request.reason.clone().filter(|reason| !reason.is_empty()),
        after: Some(after.into()),
        ..NewAudit::default()
    };
    controller.store.want_rotations(&wanted, &audit).await?;
    let mut answer = RotateAnswer::default();
    for (gateway, rotate) in wanted {
        let list = match controller.online.contains(gateway) {
            false => &mut answer.offline,
            true if controller.online.rotates(gateway) => &mut answer.asked,
            true => &mut answer.unable,
        };
        list.push(gateway);
        controller.tell(Event::Rotate { gateway, rotate }).await;
    }
    Ok(answer)
}
