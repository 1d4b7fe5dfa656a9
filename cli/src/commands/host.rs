//! `client approve`, and what clients with an agent of their own look like in `client list|show`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anteroom_controller_core::edit::NewHost;
use anteroom_controller_core::model::{Device, Model};
use anteroom_controller_core::reach::reach;
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::api::GatewayStatus;
use anteroom_proto::id::MemberId;
use anteroom_proto::overlay;
use ipnet::Ipv4Net;
use serde::Serialize;

use super::enrol;
use crate::args::ClientApprove;
use crate::change::{self, Request};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{facts, join};
use crate::output::time::{Moment, ago, now};
use crate::remote::Remote;

/// `anteroom client approve`.
pub(super) fn approve(
    args: ClientApprove,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let name = args.name.as_str();
    let candidate = enrol::candidate(name, args.fingerprint.as_deref(), remote, output)?;
    if candidate.says_host() == Some(false) {
        return Err(Error::Other(format!(
            "{name} has device ports, so it is a gateway: `anteroom gateway approve {name}`. For a client, its agent.toml has \
             [host], and neither uplink nor ports. Nothing was changed"
        )));
    }
    if let Some(whose) = machine_at(args.address, candidate.from, remote)? {
        return Err(Error::Other(format!(
            "{0} is where {whose} is itself, so that packets of tunnels would go into tunnels. As a member {name} needs an address of its own, \
             which nobody has: `anteroom client approve {name} --address …`. Nothing was changed",
            args.address
        )));
    }
    let (id, gateway) = (candidate.invite.gateway, candidate.gateway());
    let change::Current { base, .. } = change::fetch(remote)?;
    let labels = args.labels.iter();
    let host = NewHost {
        member: change::drawn("anteroom host", &base.hash, &[id.as_bytes().as_slice()]),
        address: args.address,
        labels: labels.filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect(),
        approved_at: now(),
    };
    let request = Request::new("client approve", gateway.name.as_str(), args.change);
    change::make(remote, output, request, &|model, number| {
        model.approve_host(id, gateway.clone(), host.clone(), number)
    })
}

/// Whose machine is found at this address by agents, outside of the overlay: the client's own, a gateway's, a controller's or a relay's.
fn machine_at(
    address: Ipv4Addr,
    own: IpAddr,
    remote: &mut Remote,
) -> Result<Option<String>, Error> {
    let is = |at: IpAddr| at.to_canonical() == IpAddr::V4(address);
    if is(own) {
        return Ok(Some("this client's machine".into()));
    }
    let authority = remote.chain().newest();
    let relays = authority.relays.iter().map(|relay| ("a relay", &relay.addresses));
    let controllers = authority.controllers.iter().map(|one| ("a controller", &one.addresses));
    let named = |at: &String| at.parse().is_ok_and(|at: SocketAddr| is(at.ip()));
    let mut servers = controllers.chain(relays);
    if let Some((whose, _)) = servers.find(|(_, addresses)| addresses.iter().any(named)) {
        return Ok(Some(whose.into()));
    }
    let there = |status: &GatewayStatus| status.endpoints.iter().any(|at| is(at.ip()));
    let gateway = remote.gateways()?.into_iter().find(there).map(|status| status.gateway);
    Ok(gateway.map(|id| format!("the gateway or client {id}")))
}

/// A client with an agent of its own.
#[derive(Debug, Serialize)]
pub(super) struct HostRow {
    pub(super) name: String,
    /// `agent`, where others have a WireGuard key.
    kind: &'static str,
    id: String,
    gateway: String,
    pub(super) site: String,
    pub(super) address: String,
    overlay: String,
    fingerprint: String,
    labels: BTreeMap<String, String>,
    added_at: Moment,
    /// Whether it is connected to the controller.
    pub(super) live: bool,
    revision: Option<u64>,
    /// The devices that rules open between the two.
    pub(super) devices: Vec<String>,
}

impl HostRow {
    /// All of them, by name.
    pub(super) fn all(resolved: &Resolved, statuses: &[GatewayStatus]) -> Vec<Self> {
        let hosts = resolved.model.devices.iter().filter(|(_, device)| Model::is_host(device));
        let mut rows: Vec<Self> =
            hosts.filter_map(|(id, device)| Self::new(resolved, statuses, *id, device)).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    /// None where its agent was revoked.
    pub(super) fn new(
        resolved: &Resolved,
        statuses: &[GatewayStatus],
        id: MemberId,
        device: &Device,
    ) -> Option<Self> {
        let model = &resolved.model;
        let own = device.attachment.gateway;
        let gateway = model.gateways.get(&own)?;
        let status = statuses.iter().find(|status| status.gateway == own);
        let partners = reach(resolved, id, now());
        let partners =
            partners.iter().flat_map(|reach| &reach.devices).filter(|other| **other != id);
        Some(Self {
            name: device.name.to_string(),
            kind: "agent",
            id: id.to_string(),
            gateway: own.to_string(),
            site: gateway.site.to_string(),
            address: join(device.addresses.iter().map(Ipv4Net::addr)),
            overlay: overlay::member_address(model.organisation, id).to_string(),
            fingerprint: gateway.identity.fingerprint().to_string(),
            labels: device.labels.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
            added_at: Moment(device.confirmed_at),
            live: status.is_some_and(|status| status.online),
            revision: status.and_then(|status| status.revision),
            devices: partners
                .filter_map(|id| model.member_name(*id))
                .map(ToString::to_string)
                .collect(),
        })
    }

    pub(super) fn labels(&self) -> String {
        join(self.labels.iter().map(|(key, value)| format!("{key}={value}")))
    }

    pub(super) const fn state(&self) -> &'static str {
        if self.live { "online" } else { "away" }
    }
}

/// What `client show` says of it.
pub(super) fn render(row: &HostRow) -> String {
    let revision = row.revision.map_or_else(|| "none yet".into(), |number| number.to_string());
    facts(&[
        ("Client", format!("{}, with an agent of its own", row.name)),
        ("Site", row.site.clone()),
        ("Address", row.address.clone()),
        ("Overlay", row.overlay.clone()),
        ("Id", row.id.clone()),
        ("Fingerprint", row.fingerprint.clone()),
        ("Labels", row.labels()),
        ("Approved", ago(row.added_at.0, now())),
        ("State", row.state().into()),
        ("Revision", revision),
        ("Devices", join(&row.devices)),
    ])
}
