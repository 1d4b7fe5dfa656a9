//! The model: everything that operators have decided, in one value.
//!
//! An operator's command line takes the newest signed model, changes it, compiles it, shows the difference and
//! signs the hash. The controller compiles the same bytes and must come to the same root.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_proto::cbor::{self, CborError};
use anteroom_proto::id::{GatewayId, MemberId, OrganisationId};
use anteroom_proto::intent::{OnFailure, Router};
use anteroom_proto::key::{Hash, PublicKey, TunnelPublicKey};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::rollout::Rollout;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::HOST_PORT;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Longest encoded model in bytes.
pub const MAX_MODEL_LEN: usize = 64 * 1024 * 1024;

/// Everything that operators have decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The organisation.
    pub organisation: OrganisationId,
    /// Approved gateways.
    pub gateways: BTreeMap<GatewayId, Gateway>,
    /// Gateways that were revoked: their ids and keys are never taken again.
    pub revoked: BTreeMap<GatewayId, Gateway>,
    /// Confirmed devices.
    pub devices: BTreeMap<MemberId, Device>,
    /// Clients: members that speak WireGuard themselves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clients: BTreeMap<MemberId, Client>,
    /// Clients that were revoked: their ids and keys are never taken again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub former_clients: BTreeMap<MemberId, Client>,
    /// The newest order for each gateway that is out of the wire, or was: whatever is older is void.
    pub bypasses: BTreeMap<GatewayId, Bypass>,
    /// The policy file, as the operator wrote it.
    pub policy: String,
}

/// An order to bypass a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bypass {
    /// Orders the orders for one gateway, those in files included: the highest stands.
    pub serial: u64,
    /// Until when its devices are met in the clear. None: the bypass was ended.
    pub until: Option<UnixMillis>,
    /// The revision that brought the order.
    pub since: u64,
}

impl Bypass {
    /// Until when it is in force, if it is at `now`.
    #[must_use]
    pub fn in_force(&self, now: UnixMillis) -> Option<UnixMillis> {
        self.until.filter(|until| now < *until)
    }
}

/// An approved gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// What operators call it.
    pub name: Name,
    /// Where it stands.
    pub site: Name,
    /// Its identity key.
    pub identity: PublicKey,
    /// The identity keys that it had before, oldest first: they are never taken again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<PublicKey>,
    /// Labels that an operator set.
    pub labels: BTreeMap<Name, String>,
}

/// A confirmed device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What operators call it.
    pub name: Name,
    /// Where it is.
    pub attachment: Attachment,
    /// Its addresses. A prefix shorter than 32 stands for "dynamic within".
    pub addresses: Vec<Ipv4Net>,
    /// Length of its on-link prefix, where it is known.
    pub prefix_len: Option<u8>,
    /// Its router, where it has one.
    pub router: Option<Router>,
    /// Labels that an operator confirmed: `class`, `vendor`, `model` and whatever else they like.
    pub labels: BTreeMap<Name, String>,
    /// Its mode.
    pub mode: Mode,
    /// The revision in which the mode became what it is.
    pub mode_since: u64,
    /// When it was confirmed, which is when watching it began.
    pub confirmed_at: UnixMillis,
    /// Whether only essential rules remain.
    pub quarantined: bool,
    /// What happens when its gateway's agent dies.
    pub on_failure: OnFailure,
    /// How it came to be enforced.
    #[serde(default, skip_serializing_if = "Rollout::is_plain")]
    pub rollout: Rollout,
}

impl Device {
    /// The mode in words, with what is still open about it.
    #[must_use]
    pub fn mode_words(&self) -> String {
        match &self.rollout.trial {
            None => self.mode.to_string(),
            Some(trial) => format!(
                "{} on trial for {}, then {} unless confirmed",
                self.mode,
                span(trial.within),
                trial.back_to
            ),
        }
    }
}

/// A length of time in the largest units that fit.
fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, 0) if minutes % 60 == 0 => format!("{} h", minutes / 60),
        (minutes, 0) => format!("{minutes} min"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

/// A machine that speaks WireGuard itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// What operators call it.
    pub name: Name,
    /// The site that its address belongs to.
    pub site: Name,
    /// The public half of its WireGuard key.
    pub key: TunnelPublicKey,
    /// The address that devices know it by.
    pub address: Ipv4Addr,
    /// Labels that an operator set.
    pub labels: BTreeMap<Name, String>,
    /// When it was added.
    pub added_at: UnixMillis,
}

/// Where a device is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The gateway.
    pub gateway: GatewayId,
    /// The port of it.
    pub port: Name,
    /// The VLAN, or none.
    pub vlan: Option<u16>,
    /// The Ethernet address.
    pub mac: MacAddr,
}

impl Model {
    /// A model with nothing in it.
    #[must_use]
    pub fn new(organisation: OrganisationId) -> Self {
        Self {
            organisation,
            gateways: BTreeMap::new(),
            revoked: BTreeMap::new(),
            devices: BTreeMap::new(),
            clients: BTreeMap::new(),
            former_clients: BTreeMap::new(),
            bypasses: BTreeMap::new(),
            policy: "format = 1\n".into(),
        }
    }

    /// The bytes that an operator's signature covers.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// The model in `bytes`.
    ///
    /// # Errors
    /// [`CborError`] when they aren't one.
    pub fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        cbor::decode(bytes, MAX_MODEL_LEN)
    }

    /// The digest of encoded model `bytes`, as an intent root names it.
    #[must_use]
    pub fn hash(bytes: &[u8]) -> Hash {
        Hash::of("anteroom model", &[bytes])
    }

    /// The device with this name.
    #[must_use]
    pub fn device_named(&self, name: &str) -> Option<(MemberId, &Device)> {
        self.devices.iter().find(|(_, device)| device.name.as_str() == name).map(|(id, d)| (*id, d))
    }

    /// The client with this name.
    #[must_use]
    pub fn client_named(&self, name: &str) -> Option<(MemberId, &Client)> {
        self.clients.iter().find(|(_, client)| client.name.as_str() == name).map(|(id, c)| (*id, c))
    }

    /// Whether a device is a host: a machine whose own agent stands in for its gateway.
    #[must_use]
    pub fn is_host(device: &Device) -> bool {
        let Attachment { gateway, port, mac, .. } = &device.attachment;
        port.as_str() == HOST_PORT && *mac == MacAddr::of_host(*gateway)
    }

    /// The host that a gateway is, if it is one.
    #[must_use]
    pub fn host_of(&self, gateway: GatewayId) -> Option<(MemberId, &Device)> {
        let own = |device: &Device| device.attachment.gateway == gateway && Self::is_host(device);
        self.devices.iter().find(|(_, device)| own(device)).map(|(id, device)| (*id, device))
    }

    /// What operators call a member: a device or a client.
    #[must_use]
    pub fn member_name(&self, id: MemberId) -> Option<&Name> {
        let device = self.devices.get(&id).map(|device| &device.name);
        device.or_else(|| self.clients.get(&id).map(|client| &client.name))
    }

    /// The member with this name.
    #[must_use]
    pub fn member_named(&self, name: &str) -> Option<MemberId> {
        let device = self.device_named(name).map(|(id, _)| id);
        device.or_else(|| self.client_named(name).map(|(id, _)| id))
    }

    /// Until when a gateway is bypassed, if it is at `now`.
    #[must_use]
    pub fn bypassed(&self, gateway: GatewayId, now: UnixMillis) -> Option<UnixMillis> {
        self.bypasses.get(&gateway)?.in_force(now)
    }

    /// The gateway with this name.
    #[must_use]
    pub fn gateway_named(&self, name: &str) -> Option<(GatewayId, &Gateway)> {
        self.gateways
            .iter()
            .find(|(_, gateway)| gateway.name.as_str() == name)
            .map(|(id, g)| (*id, g))
    }
}
