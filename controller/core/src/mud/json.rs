//! MUD files as JSON: RFC 8520 over RFC 8519.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::text::steers;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Allow, MAX_ENTRIES, MAX_LEN, MAX_TEXT, Mud, MudError, Opens, Peer, is_everywhere};

const ALL: (u16, u16) = (1, u16::MAX);
/// Most things that are told as not read.
const MAX_UNREAD: usize = 50;

#[derive(Debug, Deserialize)]
struct File {
    #[serde(rename = "ietf-mud:mud")]
    mud: Head,
    #[serde(rename = "ietf-access-control-list:acls", default)]
    acls: Acls,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Head {
    mud_version: u32,
    mud_url: String,
    last_update: String,
    #[serde(default = "two_days")]
    cache_validity: u32,
    #[serde(default)]
    is_supported: bool,
    systeminfo: Option<String>,
    mfg_name: Option<String>,
    model_name: Option<String>,
    #[serde(default)]
    from_device_policy: Lists,
    #[serde(default)]
    to_device_policy: Lists,
}

const fn two_days() -> u32 {
    48
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Lists {
    #[serde(default)]
    access_lists: ListNames,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ListNames {
    #[serde(default)]
    access_list: Vec<ListName>,
}

#[derive(Debug, Deserialize)]
struct ListName {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
struct Acls {
    #[serde(default)]
    acl: Vec<Acl>,
}

#[derive(Debug, Deserialize)]
struct Acl {
    name: String,
    #[serde(default)]
    aces: Aces,
}

#[derive(Debug, Default, Deserialize)]
struct Aces {
    #[serde(default)]
    ace: Vec<Ace>,
}

#[derive(Debug, Deserialize)]
struct Ace {
    #[serde(default)]
    name: String,
    #[serde(default)]
    matches: BTreeMap<String, Value>,
    #[serde(default)]
    actions: Actions,
}

#[derive(Debug, Default, Deserialize)]
struct Actions {
    #[serde(default)]
    forwarding: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Ports {
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lower_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upper_port: Option<u16>,
}

impl Ports {
    fn range(&self) -> Result<(u16, u16), String> {
        let (first, last) =
            match (self.port, self.lower_port, self.upper_port, self.operator.as_deref()) {
                (Some(port), None, None, None | Some("eq")) => (port, port),
                (Some(port), None, None, Some("lte")) => (1, port),
                (Some(port), None, None, Some("gte")) => (port, u16::MAX),
                (None, Some(lower), Some(upper), None | Some("range")) => (lower, upper),
                _ => return Err("ports that are neither one, a range, nor a bound".into()),
            };
        if first == 0 || first > last {
            Err(format!("the ports {first} to {last}"))
        } else {
            Ok((first, last))
        }
    }
}

fn short(text: &str) -> String {
    text.chars().map(|c| if steers(c) { ' ' } else { c }).take(MAX_TEXT).collect()
}

pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<Mud, MudError> {
    let error = |place: String, problem: String| MudError { place, problem };
    if bytes.len() > MAX_LEN {
        return Err(error(
            file.into(),
            format!("{} bytes are more than the {MAX_LEN} that a MUD file may have", bytes.len()),
        ));
    }
    let bytes = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    let read: File = serde_json::from_slice(bytes).map_err(|problem| {
        error(
            format!("{file}:{}", problem.line()),
            format!("this is no MUD file (RFC 8520): {problem}"),
        )
    })?;
    let head = read.mud;
    if head.mud_version != 1 {
        return Err(error(
            file.into(),
            format!("mud-version {} isn't known: it should be 1", head.mud_version),
        ));
    }
    let entries: usize = read.acls.acl.iter().map(|acl| acl.aces.ace.len()).sum();
    if entries > MAX_ENTRIES {
        return Err(error(
            file.into(),
            format!("{entries} access list entries are more than {MAX_ENTRIES}"),
        ));
    }
    let lists: BTreeMap<&str, &Acl> =
        read.acls.acl.iter().map(|acl| (acl.name.as_str(), acl)).collect();
    let mut allows = BTreeSet::new();
    let mut unread = Vec::new();
    for (from_device, named) in [(true, &head.from_device_policy), (false, &head.to_device_policy)]
    {
        for name in named.access_lists.access_list.iter().take(MAX_ENTRIES) {
            let Some(acl) = lists.get(name.name.as_str()) else {
                return Err(error(
                    file.into(),
                    format!(
                        "it names the access list {:?}, and doesn't hold it",
                        short(&name.name)
                    ),
                ));
            };
            for ace in &acl.aces.ace {
                match read_entry(ace, from_device) {
                    Ok(found) => allows.extend(found),
                    Err(why) if unread.len() < MAX_UNREAD => {
                        unread.push(format!("{} {}: {why}", short(&acl.name), short(&ace.name)));
                    }
                    Err(_) => {}
                }
            }
        }
    }
    let text = |text: Option<String>| text.map(|text| short(&text)).filter(|text| !text.is_empty());
    Ok(Mud {
        url: short(&head.mud_url),
        last_update: short(&head.last_update),
        cache_validity: head.cache_validity.clamp(1, 168),
        is_supported: head.is_supported,
        systeminfo: text(head.systeminfo),
        manufacturer: text(head.mfg_name),
        model: text(head.model_name),
        allows: allows.into_iter().collect(),
        unread,
    })
}

/// What an entry permits, or why it can't be said.
fn read_entry(ace: &Ace, from_device: bool) -> Result<Vec<Allow>, String> {
    match ace.actions.forwarding.as_str() {
        "accept" | "ietf-access-control-list:accept" => {}
        // Nothing is allowed but what is named, so what is denied needs no saying.
        "drop" | "reject" | "ietf-access-control-list:drop" | "ietf-access-control-list:reject" => {
            return Ok(Vec::new());
        }
        other => return Err(format!("the action {:?} isn't known", short(other))),
    }
    let known = ["ipv4", "tcp", "udp", "icmp", "ietf-mud:mud"];
    if let Some(other) = ace.matches.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("it matches by {:?}, which rules don't", short(other)));
    }
    let ends = if from_device { ("destination", "dst") } else { ("source", "src") };
    let peers = peers(ace, ends)?;
    let field = |of: &str, key: &str| ace.matches.get(of).and_then(|value| value.get(key));
    let protocols: Vec<Protocol> = match (
        ace.matches.contains_key("tcp"),
        ace.matches.contains_key("udp"),
        ace.matches.contains_key("icmp"),
    ) {
        (true, false, false) => vec![Protocol::Tcp],
        (false, true, false) => vec![Protocol::Udp],
        (false, false, true) => vec![Protocol::IcmpEcho],
        (false, false, false) => match field("ipv4", "protocol").map(Value::as_u64) {
            None => vec![Protocol::Tcp, Protocol::Udp],
            Some(Some(6)) => vec![Protocol::Tcp],
            Some(Some(17)) => vec![Protocol::Udp],
            Some(Some(1)) => vec![Protocol::IcmpEcho],
            Some(_) => return Err("its IP protocol is one that rules can't open".into()),
        },
        _ => return Err("it matches by several protocols at once".into()),
    };
    let mut found = Vec::new();
    for protocol in protocols {
        let (opens, (first, last)) = match protocol {
            Protocol::IcmpEcho => {
                let kind = field("icmp", "type").and_then(Value::as_u64);
                // A reply belongs to the one who asked.
                let asks = match kind {
                    None | Some(8) => from_device,
                    Some(0) => !from_device,
                    Some(_) => return Err("its ICMP type is none of echo and its reply".into()),
                };
                (if asks { Opens::Device } else { Opens::Peer }, (0, 0))
            }
            _ => transport(ace, protocol, from_device)?,
        };
        let service = PortMatch { protocol, first, last };
        found.extend(peers.iter().map(|peer| Allow { opens, peer: peer.clone(), service }));
    }
    Ok(found)
}

/// Who opens, and at which ports the other one listens.
fn transport(
    ace: &Ace,
    protocol: Protocol,
    from_device: bool,
) -> Result<(Opens, (u16, u16)), String> {
    let matches = ace.matches.get(if protocol == Protocol::Tcp { "tcp" } else { "udp" });
    let ports = |key: &str| -> Result<Option<(u16, u16)>, String> {
        let Some(value) = matches.and_then(|value| value.get(key)) else { return Ok(None) };
        let ports = Ports::deserialize(value).map_err(|_| format!("{key} can't be read"))?;
        ports.range().map(Some)
    };
    let (source, destination) = (ports("source-port")?, ports("destination-port")?);
    let (of_device, of_peer) =
        if from_device { (source, destination) } else { (destination, source) };
    let told =
        matches.and_then(|value| value.get("ietf-mud:direction-initiated")).and_then(Value::as_str);
    Ok(match (told, of_device, of_peer) {
        (Some("from-device"), None, ports) => (Opens::Device, ports.unwrap_or(ALL)),
        (Some("to-device"), ports, None) => (Opens::Peer, ports.unwrap_or(ALL)),
        (Some("from-device"), Some(_), Some(ports)) => (Opens::Device, ports),
        (Some("to-device"), Some(ports), Some(_)) => (Opens::Peer, ports),
        (None, None, Some(ports)) => (Opens::Device, ports),
        (None, Some(ports), None) => (Opens::Peer, ports),
        (None, None, None) if from_device => (Opens::Device, ALL),
        (None, None, None) => (Opens::Peer, ALL),
        (None, Some(_), Some(_)) => {
            return Err("it names ports at both ends, and doesn't say who opens".into());
        }
        (Some(_), ..) => return Err("its ports stand at the side of the one who opens".into()),
    })
}

/// Who is meant by an entry.
fn peers(ace: &Ace, (network, dns): (&str, &str)) -> Result<Vec<Peer>, String> {
    let text = |value: &Value, what: &str| {
        value.as_str().map(short).ok_or_else(|| format!("{what} can't be read"))
    };
    let mut found = Vec::new();
    if let Some(ipv4) = ace.matches.get("ipv4") {
        let key = format!("{network}-ipv4-network");
        if let Some(value) = ipv4.get(&key) {
            let net: Ipv4Net =
                text(value, &key)?.parse().map_err(|_| format!("{key} is no network"))?;
            found.push(if is_everywhere(net) { Peer::Anybody } else { Peer::Network(net.trunc()) });
        }
        if let Some(value) = ipv4.get(format!("ietf-acldns:{dns}-dnsname")) {
            found.push(Peer::Dns(text(value, "the DNS name")?.to_lowercase()));
        }
    }
    if let Some(mud) = ace.matches.get("ietf-mud:mud") {
        for (key, value) in mud.as_object().into_iter().flatten().take(16) {
            found.push(match key.as_str() {
                "manufacturer" => Peer::Manufacturer(text(value, key)?),
                "model" => Peer::Model(text(value, key)?),
                "controller" => Peer::Controller(text(value, key)?),
                "my-controller" => Peer::MyController,
                "same-manufacturer" => Peer::SameManufacturer,
                "local-networks" => Peer::LocalNetworks,
                other => return Err(format!("it means {:?}, which isn't known", short(other))),
            });
        }
    }
    match found.len() {
        0 => Ok(vec![Peer::Anybody]),
        1 => Ok(found),
        _ => Err("it says in several ways at once who is meant".into()),
    }
}

pub(super) fn write(mud: &Mud) -> String {
    let lists = [("from-device", true), ("to-device", false)];
    let acls: Vec<Value> = lists
        .iter()
        .map(|(name, from_device)| {
            let aces: Vec<Value> = mud
                .allows
                .iter()
                .enumerate()
                .map(|(at, allow)| entry(at, allow, *from_device))
                .collect();
            json!({ "name": name, "type": "ipv4-acl-type", "aces": { "ace": aces } })
        })
        .collect();
    let named = |name: &str| json!({ "access-lists": { "access-list": [{ "name": name }] } });
    let mut head = json!({
        "mud-version": 1,
        "mud-url": mud.url,
        "last-update": mud.last_update,
        "cache-validity": mud.cache_validity,
        "is-supported": mud.is_supported,
        "from-device-policy": named("from-device"),
        "to-device-policy": named("to-device"),
    });
    for (key, text) in [
        ("systeminfo", &mud.systeminfo),
        ("mfg-name", &mud.manufacturer),
        ("model-name", &mud.model),
    ] {
        if let (Some(text), Some(head)) = (text, head.as_object_mut()) {
            head.insert(key.into(), json!(text));
        }
    }
    let file = json!({ "ietf-mud:mud": head, "ietf-access-control-list:acls": { "acl": acls } });
    // Maps of text never fail to be written.
    format!("{file:#}\n")
}

/// An entry for the packets of one direction.
fn entry(at: usize, allow: &Allow, from_device: bool) -> Value {
    let mut matches = serde_json::Map::new();
    let mut ipv4 = serde_json::Map::new();
    let (network, dns) = if from_device { ("destination", "dst") } else { ("source", "src") };
    let mut mud = |key: &str, value: Value| {
        matches.insert("ietf-mud:mud".into(), json!({ key: value }));
    };
    match &allow.peer {
        Peer::Network(net) => {
            ipv4.insert(format!("{network}-ipv4-network"), json!(net.to_string()));
        }
        Peer::Dns(name) => drop(ipv4.insert(format!("ietf-acldns:{dns}-dnsname"), json!(name))),
        Peer::Controller(uri) => mud("controller", json!(uri)),
        // YANG's type "empty" (RFC 7951).
        Peer::MyController => mud("my-controller", json!([null])),
        Peer::SameManufacturer => mud("same-manufacturer", json!([null])),
        Peer::Manufacturer(name) => mud("manufacturer", json!(name)),
        Peer::Model(uri) => mud("model", json!(uri)),
        Peer::LocalNetworks => mud("local-networks", json!([null])),
        Peer::Anybody => {}
    }
    ipv4.insert("protocol".into(), json!(allow.service.protocol.number()));
    matches.insert("ipv4".into(), Value::Object(ipv4));
    let device_opens = allow.opens == Opens::Device;
    let mut transport = serde_json::Map::new();
    let (first, last) = (allow.service.first, allow.service.last);
    // Of TCP it is said outright who opens; of UDP the side of the ports alone tells.
    let all_of_tcp = allow.service.protocol == Protocol::Tcp && (first, last) == ALL;
    if allow.service.protocol != Protocol::IcmpEcho && !all_of_tcp {
        // The port is at whoever doesn't open: of packets to them the destination's.
        let key = if device_opens == from_device { "destination-port" } else { "source-port" };
        let ports = if first == last {
            json!({ "operator": "eq", "port": first })
        } else {
            json!({ "lower-port": first, "upper-port": last })
        };
        transport.insert(key.into(), ports);
    }
    match allow.service.protocol {
        Protocol::Tcp => {
            let told = if device_opens { "from-device" } else { "to-device" };
            transport.insert("ietf-mud:direction-initiated".into(), json!(told));
            matches.insert("tcp".into(), Value::Object(transport));
        }
        Protocol::Udp => drop(matches.insert("udp".into(), Value::Object(transport))),
        Protocol::IcmpEcho => {
            let kind = if device_opens == from_device { 8 } else { 0 };
            matches.insert("icmp".into(), json!({ "type": kind, "code": 0 }));
        }
    }
    json!({ "name": format!("{at}-{}", if from_device { "from" } else { "to" }), "matches": matches, "actions": { "forwarding": "accept" } })
}
