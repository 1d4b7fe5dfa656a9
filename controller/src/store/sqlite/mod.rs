//! The store in SQLite: one file, nothing to install.
//!
//! Write-ahead log and `synchronous = FULL`: what a call has returned survives a power cut. One connection
//! writes; readers have their own.

mod audit;
mod authority;
pub mod backup;
mod enrolment;
mod gateway;
mod hints;
mod model;
mod rekey;
mod session;
mod shares;
mod sightings;
mod telemetry;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anteroom_proto::api::{
    AuditEntry, Edge, EdgeQuery, HistoryQuery, RecordedHint, RekeyState, RevisionInfo,
    SightingRecord, SightingsAway,
};
use anteroom_proto::authority::Authority;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, InviteId};
use anteroom_proto::key::{Hash, PublicKey};
use anteroom_proto::operation::ViewNumber;
use anteroom_proto::rekey::{RekeyOffer, RekeyOrder};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::Report;
use anteroom_proto::v1::{Applied, Reachable, Rotate};
use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, Transaction};

use super::{
    Advance, EnrolOutcome, Enrolment, GatewayFacts, HelloFacts, IssueView, Limits, NewAudit,
    NewRevision, Recorded, Recording, SightingPlace, Store, StoreError, StoredInvite,
    StoredRevision,
};
use value::failed;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// How many connections read at once.
const READERS: u32 = 4;
/// How long a call waits for its turn.
const BUSY: Duration = Duration::from_secs(10);

/// A store in a SQLite database.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    limits: Limits,
}

impl SqliteStore {
    /// Opens the database in `file`, which must exist unless `create`, and brings it to this version's schema.
    ///
    /// # Errors
    /// When the file can't be opened, isn't a database, or was made by a newer version.
    pub async fn open(file: &Path, create: bool, limits: Limits) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let writer = pool(1, options.clone()).await?;
        migrate(&writer).await?;
        let readers = pool(READERS, options.create_if_missing(false).read_only(true)).await?;
        Ok(Self { writer, readers, limits })
    }

    /// A store that lives and dies with the process. For tests.
    ///
    /// # Errors
    /// When SQLite can't be had at all.
    pub async fn in_memory(limits: Limits) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str("sqlite::memory:")
            .map_err(failed("open"))?
            .foreign_keys(true);
        let writer = pool(1, options).await?;
        migrate(&writer).await?;
        Ok(Self { readers: writer.clone(), writer, limits })
    }

    /// A transaction that writes. SQLite lets one in at a time.
    ///
    /// Where the disk is full SQLite rolls a transaction back by itself, and the connection goes on believing that one is
    /// open: it is given up for a new one, so that the store works again once there is room.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        let begin = || self.writer.begin_with("BEGIN IMMEDIATE");
        let begun = match begin().await {
            Err(sqlx::Error::InvalidSavePointStatement) => {
                let stale = self.writer.acquire().await.map_err(failed("give up a connection"))?;
                stale.close().await.map_err(failed("give up a connection"))?;
                begin().await
            }
            begun => begun,
        };
        begun.map_err(failed("begin a change"))
    }
}

async fn pool(size: u32, options: SqliteConnectOptions) -> Result<SqlitePool, StoreError> {
    SqlitePoolOptions::new()
        .max_connections(size)
        .min_connections(1)
        .acquire_timeout(BUSY)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await
        .map_err(failed("open"))
}

async fn migrate(writer: &SqlitePool) -> Result<(), StoreError> {
    MIGRATIONS.run(writer).await.map_err(|error| StoreError::Schema { problem: error.to_string() })
}

async fn commit(transaction: Transaction<'static, Sqlite>) -> Result<(), StoreError> {
    transaction.commit().await.map_err(failed("commit a change"))
}

#[async_trait]
impl Store for SqliteStore {
    async fn authority(&self) -> Result<Vec<Signed<Authority>>, StoreError> {
        authority::chain(&self.readers).await
    }

    async fn claim(&self, first: &Signed<Authority>, audit: &NewAudit) -> Result<bool, StoreError> {
        let mut change = self.begin().await?;
        if !authority::add(&mut change, first, 1).await? {
            return Ok(false);
        }
        audit::append(&mut change, audit).await?;
        commit(change).await.map(|()| true)
    }

    async fn add_authority(
        &self,
        number: u64,
        documents: &[Signed<Authority>],
        lost: Option<&NewRevision>,
        audit: &NewAudit,
    ) -> Result<bool, StoreError> {
        let mut change = self.begin().await?;
        for (number, document) in (number..).zip(documents) {
            if !authority::add(&mut change, document, number).await? {
                return Ok(false);
            }
        }
        if let Some(lost) = lost
            && !model::add(&mut change, lost, model::Place::AfterLoss).await?
        {
            return Ok(false);
        }
        authority::set_restored(&mut change, None).await?;
        audit::append(&mut change, audit).await?;
        commit(change).await.map(|()| true)
    }

    async fn restored(&self) -> Result<Option<UnixMillis>, StoreError> {
        authority::restored(&self.readers).await
    }

    async fn set_restored(&self, audit: &NewAudit) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        authority::set_restored(&mut change, Some(audit.at)).await?;
        rekey::restored(&mut change).await?;
        audit::append(&mut change, audit).await?;
        commit(change).await
    }

    async fn add_invite(
        &self,
        invite: &StoredInvite,
        at: UnixMillis,
        audit: &NewAudit,
    ) -> Result<bool, StoreError> {
        let mut change = self.begin().await?;
        if !enrolment::add_invite(&mut change, invite, at).await? {
            return Ok(false);
        }
        audit::append(&mut change, audit).await?;
        commit(change).await.map(|()| true)
    }

    async fn invite(&self, invite: InviteId) -> Result<Option<StoredInvite>, StoreError> {
        enrolment::invite(&self.readers, invite).await
    }

    async fn invites(&self, limit: u32) -> Result<Vec<StoredInvite>, StoreError> {
        enrolment::invites(&self.readers, limit).await
    }

    async fn enrol(
        &self,
        enrolment: &Enrolment,
        audit: &NewAudit,
        refusal: &NewAudit,
    ) -> Result<EnrolOutcome, StoreError> {
        let mut change = self.begin().await?;
        let outcome = enrolment::enrol(&mut change, enrolment).await?;
        let entry = match outcome {
            EnrolOutcome::First => Some(audit),
            EnrolOutcome::Again => None,
            EnrolOutcome::Taken => {
                let limit = self.limits.enrolment_refusals;
                enrolment::note_refusal(&mut change, enrolment, limit).await?.then_some(refusal)
            }
        };
        if let Some(entry) = entry {
            audit::append(&mut change, entry).await?;
            commit(change).await?;
        }
        Ok(outcome)
    }

    async fn enrolment(&self, gateway: GatewayId) -> Result<Option<Enrolment>, StoreError> {
        enrolment::enrolment(&self.readers, gateway).await
    }

    async fn pending(&self, limit: u32) -> Result<Vec<Enrolment>, StoreError> {
        enrolment::pending(&self.readers, limit).await
    }

    async fn was_approved(&self, gateway: GatewayId) -> Result<bool, StoreError> {
        enrolment::was_approved(&self.readers, gateway).await
    }

    async fn newest_model(&self) -> Result<Option<StoredRevision>, StoreError> {
        model::newest(&self.readers).await
    }

    async fn model(&self, number: u64) -> Result<Option<StoredRevision>, StoreError> {
        model::at(&self.readers, number).await
    }

    async fn revisions(&self, limit: u32) -> Result<Vec<RevisionInfo>, StoreError> {
        model::history(&self.readers, limit).await
    }

    async fn add_model(
        &self,
        revision: &NewRevision,
        audit: &NewAudit,
    ) -> Result<bool, StoreError> {
        let mut change = self.begin().await?;
        if !model::add(&mut change, revision, model::Place::Next).await? {
            return Ok(false);
        }
        audit::append(&mut change, audit).await?;
        commit(change).await.map(|()| true)
    }

    async fn progress(&self, number: u64) -> Result<Option<Vec<Advance>>, StoreError> {
        model::progress(&self.readers, number).await
    }

    async fn gateway(&self, gateway: GatewayId) -> Result<Option<GatewayFacts>, StoreError> {
        gateway::one(&self.readers, gateway).await
    }

    async fn gateways(&self) -> Result<BTreeMap<GatewayId, GatewayFacts>, StoreError> {
        gateway::all(&self.readers).await
    }

    async fn record_hello(&self, gateway: GatewayId, hello: &HelloFacts) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        gateway::hello(&mut change, gateway, hello).await?;
        commit(change).await
    }

    async fn record_reachable(
        &self,
        gateway: GatewayId,
        reachable: &Reachable,
        at: UnixMillis,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        gateway::reachable(&mut change, gateway, reachable, at).await?;
        commit(change).await
    }

    async fn want_rotations(
        &self,
        wanted: &BTreeMap<GatewayId, Rotate>,
        audit: &NewAudit,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        for (gateway, rotate) in wanted {
            gateway::want_rotation(&mut change, *gateway, *rotate).await?;
        }
        audit::append(&mut change, audit).await?;
        commit(change).await
    }

    async fn rotations(&self) -> Result<BTreeMap<GatewayId, Rotate>, StoreError> {
        gateway::rotations(&self.readers).await
    }

    async fn want_rekey(
        &self,
        gateway: GatewayId,
        order: &Signed<RekeyOrder>,
        audit: &NewAudit,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        rekey::want(&mut change, gateway, order).await?;
        audit::append(&mut change, audit).await?;
        commit(change).await
    }

    async fn offer_rekey(
        &self,
        gateway: GatewayId,
        order: &Signed<RekeyOrder>,
        offer: &RekeyOffer,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        rekey::offer(&mut change, gateway, order, offer).await?;
        commit(change).await
    }

    async fn doubt_rekey(
        &self,
        gateway: GatewayId,
        order: &Signed<RekeyOrder>,
        audit: &NewAudit,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        rekey::doubt(&mut change, gateway, order).await?;
        audit::append(&mut change, audit).await?;
        commit(change).await
    }

    async fn end_rekey(
        &self,
        gateway: GatewayId,
        order: &Signed<RekeyOrder>,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        rekey::forget(&mut change, gateway, order).await?;
        commit(change).await
    }

    async fn rekey(&self, gateway: GatewayId) -> Result<Option<RekeyState>, StoreError> {
        rekey::one(&self.readers, gateway).await
    }

    async fn rekeys(&self) -> Result<BTreeMap<GatewayId, RekeyState>, StoreError> {
        rekey::all(&self.readers).await
    }

    async fn record_applied(
        &self,
        gateway: GatewayId,
        applied: &Applied,
        at: UnixMillis,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        gateway::applied(&mut change, gateway, applied, at).await?;
        commit(change).await
    }

    async fn record_seen(&self, gateways: &[GatewayId], at: UnixMillis) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        for gateway in gateways {
            gateway::seen(&mut change, *gateway, at).await?;
        }
        commit(change).await
    }

    async fn issue_views(
        &self,
        incarnation: u64,
        views: &[IssueView],
    ) -> Result<Vec<(GatewayId, ViewNumber)>, StoreError> {
        let mut change = self.begin().await?;
        let mut issued = Vec::with_capacity(views.len());
        for view in views {
            if let Some(number) = gateway::issue(&mut change, incarnation, view).await? {
                issued.push((view.gateway, number));
            }
        }
        commit(change).await?;
        Ok(issued)
    }

    async fn reserve_passes(&self, count: u32) -> Result<u64, StoreError> {
        let mut change = self.begin().await?;
        let first = gateway::reserve_passes(&mut change, count).await?;
        commit(change).await?;
        Ok(first)
    }

    async fn record_report(
        &self,
        gateway: GatewayId,
        report: &Report,
        at: UnixMillis,
    ) -> Result<Recorded, StoreError> {
        let mut change = self.begin().await?;
        let recorded = telemetry::record(&mut change, gateway, report, at, &self.limits).await?;
        commit(change).await?;
        Ok(recorded)
    }

    async fn sightings(&self, limit: u32) -> Result<Vec<SightingRecord>, StoreError> {
        sightings::newest(&self.readers, limit).await
    }

    async fn sightings_after(
        &self,
        after: Option<&SightingPlace>,
        limit: u32,
    ) -> Result<Vec<SightingRecord>, StoreError> {
        sightings::page(&self.readers, after, limit).await
    }

    async fn sightings_away(&self) -> Result<BTreeMap<GatewayId, SightingsAway>, StoreError> {
        sightings::away(&self.readers).await
    }

    async fn edges(&self, query: &EdgeQuery, limit: u32) -> Result<Vec<Edge>, StoreError> {
        telemetry::edges(&self.readers, query, limit).await
    }

    async fn history(
        &self,
        query: &HistoryQuery,
        limit: u32,
    ) -> Result<(Vec<Edge>, Option<u64>), StoreError> {
        telemetry::history(&self.readers, query, limit).await
    }

    async fn recording(&self) -> Result<Recording, StoreError> {
        telemetry::recording(&self.readers).await
    }

    async fn hints(
        &self,
        after: Option<u64>,
        limit: u32,
    ) -> Result<(Vec<RecordedHint>, Option<u64>), StoreError> {
        hints::page(&self.readers, after, limit).await
    }

    async fn hints_away(&self) -> Result<u64, StoreError> {
        hints::away(&self.readers).await
    }

    async fn append_audit(&self, audit: &NewAudit) -> Result<AuditEntry, StoreError> {
        let mut change = self.begin().await?;
        let entry = audit::append(&mut change, audit).await?;
        commit(change).await?;
        Ok(entry)
    }

    async fn audit(&self, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        audit::list(&self.readers, after, limit).await
    }

    async fn add_session(
        &self,
        token: Hash,
        operator: PublicKey,
        now: UnixMillis,
        not_after: UnixMillis,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        let keep = self.limits.sessions;
        session::add(&mut change, token, operator, now, not_after, keep).await?;
        commit(change).await
    }

    async fn session(&self, token: Hash, now: UnixMillis) -> Result<Option<PublicKey>, StoreError> {
        session::operator(&self.readers, token, now).await
    }

    async fn end_session(&self, token: Hash) -> Result<(), StoreError> {
        session::end(&self.writer, token).await
    }

    async fn add_challenge(
        &self,
        nonce: Hash,
        now: UnixMillis,
        not_after: UnixMillis,
    ) -> Result<bool, StoreError> {
        let mut change = self.begin().await?;
        let added =
            session::add_challenge(&mut change, nonce, now, not_after, self.limits.challenges)
                .await?;
        commit(change).await?;
        Ok(added)
    }

    async fn take_challenge(&self, nonce: Hash, now: UnixMillis) -> Result<bool, StoreError> {
        session::take_challenge(&self.writer, nonce, now).await
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
