//! DHCP messages (RFC 2131), as far as deciding whose they are needs.

use std::net::Ipv4Addr;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::verdict::DropReason;

use super::{array, be32};

/// UDP port of servers and relays.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;

const MAGIC: u32 = 0x6382_5363;
const OPTIONS_AT: usize = 240;
const PAD: u8 = 0;
const REQUESTED_ADDRESS: u8 = 50;
const LEASE_TIME: u8 = 51;
const OVERLOAD: u8 = 52;
const MESSAGE_TYPE: u8 = 53;
const SERVER_ID: u8 = 54;
const END: u8 = 255;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// A client.
    Request,
    /// A server.
    Reply,
}

/// What a message does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// A client looks for servers.
    Discover,
    /// A server offers.
    Offer,
    /// A client takes, renews or checks.
    Request,
    /// A client found the address in use.
    Decline,
    /// A server grants.
    Ack,
    /// A server refuses.
    Nak,
    /// A client gives its address back.
    Release,
    /// A client wants options only.
    Inform,
}

impl MessageType {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }

    /// Who sends it.
    #[must_use]
    pub const fn op(self) -> Op {
        match self {
            Self::Offer | Self::Ack | Self::Nak => Op::Reply,
            _ => Op::Request,
        }
    }
}

/// A DHCP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DhcpMessage {
    /// What it does.
    pub message_type: MessageType,
    /// Tells one exchange from another.
    pub transaction: u32,
    /// The client's Ethernet address.
    pub client_mac: MacAddr,
    /// The address that the client has and renews, or unspecified.
    pub client: Ipv4Addr,
    /// "Your" address: what the server gives.
    pub yours: Ipv4Addr,
    /// The relay that forwarded it, or unspecified.
    pub relay: Ipv4Addr,
    /// The server that the message is from, or for.
    pub server: Option<Ipv4Addr>,
    /// The address that the client asks for.
    pub requested: Option<Ipv4Addr>,
    /// Seconds for which the address is given.
    pub lease_seconds: Option<u32>,
}

impl DhcpMessage {
    /// Who speaks.
    #[must_use]
    pub const fn op(&self) -> Op {
        self.message_type.op()
    }
}

/// Reads a message: the payload of a UDP datagram between ports 67 and 68.
///
/// # Errors
/// [`DropReason::Malformed`] when it is cut short, not for Ethernet, has options that don't fit or contradict
/// themselves, or no message type (BOOTP).
pub fn parse_dhcp(bytes: &[u8]) -> Result<DhcpMessage, DropReason> {
    read(bytes).ok_or(DropReason::Malformed)
}

fn read(bytes: &[u8]) -> Option<DhcpMessage> {
    let op = match bytes.first()? {
        1 => Op::Request,
        2 => Op::Reply,
        _ => return None,
    };
    if (bytes.get(1)?, bytes.get(2)?) != (&1, &6) || be32(bytes, OPTIONS_AT - 4)? != MAGIC {
        return None;
    }
    let address = |at| array::<4>(bytes, at).map(Ipv4Addr::from);
    let mut found = Options::default();
    found.read(bytes.get(OPTIONS_AT..)?)?;
    // Options may go on in the file and server name fields (RFC 2132 9.3).
    if found.overload & 1 != 0 {
        found.read(bytes.get(108..236)?)?;
    }
    if found.overload & 2 != 0 {
        found.read(bytes.get(44..108)?)?;
    }
    let message_type = found.message_type.filter(|message_type| message_type.op() == op)?;
    Some(DhcpMessage {
        message_type,
        transaction: be32(bytes, 4)?,
        client_mac: MacAddr(array(bytes, 28)?),
        client: address(12)?,
        yours: address(16)?,
        relay: address(24)?,
        server: found.server,
        requested: found.requested,
        lease_seconds: found.lease_seconds,
    })
}

#[derive(Default)]
struct Options {
    message_type: Option<MessageType>,
    server: Option<Ipv4Addr>,
    requested: Option<Ipv4Addr>,
    lease_seconds: Option<u32>,
    overload: u8,
}

impl Options {
    /// Reads one field of options. An option that counts here may stand only once: two readers might choose
    /// differently.
    fn read(&mut self, mut bytes: &[u8]) -> Option<()> {
        while let Some((&code, rest)) = bytes.split_first() {
            bytes = match code {
                PAD => rest,
                END => return Some(()),
                _ => {
                    let (&len, rest) = rest.split_first()?;
                    let (value, rest) = rest.split_at_checked(usize::from(len))?;
                    self.take(code, value)?;
                    rest
                }
            };
        }
        Some(())
    }

    fn take(&mut self, code: u8, value: &[u8]) -> Option<()> {
        let address = || <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
        match (code, value) {
            (MESSAGE_TYPE, [number]) => {
                once(&mut self.message_type, MessageType::from_number(*number)?)
            }
            (SERVER_ID, _) => once(&mut self.server, address()?),
            (REQUESTED_ADDRESS, _) => once(&mut self.requested, address()?),
            (LEASE_TIME, _) => {
                once(&mut self.lease_seconds, u32::from_be_bytes(value.try_into().ok()?))
            }
            (OVERLOAD, [fields @ 1..=3]) if self.overload == 0 => {
                self.overload = *fields;
                Some(())
            }
            (MESSAGE_TYPE | OVERLOAD, _) => None,
            _ => Some(()),
        }
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}
