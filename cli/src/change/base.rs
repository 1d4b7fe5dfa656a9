//! The base of a change: the newest revision, believed only for the operator's signature under it.

use anteroom_controller_core::model::Model;
use anteroom_controller_core::plan::Base;
use anteroom_proto::api::{ModelRevision, paths};
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::cose::Verified;
use anteroom_proto::id::MemberId;
use anteroom_proto::intent::IntentRoot;
use anteroom_proto::key::Hash;
use anteroom_proto::time::UnixMillis;

use super::{ChangeError, NOTHING};
use crate::error::Error;
use crate::home::Seen;
use crate::remote::Remote;

/// The newest revision, verified.
#[derive(Debug, Clone)]
pub struct Current {
    /// Its number and hash.
    pub base: Base,
    /// Its model.
    pub model: Model,
    /// When its operator signed, by their clock; 1970 where nothing is signed yet.
    pub signed_at: UnixMillis,
}

/// Fetches the newest revision, verifies it, and remembers that it was seen.
///
/// # Errors
/// When the controller can't be reached, or what it serves isn't to be believed.
pub fn fetch(remote: &mut Remote) -> Result<Current, Error> {
    let served: Option<ModelRevision> = remote.find(paths::MODEL)?;
    let seen = remote.home().seen()?;
    let chain = remote.chain();
    let organisation = chain.newest().organisation;
    let Some(served) = served else {
        return match seen {
            Some(seen) if seen.incarnation >= chain.newest().incarnation => {
                Err(ChangeError::Rollback { found: 0, seen: seen.number }.into())
            }
            _ => Ok(Current {
                base: Base { number: 0, hash: NOTHING },
                model: Model::new(organisation),
                signed_at: UnixMillis::default(),
            }),
        };
    };
    let hash = served.root.hash();
    let known = seen.is_some_and(|seen| seen.root == hash) || chain.newest().vouches_for(hash);
    // A revision that was accepted once stays good when its operator leaves, and so does one that operators still
    // vouch for; any other needs an operator who still is one.
    let signers = if known { chain.all_operator_keys() } else { chain.newest().operator_keys() };
    let root = served.root.verify(organisation, &signers).map_err(|problem| {
        ChangeError::Signature { revision: "a newest revision".into(), problem }
    })?;
    if let Some(seen) = seen {
        check_seen(&root, &seen)?;
    }
    if let Some(newest) = chain.newest().root {
        let vouched =
            Seen { incarnation: newest.incarnation, number: newest.number, root: newest.hash };
        check_seen(&root, &vouched)?;
    }
    let model = check_model(chain, &root, &served.model.0)?;
    let now_seen = Seen { incarnation: root.incarnation, number: root.number, root: hash };
    if seen != Some(now_seen) || remote.home().newest()?.is_none() {
        remote.home().write_seen(&now_seen, &served)?;
    }
    remote.home().remember(&model)?;
    let signed_at = root.signed_at;
    Ok(Current { base: Base { number: root.number, hash }, model, signed_at })
}

/// The id of a member that is added on top of the revision with this hash; what it is added as tells it from others. It is drawn by a
/// hash, so that the same command makes the same plan, which can be looked at first and confirmed by its id; and as no revision
/// has the hash of another, no member gets another's.
#[must_use]
pub fn drawn(kind: &'static str, base: &Hash, what: &[&[u8]]) -> MemberId {
    let parts: Vec<&[u8]> =
        [base.as_bytes().as_slice()].into_iter().chain(what.iter().copied()).collect();
    let mut id = [0; 16];
    id.copy_from_slice(&Hash::of(kind, &parts).as_bytes()[..16]);
    MemberId::from_bytes(id)
}

fn check_seen(root: &Verified<IntentRoot>, seen: &Seen) -> Result<(), ChangeError> {
    let hash = root.signed().hash();
    if (root.incarnation, root.number) < (seen.incarnation, seen.number) {
        return Err(ChangeError::Rollback { found: root.number, seen: seen.number });
    }
    let same = root.incarnation == seen.incarnation;
    let split = same
        && ((root.number == seen.number && hash != seen.root)
            || (root.number == seen.number + 1 && root.previous != seen.root));
    if split {
        return Err(ChangeError::Split { number: root.number, seen: seen.number });
    }
    Ok(())
}

fn check_model(
    chain: &AuthorityChain,
    root: &Verified<IntentRoot>,
    bytes: &[u8],
) -> Result<Model, ChangeError> {
    let number = root.number;
    let content = |problem: String| ChangeError::Content { number, problem };
    if Model::hash(bytes) != root.model {
        let signer = root.signer().fingerprint().to_string();
        return Err(ChangeError::Altered { number, signer });
    }
    let newest = chain.newest();
    if root.incarnation > newest.incarnation || root.authority > newest.number {
        return Err(content(
            "it names an authority document that the controller doesn't serve".into(),
        ));
    }
    let model = Model::decode(bytes)
        .map_err(|error| content(format!("its model can't be read: {error}")))?;
    if model.organisation != newest.organisation {
        return Err(content("its model is another organisation's".into()));
    }
    Ok(model)
}

/// Fetches revision `number` and verifies that an operator, who may have left since, signed it.
///
/// # Errors
/// When there is no such revision, or what the controller serves isn't to be believed.
pub fn fetch_revision(
    remote: &mut Remote,
    number: u64,
) -> Result<(Verified<IntentRoot>, Model), Error> {
    let path = paths::MODEL_AT.replace("{number}", &number.to_string());
    let served: ModelRevision = remote.find(&path)?.ok_or_else(|| {
        Error::Other(format!("there is no revision {number}; `anteroom policy history` lists them"))
    })?;
    check_revision(remote.chain(), number, &served)
}

/// Verifies that `served` is revision `number` and that an operator signed it.
///
/// # Errors
/// When it isn't.
pub fn check_revision(
    chain: &AuthorityChain,
    number: u64,
    served: &ModelRevision,
) -> Result<(Verified<IntentRoot>, Model), Error> {
    let root =
        served.root.verify(chain.newest().organisation, &chain.all_operator_keys()).map_err(
            |problem| ChangeError::Signature { revision: format!("revision {number}"), problem },
        )?;
    if root.number != number {
        let problem = format!("the controller serves revision {} in its place", root.number);
        return Err(ChangeError::Content { number, problem }.into());
    }
    let model = check_model(chain, &root, &served.model.0)?;
    Ok((root, model))
}
