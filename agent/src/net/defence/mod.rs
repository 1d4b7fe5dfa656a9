//! The gateway's own next hops, defended: towards its peers' addresses, on each underlay's interface.
//!
//! Linux believes whoever says by ARP that he has the address of a neighbour that it knows, so that one frame leads all
//! tunnels astray. Therefore the agent makes its next hops' entries permanent, and changes them itself: see [`hops`].
//! What an administrator made permanent is left alone.

mod arp;
mod hops;
mod kernel;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time;

use crate::config::InterfaceName;
use crate::looks;
use crate::net::link::{Link, LinkError, Links};
use arp::ArpSocket;
use hops::{Hops, Step};
use kernel::Routes;

/// How often routes and peers are looked at, and entries that somebody else changed put back.
const LOOK: Duration = Duration::from_secs(2);

/// How often the kernel is asked for a next hop that it hasn't found yet.
const SEARCH: Duration = Duration::from_millis(250);

/// Speaks with the defence. It ends with the last of these.
#[derive(Debug, Clone)]
pub(crate) struct Defence {
    end: mpsc::Sender<oneshot::Sender<()>>,
}

impl Defence {
    /// Begins to defend the next hops on `interface`. `peers` says where packets are sent to now. Runs inside a
    /// tokio runtime.
    pub(crate) fn start<F>(
        interface: InterfaceName,
        links: Links,
        peers: impl Fn() -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Vec<SocketAddr>> + Send + 'static,
    {
        let (end, ended) = mpsc::channel(1);
        let post = Post { interface, links, hops: Hops::default(), at: None, said: None };
        tokio::spawn(post.keep(ended, peers));
        Self { end }
    }

    /// Ends it: the kernel finds its neighbours by itself again.
    pub(crate) async fn end(&self) {
        let (sender, done) = oneshot::channel();
        if self.end.send(sender).await.is_ok() {
            let _ = done.await;
        }
    }
}

/// Gives back to the kernel what an agent that was killed has left pinned on `interface`.
///
/// # Errors
/// Where the kernel refuses.
pub(crate) async fn release(interface: &InterfaceName, links: &Links) -> Result<(), LinkError> {
    let failed = |source| LinkError { what: format!("the neighbours on {interface}"), source };
    let Some(link) = links.find(interface).await? else { return Ok(()) };
    for entry in kernel::neighbours(links, link.index).await.map_err(failed)? {
        if entry.ours {
            kernel::release(links, link.index, entry.address).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// The interface as it was when its socket was opened.
struct At {
    link: Link,
    own: Vec<Ipv4Addr>,
    socket: ArpSocket,
}

struct Post {
    interface: InterfaceName,
    links: Links,
    hops: Hops,
    at: Option<At>,
    /// What was last complained about, so that it is said once.
    said: Option<String>,
}

impl Post {
    async fn keep<F>(
        mut self,
        mut ended: mpsc::Receiver<oneshot::Sender<()>>,
        peers: impl Fn() -> F + Send,
    ) where
        F: Future<Output = Vec<SocketAddr>> + Send,
    {
        let mut due = Instant::now();
        let mut searched = Instant::now();
        loop {
            let now = Instant::now();
            if now >= due {
                due = looks::next(LOOK, time::Instant::from_std(now)).into_std();
                let peers = peers().await;
                let outcome = self.look(&peers).await;
                self.complain(outcome);
            }
            if self.hops.any_missing() && now.saturating_duration_since(searched) >= SEARCH {
                searched = now;
                let outcome = self.search().await;
                self.complain(outcome);
            }
            for step in self.hops.due(Instant::now()) {
                self.take(step).await;
            }
            let mut until = due;
            if self.hops.any_missing() {
                until = until.min(Instant::now() + SEARCH);
            }
            if let Some(due) = self.hops.poll_timeout() {
                until = until.min(due);
            }
            let heard = async {
                match &mut self.at {
                    Some(at) => at.socket.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                asked = ended.recv() => {
                    for step in self.hops.end() {
                        self.take(step).await;
                    }
                    if let Some(asked) = asked {
                        let _ = asked.send(());
                    }
                    return;
                }
                said = heard => match said {
                    Ok(said) => {
                        // The kernel has it as well now, or in a moment.
                        if said.reply && self.hops.is_missing(said.address) {
                            let outcome = self.search().await;
                            self.complain(outcome);
                        }
                        if let Some(step) = self.hops.heard(said, Instant::now()) {
                            self.take(step).await;
                        }
                    }
                    Err(error) => {
                        self.at = None;
                        due = Instant::now();
                        self.complain(Err(error));
                        time::sleep(SEARCH).await;
                    }
                },
                () = time::sleep_until(until.into()) => {}
            }
        }
    }

    /// Finds out what is to be defended, on which interface.
    async fn look(&mut self, peers: &[SocketAddr]) -> io::Result<()> {
        let link = self.links.find(&self.interface).await.map_err(|error| error.source)?;
        let Some(link) = link.filter(|link| link.up) else {
            // Its entries went with it.
            self.at = None;
            self.hops = Hops::default();
            return Ok(());
        };
        let addresses = self.links.addresses().await.map_err(|error| error.source)?;
        let own: Vec<_> = addresses
            .iter()
            .filter_map(|(index, ip)| match ip {
                IpAddr::V4(ip) if *index == link.index => Some(*ip),
                _ => None,
            })
            .collect();
        match &mut self.at {
            Some(at) if (at.link.index, at.link.mac) == (link.index, link.mac) => at.own = own,
            _ => {
                self.hops = Hops::default();
                let socket = ArpSocket::open(link.index, link.mac)?;
                self.at = Some(At { link, own, socket });
            }
        }
        let index = link_index(&self.at);
        let routes = Routes::read(&self.links, index).await?;
        let near = peers.iter().filter_map(|peer| match peer.ip() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(ip) => ip.to_ipv4_mapped(),
        });
        let known = kernel::neighbours(&self.links, index).await?;
        let theirs = |hop: &Ipv4Addr| {
            known.iter().any(|entry| entry.address == *hop && entry.permanent && !entry.ours)
        };
        let wanted: Vec<_> = routes.hops(near).filter(|hop| !theirs(hop)).collect();
        for step in self.hops.want(wanted) {
            self.take(step).await;
        }
        // What somebody flushed, and what an agent that was killed has left behind.
        let pinned: Vec<_> = self.hops.pinned().collect();
        for (address, mac) in &pinned {
            let stands = known
                .iter()
                .any(|entry| (entry.address, entry.mac) == (*address, *mac) && entry.permanent);
            if !stands {
                self.take(Step::Pin { address: *address, mac: *mac }).await;
            }
        }
        for entry in known.iter().filter(|entry| entry.ours) {
            let wanted = pinned.iter().any(|(address, _)| *address == entry.address);
            if !wanted && !self.hops.is_missing(entry.address) {
                self.take(Step::Release { address: entry.address }).await;
            }
        }
        Ok(())
    }

    /// Pins what the kernel has found since.
    async fn search(&mut self) -> io::Result<()> {
        let Some(at) = &self.at else { return Ok(()) };
        for entry in kernel::neighbours(&self.links, at.link.index).await? {
            if let Some(step) = self.hops.found(entry.address, entry.mac, Instant::now()) {
                self.take(step).await;
            }
        }
        Ok(())
    }

    async fn take(&mut self, step: Step) {
        let Some(at) = &self.at else { return };
        let index = at.link.index;
        let done = match step {
            Step::Ask { address, mac } => match nearest(&at.own, address) {
                Some(from) => at.socket.ask(address, mac, from),
                None => Ok(()),
            },
            Step::Pin { address, mac } => {
                tracing::info!(%address, %mac, "next hop of the gateway itself");
                kernel::pin(&self.links, index, address, mac).await
            }
            Step::Release { address } => kernel::release(&self.links, index, address).await,
        };
        self.complain(done);
    }

    fn complain(&mut self, outcome: io::Result<()>) {
        let problem = outcome.err().map(|error| error.to_string());
        if let Some(problem) = &problem
            && self.said.as_ref() != Some(problem)
        {
            tracing::warn!(
                interface = %self.interface, %problem,
                "the gateway's own next hops can't be defended against false ARP"
            );
        }
        if problem.is_some() {
            self.said = problem;
        }
    }
}

fn link_index(at: &Option<At>) -> u32 {
    at.as_ref().map_or(0, |at| at.link.index)
}

/// The address among `own` that lies nearest to `other`.
fn nearest(own: &[Ipv4Addr], other: Ipv4Addr) -> Option<Ipv4Addr> {
    own.iter().copied().min_by_key(|own| own.to_bits() ^ other.to_bits())
}
