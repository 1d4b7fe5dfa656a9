//! How every change of the model is made: fetched and verified, edited, compiled, shown, confirmed, signed,
//! handed in, followed until the gateways have it.
//!
//! What is signed was computed here, out of a base that an operator signed. The controller only stores it.

mod away;
mod base;
mod confirm;
mod evidence;
mod propose;
mod show;
mod wait;

use anteroom_controller_core::compile::compile;
use anteroom_controller_core::edit::EditError;
use anteroom_controller_core::model::Model;
use anteroom_controller_core::plan::Plan;
use anteroom_controller_core::problem::Problems;
use anteroom_controller_core::reach::reach;
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::api::{
    ModelAccepted, ModelRevision, ModelRevisionBody, ModelUpdate, RevisionInfo, paths,
};
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::{SignatureError, Signed};
use anteroom_proto::intent::IntentRoot;
use anteroom_proto::key::{Hash, PublicKey};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use crate::args::ChangeArgs;
use crate::client::ClientError;
use crate::error::{Error, Exit};
use crate::home::Seen;
use crate::output::Output;
use crate::output::time::now;
use crate::remote::Remote;

pub use base::{Current, check_revision, drawn, fetch, fetch_revision};
pub use confirm::Confirm;
pub(crate) use confirm::reason;
pub use evidence::evidence;
pub use propose::{Proposal, approval, lacking, not_proposed, place};
pub use show::render_plan;
use wait::GatewayOutcome;

/// Why a change isn't made, or its base isn't believed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The root of a revision isn't an operator's.
    #[error(
        "the controller serves {revision}, but {problem}. Nothing was changed. Only operators can sign revisions: treat this controller as stolen until you know better"
    )]
    Signature {
        /// Which revision was asked for: `revision 5`, or `a newest revision`.
        revision: String,
        /// What is wrong with the signature.
        problem: SignatureError,
    },
    /// The model isn't the one that the root names.
    #[error(
        "the controller serves a model for revision {number} that isn't the one {signer} signed: it was altered. Nothing was changed. Treat this controller as stolen until you know better"
    )]
    Altered {
        /// The revision.
        number: u64,
        /// Whose signature stands under it.
        signer: String,
    },
    /// The revision is older than one that was seen.
    #[error(
        "the controller serves revision {found} as the newest, but this machine has seen revision {seen}: it was set back. Nothing was changed. If it was restored from a backup, an operator must say so in the authority document; if not, treat it as stolen"
    )]
    Rollback {
        /// What it serves: a number, or none.
        found: u64,
        /// What was seen.
        seen: u64,
    },
    /// Another revision of the same number was seen, or what follows it doesn't name it.
    #[error(
        "the controller serves a revision {number} that doesn't continue the revision {seen} that this machine has seen: the history was split. Nothing was changed. Ask the other operators what they signed, and treat this controller as stolen until you know better"
    )]
    Split {
        /// What it serves.
        number: u64,
        /// What was seen.
        seen: u64,
    },
    /// Something in a signed revision that can't be.
    #[error("revision {number}: {problem}. Nothing was changed")]
    Content {
        /// The revision.
        number: u64,
        /// What is wrong.
        problem: String,
    },
    /// Somebody else was faster.
    #[error(
        "nothing was changed: {who} meanwhile. Look at it with `anteroom policy history`, then try again"
    )]
    Moved {
        /// Who did what.
        who: String,
    },
    /// The change can't be made.
    #[error("{0}")]
    Edit(#[from] EditError),
    /// The model wouldn't compile.
    #[error("{0}")]
    Problems(#[from] Problems),
}

/// A change that an operator asked for.
#[derive(Debug)]
pub struct Request {
    /// What is done, for the audit log, such as `device mode`.
    pub action: &'static str,
    /// To what.
    pub subject: String,
    /// How it is confirmed.
    pub confirm: Confirm,
    /// Whether refusals that can be overridden are.
    pub force: bool,
    /// Whether a reason must be given.
    pub reason_needed: bool,
    /// A gateway that is known to be out: nobody waits for it.
    pub unawaited: Option<String>,
    /// The plan that must come out, where one was made before.
    pub plan: Option<Plan>,
    /// Reason, confirmation and waiting, as typed.
    pub args: ChangeArgs,
}

impl Request {
    /// A request that a plain yes confirms.
    #[must_use]
    pub fn new(action: &'static str, subject: impl Into<String>, args: ChangeArgs) -> Self {
        let confirm = Confirm::Yes;
        let subject = subject.into();
        Self {
            action,
            subject,
            confirm,
            force: false,
            reason_needed: false,
            unawaited: None,
            plan: None,
            args,
        }
    }
}

/// What became of a change, as programs read it.
#[derive(Debug, Serialize)]
struct Outcome {
    changed: bool,
    /// The newest revision, which this change made if it changed anything.
    revision: u64,
    action: &'static str,
    subject: String,
    plan: Plan,
    /// Whether it was waited for.
    waited: bool,
    gateways: Vec<GatewayOutcome>,
    /// Gateways that don't have it in force yet.
    laggards: Vec<String>,
    /// Clients whose configuration must have other peers now.
    clients: Vec<String>,
    /// The configuration of a client that was added, which is shown once.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    config: Option<Zeroizing<String>>,
}

fn as_text<S: Serializer>(text: &Option<Zeroizing<String>>, to: S) -> Result<S::Ok, S::Error> {
    text.as_ref().map(|text| text.as_str()).serialize(to)
}

/// Makes what is shown once, out of the model as it was signed.
type ShownOnce<'a> = &'a dyn Fn(&mut Remote, &Model) -> Zeroizing<String>;

/// Makes the change that `edit` describes: it is given the model and the number of the revision being made.
///
/// # Errors
/// When the base isn't to be believed, the change is refused or not confirmed, or somebody else was faster.
pub fn make(
    remote: &mut Remote,
    output: &mut Output<'_>,
    request: Request,
    edit: &dyn Fn(&mut Model, u64) -> Result<(), EditError>,
) -> Result<Exit, Error> {
    change(remote, output, request, None, edit)
}

/// As [`make`]; once the change is signed and stored, what `shown_once` makes is shown.
///
/// # Errors
/// As for [`make`].
pub fn make_and(
    remote: &mut Remote,
    output: &mut Output<'_>,
    request: Request,
    shown_once: ShownOnce<'_>,
    edit: &dyn Fn(&mut Model, u64) -> Result<(), EditError>,
) -> Result<Exit, Error> {
    change(remote, output, request, Some(shown_once), edit)
}

fn change(
    remote: &mut Remote,
    output: &mut Output<'_>,
    mut request: Request,
    shown_once: Option<ShownOnce<'_>>,
    edit: &dyn Fn(&mut Model, u64) -> Result<(), EditError>,
) -> Result<Exit, Error> {
    confirm::reason(&mut request, output)?;
    let mut current = fetch(remote)?;
    let mut shown: Option<Plan> = None;
    loop {
        let number = current.base.number + 1;
        let mut model = current.model.clone();
        edit(&mut model, number).map_err(ChangeError::from)?;
        let mut plan = plan(remote, &current, &model)?;
        check_expected(remote, &request, &plan)?;
        if plan.is_empty() && model == current.model {
            output.note("Nothing to change: it is so already.")?;
            return finish(output, &request, plan, current.base.number, None);
        }
        if !plan.may_be_applied(request.force) {
            return Err(Error::Refused(show::refused(&plan, request.force)));
        }
        let at = place(remote, number);
        let lacking = lacking(remote, &current.model, &model, at)?;
        propose::check(&lacking, &request)?;
        match &shown {
            None => {
                away::warn(remote, &model, request.unawaited.as_deref(), &mut plan)?;
                output.note(render_plan(&plan))?;
                confirm::ask(&request, &plan, output)?;
            }
            Some(before) if !same_effect(before, &plan) => {
                let who = last_change(remote)?;
                return Err(ChangeError::Moved {
                    who: format!(
                        "{who}, and now it would do something else than what you confirmed"
                    ),
                }
                .into());
            }
            Some(_) => {}
        }
        if let Some(path) = request.args.propose.clone() {
            let proposal = Proposal::new(remote, &current, &model, &request, (at, &lacking));
            return propose::write(&path, &proposal, &lacking, output);
        }
        let update = sign(remote, &current, &model, number, &request)?;
        match hand_in(remote, &update, number, &plan) {
            Ok(accepted) => {
                remember(remote, number, &update)?;
                remote.home().remember(&model)?;
                let taken = Taken { remote, accepted, before: &current.model, model, shown_once };
                return finish(output, &request, plan, number, Some(taken));
            }
            Err(Error::Client(error)) if error.has_status(409) => {
                let newer = fetch(remote)?;
                if newer.base.number <= current.base.number {
                    return Err(error.into());
                }
                let who = last_change(remote)?;
                // A plan stands on its base; what was asked for by name can be computed again, once.
                let stands = request.plan.is_some() || confirm::by_id(&request, &plan)?;
                if stands || shown.is_some() {
                    return Err(ChangeError::Moved { who }.into());
                }
                output.note(format_args!("Meanwhile {who}; computing the change again."))?;
                current = newer;
                shown = Some(plan);
            }
            Err(error) => return Err(error),
        }
    }
}

fn remember(remote: &Remote, number: u64, update: &ModelUpdate) -> Result<(), Error> {
    let ModelRevisionBody { root, model } = update.revision.clone();
    let incarnation = remote.chain().newest().incarnation;
    let seen = Seen { incarnation, number, root: root.hash() };
    Ok(remote.home().write_seen(&seen, &ModelRevision { root, model })?)
}

/// Signs the newest model once more, as it is, under the authority document in force: after a new incarnation has
/// begun, gateways take nothing that was signed before. Gives the new revision, or none where there is no model.
///
/// # Errors
/// When the newest revision isn't to be believed, or the controller refuses.
pub fn renew(
    remote: &mut Remote,
    action: &'static str,
    reason: Option<String>,
) -> Result<Option<u64>, Error> {
    let current = fetch(remote)?;
    if current.base.number == 0 {
        return Ok(None);
    }
    let number = current.base.number + 1;
    let args = ChangeArgs { reason, ..ChangeArgs::default() };
    let request = Request::new(action, "every view", args);
    let plan = plan(remote, &current, &current.model)?;
    let update = sign(remote, &current, &current.model, number, &request)?;
    hand_in(remote, &update, number, &plan)?;
    remember(remote, number, &update)?;
    Ok(Some(number))
}

/// What going from the current model to `after` would do.
///
/// # Errors
/// When `after` doesn't compile, or the evidence can't be fetched.
pub fn plan(remote: &mut Remote, current: &Current, after: &Model) -> Result<Plan, Error> {
    let evidence = evidence::of_change(remote, &current.model, after)?;
    let plan = Plan::between(current.base, &current.model, after, &evidence, now());
    Ok(plan.map_err(ChangeError::from)?)
}

/// As [`plan`], with a warning for each gateway that would have to follow and is offline.
///
/// # Errors
/// As [`plan`], or when the gateways' states can't be fetched.
pub fn plan_now(remote: &mut Remote, current: &Current, after: &Model) -> Result<Plan, Error> {
    let mut plan = plan(remote, current, after)?;
    away::warn(remote, after, None, &mut plan)?;
    Ok(plan)
}

fn check_expected(remote: &mut Remote, request: &Request, plan: &Plan) -> Result<(), Error> {
    let Some(expected) = &request.plan else { return Ok(()) };
    if expected.base != plan.base {
        let who = last_change(remote)?;
        let who = format!(
            "the plan was made on revision {}, and now {} is in force: {who}",
            expected.base.number, plan.base.number
        );
        return Err(ChangeError::Moved { who }.into());
    }
    if expected.id != plan.id {
        return Err(Error::Other(
            "the plan's file was altered, or made by another version of this program: make the plan again. Nothing was changed".into(),
        ));
    }
    Ok(())
}

fn same_effect(a: &Plan, b: &Plan) -> bool {
    a.changes == b.changes
        && a.opened == b.opened
        && a.closed == b.closed
        && a.would_break == b.would_break
}

fn sign(
    remote: &Remote,
    current: &Current,
    model: &Model,
    number: u64,
    request: &Request,
) -> Result<ModelUpdate, Error> {
    let bytes = model.encode();
    let compiled = compile(model).map_err(ChangeError::from)?;
    let authority = remote.chain().newest();
    let root = IntentRoot {
        organisation: authority.organisation,
        authority: authority.number,
        incarnation: authority.incarnation,
        number,
        previous: current.base.hash,
        model: Model::hash(&bytes),
        root: compiled.root,
        signed_at: now(),
    };
    Ok(ModelUpdate {
        revision: ModelRevisionBody { root: Signed::sign(&root, remote.key()), model: Blob(bytes) },
        action: request.action.to_owned(),
        subject: request.subject.clone(),
        reason: request.args.reason.clone(),
    })
}

/// Posts the update. Where the answer is lost on the way, looks whether it was taken.
fn hand_in(
    remote: &mut Remote,
    update: &ModelUpdate,
    number: u64,
    plan: &Plan,
) -> Result<ModelAccepted, Error> {
    let error = match remote.post::<ModelAccepted>(paths::MODEL, update) {
        Ok(accepted) if accepted.number == number => return Ok(accepted),
        Ok(accepted) => {
            return Err(Error::Other(format!(
                "the controller says that it took revision {}, but revision {number} was signed: look with `anteroom policy history`",
                accepted.number
            )));
        }
        Err(Error::Client(
            error @ (ClientError::TimedOut { .. }
            | ClientError::Broken { .. }
            | ClientError::Answer { .. }),
        )) => error,
        Err(error) => return Err(error),
    };
    let newest: Option<ModelRevision> = remote.find(paths::MODEL)?;
    if newest.is_some_and(|newest| newest.root == update.revision.root) {
        let affected = plan.affected.iter().map(|gateway| gateway.id).collect();
        Ok(ModelAccepted { number, affected })
    } else {
        Err(error.into())
    }
}

/// A change that the controller has stored.
struct Taken<'a> {
    remote: &'a mut Remote,
    accepted: ModelAccepted,
    before: &'a Model,
    model: Model,
    shown_once: Option<ShownOnce<'a>>,
}

/// Clients that were there before and reach others now, by name.
fn reconfigured(before: &Model, after: &Model) -> Vec<String> {
    if before.clients.is_empty() {
        return Vec::new();
    }
    let (Ok(before), Ok(after)) = (Resolved::new(before), Resolved::new(after)) else {
        return Vec::new();
    };
    let now = now();
    let peers = |resolved: &Resolved, id| -> Vec<_> {
        let found = reach(resolved, id, now);
        found.iter().map(|reach| (reach.gateway, reach.addresses(resolved))).collect()
    };
    let clients =
        after.model.clients.iter().filter(|(id, _)| before.model.clients.contains_key(id));
    clients
        .filter(|(id, _)| peers(&before, **id) != peers(&after, **id))
        .map(|(_, client)| client.name.to_string())
        .collect()
}

fn finish(
    output: &mut Output<'_>,
    request: &Request,
    plan: Plan,
    revision: u64,
    taken: Option<Taken<'_>>,
) -> Result<Exit, Error> {
    let changed = taken.is_some();
    let mut waited = changed && !request.args.no_wait;
    let mut lost = false;
    let (mut clients, mut once) = (Vec::new(), None);
    let gateways = match taken {
        Some(taken) => {
            let Taken { remote, accepted, before, model, shown_once } = taken;
            clients = reconfigured(before, &model);
            once = shown_once.map(|shown_once| shown_once(remote, &model));
            // Before anything else can go wrong, or somebody tires of waiting: it is nowhere else.
            if let Some(text) = once.take_if(|_| !output.is_json()) {
                output.note(text.as_str())?;
            }
            let followed = if waited {
                wait::wait(remote, output, &accepted, &plan, &model, request)
            } else {
                Ok(Vec::new())
            };
            followed.or_else(|error| {
                // The change is made, whatever becomes of the following: that mustn't sound like a failure.
                (waited, lost) = (false, true);
                output.warn(format_args!(
                    "revision {revision} is signed and stored, but can't be followed: {error}"
                ))?;
                Ok::<_, Error>(Vec::new())
            })?
        }
        _ => Vec::new(),
    };
    let laggards: Vec<String> = gateways
        .iter()
        .filter(|gateway| !gateway.applied)
        .map(|gateway| gateway.name.clone())
        .collect();
    let exit = if laggards.is_empty() && !lost { Exit::Ok } else { Exit::Laggards };
    let (action, subject) = (request.action, request.subject.clone());
    let outcome = Outcome {
        changed,
        revision,
        action,
        subject,
        plan,
        waited,
        gateways,
        laggards,
        clients,
        config: once,
    };
    if changed || output.is_json() {
        output.data(&outcome, whole_text)?;
    }
    Ok(exit)
}

fn whole_text(outcome: &Outcome) -> String {
    let mut text = outcome_text(outcome);
    for client in &outcome.clients {
        text.push_str(&format!(
            "\nClient {client} needs other peers in its configuration: anteroom client show {client}"
        ));
    }
    text
}

fn outcome_text(outcome: &Outcome) -> String {
    if !outcome.changed {
        return String::new();
    }
    let affected = outcome.plan.affected.len();
    let head = format!("Revision {}: {} {}.", outcome.revision, outcome.action, outcome.subject);
    if affected == 0 {
        return format!("{head} No gateway is affected.");
    }
    if !outcome.waited {
        return format!("{head} Not waited for; look with `anteroom status`.");
    }
    if outcome.laggards.is_empty() {
        let names: Vec<&str> = outcome.gateways.iter().map(|g| g.name.as_str()).collect();
        return if names.is_empty() {
            format!("{head} In force.")
        } else {
            format!("{head} In force at {}.", names.join(", "))
        };
    }
    let lines: Vec<String> = outcome
        .gateways
        .iter()
        .filter(|gateway| !gateway.applied)
        .map(|gateway| format!("  {}: {}", gateway.name, gateway.why()))
        .collect();
    format!(
        "{head} Signed and stored, but not yet in force at {} of {} gateways, which will take it over as soon as they can:\n{}",
        lines.len(),
        outcome.gateways.len(),
        lines.join("\n")
    )
}

/// Who made the newest revision, in words.
fn last_change(remote: &mut Remote) -> Result<String, Error> {
    let revisions = remote.revisions()?;
    Ok(match revisions.first() {
        Some(newest) => describe(newest, &signer_name(remote, newest.operator)),
        None => "somebody changed the model".into(),
    })
}

fn describe(revision: &RevisionInfo, name: &str) -> String {
    format!("{name} made revision {} ({} {})", revision.number, revision.action, revision.subject)
}

/// What the authority chain calls the operator with this key, now or at some time.
#[must_use]
pub fn signer_name(remote: &Remote, key: PublicKey) -> String {
    remote.operator_name(key).unwrap_or_else(|| format!("an unknown key {}", key.fingerprint()))
}

/// What a first revision stands on.
pub(crate) const NOTHING: Hash = Hash::ZERO;
