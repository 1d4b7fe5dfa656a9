//! DNS: which names a station asks for; multicast DNS (RFC 6762): what it calls itself and what it offers; LLMNR: the name that it
//! answers to.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anteroom_proto::inventory::HintKind;
use simple_dns::rdata::RData;
use simple_dns::{Packet, PacketFlag, ResourceRecord};

use crate::frame::Datagram;
use crate::sight::Sights;
use crate::text;
use crate::udp::Repeaters;

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
        if !name.ends_with(".arpa") && text::host_name(name.as_bytes()).is_some() {
            sights.tell(datagram.from, HintKind::DnsQuery, name);
        }
    }
}

/// Reads an announcement: what it says of hosts with the sender's address, and what of no host.
pub(super) fn read_multicast(
    datagram: &Datagram<'_>,
    repeaters: &mut Repeaters,
    sights: &mut Sights,
) {
    if datagram.ports.0 != 5353 {
        return;
    }
    let Some(packet) = packet(datagram) else { return };
    if !packet.has_flags(PacketFlag::RESPONSE) {
        return;
    }
    let who = datagram.from;
    let others = others(&packet, datagram);
    match is_own(&packet, datagram) {
        Some(true) => {}
        Some(false) => return repeaters.add(who),
        None if repeaters.has(who) => return,
        None => {}
    }
    for record in records(&packet) {
        let owner = record.name.to_string();
        if others.contains(&owner) {
            continue;
        }
        match &record.rdata {
            RData::A(_) | RData::AAAA(_) => {
                sights.tell(who, HintKind::MdnsName, without_local(&owner));
            }
            RData::PTR(target) if others.contains(&target.to_string()) => {}
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
    if !packet.has_flags(PacketFlag::RESPONSE) || is_own(&packet, datagram) == Some(false) {
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

fn records<'p, 'a>(packet: &'p Packet<'a>) -> impl Iterator<Item = &'p ResourceRecord<'a>> {
    packet.answers.iter().chain(&packet.additional_records).take(MOST_RECORDS)
}

fn address(record: &ResourceRecord<'_>) -> Option<IpAddr> {
    match &record.rdata {
        RData::A(a) => Some(Ipv4Addr::from(a.address).into()),
        RData::AAAA(a) => Some(Ipv6Addr::from(a.address).into()),
        _ => None,
    }
}

/// Whether an answer gives its sender's address, where it gives any: reflectors between networks, access points and sleep proxies
/// repeat what others say.
fn is_own(packet: &Packet<'_>, datagram: &Datagram<'_>) -> Option<bool> {
    text::is_own(datagram.ips.0, records(packet).filter_map(address))
}

/// Names of hosts with other addresses than the sender's, and of what they offer: whoever repeats others may speak for itself in the
/// same breath.
fn others(packet: &Packet<'_>, datagram: &Datagram<'_>) -> HashSet<String> {
    let mut addresses: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for record in records(packet) {
        if let Some(address) = address(record) {
            addresses.entry(record.name.to_string()).or_default().push(address);
        }
    }
    let others = addresses.into_iter().filter(|(_, addresses)| {
        text::is_own(datagram.ips.0, addresses.iter().copied()) == Some(false)
    });
    let mut others: HashSet<String> = others.map(|(name, _)| name).collect();
    for record in records(packet) {
        if let RData::SRV(service) = &record.rdata
            && others.contains(&service.target.to_string())
        {
            others.insert(record.name.to_string());
        }
    }
    others
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
            forwarded: false,
            payload,
        };
        let mut sights = Sights::default();
        sights.begin();
        crate::udp::read(&datagram, &mut Repeaters::default(), &mut sights);
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

    /// A record: owner, kind, and what it holds.
    fn record(owner: &[u8], kind: u8, held: &[u8]) -> Vec<u8> {
        let length = u16::try_from(held.len()).unwrap().to_be_bytes();
        [owner, &[0, kind, 0, 1, 0, 0, 0, 60], &length, held].concat()
    }

    fn response(records: &[Vec<u8>]) -> Vec<u8> {
        let count = u8::try_from(records.len()).unwrap();
        [&[0, 0, 0x84, 0, 0, 0, 0, count, 0, 0, 0, 0][..], &records.concat()].concat()
    }

    const SERVICE: &[u8] = b"\x05_http\x04_tcp\x05local\0";

    #[test]
    fn who_speaks_for_itself_and_for_others_is_believed_of_itself() {
        let instance = |n: &str| [&[1], n.as_bytes(), SERVICE].concat();
        let host = |n: &str| [&[1], n.as_bytes(), b"\x05local\0"].concat();
        let of = |name: &str, ip: [u8; 4]| {
            [
                record(&host(name), 1, &ip),
                record(&instance(name), 33, &[&[0, 0, 0, 0, 0, 80][..], &host(name)].concat()),
                record(&instance(name), 16, format!("\x05md=m{name}").as_bytes()),
            ]
            .concat()
        };
        let mut both = response(&[of("a", [10, 0, 0, 7]), of("b", [10, 0, 0, 1])]);
        both[7] = 6;
        let wanted = [(HintKind::MdnsName, "b"), (HintKind::MdnsModel, "mb")];
        assert_eq!(told(5353, &both), wanted.map(|(kind, value)| (kind, value.to_owned())));
    }

    #[test]
    fn who_repeated_others_is_believed_only_with_its_own_address() {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let offer = response(&[record(SERVICE, 12, &[b"\x01a", SERVICE].concat())]);
        let mut repeaters = Repeaters::default();
        let mut told = |from, payload: &[u8]| {
            let datagram = Datagram {
                from: station(from),
                to: station(99),
                ips: ([10, 0, 0, from].into(), [224, 0, 0, 251].into()),
                ports: (5353, 5353),
                forwarded: false,
                payload,
            };
            let mut sights = Sights::default();
            sights.begin();
            crate::udp::read(&datagram, &mut repeaters, &mut sights);
            sights.drain().count()
        };
        assert_eq!(told(1, &offer), 1);
        assert_eq!(told(1, &answer([10, 0, 0, 7])), 0);
        assert_eq!(told(1, &offer), 0, "it may be another's, too");
        assert_eq!(told(1, &answer([10, 0, 0, 1])), 1);
        assert_eq!(told(2, &offer), 1);
        // And by what it says in other protocols.
        let ssdp = |ip| {
            format!(
                "NOTIFY * HTTP/1.1\r\nLOCATION: http://10.0.0.{ip}/d.xml\r\nSERVER: x/1\r\nNT: a\r\n\r\n"
            )
        };
        let to_ssdp = |repeaters: &mut Repeaters, from, payload: &str| {
            let datagram = Datagram {
                from: station(from),
                to: station(99),
                ips: ([10, 0, 0, from].into(), [239, 255, 255, 250].into()),
                ports: (1900, 1900),
                forwarded: false,
                payload: payload.as_bytes(),
            };
            let mut sights = Sights::default();
            sights.begin();
            crate::udp::read(&datagram, repeaters, &mut sights);
            sights.drain().count()
        };
        let mut repeaters = Repeaters::default();
        assert_eq!(to_ssdp(&mut repeaters, 3, &ssdp(3)), 2);
        assert_eq!(to_ssdp(&mut repeaters, 3, &ssdp(4)), 0);
        assert_eq!(to_ssdp(&mut repeaters, 3, "NOTIFY * HTTP/1.1\r\nSERVER: x/1\r\n\r\n"), 0);
        assert_eq!(to_ssdp(&mut repeaters, 3, &ssdp(3)), 2);
    }
}
