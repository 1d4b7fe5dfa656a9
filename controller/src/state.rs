//! What every part of the controller shares. All of it is derived from the store, and read back at start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anteroom_controller_core::compile::{self, Compiled};
use anteroom_controller_core::model::Model;
use anteroom_controller_core::relay::Limits;
use anteroom_proto::api::Restored;
use anteroom_proto::authority::{AuthorityChain, AuthorityError};
use anteroom_proto::cose::{Signed, Verified};
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::intent::IntentRoot;
use anteroom_proto::key::{IdentityKey, PublicKey, TunnelPublicKey};
use anteroom_proto::time::UnixMillis;
use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use zeroize::Zeroizing;

use crate::clock::{self, Calm};
use crate::config::Config;
use crate::directory::Directory;
use crate::distribution::Event;
use crate::online::Online;
use crate::relay::Service;
use crate::store::{Store, StoreError, StoredRevision};
use crate::tunnel_keys::TunnelKeys;

/// The newest revision, compiled.
#[derive(Debug)]
pub struct Current {
    /// The signed root.
    pub root: Verified<IntentRoot>,
    /// The model.
    pub model: Model,
    /// What it compiles to.
    pub compiled: Compiled,
    /// Whether that is what the operator signed. It isn't where another version compiled it; gateways then
    /// keep what they have until an operator makes a change.
    pub as_signed: bool,
}

/// The keys of a model's clients, those that were revoked included: a key is one client's for good.
pub(crate) fn client_keys(model: &Model) -> HashMap<TunnelPublicKey, MemberId> {
    let clients = model.clients.iter().chain(&model.former_clients);
    clients.map(|(id, client)| (client.key, *id)).collect()
}

/// Why a controller can't be brought up from its store.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority chain doesn't hold.
    #[error("the stored authority chain is damaged: {0}. Restore the database from a backup")]
    Authority(#[from] AuthorityError),
    /// The authority doesn't name this controller.
    #[error(
        "the stored authority document names another controller's key than this one's ({own}). Restore identity.key and controller.db from the same backup"
    )]
    Stranger {
        /// Our own key's fingerprint.
        own: String,
    },
    /// The newest revision can't be read.
    #[error(
        "the stored revision {number} is damaged: {problem}. Restore the database from a backup"
    )]
    Revision {
        /// Its number.
        number: u64,
        /// What is wrong.
        problem: String,
    },
}

impl Current {
    /// Reads a stored revision. `signers` are all who were ever operators.
    ///
    /// # Errors
    /// [`StateError::Revision`].
    pub fn from_stored(
        stored: &StoredRevision,
        chain: &AuthorityChain,
    ) -> Result<Self, StateError> {
        let number = stored.number;
        let damaged = |problem: String| StateError::Revision { number, problem };
        let root = stored
            .root
            .verify(chain.newest().organisation, &chain.all_operator_keys())
            .map_err(|error| damaged(error.to_string()))?;
        if root.number != number || root.model != Model::hash(&stored.model.0) {
            return Err(damaged("its model isn't the one that was signed".into()));
        }
        let model =
            Model::decode(&stored.model.0).map_err(|error| damaged(format!("model: {error}")))?;
        let compiled =
            compile::compile(&model).map_err(|problems| damaged(problems.to_string()))?;
        let as_signed = compiled.root == root.root;
        Ok(Self { root, model, compiled, as_signed })
    }

    /// Whether `identity` is that of this approved gateway.
    #[must_use]
    pub fn approves(&self, gateway: GatewayId, identity: PublicKey) -> bool {
        self.model.gateways.get(&gateway).is_some_and(|known| known.identity == identity)
    }

    /// Whether the gateway or its key was revoked.
    #[must_use]
    pub fn revokes(&self, gateway: GatewayId, identity: PublicKey) -> bool {
        self.model.revoked.contains_key(&gateway)
            || self
                .model
                .revoked
                .values()
                .any(|known| known.identity == identity || known.former.contains(&identity))
    }

    /// The signed root as carried.
    #[must_use]
    pub fn signed_root(&self) -> &Signed<IntentRoot> {
        self.root.signed()
    }
}

/// What every part of the controller shares.
#[derive(Debug)]
pub struct Controller {
    /// The controller's key.
    pub identity: IdentityKey,
    /// The configuration.
    pub config: Config,
    /// Where the controller lives.
    pub directory: Directory,
    /// What it must not forget.
    pub store: Arc<dyn Store>,
    /// Connected gateways.
    pub online: Online,
    /// Gateways that are relayed.
    pub relay: Arc<Service>,
    /// The one-time secret, until the controller is claimed.
    pub(crate) claim_secret: AsyncMutex<Option<Zeroizing<[u8; 32]>>>,
    authority: ArcSwapOption<AuthorityChain>,
    current: ArcSwapOption<Current>,
    /// Whether an operator must sign the controller back in before it does anything else.
    restored: Mutex<Option<Restored>>,
    /// Whose tunnel keys are whose.
    pub(crate) tunnel_keys: TunnelKeys,
    /// Held while a revision or an authority document is taken: they come one after another.
    pub(crate) changing: AsyncMutex<()>,
    events: mpsc::Sender<Event>,
    /// The time by which the flow history is kept.
    history_clock: Mutex<Calm>,
}

impl Controller {
    /// Now, by the clock that the flow history is kept by.
    pub(crate) fn history_now(&self) -> UnixMillis {
        let mut calm = self.history_clock.lock().unwrap_or_else(PoisonError::into_inner);
        calm.at(clock::now(), Instant::now())
    }

    /// Reads the store. Events for distribution go to `events`.
    ///
    /// # Errors
    /// [`StateError`], when the store is damaged.
    pub async fn load(
        directory: Directory,
        identity: IdentityKey,
        claim_secret: Option<Zeroizing<[u8; 32]>>,
        config: Config,
        store: Arc<dyn Store>,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, StateError> {
        let documents = store.authority().await?;
        let since = store.restored().await?;
        let tunnel_keys = TunnelKeys::load(store.gateways().await?);
        if since.is_some() {
            tracing::warn!(
                "restored from a backup, or with another key than before: no gateway is served until an operator \
                 signs that (`anteroom controller restored`, or `anteroom controller replace CODE`)"
            );
        }
        let (mut authority, mut current) = (None, None);
        if !documents.is_empty() {
            let chain = AuthorityChain::follow_unpinned(&documents)?;
            // With another key it starts all the same, to be signed in; nobody is served before that.
            if since.is_none() && !chain.newest().controller_keys().contains(&identity.public()) {
                let own = identity.public().fingerprint().to_string();
                return Err(StateError::Stranger { own });
            }
            if let Some(stored) = store.newest_model().await? {
                let newest = Current::from_stored(&stored, &chain)?;
                if !newest.as_signed {
                    tracing::warn!(
                        revision = stored.number,
                        "this version compiles the newest revision to something else than the operator \
                         signed: gateways keep what they have until an operator makes a change"
                    );
                }
                tunnel_keys.set_clients(client_keys(&newest.model));
                current = Some(Arc::new(newest));
            }
            authority = Some(Arc::new(chain));
        }
        let limits = Limits { gateways: config.limits.gateways, ..Limits::default() };
        let relay = Service::new(identity.public(), limits);
        let controller = Self {
            relay,
            identity,
            config,
            directory,
            store,
            online: Online::default(),
            claim_secret: AsyncMutex::new(claim_secret),
            restored: Mutex::new(since.map(|since| Restored {
                since,
                held: None,
                authority: None,
            })),
            tunnel_keys,
            authority: ArcSwapOption::new(authority),
            current: ArcSwapOption::new(current),
            history_clock: Mutex::new(Calm::new(clock::now(), Instant::now())),
            changing: AsyncMutex::new(()),
            events,
        };
        controller.tell_relay();
        Ok(controller)
    }

    /// Has the relay go by what is in force. A controller that waits to be signed back in relays nothing: operators
    /// may have taken gateways out that it still knows.
    fn tell_relay(&self) {
        if self.restored().is_some() {
            return;
        }
        if let Some(current) = self.current() {
            self.relay.set_barred(current.model.revoked.keys().copied().collect());
            let former = current.model.gateways.values().flat_map(|gateway| &gateway.former);
            self.relay.set_former(former.copied().collect());
        }
        if let Some(chain) = self.authority() {
            self.relay.set_authority(chain);
        }
    }

    /// The authority chain, once the controller is claimed.
    #[must_use]
    pub fn authority(&self) -> Option<Arc<AuthorityChain>> {
        self.authority.load_full()
    }

    /// The newest revision, once there is one.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Current>> {
        self.current.load_full()
    }

    pub(crate) fn set_authority(&self, chain: AuthorityChain) {
        self.authority.store(Some(Arc::new(chain)));
        self.tell_relay();
    }

    /// That the controller waits for an operator to sign it back in, if it does.
    #[must_use]
    pub fn restored(&self) -> Option<Restored> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_restored(&self, restored: Option<Restored>) {
        *self.restored.lock().unwrap_or_else(PoisonError::into_inner) = restored;
        self.tell_relay();
    }

    /// Notes what a gateway says that it has in force, while the controller waits: operators must know whether it is
    /// newer than what they have.
    pub(crate) fn note_held(&self, gateway: GatewayId, place: Option<(u64, u64)>, authority: u64) {
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(restored) = restored.as_mut() else { return };
        if let Some(place) = place.filter(|place| restored.held.is_none_or(|held| held.1 < *place))
        {
            restored.held = Some((gateway, place));
        }
        if restored.authority.is_none_or(|(_, held)| held < authority) {
            restored.authority = Some((gateway, authority));
        }
    }

    pub(crate) fn set_current(&self, current: Arc<Current>) {
        self.tunnel_keys.set_clients(client_keys(&current.model));
        self.current.store(Some(current));
        self.tell_relay();
    }

    /// Tells distribution that something changed. Waits where it is far behind.
    pub(crate) async fn tell(&self, event: Event) {
        // It is gone only while the program ends, and then reads everything back from the store.
        let _ = self.events.send(event).await;
    }
}
