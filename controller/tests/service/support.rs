//! A controller in a temporary directory, an operator, and agents that speak for gateways.

mod agent;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use anteroom_controller::directory::Directory;
use anteroom_controller::init::{InitOptions, init};
use anteroom_controller::run::{self, Running};
use anteroom_controller_core::compile;
use anteroom_controller_core::model::{Gateway, Model};
use anteroom_proto::api::{
    ApiError, AuthorityUpdate, Challenge, Claim, Login, LoginRequest, ModelAccepted, ModelRevision,
    ModelRevisionBody, ModelUpdate, NewInvite, Session, paths,
};
use anteroom_proto::authority::{Authority, AuthorityChain, Controller, Operator, RootId};
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{BootId, GatewayId, InviteId, OrganisationId};
use anteroom_proto::intent::IntentRoot;
use anteroom_proto::invite::{IdentityClaim, Invite};
use anteroom_proto::key::{Hash, IdentityKey, PublicKey, TunnelPublicKey, TunnelSecret};
use anteroom_proto::setup::SetupCode;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{
    Applied, Enrol, Hello, PortInfo, Reachable, ToAgent, ToController, Unlisted, Welcome, frame,
};
use anteroom_proto::view::{Floor, SignedView, View};
use anteroom_transport::endpoint::{self, Link};
use anteroom_transport::link::Carrier;
use anteroom_transport::message::{MessageReader, MessageWriter};
use anteroom_transport::tcp;
use anteroom_transport::tls::Protocol;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use agent::{Agent, Connected, empty_report, first_words, refusal};

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);

/// Waits for `what`, or fails saying so.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} for {what} in vain"),
    }
}

/// Tries again and again until there is something.
pub(crate) async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(value) = attempt().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// A controller that can be stopped and started again.
pub(crate) struct Service {
    directory: tempfile::TempDir,
    place: String,
    pub(crate) code: SetupCode,
    pub(crate) running: Option<Running>,
    /// How gateways connect.
    pub(crate) carrier: Carrier,
}

impl Service {
    /// A new controller, running, claimed by nobody.
    pub(crate) async fn new() -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            let _ = provider.install_default();
        });
        let directory = tempfile::tempdir().unwrap();
        let options = InitOptions {
            quic: "127.0.0.1:4433".parse().unwrap(),
            https: "127.0.0.1:8443".parse().unwrap(),
            advertise: vec!["127.0.0.1".into()],
        };
        let code = init(&Directory::new(&directory.path().join("c")), &options).await.unwrap();
        let carrier = Carrier::Quic;
        let mut service = Self { directory, place: "c".into(), code, running: None, carrier };
        // Ports that are free, whatever else runs here.
        let file = service.directory().config();
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text
            .replace("listen = \"127.0.0.1:4433\"", "listen = \"127.0.0.1:0\"")
            .replace("listen = \"127.0.0.1:8443\"", "listen = \"127.0.0.1:0\"");
        std::fs::write(&file, text).unwrap();
        service.start().await;
        service
    }

    pub(crate) fn directory(&self) -> Directory {
        Directory::new(&self.path())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join(&self.place)
    }

    pub(crate) async fn start(&mut self) {
        self.running = Some(run::start(self.directory(), false).await.unwrap());
    }

    /// Lives on in another directory beside the first.
    pub(crate) fn move_to(&mut self, name: &str) {
        self.place = name.into();
        self.code.controller = self.directory().load_identity().unwrap().public();
        self.code.certificate = self.directory().load_https().unwrap().fingerprint;
    }

    pub(crate) fn beside(&self, name: &str) -> Directory {
        Directory::new(&self.directory.path().join(name))
    }

    pub(crate) async fn stop(&mut self) {
        soon("the controller to stop", self.running.take().unwrap().stop()).await;
    }

    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        let pem = std::fs::read(self.directory().certificate()).unwrap();
        let certificate = reqwest::Certificate::from_pem(&pem).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([certificate]).build().unwrap();
        Client { http, base: format!("https://{}", self.running().https()), token: None }
    }

    /// Claimed by `ana`, who is logged in.
    pub(crate) async fn claimed(&self) -> Desk {
        let desk = Desk::new(self);
        let status = desk.client.post_status(paths::CLAIM, &desk.claim()).await;
        assert_eq!(status, 204);
        desk.log_in().await
    }

    pub(crate) async fn connect(&self, identity: &IdentityKey) -> Link {
        let address = self.running().quic().unwrap();
        let servers = [self.code.controller];
        if self.carrier == Carrier::Quic {
            return endpoint::connect(address, identity, &servers).await.unwrap();
        }
        // Something else may have the port over TCP for a while.
        soon("a connection over TCP", async {
            loop {
                let link = tcp::connect(address, identity, &servers, Protocol::Control).await;
                if let Ok(link) = link {
                    return link;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await
    }
}

/// An HTTPS client that trusts the controller's certificate only.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) http: reqwest::Client,
    base: String,
    pub(crate) token: Option<String>,
}

impl Client {
    pub(crate) async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> (u16, Vec<u8>) {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = soon("an answer", request.send()).await.unwrap();
        (response.status().as_u16(), response.bytes().await.unwrap().to_vec())
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.send(reqwest::Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    pub(crate) async fn get_error(&self, path: &str) -> (u16, ApiError) {
        let (status, body) = self.send(reqwest::Method::GET, path, None).await;
        (status, error(path, &body))
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        let bytes = serde_json::to_vec(body).unwrap();
        let (status, body) = self.send(reqwest::Method::POST, path, Some(bytes)).await;
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    pub(crate) async fn post_status(&self, path: &str, body: &impl Serialize) -> u16 {
        let bytes = serde_json::to_vec(body).unwrap();
        self.send(reqwest::Method::POST, path, Some(bytes)).await.0
    }

    pub(crate) async fn post_error(&self, path: &str, body: &impl Serialize) -> (u16, ApiError) {
        let bytes = serde_json::to_vec(body).unwrap();
        let (status, body) = self.send(reqwest::Method::POST, path, Some(bytes)).await;
        (status, error(path, &body))
    }
}

fn error(path: &str, body: &[u8]) -> ApiError {
    serde_json::from_slice(body)
        .unwrap_or_else(|_| panic!("{path}: no ApiError: {}", String::from_utf8_lossy(body)))
}

/// An operator's machine.
pub(crate) struct Desk {
    pub(crate) client: Client,
    pub(crate) key: IdentityKey,
    pub(crate) code: SetupCode,
}

impl Desk {
    pub(crate) fn new(service: &Service) -> Self {
        let key = IdentityKey::from_seed(&[11; 32]);
        Self { client: service.client(), key, code: service.code.clone() }
    }

    pub(crate) fn authority(&self) -> Authority {
        Authority {
            organisation: ORGANISATION,
            number: 1,
            previous: Hash::ZERO,
            operators: vec![Operator { name: "ana".parse().unwrap(), key: self.key.public() }],
            threshold: 1,
            controllers: vec![Controller {
                key: self.code.controller,
                addresses: self.code.quic.clone(),
            }],
            relays: vec![],
            recovery: IdentityKey::from_seed(&[12; 32]).public(),
            incarnation: 1,
            root: None,
        }
    }

    pub(crate) fn claim(&self) -> Claim {
        Claim {
            secret: self.code.secret.clone(),
            authority: Signed::sign(&self.authority(), &self.key),
        }
    }

    pub(crate) fn login(&self, nonce: Blob) -> Login {
        Login { organisation: ORGANISATION, controller: self.code.controller, nonce }
    }

    pub(crate) async fn challenge(&self) -> Challenge {
        let (status, body) = self.client.send(reqwest::Method::POST, paths::CHALLENGE, None).await;
        assert_eq!(status, 200);
        serde_json::from_slice(&body).unwrap()
    }

    pub(crate) async fn log_in(self) -> Self {
        self.log_in_as("ana").await
    }

    /// Another person's machine, who isn't logged in yet.
    pub(crate) fn of(service: &Service, seed: u8) -> Self {
        Self { key: IdentityKey::from_seed(&[seed; 32]), ..Self::new(service) }
    }

    pub(crate) async fn chain(&self) -> AuthorityChain {
        let chain: Vec<Signed<Authority>> = self.client.get(paths::AUTHORITY).await;
        AuthorityChain::follow(Signed::sign(&self.authority(), &self.key).hash(), &chain)
            .or_else(|_| AuthorityChain::follow_unpinned(&chain))
            .unwrap()
    }

    /// The next authority document, which names the newest revision.
    pub(crate) async fn next(&self, change: impl FnOnce(&mut Authority)) -> Authority {
        let chain = self.chain().await;
        let newest = chain.newest();
        let mut next = newest.next(newest.signed());
        next.root = self.base().await.1.map(|root| root_id(&root));
        change(&mut next);
        next
    }

    pub(crate) fn authority_update(&self, next: &Authority, action: &str) -> AuthorityUpdate {
        AuthorityUpdate {
            document: Signed::sign(next, &self.key),
            lost: Vec::new(),
            revision: None,
            action: action.into(),
            subject: "the organisation".into(),
            reason: Some("to see".into()),
        }
    }

    /// Signs the next authority document and hands it in.
    pub(crate) async fn decree(
        &self,
        action: &str,
        change: impl FnOnce(&mut Authority),
    ) -> Authority {
        let next = self.next(change).await;
        let update = self.authority_update(&next, action);
        assert_eq!(self.client.post_status(paths::AUTHORITY, &update).await, 204);
        next
    }

    pub(crate) async fn log_in_as(mut self, name: &str) -> Self {
        let login = self.login(self.challenge().await.nonce);
        let request = LoginRequest { login: Signed::sign(&login, &self.key) };
        let session: Session = self.client.post(paths::LOGIN, &request).await;
        assert_eq!(session.operator.as_str(), name);
        self.client.token = Some(session.token);
        self
    }

    pub(crate) fn invite(&self, n: u8, name: &str) -> Invite {
        Invite {
            organisation: ORGANISATION,
            invite: InviteId::from_bytes([n; 16]),
            gateway: GatewayId::from_bytes([n; 16]),
            name: name.parse().unwrap(),
            site: "north".parse().unwrap(),
            key: IdentityKey::from_seed(&[n ^ 0xf0; 32]).public(),
            not_after: UnixMillis(u64::MAX >> 1),
        }
    }

    pub(crate) async fn invites(&self, n: u8, name: &str) -> Agent {
        let invite = Signed::sign(&self.invite(n, name), &self.key);
        let new = NewInvite { invite, reason: Some("a test".into()) };
        assert_eq!(self.client.post_status(paths::INVITES, &new).await, 204);
        Agent::new(n)
    }

    /// The newest model and root, or an empty model.
    pub(crate) async fn base(&self) -> (Model, Option<Signed<IntentRoot>>) {
        let (status, body) = self.client.send(reqwest::Method::GET, paths::MODEL, None).await;
        if status == 404 {
            return (Model::new(ORGANISATION), None);
        }
        let revision: ModelRevision = serde_json::from_slice(&body).unwrap();
        (Model::decode(&revision.model.0).unwrap(), Some(revision.root))
    }

    pub(crate) fn root(&self, model: &Model, base: Option<&Signed<IntentRoot>>) -> IntentRoot {
        let number = base.map_or(0, |base| base.verify_self_named().unwrap().number) + 1;
        let compiled = compile::compile(model).unwrap();
        IntentRoot {
            organisation: ORGANISATION,
            authority: 1,
            incarnation: 1,
            number,
            previous: base.map_or(Hash::ZERO, Signed::hash),
            model: Model::hash(&model.encode()),
            root: compiled.root,
            signed_at: UnixMillis(1),
        }
    }

    pub(crate) fn update(&self, model: &Model, root: &IntentRoot) -> ModelUpdate {
        ModelUpdate {
            revision: ModelRevisionBody {
                root: Signed::sign(root, &self.key),
                model: Blob(model.encode()),
            },
            action: "a test".into(),
            subject: "the model".into(),
            reason: Some("to see".into()),
        }
    }

    /// Changes the model, as the command line would.
    pub(crate) async fn change(&self, change: impl FnOnce(&mut Model)) -> ModelAccepted {
        let (mut model, base) = self.base().await;
        change(&mut model);
        let mut root = self.root(&model, base.as_ref());
        let chain = self.chain().await;
        root.authority = chain.newest().number;
        root.incarnation = chain.newest().incarnation;
        self.client.post(paths::MODEL, &self.update(&model, &root)).await
    }

    pub(crate) async fn approve(&self, agent: &Agent, name: &str) -> ModelAccepted {
        let (id, gateway) = (agent.gateway, agent.approved(name));
        self.change(|model| {
            model.gateways.insert(id, gateway);
        })
        .await
    }

    pub(crate) async fn revoke(&self, agent: &Agent) -> ModelAccepted {
        self.change(|model| {
            let gateway = model.gateways.remove(&agent.gateway).unwrap();
            model.revoked.insert(agent.gateway, gateway);
        })
        .await
    }
}

pub(crate) fn root_id(root: &Signed<IntentRoot>) -> RootId {
    let known = root.verify_self_named().unwrap();
    RootId { incarnation: known.incarnation, number: known.number, hash: root.hash() }
}
