//! `gateway rekey`: another identity key for a gateway, in its place.
//!
//! The gateway makes it and vouches for it with the one that it has. Both signatures are checked here, against the last
//! model that an operator signed: what the controller says of keys counts for nothing.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anteroom_controller_core::model::Model;
use anteroom_proto::api::{
    GatewayStatus, RekeyAnswer, RekeyDoubt, RekeyRequest, RekeyState, paths,
};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_proto::rekey::{MAX_AHEAD, RekeyOffer, RekeyOrder, RekeyStatement};
use serde::Serialize;

use super::enrol::plain;
use crate::args::GatewayRekey;
use crate::change::{self, ChangeError, Request};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::facts;
use crate::output::time::now;
use crate::remote::Remote;

/// Pause between two looks at whether the gateway has offered a key.
const PAUSE: Duration = Duration::from_millis(200);
/// How long to wait unless told.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where nothing is left to do but to wait.
const APPROVED: &str = "its new key is approved, and it comes with it when it is back";

/// What became of it, where nothing was signed.
#[derive(Debug, Serialize)]
struct Waiting {
    gateway: String,
    identity: String,
    offered: Option<String>,
    state: &'static str,
}

/// Which gateway, and what the last signed model says of it.
struct Subject {
    name: String,
    id: GatewayId,
    identity: PublicKey,
}

impl Subject {
    /// Finds it again in `model`, which may be newer.
    fn of(model: &Model, name: &str) -> Result<Self, Error> {
        let (id, gateway) = model.find_gateway(name).map_err(ChangeError::from)?;
        Ok(Self { name: name.to_owned(), id, identity: gateway.identity })
    }

    /// Whether what is on offer is in the model by now.
    fn is_approved(&self, state: &RekeyState) -> bool {
        state.offer.as_ref().and_then(RekeyOffer::new_key) == Some(self.identity)
    }

    fn waiting(&self, state: &'static str, output: &mut Output<'_>) -> Result<(), Error> {
        let waiting = Waiting {
            gateway: self.name.clone(),
            identity: self.identity.fingerprint().to_string(),
            offered: None,
            state,
        };
        output.data(&waiting, |waiting| {
            facts(&[
                ("Gateway", waiting.gateway.clone()),
                ("Identity key", waiting.identity.clone()),
                ("State", waiting.state.into()),
            ])
        })
    }
}

/// `anteroom gateway rekey`.
pub(super) fn rekey(
    args: GatewayRekey,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    change::not_proposed(&args.change)?;
    let mut request = Request::new("gateway rekey", args.name.as_str(), args.change);
    request.reason_needed = true;
    change::reason(&mut request, output)?;
    let model = change::fetch(remote)?.model;
    let subject = Subject::of(&model, &args.name)?;
    let state = state(remote, subject.id)?;
    if state.as_ref().is_some_and(|state| subject.is_approved(state)) {
        subject.waiting(APPROVED, output)?;
        return Ok(Exit::Laggards);
    }
    if args.withdraw {
        return withdraw(&subject, state.as_ref(), request.args.reason, remote, output);
    }
    let pending = match &state {
        Some(state) if !args.anew => pending(&model, state, remote),
        _ => None,
    };
    let held = match &state {
        Some(state) if !args.anew => offered(&model, &subject, state, remote)?,
        _ => None,
    };
    let stated = match held {
        Some(stated) => stated,
        None => match ask(&model, &subject, (state.as_ref(), pending), &request, remote, output)? {
            Some(stated) => stated,
            None => return Ok(Exit::Laggards),
        },
    };
    let (old, new) = (stated.old, stated.new);
    let doubted = self::state(remote, subject.id)?
        .is_some_and(|state| state.doubt == Some(RekeyDoubt::Rival));
    if doubted && args.fingerprint.is_none() {
        return Err(Error::Refused(format!(
            "{} has offered two different identity keys upon one order: either it has lost the first, or somebody else has its old key. Nothing was changed. Look at the gateway itself (`anteroom-agent identity`) and say with --fingerprint which one it shows; if it isn't {}, have another one made with --anew",
            args.name,
            new.fingerprint()
        )));
    }
    let shown = new.fingerprint().to_string();
    if let Some(wanted) = &args.fingerprint
        && plain(wanted) != plain(&shown)
    {
        return Err(Error::Refused(format!(
            "{} offers an identity key with the fingerprint {shown}, not {wanted}: whoever offers it isn't the gateway that you are looking at. Nothing was changed. Somebody else may hold its old key: revoke it (`anteroom gateway revoke`) and enrol the machine anew",
            args.name
        )));
    }
    output.note(facts(&[
        ("Gateway", args.name.clone()),
        ("Identity key now", old.fingerprint().to_string()),
        ("The new one", shown),
    ]))?;
    if args.fingerprint.is_none() {
        output.note("The key that the gateway has vouches for the new one. Where somebody else may hold that, compare the new one with\nwhat the gateway itself shows (`anteroom-agent identity`) first.\n")?;
    }
    output.note("An agent of an older version, put back there later, would take no view any more: it keeps enforced ports closed.\n")?;
    if !is_online(remote, subject.id)? {
        output.note(format_args!(
            "{} is offline here: until it hears of its new key, its peers take no new addresses by DHCP from it.\n",
            args.name
        ))?;
    }
    let exit = change::make(remote, output, request, &|model, _| {
        model.rekey_gateway(&args.name, old, new).map(drop)
    })?;
    output.note(format_args!("{}", after(&args.name)))?;
    Ok(exit)
}

/// What else whoever copied the disk has.
fn after(name: &str) -> String {
    format!(
        "Its tunnel keys change by themselves now; the old ones are good until all its peers have moved. If the disk was copied, end them:\n  anteroom gateway rotate {name} --now --reason \"its disk was copied\"\nThe key that stock WireGuard clients know it by was on that disk, too: only `anteroom gateway replace` changes it.\n"
    )
}

/// How far it has come, as the controller says.
fn state(remote: &mut Remote, gateway: GatewayId) -> Result<Option<RekeyState>, Error> {
    let found = |status: &GatewayStatus| status.gateway == gateway;
    Ok(remote.gateways()?.into_iter().find(found).and_then(|status| status.rekey))
}

/// The number of an operator's order that the gateway hasn't answered yet.
fn pending(model: &Model, state: &RekeyState, remote: &Remote) -> Option<u64> {
    let operators = remote.chain().newest().operator_keys();
    let order = state.order.verify(model.organisation, &operators).ok()?;
    // What comes from a backup is offered again upon the same order, unless it was withdrawn since.
    let waits = state.offer.is_none() || state.doubt == Some(RekeyDoubt::Restored);
    (waits && !order.withdraw).then_some(order.number)
}

fn is_online(remote: &mut Remote, gateway: GatewayId) -> Result<bool, Error> {
    Ok(remote.gateways()?.iter().any(|status| status.gateway == gateway && status.online))
}

/// What the gateway offers, if it offers anything upon the newest order, and both keys vouch for it.
fn offered(
    model: &Model,
    subject: &Subject,
    state: &RekeyState,
    remote: &Remote,
) -> Result<Option<RekeyStatement>, Error> {
    let Some(offer) = &state.offer else { return Ok(None) };
    if state.doubt == Some(RekeyDoubt::Restored) {
        return Ok(None);
    }
    let operators = remote.chain().newest().operator_keys();
    // One that somebody ordered who is no operator any more is asked for again.
    let Ok(order) = state.order.verify(model.organisation, &operators) else { return Ok(None) };
    let stated = offer
        .verify(model.organisation, subject.id, subject.identity)
        .map_err(|error| {
            Error::Other(format!(
                "the controller shows an offer of {} that doesn't hold against the identity key that operators have approved: {error}. Nothing was changed. Have another one made with --anew; if that doesn't help, treat this controller as stolen until you know better",
                subject.name
            ))
        })?;
    Ok(Some(stated).filter(|stated| stated.order == order.number && !order.withdraw))
}

/// Signs an order and hands it in.
fn order(
    subject: &Subject,
    state: Option<&RekeyState>,
    withdraw: bool,
    reason: Option<String>,
    remote: &mut Remote,
) -> Result<(RekeyAnswer, u64), Error> {
    let newest = remote.chain().newest();
    let (organisation, operators) = (newest.organisation, newest.operator_keys());
    // Numbers that the controller made up count for nothing.
    let before = state.and_then(|state| state.order.verify(organisation, &operators).ok());
    let before = before.map_or(0, |before| before.number);
    let now = now().0;
    if before > now.saturating_add(MAX_AHEAD) {
        return Err(Error::Refused(format!(
            "by its number the last order for {} was given {} s from now: your clock is behind, or that operator's was ahead. Set it and try again. Nothing was changed",
            subject.name,
            (before - now) / 1000
        )));
    }
    let number = now.max(before.saturating_add(1));
    let order = RekeyOrder { organisation, gateway: subject.id, number, withdraw };
    let order = Signed::sign(&order, remote.key());
    let answer = remote.post(paths::REKEYS, &RekeyRequest { order, reason })?;
    Ok((answer, number))
}

fn too_old(name: &str) -> Error {
    Error::Refused(format!(
        "this gateway's program is too old: {name} runs an agent that can't replace its identity key. Update it, then try again. Nothing was changed"
    ))
}

/// Has the gateway asked, and waits for its offer. None: it isn't there by now, and people were told.
fn ask(
    model: &Model,
    subject: &Subject,
    (state, pending): (Option<&RekeyState>, Option<u64>),
    request: &Request,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Option<RekeyStatement>, Error> {
    let (answer, number) = match pending {
        Some(number) if is_online(remote, subject.id)? => (RekeyAnswer::Asked, number),
        Some(number) => (RekeyAnswer::Offline, number),
        None => order(subject, state, false, request.args.reason.clone(), remote)?,
    };
    match answer {
        RekeyAnswer::Unable => return Err(too_old(&subject.name)),
        RekeyAnswer::Offline => output.note(format_args!(
            "{} is offline: it is asked for a new key as soon as it is back.",
            subject.name
        ))?,
        RekeyAnswer::Asked => {
            output.note(format_args!("{} is asked for a new key …", subject.name))?;
        }
    }
    let (start, timeout) = (Instant::now(), request.args.timeout.unwrap_or(TIMEOUT));
    loop {
        if let Some(state) = self::state(remote, subject.id)? {
            if let Some(stated) = offered(model, subject, &state, remote)?
                && stated.order >= number
            {
                return Ok(Some(stated));
            }
            if state.unable {
                return Err(too_old(&subject.name));
            }
        }
        let passed = start.elapsed();
        if passed >= timeout || request.args.no_wait {
            break;
        }
        sleep(PAUSE.min(timeout.saturating_sub(passed)));
    }
    let state = if is_online(remote, subject.id)? {
        "asked; it has offered no new key yet. Nothing was signed: type the same again to approve it. If it never does, its alarms say why (`anteroom gateway show`)"
    } else {
        "offline: it is asked when it is back. Nothing was signed: type the same again then"
    };
    subject.waiting(state, output)?;
    Ok(None)
}

/// Has the gateway forget what it offered.
fn withdraw(
    subject: &Subject,
    state: Option<&RekeyState>,
    reason: Option<String>,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    match order(subject, state, true, reason, remote)?.0 {
        RekeyAnswer::Unable => Err(too_old(&subject.name)),
        RekeyAnswer::Asked => {
            subject.waiting("withdrawn: the key that it has stays", output)?;
            Ok(Exit::Ok)
        }
        RekeyAnswer::Offline => {
            subject.waiting(
                "withdrawn: nobody can approve it any more, and the gateway forgets it when it is back",
                output,
            )?;
            Ok(Exit::Ok)
        }
    }
}
