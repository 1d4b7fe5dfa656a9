//! What goes into the store and comes out of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anteroom_proto::alarm::Alarm;
use anteroom_proto::api::RevisionInfo;
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, InviteId};
use anteroom_proto::intent::IntentRoot;
use anteroom_proto::invite::{IdentityClaim, Invite};
use anteroom_proto::key::{Hash, PublicKey};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::operation::ViewNumber;
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::rollout::{HeldBackReport, TrialReport};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::{FileBypass, TunnelState};
use anteroom_proto::v1::{Applied, Reachable};

/// An audit entry before it has its place in the chain. The fields are those of
/// [`anteroom_proto::api::AuditEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewAudit {
    /// When.
    pub at: UnixMillis,
    /// Who.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub subject: String,
    /// Why.
    pub reason: Option<String>,
    /// What it was before.
    pub before: Option<String>,
    /// What it is now.
    pub after: Option<String>,
    /// The revision that it made.
    pub revision: Option<u64>,
    /// Hash of that revision's signed root.
    pub root: Option<Hash>,
}

/// An invite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredInvite {
    /// Its id.
    pub invite: InviteId,
    /// The id that its gateway has.
    pub gateway: GatewayId,
    /// As the operator signed it.
    pub signed: Signed<Invite>,
    /// The identity that used it, if one did.
    pub used_by: Option<PublicKey>,
}

/// A gateway's use of an invite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// The gateway.
    pub gateway: GatewayId,
    /// The invite.
    pub invite: InviteId,
    /// The gateway's identity key.
    pub identity: PublicKey,
    /// The claim, signed by the invite's key.
    pub claim: Signed<IdentityClaim>,
    /// When.
    pub at: UnixMillis,
    /// Where it came from.
    pub from: SocketAddr,
}

/// How an enrolment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnrolOutcome {
    /// The invite was free and is this identity's now.
    First,
    /// This identity has it already.
    Again,
    /// Another identity has it, or this identity has another invite.
    Taken,
}

/// A revision to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRevision {
    /// What the history shows of it.
    pub info: RevisionInfo,
    /// The signed root.
    pub root: Signed<IntentRoot>,
    /// Hash of the model, as the root has it.
    pub model_hash: Hash,
    /// The model.
    pub model: Blob,
    /// The gateways for which it changes something.
    pub affected: Vec<GatewayId>,
}

/// A stored revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRevision {
    /// Its number.
    pub number: u64,
    /// The signed root.
    pub root: Signed<IntentRoot>,
    /// The model.
    pub model: Blob,
}

/// A gateway's greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloFacts {
    /// When.
    pub at: UnixMillis,
    /// Its agent's version.
    pub agent_version: String,
    /// Where it came from.
    pub observed: SocketAddr,
    /// Where and how it can be reached.
    pub reachable: Reachable,
    /// What it has in force.
    pub applied: Option<Applied>,
}

/// What is known of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GatewayFacts {
    /// Its agent's version.
    pub agent_version: Option<String>,
    /// Where and how it can be reached.
    pub reachable: Option<Reachable>,
    /// Where it was seen to come from.
    pub observed: Option<SocketAddr>,
    /// When it was last connected.
    pub last_seen: Option<UnixMillis>,
    /// Its tunnels.
    pub tunnels: Vec<TunnelState>,
    /// What it has in force.
    pub applied: Option<AppliedFacts>,
    /// Problems in what it has in force.
    pub problems: Vec<String>,
    /// Why it refused the newest view, if it did.
    pub refused: Option<String>,
    /// The newest revision that changes something for it.
    pub wanted: u64,
    /// Since when it lags behind that, if it does.
    pub behind_since: Option<UnixMillis>,
    /// The newest view made for it.
    pub view: ViewState,
    /// Drops by reason.
    pub drops: BTreeMap<String, u64>,
    /// Alarms that stand.
    pub alarms: Vec<Alarm>,
    /// Bypasses in force there that were loaded from files.
    pub bypasses: Vec<FileBypass>,
    /// Devices there that are enforced on trial, or were.
    pub trials: Vec<TrialReport>,
    /// Devices there that aren't in the mode that was signed, for lack of approvals.
    pub held_back: Vec<HeldBackReport>,
    /// Sightings and edges turned away, or dropped unanswered, for want of room here, and what the gateway itself threw away.
    pub away: (u64, u64, u64),
}

/// What a gateway has in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedFacts {
    /// The view's number.
    pub number: ViewNumber,
    /// The revision.
    pub revision: u64,
    /// The intent's digest.
    pub intent: Hash,
}

/// The newest view made for a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ViewState {
    /// Its number; sequence 0 where none was made.
    pub number: ViewNumber,
    /// The intent in it.
    pub intent: Option<Hash>,
    /// The digest of the operation part, number and time aside.
    pub operation: Option<Hash>,
}

/// A view about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssueView {
    /// For whom.
    pub gateway: GatewayId,
    /// The revision of its intent.
    pub revision: u64,
    /// The intent's digest.
    pub intent: Hash,
    /// The digest of the operation part, number and time aside.
    pub operation: Hash,
}

/// How far a revision is at one gateway that it affects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// Which gateway.
    pub gateway: GatewayId,
    /// The revision that it has in force now.
    pub revision: Option<u64>,
    /// When it first had this one, or a later one, in force.
    pub applied_at: Option<UnixMillis>,
    /// Why it refused the newest view, if it did.
    pub refused: Option<String>,
}

/// What the flow history holds, and what it doesn't.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recording {
    /// Edges that found no room, here and at all gateways, and those that were never answered and made room for others.
    pub turned_away: u64,
    /// Answered edges that were quiet for [`Limits::edge_age`](super::Limits::edge_age) and made room for others.
    pub forgotten: u64,
    /// When gateways reported anything, as far as that was kept.
    pub watched: BTreeMap<GatewayId, Rhythm>,
}

/// What tells a sighting from others, in the order in which they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SightingPlace {
    /// Who saw it.
    pub gateway: GatewayId,
    /// At which port.
    pub port: Name,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its VLAN, or none.
    pub vlan: Option<u16>,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It was added; so many sightings, edges and hints found no room, or made room before their time.
    Stored {
        /// What found no room, and the edges that were never answered and made room for others.
        turned_away: u64,
        /// Edges that were quiet for [`Limits::edge_age`](super::Limits::edge_age) and made room for others.
        forgotten: u64,
    },
    /// It was stored before.
    Duplicate,
}
