//! DNS: which names a station asks for; multicast DNS (RFC 6762): what it calls itself and what it offers; LLMNR: the name that it
//! answers to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anteroom_proto::inventory::HintKind;
use simple_dns::rdata::RData;
use simple_dns::{Packet, PacketFlag};

use crate::frame::Datagram;
use crate::sight::Sights;

/// Most questions, and most records, of a packet that are looked at.
const MOST_RECORDS: usize = 64;
/// A question's name, type and class, which take the least room of all.
const SHORTEST_RECORD: usize = 5;
/// Where lists of services are asked for (RFC 6763, 9).
const SERVICES: &str = "_services._dns-sd._udp";
/// Keys whose values name the model.
const MODELS: [&str; 4] = ["md", "model", "ty", "am"];

/// Reads a question to a server. Addresses that are looked up backwards are passed by.
pub(super) fn read(datagram: &Datagram<'_>, sights: &mut Sights) {
    if datagram.ports.1 != 53 {
        return;
    }
    let Some(packet) = packet(datagram) else { return };
    if packet.has_flags(PacketFlag::RESPONSE) {
        return;
    }
    for question in packet.questions.iter().take(MOST_RECORDS) {
        let name = question.qname.to_string().to_ascii_lowercase();
        if !name.ends_with(".arpa") {
            sights.tell(datagram.from, HintKind::DnsQuery, name);
        }
    }
}

/// Reads an announcement.
pub(super) fn read_multicast(datagram: &Datagram<'_>, sights: &mut Sights) {
    if datagram.ports.0 != 5353 {
        return;
    }
    let Some(packet) = packet(datagram) else { return };
    if !packet.has_flags(PacketFlag::RESPONSE) || is_anothers(&packet, datagram) {
        return;
    }
    let who = datagram.from;
    for record in packet.answers.iter().chain(&packet.additional_records).take(MOST_RECORDS) {
        let owner = record.name.to_string();
        match &record.rdata {
            RData::A(_) | RData::AAAA(_) => {
                sights.tell(who, HintKind::MdnsName, without_local(&owner));
            }
            RData::PTR(target) => {
                let service = without_local(&owner);
                if service == SERVICES {
                    let target = target.to_string();
                    sights.tell(who, HintKind::MdnsService, without_local(&target));
                } else if service.starts_with('_') {
                    sights.tell(who, HintKind::MdnsService, service);
                }
            }
            RData::TXT(text) => {
                for (key, value) in text.attributes() {
                    if let Some(value) = value
                        && MODELS.iter().any(|known| key.eq_ignore_ascii_case(known))
                    {
                        sights.tell(who, HintKind::MdnsModel, value);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Reads an answer of LLMNR (RFC 4795): whoever gives its own address has the name.
pub(super) fn read_local(datagram: &Datagram<'_>, sights: &mut Sights) {
    let Some(packet) = packet(datagram) else { return };
    if !packet.has_flags(PacketFlag::RESPONSE) || is_anothers(&packet, datagram) {
        return;
    }
    for record in packet.answers.iter().take(MOST_RECORDS) {
        if let RData::A(_) | RData::AAAA(_) = &record.rdata {
            sights.tell(datagram.from, HintKind::LlmnrName, record.name.to_string());
        }
    }
}

/// A packet whose header counts no more than can be in it: the parser makes room for all that is counted.
fn packet<'a>(datagram: &Datagram<'a>) -> Option<Packet<'a>> {
    let payload = datagram.payload;
    let counts = payload.get(4..12)?.chunks_exact(2);
    let records: usize =
        counts.map(|count| usize::from(u16::from_be_bytes([count[0], count[1]]))).sum();
    (records * SHORTEST_RECORD <= payload.len()).then(|| Packet::parse(payload).ok())?
}

/// Whether an answer gives addresses, and not its sender's: reflectors between networks, access points and sleep proxies repeat
/// what others say.
fn is_anothers(packet: &Packet<'_>, datagram: &Datagram<'_>) -> bool {
    let sender = datagram.ips.0;
    let addresses: Vec<IpAddr> = packet
        .answers
        .iter()
        .chain(&packet.additional_records)
        .take(MOST_RECORDS)
        .filter_map(|record| match &record.rdata {
            RData::A(a) => Some(Ipv4Addr::from(a.address).into()),
            RData::AAAA(a) => Some(Ipv6Addr::from(a.address).into()),
            _ => None,
        })
        .filter(|address: &IpAddr| address.is_ipv4() == sender.is_ipv4())
        .collect();
    !addresses.is_empty() && !addresses.contains(&sender)
}

fn without_local(name: &str) -> &str {
    name.strip_suffix(".local").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use anteroom_proto::mac::MacAddr;

    use super::*;
    use crate::sight::Station;

    fn told(port: u16, payload: &[u8]) -> Vec<(HintKind, String)> {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let datagram = Datagram {
            from: station(1),
            to: station(2),
            ips: ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()),
            ports: (port, port),
            payload,
        };
        let mut sights = Sights::default();
        sights.begin();
        crate::udp::read(&datagram, &mut sights);
        sights.drain().map(|sight| (sight.kind, sight.value)).collect()
    }

    /// An answer that gives this address for `pump`.
    fn answer(address: [u8; 4]) -> Vec<u8> {
        let mut message = vec![0, 1, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        message.extend(b"\x04pump\0\0\x01\0\x01\0\0\0\x3c\0\x04");
        message.extend(address);
        message
    }

    #[test]
    fn whoever_gives_its_own_address_has_the_name_and_nobody_else() {
        for (port, kind) in [(5355, HintKind::LlmnrName), (5353, HintKind::MdnsName)] {
            assert_eq!(told(port, &answer([10, 0, 0, 1])), [(kind, "pump".to_owned())]);
            assert_eq!(told(port, &answer([10, 0, 0, 7])), [], "another's, on port {port}");
        }
    }

    #[test]
    fn headers_that_count_more_than_there_is_are_passed_by() {
        let mut lies = answer([10, 0, 0, 1]);
        lies[6..8].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(told(5353, &lies), []);
    }
}
