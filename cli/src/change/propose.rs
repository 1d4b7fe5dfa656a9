//! Changes that two operators must approve of: one proposes in a file, another one approves.

use std::path::Path;

use anteroom_controller_core::approvals::{self, Lacking, may_be_wanted};
use anteroom_controller_core::compile::compile;
use anteroom_controller_core::model::Model;
use anteroom_controller_core::plan::Base;
use anteroom_proto::approval::{Approval, Place, ProposalWords};
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use serde::{Deserialize, Serialize};

use super::{ChangeError, Current, Request};
use crate::args::ChangeArgs;
use crate::commands::replace_file;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::join;
use crate::output::time::now;
use crate::remote::Remote;

/// The format of a proposal's file.
const FORMAT: u32 = 2;

/// What one operator proposes to another. All that is believed of it is signed: the words with the model's hash, and the
/// approvals. Whoever approves compares the model with what is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// The file's format.
    pub format: u32,
    /// Whose.
    pub organisation: OrganisationId,
    /// The revision that it stands on.
    pub base: Base,
    /// What is proposed, in the proposer's words.
    pub words: Signed<ProposalWords>,
    /// The model that is proposed.
    pub model: Blob,
    /// What the proposer approves of.
    pub approvals: Vec<Signed<Approval>>,
}

impl Proposal {
    pub(super) fn new(
        remote: &Remote,
        current: &Current,
        model: &Model,
        request: &Request,
        (at, lacking): (Place, &[Lacking]),
    ) -> Self {
        let model_bytes = model.encode();
        let words = ProposalWords {
            organisation: model.organisation,
            at,
            model: Model::hash(&model_bytes),
            action: request.action.to_owned(),
            subject: request.subject.clone(),
            reason: request.args.reason.clone(),
            signed_at: now(),
        };
        Self {
            format: FORMAT,
            organisation: model.organisation,
            base: current.base,
            words: Signed::sign(&words, remote.key()),
            model: Blob(model_bytes),
            approvals: lacking.iter().map(|one| approval(remote, model, one, at)).collect(),
        }
    }

    /// Reads a proposal from `path`.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::file(path, format!("can't read it: {error}")))?;
        let found: Self = serde_json::from_str(&text).map_err(|error| {
            Error::file(
                path,
                format!("not a proposal as `--propose` writes it: {error}. Nothing was changed"),
            )
        })?;
        if found.format == FORMAT {
            Ok(found)
        } else {
            let problem = format!("its format is {}, this program reads {FORMAT}", found.format);
            Err(Error::file(path, problem))
        }
    }
}

/// This operator's approval.
#[must_use]
pub fn approval(remote: &Remote, model: &Model, lacking: &Lacking, at: Place) -> Signed<Approval> {
    let (organisation, member, step) = (model.organisation, lacking.member, lacking.step);
    let approval = Approval { organisation, member, step, at, signed_at: now() };
    Signed::sign(&approval, remote.key())
}

/// The place of the revision with this number, if it is made now.
#[must_use]
pub fn place(remote: &Remote, number: u64) -> Place {
    Place::new(remote.chain().newest().incarnation, number)
}

/// What of a change two operators must approve of and haven't.
///
/// # Errors
/// When a model doesn't compile.
pub fn lacking(
    remote: &Remote,
    before: &Model,
    after: &Model,
    at: Place,
) -> Result<Vec<Lacking>, Error> {
    if !may_be_wanted(before) && !may_be_wanted(after) {
        return Ok(Vec::new());
    }
    let compiled = |model| compile(model).map_err(ChangeError::from);
    let (before, after) = (compiled(before)?, compiled(after)?);
    Ok(approvals::lacking(Some(&before), &after, at, remote.chain()))
}

/// That a change which lacks approvals is proposed, and no other.
pub(super) fn check(lacking: &[Lacking], request: &Request) -> Result<(), Error> {
    match (lacking.is_empty(), &request.args.propose) {
        (true, None) | (false, Some(_)) => Ok(()),
        (true, Some(_)) => not_proposed(&request.args),
        (false, None) => Err(Error::Refused(format!(
            "two operators must approve of this ({}), and one isn't enough. Add --propose FILE, and have another operator run `anteroom approve FILE`. Nothing was changed",
            words(lacking)
        ))),
    }
}

/// That nobody wants to have something proposed for which one operator is enough.
///
/// # Errors
/// When somebody does.
pub fn not_proposed(args: &ChangeArgs) -> Result<(), Error> {
    match args.propose {
        None => Ok(()),
        Some(_) => Err(Error::Usage(
            "one operator is enough for this: leave --propose out. Nothing was changed.".into(),
        )),
    }
}

fn words(lacking: &[Lacking]) -> String {
    join(lacking.iter().map(|one| format!("{}: to {}", one.name, one.step)))
}

pub(super) fn write(
    path: &Path,
    proposal: &Proposal,
    lacking: &[Lacking],
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let json = serde_json::to_string(proposal).map_err(|error| Error::file(path, error))?;
    replace_file(path, &format!("{json}\n"))?;
    output.data(proposal, |_| {
        format!(
            "Nothing is changed yet. Your approval ({}) is in {}; have another operator run: anteroom approve {}",
            words(lacking),
            path.display(),
            path.display()
        )
    })?;
    Ok(Exit::Ok)
}
