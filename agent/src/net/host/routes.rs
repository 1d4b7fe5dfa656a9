//! The machine's routes to members, by the TUN device.
//!
//! They have a table of their own, which a rule has asked for everything but what is [marked](MARK) as the agent's own. So tunnels, and the way to
//! controllers and relays, never go into the tunnel, whatever addresses peers say that they are at, and whatever a name leads to; and
//! nothing that anybody says of where it is takes a member's route away.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use crate::config::InterfaceName;
use crate::net::link::{Links, io_error};

/// What the agent's own packets carry (`SO_MARK`).
pub(crate) const MARK: u32 = 0xa7a7;
/// The table of the routes.
const TABLE: u32 = 0xa7a7;
/// Where its rule stands: behind those that the machine has for itself, ahead of its main table.
const PRIORITY: u32 = 32_700;
/// Marks the routes that the agent made.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(0xa7);

/// Keeps the routes.
#[derive(Debug)]
pub(super) struct Routes {
    links: Links,
    interface: InterfaceName,
}

impl Routes {
    pub(super) const fn new(links: Links, interface: InterfaceName) -> Self {
        Self { links, interface }
    }

    /// Has these routes stand through the device with number `index`, and no others: from an address to each of those, or none.
    pub(super) async fn set(
        &self,
        index: u32,
        wanted: Option<(Ipv4Addr, &BTreeSet<Ipv4Addr>)>,
        problems: &mut Vec<String>,
    ) {
        let interface = &self.interface;
        let found = match self.found(index).await {
            Ok(found) => found,
            Err(error) => {
                problems.push(format!("the routes through {interface} can't be read: {error}"));
                return;
            }
        };
        let is_wanted = |at: &Ipv4Addr| wanted.is_some_and(|(_, to)| to.contains(at));
        let stands: BTreeSet<Ipv4Addr> = found.iter().map(|(to, _)| *to).collect();
        for (at, route) in found.into_iter().filter(|(at, _)| !is_wanted(at)) {
            if let Err(error) = self.links.handle().route().del(route).execute().await {
                let error = io_error(error);
                problems.push(format!("the route to {at} can't be taken away: {error}"));
            }
        }
        let Some((own, to)) = wanted else {
            if let Err(error) = self.unrule().await {
                problems.push(format!("the rule for routes can't be taken away: {error}"));
            }
            return;
        };
        for to in to.difference(&stands) {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(*to, 32)
                .output_interface(index)
                .pref_source(own)
                .scope(RouteScope::Link)
                .protocol(PROTOCOL)
                .table_id(TABLE)
                .build();
            if let Err(error) = self.links.handle().route().add(route).execute().await {
                let error = io_error(error);
                problems.push(format!("{to} can't be routed through {interface}: {error}"));
            }
        }
        if let Err(error) = self.rule().await {
            problems.push(format!(
                "no member is reached, for want of a rule for their routes: {error}"
            ));
        }
    }

    /// The agent's routes through the device.
    async fn found(&self, index: u32) -> io::Result<Vec<(Ipv4Addr, RouteMessage)>> {
        let mut asked = RouteMessage::default();
        asked.header.address_family = AddressFamily::Inet;
        let mut answers = std::pin::pin!(self.links.handle().route().get(asked).execute());
        let mut found = Vec::new();
        while let Some(route) = answers.try_next().await.map_err(io_error)? {
            let has = |attribute| route.attributes.contains(&attribute);
            let own = route.header.protocol == PROTOCOL && has(RouteAttribute::Table(TABLE));
            if !own || !has(RouteAttribute::Oif(index)) {
                continue;
            }
            let to = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(*ip),
                _ => None,
            });
            if let Some(to) = to {
                found.push((to, route));
            }
        }
        Ok(found)
    }

    /// The rules that lead to the table.
    async fn rules(&self) -> io::Result<Vec<RuleMessage>> {
        let answers = self.links.handle().rule().get(IpVersion::V4).execute();
        let mut answers = std::pin::pin!(answers);
        let mut found = Vec::new();
        while let Some(rule) = answers.try_next().await.map_err(io_error)? {
            if rule.attributes.contains(&RuleAttribute::Table(TABLE)) {
                found.push(rule);
            }
        }
        Ok(found)
    }

    /// Has the rule stand, which may be left of an agent that was killed.
    async fn rule(&self) -> io::Result<()> {
        let is_right = |rule: &RuleMessage| {
            let is = |attribute| rule.attributes.contains(&attribute);
            rule.header.flags.contains(RuleFlags::Invert)
                && is(RuleAttribute::FwMark(MARK))
                && is(RuleAttribute::Priority(PRIORITY))
                && is(RuleAttribute::Protocol(RouteProtocol::Kernel))
        };
        if self.rules().await?.iter().any(is_right) {
            return Ok(());
        }
        let add = self.links.handle().rule().add().v4();
        let mut add = add.table_id(TABLE).priority(PRIORITY).fw_mark(MARK);
        add = add.action(RuleAction::ToTable);
        add.message_mut().header.flags.insert(RuleFlags::Invert);
        // systemd-networkd takes away whatever it didn't make itself, but for the kernel's own.
        add.message_mut().attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
        add.execute().await.map_err(io_error)
    }

    /// Takes the rule away.
    pub(super) async fn unrule(&self) -> io::Result<()> {
        for rule in self.rules().await? {
            self.links.handle().rule().del(rule).execute().await.map_err(io_error)?;
        }
        Ok(())
    }
}
