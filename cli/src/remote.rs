//! The controller as an operator works with it: logged in, with the authority chain followed.

use anteroom_proto::api::{
    AuditEntry, AuditQuery, AuthorityUpdate, Challenge, Edge, EdgeQuery, GatewayStatus, HintsPage,
    HintsQuery, HistoryPage, HistoryQuery, Login, LoginRequest, NewInvite, OfflineBypass,
    PendingGateway, Progress, Restored, RevisionInfo, Session, SightingRecord, SightingsPage,
    SightingsQuery, paths,
};
use anteroom_proto::authority::{Authority, AuthorityChain};
use anteroom_proto::cose::Signed;
use anteroom_proto::key::{IdentityKey, PublicKey};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Client, ClientError};
use crate::error::Error;
use crate::home::{Config, Home, Trust};
use crate::output::time::now;
use crate::sightings::Sightings;

/// Lengths of a challenge, in bytes.
const NONCE: std::ops::RangeInclusive<usize> = 8..=64;
/// A token is renewed when it has less than this left, in milliseconds.
const RENEW_BEFORE: u64 = 5_000;

/// Sightings that are asked for at once.
const PAGE: u32 = 5_000;

/// The controller, logged in to.
#[derive(Debug)]
pub struct Remote {
    home: Home,
    config: Config,
    key: IdentityKey,
    client: Client,
    token: String,
    chain: AuthorityChain,
    lost: Vec<Signed<Authority>>,
}

/// Whether a controller may serve less of the authority chain than was seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// No: that is a lie.
    Refused,
    /// Yes: it is said to be restored.
    Expected,
}

impl Remote {
    /// Logs in where there is no token yet, fetches the authority chain, follows it and keeps it.
    ///
    /// # Errors
    /// When nobody logged in from here yet, the controller can't be reached or refuses, or its chain can't be
    /// followed.
    pub fn open(home: &Home) -> Result<Self, Error> {
        let kept = home.session()?.filter(|s| s.not_after > now().saturating_add(RENEW_BEFORE));
        Self::open_as(home, home.config()?, home.key()?, kept, Loss::Refused)
    }

    /// The same with another controller, or another key, than those that are kept; or with one that may have lost
    /// documents of the authority chain.
    ///
    /// # Errors
    /// As for [`Remote::open`].
    pub fn open_as(
        home: &Home,
        config: Config,
        key: IdentityKey,
        kept: Option<Session>,
        loss: Loss,
    ) -> Result<Self, Error> {
        let client = Client::new(&config.controller, config.certificate, home.exchange())?;
        let token = match kept {
            Some(session) => session.token,
            None => log_in(home, &config, &key, &client)?.token,
        };
        let trust = home.trust()?;
        let (served, token) = {
            let get = |token: &str| {
                client.get::<Vec<Signed<Authority>>>(paths::AUTHORITY, &(), Some(token))
            };
            match get(&token) {
                Err(error) if error.has_status(401) => {
                    let token = log_in(home, &config, &key, &client)?.token;
                    (get(&token)?, token)
                }
                other => (other?, token),
            }
        };
        let mut lost = Vec::new();
        let chain = match &trust {
            Some(trust) if loss == Loss::Expected && trust.chain.starts_with(&served) => {
                lost.extend_from_slice(trust.chain.get(served.len()..).unwrap_or_default());
                trust.follow()?
            }
            Some(trust) => trust.replace(&served)?,
            None => first_sight(&config, &key, &served)?,
        };
        let newest = Trust::of(&chain);
        if trust.as_ref() != Some(&newest) {
            home.write_trust(&newest)?;
        }
        Ok(Self { home: home.clone(), config, key, client, token, chain, lost })
    }

    /// That the controller waits to be signed back in, if it does.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn restored(&mut self) -> Result<Option<Restored>, Error> {
        self.get(paths::RESTORED)
    }

    /// The newest documents of the authority chain, which the controller has lost.
    #[must_use]
    pub fn lost(&self) -> &[Signed<Authority>] {
        &self.lost
    }

    /// Hands the next authority document in, and follows it.
    ///
    /// # Errors
    /// When it doesn't follow the chain, or as the controller or the way to it has it.
    pub fn extend(&mut self, update: &AuthorityUpdate) -> Result<(), Error> {
        let mut chain = self.chain.clone();
        chain.extend(&update.document)?;
        self.with_token(|client, token| client.post_silent(paths::AUTHORITY, update, Some(token)))?;
        self.home.write_trust(&Trust::of(&chain))?;
        self.chain = chain;
        self.lost.clear();
        Ok(())
    }

    /// The operator's files.
    #[must_use]
    pub const fn home(&self) -> &Home {
        &self.home
    }

    /// Which controller is trusted.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The operator's key.
    #[must_use]
    pub const fn key(&self) -> &IdentityKey {
        &self.key
    }

    /// The authority chain, followed from its pinned start.
    #[must_use]
    pub const fn chain(&self) -> &AuthorityChain {
        &self.chain
    }

    /// What the authority documents, the newest first, call the operator with this key.
    #[must_use]
    pub fn operator_name(&self, key: PublicKey) -> Option<String> {
        let documents = self.chain.to_signed();
        documents
            .iter()
            .rev()
            .filter_map(|document| document.verify_self_named().ok())
            .find_map(|document| document.operator(key).map(|operator| operator.name.to_string()))
    }

    /// Does `request` with the token; where the controller no longer knows it, logs in and does it once more.
    fn with_token<T>(
        &mut self,
        request: impl Fn(&Client, &str) -> Result<T, ClientError>,
    ) -> Result<T, Error> {
        match request(&self.client, &self.token) {
            Err(error) if error.has_status(401) => {
                self.token = log_in(&self.home, &self.config, &self.key, &self.client)?.token;
                Ok(request(&self.client, &self.token)?)
            }
            other => Ok(other?),
        }
    }

    /// The answer to a GET.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Error> {
        self.with_token(|client, token| client.get(path, &(), Some(token)))
    }

    /// The answer to a GET, or nothing where the controller says that there is no such thing.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn find<T: DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, Error> {
        match self.get(path) {
            Err(Error::Client(error)) if error.has_status(404) => Ok(None),
            other => other.map(Some),
        }
    }

    /// The answer to a POST.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.with_token(|client, token| client.post(path, body, Some(token)))
    }

    /// Hands an invite in.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn invite(&mut self, invite: &NewInvite) -> Result<(), Error> {
        self.with_token(|client, token| client.post_silent(paths::INVITES, invite, Some(token)))
    }

    /// Tells of a bypass that was ordered without the controller.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn tell_bypass(&mut self, told: &OfflineBypass) -> Result<(), Error> {
        self.with_token(|client, token| client.post_silent(paths::BYPASSES, told, Some(token)))
    }

    /// Gateways that wait for approval, unchecked.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn pending(&mut self) -> Result<Vec<PendingGateway>, Error> {
        self.get(paths::PENDING)
    }

    /// How the gateways are.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn gateways(&mut self) -> Result<Vec<GatewayStatus>, Error> {
        self.get(paths::GATEWAYS)
    }

    /// What the gateways saw: all that is kept.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn sightings(&mut self) -> Result<Vec<SightingRecord>, Error> {
        Ok(self.sighted()?.records)
    }

    /// What the gateways saw, and what isn't kept of it.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn sighted(&mut self) -> Result<Sightings, Error> {
        let mut all = Sightings::default();
        let mut query = SightingsQuery { limit: Some(PAGE), ..SightingsQuery::default() };
        loop {
            let page: SightingsPage = match self
                .with_token(|client, token| client.get(paths::SIGHTINGS_PAGE, &query, Some(token)))
            {
                // An older controller gives the newest alone.
                Err(Error::Client(error)) if error.has_status(404) && query.after.is_none() => {
                    return Ok(Sightings::of_older(self.get(paths::SIGHTINGS)?));
                }
                other => other?,
            };
            all.add(page.sightings, page.away);
            match page.next {
                Some(next) if query.after.as_ref() != Some(&next) => query.after = Some(next),
                _ => return Ok(all),
            }
        }
    }

    /// Edges of traffic.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn edges(&mut self, query: &EdgeQuery) -> Result<Vec<Edge>, Error> {
        self.with_token(|client, token| client.get(paths::EDGES, query, Some(token)))
    }

    /// A page of the flow history; none where the controller is older and gives no pages.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn history_page(&mut self, query: &HistoryQuery) -> Result<Option<HistoryPage>, Error> {
        match self.with_token(|client, token| client.get(paths::HISTORY, query, Some(token))) {
            Err(Error::Client(error)) if error.has_status(404) => Ok(None),
            other => other.map(Some),
        }
    }

    /// A page of what devices let be seen of themselves; none where the controller is older and keeps nothing of it.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn hints_page(&mut self, query: &HintsQuery) -> Result<Option<HintsPage>, Error> {
        match self.with_token(|client, token| client.get(paths::HINTS, query, Some(token))) {
            Err(Error::Client(error)) if error.has_status(404) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Entries of the audit log.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn audit(&mut self, query: &AuditQuery) -> Result<Vec<AuditEntry>, Error> {
        self.with_token(|client, token| client.get(paths::AUDIT, query, Some(token)))
    }

    /// The history of revisions, newest first.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn revisions(&mut self) -> Result<Vec<RevisionInfo>, Error> {
        self.get(paths::REVISIONS)
    }

    /// How far a revision has come.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn progress(&mut self, number: u64) -> Result<Progress, Error> {
        self.get(&paths::PROGRESS.replace("{number}", &number.to_string()))
    }

    /// Forgets the token, here and at the controller.
    ///
    /// # Errors
    /// As the controller or the way to it has it.
    pub fn log_out(mut self) -> Result<(), Error> {
        self.home.write_session(None)?;
        self.with_token(|client, token| client.post_silent(paths::LOGOUT, &(), Some(token)))?;
        Ok(self.home.write_session(None)?)
    }
}

/// Signs the controller's challenge and keeps the session that it gives.
pub(crate) fn log_in(
    home: &Home,
    config: &Config,
    key: &IdentityKey,
    client: &Client,
) -> Result<Session, Error> {
    let challenge: Challenge = client.post(paths::CHALLENGE, &(), None)?;
    let length = challenge.nonce.0.len();
    if !NONCE.contains(&length) {
        return Err(Error::Other(format!(
            "the controller wants a challenge of {length} bytes signed, and a challenge is never that long: nothing was signed. Treat this controller as stolen until you know better"
        )));
    }
    let login = Login {
        organisation: config.organisation,
        controller: config.controller_key,
        nonce: challenge.nonce,
    };
    let request = LoginRequest { login: Signed::sign(&login, key) };
    let session: Session = client.post(paths::LOGIN, &request, None)?;
    home.write_session(Some(&session))?;
    Ok(session)
}

/// The chain as an operator sees it first who was added by another: it must name their key and the
/// controller's that was pinned when they logged in.
fn first_sight(
    config: &Config,
    key: &IdentityKey,
    served: &[Signed<Authority>],
) -> Result<AuthorityChain, Error> {
    let chain = match config.authority {
        Some(pinned) => AuthorityChain::follow(pinned, served)?,
        None => AuthorityChain::follow_unpinned(served)?,
    };
    let newest = chain.newest();
    if newest.organisation != config.organisation {
        return Err(Error::Other(format!(
            "the controller said that it is {}'s, but serves the authority chain of {}: don't trust it",
            config.organisation, newest.organisation
        )));
    }
    if newest.operator(key.public()).is_none() && newest.recovery != key.public() {
        return Err(Error::Other(format!(
            "the authority document doesn't name your key {}: ask an operator of the organisation to add it",
            key.public().fingerprint()
        )));
    }
    if !newest.controller_keys().contains(&config.controller_key) {
        return Err(Error::Other(format!(
            "the authority document doesn't name the controller's key {}: don't trust this controller",
            config.controller_key.fingerprint()
        )));
    }
    Ok(chain)
}
