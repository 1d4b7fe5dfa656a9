//! `controller restored|replace`: signs a controller back in that came from a backup, or has another key.
//!
//! A backup is old, and nobody can tell from it how old. What was decided since then is on the operators' machines:
//! each keeps the newest revision that it has seen. It goes back with the document that begins the new incarnation.

use anteroom_proto::api::{ControllerInfo, ModelRevision, ModelRevisionBody, Restored, paths};
use anteroom_proto::authority::{Controller, RootId};
use anteroom_proto::setup::ControllerCode;
use serde::Serialize;

use super::authority::{Consent, Decree, consent, decree, next};
use crate::args::AuthorityArgs;
use crate::change::{self, ChangeError, check_revision};
use crate::client::Client;
use crate::error::{Error, Exit};
use crate::home::{Config, Home};
use crate::output::Output;
use crate::remote::{Loss, Remote};

#[derive(Debug, Serialize)]
struct Done {
    /// Number of the authority document.
    authority: u64,
    incarnation: u64,
    /// The revision that gateways get.
    revision: Option<u64>,
    /// Whether the controller had lost the revision that it goes on from.
    brought_back: bool,
}

/// A revision that was verified.
struct Known {
    id: RootId,
    revision: ModelRevision,
}

/// `anteroom controller restored`.
pub(super) fn restored(
    force: bool,
    args: AuthorityArgs,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let remote = &mut Remote::open_as(home, home.config()?, home.key()?, None, Loss::Expected)?;
    match remote.restored()? {
        Some(waiting) => sign_in(remote, output, "controller restored", args, &waiting, (force, None)),
        None if remote.lost().is_empty() && needs_renewal(remote)? => {
            // An earlier attempt was cut short between its two steps.
            let revision = change::renew(remote, "controller restored", args.reason)?;
            report(remote, output, revision, false)
        }
        None => Err(Error::Other(
            "this controller doesn't wait to be signed in: it was neither restored nor given another key. Nothing was changed".into(),
        )),
    }
}

/// `anteroom controller replace`.
pub(super) fn replace(
    code: &str,
    force: bool,
    args: AuthorityArgs,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let code: ControllerCode =
        code.parse().map_err(|error| Error::Usage(format!("{error}. Nothing was changed.")))?;
    let config = Config {
        controller: code.https.clone(),
        certificate: code.certificate,
        controller_key: code.controller,
        ..home.config()?
    };
    let client = Client::new(&config.controller, config.certificate, home.exchange())?;
    let info: ControllerInfo = client.get(paths::CONTROLLER, &(), None)?;
    if info.key != code.controller {
        return Err(Error::Other(format!(
            "the controller's key is {}, but the code names {}: this isn't the controller that printed it. Nothing was changed",
            info.key.fingerprint(),
            code.controller.fingerprint()
        )));
    }
    let mut remote = Remote::open_as(home, config.clone(), home.key()?, None, Loss::Expected)?;
    let exit = match remote.restored()? {
        Some(waiting) => {
            output.note(format_args!(
                "Controller key {}: compare it with what the controller's own console shows.",
                code.controller.fingerprint()
            ))?;
            let new = Controller { key: code.controller, addresses: code.quic };
            let how = (force, Some(new));
            sign_in(&mut remote, output, "controller replace", args, &waiting, how)?
        }
        None if !remote.chain().newest().controller_keys().contains(&code.controller) => {
            return Err(Error::Other(
                "operators haven't signed this controller's key, and it doesn't wait for that: don't trust it. Nothing was changed".into(),
            ));
        }
        None if !remote.lost().is_empty() => {
            return Err(Error::Other(
                "this controller serves an older authority chain than this machine has seen, and doesn't wait to be signed in: if it came from a backup, restore it with `anteroom-controller restore`; if not, treat it as stolen. Nothing was changed".into(),
            ));
        }
        // A colleague has signed it in; this machine learns to know it.
        None if needs_renewal(&mut remote)? => {
            let revision = change::renew(&mut remote, "controller replace", args.reason)?;
            report(&remote, output, revision, false)?
        }
        None => {
            output.note("Operators have signed this controller in already; this machine knows it from now on.")?;
            Exit::Ok
        }
    };
    home.write_config(&config)?;
    Ok(exit)
}

/// Whether the newest revision is of an incarnation that is over, so that no gateway takes it.
fn needs_renewal(remote: &mut Remote) -> Result<bool, Error> {
    let current = change::fetch(remote)?;
    let seen = remote.home().seen()?.filter(|_| current.base.number > 0);
    Ok(seen.is_some_and(|seen| seen.incarnation < remote.chain().newest().incarnation))
}

/// Verifies a revision from wherever it comes.
fn known(remote: &Remote, revision: Option<ModelRevision>) -> Result<Option<Known>, Error> {
    let Some(revision) = revision else { return Ok(None) };
    let number = revision
        .root
        .verify_self_named()
        .map_err(|problem| ChangeError::Signature { revision: "a revision".into(), problem })?
        .number;
    let (root, _) = check_revision(remote.chain(), number, &revision)?;
    let hash = revision.root.hash();
    Ok(Some(Known { id: RootId { incarnation: root.incarnation, number, hash }, revision }))
}

fn sign_in(
    remote: &mut Remote,
    output: &mut Output<'_>,
    action: &'static str,
    mut args: AuthorityArgs,
    waiting: &Restored,
    (force, new): (bool, Option<Controller>),
) -> Result<Exit, Error> {
    let served = remote.find(paths::MODEL)?;
    let served = known(remote, served)?;
    let kept = known(remote, remote.home().newest()?)?;
    let served_id = served.as_ref().map(|known| known.id);
    let newest = match (served, kept) {
        (Some(served), Some(kept))
            if served.id.place() == kept.id.place() && served.id != kept.id =>
        {
            let number = served.id.number;
            return Err(ChangeError::Split { number, seen: number }.into());
        }
        (Some(served), Some(kept)) if served.id.place() >= kept.id.place() => Some(served),
        (served, kept) => kept.or(served),
    };
    let place = newest.as_ref().map_or((0, 0), |known| known.id.place());
    if let Some(seen) = remote.home().seen()?.filter(|seen| seen.place() > place) {
        return Err(Error::Other(format!(
            "this machine has seen revision {}, but has kept none that is newer than {}: do this on the machine of another operator. Nothing was changed",
            seen.number, place.1
        )));
    }
    check_held(waiting, place, remote.chain().newest().number, force)?;
    let lost = newest.as_ref().filter(|known| Some(known.id) != served_id);
    let had = served_id.map_or(0, |id| id.number);
    output.note(match lost {
        Some(lost) => format!(
            "The controller knows revision {had}; this machine has seen {}, and brings it back. What was changed between them is in force again, revocations included.",
            lost.id.number
        ),
        None => format!(
            "The controller goes on from revision {had}, the newest that this machine has seen too. If a colleague has made a newer one, stop here and do this on their machine."
        ),
    })?;
    consent(action, &Consent::Yes, &mut args, output)?;
    let mut next = next(remote);
    next.incarnation = next.incarnation.saturating_add(1);
    next.root = newest.as_ref().map(|known| known.id);
    let subject = match new {
        Some(new) => {
            let subject = new.key.fingerprint().to_string();
            next.controllers = vec![new];
            subject
        }
        None => "controller".into(),
    };
    let brought_back = lost.is_some();
    let revision = lost.map(|known| {
        let ModelRevision { root, model } = known.revision.clone();
        ModelRevisionBody { root, model }
    });
    let key = remote.key().clone();
    let reason = args.reason.clone();
    decree(remote, &key, Decree { next, action, subject, reason, revision })?;
    let revision = change::renew(remote, action, args.reason)?;
    report(remote, output, revision, brought_back)
}

/// A gateway that says that it holds something newer may be right.
fn check_held(
    waiting: &Restored,
    place: (u64, u64),
    authority: u64,
    force: bool,
) -> Result<(), Error> {
    if let Some((gateway, held)) = waiting.authority.filter(|(_, held)| *held > authority && !force)
    {
        return Err(Error::Refused(format!(
            "{gateway} says that it holds authority document {held}, and the newest that is known here is {authority}: gateways that hold it would follow no other in its place. Do this on the machine of an operator who has it. If it is lost for good, or the gateway isn't to be believed: --force --reason \"…\". Nothing was changed"
        )));
    }
    let Some((gateway, held)) = waiting.held.filter(|(_, held)| *held > place) else {
        return Ok(());
    };
    if force {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{gateway} says that it has revision {} in force, and the newest that is known here is {}: somebody has signed more than this machine has seen, perhaps a revocation. Do this on the machine of whoever made the last change. If what they signed is lost for good: --force --reason \"…\". Nothing was changed",
        held.1, place.1
    )))
}

fn report(
    remote: &Remote,
    output: &mut Output<'_>,
    revision: Option<u64>,
    brought_back: bool,
) -> Result<Exit, Error> {
    let newest = remote.chain().newest();
    let done =
        Done { authority: newest.number, incarnation: newest.incarnation, revision, brought_back };
    output.data(&done, |done| {
        let views = match done.revision {
            Some(revision) => {
                format!(" Gateways get revision {revision}; look with `anteroom status`.")
            }
            None => String::new(),
        };
        format!(
            "The controller is signed in (authority document {}, incarnation {}).{views}",
            done.authority, done.incarnation
        )
    })?;
    Ok(Exit::Ok)
}
