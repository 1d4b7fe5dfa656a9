//! `gateway invite`, `gateway pending`, `gateway approve`: how a gateway becomes one of the organisation's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anteroom_controller_core::model::{Gateway, Model};
use anteroom_proto::api::{NewInvite, PendingGateway};
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::{Signed, Verified};
use anteroom_proto::id::{GatewayId, InviteId, MemberId};
use anteroom_proto::invite::{IdentityClaim, Invite, InviteCode};
use anteroom_proto::v1::{HOST_PORT, PortInfo};
use serde::Serialize;

use super::login::{draw, draw_key};
use crate::args::{ChangeArgs, GatewayInvite};
use crate::change::{self, Request};
use crate::error::{Error, Exit};
use crate::home::write_new;
use crate::output::Output;
use crate::output::table::{facts, table};
use crate::output::time::{Moment, ago, now};
use crate::remote::Remote;

#[derive(Debug, Serialize)]
struct MadeInvite {
    name: String,
    site: String,
    gateway: String,
    not_after: Moment,
    #[serde(skip_serializing_if = "Option::is_none")]
    invite: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

/// What a machine is invited as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A gateway.
    Gateway,
    /// A client with an agent of its own.
    Host,
}

impl Kind {
    /// What it is called, and what approves it.
    fn words(self, name: &str) -> (&'static str, String) {
        match self {
            Self::Gateway => ("gateway", format!("anteroom gateway approve {name}")),
            Self::Host => ("client", format!("anteroom client approve {name} --address IP")),
        }
    }
}

/// `anteroom gateway invite` and `anteroom client invite`.
pub(super) fn invite(
    args: &GatewayInvite,
    kind: Kind,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    if model.gateway_named(args.name.as_str()).is_some() {
        return Err(Error::Other(format!(
            "there is a gateway {} already: choose another name, or revoke that one first",
            args.name
        )));
    }
    if kind == Kind::Host
        && model.member_named(args.name.as_str()).is_some_and(|id| is_there(&model, id))
    {
        return Err(Error::Other(format!(
            "there is a device or a client {} already: choose another name, or revoke that one first",
            args.name
        )));
    }
    let authority = remote.chain().newest();
    let controller = authority
        .controllers
        .iter()
        .find(|controller| controller.key == remote.config().controller_key)
        .ok_or_else(|| Error::Other("the authority document doesn't name this controller's key: an invite to it would lead nowhere. Ask the other operators which controller is the right one".into()))?;
    let valid = u64::try_from(args.valid.as_millis()).unwrap_or(u64::MAX);
    let key = draw_key()?;
    let invite = Invite {
        organisation: authority.organisation,
        invite: InviteId::from_bytes(draw()?),
        gateway: GatewayId::from_bytes(draw()?),
        name: args.name.clone(),
        site: args.site.clone(),
        key: key.public(),
        not_after: now().saturating_add(valid),
    };
    let code = InviteCode {
        organisation: invite.organisation,
        invite: invite.invite,
        gateway: invite.gateway,
        controller: controller.key,
        addresses: controller.addresses.clone(),
        authority: remote.chain().pin(),
        seed: Blob(key.to_seed().to_vec()),
    };
    // The file first: an invite that nobody can carry to the gateway would only be in the way.
    if let Some(path) = &args.out {
        write_new(path, &format!("{code}\n")).map_err(|error| Error::file(path, error))?;
    }
    let new =
        NewInvite { invite: Signed::sign(&invite, remote.key()), reason: args.reason.clone() };
    if let Err(error) = remote.invite(&new) {
        if let Some(path) = &args.out {
            let _ = std::fs::remove_file(path);
        }
        return Err(error);
    }
    let file = args.out.as_ref().map(|path| path.display().to_string());
    let made = MadeInvite {
        name: invite.name.to_string(),
        site: invite.site.to_string(),
        gateway: invite.gateway.to_string(),
        not_after: Moment(invite.not_after),
        invite: file.is_none().then(|| code.to_string()),
        file,
    };
    output.data(&made, |made| {
        let (noun, then) = kind.words(&made.name);
        let head = format!("Invite for {noun} {} at site {}, good once, until {}.", made.name, made.site, made.not_after);
        let way = match (&made.invite, &made.file) {
            (Some(code), _) => format!("On the {noun}, type:\n\n  anteroom-agent enroll {code}\n\nWhoever has this text can introduce a {noun} in this one's name: pass it on as you would a password."),
            (None, file) => format!("It is in {}. On the {noun}, type: anteroom-agent enroll \"$(cat FILE)\"", file.as_deref().unwrap_or("the file")),
        };
        format!("{head}\n{way}\nThen: {then}")
    })?;
    Ok(Exit::Ok)
}

/// Whether a member can be reached: its gateway wasn't revoked.
fn is_there(model: &Model, id: MemberId) -> bool {
    model.devices.get(&id).is_none_or(|device| model.is_attached(device))
}

/// A pending gateway whose papers are in order.
pub(super) struct Candidate {
    pub(super) invite: Verified<Invite>,
    claim: Verified<IdentityClaim>,
    /// Where it enrolled from.
    pub(super) from: IpAddr,
    /// What it says of its ports.
    pub(super) ports: Vec<PortInfo>,
}

impl Candidate {
    /// Whether it says that it is a host; None where it hasn't said anything yet.
    pub(super) fn says_host(&self) -> Option<bool> {
        let mut ports = self.ports.iter().peekable();
        ports.peek()?;
        Some(ports.all(|port| port.name.as_str() == HOST_PORT))
    }

    /// The gateway that it becomes when it is approved.
    pub(super) fn gateway(&self) -> Gateway {
        Gateway {
            name: self.invite.name.clone(),
            site: self.invite.site.clone(),
            identity: self.claim.identity,
            former: Vec::new(),
            labels: BTreeMap::new(),
        }
    }
}

/// Checks a pending gateway's papers: an operator signed its invite, and the invite's key its identity.
pub(super) fn check(chain: &AuthorityChain, pending: &PendingGateway) -> Result<Candidate, String> {
    let newest = chain.newest();
    let invite = pending
        .invite
        .verify(newest.organisation, &newest.operator_keys())
        .map_err(|error| format!("no operator made its invite ({error})"))?;
    let claim = pending.claim.verify(newest.organisation, &[invite.key]).map_err(|error| {
        format!("its identity isn't vouched for by the invite for {} ({error})", invite.name)
    })?;
    if claim.invite != invite.invite || claim.gateway != invite.gateway {
        return Err(format!(
            "its identity was vouched for under another invite than that for {}",
            invite.name
        ));
    }
    Ok(Candidate { invite, claim, from: pending.from.ip(), ports: pending.ports.clone() })
}

#[derive(Debug, Serialize)]
struct PendingRow {
    name: Option<String>,
    site: Option<String>,
    gateway: Option<String>,
    fingerprint: Option<String>,
    from: String,
    online: bool,
    enrolled_at: Moment,
    /// What is wrong with its papers.
    problem: Option<String>,
}

/// `anteroom gateway pending`.
pub(super) fn pending(remote: &mut Remote, output: &mut Output<'_>) -> Result<Exit, Error> {
    let list = remote.pending()?;
    let rows: Vec<PendingRow> = list
        .iter()
        .map(|pending| {
            let checked = check(remote.chain(), pending);
            let candidate = checked.as_ref().ok();
            PendingRow {
                name: candidate.map(|c| c.invite.name.to_string()),
                site: candidate.map(|c| c.invite.site.to_string()),
                gateway: candidate.map(|c| c.invite.gateway.to_string()),
                fingerprint: candidate.map(|c| c.claim.identity.fingerprint().to_string()),
                from: pending.from.to_string(),
                online: pending.online,
                enrolled_at: Moment(pending.enrolled_at),
                problem: checked.err(),
            }
        })
        .collect();
    output.data(&rows, |rows| {
        if rows.is_empty() {
            return "No gateway waits for approval. `anteroom gateway invite NAME --site SITE` makes an invite for one.".into();
        }
        let now = now();
        let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let lines = rows.iter().map(|row| {
            vec![
                dash(&row.name),
                dash(&row.site),
                dash(&row.fingerprint),
                row.from.clone(),
                if row.online { "yes".into() } else { "no".into() },
                ago(row.enrolled_at.0, now),
                row.problem.clone().map_or_else(|| "in order".into(), |problem| format!("DON'T APPROVE: {problem}")),
            ]
        });
        format!(
            "{}\nCompare the fingerprint with what the gateway shows (`anteroom-agent identity`), then: anteroom gateway approve NAME",
            table(&["NAME", "SITE", "FINGERPRINT", "FROM", "ONLINE", "ENROLLED", "PAPERS"], lines)
        )
    })?;
    Ok(Exit::Ok)
}

/// `anteroom gateway approve`.
pub(super) fn approve(
    name: &str,
    fingerprint: Option<&str>,
    args: ChangeArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let candidate = candidate(name, fingerprint, remote, output)?;
    if candidate.says_host() == Some(true) {
        return Err(Error::Other(format!(
            "{name} runs in host mode: make it a client, `anteroom client approve {name} --address IP`. Nothing was changed"
        )));
    }
    let (id, gateway) = (candidate.invite.gateway, candidate.gateway());
    let request = Request::new("gateway approve", gateway.name.as_str(), args);
    change::make(remote, output, request, &|model, _| model.approve_gateway(id, gateway.clone()))
}

/// The gateway that waits for approval under a name, its papers checked and its fingerprint compared or shown.
pub(super) fn candidate(
    name: &str,
    fingerprint: Option<&str>,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Candidate, Error> {
    let candidate = find(name, remote)?;
    let shown = candidate.claim.identity.fingerprint().to_string();
    if let Some(wanted) = fingerprint
        && plain(wanted) != plain(&shown)
    {
        return Err(Error::Refused(format!(
            "the gateway that used the invite for {name} has the fingerprint {shown}, not {wanted}: it isn't the one you are looking at. Nothing was changed. If the other one is the right one, somebody else used its invite: find out who, and invite it again"
        )));
    }
    output.note(facts(&[
        ("Gateway", candidate.invite.name.to_string()),
        ("Site", candidate.invite.site.to_string()),
        ("Id", candidate.invite.gateway.to_string()),
        ("Fingerprint", shown.clone()),
    ]))?;
    if fingerprint.is_none() {
        output.note("Compare all five groups of the fingerprint with what the gateway itself shows, on its label or by\n`anteroom-agent identity` on its console. If a letter differs, somebody else used the invite: say no.\n")?;
    }
    Ok(candidate)
}

fn find(name: &str, remote: &mut Remote) -> Result<Candidate, Error> {
    let list = remote.pending()?;
    let (mut found, mut bad, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for pending in &list {
        match check(remote.chain(), pending) {
            Ok(candidate)
                if candidate.invite.name.as_str() == name
                    || candidate.invite.gateway.to_string() == name =>
            {
                found.push(candidate);
            }
            Ok(candidate) => names.push(candidate.invite.name.to_string()),
            Err(problem) => bad.push(format!("one from {}: {problem}", pending.from)),
        }
    }
    let ids: Vec<String> = found.iter().map(|c| c.invite.gateway.to_string()).collect();
    match (found.pop(), ids.len()) {
        (Some(candidate), 1) => Ok(candidate),
        (Some(_), _) => Err(Error::Usage(format!(
            "several gateways named {name} wait for approval: name one by its id, {}",
            ids.join(" or ")
        ))),
        (None, _) => {
            let model = change::fetch(remote)?.model;
            if model.gateway_named(name).is_some() {
                return Err(Error::Other(format!("gateway {name} is approved already")));
            }
            let mut text = format!("no gateway {name} waits for approval");
            if !names.is_empty() {
                text = format!("{text}; waiting are: {}", names.join(", "));
            }
            if !bad.is_empty() {
                text = format!(
                    "{text}. Refused, because what the controller serves for them doesn't hold: {}",
                    bad.join("; ")
                );
            }
            Err(Error::Other(text))
        }
    }
}

/// A fingerprint without what people put between its letters.
pub(super) fn plain(fingerprint: &str) -> String {
    fingerprint.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}
