//! A model with its policy's names resolved: who is in which segment, and what each rule opens.

use anteroom_proto::id::{MemberId, RuleId};
use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;

use crate::model::Model;
use crate::policy::{self, Policy};
use crate::problem::Problems;

/// A model with its policy resolved.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The model that it was made from.
    pub model: Model,
    /// Its policy.
    pub policy: Policy,
    /// Rules in the order of their ids, which is the order in which the first that matches is cited.
    pub rules: Vec<ResolvedRule>,
}

/// A rule with its ends resolved.
#[derive(Debug, Clone)]
pub struct ResolvedRule {
    /// Its name.
    pub name: Name,
    /// Its id in views.
    pub id: RuleId,
    /// Who may open.
    pub from: Side,
    /// To whom.
    pub to: Side,
    /// Protocols and ports, sorted.
    pub ports: Vec<PortMatch>,
    /// Whether an enforced device may use it in the clear.
    pub clear: bool,
    /// Whether it survives quarantine.
    pub essential: bool,
    /// When it ends.
    pub expires: Option<UnixMillis>,
}

/// One end of a rule, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Side {
    /// Members with an approved gateway, sorted.
    pub members: Vec<MemberId>,
    /// Names of externals, sorted.
    pub externals: Vec<Name>,
}

impl Resolved {
    /// Resolves the model's own policy.
    ///
    /// # Errors
    /// Every problem of the policy and of its names.
    pub fn new(model: &Model) -> Result<Self, Problems> {
        Self::from_text(model, policy::POLICY_FILE, &model.policy)
    }

    /// Resolves `text` in place of the model's own policy; `file` is what problems call it.
    ///
    /// # Errors
    /// Every problem of the policy and of its names.
    pub fn from_text(model: &Model, file: &str, text: &str) -> Result<Self, Problems> {
        let policy = policy::parse(file, text)?;
        Ok(Self { model: model.clone(), policy, rules: Vec::new() })
    }
}
