//! A client's configuration, as wg-quick and WireGuard's apps take it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anteroom_controller_core::model::{Client, Gateway, Model};
use anteroom_controller_core::reach::{Reach, reach, reachable_at};
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::api::GatewayStatus;
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::{Signed, Verified};
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::key::{TunnelPublicKey, TunnelSecret};
use serde::Serialize;
use zeroize::Zeroizing;

use super::as_peer;
use crate::change::ChangeError;
use crate::error::Error;
use crate::home::NewestKey;
use crate::output::time::now;
use crate::remote::Remote;

/// How often a client says that it is there, in seconds: what keeps a NAT open for what devices open to it.
const KEEPALIVE: u16 = 25;

/// A gateway as one client's peer.
#[derive(Debug, Serialize)]
pub(super) struct PeerRow {
    pub(super) gateway: String,
    /// The gateway's WireGuard key, where it has told one that its identity key signed.
    key: Option<String>,
    /// Whether the controller shows an older key than this machine has seen before, or none: the newer one stands.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    key_remembered: bool,
    endpoint: Option<String>,
    /// Addresses of the devices that rules open.
    allowed_ips: Vec<String>,
    pub(super) devices: Vec<String>,
    /// Devices that rules open and that have dynamic addresses only: they can't be configured.
    pub(super) dynamic: Vec<String>,
    /// Whether the gateway has heard the client lately.
    pub(super) live: bool,
    /// Where the gateway hears it from.
    pub(super) seen_at: Option<String>,
}

impl PeerRow {
    /// Whether nobody knows where the gateway is, or by which key it is called, though the client needs it.
    pub(super) const fn is_lost(&self) -> bool {
        (self.endpoint.is_none() || self.key.is_none()) && !self.allowed_ips.is_empty()
    }
}

/// A configuration without what people only read: a QR code gets large by it.
pub(super) fn bare(config: &str) -> Zeroizing<String> {
    let mut bare = Zeroizing::new(String::with_capacity(config.len()));
    for line in config.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        bare.push_str(line);
        bare.push('\n');
    }
    bare
}

/// The client's own section, with its private key where that was made here.
pub(super) fn interface(client: &Client, secret: Option<&TunnelSecret>) -> Zeroizing<String> {
    let Client { name, address, .. } = client;
    let key = match secret {
        Some(secret) => {
            let key = secret.to_wireguard();
            Zeroizing::new(format!("PrivateKey = {}\n", *key))
        }
        None => Zeroizing::new(format!(
            "# PrivateKey: the one of {}, which stays on the machine that made it.\n",
            client.key.to_wireguard()
        )),
    };
    let once =
        if secret.is_some() { ", shown once: the private key is stored nowhere else." } else { "" };
    Zeroizing::new(format!("# {name}{once}\n[Interface]\n{}Address = {address}/32\n\n", *key))
}

/// The sections of its peers.
pub(super) fn peers_text(peers: &[PeerRow]) -> String {
    let mut text = String::new();
    for peer in peers {
        for device in &peer.dynamic {
            let _ = writeln!(text, "# {device} has dynamic addresses only and can't be reached.");
        }
        let Some(key) = &peer.key else {
            let _ = writeln!(
                text,
                "# {} hasn't told its WireGuard key yet: look again with `anteroom client show`.\n",
                peer.gateway
            );
            continue;
        };
        if peer.allowed_ips.is_empty() {
            continue;
        }
        if peer.key_remembered {
            let _ = writeln!(
                text,
                "# The controller shows an older key of {}, or none: this is the newest that was seen here.",
                peer.gateway
            );
        }
        let _ = write!(
            text,
            "# {}: {}\n[Peer]\nPublicKey = {key}\n",
            peer.gateway,
            peer.devices.join(", ")
        );
        if let Some(endpoint) = &peer.endpoint {
            let _ = writeln!(text, "Endpoint = {endpoint}");
        }
        let _ = writeln!(text, "AllowedIPs = {}", peer.allowed_ips.join(", "));
        let _ = writeln!(text, "PersistentKeepalive = {KEEPALIVE}\n");
    }
    text
}

/// The gateways that a client is to have as peers.
///
/// # Errors
/// When the policy has problems, or the controller can't be asked.
pub(super) fn peers(
    remote: &mut Remote,
    model: &Model,
    client: MemberId,
) -> Result<Vec<PeerRow>, Error> {
    let resolved = Resolved::new(model).map_err(ChangeError::from)?;
    let statuses = remote.gateways()?;
    let keys = newest_keys(remote, model, &statuses)?;
    Ok(peers_by(&resolved, &statuses, &keys, client))
}

/// As [`peers`], by what gateways have said and these keys of theirs.
pub(super) fn peers_by(
    resolved: &Resolved,
    statuses: &[GatewayStatus],
    keys: &BTreeMap<GatewayId, NewestKey>,
    client: MemberId,
) -> Vec<PeerRow> {
    let row = |found: &Reach| {
        let gateway = resolved.model.gateways.get(&found.gateway)?;
        let status = statuses.iter().find(|status| status.gateway == found.gateway);
        Some(row(resolved, found, gateway, client, (status, keys.get(&found.gateway))))
    };
    reach(resolved, client, now()).iter().filter_map(row).collect()
}

/// The newest tunnel key of each gateway for which its identity key vouches. The controller has no say in it: an older
/// one than this machine has seen isn't taken.
///
/// # Errors
/// When what was seen can't be read or kept.
pub(super) fn newest_keys(
    remote: &Remote,
    model: &Model,
    statuses: &[GatewayStatus],
) -> Result<BTreeMap<GatewayId, NewestKey>, Error> {
    let before = remote.home().seen_keys()?;
    let mut seen = before.clone();
    seen.retain(|gateway| model.gateways.contains_key(&gateway));
    let newest = |(id, gateway): (&GatewayId, &Gateway)| {
        let status = statuses.iter().find(|status| status.gateway == *id);
        let signed = status.map(|status| status.tunnel_keys.as_slice()).unwrap_or_default().iter();
        let verify = |key: &Signed<TunnelKeyBinding>| {
            key.verify(model.organisation, &[gateway.identity]).ok().map(Verified::into_document)
        };
        Some((*id, seen.newest(*id, gateway.identity, signed.filter_map(verify))?))
    };
    let keys = model.gateways.iter().filter_map(newest).collect();
    if seen != before {
        remote.home().write_seen_keys(&seen)?;
    }
    Ok(keys)
}

/// Refuses a client's key that is a gateway's: peers would leave that gateway without it, for operators' word counts for more than its own.
///
/// # Errors
/// When it is one, or the controller can't be asked.
pub(super) fn check_key(
    remote: &mut Remote,
    model: &Model,
    key: TunnelPublicKey,
) -> Result<(), Error> {
    let statuses = remote.gateways()?;
    let newest = newest_keys(remote, model, &statuses)?;
    let binds = |id: &GatewayId, gateway: &Gateway| {
        let status = statuses.iter().find(|status| status.gateway == *id);
        let signed = status.map(|status| status.tunnel_keys.as_slice()).unwrap_or_default();
        let mut bound = signed.iter().filter_map(|signed| {
            signed.verify(model.organisation, &[gateway.identity]).ok().map(|key| key.x25519)
        });
        bound.any(|bound| bound == key) || newest.get(id).is_some_and(|newest| newest.key == key)
    };
    let Some((_, gateway)) = model.gateways.iter().find(|(id, gateway)| binds(id, gateway)) else {
        return Ok(());
    };
    Err(Error::Other(format!(
        "the WireGuard key {} is gateway {}'s own, which its peers would take from it: a client needs a key that was made on its own \
         machine, and whoever sent this one may mean harm. Nothing was changed",
        key.to_wireguard(),
        gateway.name
    )))
}

fn row(
    resolved: &Resolved,
    found: &Reach,
    gateway: &Gateway,
    client: MemberId,
    (status, key): (Option<&GatewayStatus>, Option<&NewestKey>),
) -> PeerRow {
    let named = |with_address: bool| -> Vec<String> {
        let fits = |id: &&MemberId| reachable_at(resolved, **id).is_empty() != with_address;
        let devices = found.devices.iter().filter(fits);
        devices.filter_map(|id| resolved.model.member_name(*id)).map(ToString::to_string).collect()
    };
    let tunnels = status.map(|status| status.tunnels.as_slice()).unwrap_or_default();
    let tunnel = tunnels.iter().find(|tunnel| tunnel.gateway == as_peer(client));
    PeerRow {
        gateway: gateway.name.to_string(),
        key: key.map(|newest| newest.key.to_wireguard()),
        key_remembered: key.is_some_and(|newest| newest.remembered),
        endpoint: status.and_then(|s| s.endpoints.first()).map(ToString::to_string),
        allowed_ips: found.addresses(resolved).iter().map(ToString::to_string).collect(),
        devices: named(true),
        dynamic: named(false),
        live: status.is_some_and(|s| s.online) && tunnel.is_some_and(|tunnel| tunnel.live),
        seen_at: tunnel.and_then(|tunnel| tunnel.endpoint).map(|at| at.to_string()),
    }
}
