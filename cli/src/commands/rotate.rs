//! `gateway rotate`: new tunnel keys now instead of when the old ones are a day old.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anteroom_controller_core::model::Model;
use anteroom_proto::api::{GatewayStatus, RotateAnswer, RotateRequest};
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::id::GatewayId;
use serde::Serialize;

use crate::args::GatewayRotate;
use crate::change::{self, ChangeError};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::table;
use crate::output::time::Moment;
use crate::remote::Remote;

/// Pause between two looks at what the gateways have done.
const PAUSE: Duration = Duration::from_millis(250);

/// A gateway's keys for other gateways, as the controller shows them and the gateway's identity key vouches for them.
#[derive(Debug, Serialize)]
pub(super) struct TunnelKeys {
    /// Serial of the newest.
    pub(super) serial: u64,
    /// When the gateway made it, by its clock.
    pub(super) made: Moment,
    /// How many older ones are still good.
    pub(super) older: usize,
    /// Whether other gateways agree with it on pre-shared keys by ML-KEM-768.
    pub(super) post_quantum: bool,
}

impl TunnelKeys {
    /// What one gateway has; `None` where it has shown none that holds.
    pub(super) fn of(model: &Model, status: &GatewayStatus) -> Option<Self> {
        let identity = model.gateways.get(&status.gateway)?.identity;
        let keys = status.tunnel_keys.iter();
        let keys = keys.filter_map(|key| key.verify(model.organisation, &[identity]).ok());
        let mut keys: Vec<TunnelKeyBinding> = keys
            .map(anteroom_proto::cose::Verified::into_document)
            .filter(|key| key.gateway == status.gateway && !key.is_for_clients())
            .collect();
        keys.sort_by_key(|key| std::cmp::Reverse(key.serial));
        let newest = keys.first()?;
        Some(Self {
            serial: newest.serial,
            made: Moment(newest.made()),
            older: keys.len() - 1,
            post_quantum: newest.ml_kem_768.is_some(),
        })
    }
}

/// What became of it at one gateway.
#[derive(Debug, Serialize)]
struct Row {
    gateway: String,
    before: Option<u64>,
    serial: Option<u64>,
    /// Whether it has a new key.
    done: bool,
    /// Why not.
    why: Option<&'static str>,
}

/// `anteroom gateway rotate`.
pub(super) fn rotate(
    args: &GatewayRotate,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let current = change::fetch(remote)?;
    let model = &current.model;
    let gateways: Vec<GatewayId> = match &args.name {
        Some(name) => vec![model.find_gateway(name).map_err(ChangeError::from)?.0],
        None => model.gateways.keys().copied().collect(),
    };
    if gateways.is_empty() {
        return Err(Error::Other("there are no gateways yet".into()));
    }
    if args.now && !args.yes {
        output.note(
            "Peers that are offline, or that don't hear of the new keys within half a minute, lose the tunnel until the controller reaches them.",
        )?;
        if output.ask("Void the old keys at once? Type yes: ")?.trim() != "yes" {
            return Err(Error::Usage("nothing was changed: --now wants a yes, or --yes".into()));
        }
    }
    let before = remote.gateways()?;
    let request =
        RotateRequest { gateways: gateways.clone(), now: args.now, reason: args.reason.clone() };
    let answer: RotateAnswer = remote.post(anteroom_proto::api::paths::ROTATIONS, &request)?;
    let start = Instant::now();
    let rows = loop {
        let after = remote.gateways()?;
        let rows: Vec<Row> =
            gateways.iter().map(|id| row(model, *id, (&before, &after), &answer)).collect();
        let open = rows.iter().any(|row| !row.done && row.why.is_none());
        if !open || start.elapsed() >= args.timeout {
            break rows;
        }
        sleep(PAUSE);
    };
    let done = rows.iter().all(|row| row.done);
    output.data(&rows, |rows| {
        let number = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
        let lines = rows.iter().map(|row| {
            let state = match (row.done, row.why) {
                (true, _) => "new key",
                (false, Some(why)) => why,
                (false, None) => "asked; not done yet",
            };
            vec![row.gateway.clone(), number(row.before), number(row.serial), state.into()]
        });
        table(&["GATEWAY", "KEY BEFORE", "KEY NOW", "STATE"], lines)
    })?;
    Ok(if done { Exit::Ok } else { Exit::Laggards })
}

fn row(
    model: &Model,
    gateway: GatewayId,
    (before, after): (&[GatewayStatus], &[GatewayStatus]),
    answer: &RotateAnswer,
) -> Row {
    let serial = |statuses: &[GatewayStatus]| {
        let status = statuses.iter().find(|status| status.gateway == gateway)?;
        Some(TunnelKeys::of(model, status)?.serial)
    };
    let (was, is) = (serial(before), serial(after));
    let why = if answer.offline.contains(&gateway) {
        Some("offline: it is asked when it is back")
    } else if answer.unable.contains(&gateway) {
        Some("its agent is too old: update it")
    } else {
        None
    };
    let name = model.gateways.get(&gateway).map(|known| known.name.to_string());
    Row {
        gateway: name.unwrap_or_else(|| gateway.to_string()),
        before: was,
        serial: is,
        done: is > was,
        why,
    }
}
