//! A host's address and routes on its TUN device: what its view says, and nothing else of the machine's network.
//!
//! Nothing that leads anywhere stays when the agent ends, however it ends: the kernel takes addresses and routes away with the device, and
//! the [`fence`] with the process. The [`routes`] are the machine's, not the agent's own packets', wherever those go.

mod fence;
mod routes;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use anteroom_proto::view::View;
use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use tokio::sync::Mutex;

use crate::config::InterfaceName;
use crate::net::link::{LinkError, Links, io_error};
use crate::net::tun::MTU;
use fence::Fence;
pub(crate) use fence::TurnedAway;
pub(crate) use routes::MARK;
use routes::Routes;

/// What is to stand on the TUN device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    /// The host's address, by which members know it.
    own: Option<Ipv4Addr>,
    /// The members that rules open, either way.
    to: BTreeSet<Ipv4Addr>,
}

impl Wanted {
    /// What `view` says. A member of another site has an address that means somebody else here, and one whose address is
    /// dynamic has none that a route could name: neither is reached.
    pub(crate) fn of(view: &View) -> Self {
        let intent = &view.intent;
        let fixed = |nets: &[Ipv4Net]| -> Vec<Ipv4Addr> {
            nets.iter().filter(|net| net.prefix_len() == 32).map(Ipv4Net::addr).collect()
        };
        let own =
            intent.devices.first().and_then(|own| fixed(&own.member.addresses).first().copied());
        let here = intent.members.iter().filter(|member| member.site == intent.site);
        let clients = intent.clients.iter().filter(|client| client.site == intent.site);
        let mut to: BTreeSet<Ipv4Addr> = here.flat_map(|member| fixed(&member.addresses)).collect();
        to.extend(clients.map(|client| client.address));
        to.retain(|address| Some(*address) != own);
        if own.is_none() {
            to.clear();
        }
        Self { own, to }
    }
}

/// Keeps address and routes of the TUN device.
#[derive(Debug)]
pub(crate) struct Network {
    links: Links,
    interface: InterfaceName,
    routes: Routes,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    wanted: Wanted,
    fence: Fence,
    /// What the kernel refused when it was last looked at.
    problems: Vec<String>,
}

impl Network {
    /// Of the device with this name. Nothing is wanted yet.
    pub(crate) fn new(links: Links, interface: InterfaceName) -> Self {
        let fence = Fence::new(interface.clone());
        let kept = Mutex::new(Kept { wanted: Wanted::default(), fence, problems: Vec::new() });
        let routes = Routes::new(links.clone(), interface.clone());
        Self { links, interface, routes, kept }
    }

    /// Takes away what the kernel doesn't take away with the device.
    pub(crate) async fn leave(&self) {
        let _kept = self.kept.lock().await;
        if let Err(error) = self.routes.unrule().await {
            tracing::warn!(%error, "the rule for routes to members can't be taken away; without the agent it leads nowhere");
        }
    }

    /// Has the kernel go by `view`. Says what it refuses.
    pub(crate) async fn follow(&self, view: &View) -> Vec<String> {
        let mut kept = self.kept.lock().await;
        kept.wanted = Wanted::of(view);
        self.keep_to(&mut kept).await
    }

    /// Puts back what somebody changed. Says what the kernel refuses.
    pub(crate) async fn keep(&self) -> Vec<String> {
        self.keep_to(&mut *self.kept.lock().await).await
    }

    /// What stood in the way when address, routes and fence were last put in order.
    pub(crate) async fn problems(&self) -> Vec<String> {
        self.kept.lock().await.problems.clone()
    }

    /// What was kept from the member address, or kept in, since it didn't take the device. None where the kernel doesn't tell.
    pub(crate) async fn turned_away(&self) -> Option<TurnedAway> {
        let told = self.kept.lock().await.fence.turned_away();
        told.inspect_err(|error| tracing::debug!(%error, "the fence's counters can't be read")).ok()
    }

    /// The device's number, while it is there.
    pub(crate) fn index(&self) -> Option<u32> {
        nix::net::if_::if_nametoindex(self.interface.as_str()).ok()
    }

    /// Switches the device on.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) async fn switch_on(&self) -> Result<(), LinkError> {
        let Some(index) = self.index() else {
            let source = io::Error::from_raw_os_error(libc::ENODEV);
            return Err(LinkError { what: format!("interface {}", self.interface), source });
        };
        let mtu = LinkMessageBuilder::<LinkUnspec>::default()
            .index(index)
            .append_extra_attribute(LinkAttribute::Mtu(MTU));
        let set = self.links.handle().link().change(mtu.build()).execute().await;
        let what = || format!("setting the MTU of {}", self.interface);
        set.map_err(|error| LinkError { what: what(), source: io_error(error) })?;
        self.links.switch_on(&self.interface, index).await
    }

    async fn keep_to(&self, kept: &mut Kept) -> Vec<String> {
        kept.problems = self.put_in_order(kept).await;
        kept.problems.clone()
    }

    async fn put_in_order(&self, kept: &mut Kept) -> Vec<String> {
        // Without the device there is nothing to keep; whoever makes it anew calls again.
        let Some(index) = self.index() else { return Vec::new() };
        let mut problems = Vec::new();
        let Kept { wanted, fence, .. } = kept;
        let taken = match self.links.addresses().await {
            Ok(all) => all.into_iter().filter(|(at, _)| *at != index).map(|(_, ip)| ip).collect(),
            Err(error) => {
                problems.push(format!("this machine's addresses can't be read: {error}"));
                return problems;
            }
        };
        let own = self.settle(index, &taken, wanted, fence, &mut problems).await;
        self.routes.set(index, own.map(|own| (own, &wanted.to)), &mut problems).await;
        problems
    }

    /// Gives the device its address, never a moment without the fence around it, unless another interface has it (`taken`). Gives the
    /// address that members may know it by.
    async fn settle(
        &self,
        index: u32,
        taken: &BTreeSet<IpAddr>,
        Wanted { own, to }: &Wanted,
        fence: &mut Fence,
        problems: &mut Vec<String>,
    ) -> Option<Ipv4Addr> {
        let interface = &self.interface;
        // What that is for would be cut off by the fence, the tunnels themselves first.
        let (usable, not) = match *own {
            Some(own) if taken.contains(&IpAddr::V4(own)) => (None, Some(own)),
            own => (own, None),
        };
        problems.extend(not.map(|own| {
            format!(
                "no member is reached: {own} is this machine's own address already, besides by {interface}. Take it away from there, or revoke \
                 this client, and approve it with an address that nobody has"
            )
        }));
        // Around both while one address takes the other's place.
        let new = usable.filter(|own| !fence.around().contains(own));
        let both: Vec<Ipv4Addr> =
            fence.around().iter().copied().filter(|at| Some(*at) != not).chain(new).collect();
        let fenced = fence.put(&both, to);
        let usable = if fenced.is_ok() { usable } else { usable.filter(|_| new.is_none()) };
        if let Err(error) = fenced {
            problems.push(format!(
                "the fence can't be put around {interface}; without it whoever shares a network with this machine would reach a new address: {error}"
            ));
        }
        if let Err(error) = self.address(index, usable).await {
            let own = usable.map_or_else(|| "no address".to_owned(), |own| own.to_string());
            problems.push(format!("{interface} can't be given {own}: {error}"));
        } else if let Err(error) = fence.put(usable.as_slice(), to) {
            problems.push(format!("the fence can't be put around {usable:?} alone: {error}"));
        }
        usable
    }

    /// Gives the device this address and no other.
    async fn address(&self, index: u32, own: Option<Ipv4Addr>) -> io::Result<()> {
        let request = self.links.handle().address().get().set_link_index_filter(index).execute();
        let mut answers = std::pin::pin!(request);
        let mut found = Vec::new();
        while let Some(message) = answers.try_next().await.map_err(io_error)? {
            found.push(message);
        }
        let is_own = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Local(IpAddr::V4(ip)) if Some(*ip) == own);
        let mut stands = false;
        for message in found {
            if message.header.family == AddressFamily::Inet6 {
                continue;
            }
            if message.header.prefix_len == 32 && message.attributes.iter().any(is_own) {
                stands = true;
            } else {
                self.links.handle().address().del(message).execute().await.map_err(io_error)?;
            }
        }
        match own {
            Some(own) if !stands => {
                let add = self.links.handle().address().add(index, own.into(), 32);
                add.execute().await.map_err(io_error)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
