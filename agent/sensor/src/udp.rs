//! What is said by datagrams, each of which stands by itself.

mod asked;
mod bacnet;
mod dhcp;
mod dns;
mod monitors;
mod netbios;
mod repeaters;
mod snmp;
mod ssdp;

pub(crate) use asked::Asked;
pub(crate) use repeaters::Repeaters;

use anteroom_proto::inventory::HintKind;

use crate::frame::Datagram;
use crate::sight::Sights;
use crate::soap;

/// Link-local multicast name resolution (RFC 4795).
const LLMNR: u16 = 5355;
/// WS-Discovery.
const DISCOVERY: u16 = 3702;

/// Reads a datagram of one that speaks for itself.
pub(crate) fn read(datagram: &Datagram<'_>, repeaters: &mut Repeaters, sights: &mut Sights) {
    let (source, destination) = datagram.ports;
    let either = |port: u16| source == port || destination == port;
    if either(67) || either(68) {
        dhcp::read(datagram, sights);
    } else if either(546) || either(547) {
        dhcp::read_v6(datagram, sights);
    } else if either(53) {
        dns::read(datagram, sights);
    } else if either(5353) {
        dns::read_multicast(datagram, repeaters, sights);
    } else if source == LLMNR {
        dns::read_local(datagram, sights);
    } else if either(137) {
        netbios::read_name(datagram, sights);
    } else if either(138) {
        netbios::read_datagram(datagram, sights);
    } else if either(161) || destination == 162 {
        snmp::read(datagram, sights);
    } else if either(1900) {
        ssdp::read(datagram, repeaters, sights);
    } else if either(DISCOVERY) {
        let body = soap::Body {
            who: Some(datagram.from),
            ip: datagram.ips.0,
            bytes: datagram.payload,
            encoding: soap::Encoding::Plain,
            answers: false,
            repeats: repeaters.has(datagram.from),
        };
        if soap::read(body, &mut 0, sights) {
            repeaters.add(datagram.from);
        }
    } else if (47808..=47823).contains(&destination) || (47808..=47823).contains(&source) {
        bacnet::read(datagram, sights);
    } else if let Some(name) = monitors::named(datagram) {
        sights.tell(datagram.from, HintKind::Speaks, name);
    }
}
