//! `gateway list|show|label|revoke`.

use std::collections::BTreeMap;
use std::time::Duration;

use anteroom_controller_core::names::Names;
use anteroom_proto::api::GatewayStatus;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::PublicKey;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::Unlisted;
use anteroom_proto::v1::telemetry::{PathKind, PathReason, RelayUse, SHUT_OFF, Secrecy};
use anteroom_proto::verdict::DropReason;
use serde::Serialize;

use super::cables::{AlarmRow, alarms};
use super::rotate::TunnelKeys;
use crate::args::{ChangeArgs, Label};
use crate::change::{self, ChangeError, Confirm, Current, Request};
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::{facts, join, table};
use crate::output::time::{Moment, ago, now};
use crate::remote::Remote;

/// Clocks are seldom further apart.
const AHEAD: Duration = Duration::from_secs(3600);

/// How a gateway is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// Online, with the newest revision in force.
    Ok,
    /// Online, with an older revision in force.
    Lagging,
    /// Online; it refused the newest revision.
    Refused,
    /// Not connected.
    Offline,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Lagging => "LAGGING",
            Self::Refused => "REFUSED",
            Self::Offline => "OFFLINE",
        }
    }
}

/// A tunnel, with the peer's name.
#[derive(Debug, Serialize)]
pub(super) struct Tunnel {
    pub(super) peer: String,
    pub(super) live: bool,
    round_trip_us: Option<u32>,
    /// The gateway's number of the relay that packets take; none where they go directly.
    relay: Option<u16>,
    /// The relay of that number, as the gateway said at the same time.
    through: Option<Through>,
    /// Why they go this way, where there is a choice.
    path: Option<PathReason>,
    /// Whether no direct path can come to be.
    shut_off: bool,
    path_mtu: Option<u16>,
    /// What closes it, beside X25519, to a quantum computer.
    psk: Option<Secrecy>,
    revision: Option<u64>,
    endpoint: Option<String>,
}

impl Tunnel {
    /// Whether what is recorded of it today stays closed to a quantum computer.
    fn is_post_quantum(&self) -> bool {
        self.psk.is_some_and(Secrecy::is_post_quantum)
    }
}

/// A relay that packets of a tunnel take.
#[derive(Debug, Serialize)]
struct Through {
    key: PublicKey,
    /// Its name in the authority document; none of a controller.
    name: Option<String>,
    /// Round trip from the gateway to the relay.
    round_trip_us: Option<u32>,
    over_tcp: bool,
}

impl Through {
    fn of(number: Option<u16>, relays: &[RelayUse]) -> Option<Self> {
        let relay = relays.iter().find(|relay| number.is_some() && relay.number == number)?;
        let RelayUse { key, round_trip, over_tcp, .. } = *relay;
        Some(Self { key, name: None, round_trip_us: round_trip, over_tcp })
    }

    fn text(&self) -> String {
        let mut text = match &self.name {
            Some(name) => format!("through relay {name}"),
            None => "through the controller's relay".into(),
        };
        let far = self.round_trip_us.map(|us| format!("{us} us away"));
        let tcp = self.over_tcp.then(|| "over TCP".to_owned());
        let more: Vec<String> = far.into_iter().chain(tcp).collect();
        if !more.is_empty() {
            text += &format!(" ({})", more.join(", "));
        }
        text
    }
}

/// A device port.
#[derive(Debug, Serialize)]
struct Port {
    name: String,
    mac: String,
    up: bool,
    /// What becomes of addresses that nobody confirmed, once a device there has left observe.
    unlisted: Unlisted,
}

/// What there is to know of a connection that isn't QUIC.
const OVER_TCP: &str = "over TCP (slower): UDP doesn't get through";

/// A gateway of the model, with what the controller says of it.
#[derive(Debug, Serialize)]
pub(super) struct GatewayRow {
    pub(super) name: String,
    id: String,
    site: String,
    fingerprint: String,
    labels: BTreeMap<String, String>,
    pub(super) state: State,
    pub(super) online: bool,
    /// Until when peers meet its devices in the clear.
    pub(super) bypassed_until: Option<Moment>,
    /// Gateways whose devices it meets in the clear by a file that was loaded into it, and until when.
    pub(super) bypasses_by_file: BTreeMap<String, Moment>,
    pub(super) last_seen: Option<Moment>,
    pub(super) revision: Option<u64>,
    pub(super) wanted: Option<u64>,
    pub(super) behind_since: Option<Moment>,
    pub(super) refused: Option<String>,
    pub(super) problems: Vec<String>,
    agent_version: Option<String>,
    tunnel_key: Option<TunnelKeys>,
    observed: Option<String>,
    /// Whether its connection to the controller takes TCP, since UDP doesn't get through.
    pub(super) over_tcp: bool,
    /// To how many relays it has such a connection.
    relays_over_tcp: usize,
    ports: Vec<Port>,
    pub(super) tunnels: Vec<Tunnel>,
    pub(super) alarms: Vec<AlarmRow>,
    drops: BTreeMap<String, u64>,
    devices: Vec<String>,
}

/// Every gateway of the model. What the controller says of others is left out.
pub(super) fn rows(
    current: &Current,
    statuses: &[GatewayStatus],
    names: &Names,
) -> Vec<GatewayRow> {
    let model = &current.model;
    let mut rows: Vec<GatewayRow> = model
        .gateways
        .iter()
        .map(|(id, gateway)| {
            let status = statuses.iter().find(|status| status.gateway == *id);
            let tunnels = status.map(|s| s.tunnels.as_slice()).unwrap_or_default().iter();
            GatewayRow {
                name: gateway.name.to_string(),
                id: id.to_string(),
                site: gateway.site.to_string(),
                fingerprint: gateway.identity.fingerprint().to_string(),
                labels: gateway.labels.iter().map(|(k, v)| (k.to_string(), v.clone())).collect(),
                state: state(status),
                online: status.is_some_and(|s| s.online),
                bypassed_until: model.bypassed(*id, now()).map(Moment),
                bypasses_by_file: status
                    .map(|s| s.bypasses.as_slice())
                    .unwrap_or_default()
                    .iter()
                    .map(|open| (names.gateway(open.gateway), Moment(open.until)))
                    .collect(),
                last_seen: status.and_then(|s| s.last_seen).map(Moment),
                revision: status.and_then(|s| s.revision),
                wanted: status.map(|s| s.wanted),
                behind_since: status.and_then(|s| s.behind_since).map(Moment),
                refused: status.and_then(|s| s.refused.clone()),
                problems: status.map(|s| s.problems.clone()).unwrap_or_default(),
                tunnel_key: status.and_then(|status| TunnelKeys::of(model, status)),
                agent_version: status.and_then(|s| s.agent_version.clone()),
                over_tcp: status.is_some_and(|s| s.over_tcp),
                relays_over_tcp: status
                    .map(|s| s.relays.as_slice())
                    .unwrap_or_default()
                    .iter()
                    .filter(|relay| relay.over_tcp)
                    .count(),
                observed: status.and_then(|s| s.observed).map(|address| address.to_string()),
                ports: status
                    .map(|s| s.ports.as_slice())
                    .unwrap_or_default()
                    .iter()
                    .map(|p| Port {
                        name: p.name.to_string(),
                        mac: p.mac.to_string(),
                        up: p.up,
                        unlisted: p.unlisted,
                    })
                    .collect(),
                // A gateway that was revoked since the report is no peer any more.
                tunnels: tunnels
                    .filter(|tunnel| model.gateways.contains_key(&tunnel.gateway))
                    .map(|tunnel| Tunnel {
                        peer: names.gateway(tunnel.gateway),
                        live: tunnel.live,
                        round_trip_us: tunnel.round_trip,
                        relay: tunnel.relay,
                        through: Through::of(
                            tunnel.relay,
                            status.map(|s| s.relays.as_slice()).unwrap_or_default(),
                        ),
                        path: tunnel.path,
                        shut_off: tunnel.shut_off,
                        path_mtu: tunnel.path_mtu,
                        psk: tunnel.secrecy,
                        revision: tunnel.revision,
                        endpoint: tunnel.endpoint.map(|address| address.to_string()),
                    })
                    .collect(),
                alarms: status.map(|s| alarms(model, *id, &s.alarms)).unwrap_or_default(),
                drops: status.map(|s| s.drops.clone()).unwrap_or_default(),
                devices: devices_of(current, *id),
            }
        })
        .collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

fn state(status: Option<&GatewayStatus>) -> State {
    match status {
        Some(status) if !status.online => State::Offline,
        Some(status) if status.refused.is_some() => State::Refused,
        Some(status) if status.revision.unwrap_or(0) < status.wanted => State::Lagging,
        Some(_) => State::Ok,
        None => State::Offline,
    }
}

fn devices_of(current: &Current, gateway: GatewayId) -> Vec<String> {
    let mut names: Vec<String> = current
        .model
        .devices
        .values()
        .filter(|device| device.attachment.gateway == gateway)
        .map(|device| device.name.to_string())
        .collect();
    names.sort();
    names
}

/// The gateways as a table.
pub(super) fn render(rows: &[GatewayRow]) -> String {
    let now = now();
    let number = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
    let lines = rows.iter().map(|row| {
        let live = row.tunnels.iter().filter(|tunnel| tunnel.live).count();
        vec![
            row.name.clone(),
            row.site.clone(),
            {
                let tcp = row.over_tcp || row.relays_over_tcp > 0;
                let bypassed = row.bypassed_until.map_or("", |_| " BYPASSED");
                format!(
                    "{}{bypassed}{}",
                    row.state.as_str(),
                    if tcp { " over TCP (slower)" } else { "" }
                )
            },
            row.last_seen.map_or_else(|| "never".into(), |at| ago(at.0, now)),
            number(row.revision),
            number(row.wanted),
            format!("{live}/{}", row.tunnels.len()),
            format!(
                "{}/{}",
                row.tunnels.iter().filter(|tunnel| tunnel.is_post_quantum()).count(),
                row.tunnels.len()
            ),
            row.tunnel_key.as_ref().map_or_else(
                || "-".into(),
                |key| match key.made.0.since(now) {
                    ahead if ahead > AHEAD => format!("? ({})", key.serial),
                    _ => format!("{} ({})", ago(key.made.0, now), key.serial),
                },
            ),
            join(&row.devices),
        ]
    });
    table(
        &[
            "GATEWAY",
            "SITE",
            "STATE",
            "LAST SEEN",
            "REVISION",
            "WANTED",
            "TUNNELS",
            "ML-KEM",
            "TUNNEL KEY",
            "DEVICES",
        ],
        lines,
    )
}

fn load(remote: &mut Remote) -> Result<Vec<GatewayRow>, Error> {
    let current = change::fetch(remote)?;
    let statuses = remote.gateways()?;
    Ok(rows(&current, &statuses, &Names::of(&current.model)))
}

/// `anteroom gateway list`.
pub(super) fn list(remote: &mut Remote, output: &mut Output<'_>) -> Result<Exit, Error> {
    let rows = load(remote)?;
    output.data(&rows, |rows| {
        if rows.is_empty() {
            "No gateways yet. `anteroom gateway invite NAME --site SITE` makes an invite for one."
                .into()
        } else {
            render(rows)
        }
    })?;
    Ok(Exit::Ok)
}

/// `anteroom gateway show`.
pub(super) fn show(
    name: &str,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let current = change::fetch(remote)?;
    current.model.find_gateway(name).map_err(ChangeError::from)?;
    let statuses = remote.gateways()?;
    let rows = rows(&current, &statuses, &Names::of(&current.model));
    let Some(mut row) = rows.into_iter().find(|row| row.name == name) else {
        return Err(Error::Other(format!("no gateway {name}")));
    };
    let relays = &remote.chain().newest().relays;
    for through in row.tunnels.iter_mut().filter_map(|tunnel| tunnel.through.as_mut()) {
        let named = relays.iter().find(|relay| relay.key == through.key);
        through.name = named.map(|relay| relay.name.to_string());
    }
    output.data(&row, render_one)?;
    Ok(Exit::Ok)
}

fn tunnel_key(key: &TunnelKeys, now: UnixMillis) -> String {
    let old = match key.older {
        0 => String::new(),
        1 => "; an older one until all peers have moved".into(),
        more => format!("; {more} older ones until all peers have moved"),
    };
    let psk = if key.post_quantum { "with" } else { "WITHOUT" };
    // Its serial goes on above one that a wrong clock made, and says nothing of the time then.
    let made = match key.made.0.since(now) {
        ahead if ahead > AHEAD => "at a time that its serial doesn't tell".into(),
        _ => ago(key.made.0, now),
    };
    format!("serial {}, made {made}, {psk} an ML-KEM-768 key{old}", key.serial)
}

fn render_one(row: &GatewayRow) -> String {
    let now = now();
    let maybe = |text: &Option<String>| text.clone().unwrap_or_default();
    let revision = match (row.revision, row.wanted, row.behind_since) {
        (Some(has), Some(wanted), Some(since)) => {
            format!("{has}, behind {wanted} since {}", ago(since.0, now))
        }
        (Some(has), _, _) => has.to_string(),
        (None, _, _) => "none yet".into(),
    };
    let mut text = facts(&[
        ("Gateway", row.name.clone()),
        ("Site", row.site.clone()),
        ("Id", row.id.clone()),
        ("Fingerprint", row.fingerprint.clone()),
        ("Labels", join(row.labels.iter().map(|(k, v)| format!("{k}={v}")))),
        ("State", row.state.as_str().into()),
        (
            "Last seen",
            row.last_seen.map_or_else(|| "never".into(), |at| format!("{} ({at})", ago(at.0, now))),
        ),
        ("From", maybe(&row.observed)),
        ("Controller", if row.over_tcp { OVER_TCP.into() } else { String::new() }),
        (
            "Relays",
            match row.relays_over_tcp {
                0 => String::new(),
                count => format!("{count} {OVER_TCP}"),
            },
        ),
        ("Agent", maybe(&row.agent_version)),
        ("Tunnel key", row.tunnel_key.as_ref().map(|key| tunnel_key(key, now)).unwrap_or_default()),
        ("BYPASSED until", row.bypassed_until.map(|at| at.to_string()).unwrap_or_default()),
        ("Revision", revision),
        ("Refused", maybe(&row.refused)),
        ("Problems", row.problems.join("; ")),
        ("Devices", join(&row.devices)),
    ]);
    for alarm in &row.alarms {
        text.push_str(&format!("ALARM: {}\n", alarm.text));
    }
    if !row.ports.is_empty() {
        let lines = row.ports.iter().map(|port| {
            let carrier = if port.up { "up" } else { "down" };
            let unlisted = match port.unlisted {
                Unlisted::Hold => "held",
                Unlisted::Pass => "PASS in the clear",
            };
            vec![port.name.clone(), port.mac.clone(), carrier.into(), unlisted.into()]
        });
        text = format!("{text}\n{}\n", table(&["PORT", "OWN MAC", "LINK", "UNLISTED MACS"], lines));
    }
    if !row.tunnels.is_empty() {
        let lines = row.tunnels.iter().map(|tunnel| {
            let kind = PathKind::of(tunnel.relay);
            let way = match (kind, &tunnel.through) {
                (PathKind::Direct, _) => "direct".to_owned(),
                (PathKind::Quic, _) => "quic".to_owned(),
                (PathKind::Relay(_), Some(through)) => through.text(),
                (PathKind::Relay(_), None) => "through a relay".to_owned(),
            };
            vec![
                tunnel.peer.clone(),
                if tunnel.live { "live".into() } else { "DOWN".into() },
                tunnel.round_trip_us.map_or_else(|| "-".into(), |us| format!("{us} us")),
                match (kind, tunnel.path) {
                    (PathKind::Relay(_), Some(_)) if tunnel.shut_off => {
                        format!("{way}: {SHUT_OFF}")
                    }
                    (_, Some(why)) => format!("{way}: {}", kind.because(why)),
                    (_, None) => way,
                },
                tunnel.psk.map_or_else(|| "-".into(), |psk| psk.to_string()),
                tunnel.path_mtu.map_or_else(|| "-".into(), |mtu| mtu.to_string()),
                tunnel.endpoint.clone().unwrap_or_else(|| "-".into()),
            ]
        });
        text = format!(
            "{text}\n{}\n",
            table(
                &["TUNNEL TO", "STATE", "ROUND TRIP", "WAY", "PSK", "PATH MTU", "ENDPOINT"],
                lines
            )
        );
    }
    if !row.drops.is_empty() {
        let lines = row.drops.iter().map(|(word, count)| {
            let meaning =
                DropReason::from_word(word).map(DropReason::explanation).unwrap_or_default();
            vec![word.clone(), count.to_string(), meaning.into()]
        });
        text = format!("{text}\n{}\n", table(&["DROPS", "COUNT", "MEANING"], lines));
    }
    text
}

/// `anteroom gateway label`.
pub(super) fn label(
    name: &str,
    labels: &[Label],
    args: ChangeArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let request = Request::new("gateway label", name, args);
    change::make(remote, output, request, &|model, _| model.label_gateway(name, labels).map(drop))
}

/// `anteroom gateway revoke`.
pub(super) fn revoke(
    name: &str,
    args: ChangeArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let mut request = Request::new("gateway revoke", name, args);
    request.reason_needed = true;
    request.confirm = Confirm::Names(vec![name.to_owned()]);
    change::make(remote, output, request, &|model, _| model.revoke_gateway(name).map(drop))
}

#[cfg(test)]
mod tests {
    use anteroom_proto::key::IdentityKey;

    use super::*;

    #[test]
    fn a_tunnel_through_a_relay_says_which_how_far_and_over_what() {
        let relay = |number, round_trip, over_tcp| RelayUse {
            key: IdentityKey::from_seed(&[1; 32]).public(),
            round_trip,
            carries: 1,
            over_tcp,
            number,
        };
        let relays = [
            relay(None, None, false),
            relay(Some(2), Some(900), true),
            relay(Some(3), None, false),
        ];
        assert!(Through::of(None, &relays).is_none(), "it goes directly");
        assert!(Through::of(Some(7), &relays).is_none(), "it has gone since");
        let mut through = Through::of(Some(2), &relays).unwrap();
        assert_eq!(through.text(), "through the controller's relay (900 us away, over TCP)");
        through.name = Some("east".into());
        assert_eq!(through.text(), "through relay east (900 us away, over TCP)");
        assert_eq!(Through::of(Some(3), &relays).unwrap().text(), "through the controller's relay");
    }
}
