//! `client add|list|show|revoke`.

mod config;

use std::cell::RefCell;
use std::collections::BTreeMap;

use anteroom_controller_core::model::{Client, Model};
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::key::TunnelSecret;
use anteroom_proto::name::Name;
use anteroom_proto::overlay;
use serde::ser::SerializeSeq as _;
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use self::config::{PeerRow, bare, check_key, interface, newest_keys, peers, peers_by, peers_text};
use super::host::{self, HostRow};
use super::login::draw;
use crate::args::{ChangeArgs, ClientAdd};
use crate::change::{self, ChangeError, Confirm, Request};
use crate::error::{Error, Exit};
use crate::home::write_new;
use crate::output::Output;
use crate::output::table::{facts, join, table};
use crate::output::time::{Moment, ago, now};
use crate::remote::Remote;

/// Columns that every terminal has.
const USUAL_WIDTH: usize = 80;

/// `anteroom client add`.
///
/// With a key that was made elsewhere the same command makes the same plan, so that its id confirms it. One that is made here is another each time.
pub(super) fn add(
    args: ClientAdd,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    if args.key.is_none() && !args.change.yes && !args.change.confirm.is_empty() {
        return Err(Error::Usage(
            "--confirm can name no plan of a key that is made here, as it's another key each time: add --yes if you mean it, or make the key \
             first (`wg genkey`) and give its public half with --key. Nothing was changed."
                .into(),
        ));
    }
    let (key, secret) = match args.key {
        Some(key) => (key, None),
        None => {
            let secret = TunnelSecret::from_bytes(*Zeroizing::new(draw::<32>()?));
            (secret.public(), Some(secret))
        }
    };
    let change::Current { base, model: mut with_it, .. } = change::fetch(remote)?;
    let id = change::drawn(
        "anteroom client",
        &base.hash,
        &[key.as_bytes().as_slice(), args.name.as_str().as_bytes()],
    );
    let labels =
        args.labels.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect();
    let client = Client {
        name: args.name.clone(),
        site: args.site,
        key,
        address: args.address,
        labels,
        added_at: now(),
    };
    let request = Request::new("client add", args.name.as_str(), args.change);
    let shown = RefCell::new(Zeroizing::new(String::new()));
    let configuration = |remote: &mut Remote, model: &Model| {
        // Whatever can't be found out now, `client show` tells later; the key is nowhere else.
        let (peers, problem) = match peers(remote, model, id) {
            Ok(peers) => (peers_text(&peers), String::new()),
            Err(error) => (String::new(), format!("# Its peers aren't known: {error}\n")),
        };
        let text =
            Zeroizing::new(format!("{}{problem}{peers}", *interface(&client, secret.as_ref())));
        let Some(file) = &args.out else {
            shown.replace(text.clone());
            return text;
        };
        match write_new(file, &text) {
            Ok(()) => Zeroizing::new(format!("# Written to {}\n", file.display())),
            Err(error) => Zeroizing::new(format!("# {error}\n{}", *text)),
        }
    };
    if let Some(file) = args.out.as_ref().filter(|file| file.symlink_metadata().is_ok()) {
        return Err(Error::Other(format!(
            "{} is there already: choose another file. Nothing was changed",
            file.display()
        )));
    }
    with_it.add_client(id, client.clone()).map_err(ChangeError::from)?;
    check_key(remote, &with_it, client.key)?;
    check_peers(&peers(remote, &with_it, id)?, &args.name)?;
    let exit = change::make_and(remote, output, request, &configuration, &|model, _| {
        model.add_client(id, client.clone())
    })?;
    let shown = shown.into_inner();
    if secret.is_some() && !args.no_qr && !shown.is_empty() {
        draw_qr(&bare(&shown), output)?;
    }
    Ok(exit)
}

/// Draws a configuration for an app's camera. One without peers leads nowhere, and an app takes no peers afterwards.
fn draw_qr(config: &str, output: &mut Output<'_>) -> Result<(), Error> {
    if !config.contains("[Peer]") {
        return output.note(
            "No QR code: there is no peer in it yet. Keep the text above, and once rules name the client add the peers that `anteroom client \
             show` will tell. Or revoke it, apply rules that open to a segment by label, and add it again with that label.",
        );
    }
    match output.qr_code(config)? {
        None => output.note("It is too long for a QR code: import the text above."),
        Some(columns) if columns > USUAL_WIDTH => output.note(format_args!(
            "The code is {columns} columns wide: where its lines are broken, no camera reads it."
        )),
        Some(_) => Ok(()),
    }
}

/// Refuses where a gateway that the client needs can't be called: a client is never called first.
fn check_peers(peers: &[PeerRow], name: &Name) -> Result<(), Error> {
    let lost: Vec<&str> =
        peers.iter().filter(|peer| peer.is_lost()).map(|peer| peer.gateway.as_str()).collect();
    if lost.is_empty() {
        return Ok(());
    }
    Err(Error::Other(format!(
        "no address or no WireGuard key is known of {}, whose devices rules open to {name}, and a client couldn't find them. \
         Gateways tell both to the controller when they are online: `anteroom gateway show {}` says more. Nothing was changed",
        lost.join(", "),
        lost[0]
    )))
}

#[derive(Debug, Serialize)]
struct ClientRow {
    name: String,
    id: String,
    site: String,
    address: String,
    overlay: String,
    key: String,
    labels: BTreeMap<String, String>,
    added_at: Moment,
    /// Whether a gateway has heard it lately.
    live: bool,
    peers: Vec<PeerRow>,
    /// The peers as its configuration must have them.
    config: String,
}

/// All clients: in JSON one list, in which those with an agent say so.
struct Rows {
    clients: Vec<ClientRow>,
    hosts: Vec<HostRow>,
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.clients.len() + self.hosts.len()))?;
        for client in &self.clients {
            list.serialize_element(client)?;
        }
        for host in &self.hosts {
            list.serialize_element(host)?;
        }
        list.end()
    }
}

impl ClientRow {
    fn new(model: &Model, id: MemberId, client: &Client, peers: Vec<PeerRow>) -> Self {
        Self {
            name: client.name.to_string(),
            id: id.to_string(),
            site: client.site.to_string(),
            address: client.address.to_string(),
            overlay: overlay::member_address(model.organisation, id).to_string(),
            key: client.key.to_wireguard(),
            labels: client.labels.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
            added_at: Moment(client.added_at),
            live: peers.iter().any(|peer| peer.live),
            config: peers_text(&peers),
            peers,
        }
    }

    fn labels(&self) -> String {
        join(self.labels.iter().map(|(key, value)| format!("{key}={value}")))
    }
}

/// `anteroom client list`.
pub(super) fn list(remote: &mut Remote, output: &mut Output<'_>) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    let resolved = Resolved::new(&model).map_err(ChangeError::from)?;
    let statuses = remote.gateways()?;
    let keys = newest_keys(remote, &model, &statuses)?;
    let row = |(id, client): (&MemberId, &Client)| {
        ClientRow::new(&model, *id, client, peers_by(&resolved, &statuses, &keys, *id))
    };
    let mut rows: Vec<_> = model.clients.iter().map(row).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let hosts = HostRow::all(&resolved, &statuses);
    let rows = Rows { clients: rows, hosts };
    output.data(&rows, |all| {
        let rows = &all.clients;
        if rows.is_empty() && all.hosts.is_empty() {
            return "No clients. `anteroom client add NAME --site SITE --address IP` adds one."
                .into();
        }
        let lines = rows.iter().map(|row| {
            let seen = join(row.peers.iter().filter(|peer| peer.live).map(|peer| &peer.gateway));
            vec![
                row.name.clone(),
                row.site.clone(),
                row.address.clone(),
                if row.live { format!("live at {seen}") } else { "away".into() },
                join(row.peers.iter().flat_map(|peer| &peer.devices)),
                row.labels(),
            ]
        });
        let hosts = all.hosts.iter().map(|row| {
            let (name, site, address) = (row.name.clone(), row.site.clone(), row.address.clone());
            vec![name, site, address, row.state().into(), join(&row.devices), row.labels()]
        });
        let lines = lines.chain(hosts);
        table(&["CLIENT", "SITE", "ADDRESS", "STATE", "DEVICES", "LABELS"], lines)
    })?;
    Ok(Exit::Ok)
}

/// `anteroom client show`.
pub(super) fn show(
    name: &str,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = change::fetch(remote)?.model;
    if let Some((id, device)) = model.host_named(name) {
        let resolved = Resolved::new(&model).map_err(ChangeError::from)?;
        if let Some(row) = HostRow::new(&resolved, &remote.gateways()?, id, device) {
            output.data(&row, host::render)?;
            return Ok(Exit::Ok);
        }
    }
    let (id, client) = model.find_client(name).map_err(ChangeError::from)?;
    let peers = peers(remote, &model, id)?;
    let row = ClientRow::new(&model, id, client, peers);
    output.data(&row, render)?;
    Ok(Exit::Ok)
}

fn render(row: &ClientRow) -> String {
    let mut text = facts(&[
        ("Client", row.name.clone()),
        ("Site", row.site.clone()),
        ("Address", row.address.clone()),
        ("Overlay", row.overlay.clone()),
        ("Id", row.id.clone()),
        ("WireGuard key", row.key.clone()),
        ("Labels", row.labels()),
        ("Added", ago(row.added_at.0, now())),
        ("Devices", join(row.peers.iter().flat_map(|peer| &peer.devices))),
        ("Unreachable", join(row.peers.iter().flat_map(|peer| &peer.dynamic))),
    ]);
    if row.peers.is_empty() {
        text.push_str("\nNo rule opens anything between it and a device, so it has no peers.\n");
        return text;
    }
    let lines = row.peers.iter().map(|peer| {
        vec![
            peer.gateway.clone(),
            if peer.live { "live".into() } else { "away".into() },
            peer.seen_at.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    let tunnels = table(&["TUNNEL TO", "STATE", "SEEN AT"], lines);
    format!(
        "{text}\n{tunnels}\n\nIts configuration must have these peers, and no others:\n\n{}",
        row.config
    )
}

/// `anteroom client revoke`.
pub(super) fn revoke(
    name: &str,
    args: ChangeArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let mut request = Request::new("client revoke", name, args);
    request.reason_needed = true;
    request.confirm = Confirm::Names(vec![name.to_owned()]);
    change::make(remote, output, request, &|model, _| {
        if model.host_named(name).is_some() {
            return model.revoke_host(name).map(drop);
        }
        model.revoke_client(name).map(drop)
    })
}

/// What telemetry calls a client where it has a place for a gateway.
fn as_peer(id: MemberId) -> GatewayId {
    id.into()
}
