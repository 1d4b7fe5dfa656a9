//! Infrastructure: the servers that every device of a site may use, in the clear, in every mode.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::intent::Infrastructure;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::service::Protocol;
use anteroom_proto::verdict::DropReason;

use crate::wire::dhcp::{self, DhcpMessage, Op};
use crate::wire::{Ipv4Packet, Transport};

/// How long after a device's request a server's broadcast answer still belongs to it.
const DHCP_ANSWER: Duration = Duration::from_secs(60);

/// Whether a device's flow to a server is one of the built-in kinds.
pub(crate) fn covers(
    servers: &Infrastructure,
    protocol: Protocol,
    from_port: u16,
    to: Ipv4Addr,
    port: u16,
) -> bool {
    match (protocol, port) {
        (Protocol::Udp, dhcp::SERVER_PORT) => {
            from_port == dhcp::CLIENT_PORT && servers.dhcp.contains(&to)
        }
        (Protocol::Udp | Protocol::Tcp, 53) => servers.dns.contains(&to),
        (Protocol::Udp, 123) => servers.ntp.contains(&to),
        _ => false,
    }
}

/// Checks a device's message to a DHCP server. `may_name`: whether an address is one that the device may call its
/// own, so that it gives back or renews nobody else's.
///
/// # Errors
/// [`DropReason::Dhcp`] when the site has no DHCP, or the message isn't the device's own.
pub(crate) fn check_request(
    servers: &Infrastructure,
    mac: MacAddr,
    may_name: impl Fn(Ipv4Addr) -> bool,
    payload: &[u8],
) -> Result<DhcpMessage, DropReason> {
    let message = dhcp::parse_dhcp(payload).map_err(|_| DropReason::Dhcp)?;
    let fits = message.op() == Op::Request
        && message.client_mac == mac
        && message.relay.is_unspecified()
        && (message.client.is_unspecified() || may_name(message.client))
        && !servers.dhcp.is_empty();
    if fits { Ok(message) } else { Err(DropReason::Dhcp) }
}

/// Checks what a server or relay sends to a device's client port.
///
/// # Errors
/// [`DropReason::Dhcp`] when the sender isn't listed, or the device asked for nothing like it lately.
pub(crate) fn check_answer(
    servers: &Infrastructure,
    mac: MacAddr,
    asked: Option<(u32, Instant)>,
    source: Ipv4Addr,
    payload: &[u8],
    now: Instant,
) -> Result<DhcpMessage, DropReason> {
    let message = dhcp::parse_dhcp(payload).map_err(|_| DropReason::Dhcp)?;
    let expected = asked.is_some_and(|(transaction, at)| {
        transaction == message.transaction && now.saturating_duration_since(at) <= DHCP_ANSWER
    });
    let fits = expected
        && message.op() == Op::Reply
        && message.client_mac == mac
        && servers.dhcp.contains(&source);
    if fits { Ok(message) } else { Err(DropReason::Dhcp) }
}

/// Whether a packet bears the ports of a client's message to a DHCP server.
pub(crate) fn is_dhcp_request(packet: &Ipv4Packet<'_>) -> bool {
    packet.transport == Transport::Udp
        && packet.source_port == dhcp::CLIENT_PORT
        && packet.destination_port == dhcp::SERVER_PORT
}

/// Whether a packet bears the ports of a DHCP server's message to a client.
pub(crate) fn is_dhcp_answer(packet: &Ipv4Packet<'_>) -> bool {
    packet.transport == Transport::Udp
        && packet.source_port == dhcp::SERVER_PORT
        && packet.destination_port == dhcp::CLIENT_PORT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_servers_and_their_own_ports_are_covered() {
        let server = Ipv4Addr::new(10, 20, 0, 53);
        let servers = Infrastructure { dns: vec![server], ..Infrastructure::default() };
        let covered =
            |protocol, to, port| covers(&servers, protocol, 40_000, Ipv4Addr::from(to), port);
        assert!(covered(Protocol::Udp, [10, 20, 0, 53], 53));
        assert!(covered(Protocol::Tcp, [10, 20, 0, 53], 53));
        assert!(!covered(Protocol::Udp, [10, 20, 0, 53], 123));
        assert!(!covered(Protocol::Tcp, [10, 20, 0, 54], 53));
        assert!(!covered(Protocol::IcmpEcho, [10, 20, 0, 53], 53));
        assert!(!covered(Protocol::Udp, [10, 20, 0, 53], 67));
    }
}
