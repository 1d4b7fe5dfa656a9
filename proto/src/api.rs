//! The operators' API: JSON over HTTPS between the command line (or a console) and the controller.
//!
//! Every path begins with `/v1`. All but [`paths::CONTROLLER`], [`paths::CLAIM`], [`paths::CHALLENGE`] and
//! [`paths::LOGIN`] want a token from `login` as `Authorization: Bearer`. An answer outside 2xx carries an
//! [`ApiError`].

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::alarm::Alarm;
use crate::authority::Authority;
use crate::binding::TunnelKeyBinding;
use crate::bypass::BypassOrder;
use crate::cbor::Blob;
use crate::cose::{Document, Signed};
use crate::id::{GatewayId, OrganisationId};
use crate::intent::IntentRoot;
use crate::invite::{IdentityClaim, Invite};
use crate::key::{Hash, PublicKey};
use crate::name::Name;
use crate::rekey::{RekeyOffer, RekeyOrder};
use crate::rollout::{HeldBackReport, TrialReport};
use crate::time::UnixMillis;
use crate::v1::PortInfo;
use crate::v1::telemetry::{FileBypass, RelayAway, RelayUse, Sighting, TunnelState};

mod flows;
mod hints;
mod sightings;

pub use flows::{Edge, EdgeQuery, HistoryPage, HistoryQuery};
pub use hints::{HintsPage, HintsQuery, RecordedHint};
pub use sightings::{SightingsAway, SightingsPage, SightingsQuery};

/// Paths of the API.
pub mod paths {
    /// GET, no token: [`super::ControllerInfo`].
    pub const CONTROLLER: &str = "/v1/controller";
    /// POST [`super::Claim`], no token: the first operator takes the organisation over. 204.
    pub const CLAIM: &str = "/v1/claim";
    /// POST nothing, no token: [`super::Challenge`].
    pub const CHALLENGE: &str = "/v1/login/challenge";
    /// POST [`super::LoginRequest`], no token: [`super::Session`].
    pub const LOGIN: &str = "/v1/login";
    /// POST nothing: the token is forgotten. 204.
    pub const LOGOUT: &str = "/v1/logout";
    /// GET: the authority chain, `Vec<Signed<Authority>>`. POST [`super::AuthorityUpdate`]: the next document. 204.
    pub const AUTHORITY: &str = "/v1/authority";
    /// GET: [`super::Restored`] where the controller was restored from a backup, or got another key, and no operator
    /// has signed that yet; `null` otherwise.
    pub const RESTORED: &str = "/v1/restored";
    /// POST [`super::NewInvite`] (204); GET: `Vec<super::InviteInfo>`.
    pub const INVITES: &str = "/v1/invites";
    /// POST [`super::OfflineBypass`]: the audit log learns of an order that was made without a controller. 204.
    pub const BYPASSES: &str = "/v1/bypasses";
    /// POST [`super::RotateRequest`]: gateways replace their tunnel keys. [`super::RotateAnswer`].
    pub const ROTATIONS: &str = "/v1/rotations";
    /// POST [`super::RekeyRequest`]: a gateway offers another identity key, or forgets those that it offered.
    /// [`super::RekeyAnswer`].
    pub const REKEYS: &str = "/v1/rekeys";
    /// GET: `Vec<super::PendingGateway>`.
    pub const PENDING: &str = "/v1/pending";
    /// GET: `Vec<super::GatewayStatus>`, one for each gateway of the newest model.
    pub const GATEWAYS: &str = "/v1/gateways";
    /// GET: `Vec<super::SightingRecord>`.
    pub const SIGHTINGS: &str = "/v1/sightings";
    /// GET: [`super::SightingsPage`] for a [`super::SightingsQuery`].
    pub const SIGHTINGS_PAGE: &str = "/v1/sightings/page";
    /// GET: newest [`super::ModelRevision`], 404 where there is none; POST [`super::ModelUpdate`]:
    /// [`super::ModelAccepted`], or 409 when the base has moved on.
    pub const MODEL: &str = "/v1/model";
    /// GET `/v1/model/{number}`: that [`super::ModelRevision`].
    pub const MODEL_AT: &str = "/v1/model/{number}";
    /// GET: `Vec<super::RevisionInfo>`, newest first.
    pub const REVISIONS: &str = "/v1/revisions";
    /// GET `/v1/progress/{number}`: [`super::Progress`].
    pub const PROGRESS: &str = "/v1/progress/{number}";
    /// GET with [`super::EdgeQuery`]: `Vec<super::Edge>`, newest first.
    pub const EDGES: &str = "/v1/edges";
    /// GET: [`super::HistoryPage`] for a [`super::HistoryQuery`].
    pub const HISTORY: &str = "/v1/history";
    /// GET: [`super::HintsPage`] for a [`super::HintsQuery`].
    pub const HINTS: &str = "/v1/hints";
    /// GET with [`super::AuditQuery`]: `Vec<super::AuditEntry>`, oldest first.
    pub const AUDIT: &str = "/v1/audit";
}

/// What went wrong, for a person and for a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// A stable word, such as `conflict`, `not-found`, `unauthorised`, `invalid`, `busy`.
    pub code: String,
    /// What was wrong, where, and what to do.
    pub message: String,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerInfo {
    /// The controller's identity key.
    pub key: PublicKey,
    /// Its version.
    pub version: String,
    /// The organisation, once a first operator has claimed the controller.
    pub organisation: Option<OrganisationId>,
    /// Where gateways reach it over QUIC.
    pub addresses: Vec<String>,
    /// Its time.
    pub time: UnixMillis,
}

/// The first operator takes a new controller over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The one-time secret that `anteroom-controller init` printed.
    pub secret: Blob,
    /// The first authority document.
    pub authority: Signed<Authority>,
}

/// What an operator must sign to log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// Good once and for a minute.
    pub nonce: Blob,
}

/// A log-in, signed by the operator. Its type keeps it from being anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The controller that it is meant for.
    pub controller: PublicKey,
    /// The challenge's nonce.
    pub nonce: Blob,
}

impl Document for Login {
    const TYPE: &'static str = "anteroom/login";
    const MAX_LEN: usize = 1024;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// The answer to a challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// The signed log-in.
    pub login: Signed<Login>,
}

/// A token that stands for a log-in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// The bearer token.
    pub token: String,
    /// The operator's name in the authority document.
    pub operator: Name,
    /// When the token lapses.
    pub not_after: UnixMillis,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({} until {})", self.operator, self.not_after.0)
    }
}

/// The next authority document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorityUpdate {
    /// Signed by an operator, or by the recovery key.
    pub document: Signed<Authority>,
    /// The documents before it that a restored controller has lost.
    pub lost: Vec<Signed<Authority>>,
    /// The revision that it names as the newest, where the controller has lost that one.
    pub revision: Option<ModelRevisionBody>,
    /// What was done, such as `operator add`.
    pub action: String,
    /// To whom or what.
    pub subject: String,
    /// Why, for the audit log.
    pub reason: Option<String>,
}

/// That a controller waits for an operator to sign it back in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Since when.
    pub since: UnixMillis,
    /// The highest place (incarnation and revision) that a gateway has named since as what it has in force, and
    /// which gateway that was. Its word, no more.
    pub held: Option<(GatewayId, (u64, u64))>,
    /// The highest number of an authority document that a gateway has named since, and which gateway that was.
    pub authority: Option<(GatewayId, u64)>,
}

/// An operator's new invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewInvite {
    /// Signed by the operator; without the private half of its key.
    pub invite: Signed<Invite>,
    /// Why, for the audit log.
    pub reason: Option<String>,
}

/// An order for a bypass that an operator signed while no controller was in reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfflineBypass {
    /// As it was carried to the gateways.
    pub order: Signed<BypassOrder>,
}

/// Gateways that are to replace the tunnel keys that they have now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// Which ones.
    pub gateways: Vec<GatewayId>,
    /// Whether the old keys are void at once, whoever still needs them.
    pub now: bool,
    /// Why, for the audit log.
    pub reason: Option<String>,
}

/// How gateways heard of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RotateAnswer {
    /// Those that were asked just now.
    pub asked: Vec<GatewayId>,
    /// Those that will be once they are back.
    pub offline: Vec<GatewayId>,
    /// Those whose agents are too old to be asked.
    pub unable: Vec<GatewayId>,
}

/// A gateway that is to offer another identity key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RekeyRequest {
    /// The order, signed by the operator.
    pub order: Signed<RekeyOrder>,
    /// Why, for the audit log.
    pub reason: Option<String>,
}

/// How the gateway heard of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RekeyAnswer {
    /// It was asked just now.
    Asked,
    /// It will be once it is back.
    Offline,
    /// Its agent is too old to be asked. Nothing was noted.
    Unable,
}

/// How far replacing a gateway's identity key has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RekeyState {
    /// The newest order, as an operator signed it.
    pub order: Signed<RekeyOrder>,
    /// What the gateway offered upon that, unchecked.
    pub offer: Option<RekeyOffer>,
    /// Why that isn't to be approved as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<RekeyDoubt>,
    /// Whether the gateway is there and runs an agent that is too old for it.
    #[serde(default)]
    pub unable: bool,
}

/// Why a key that a gateway has offered isn't to be approved as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RekeyDoubt {
    /// Another one was offered upon the same order later: either the gateway has lost the first, or its old key is in two
    /// hands.
    Rival,
    /// It comes from a backup of the controller, and the gateway hasn't offered it again since: it may be withdrawn.
    Restored,
}

/// An invite as the controller keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteInfo {
    /// As it was signed.
    pub invite: Signed<Invite>,
    /// The identity that used it, if one did.
    pub used_by: Option<PublicKey>,
}

/// A gateway that used an invite and waits for approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingGateway {
    /// The invite, to be checked against the authority.
    pub invite: Signed<Invite>,
    /// The gateway's claim, to be checked against the invite.
    pub claim: Signed<IdentityClaim>,
    /// When it enrolled.
    pub enrolled_at: UnixMillis,
    /// Where it came from.
    pub from: SocketAddr,
    /// Whether it is connected now.
    pub online: bool,
    /// Its ports, as far as it has told them.
    pub ports: Vec<PortInfo>,
}

/// How a gateway is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Which one.
    pub gateway: GatewayId,
    /// Whether it is connected now.
    pub online: bool,
    /// When it was last connected, if ever.
    pub last_seen: Option<UnixMillis>,
    /// The revision that it has in force.
    pub revision: Option<u64>,
    /// The newest revision that changes something for it.
    pub wanted: u64,
    /// Since when it lags behind `wanted`, if it does.
    pub behind_since: Option<UnixMillis>,
    /// Why it refused the newest view, if it did.
    pub refused: Option<String>,
    /// Problems in the view that it has in force.
    pub problems: Vec<String>,
    /// Its agent's version.
    pub agent_version: Option<String>,
    /// Its ports.
    pub ports: Vec<PortInfo>,
    /// Where its WireGuard socket may be reached, best first.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    /// Its tunnel keys, each signed by its identity key.
    #[serde(default)]
    pub tunnel_keys: Vec<Signed<TunnelKeyBinding>>,
    /// Its tunnels.
    pub tunnels: Vec<TunnelState>,
    /// Where it was seen to come from.
    pub observed: Option<SocketAddr>,
    /// Whether its connection takes TCP, since UDP doesn't get through.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub over_tcp: bool,
    /// Relays that it is connected to, controllers included, as it said over the connection that it has now.
    #[serde(default)]
    pub relays: Vec<RelayUse>,
    /// Relays that it tries to connect to in vain, as it said over the connection that it has now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays_away: Vec<RelayAway>,
    /// Drops by reason since the controller first heard of the gateway.
    pub drops: std::collections::BTreeMap<String, u64>,
    /// Alarms that stand there, as far as its newest report goes.
    pub alarms: Vec<Alarm>,
    /// Bypasses in force there that were loaded from files.
    pub bypasses: Vec<FileBypass>,
    /// Devices there that are enforced on trial, or were.
    #[serde(default)]
    pub trials: Vec<TrialReport>,
    /// Devices there that aren't in the mode that was signed, for lack of approvals.
    #[serde(default)]
    pub held_back: Vec<HeldBackReport>,
    /// The identity key that its connection of now has proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PublicKey>,
    /// How far replacing its identity key has come, where operators have asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekey: Option<RekeyState>,
}

/// What a gateway saw, with its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SightingRecord {
    /// Who saw it.
    pub gateway: GatewayId,
    /// What it saw.
    pub sighting: Sighting,
    /// When the controller first heard of it.
    pub first_seen: UnixMillis,
}

/// One revision of the model, with the operator's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRevision {
    /// The root, signed by an operator.
    pub root: Signed<IntentRoot>,
    /// The model that was compiled, as its hash in the root covers it.
    pub model: Blob,
}

/// A new revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelUpdate {
    /// The new revision.
    pub revision: ModelRevisionBody,
    /// What the operator did, such as `policy apply` or `device mode`.
    pub action: String,
    /// What they did it to.
    pub subject: String,
    /// Why, for the audit log.
    pub reason: Option<String>,
}

/// The signed body of a [`ModelUpdate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRevisionBody {
    /// The root, signed by the operator.
    pub root: Signed<IntentRoot>,
    /// The model that they compiled.
    pub model: Blob,
}

/// The answer to a [`ModelUpdate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelAccepted {
    /// The new revision's number.
    pub number: u64,
    /// Gateways for which it changes something.
    pub affected: Vec<GatewayId>,
}

/// A revision in the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionInfo {
    /// Its number.
    pub number: u64,
    /// When the controller took it.
    pub at: UnixMillis,
    /// Who signed it.
    pub operator: PublicKey,
    /// What they did.
    pub action: String,
    /// What they did it to.
    pub subject: String,
    /// Why.
    pub reason: Option<String>,
}

/// How far a revision has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The revision.
    pub number: u64,
    /// Each gateway for which it changes something.
    pub gateways: Vec<GatewayProgress>,
}

/// How far a revision has come at one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayProgress {
    /// Which gateway.
    pub gateway: GatewayId,
    /// Whether it has the revision, or a later one, in force.
    pub applied: bool,
    /// When it said so.
    pub applied_at: Option<UnixMillis>,
    /// Whether it is connected now.
    pub online: bool,
    /// Why it refused, if it did.
    pub refused: Option<String>,
}

/// Which audit entries to list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Only those after this number.
    pub after: Option<u64>,
    /// At most so many; 1,000 unless told, 10,000 at most.
    pub limit: Option<u32>,
}

/// One entry of the audit log: who, when, what, why, and what it was before. Entries are chained by hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// 1 for the first, then one more each time.
    pub number: u64,
    /// When, by the controller's clock.
    pub at: UnixMillis,
    /// Who: an operator's name and fingerprint, `controller`, or a gateway's id.
    pub actor: String,
    /// What was done, such as `gateway approve`.
    pub action: String,
    /// To what.
    pub subject: String,
    /// Why.
    pub reason: Option<String>,
    /// What it was before.
    pub before: Option<String>,
    /// What it is now.
    pub after: Option<String>,
    /// The model's revision that it made, if it made one.
    pub revision: Option<u64>,
    /// Hash of the signed root of that revision.
    pub root: Option<Hash>,
    /// The hash of the entry before; [`Hash::ZERO`] for the first.
    pub previous: Hash,
    /// This entry's own hash, as [`AuditEntry::compute_hash`] has it.
    pub hash: Hash,
}

impl AuditEntry {
    /// The hash over everything in the entry but the hash itself.
    #[must_use]
    pub fn compute_hash(&self) -> Hash {
        let body = Self { hash: Hash::ZERO, ..self.clone() };
        Hash::of("anteroom audit entry", &[&crate::cbor::encode(&body)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_entry_hashes_all_that_it_says() {
        let entry = AuditEntry {
            number: 1,
            at: UnixMillis(1),
            actor: "ana".into(),
            action: "gateway approve".into(),
            subject: "imaging".into(),
            reason: None,
            before: None,
            after: None,
            revision: None,
            root: None,
            previous: Hash::ZERO,
            hash: Hash::ZERO,
        };
        let hash = entry.compute_hash();
        assert_eq!(AuditEntry { hash, ..entry.clone() }.compute_hash(), hash);
        assert_ne!(
            AuditEntry { reason: Some(String::new()), ..entry.clone() }.compute_hash(),
            hash
        );
        assert_ne!(AuditEntry { previous: hash, ..entry }.compute_hash(), hash);
    }

    #[test]
    fn what_a_later_release_says_of_gateways_tunnels_and_relays_is_passed_over() {
        let id = crate::id::GatewayId::from_bytes([1; 16]);
        let key = crate::key::IdentityKey::from_seed(&[2; 32]).public();
        let tunnel =
            serde_json::json!({ "gateway": id, "live": true, "of_a_later_release": { "a": [1] } });
        let tunnel: TunnelState = serde_json::from_value(tunnel).unwrap();
        assert_eq!((tunnel.gateway, tunnel.live), (id, true));
        let relay = serde_json::json!({ "key": key, "carries": 3, "of_a_later_release": true });
        let relay: RelayUse = serde_json::from_value(relay).unwrap();
        assert_eq!((relay.key, relay.carries), (key, 3));
    }
}
