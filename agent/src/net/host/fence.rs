//! Keeps a host's member address to the TUN device.
//!
//! Linux takes packets for any of its addresses on every interface, answers ARP for it everywhere, and sends from it wherever routes
//! lead. So without more, whoever shares a network with the host reaches its member address in the clear, whatever rules say. Tables of the
//! agent's own drop that: packets and ARP for the address that come in elsewhere, and from it that go out elsewhere, whatever the machine
//! translates addresses to: what a container publishes at the address is the tunnel's as well. And what is for a member goes by the device or not at
//! all, but for the agent's own packets: whoever takes a route, a rule or the address away has it stopped, not sent in the clear. The tables
//! belong to this process, so the kernel takes them away with it, and lets nobody else change them. All else is left alone.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::routes::MARK;
use crate::config::InterfaceName;
use crate::net::filter::{IPV4, family};
use crate::net::netlink::Session;
use crate::net::nft::{
    Batch, Expression, Family, Header, Hook, Key, Meta, NETLINK_NETFILTER, NftError, Policy,
    counted,
};

/// Before the usual priority of 0, as the gateway's own filter: other rules of the machine can only narrow further.
const PRIORITY: i32 = -10;
/// Before anything is done with what comes in, and behind all that is done with what goes out: addresses are translated between.
const FIRST: i32 = -310;
const LAST: i32 = 310;

/// Each has a table.
const FAMILIES: [Family; 2] = [Family::Inet, Family::Arp];

/// The members, in the table of packets.
const MEMBERS: &str = "members";

/// Where ARP for Ethernet and IPv4 has its sender's address, and its target's.
const ARP_SENDER: u32 = 14;
const ARP_TARGET: u32 = 24;
/// Where IPv4 has its source, and its destination.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

/// What a host's kernel turned away since the agent's start, since it didn't take the TUN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TurnedAway {
    /// Packets that came for the member address by another interface.
    pub packets_in: u64,
    /// Packets from it that would have left by another.
    pub packets_out: u64,
    /// ARP that came for it by another interface.
    pub arp_in: u64,
    /// ARP from it that would have left by another.
    pub arp_out: u64,
}

impl TurnedAway {
    /// Each with the name that it has among the reasons for which packets are dropped.
    #[must_use]
    pub const fn reasons(&self) -> [(&'static str, u64); 4] {
        [
            ("outside-tunnel-in", self.packets_in),
            ("outside-tunnel-out", self.packets_out),
            ("outside-tunnel-arp-in", self.arp_in),
            ("outside-tunnel-arp-out", self.arp_out),
        ]
    }

    fn add(&mut self, family: Family, chain: &str, packets: u64) {
        let count = match (family, chain) {
            (Family::Inet, "prerouting") => &mut self.packets_in,
            (Family::Inet, "output" | "postrouting") => &mut self.packets_out,
            (Family::Arp, "input") => &mut self.arp_in,
            (Family::Arp, "output") => &mut self.arp_out,
            _ => return,
        };
        *count = count.saturating_add(packets);
    }
}

/// The tables, for as long as this is kept.
#[derive(Debug)]
pub(super) struct Fence {
    interface: InterfaceName,
    /// The tables belong to it.
    session: Option<Session>,
    around: Vec<Ipv4Addr>,
    members: BTreeSet<Ipv4Addr>,
    /// What tables counted that are gone.
    before: TurnedAway,
}

impl Fence {
    pub(super) fn new(interface: InterfaceName) -> Self {
        let before = TurnedAway::default();
        Self { interface, session: None, around: Vec::new(), members: BTreeSet::new(), before }
    }

    /// The addresses that it is around.
    pub(super) fn around(&self) -> &[Ipv4Addr] {
        &self.around
    }

    /// What was turned away so far.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn turned_away(&self) -> io::Result<TurnedAway> {
        let mut all = self.before;
        if let Some(session) = self.session.as_ref().filter(|_| self.stands()) {
            for family in FAMILIES {
                for rule in counted(session, family, &self.table())? {
                    all.add(family, &rule.chain, rule.packets);
                }
            }
        }
        Ok(all)
    }

    fn stands(&self) -> bool {
        !self.around.is_empty() || !self.members.is_empty()
    }

    fn table(&self) -> String {
        format!("anteroom_{}", self.interface)
    }

    /// Puts the fence around these addresses and no others, and keeps what is for these members to the device. Where it fails, it stays as it
    /// was.
    ///
    /// # Errors
    /// What the kernel says. One older than 5.12 has no tables that belong to a process.
    pub(super) fn put(
        &mut self,
        around: &[Ipv4Addr],
        members: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), NftError> {
        if (around, members) == (self.around.as_slice(), &self.members) {
            return Ok(());
        }
        // What can't be read is lost with the tables; the fence is what counts.
        let before = self.turned_away().unwrap_or(self.before);
        if around.is_empty() && members.is_empty() {
            self.before = before;
            // The kernel takes the tables away with the connection.
            (self.session, self.around, self.members) = (None, Vec::new(), BTreeSet::new());
            return Ok(());
        }
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::open(NETLINK_NETFILTER).map_err(no_session)?,
        };
        let done = self.batch(around, members).commit_on(&session);
        if done.is_ok() {
            (self.before, self.around) = (before, around.to_vec());
            self.members.clone_from(members);
        }
        self.session = Some(session);
        done
    }

    fn batch(&self, around: &[Ipv4Addr], members: &BTreeSet<Ipv4Addr>) -> Batch {
        let table = self.table();
        let mut batch = Batch::default();
        for family in FAMILIES {
            if self.stands() {
                batch.remove_standing_table(family, &table);
            }
            batch.own_table(family, &table);
        }
        batch.set(Family::Inet, &table, MEMBERS, Key::Ipv4);
        let keys: Vec<_> = members.iter().map(|member| member.octets().to_vec()).collect();
        batch.elements(Family::Inet, &table, MEMBERS, &keys, None);
        let chains = [
            (Family::Inet, "prerouting", Hook::Prerouting, FIRST, Meta::InputName, DESTINATION),
            // Who sends hears of it there, and only there.
            (Family::Inet, "output", Hook::Output, PRIORITY, Meta::OutputName, SOURCE),
            (Family::Inet, "postrouting", Hook::Postrouting, LAST, Meta::OutputName, SOURCE),
            (Family::Arp, "input", Hook::ArpInput, PRIORITY, Meta::InputName, ARP_TARGET),
            (Family::Arp, "output", Hook::ArpOutput, PRIORITY, Meta::OutputName, ARP_SENDER),
        ];
        for (family, chain, hook, priority, name, offset) in chains {
            batch.base_chain(family, &table, chain, hook, priority, Policy::Accept);
            for address in around {
                let own = Expression::Equal(address.octets().to_vec());
                batch.rule(family, &table, chain, &self.elsewhere(family, name, offset, [own]));
            }
            if matches!(hook, Hook::Output | Hook::Postrouting) {
                let of_others = [
                    Expression::InSet(MEMBERS.to_owned()),
                    Expression::Meta(Meta::Mark),
                    Expression::NotEqual(MARK.to_ne_bytes().to_vec()),
                ];
                let beside = self.elsewhere(family, name, DESTINATION, of_others);
                batch.rule(family, &table, chain, &beside);
            }
        }
        batch
    }

    /// Drops what has another interface than the device, and what `more` asks for of the address at `offset`, and counts it.
    fn elsewhere<const N: usize>(
        &self,
        of: Family,
        name: Meta,
        offset: u32,
        more: [Expression; N],
    ) -> Vec<Expression> {
        let mut rule = if of == Family::Inet { family(IPV4) } else { Vec::new() };
        // The machine itself speaks with its own address by "lo".
        for inside in [self.interface.as_str(), "lo"] {
            let mut padded = inside.as_bytes().to_vec();
            padded.resize(libc::IFNAMSIZ, 0);
            rule.extend([Expression::Meta(name), Expression::NotEqual(padded)]);
        }
        rule.push(Expression::Payload(Header::Network, offset, 4));
        rule.extend(more);
        rule.extend([Expression::Counter, Expression::Drop]);
        rule
    }
}

fn no_session(source: io::Error) -> NftError {
    NftError { what: "a connection to it".into(), source }
}
