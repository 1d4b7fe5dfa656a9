//! Gateways that are offline while a change is planned that concerns them.

use anteroom_controller_core::lint::{Finding, Severity};
use anteroom_controller_core::model::Model;
use anteroom_controller_core::plan::Plan;
use anteroom_proto::api::GatewayStatus;
use anteroom_proto::time::UnixMillis;

use crate::error::Error;
use crate::output::time::{ago, now};
use crate::remote::Remote;

/// Most devices that a warning names.
const NAMED: usize = 6;

/// Adds to `plan` a warning for each gateway that it concerns and that is offline: since when, and what waits for it.
/// `known`: one that the change itself says is out.
///
/// # Errors
/// When the gateways' states can't be fetched.
pub(super) fn warn(
    remote: &mut Remote,
    model: &Model,
    known: Option<&str>,
    plan: &mut Plan,
) -> Result<(), Error> {
    if plan.affected.is_empty() {
        return Ok(());
    }
    let statuses = remote.gateways()?;
    add(&statuses, model, known, now(), plan);
    Ok(())
}

fn add(
    statuses: &[GatewayStatus],
    model: &Model,
    known: Option<&str>,
    now: UnixMillis,
    plan: &mut Plan,
) {
    for gateway in &plan.affected {
        // One that is revoked by this has nothing to take over.
        if !model.gateways.contains_key(&gateway.id) || known == Some(gateway.name.as_str()) {
            continue;
        }
        let status = statuses.iter().find(|status| status.gateway == gateway.id);
        if status.is_some_and(|status| status.online) {
            continue;
        }
        let since = match status.and_then(|status| status.last_seen) {
            Some(at) => format!("last seen {}", ago(at, now)),
            None => "never seen since it was approved".into(),
        };
        let devices: Vec<String> = model
            .devices
            .values()
            .filter(|device| device.attachment.gateway == gateway.id)
            .map(|device| device.name.to_string())
            .collect();
        let waits = if devices.is_empty() {
            "It has no devices: nothing waits for it.".to_owned()
        } else {
            format!(
                "Until it is back, {} and whoever speaks with them go on as before. Of what closes, the gateways at the \
                 other ends of its tunnels shut their side at once; what it alone carries (in the clear, as with \
                 externals, and between its own ports) stays open until it is back. Nothing else waits for it.",
                named(&devices)
            )
        };
        plan.warnings.push(Finding {
            severity: Severity::Warning,
            code: "gateway-offline".into(),
            subject: format!("gateway {}", gateway.name),
            message: format!("It is offline, {since}. {waits}"),
        });
    }
}

fn named(devices: &[String]) -> String {
    let some = devices.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match devices.len().saturating_sub(NAMED) {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}
