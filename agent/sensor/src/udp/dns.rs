//! DNS: which names a station asks for; and multicast DNS (RFC 6762): what it calls itself and what it offers.

use anteroom_proto::inventory::HintKind;
use simple_dns::rdata::RData;
use simple_dns::{Packet, PacketFlag};

use crate::frame::Datagram;
use crate::sight::Sights;

/// Most questions, and most records, of a packet that are looked at.
const MOST_RECORDS: usize = 64;
/// Where lists of services are asked for (RFC 6763, 9).
const SERVICES: &str = "_services._dns-sd._udp";
/// Keys whose values name the model.
const MODELS: [&str; 4] = ["md", "model", "ty", "am"];

/// Reads a question to a server. Addresses that are looked up backwards are passed by.
pub(super) fn read(datagram: &Datagram<'_>, sights: &mut Sights) {
    if datagram.ports.1 != 53 {
        return;
    }
    let Ok(packet) = Packet::parse(datagram.payload) else { return };
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
    let Ok(packet) = Packet::parse(datagram.payload) else { return };
    if !packet.has_flags(PacketFlag::RESPONSE) {
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

fn without_local(name: &str) -> &str {
    name.strip_suffix(".local").unwrap_or(name)
}
