//! What is said by datagrams, each of which stands by itself.

mod asked;
mod bacnet;
mod dhcp;
mod dns;
mod monitors;
mod netbios;
mod snmp;
mod ssdp;

pub(crate) use asked::Asked;

use anteroom_proto::inventory::HintKind;

use crate::frame::Datagram;
use crate::sight::Sights;
use crate::soap;

/// Link-local multicast name resolution (RFC 4795).
const LLMNR: u16 = 5355;
/// WS-Discovery.
const DISCOVERY: u16 = 3702;

/// Reads a datagram.
pub(crate) fn read(datagram: &Datagram<'_>, sights: &mut Sights) {
    let (source, destination) = datagram.ports;
    let either = |port: u16| source == port || destination == port;
    if either(67) || either(68) {
        dhcp::read(datagram, sights);
    } else if either(546) || either(547) {
        dhcp::read_v6(datagram, sights);
    } else if either(53) {
        dns::read(datagram, sights);
    } else if either(5353) {
        dns::read_multicast(datagram, sights);
    } else if source == LLMNR {
        dns::read_local(datagram, sights);
    } else if either(137) {
        netbios::read_name(datagram, sights);
    } else if either(138) {
        netbios::read_datagram(datagram, sights);
    } else if either(161) || destination == 162 {
        snmp::read(datagram, sights);
    } else if either(1900) {
        ssdp::read(datagram, sights);
    } else if either(DISCOVERY) {
        soap::read(datagram.from, datagram.payload, soap::Encoding::Plain, &mut 0, sights);
    } else if (47808..=47823).contains(&destination) || (47808..=47823).contains(&source) {
        bacnet::read(datagram, sights);
    } else if let Some(name) = monitors::named(datagram) {
        sights.tell(datagram.from, HintKind::Speaks, name);
    }
}
