//! The store: everything that a controller must not forget.
//!
//! One narrow trait, so that several databases can stand behind it. Whoever implements it passes the tests in
//! `conformance`. A change and its audit entry are one transaction; a call that returns has reached the disk.

#[cfg(test)]
mod conformance;
mod record;
pub mod sqlite;

use std::collections::BTreeMap;

use anteroom_proto::api::{
    AuditEntry, Edge, EdgeQuery, HistoryQuery, RecordedHint, RekeyState, RevisionInfo,
    SightingRecord, SightingsAway,
};
use anteroom_proto::authority::Authority;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, InviteId};
use anteroom_proto::invite::Invite;
use anteroom_proto::key::{Hash, PublicKey};
use anteroom_proto::operation::ViewNumber;
use anteroom_proto::rekey::{RekeyOffer, RekeyOrder};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::Report;
use anteroom_proto::v1::{Applied, Reachable, Rotate};
use async_trait::async_trait;

pub use record::{
    Advance, AppliedFacts, EnrolOutcome, Enrolment, GatewayFacts, HelloFacts, IssueView, NewAudit,
    NewRevision, Recorded, Recording, SightingPlace, StoredInvite, StoredRevision, ViewState,
};

/// Why the store didn't do what was asked. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed.
    #[error("the database failed to {doing}: {problem}")]
    Database {
        /// What it was to do.
        doing: &'static str,
        /// What it says.
        #[source]
        problem: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The schema isn't this program's.
    #[error("the database can't be brought to this version's schema: {problem}")]
    Schema {
        /// What is wrong.
        problem: String,
    },
    /// Something that was stored can't be read.
    #[error("the database holds a damaged {what}: {problem}. Restore it from a backup")]
    Damaged {
        /// What is damaged.
        what: &'static str,
        /// How.
        problem: String,
    },
}

/// How much telemetry is kept per gateway. What is beyond is turned away and counted; but a new edge takes the
/// place of one that was never answered (packets from one side only), oldest first, or else of one that was quiet for long, which
/// is counted as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sightings per gateway. Those that nobody confirmed make room, of the port that has most of them.
    pub sightings: u32,
    /// After how many milliseconds without news a sighting that nobody confirmed goes before all others of its port.
    pub sighting_age: u64,
    /// Edges per gateway.
    pub edges: u32,
    /// After how many milliseconds without traffic an edge makes room for a new one.
    pub edge_age: u64,
    /// Edges of one device that nobody answered, as services that are never answered leave them. More are a scan's.
    pub unanswered_edges: u32,
    /// Hints per gateway. Of one device and one kind [`anteroom_proto::inventory`] says how many.
    pub hints: u32,
    /// After how many milliseconds a hint that wasn't seen again makes room for another of its device.
    pub hint_age: u64,
    /// Runs of an agent whose report watermark is remembered.
    pub boots: u32,
    /// Late identities that are audited per invite.
    pub enrolment_refusals: u32,
    /// Challenges that may be open at once.
    pub challenges: u32,
    /// Sessions that an operator may have at once; the one that lapses first makes room.
    pub sessions: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sightings: 4096,
            sighting_age: 30 * 24 * 60 * 60 * 1000,
            edges: 20_000,
            // More than a month, so that what happens at its end is there when it happens again.
            edge_age: 40 * 24 * 60 * 60 * 1000,
            unanswered_edges: 256,
            hints: 50_000,
            hint_age: 30 * 24 * 60 * 60 * 1000,
            boots: 16,
            enrolment_refusals: 16,
            challenges: 10_000,
            sessions: 64,
        }
    }
}

/// What a controller keeps.
#[async_trait]
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// The authority chain, first to newest; empty until the controller is claimed.
    async fn authority(&self) -> Result<Vec<Signed<Authority>>, StoreError>;
    /// Stores the first authority document. False, and no change, where there is one already.
    async fn claim(&self, first: &Signed<Authority>, audit: &NewAudit) -> Result<bool, StoreError>;
    /// Stores authority documents from `number` on, with one audit entry and with the revision that the last of them
    /// names as the newest where that was `lost`. Whoever waited for it after a restore waits no more. False, and no
    /// change, where `number` isn't the next one, or the revision isn't newer than those that are held.
    async fn add_authority(
        &self,
        number: u64,
        documents: &[Signed<Authority>],
        lost: Option<&NewRevision>,
        audit: &NewAudit,
    ) -> Result<bool, StoreError>;
    /// Since when the controller waits for an operator to sign it back in; none where it doesn't.
    async fn restored(&self) -> Result<Option<UnixMillis>, StoreError>;
    /// Notes that it does from now on.
    async fn set_restored(&self, audit: &NewAudit) -> Result<(), StoreError>;

    /// Stores an invite. False, and no change, where its id or its gateway's id is taken.
    async fn add_invite(
        &self,
        invite: &StoredInvite,
        at: UnixMillis,
        audit: &NewAudit,
    ) -> Result<bool, StoreError>;
    /// One invite.
    async fn invite(&self, invite: InviteId) -> Result<Option<StoredInvite>, StoreError>;
    /// The newest `limit` invites, newest first.
    async fn invites(&self, limit: u32) -> Result<Vec<StoredInvite>, StoreError>;

    /// Lets a gateway's identity have its invite, if no other has it. The `audit` entry is written for the
    /// first use, `refusal` for an identity that comes too late (once for each, and for a bounded number).
    async fn enrol(
        &self,
        enrolment: &Enrolment,
        audit: &NewAudit,
        refusal: &NewAudit,
    ) -> Result<EnrolOutcome, StoreError>;
    /// A gateway's enrolment.
    async fn enrolment(&self, gateway: GatewayId) -> Result<Option<Enrolment>, StoreError>;
    /// Every enrolment of a gateway that has never been in a model.
    async fn pending(&self, limit: u32) -> Result<Vec<Enrolment>, StoreError>;
    /// Whether the gateway has ever been in a model.
    async fn was_approved(&self, gateway: GatewayId) -> Result<bool, StoreError>;

    /// The newest revision.
    async fn newest_model(&self) -> Result<Option<StoredRevision>, StoreError>;
    /// The revision with this number.
    async fn model(&self, number: u64) -> Result<Option<StoredRevision>, StoreError>;
    /// Up to `limit` revisions, newest first.
    async fn revisions(&self, limit: u32) -> Result<Vec<RevisionInfo>, StoreError>;
    /// Stores a revision, which gateways it affects, and its audit entry. False, and no change, where its
    /// number isn't the next one.
    async fn add_model(&self, revision: &NewRevision, audit: &NewAudit)
    -> Result<bool, StoreError>;
    /// The gateways that a revision affects, and how far each is; none where there is no such revision.
    async fn progress(&self, number: u64) -> Result<Option<Vec<Advance>>, StoreError>;

    /// What is known of a gateway.
    async fn gateway(&self, gateway: GatewayId) -> Result<Option<GatewayFacts>, StoreError>;
    /// What is known of every enrolled gateway.
    async fn gateways(&self) -> Result<BTreeMap<GatewayId, GatewayFacts>, StoreError>;
    /// Records a gateway's greeting.
    async fn record_hello(&self, gateway: GatewayId, hello: &HelloFacts) -> Result<(), StoreError>;
    /// Records where a gateway can be reached.
    async fn record_reachable(
        &self,
        gateway: GatewayId,
        reachable: &Reachable,
        at: UnixMillis,
    ) -> Result<(), StoreError>;
    /// Notes which tunnel keys of which gateways are to be replaced, on top of what was noted before.
    async fn want_rotations(
        &self,
        wanted: &BTreeMap<GatewayId, Rotate>,
        audit: &NewAudit,
    ) -> Result<(), StoreError>;
    /// Which tunnel keys of which gateways are to be replaced.
    async fn rotations(&self) -> Result<BTreeMap<GatewayId, Rotate>, StoreError>;
    /// Notes an order that a gateway's identity key is to be replaced, in the place of an earlier one and of what was
    /// offered upon that.
    async fn want_rekey(
        &self,
        gateway: GatewayId,
        order: &Signed<RekeyOrder>,
        audit: &NewAudit,
    ) -> Result<(), StoreError>;
    /// Notes which key a gateway offers upon `order`, where that is the newest.
    async fn offer_rekey(
        &self,
        gateway: GatewayId,
        order: &Signed<RekeyOrder>,
        offer: &RekeyOffer,
    ) -> Result<(), StoreError>;
    /// Notes that a gateway has offered yet another key upon `order`, where that is the newest. The first is kept.
    async fn doubt_rekey(
        &self,
        gateway: GatewayId,
        order: &Signed<RekeyOrder>,
        audit: &NewAudit,
    ) -> Result<(), StoreError>;
    /// Forgets `order` and what was offered upon it, where that is the newest.
    async fn end_rekey(
        &self,
        gateway: GatewayId,
        order: &Signed<RekeyOrder>,
    ) -> Result<(), StoreError>;
    /// Whether one gateway's identity key is to be replaced, and what it offered.
    async fn rekey(&self, gateway: GatewayId) -> Result<Option<RekeyState>, StoreError>;
    /// Which identity keys are to be replaced, and what gateways offered.
    async fn rekeys(&self) -> Result<BTreeMap<GatewayId, RekeyState>, StoreError>;
    /// Records what a gateway has in force, or why it refused a view.
    async fn record_applied(
        &self,
        gateway: GatewayId,
        applied: &Applied,
        at: UnixMillis,
    ) -> Result<(), StoreError>;
    /// Records that gateways were connected at `at`.
    async fn record_seen(&self, gateways: &[GatewayId], at: UnixMillis) -> Result<(), StoreError>;
    /// Gives each of `views` its gateway's next number in `incarnation` and remembers what it holds. Unknown
    /// gateways are left out.
    async fn issue_views(
        &self,
        incarnation: u64,
        views: &[IssueView],
    ) -> Result<Vec<(GatewayId, ViewNumber)>, StoreError>;

    /// Keeps the next `count` numbers for passes and gives the first of them. No number is given twice.
    async fn reserve_passes(&self, count: u32) -> Result<u64, StoreError>;

    /// Adds a report, unless it or a later one of the same run is stored already.
    async fn record_report(
        &self,
        gateway: GatewayId,
        report: &Report,
        at: UnixMillis,
    ) -> Result<Recorded, StoreError>;
    /// Up to `limit` sightings, last seen first.
    async fn sightings(&self, limit: u32) -> Result<Vec<SightingRecord>, StoreError>;
    /// Up to `limit` sightings in a lasting order, from behind `after` on (from the first one, where it is none).
    async fn sightings_after(
        &self,
        after: Option<&SightingPlace>,
        limit: u32,
    ) -> Result<Vec<SightingRecord>, StoreError>;
    /// The sightings of each gateway that found no room, or made some.
    async fn sightings_away(&self) -> Result<BTreeMap<GatewayId, SightingsAway>, StoreError>;
    /// Up to `limit` edges that `query` asks for, newest first.
    async fn edges(&self, query: &EdgeQuery, limit: u32) -> Result<Vec<Edge>, StoreError>;
    /// Up to `limit` edges that `query` asks for in a lasting order, from behind place [`HistoryQuery::after`] on (from the first one,
    /// where it is none), and the place of the last of them.
    async fn history(
        &self,
        query: &HistoryQuery,
        limit: u32,
    ) -> Result<(Vec<Edge>, Option<u64>), StoreError>;
    /// What the flow history holds: when gateways watched, and what found or kept no room.
    async fn recording(&self) -> Result<Recording, StoreError>;

    /// Up to `limit` hints in a lasting order, from behind place `after` on (from the first one, where it is none), and the place
    /// of the last of them.
    async fn hints(
        &self,
        after: Option<u64>,
        limit: u32,
    ) -> Result<(Vec<RecordedHint>, Option<u64>), StoreError>;
    /// Hints that found no room.
    async fn hints_away(&self) -> Result<u64, StoreError>;

    /// Appends an audit entry for what needs no other change.
    async fn append_audit(&self, audit: &NewAudit) -> Result<AuditEntry, StoreError>;
    /// Up to `limit` audit entries after number `after`, oldest first.
    async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError>;

    /// Stores the hash of a session's token.
    async fn add_session(
        &self,
        token: Hash,
        operator: PublicKey,
        now: UnixMillis,
        not_after: UnixMillis,
    ) -> Result<(), StoreError>;
    /// Whose live session this is.
    async fn session(&self, token: Hash, now: UnixMillis) -> Result<Option<PublicKey>, StoreError>;
    /// Forgets a session.
    async fn end_session(&self, token: Hash) -> Result<(), StoreError>;
    /// Stores the hash of a challenge's nonce. False where too many are open.
    async fn add_challenge(
        &self,
        nonce: Hash,
        now: UnixMillis,
        not_after: UnixMillis,
    ) -> Result<bool, StoreError>;
    /// Uses a challenge up. False where it is unknown, lapsed or used.
    async fn take_challenge(&self, nonce: Hash, now: UnixMillis) -> Result<bool, StoreError>;

    /// Finishes what is under way and lets go of the database.
    async fn close(&self);
}

impl StoredInvite {
    /// The row for a checked invite.
    #[must_use]
    pub fn new(invite: &Invite, signed: &Signed<Invite>) -> Self {
        Self {
            invite: invite.invite,
            gateway: invite.gateway,
            signed: signed.clone(),
            used_by: None,
        }
    }
}
