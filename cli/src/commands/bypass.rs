//! `gateway bypass`: the gateway is out, its cable is patched through, and care goes on.

use anteroom_controller_core::model::Model;
use anteroom_proto::api::{GatewayStatus, paths};
use anteroom_proto::bypass::{BypassCode, BypassOrder, MAX_BYPASS, MAX_REASON_LEN};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use serde::Serialize;

use crate::args::{GatewayBypass, OfflineArgs};
use crate::change::{self, Request};
use crate::error::{Error, Exit};
use crate::home::{Home, write_new};
use crate::output::Output;
use crate::output::time::{Moment, now};
use crate::remote::Remote;

/// How far ahead of the clock here another operator's may be, in milliseconds: ten years.
const MOST_AHEAD: u64 = 10 * 366 * 86_400_000;

/// `anteroom gateway bypass`.
pub(super) fn bypass(
    args: GatewayBypass,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let until = match (args.lasts, args.end) {
        (Some(lasts), false) => {
            let lasts = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
            if lasts == 0 || lasts > MAX_BYPASS {
                return Err(Error::Usage(format!(
                    "a bypass lasts up to {} hours: order another one when it ends. Nothing was changed.",
                    MAX_BYPASS / 3_600_000
                )));
            }
            Some(now().saturating_add(lasts))
        }
        (None, true) => None,
        _ => return Err(Error::Usage("say for how long with --for, or end it with --end".into())),
    };
    change::not_proposed(&args.change)?;
    if args.offline.offline {
        return offline(&args, until, home, output);
    }
    online(args, until, &mut Remote::open(home)?, output)
}

fn online(
    args: GatewayBypass,
    until: Option<UnixMillis>,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let known = remote.home().known()?;
    let name = args.name;
    let mut request = Request::new("gateway bypass", name.as_str(), args.change);
    request.reason_needed = true;
    // It may go on in the wire or be in pieces; what counts is what its peers do.
    request.unawaited = until.map(|_| name.clone());
    let current = change::fetch(remote)?;
    let reported = match current.model.gateway_named(&name) {
        Some((id, _)) => reported(id, &remote.get::<Vec<GatewayStatus>>(paths::GATEWAYS)?, output)?,
        None => None,
    };
    match until {
        Some(until) => output.warn(format_args!(
            "until {} what rules open to the devices of {name} goes in the clear, and whoever uses their addresses passes for them: {}",
            Moment(until),
            devices(&current.model, &name)
        ))?,
        None => output.note(format_args!(
            "The bypass of {name} ends: its devices are met through the tunnel again, and in no other way where they are enforced."
        ))?,
    }
    change::make(remote, output, request, &|model, revision| {
        let (id, _) = model.find_gateway(&name)?;
        let at = now();
        let serial = known.next_serial(id, Some(model), reported, at.0);
        match until {
            Some(until) => model.bypass_gateway(&name, until, serial, at, revision).map(drop),
            // Also where nobody here ordered one: another operator's file becomes void by it, if its serial is lower.
            None => model.end_bypass(&name, serial, revision).map(drop),
        }
    })
}

/// The highest serial of a file about this gateway that one of the others follows. It rests on the controller's word, so
/// what no clock can have made is left out: it would leave no number for later orders.
fn reported(
    gateway: GatewayId,
    statuses: &[GatewayStatus],
    output: &mut Output<'_>,
) -> Result<Option<u64>, Error> {
    let files = statuses.iter().flat_map(|status| &status.bypasses);
    let serials = files.filter(|open| open.gateway == gateway).map(|open| open.serial);
    let (heeded, absurd): (Vec<u64>, Vec<u64>) =
        serials.partition(|serial| *serial <= now().saturating_add(MOST_AHEAD).0);
    if let Some(serial) = absurd.first() {
        output.warn(format_args!(
            "the controller says that a file with the number {serial} is followed, more than ten years ahead of this machine's clock: it isn't heeded. Check that clock, and `anteroom-agent status` at the gateways"
        ))?;
    }
    Ok(heeded.into_iter().max())
}

fn devices(model: &Model, gateway: &str) -> String {
    let id = model.gateway_named(gateway).map(|(id, _)| id);
    let names: Vec<&str> = model
        .devices
        .values()
        .filter(|device| Some(device.attachment.gateway) == id)
        .map(|device| device.name.as_str())
        .collect();
    if names.is_empty() { "it has none".into() } else { names.join(", ") }
}

#[derive(Debug, Serialize)]
struct MadeOrder {
    gateway: String,
    id: GatewayId,
    serial: u64,
    until: Option<Moment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

/// Signs the order as a file, by what this machine remembers.
fn offline(
    args: &GatewayBypass,
    until: Option<UnixMillis>,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let config = home.config()?;
    let key = home.key()?;
    let trust = home.trust()?.ok_or_else(|| nothing_known(home))?;
    let chain = trust.follow()?;
    let authority = chain.newest();
    if authority.operator(key.public()).is_none() {
        return Err(Error::Other(format!(
            "the newest authority document that this machine has seen doesn't name your key {}: gateways won't follow your order. Nothing was signed",
            key.public().fingerprint()
        )));
    }
    let mut known = home.known()?;
    let Some((name, gateway)) = known
        .gateways
        .iter()
        .find(|(name, _)| name.as_str() == args.name)
        .map(|(n, g)| (n.clone(), *g))
    else {
        if known.gateways.is_empty() {
            return Err(nothing_known(home));
        }
        let names: Vec<&str> = known.gateways.keys().map(Name::as_str).collect();
        return Err(Error::Other(format!(
            "this machine knows no gateway {}; it knows {}. Nothing was signed",
            args.name,
            names.join(", ")
        )));
    };
    let reason = reason(args, output)?;
    let at = now();
    let order = BypassOrder {
        organisation: config.organisation,
        authority: authority.number,
        gateway: gateway.id,
        serial: known.next_serial(gateway.id, None, None, at.0),
        not_after: until,
        signed_at: at,
        reason,
    };
    let code = BypassCode(Signed::sign(&order, &key));
    // What a gateway would refuse is better refused here.
    code.verify(authority).map_err(|error| Error::Other(error.to_string()))?;
    // Remembered before it is handed out: two orders of one serial must never be.
    if let Some(known) = known.gateways.get_mut(&name) {
        known.serial = order.serial;
    }
    known.untold.push(code.0.clone());
    home.write_known(&known)?;
    let OfflineArgs { out, .. } = &args.offline;
    if let Some(path) = out {
        write_new(path, &format!("{code}\n")).map_err(|error| Error::file(path, error))?;
    }
    let made = MadeOrder {
        gateway: args.name.clone(),
        id: gateway.id,
        serial: order.serial,
        until: until.map(Moment),
        order: out.is_none().then(|| code.to_string()),
        file: out.as_ref().map(|path| path.display().to_string()),
    };
    output.data(&made, |made| {
        let head = match made.until {
            Some(until) => format!("Order to bypass {} until {until}.", made.gateway),
            None => format!("Order to end the bypass of {}.", made.gateway),
        };
        let way = match (&made.order, &made.file) {
            (Some(order), _) => format!("{order}\nAt each gateway that speaks with its devices, type: anteroom-agent bypass ORDER"),
            (None, file) => format!("It is in {}. Carry it to each gateway that speaks with its devices, and type there: anteroom-agent bypass FILE", file.as_deref().unwrap_or("the file")),
        };
        format!("{head}\n{way}\nThe audit log learns of it with the next command that reaches the controller.")
    })?;
    Ok(Exit::Ok)
}

fn nothing_known(home: &Home) -> Error {
    Error::Other(format!(
        "{} holds no gateways to bypass: this machine must have seen the controller once, as with `anteroom status`. Nothing was signed",
        home.path().display()
    ))
}

fn reason(args: &GatewayBypass, output: &mut Output<'_>) -> Result<String, Error> {
    let given = args.change.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
    let reason = match given {
        Some(reason) => reason.to_owned(),
        None if output.is_interactive() => output.ask("Reason, for the audit log:")?,
        None => String::new(),
    };
    if reason.is_empty() {
        return Err(Error::Usage(
            "gateway bypass wants a reason for the audit log: add --reason \"…\". Nothing was signed."
                .into(),
        ));
    }
    if reason.len() > MAX_REASON_LEN {
        return Err(Error::Usage(format!(
            "the reason is longer than {MAX_REASON_LEN} bytes. Nothing was signed."
        )));
    }
    Ok(reason)
}

/// Tells the controller of orders that were made without it.
pub(crate) fn tell(remote: &mut Remote) -> Result<(), Error> {
    let mut known = remote.home().known()?;
    while let Some(order) = known.untold.first().cloned() {
        remote.tell_bypass(&anteroom_proto::api::OfflineBypass { order })?;
        known.untold.remove(0);
        remote.home().write_known(&known)?;
    }
    Ok(())
}
