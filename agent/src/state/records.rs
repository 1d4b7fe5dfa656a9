//! What the files hold.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anteroom_proto::authority::{Authority, MAX_CHAIN};
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::bypass::BypassOrder;
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::{Document, Signed};
use anteroom_proto::id::{GatewayId, InviteId, OrganisationId};
use anteroom_proto::key::{Hash, IdentityKey, PublicKey, TunnelPublicKey, TunnelSecret};
use anteroom_proto::relay::pass::RelayPass;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::Report;
use anteroom_proto::view::SignedView;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::StateError;
use super::file::{Kind, wipe};
use super::seal::Secrets;
use crate::bypass::MAX_ORDERS;
use crate::kem::KemKey;

/// Most bytes of reports that are kept.
pub(super) const MOST_REPORTED: usize = 16 * 1024 * 1024;

/// Most tunnel keys that are kept.
const MAX_TUNNEL_KEYS: usize = 8;

pub(super) const IDENTITY: Kind = Kind {
    name: "identity",
    format: 1,
    max: 256,
    loss: "Without its identity key this machine is nobody to its controller: ask for a new invite (`anteroom gateway invite`), move the state directory away and enrol again.",
};
pub(super) const TUNNEL_KEYS: Kind = Kind {
    name: "tunnel-keys",
    format: 1,
    max: 4096,
    loss: "The agent makes a new tunnel key; peers take it once the controller has passed it on.",
};
pub(super) const KEM_KEYS: Kind = Kind {
    name: "kem-keys",
    format: 1,
    max: 32 * 1024,
    loss: "The agent makes a new tunnel key; until peers have it, their tunnels go on as they are, or without pre-shared keys.",
};
pub(super) const SEAL: Kind = Kind {
    name: "seal",
    format: 1,
    max: 64 * 1024,
    loss: "It opened this gateway's private keys, which are lost with it: ask for a new invite (`anteroom gateway invite`), move the state directory away and enrol again.",
};
pub(super) const ENROLMENT: Kind = Kind {
    name: "enrolment",
    format: 1,
    max: 16 * 1024,
    loss: "Repeat `anteroom-agent enroll` with the same invite; this machine's key is still here.",
};
pub(super) const AUTHORITY: Kind = Kind {
    name: "authority",
    format: 1,
    max: 2 * MAX_CHAIN * Authority::MAX_LEN,
    loss: "The agent asks its controller for the chain of authority documents again.",
};
pub(super) const VIEW: Kind = Kind {
    name: "view",
    format: 1,
    max: SignedView::MAX_LEN,
    loss: "The agent asks its controller for a view again.",
};
pub(super) const FLOOR: Kind = Kind {
    name: "floor",
    format: 1,
    max: 512,
    loss: "The agent goes by the numbers of the view that it holds.",
};
pub(super) const DEMANDS: Kind = Kind {
    name: "demands",
    format: 1,
    max: 64 * 1024 * 1024,
    loss: "The agent goes by the view that it holds: of devices that left it no longer knows that two operators decide on them.",
};
pub(super) const KNOWN_KEYS: Kind = Kind {
    name: "known-keys",
    format: 1,
    max: 16 * 1024 * 1024,
    loss: "The agent goes by the tunnel keys in the view that it holds.",
};
pub(super) const RELAY_PASS: Kind = Kind {
    name: "relay-pass",
    format: 1,
    max: RelayPass::MAX_LEN + 512,
    loss: "The controller signs another; until one is in sight no relay carries this gateway's packets.",
};
pub(super) const BYPASSES: Kind = Kind {
    name: "bypasses",
    format: 1,
    max: MAX_ORDERS * (BypassOrder::MAX_LEN + 256),
    loss: "Bypasses that were ordered by file have ended; load the newest order again (`anteroom-agent bypass FILE`).",
};
pub(super) const TRIALS: Kind = Kind {
    name: "trials",
    format: 1,
    max: 4 * 1024 * 1024,
    loss: "Trials that were under way are over: their devices are back in protect until an operator orders another.",
};
pub(super) const LEARNED: Kind = Kind {
    name: "learned",
    format: 1,
    max: 8 * 1024 * 1024,
    loss: "The agent learns it again from the traffic.",
};
pub(super) const REPORTS: Kind = Kind {
    name: "reports",
    format: 1,
    max: MOST_REPORTED + 1024,
    loss: "What was seen before the last stop and hadn't reached a controller is missing in the history of flows.",
};
pub(super) const CLIENT_PLACE: Kind = Kind {
    name: "client-place",
    format: 1,
    max: 128,
    loss: "Should this gateway's address have changed while it was off, no alarm tells that WireGuard clients are configured with the one before.",
};
pub(super) const MARKER: Kind =
    Kind { name: "enforced", format: 1, max: 64, loss: "It counts as a marker all the same." };

/// Reports that no controller has stored, and whose they are.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Left {
    pub(super) gateway: GatewayId,
    pub(super) reports: Vec<Report>,
}

/// 32 bytes that a key grows from.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seed {
    seed: Blob,
}

impl Seed {
    pub(super) fn new(seed: &[u8; 32]) -> Self {
        Self { seed: Blob(seed.to_vec()) }
    }

    pub(super) fn bytes(
        &self,
        kind: &Kind,
        directory: &Path,
    ) -> Result<Zeroizing<[u8; 32]>, StateError> {
        let bytes = <[u8; 32]>::try_from(self.seed.0.as_slice());
        bytes.map(Zeroizing::new).map_err(|_| StateError::Damaged {
            path: kind.path(directory),
            problem: format!("a key of {} bytes", self.seed.0.len()),
            consequence: kind.loss,
        })
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.seed.0.zeroize();
    }
}

/// 32 bytes that nobody can foresee.
pub(super) fn random() -> Result<Zeroizing<[u8; 32]>, StateError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(StateError::Random)?;
    Ok(bytes)
}

/// That this machine is a gateway, and whose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// The organisation.
    pub organisation: OrganisationId,
    /// Which gateway this machine is.
    pub gateway: GatewayId,
    /// The invite by which it became that.
    pub invite: InviteId,
    /// The controller that the invite named. The authority chain may name others since.
    pub controller: PublicKey,
    /// Where the invite said that it is, as `host:port`.
    pub addresses: Vec<String>,
    /// Hash of the first authority document.
    pub pin: Hash,
}

/// A key of the gateway's tunnels.
#[derive(Debug, Clone)]
pub struct TunnelKey {
    /// Counts the gateway's tunnel keys upwards. Mostly the second in which the key was made, by the clock of then.
    pub serial: u64,
    /// When it was made, by the clock of then: earlier than its serial says where that had to be above others.
    pub made: UnixMillis,
    /// The private half.
    pub secret: TunnelSecret,
    /// What pre-shared keys with other gateways are agreed on with. A key that an earlier version made has none.
    pub kem: Option<Arc<KemKey>>,
    /// Whether keys before it were lost, so that its serial may be below theirs: peers take it once it has another.
    pub unsure: bool,
    /// Whether clients are spoken to with it: the gateway's first key, for good.
    pub clients: bool,
    /// Whether other gateways aren't any more.
    pub retired: bool,
    /// Whether it was made in an emergency: the one before it goes whoever still needs it.
    pub urgent: bool,
}

impl PartialEq for TunnelKey {
    fn eq(&self, other: &Self) -> bool {
        let kind =
            |key: &Self| (key.serial, key.made, key.unsure, key.clients, key.retired, key.urgent);
        kind(self) == kind(other)
            && self.secret.public() == other.secret.public()
            && self.kem == other.kem
    }
}

impl Eq for TunnelKey {}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredTunnelKey {
    serial: u64,
    /// When it was made, where that isn't the second of its serial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<UnixMillis>,
    secret: Seed,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unsure: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    clients: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    retired: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    urgent: bool,
}

/// What stands beside a tunnel key in a file of its own: an earlier version of the agent, put back, passes over that.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredKemKey {
    /// Which tunnel key it belongs to.
    of: TunnelPublicKey,
    key: Blob,
}

impl Drop for StoredKemKey {
    fn drop(&mut self) {
        self.key.0.zeroize();
    }
}

const fn in_second(second: u64) -> UnixMillis {
    UnixMillis(second.saturating_mul(1000))
}

impl TunnelKey {
    pub(super) fn read_all(secrets: &Secrets) -> Result<Vec<Self>, StateError> {
        let kems = match secrets.read::<Vec<StoredKemKey>>(&KEM_KEYS) {
            // The tunnel keys are good without them: `check_kems` says it.
            Err(StateError::Damaged { .. }) => Vec::new(),
            kems => kems?.unwrap_or_default(),
        };
        let kem_of = |secret: &TunnelSecret| {
            let found = kems.iter().find(|kem| kem.of == secret.public())?;
            KemKey::from_bytes(&found.key.0)
        };
        let stored = secrets.read::<Vec<StoredTunnelKey>>(&TUNNEL_KEYS)?.unwrap_or_default();
        let mut keys = stored
            .iter()
            .map(|key| {
                let bytes = key.secret.bytes(&TUNNEL_KEYS, secrets.directory())?;
                let secret = TunnelSecret::from_bytes(*bytes);
                let StoredTunnelKey { serial, made, unsure, clients, retired, urgent, .. } = *key;
                let made = made.unwrap_or_else(|| in_second(serial));
                let kem = kem_of(&secret);
                Ok(Self { serial, made, secret, kem, unsure, clients, retired, urgent })
            })
            .collect::<Result<Vec<_>, StateError>>()?;
        keys.sort_by_key(|key| std::cmp::Reverse(key.serial));
        Ok(keys)
    }

    /// Looks whether what stands beside the tunnel keys can be read.
    pub(super) fn check_kems(secrets: &Secrets) -> Result<(), StateError> {
        secrets.read::<Vec<StoredKemKey>>(&KEM_KEYS).map(drop)
    }

    /// Whether there is one of a tunnel key that isn't among `keys` any more, or not for other gateways: an earlier version of the agent
    /// gives up tunnel keys alone.
    pub(super) fn leaves_kems<'a>(
        secrets: &Secrets,
        keys: impl Iterator<Item = &'a Self>,
    ) -> Result<bool, StateError> {
        let kems = secrets.read::<Vec<StoredKemKey>>(&KEM_KEYS)?.unwrap_or_default();
        let used: Vec<_> = keys.filter(|key| !key.retired).map(|key| key.secret.public()).collect();
        Ok(kems.iter().any(|kem| !used.contains(&kem.of)))
    }

    pub(super) fn add(
        secrets: &Secrets,
        before: &[Self],
        floor: u64,
        unsure: bool,
    ) -> Result<Self, StateError> {
        let newest = before.iter().map(|key| key.serial).max().unwrap_or_default();
        // Keys that were lost had serials too. Seconds keep above them without a counter that survives.
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let serial = newest.max(floor).saturating_add(1).max(clock);
        let secret = TunnelSecret::from_bytes(*random()?);
        let (clients, retired, urgent) = (false, false, false);
        let kem = KemKey::generate();
        let made = in_second(clock);
        let key = Self { serial, made, secret, kem, unsure, clients, retired, urgent };
        Self::write_all(secrets, std::iter::once(&key).chain(before))?;
        Ok(key)
    }

    pub(super) fn write_all<'a>(
        secrets: &Secrets,
        keys: impl Iterator<Item = &'a Self> + Clone,
    ) -> Result<(), StateError> {
        // First, so that there is no tunnel key that may have been offered together with what is lost.
        let kems = keys.clone().take(MAX_TUNNEL_KEYS).filter(|key| !key.retired);
        let kems = kems.filter_map(|key| {
            let of = key.secret.public();
            Some(StoredKemKey { of, key: Blob(key.kem.as_ref()?.bytes().to_vec()) })
        });
        let old = [KEM_KEYS, TUNNEL_KEYS].map(|kind| kind.held_open(secrets.directory()));
        secrets.write(&KEM_KEYS, &kems.collect::<Vec<_>>())?;
        let stored = keys.take(MAX_TUNNEL_KEYS).map(|key| StoredTunnelKey {
            serial: key.serial,
            made: Some(key.made).filter(|made| *made != in_second(key.serial)),
            secret: Seed::new(key.secret.as_bytes()),
            unsure: key.unsure,
            clients: key.clients,
            retired: key.retired,
            urgent: key.urgent,
        });
        secrets.write(&TUNNEL_KEYS, &stored.collect::<Vec<_>>())?;
        // What a key had opened is to stay closed to whoever copies the disk later.
        old.into_iter().for_each(wipe);
        Ok(())
    }

    /// The public half, signed by the gateway's identity key.
    #[must_use]
    pub fn bind(&self, enrolment: &Enrolment, identity: &IdentityKey) -> Signed<TunnelKeyBinding> {
        Signed::sign(&self.binding((enrolment.organisation, enrolment.gateway)), identity)
    }

    /// The same, for clients alone.
    #[must_use]
    pub fn bind_for_clients(
        &self,
        enrolment: &Enrolment,
        identity: &IdentityKey,
    ) -> Signed<TunnelKeyBinding> {
        let who = (enrolment.organisation, enrolment.gateway);
        let (serial, not_before) = (TunnelKeyBinding::FOR_CLIENTS, in_second(self.serial));
        let binding = self.binding(who);
        let binding = TunnelKeyBinding { serial, not_before, ml_kem_768: None, ..binding };
        Signed::sign(&binding, identity)
    }

    /// What binds it to whoever has it, for other gateways; not signed.
    #[must_use]
    pub fn binding(
        &self,
        (organisation, gateway): (OrganisationId, GatewayId),
    ) -> TunnelKeyBinding {
        TunnelKeyBinding {
            organisation,
            gateway,
            x25519: self.secret.public(),
            ml_kem_768: self.kem.as_ref().map(|kem| Blob(kem.public().to_vec())),
            serial: self.serial,
            not_before: UnixMillis(0),
        }
    }
}

/// That an enforced device was in a view of this machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marker {
    pub(super) enforced: bool,
}
