//! A controller small enough to lie on purpose: HTTPS on loopback, everything in memory.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};

use anteroom_controller_core::compile::compile;
use anteroom_controller_core::model::Model;
use anteroom_proto::alarm::Alarm;
use anteroom_proto::api::*;
use anteroom_proto::authority::{Authority, AuthorityChain};
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::bypass::BypassOrder;
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::intent::IntentRoot;
use anteroom_proto::inventory::HintKind;
use anteroom_proto::invite::{IdentityClaim, Invite, InviteCode};
use anteroom_proto::key::{Hash, IdentityKey, PublicKey};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::rollout::{HeldBackReport, TrialReport};
use anteroom_proto::setup::SetupCode;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::{FileBypass, RelayAway, RelayUse, Sighting};
use anteroom_proto::v1::{PortInfo, Unlisted};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

mod http;
mod pages;

use http::serve;

/// Changes an answer on its way out: path, status and body.
pub(crate) type Lie = Box<dyn FnMut(&str, &mut u16, &mut Value) + Send>;

/// What happens just before an update is looked at.
pub(crate) type Interference = Box<dyn FnOnce(&mut State) + Send>;

pub(crate) struct State {
    pub(crate) key: IdentityKey,
    pub(crate) secret: Vec<u8>,
    pub(crate) chain: Vec<Signed<Authority>>,
    pub(crate) tokens: HashMap<String, PublicKey>,
    pub(crate) logins: u64,
    nonce: u64,
    pub(crate) invites: Vec<Signed<Invite>>,
    pub(crate) pending: Vec<PendingGateway>,
    /// The ports that every gateway tells.
    pub(crate) ports: Vec<&'static str>,
    /// Those of them that let unlisted addresses pass.
    pub(crate) passes: Vec<&'static str>,
    /// What gateways report of their cables.
    pub(crate) alarms: BTreeMap<GatewayId, Vec<Alarm>>,
    /// What gateways tell of devices on trial, and of those that they hold back.
    pub(crate) trials: BTreeMap<GatewayId, Vec<TrialReport>>,
    pub(crate) held_back: BTreeMap<GatewayId, Vec<HeldBackReport>>,
    /// Relays that gateways are connected to, and those that they try in vain.
    pub(crate) at_relays: BTreeMap<GatewayId, Vec<RelayUse>>,
    pub(crate) relays_away: BTreeMap<GatewayId, Vec<RelayAway>>,
    /// Bypass orders that it was told of.
    pub(crate) bypasses: Vec<Signed<BypassOrder>>,
    /// Bypasses that every gateway follows by file.
    pub(crate) file_bypasses: Vec<FileBypass>,
    pub(crate) tunnel_keys: BTreeMap<GatewayId, Vec<Signed<TunnelKeyBinding>>>,
    pub(crate) revisions: Vec<(ModelRevision, RevisionInfo)>,
    pub(crate) audit: Vec<AuditEntry>,
    pub(crate) sightings: Vec<SightingRecord>,
    /// What isn't kept of them.
    pub(crate) sightings_away: BTreeMap<GatewayId, SightingsAway>,
    pub(crate) edges: Vec<Edge>,
    /// What devices let be seen of themselves.
    pub(crate) hints: Vec<RecordedHint>,
    /// Edges that found no room.
    pub(crate) recording: HistoryPage,
    /// Whether it is too old to give its flow history.
    pub(crate) without_history: bool,
    /// Whether it gives its flow history whole only, and knows no words to choose by.
    pub(crate) chooses_nothing: bool,
    /// How often it was asked to choose all the same.
    pub(crate) asked_to_choose: usize,
    /// Gateways that don't confirm anything.
    pub(crate) offline: Vec<GatewayId>,
    /// Whether no gateway has ever said where it is.
    pub(crate) unreachable: bool,
    /// What every update is refused with, as a conflict.
    pub(crate) refusal: Option<&'static str>,
    pub(crate) lie: Option<Lie>,
    /// Done once, just before the next model is looked at.
    pub(crate) before_update: Option<Interference>,
}

pub(crate) struct Controller {
    state: Arc<Mutex<State>>,
    pub(crate) port: u16,
    pub(crate) certificate: Hash,
}

impl Controller {
    pub(crate) fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let der = made.cert.der().clone();
        let certificate = Hash::try_from(<[u8; 32]>::from(Sha256::digest(&der))).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der], key.into())
            .unwrap();
        let state = Arc::new(Mutex::new(State {
            key: IdentityKey::from_seed(&[200; 32]),
            secret: vec![9; SetupCode::SECRET_LEN],
            chain: Vec::new(),
            tokens: HashMap::new(),
            logins: 0,
            nonce: 0,
            invites: Vec::new(),
            pending: Vec::new(),
            ports: vec!["port1", "port2"],
            passes: Vec::new(),
            alarms: BTreeMap::new(),
            trials: BTreeMap::new(),
            held_back: BTreeMap::new(),
            at_relays: BTreeMap::new(),
            relays_away: BTreeMap::new(),
            bypasses: Vec::new(),
            file_bypasses: Vec::new(),
            tunnel_keys: BTreeMap::new(),
            revisions: Vec::new(),
            audit: Vec::new(),
            sightings: Vec::new(),
            sightings_away: BTreeMap::new(),
            edges: Vec::new(),
            hints: Vec::new(),
            recording: HistoryPage::default(),
            without_history: false,
            chooses_nothing: false,
            asked_to_choose: 0,
            offline: Vec::new(),
            unreachable: false,
            refusal: None,
            lie: None,
            before_update: None,
        }));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (shared, config) = (Arc::clone(&state), Arc::new(config));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, config) = (Arc::clone(&shared), Arc::clone(&config));
                // A client that hangs up in the handshake is part of some tests.
                std::thread::spawn(move || serve(stream, config, &shared));
            }
        });
        Self { state, port, certificate }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub(crate) fn setup_code(&self) -> String {
        let state = self.state();
        SetupCode {
            https: vec![self.address()],
            certificate: self.certificate,
            controller: state.key.public(),
            quic: vec!["127.0.0.1:4433".into()],
            secret: Blob(state.secret.clone()),
        }
        .to_string()
    }

    /// Lies in every answer to `path` from now on.
    pub(crate) fn lie(
        &self,
        path: &'static str,
        mut lie: impl FnMut(&mut u16, &mut Value) + Send + 'static,
    ) {
        self.state().lie = Some(Box::new(move |asked, status, body| {
            if asked == path {
                lie(status, body);
            }
        }));
    }

    pub(crate) fn be_honest(&self) {
        self.state().lie = None;
    }

    /// A gateway with an identity from `seed` uses the invite.
    pub(crate) fn enrol(&self, invite: &str, seed: u8) -> PublicKey {
        let code: InviteCode = invite.parse().unwrap();
        let identity = IdentityKey::from_seed(&[seed; 32]).public();
        let claim = IdentityClaim {
            organisation: code.organisation,
            invite: code.invite,
            gateway: code.gateway,
            identity,
        };
        let claim = Signed::sign(&claim, &code.key().unwrap());
        let mut state = self.state();
        let ports = state.port_infos();
        let invite = state
            .invites
            .iter()
            .find(|invite| invite.verify_self_named().unwrap().invite == code.invite)
            .unwrap()
            .clone();
        state.pending.push(PendingGateway {
            invite,
            claim,
            enrolled_at: UnixMillis(1_764_000_000_000),
            from: "10.20.1.2:40000".parse().unwrap(),
            online: true,
            ports,
        });
        identity
    }

    /// Whether a text stands in anything that was handed in.
    pub(crate) fn holds(&self, text: &str) -> bool {
        let state = self.state();
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).unwrap();
        state
            .revisions
            .iter()
            .any(|(revision, _)| revision.model.0.windows(bytes.len()).any(|part| part == bytes))
    }

    pub(crate) fn gateway_id(&self, name: &str) -> GatewayId {
        self.state().model().gateway_named(name).unwrap().0
    }

    /// A gateway sees a device.
    pub(crate) fn see(&self, gateway: &str, mac: &str, address: &str) {
        let gateway = self.gateway_id(gateway);
        let sighting = Sighting {
            port: "port1".parse().unwrap(),
            mac: mac.parse().unwrap(),
            vlan: None,
            addresses: vec![address.parse().unwrap()],
            prefix_len: Some(24),
            router: Some(("10.20.1.254".parse().unwrap(), "02:00:00:00:00:fe".parse().unwrap())),
            member: None,
            held: false,
            kinds: vec!["broadcast".into()],
            claim: None,
            first_seen: UnixMillis(1_764_000_000_000),
            last_seen: UnixMillis(1_764_000_100_000),
        };
        let first_seen = sighting.first_seen;
        self.state().sightings.push(SightingRecord { gateway, sighting, first_seen });
    }

    /// Has a gateway read something that a device, or whatever else has this Ethernet address, let be seen of itself.
    pub(crate) fn hint(&self, gateway: &str, mac: &str, kind: HintKind, value: &str) {
        let gateway = self.gateway_id(gateway);
        let mac: MacAddr = mac.parse().unwrap();
        let model = self.state().model();
        let known = model.devices.iter().find(|(_, device)| device.attachment.mac == mac);
        let hint = RecordedHint {
            gateway,
            port: "port1".parse().unwrap(),
            mac,
            vlan: None,
            member: known.map(|(id, _)| *id),
            kind,
            value: value.to_owned(),
            first: UnixMillis(1_764_000_000_000),
            last: UnixMillis(1_764_000_100_000),
        };
        self.state().hints.push(hint);
    }
}

fn ok(value: &impl Serialize) -> (u16, Value) {
    (200, serde_json::to_value(value).unwrap())
}

fn no(status: u16, code: &str, message: &str) -> (u16, Value) {
    (status, json!({ "code": code, "message": message }))
}

impl State {
    pub(crate) fn model(&self) -> Model {
        Model::decode(&self.revisions.last().unwrap().0.model.0).unwrap()
    }

    pub(crate) fn authority(&self) -> AuthorityChain {
        AuthorityChain::follow_unpinned(&self.chain).unwrap()
    }

    fn answer(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        token: Option<&str>,
        body: &[u8],
    ) -> (u16, Value) {
        match (method, path) {
            ("GET", paths::CONTROLLER) => {
                return ok(&ControllerInfo {
                    key: self.key.public(),
                    version: "0.1.0".into(),
                    organisation: (!self.chain.is_empty())
                        .then(|| self.authority().newest().organisation),
                    addresses: vec!["127.0.0.1:4433".into()],
                    time: UnixMillis(1),
                });
            }
            ("POST", paths::CLAIM) => return self.claim(&serde_json::from_slice(body).unwrap()),
            ("POST", paths::CHALLENGE) => {
                self.nonce += 1;
                return ok(&Challenge { nonce: Blob(self.nonce.to_be_bytes().to_vec()) });
            }
            ("POST", paths::LOGIN) => return self.log_in(&serde_json::from_slice(body).unwrap()),
            _ => {}
        }
        let Some(operator) = token.and_then(|token| self.tokens.get(token)).copied() else {
            return no(401, "unauthorised", "the token is unknown or has lapsed: log in again");
        };
        match (method, path) {
            ("POST", paths::LOGOUT) => {
                self.tokens.clear();
                (204, Value::Null)
            }
            ("GET", paths::AUTHORITY) => ok(&self.chain),
            ("POST", paths::INVITES) => {
                let new: NewInvite = serde_json::from_slice(body).unwrap();
                let chain = self.authority();
                let newest = chain.newest();
                new.invite.verify(newest.organisation, &newest.operator_keys()).unwrap();
                self.invites.push(new.invite);
                (204, Value::Null)
            }
            ("POST", paths::BYPASSES) => {
                let told: OfflineBypass = serde_json::from_slice(body).unwrap();
                let chain = self.authority();
                let newest = chain.newest();
                told.order.verify(newest.organisation, &newest.operator_keys()).unwrap();
                self.bypasses.push(told.order);
                (204, Value::Null)
            }
            ("GET", paths::PENDING) => ok(&self.pending),
            ("GET", paths::GATEWAYS) => ok(&self.statuses()),
            ("GET", paths::SIGHTINGS_PAGE) => self.sightings_page(query),
            ("GET", paths::EDGES) => ok(&self.newest_edges(query)),
            ("GET", paths::HISTORY) => self.history(query),
            ("GET", paths::HINTS) => {
                ok(&HintsPage { hints: self.hints.clone(), ..HintsPage::default() })
            }
            ("GET", paths::MODEL) => match self.revisions.last() {
                Some((newest, _)) => ok(newest),
                None => no(404, "not-found", "there is no revision yet"),
            },
            ("POST", paths::MODEL) => {
                if let Some(first) = self.before_update.take() {
                    first(self);
                }
                if let Some(message) = self.refusal {
                    return no(409, "conflict", message);
                }
                self.update(serde_json::from_slice(body).unwrap(), operator)
            }
            ("GET", paths::REVISIONS) => {
                ok(&self.revisions.iter().rev().map(|(_, info)| info).collect::<Vec<_>>())
            }
            ("GET", paths::AUDIT) => {
                let after = query
                    .split('&')
                    .find_map(|pair| pair.strip_prefix("after=")?.parse::<u64>().ok())
                    .unwrap_or(0);
                ok(&self.audit.iter().filter(|entry| entry.number > after).collect::<Vec<_>>())
            }
            ("GET", _) => self.numbered(path),
            _ => no(404, "not-found", "no such path"),
        }
    }

    fn numbered(&self, path: &str) -> (u16, Value) {
        let Some((kind, number)) = path.rsplit_once('/') else {
            return no(404, "not-found", "no such path");
        };
        let number: usize = number.parse().unwrap();
        let Some((revision, _)) = number.checked_sub(1).and_then(|at| self.revisions.get(at))
        else {
            return no(404, "not-found", "no such revision");
        };
        match kind {
            "/v1/model" => ok(revision),
            "/v1/progress" => ok(&Progress {
                number: number as u64,
                gateways: self
                    .model()
                    .gateways
                    .keys()
                    .map(|gateway| GatewayProgress {
                        gateway: *gateway,
                        applied: !self.offline.contains(gateway),
                        applied_at: None,
                        online: !self.offline.contains(gateway),
                        refused: None,
                    })
                    .collect(),
            }),
            _ => no(404, "not-found", "no such path"),
        }
    }

    fn port_infos(&self) -> Vec<PortInfo> {
        let mac = "02:00:00:00:09:01".parse().unwrap();
        let port = |name: &&str| PortInfo {
            name: name.parse().unwrap(),
            mac,
            up: true,
            unlisted: if self.passes.contains(name) { Unlisted::Pass } else { Unlisted::Hold },
        };
        self.ports.iter().map(port).collect()
    }

    fn statuses(&self) -> Vec<GatewayStatus> {
        let Some((newest, _)) = self.revisions.last() else { return Vec::new() };
        let wanted = newest.root.verify_self_named().unwrap().number;
        self.model()
            .gateways
            .keys()
            .map(|gateway| {
                let online = !self.offline.contains(gateway);
                GatewayStatus {
                    identity: None,
                    rekey: None,
                    gateway: *gateway,
                    online,
                    last_seen: Some(UnixMillis(1_764_000_000_000)),
                    revision: Some(if online { wanted } else { wanted - 1 }),
                    wanted,
                    behind_since: (!online).then_some(UnixMillis(1_764_000_000_000)),
                    refused: None,
                    problems: Vec::new(),
                    agent_version: Some("0.1.0".into()),
                    ports: self.port_infos(),
                    endpoints: if self.unreachable {
                        Vec::new()
                    } else {
                        vec!["192.0.2.1:51820".parse().unwrap()]
                    },
                    tunnel_keys: self.tunnel_keys.get(gateway).cloned().unwrap_or_default(),
                    tunnels: Vec::new(),
                    observed: None,
                    over_tcp: false,
                    relays: self.at_relays.get(gateway).cloned().unwrap_or_default(),
                    relays_away: self.relays_away.get(gateway).cloned().unwrap_or_default(),
                    drops: BTreeMap::from([("no-rule".into(), 3)]),
                    bypasses: self.file_bypasses.clone(),
                    trials: self.trials.get(gateway).cloned().unwrap_or_default(),
                    held_back: self.held_back.get(gateway).cloned().unwrap_or_default(),
                    alarms: self.alarms.get(gateway).cloned().unwrap_or_default(),
                }
            })
            .collect()
    }

    fn claim(&mut self, claim: &Claim) -> (u16, Value) {
        if !self.chain.is_empty() || claim.secret.0 != self.secret {
            return no(403, "unauthorised", "this controller has an owner already");
        }
        let chain =
            AuthorityChain::follow_unpinned(std::slice::from_ref(&claim.authority)).unwrap();
        assert_eq!(chain.newest().controller_keys(), [self.key.public()]);
        self.chain = chain.to_signed();
        (204, Value::Null)
    }

    fn log_in(&mut self, request: &LoginRequest) -> (u16, Value) {
        let chain = self.authority();
        let newest = chain.newest();
        match request.login.verify(newest.organisation, &newest.operator_keys()) {
            Ok(login) => {
                assert_eq!(login.controller, self.key.public());
                assert_eq!(login.nonce.0, self.nonce.to_be_bytes());
                self.logins += 1;
                let token = format!("token-{}", self.logins);
                self.tokens.insert(token.clone(), login.signer());
                let operator = newest.operator(login.signer()).unwrap().name.clone();
                ok(&Session { token, operator, not_after: UnixMillis(u64::MAX / 2) })
            }
            Err(error) => no(401, "unauthorised", &format!("not an operator here: {error}")),
        }
    }

    pub(crate) fn update(&mut self, update: ModelUpdate, operator: PublicKey) -> (u16, Value) {
        let chain = self.authority();
        let newest = chain.newest();
        let root =
            update.revision.root.verify(newest.organisation, &newest.operator_keys()).unwrap();
        let previous = self.revisions.last().map_or(Hash::ZERO, |(newest, _)| newest.root.hash());
        if root.number != self.revisions.len() as u64 + 1 || root.previous != previous {
            return no(409, "conflict", "another revision came first");
        }
        assert_eq!(root.authority, newest.number);
        assert_eq!(root.incarnation, newest.incarnation);
        assert_eq!(Model::hash(&update.revision.model.0), root.model);
        let model = Model::decode(&update.revision.model.0).unwrap();
        let compiled = compile(&model).unwrap();
        assert_eq!(compiled.root, root.root);
        let number = root.number;
        let at = UnixMillis(1_764_000_000_000 + number * 60_000);
        self.revisions.push((
            ModelRevision { root: update.revision.root.clone(), model: update.revision.model },
            RevisionInfo {
                number,
                at,
                operator,
                action: update.action.clone(),
                subject: update.subject.clone(),
                reason: update.reason.clone(),
            },
        ));
        self.log(AuditEntry {
            number: 0,
            at,
            actor: format!("ana {}", operator.fingerprint()),
            action: update.action,
            subject: update.subject,
            reason: update.reason,
            before: None,
            after: None,
            revision: Some(number),
            root: Some(update.revision.root.hash()),
            previous: Hash::ZERO,
            hash: Hash::ZERO,
        });
        self.pending.retain(|pending| {
            let invite = pending.invite.verify_self_named().unwrap();
            !model.gateways.contains_key(&invite.gateway)
        });
        ok(&ModelAccepted { number, affected: model.gateways.keys().copied().collect() })
    }

    /// Appends an entry, or with a number that is taken rewrites the log from there.
    pub(crate) fn log(&mut self, mut entry: AuditEntry) {
        entry.number = self.audit.len() as u64 + 1;
        entry.previous = self.audit.last().map_or(Hash::ZERO, |last| last.hash);
        entry.hash = entry.compute_hash();
        self.audit.push(entry);
    }

    /// A revision that somebody else made: `edit` of the newest model, signed by `key`.
    pub(crate) fn revise(
        &mut self,
        key: &IdentityKey,
        edit: impl FnOnce(&mut Model),
    ) -> ModelRevisionBody {
        let (previous, number) = self
            .revisions
            .last()
            .map_or((Hash::ZERO, 1), |(newest, info)| (newest.root.hash(), info.number + 1));
        let mut model = self.model();
        edit(&mut model);
        let bytes = model.encode();
        let root = IntentRoot {
            organisation: model.organisation,
            authority: self.chain.len() as u64,
            incarnation: 1,
            number,
            previous,
            model: Model::hash(&bytes),
            root: compile(&model).unwrap().root,
            signed_at: UnixMillis(5),
        };
        ModelRevisionBody { root: Signed::sign(&root, key), model: Blob(bytes) }
    }
}
