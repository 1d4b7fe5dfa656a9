//! Two underlays: the second is used while the first is dead, has no address, or nothing comes back through it.
//!
//! The tunnels' sockets and those of connections to controllers and relays stay as they are, and hear on both all the time; what
//! changes is the interface by which they send (`IP_UNICAST_IF`). While the first is used, routes decide, as on a machine that has
//! no second. What was on its way is taken wherever it comes in, so a change that isn't forced loses nothing; QUIC that peers made
//! to the one before is let go as [`crate::direct`] does it, by a relay.

mod choice;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anteroom_agent_core::target::RelayId;
use anteroom_proto::relay::mirror;
use anteroom_transport::egress::{self, Kind};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{Config, InterfaceName};
use crate::dataplane::handle::{Command, Commander, Stopped};
use crate::net::exit::{self, Exits};
use crate::net::link::{Changes, LinkError, Links};
use crate::net::reverse_path;
use choice::{Choice, Seen, Which, Why};

/// How often it is looked whether anything comes back.
const LOOK: Duration = Duration::from_millis(100);
/// How often interfaces are read, should a change have gone by unnoticed.
const READ: Duration = Duration::from_secs(2);
/// Between two questions through the first while the second is used, and how fresh an answer counts.
const ASK: Duration = Duration::from_secs(1);
const FRESH: Duration = Duration::from_millis(2_500);

/// Where relays may be asked how a socket looks from outside.
pub(super) type Mirrors = Arc<Mutex<BTreeMap<RelayId, SocketAddr>>>;

/// Which underlay is used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderlaysStatus {
    /// The interface in use.
    pub using: String,
    /// Why this one: a few words.
    pub why: String,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// How often another one was taken since the start.
    pub changes: u64,
    /// While the second is used: for how long the first has to be good until it is taken again, in milliseconds. Longer
    /// where it failed soon after it was taken again.
    #[serde(default)]
    pub back_after_ms: Option<u64>,
    /// While the second is used: for how long the first has been good, in milliseconds; none while it isn't.
    #[serde(default)]
    pub good_ms: Option<u64>,
    /// Both, the first one first.
    pub interfaces: Vec<UnderlayLink>,
    /// What keeps one from being heard on while the other is used: a sentence each.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// One of two underlays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderlayLink {
    /// The interface.
    pub interface: String,
    /// Whether it is switched on, has carrier and an address.
    pub usable: bool,
}

/// What is told of it to whoever asks for the status, or depends on it.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    status: UnderlaysStatus,
    since: Instant,
    /// Since when the first is good, while the second is used.
    good: Option<Instant>,
    /// Whether the one in use was taken because the other failed.
    forced: bool,
}

impl Told {
    /// How often another one was taken since the start, and whether the last time since the one before had failed.
    pub(crate) const fn changes(&self) -> (u64, bool) {
        (self.status.changes, self.forced)
    }

    /// As it is now.
    pub(super) fn status(&self) -> UnderlaysStatus {
        UnderlaysStatus {
            for_ms: millis(self.since.elapsed()),
            good_ms: self.good.map(|since| millis(since.elapsed())),
            ..self.status.clone()
        }
    }

    /// As it is after so many changes, the last of which was forced or not.
    #[cfg(test)]
    pub(super) fn after(changes: u64, forced: bool) -> Self {
        let status = UnderlaysStatus {
            using: "up0".into(),
            why: "a test says so".into(),
            for_ms: 0,
            changes,
            back_after_ms: None,
            good_ms: None,
            interfaces: Vec::new(),
            problems: Vec::new(),
        };
        Self { status, since: Instant::now(), good: None, forced }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// An interface as it was last read.
#[derive(Debug, Clone, Copy, Default)]
struct Read {
    index: Option<u32>,
    usable: bool,
    mtu: Option<u16>,
}

/// What chooses between two underlays.
pub(super) struct Underlays {
    names: [InterfaceName; 2],
    listen: SocketAddr,
    links: Links,
    changes: Changes,
    commander: Commander,
    exits: Exits,
    mirrors: Mirrors,
    read: [Read; 2],
    problems: Vec<String>,
    choice: Choice,
    changed: u64,
    /// By which interface everything leaves now; none: as routes say.
    leaves_by: Option<u32>,
    /// The MTU that was told last.
    told_mtu: Option<u16>,
    /// Whether a relay ever answered through the first while the second was used.
    answered: bool,
    probe: Option<Probe>,
    told: watch::Sender<Option<Told>>,
}

impl Underlays {
    /// Prepares it, where the configuration names a second underlay.
    ///
    /// # Errors
    /// Where the system refuses what it needs.
    pub(super) fn new(
        config: &Config,
        links: Links,
        commander: Commander,
        exits: Exits,
        mirrors: Mirrors,
        told: watch::Sender<Option<Told>>,
    ) -> Result<Option<Self>, LinkError> {
        let Some(backup) = config.underlay.backup.clone() else { return Ok(None) };
        Ok(Some(Self {
            names: [config.underlay.interface.clone(), backup],
            listen: config.underlay.listen,
            links,
            changes: Changes::new()?,
            commander,
            exits,
            mirrors,
            read: [Read::default(); 2],
            problems: Vec::new(),
            choice: Choice::new(Instant::now()),
            changed: 0,
            leaves_by: None,
            told_mtu: None,
            answered: false,
            probe: None,
            told,
        }))
    }

    /// Runs until the worker ends.
    pub(super) async fn run(mut self) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut read_at = Instant::now();
        self.read().await;
        loop {
            tokio::select! {
                changed = self.changes.changed() => {
                    if let Err(error) = changed {
                        tracing::warn!(%error, "changes of links can't be followed");
                        tokio::time::sleep(READ).await;
                    }
                    self.read().await;
                    read_at = Instant::now();
                }
                _ = look.tick() => {
                    if read_at.elapsed() >= READ {
                        self.read().await;
                        read_at = Instant::now();
                    }
                }
            }
            if self.look().await.is_err() {
                // Whoever comes next begins with the first.
                egress::steer(Arc::new(|_, _| {}));
                return;
            }
        }
    }

    /// Reads both interfaces.
    async fn read(&mut self) {
        let settings = Path::new(reverse_path::SETTINGS);
        let problems: Vec<String> = self
            .names
            .iter()
            .filter_map(|name| reverse_path::problem(settings, name.as_str()))
            .collect();
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::warn!("{problem}");
        }
        self.problems = problems;
        let addresses = match self.links.addresses().await {
            Ok(addresses) => addresses,
            Err(error) => {
                tracing::warn!(%error, "the underlays can't be read");
                return;
            }
        };
        for (name, read) in self.names.iter().zip(&mut self.read) {
            match self.links.find(name).await {
                Ok(Some(link)) => {
                    let fits = |ip: &IpAddr| match ip {
                        IpAddr::V4(ip) => !ip.is_link_local(),
                        IpAddr::V6(ip) => self.listen.is_ipv6() && !ip.is_unicast_link_local(),
                    };
                    let mut own = addresses.iter().filter(|(index, _)| *index == link.index);
                    let addressed = own.any(|(_, ip)| fits(ip));
                    *read = Read {
                        index: Some(link.index),
                        usable: link.up && link.carrier && addressed,
                        mtu: Some(u16::try_from(link.mtu).unwrap_or(u16::MAX)),
                    };
                }
                Ok(None) => *read = Read::default(),
                Err(error) => tracing::warn!(%error, "an underlay can't be read"),
            }
        }
    }

    async fn look(&mut self) -> Result<(), Stopped> {
        let (sender, answer) = oneshot::channel();
        self.commander.send(Command::Silence(sender)).await?;
        let silence = answer.await.map_err(|_| Stopped)?;
        let answers = match self.choice.using() {
            Which::First => None,
            Which::Second => self.ask(),
        };
        let seen = Seen {
            usable: self.read.map(|read| read.usable),
            heard: silence.heard,
            silence: (silence.lasts, silence.questions),
            answered: silence.answered,
            unanswered: silence.unanswered,
            answers,
        };
        if self.choice.look(&seen, Instant::now()) {
            self.changed += 1;
            self.probe = None;
            self.turn().await?;
        } else if self.exit().is_some_and(|wanted| self.leaves_by != Some(wanted)) {
            // The interface was plugged in anew, and has another number.
            self.turn().await?;
        } else {
            self.tell_mtu().await?;
        }
        self.tell();
        Ok(())
    }

    /// Has everything leave by the underlay that was chosen.
    async fn turn(&mut self) -> Result<(), Stopped> {
        let place = self.choice.using() as usize;
        let name = &self.names[place];
        tracing::warn!(underlay = %name, why = %self.why(), "another underlay is used");
        let interface = self.exit();
        match self.exits.leave_by(interface) {
            Ok(()) => self.leaves_by = interface,
            // One that was just plugged in may be gone again: it is tried anew, with the number that it has then.
            Err(error) => tracing::warn!(underlay = %name, %error, "tunnels can't leave by it"),
        }
        egress::steer(Arc::new(move |socket, kind| {
            let led = match kind {
                Kind::Datagrams => exit::leave_by(&socket, interface),
                Kind::Stream => exit::connect_by(&socket, interface),
            };
            if let Err(error) = led {
                tracing::debug!(%error, "a connection can't leave by the underlay");
            }
        }));
        self.tell_mtu().await?;
        self.commander.send(Command::Moved).await
    }

    /// Tells how many bytes of IP the underlay in use carries in one piece, where that changed.
    async fn tell_mtu(&mut self) -> Result<(), Stopped> {
        let mtu = self.read[self.choice.using() as usize].mtu;
        match mtu.filter(|mtu| self.told_mtu != Some(*mtu)) {
            Some(mtu) => {
                self.told_mtu = Some(mtu);
                egress::carries(mtu);
                self.commander.send(Command::SetUnderlayMtu(mtu)).await
            }
            None => Ok(()),
        }
    }

    /// By which interface everything is to leave. Routes lead to the first, as long as they are what operators made them.
    const fn exit(&self) -> Option<u32> {
        match self.choice.using() {
            Which::First => None,
            Which::Second => self.read[1].index,
        }
    }

    fn why(&self) -> String {
        let other = &self.names[self.choice.using().other() as usize];
        match self.choice.why() {
            Why::First => "it is the first".into(),
            Why::Down => format!("{other} has no carrier or no address"),
            Why::Silent => format!("nothing came back through {other}"),
            Why::Back => "it is the first, and good again".into(),
        }
    }

    fn tell(&self) {
        let interfaces = self
            .names
            .iter()
            .zip(&self.read)
            .map(|(name, read)| UnderlayLink { interface: name.to_string(), usable: read.usable });
        let back = self.choice.way_back();
        let status = UnderlaysStatus {
            using: self.names[self.choice.using() as usize].to_string(),
            why: self.why(),
            for_ms: 0,
            changes: self.changed,
            back_after_ms: back.map(|(after, _)| millis(after)),
            good_ms: None,
            interfaces: interfaces.collect(),
            problems: self.problems.clone(),
        };
        let (since, good) = (self.choice.since(), back.and_then(|(_, good)| good));
        let forced = matches!(self.choice.why(), Why::Down | Why::Silent);
        self.told.send_if_modified(|told| {
            let changed =
                told.as_ref().is_none_or(|told| told.status != status || told.good != good);
            if changed {
                *told = Some(Told { status, since, good, forced });
            }
            changed
        });
    }

    /// Asks relays through the first, now and then, and says whether they answer. None: there is nobody to ask.
    fn ask(&mut self) -> Option<bool> {
        let relays: Vec<SocketAddr> = {
            let mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
            mirrors.values().copied().collect()
        };
        let index = self.read[0].index;
        if self.probe.as_ref().is_some_and(|probe| probe.by != index) {
            self.probe = None;
        }
        if self.probe.is_none() {
            // Where it can't be opened nothing answers.
            self.probe = Probe::open(index, self.listen.is_ipv6()).ok();
        }
        let answers = match &mut self.probe {
            Some(probe) => probe.answers(&relays, Instant::now()),
            None => Some(false),
        };
        self.answered |= answers == Some(true);
        // Where datagrams don't get through to relays, that none answers says nothing.
        let says_nothing = !self.answered && self.choice.why() == Why::Down;
        answers.filter(|answers| *answers || !says_nothing)
    }
}

/// Questions to relays through one interface, whichever is used.
struct Probe {
    socket: UdpSocket,
    by: Option<u32>,
    asked: Option<Instant>,
    nonces: Vec<u64>,
    answered: Option<Instant>,
}

impl Probe {
    fn open(by: Option<u32>, ipv6: bool) -> io::Result<Self> {
        let any = if ipv6 {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
        } else {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
        };
        let socket = std::net::UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        egress::marked(socket.as_fd())?;
        exit::leave_by(&socket, by)?;
        let socket = UdpSocket::from_std(socket)?;
        Ok(Self { socket, by, asked: None, nonces: Vec::new(), answered: None })
    }

    /// Hears what answers have come, asks if it is time, and says whether one came lately.
    fn answers(&mut self, relays: &[SocketAddr], now: Instant) -> Option<bool> {
        let mut buffer = [0; 64];
        while let Ok((len, from)) = self.socket.try_recv_from(&mut buffer) {
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            let heard = buffer.get(..len).and_then(mirror::parse_answer);
            if heard.is_some_and(|(nonce, _)| self.nonces.contains(&nonce))
                && relays.contains(&from)
            {
                self.answered = Some(now);
            }
        }
        if self.asked.is_none_or(|at| now.saturating_duration_since(at) >= ASK) {
            self.asked = Some(now);
            // Answers of the round before count as long as they are fresh.
            let before = self.nonces.len().saturating_sub(relays.len());
            self.nonces.drain(..before);
            for relay in relays {
                let Ok(nonce) = getrandom::u64() else { continue };
                let to = match relay {
                    SocketAddr::V4(to) if self.is_ipv6() => {
                        SocketAddr::from((to.ip().to_ipv6_mapped(), to.port()))
                    }
                    to => *to,
                };
                // One that can't be sent isn't answered.
                let _ = self.socket.try_send_to(&mirror::question(nonce), to);
                self.nonces.push(nonce);
            }
        }
        if relays.is_empty() {
            // Nobody was asked, so silence says nothing, whoever answered before.
            self.answered = None;
            return None;
        }
        Some(self.answered.is_some_and(|at| now.saturating_duration_since(at) <= FRESH))
    }

    fn is_ipv6(&self) -> bool {
        self.socket.local_addr().is_ok_and(|own| own.is_ipv6())
    }
}
