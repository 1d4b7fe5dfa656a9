//! Hints: what a device lets be seen of itself in the frames that its gateway carries anyway.
//!
//! A hint is a name, a version or a habit that a protocol's header or handshake states: never content, never what a person typed.
//! Gateways read and report them; the controller fuses them into claims on class, make, model and role.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::MemberId;
use crate::mac::MacAddr;
use crate::name::Name;
use crate::text::steers;
use crate::time::UnixMillis;

/// Longest value of a hint, in bytes of UTF-8. What is longer is cut at a character.
pub const MAX_VALUE: usize = 160;
/// Most hints of one device that a gateway keeps and a controller stores. Of one kind at most [`MAX_OF_KIND`].
pub const MAX_HINTS: usize = 128;
/// Most hints of one kind that are kept of one device, but for DICOM's syntaxes: see [`most_of`].
pub const MAX_OF_KIND: usize = 16;
/// Most of DICOM's abstract syntaxes that are kept of one device in either role. Archives take far more than [`MAX_OF_KIND`].
pub const MAX_SYNTAXES: usize = 40;
/// Most devices in one report that hints are told of.
pub const MAX_DEVICES: usize = 256;

/// Most hints of a kind that are kept of one device. What comes later is turned away and counted.
#[must_use]
pub const fn most_of(kind: HintKind) -> usize {
    match kind {
        HintKind::DicomUses | HintKind::DicomOffers => MAX_SYNTAXES,
        _ => MAX_OF_KIND,
    }
}

/// What a gateway saw of one device since the report before: hints that are new, or seen again on another day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceHints {
    /// The port that it is attached to.
    pub port: Name,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its VLAN, or none.
    pub vlan: Option<u16>,
    /// Its member id, once an operator has confirmed it.
    pub member: Option<MemberId>,
    /// At most [`MAX_HINTS`]. Those of kinds that this release doesn't know are left out as they are read.
    #[serde(deserialize_with = "of_known_kinds")]
    pub hints: Vec<Hint>,
}

/// Reads hints, but those of kinds that a later release brought.
fn of_known_kinds<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Hint>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OfAnyKind {
        kind: String,
        value: String,
        first: UnixMillis,
        last: UnixMillis,
    }
    let all = Vec::<OfAnyKind>::deserialize(deserializer)?;
    let known = all.into_iter().filter_map(|OfAnyKind { kind, value, first, last }| {
        Some(Hint { kind: kind.parse().ok()?, value, first, last })
    });
    Ok(known.collect())
}

/// One thing that a device let be seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hint {
    /// Where it stood.
    pub kind: HintKind,
    /// What stood there: printable, at most [`MAX_VALUE`] bytes.
    pub value: String,
    /// When it was first seen.
    pub first: UnixMillis,
    /// When it was last seen.
    pub last: UnixMillis,
}

macro_rules! kinds {
    ($($(#[$doc:meta])+ $variant:ident = $word:literal,)+) => {
        /// Where a hint stood. Rules of classification name it by its word, `dhcp.hostname`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum HintKind {
            $($(#[$doc])+ $variant,)+
        }

        impl HintKind {
            /// All of them, in the order of their words' protocols.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its word, as rules and reports write it.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}

kinds! {
    /// The device's host name in DHCP (option 12).
    DhcpHostname = "dhcp.hostname",
    /// Its vendor class in DHCP (option 60).
    DhcpVendorClass = "dhcp.vendor-class",
    /// Options that it asks for in DHCP (option 55), in its order: `1,3,6,15`.
    DhcpParameters = "dhcp.parameters",
    /// Its full name in DHCP (option 81).
    DhcpFqdn = "dhcp.fqdn",
    /// Its vendor's description of it in DHCP or DHCPv6 (RFC 8520, options 161 and 112).
    DhcpMudUrl = "dhcp.mud-url",
    /// Its vendor class in DHCPv6 (option 16): `enterprise number:text`.
    Dhcp6VendorClass = "dhcp6.vendor-class",
    /// Its full name in DHCPv6 (option 39).
    Dhcp6Fqdn = "dhcp6.fqdn",
    /// Its name in LLDP.
    LldpName = "lldp.name",
    /// Its description in LLDP.
    LldpDescription = "lldp.description",
    /// Maker and model of its inventory in LLDP-MED.
    LldpModel = "lldp.model",
    /// Hardware, firmware and software of its inventory in LLDP-MED.
    LldpRevision = "lldp.revision",
    /// Its vendor's description of it in LLDP (RFC 8520).
    LldpMudUrl = "lldp.mud-url",
    /// Its name in Cisco's discovery protocol.
    CdpName = "cdp.name",
    /// Its platform in Cisco's discovery protocol: `Cisco IP Phone 7941`.
    CdpPlatform = "cdp.platform",
    /// The first line that it says of its software in Cisco's discovery protocol.
    CdpSoftware = "cdp.software",
    /// How its TCP opens: `initial TTL:window:options in order`, such as `64:29200:mss,sack,ts,nop,ws`.
    TcpSyn = "tcp.syn",
    /// How its TCP answers, in the same form.
    TcpSynAck = "tcp.syn-ack",
    /// How it shows that it passes on what others send: `ttl`, which has been lowered, or `addresses`, of which it uses many. What
    /// comes from beyond it is nobody's.
    Forwards = "forwards",
    /// A port of its own that answered: `tcp/104`.
    Listens = "port.listens",
    /// The application entity's title by which it calls others.
    DicomCallingAe = "dicom.calling-ae",
    /// The title by which others call it.
    DicomCalledAe = "dicom.called-ae",
    /// Its DICOM implementation's class.
    DicomImplementation = "dicom.implementation",
    /// Its DICOM implementation's version.
    DicomVersion = "dicom.version",
    /// `scu` where it uses what others offer, `scp` where it offers: mostly whoever opens an association uses, unless both agree on
    /// the reverse.
    DicomRole = "dicom.role",
    /// What it asks others for, or uses though they asked: the UID of an abstract syntax.
    DicomUses = "dicom.uses",
    /// What it does for others who ask, or that it asked to do for them: the UID of an abstract syntax.
    DicomOffers = "dicom.offers",
    /// The application that sends, by MSH-3 of its messages.
    Hl7Sender = "hl7.sender",
    /// The application by which others address it, MSH-5.
    Hl7Receiver = "hl7.receiver",
    /// Kinds of messages that it sends, MSH-9: `ORU^R01`.
    Hl7Message = "hl7.message",
    /// Types of its WS-Discovery target, local names.
    WsdTypes = "wsd.types",
    /// A scope of its WS-Discovery target.
    WsdScope = "wsd.scope",
    /// Manufacturer that its metadata name (DPWS ThisModel).
    WsdManufacturer = "wsd.manufacturer",
    /// Model that its metadata name (DPWS ThisModel).
    WsdModel = "wsd.model",
    /// Friendly name that its metadata give (DPWS ThisDevice).
    WsdName = "wsd.name",
    /// Its BACnet device instance.
    BacnetInstance = "bacnet.instance",
    /// Its BACnet vendor's number.
    BacnetVendor = "bacnet.vendor",
    /// Its name in BACnet, where somebody read it.
    BacnetName = "bacnet.name",
    /// Its model in BACnet, where somebody read it.
    BacnetModel = "bacnet.model",
    /// Its vendor's name in BACnet, where somebody read it.
    BacnetMaker = "bacnet.maker",
    /// `client` where it asks by Modbus, `server` where it answers.
    ModbusRole = "modbus.role",
    /// What it says by Modbus' device identification: vendor, product, revision.
    ModbusIdentity = "modbus.identity",
    /// `client` or `server` in OPC UA.
    OpcuaRole = "opcua.role",
    /// The endpoint that OPC UA's hello names.
    OpcuaEndpoint = "opcua.endpoint",
    /// The application that OPC UA's session names.
    OpcuaApplication = "opcua.application",
    /// Its operating system by SMB 1.
    SmbOs = "smb.os",
    /// Its SMB implementation, or the highest dialect that it speaks.
    SmbDialect = "smb.dialect",
    /// Its name in NetBIOS.
    NetbiosName = "netbios.name",
    /// The version of Windows, or of what passes for it, by which it announces itself to its neighbours: `5.1`.
    NetbiosVersion = "netbios.version",
    /// `agent` where it answers SNMP, `manager` where it asks.
    SnmpRole = "snmp.role",
    /// Its description by SNMP (sysDescr).
    SnmpDescription = "snmp.description",
    /// Its identity by SNMP (sysObjectID).
    SnmpObjectId = "snmp.object-id",
    /// Its name by SNMP (sysName).
    SnmpName = "snmp.name",
    /// Whose SNMP it has, by the engine that it names in version 3: the maker's enterprise number.
    SnmpEngine = "snmp.engine",
    /// Its name in LLMNR, by which it answers.
    LlmnrName = "llmnr.name",
    /// Its name in multicast DNS.
    MdnsName = "mdns.name",
    /// A service that it offers by multicast DNS.
    MdnsService = "mdns.service",
    /// Its model by multicast DNS (`md=`, `model=`, `ty=`).
    MdnsModel = "mdns.model",
    /// What it says of itself by SSDP (SERVER).
    SsdpServer = "ssdp.server",
    /// A type that it announces by SSDP (NT, ST).
    SsdpType = "ssdp.type",
    /// Manufacturer and model of its UPnP description.
    SsdpModel = "ssdp.model",
    /// What it calls itself where it asks by HTTP (User-Agent).
    HttpAgent = "http.agent",
    /// Whom it asks by HTTP (Host), without the address.
    HttpHost = "http.host",
    /// What it calls itself where it answers by HTTP (Server).
    HttpServer = "http.server",
    /// Whom it asks by TLS (server name indication).
    TlsName = "tls.name",
    /// How its TLS opens, as JA4 (FoxIO, BSD licence) describes it.
    TlsJa4 = "tls.ja4",
    /// A name of the certificate that it shows, where TLS shows it in the clear.
    TlsCertificate = "tls.certificate",
    /// A name that it asks DNS for.
    DnsQuery = "dns.query",
    /// The first line of an FTP, SSH or SMTP server: `ssh: OpenSSH_7.4`.
    Banner = "banner",
    /// A protocol that only one family of devices speaks, by its name: `intellivue`, `infinity`, `carescape`, `tuya`.
    Speaks = "speaks",
}

/// A word that names no kind of hint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no kind of hint is called {0:?}")]
pub struct NoSuchKind(pub String);

impl FromStr for HintKind {
    type Err = NoSuchKind;

    fn from_str(word: &str) -> Result<Self, NoSuchKind> {
        Self::ALL
            .iter()
            .copied()
            .find(|kind| kind.word() == word)
            .ok_or_else(|| NoSuchKind(word.to_owned()))
    }
}

impl fmt::Display for HintKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Serialize for HintKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl<'de> Deserialize<'de> for HintKind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Makes a value of what came off the wire: what [`steers`] and what isn't UTF-8 become spaces, spaces at the ends go, and what is
/// longer than [`MAX_VALUE`] is cut. None where nothing is left.
pub fn value(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    for c in String::from_utf8_lossy(bytes).chars() {
        let c = if steers(c) || c == char::REPLACEMENT_CHARACTER { ' ' } else { c };
        if c == ' ' && (text.is_empty() || text.ends_with(' ')) {
            continue;
        }
        if text.len() + c.len_utf8() > MAX_VALUE {
            break;
        }
        text.push(c);
    }
    text.truncate(text.trim_end().len());
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_found_by_its_word_and_by_no_other() {
        for kind in HintKind::ALL {
            assert_eq!(kind.word().parse(), Ok(*kind));
        }
        let mut words: Vec<_> = HintKind::ALL.iter().map(|kind| kind.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), HintKind::ALL.len());
        assert_eq!("dhcp.hostnam".parse::<HintKind>(), Err(NoSuchKind("dhcp.hostnam".to_owned())));
    }

    #[test]
    fn hints_of_kinds_that_a_later_release_brought_are_left_out() {
        let text = r#"{"port": "port1", "mac": "02:00:00:00:00:01", "vlan": null, "member": null, "hints": [
            {"kind": "dhcp.hostname", "value": "ct-1", "first": 1, "last": 2},
            {"kind": "teleport.name", "value": "x", "first": 1, "last": 2}]}"#;
        let device: DeviceHints = serde_json::from_str(text).expect("hints");
        let kinds: Vec<_> = device.hints.iter().map(|hint| hint.kind).collect();
        assert_eq!(kinds, [HintKind::DhcpHostname]);
    }

    #[test]
    fn a_value_is_printable_bounded_and_not_empty() {
        assert_eq!(value(b"ct-1\0\0"), Some("ct-1".to_owned()));
        assert_eq!(value(b"  a\r\n\x1b[31mb\xff "), Some("a [31mb".to_owned()));
        assert_eq!(value(b"\0 \t"), None);
        let long = value("ä".repeat(200).as_bytes()).expect("a value");
        assert_eq!(long.len(), MAX_VALUE);
    }
}
