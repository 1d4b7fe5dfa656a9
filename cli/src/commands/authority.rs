//! `operator add|remove|recover`: the next authority document.

use std::fs;
use std::path::Path;

use anteroom_proto::api::{AuthorityUpdate, ModelRevisionBody};
use anteroom_proto::authority::{Authority, Operator, RootId};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::key::{Hash, IdentityKey};
use anteroom_proto::name::Name;
use anteroom_proto::request::RequestCode;
use data_encoding::BASE64URL_NOPAD;
use serde::Serialize;
use zeroize::Zeroizing;

use super::login::{PIN_PREFIX, RECOVERY_PREFIX, draw_key, write_recovery};
use crate::args::AuthorityArgs;
use crate::change;
use crate::error::{Error, Exit};
use crate::home::Home;
use crate::output::Output;
use crate::remote::{Loss, Remote};

/// What became of it.
#[derive(Debug, Serialize)]
struct Done {
    /// Number of the authority document.
    authority: u64,
    action: &'static str,
    subject: String,
    /// What whoever is meant does next.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// What stands for "yes, I mean it".
pub(super) enum Consent<'a> {
    /// A yes.
    Yes,
    /// The name of whoever gains or loses a say.
    Name(&'a Name),
}

/// Makes sure that there is a reason, and that it is meant.
pub(super) fn consent(
    action: &str,
    wanted: &Consent<'_>,
    args: &mut AuthorityArgs,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let given = args.reason.as_deref().is_some_and(|reason| !reason.trim().is_empty());
    if !given {
        if !output.is_interactive() {
            return Err(Error::Usage(format!(
                "{action} wants a reason for the audit log: add --reason \"…\". Nothing was changed."
            )));
        }
        args.reason = Some(output.ask("Reason, for the audit log:")?);
    }
    let no = || Error::Usage("not confirmed. Nothing was changed.".into());
    match wanted {
        Consent::Yes if args.yes => Ok(()),
        Consent::Name(name) if args.confirm.as_ref() == Some(*name) => Ok(()),
        Consent::Yes if output.is_interactive() => {
            let answer = output.ask("Go on? Type yes:")?;
            if matches!(answer.to_ascii_lowercase().as_str(), "yes" | "y") {
                Ok(())
            } else {
                Err(no())
            }
        }
        Consent::Name(name) if output.is_interactive() => {
            let answer = output.ask(&format!("Type the name {name} to go on:"))?;
            if answer == name.as_str() { Ok(()) } else { Err(no()) }
        }
        Consent::Yes => Err(Error::Usage(
            "there is no terminal to ask on: add --yes if you mean it. Nothing was changed.".into(),
        )),
        Consent::Name(name) => Err(Error::Usage(format!(
            "this changes who has a say, so --yes isn't enough: add --confirm {name} if you mean it. Nothing was changed."
        ))),
    }
}

/// The newest revision, verified, as an authority document names it.
pub(super) fn newest_root(remote: &mut Remote) -> Result<Option<RootId>, Error> {
    let current = change::fetch(remote)?;
    // What was fetched was seen.
    let seen = remote.home().seen()?;
    Ok(seen.filter(|_| current.base.number > 0).map(|seen| seen.id()))
}

/// A change of the authority document that is about to be signed.
pub(super) struct Decree {
    pub(super) next: Authority,
    pub(super) action: &'static str,
    pub(super) subject: String,
    pub(super) reason: Option<String>,
    /// The revision that it names, where the controller has lost it.
    pub(super) revision: Option<ModelRevisionBody>,
}

/// Signs with `key` and hands it in.
pub(super) fn decree(remote: &mut Remote, key: &IdentityKey, decree: Decree) -> Result<(), Error> {
    let Decree { next, action, subject, reason, revision } = decree;
    let document = Signed::sign(&next, key);
    let update = AuthorityUpdate {
        document,
        lost: remote.lost().to_vec(),
        revision,
        action: action.to_owned(),
        subject,
        reason,
    };
    remote.extend(&update)
}

/// The document that follows the newest one.
pub(super) fn next(remote: &Remote) -> Authority {
    let newest = remote.chain().newest();
    newest.next(newest.signed())
}

fn plain(fingerprint: &str) -> String {
    fingerprint.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

/// `anteroom operator add`.
pub(super) fn add(
    request: &str,
    fingerprint: Option<&str>,
    mut args: AuthorityArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let usage = |error: anteroom_proto::request::RequestCodeError| {
        Error::Usage(format!("{error}. Nothing was changed."))
    };
    let request = request.parse::<RequestCode>().and_then(|code| code.open()).map_err(usage)?;
    let newest = remote.chain().newest();
    if request.organisation != newest.organisation {
        return Err(Error::Other(format!(
            "the request is for {}, and this organisation is {}. Nothing was changed",
            request.organisation, newest.organisation
        )));
    }
    if newest.operator(request.key).is_some() {
        return Err(Error::Other(format!("{} is an operator already", request.name)));
    }
    if newest.operators.iter().any(|operator| operator.name == request.name) {
        return Err(Error::Other(format!(
            "there is an operator {} already: have the request made again with another --name. Nothing was changed",
            request.name
        )));
    }
    let shown = request.key.fingerprint().to_string();
    if let Some(expected) = fingerprint
        && plain(expected) != plain(&shown)
    {
        return Err(Error::Refused(format!(
            "the request is by the key {shown}, not {expected}: somebody has changed it on the way. Nothing was changed"
        )));
    }
    let mut next = next(remote);
    next.operators.push(Operator { name: request.name.clone(), key: request.key });
    next.root = newest_root(remote)?;
    output.note(format_args!(
        "Operator {} with the key {shown}: compare it with what their own machine shows.\nAn operator can do everything that you can, taking you out included.",
        request.name
    ))?;
    consent("operator add", &Consent::Yes, &mut args, output)?;
    let subject = request.name.to_string();
    let number = next.number;
    let key = remote.key().clone();
    let reason = args.reason;
    let action = "operator add";
    decree(remote, &key, Decree { next, action, subject, reason, revision: None })?;
    let config = remote.config();
    let line = format!(
        "anteroom login {} --fingerprint {} --authority {} --name {}",
        config.controller.first().map(String::as_str).unwrap_or_default(),
        config.certificate,
        remote.chain().pin(),
        request.name
    );
    let done =
        Done { authority: number, action, subject: request.name.to_string(), next: Some(line) };
    output.data(&done, |done| {
        format!(
            "{} is an operator now (authority document {}). On their machine, with your word for the hashes in it:\n\n  {}",
            done.subject,
            done.authority,
            done.next.as_deref().unwrap_or_default()
        )
    })?;
    Ok(Exit::Ok)
}

/// `anteroom operator remove`.
pub(super) fn remove(
    name: &Name,
    mut args: AuthorityArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let mut next = next(remote);
    let before = next.operators.len();
    next.operators.retain(|operator| operator.name != *name);
    if next.operators.len() == before {
        let names: Vec<&str> =
            next.operators.iter().map(|operator| operator.name.as_str()).collect();
        return Err(Error::Other(format!(
            "there is no operator {name}; there are: {}. Nothing was changed",
            names.join(", ")
        )));
    }
    if next.operators.is_empty() {
        return Err(Error::Refused(format!(
            "{name} is the only operator, and without one nothing can be changed: add another first. Nothing was changed"
        )));
    }
    next.root = newest_root(remote)?;
    consent("operator remove", &Consent::Name(name), &mut args, output)?;
    let number = next.number;
    let key = remote.key().clone();
    let (action, subject) = ("operator remove", name.to_string());
    let reason = args.reason;
    decree(remote, &key, Decree { next, action, subject, reason, revision: None })?;
    let done = Done { authority: number, action, subject: name.to_string(), next: None };
    output.data(&done, |done| {
        format!(
            "{} is no operator any more (authority document {}). What they signed stays in force until it is replaced; what they sign from now on counts for nothing. Gateways that are offline hear of it when they come back.",
            done.subject, done.authority
        )
    })?;
    Ok(Exit::Ok)
}

/// `anteroom operator recover`.
pub(super) fn recover(
    file: &Path,
    recovery_out: &Path,
    mut args: AuthorityArgs,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let mut config = home.config()?;
    let own = home.key()?;
    let (recovery, pin) = read_recovery(file)?;
    config.authority = config.authority.or(pin);
    let mut remote = Remote::open_as(home, config.clone(), recovery.clone(), None, Loss::Refused)?;
    // It stands for the recovery key, and is of use to nobody after this.
    home.write_session(None)?;
    let mut next = next(&remote);
    if next.recovery != recovery.public() {
        return Err(Error::Other(format!(
            "{} holds the key {}, but the organisation's recovery key is {}. Nothing was changed",
            file.display(),
            recovery.public().fingerprint(),
            next.recovery.fingerprint()
        )));
    }
    let fresh = draw_key()?;
    next.operators = vec![Operator { name: config.operator.clone(), key: own.public() }];
    next.recovery = fresh.public();
    next.root = newest_root(&mut remote)?;
    output.note(format_args!(
        "{} with the key {} becomes the only operator. Everybody else who was one loses their say, and so does the recovery key that is used here.",
        config.operator,
        own.public().fingerprint()
    ))?;
    consent("operator recover", &Consent::Name(&config.operator), &mut args, output)?;
    let organisation: OrganisationId = next.organisation;
    write_recovery(recovery_out, organisation, remote.chain().pin(), &fresh)?;
    let number = next.number;
    let action = "operator recover";
    let subject = config.operator.to_string();
    let reason = args.reason;
    if let Err(error) =
        decree(&mut remote, &recovery, Decree { next, action, subject, reason, revision: None })
    {
        // A clear no makes the new key worthless; anything else may have been a yes.
        if matches!(error, Error::Client(crate::client::ClientError::Refused { .. })) {
            let _ = fs::remove_file(recovery_out);
        }
        return Err(error);
    }
    home.write_session(None)?;
    home.write_config(&config)?;
    let done = Done {
        authority: number,
        action,
        subject: config.operator.to_string(),
        next: Some(recovery_out.display().to_string()),
    };
    output.data(&done, |done| {
        format!(
            "{} is the only operator now (authority document {}).\nThe new recovery key is in {}. Move it to a place offline, and destroy the old one.",
            done.subject,
            done.authority,
            done.next.as_deref().unwrap_or_default()
        )
    })?;
    Ok(Exit::Ok)
}

/// The recovery key in a file, and the first authority document's hash where the file holds that too.
fn read_recovery(file: &Path) -> Result<(IdentityKey, Option<Hash>), Error> {
    let text = fs::read_to_string(file).map(Zeroizing::new).map_err(|e| Error::file(file, e))?;
    let damaged = || Error::file(file, "it holds no recovery key");
    let body = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(RECOVERY_PREFIX))
        .ok_or_else(damaged)?;
    let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| damaged())?);
    let seed = Zeroizing::new(<[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| damaged())?);
    let pin = text.lines().find_map(|line| line.trim().strip_prefix(PIN_PREFIX)?.parse().ok());
    Ok((IdentityKey::from_seed(&seed), pin))
}
