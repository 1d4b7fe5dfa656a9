//! Which gateways are connected now, and how to reach them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_proto::v1::telemetry::{RelayAway, RelayUse};
use anteroom_proto::v1::{Refusal, ToAgent};
use anteroom_transport::link::{Carrier, Connection};
use quinn::VarInt;
use tokio::sync::mpsc;

/// Messages that wait for one gateway. Views are whole: who falls behind connects again and gets the newest.
pub(crate) const QUEUE: usize = 16;

/// Why the controller closes a connection, as the agent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// Nothing is wrong.
    Done = 0,
    /// The controller ends; connect again.
    Shutdown = 1,
    /// The gateway has a newer connection.
    Replaced = 2,
    /// A refusal was sent before.
    Refused = 3,
    /// The gateway doesn't take what it is sent.
    TooSlow = 4,
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(code as u32)
    }
}

/// What is to go out to a gateway.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// A message.
    Message(ToAgent),
    /// The last message: the connection is closed behind it.
    Refuse(Refusal),
}

/// One connected gateway.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) outgoing: mpsc::Sender<Outgoing>,
    pub(crate) identity: PublicKey,
    pub(crate) observed: SocketAddr,
    /// Whether it can be asked to replace its tunnel keys.
    pub(crate) rotates: bool,
    /// Whether it can be asked for another identity key.
    pub(crate) rekeys: bool,
    /// Relays that it said it is connected to.
    pub(crate) relays: Vec<RelayUse>,
    /// Relays that it said it tries to connect to in vain.
    pub(crate) relays_away: Vec<RelayAway>,
    /// Whether views may tell it peers' QUIC ports.
    pub(crate) takes_quic: bool,
}

#[derive(Debug, Default)]
struct Links {
    serial: u64,
    links: HashMap<GatewayId, (u64, Link)>,
}

/// Connected gateways, at most one connection each.
#[derive(Debug, Default)]
pub struct Online(Mutex<Links>);

impl Online {
    fn lock(&self) -> MutexGuard<'_, Links> {
        // A map is whole after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new connection in and closes the one before it. The serial number tells them apart.
    pub(crate) fn insert(&self, gateway: GatewayId, link: Link) -> u64 {
        let mut links = self.lock();
        links.serial += 1;
        let serial = links.serial;
        if let Some((_, before)) = links.links.insert(gateway, (serial, link)) {
            before.connection.close(CloseCode::Replaced.into(), b"this gateway connected again");
        }
        serial
    }

    /// Takes a connection out, unless a newer one has its place.
    pub(crate) fn remove(&self, gateway: GatewayId, serial: u64) {
        let mut links = self.lock();
        if links.links.get(&gateway).is_some_and(|(held, _)| *held == serial) {
            links.links.remove(&gateway);
        }
    }

    /// Whether this is still the gateway's connection.
    pub(crate) fn is_current(&self, gateway: GatewayId, serial: u64) -> bool {
        self.lock().links.get(&gateway).is_some_and(|(held, _)| *held == serial)
    }

    /// Whether the gateway is connected.
    #[must_use]
    pub fn contains(&self, gateway: GatewayId) -> bool {
        self.lock().links.contains_key(&gateway)
    }

    /// The connected gateways.
    #[must_use]
    pub fn gateways(&self) -> Vec<GatewayId> {
        self.lock().links.keys().copied().collect()
    }

    /// Where the gateway's connection comes from.
    #[must_use]
    pub fn observed(&self, gateway: GatewayId) -> Option<SocketAddr> {
        self.lock().links.get(&gateway).map(|(_, link)| link.observed)
    }

    /// Keeps to which relays the gateway says that it is connected and to which not, for as long as this connection lasts.
    pub(crate) fn set_relays(
        &self,
        gateway: GatewayId,
        serial: u64,
        relays: Vec<RelayUse>,
        away: Vec<RelayAway>,
    ) {
        if let Some((held, link)) = self.lock().links.get_mut(&gateway)
            && *held == serial
        {
            (link.relays, link.relays_away) = (relays, away);
        }
    }

    /// Whether the gateway's connection takes TCP.
    #[must_use]
    pub fn over_tcp(&self, gateway: GatewayId) -> bool {
        let links = self.lock();
        let link = links.links.get(&gateway);
        link.is_some_and(|(_, link)| link.connection.carrier() == Carrier::Tcp)
    }

    /// To which relays the gateway says that it is connected, and to which it tries to in vain.
    #[must_use]
    pub fn relays(&self, gateway: GatewayId) -> (Vec<RelayUse>, Vec<RelayAway>) {
        let links = self.lock();
        let told = links.links.get(&gateway);
        told.map(|(_, link)| (link.relays.clone(), link.relays_away.clone())).unwrap_or_default()
    }

    /// Whether the gateway is connected and can be asked to replace its tunnel keys.
    #[must_use]
    pub fn rotates(&self, gateway: GatewayId) -> bool {
        self.lock().links.get(&gateway).is_some_and(|(_, link)| link.rotates)
    }

    /// Whether the gateway is connected and can be asked for another identity key.
    #[must_use]
    pub fn rekeys(&self, gateway: GatewayId) -> bool {
        self.lock().links.get(&gateway).is_some_and(|(_, link)| link.rekeys)
    }

    /// Whether the gateway is connected and its view may tell peers' QUIC ports.
    #[must_use]
    pub fn takes_quic(&self, gateway: GatewayId) -> bool {
        self.lock().links.get(&gateway).is_some_and(|(_, link)| link.takes_quic)
    }

    /// The key that the gateway's connection proved.
    #[must_use]
    pub fn identity(&self, gateway: GatewayId) -> Option<PublicKey> {
        self.lock().links.get(&gateway).map(|(_, link)| link.identity)
    }

    /// Sends a message. False where the gateway isn't connected, or takes nothing in: then it is cut off, and
    /// gets what it needs when it connects again.
    pub(crate) fn send(&self, gateway: GatewayId, message: ToAgent) -> bool {
        let mut links = self.lock();
        let Some((_, link)) = links.links.get(&gateway) else { return false };
        if link.outgoing.try_send(Outgoing::Message(message)).is_ok() {
            return true;
        }
        link.connection.close(CloseCode::TooSlow.into(), b"this gateway takes no messages");
        links.links.remove(&gateway);
        false
    }

    /// Cuts a gateway off, with a word of why. Nothing more is taken from it.
    pub(crate) fn refuse(&self, gateway: GatewayId, refusal: Refusal) {
        let Some((_, link)) = self.lock().links.remove(&gateway) else { return };
        if let Err(error) = link.outgoing.try_send(Outgoing::Refuse(refusal)) {
            tracing::debug!(%gateway, %error, "closing without a word");
            link.connection.close(CloseCode::Refused.into(), b"refused");
        }
    }
}
