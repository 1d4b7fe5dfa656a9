//! Who answered whom at which port, as the flow history of a controller would know it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::service::Protocol;

/// A port that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Talk {
    /// Who opened.
    pub(crate) from: MacAddr,
    /// Who answered.
    pub(crate) to: MacAddr,
    /// Where.
    pub(crate) port: (Protocol, u16),
}

/// The two ends of a conversation, the one who opened first.
type Ends = (Protocol, (Ipv4Addr, u16), (Ipv4Addr, u16));

/// Conversations in IPv4, until they are answered.
#[derive(Debug, Default)]
pub(crate) struct Talks {
    opened: BTreeMap<Ends, MacAddr>,
    answered: BTreeSet<Talk>,
}

impl Talks {
    /// Looks at a frame.
    pub(crate) fn take(&mut self, frame: &[u8]) {
        let _ = self.read(frame);
    }

    fn read(&mut self, frame: &[u8]) -> Option<()> {
        let mac = |at: usize| frame.get(at..)?.first_chunk::<6>().copied().map(MacAddr);
        let (to, from) = (mac(0)?, mac(6)?);
        if frame.get(12..14)? != [8, 0] {
            return None;
        }
        let ip = frame.get(14..)?;
        let address = |at: usize| ip.get(at..)?.first_chunk::<4>().copied().map(Ipv4Addr::from);
        let (source, destination) = (address(12)?, address(16)?);
        let rest = ip.get(usize::from(ip.first()? & 15) * 4..)?;
        let number = |at: usize| rest.get(at..)?.first_chunk::<2>().map(|b| u16::from_be_bytes(*b));
        let (source, destination) = ((source, number(0)?), (destination, number(2)?));
        let protocol = match ip.get(9)? {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            _ => return None,
        };
        if to.is_group() {
            return None;
        }
        let flags = rest.get(13).copied().unwrap_or_default();
        let (here, back) = ((protocol, source, destination), (protocol, destination, source));
        match protocol {
            Protocol::Tcp if flags & 0x12 == 0x02 => drop(self.opened.insert(here, from)),
            // In the middle of a connection whoever has the higher port opened it, as far as anybody can tell.
            Protocol::Tcp
                if flags & 0x17 == 0x10
                    && source.1 > destination.1
                    && !self.opened.contains_key(&back) =>
            {
                self.opened.entry(here).or_insert(from);
            }
            Protocol::Tcp if flags & 0x14 != 0x10 => {}
            _ if self.opened.contains_key(&back) => {
                self.answered.insert(Talk { from: to, to: from, port: (protocol, source.1) });
            }
            Protocol::Udp => drop(self.opened.entry(here).or_insert(from)),
            _ => {}
        }
        Some(())
    }

    /// Whoever answered.
    pub(crate) fn answered(&self) -> impl Iterator<Item = Talk> + '_ {
        self.answered.iter().copied()
    }
}
