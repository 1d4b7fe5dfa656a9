//! What is kept in order beside the worker: interfaces that come and go, addresses, offloads. It may wait for the
//! kernel; the worker may not.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anteroom_agent_core::port::PortId;
use anteroom_transport::egress;
use tokio::sync::{mpsc, watch};
use tokio::time::{self, Instant};

use crate::config::{Config, InterfaceName};
use crate::dataplane::cables::{Act, Cables, Seen};
use crate::dataplane::handle::{Command, Commander, Stopped};
use crate::dataplane::setup::{self, Addresses};
use crate::net::link::{Changes, Link, Links};
use crate::net::packet::PacketSocket;
use crate::net::ports;
use crate::net::sentry::Sentry;

/// Changes of links come in bursts; this long after the first of them all is read anew.
const SETTLE: Duration = Duration::from_millis(20);

/// First and longest pause between two attempts to open an interface.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

pub(super) struct Keeper {
    pub(super) config: Config,
    pub(super) links: Links,
    pub(super) changes: Changes,
    pub(super) commander: Commander,
    /// Ports whose interface the worker found down or gone.
    pub(super) lost: mpsc::Receiver<PortId>,
    /// Whether the engine lets the kernel merge.
    pub(super) wants_gro: watch::Receiver<bool>,
    pub(super) addresses: Addresses,
    pub(super) endpoints: watch::Sender<Vec<SocketAddr>>,
    pub(super) missing: BTreeSet<PortId>,
    pub(super) cables: Cables,
    pub(super) sentry: Sentry,
    /// Number of the uplink's interface when it was last seen.
    pub(super) uplink_index: u32,
    /// Dropped once nothing is kept any more.
    pub(super) kept: watch::Sender<()>,
}

impl Keeper {
    /// Runs until the worker ends. What shows a dead port on the uplink ends with it: nobody would notice the device's
    /// return.
    pub(super) async fn run(mut self) {
        self.keep().await;
        if self.cables.uplink_is_off() {
            self.show(Act::UplinkOn).await;
        }
        drop(self.kept);
    }

    async fn keep(&mut self) {
        let mut pause = RETRY.0;
        let mut retry = Instant::now();
        self.follow_carrier().await;
        loop {
            let dark = self.cables.due();
            tokio::select! {
                lost = self.lost.recv() => {
                    let Some(port) = lost else { return };
                    self.missing.insert(port);
                    (pause, retry) = (RETRY.0, Instant::now());
                }
                changed = self.changes.changed() => {
                    if let Err(error) = changed {
                        tracing::warn!(%error, "changes of links can't be followed");
                        time::sleep(RETRY.1).await;
                    }
                    time::sleep(SETTLE).await;
                    self.follow_carrier().await;
                    if self.follow_addresses().await.is_err() {
                        return;
                    }
                    // Not at once: an attempt makes changes itself, and a failing one mustn't chase its own tail.
                    pause = RETRY.0;
                    retry = retry.min(Instant::now() + pause);
                }
                () = time::sleep_until(dark.unwrap_or_else(Instant::now)), if dark.is_some() => {
                    if let Some(act) = self.cables.expire(Instant::now()) {
                        self.show(act).await;
                    }
                    self.follow_carrier().await;
                }
                changed = self.wants_gro.changed() => {
                    if changed.is_err() || self.switch_offloads().await.is_err() {
                        return;
                    }
                }
                () = time::sleep_until(retry), if !self.missing.is_empty() => {
                    if self.open_missing().await.is_err() {
                        return;
                    }
                    retry = Instant::now() + pause;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }

    /// Notices that a cable went dead or came back.
    async fn follow_carrier(&mut self) {
        let before = self.cables.ports_are_off();
        let uplink = match self.links.find(&self.config.uplink.interface).await {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(%error, "the uplink can't be read");
                return;
            }
        };
        let port = match self.config.ports.first().filter(|_| self.cables.follows()) {
            Some(port) => match self.links.find(&port.interface).await {
                Ok(link) => link,
                Err(error) => {
                    tracing::warn!(%error, port = %port.name, "the port can't be read");
                    return;
                }
            },
            None => None,
        };
        let live = |link: &Option<Link>| link.as_ref().is_some_and(|link| link.up && link.carrier);
        let shared = self.config.uplink.interface == self.config.underlay.interface;
        let backup = match self.config.underlay.backup.as_ref().filter(|_| shared) {
            // With it tunnels go on, and a device that sees a dead cable would have nothing of that.
            Some(backup) => self.links.find(backup).await.unwrap_or_default(),
            None => None,
        };
        let addresses = match &backup {
            Some(_) => self.links.addresses().await.unwrap_or_default(),
            None => Vec::new(),
        };
        let backup = backup.filter(|link| addresses.iter().any(|(index, _)| *index == link.index));
        let seen = Seen {
            uplink: live(&uplink) || live(&backup),
            uplink_on: uplink.as_ref().is_some_and(|link| link.up),
            port: live(&port),
        };
        let act = self.cables.seen(seen, Instant::now());
        if before && !self.cables.ports_are_off() {
            tracing::info!("the uplink is back; the ports are switched on");
        }
        if let Some(act) = act {
            self.show(act).await;
        }
    }

    /// Shows one side what the other is like, so that whoever is there can turn to another path.
    async fn show(&self, act: Act) {
        match act {
            Act::PortsOff => {
                tracing::warn!("the uplink is down; the ports are switched off until it is back");
                for port in &self.config.ports {
                    self.switch(&port.interface, false).await;
                }
            }
            Act::UplinkOff => {
                tracing::warn!(
                    "the device's cable is dead; the uplink is switched off until it is back"
                );
                self.switch(&self.config.uplink.interface, false).await;
            }
            Act::UplinkOn => {
                tracing::info!(
                    "the uplink is switched on, and shows the device's cable no more as dead"
                );
                self.switch(&self.config.uplink.interface, true).await;
            }
        }
    }

    async fn switch(&self, interface: &InterfaceName, on: bool) {
        let switched = async {
            match self.links.find(interface).await? {
                Some(link) if on => self.links.switch_on(interface, link.index).await,
                Some(link) => self.links.switch_off(interface, link.index).await,
                None => Ok(()),
            }
        };
        if let Err(error) = switched.await {
            tracing::warn!(%error, %interface, on, "the interface isn't switched");
        }
    }

    async fn follow_addresses(&mut self) -> Result<(), Stopped> {
        match Addresses::read(&self.config, &self.links).await {
            Ok(addresses) if addresses != self.addresses => {
                let (own, mtu) = (&addresses.own, addresses.underlay_mtu);
                tracing::info!(
                    ?own,
                    ?mtu,
                    "the gateway's addresses, or its underlay's MTU, changed"
                );
                if addresses.moved_from(&self.addresses) {
                    self.commander.send(Command::SetOwnAddresses(own.clone())).await?;
                }
                // Of two underlays, what chooses between them tells that of the one in use.
                if let Some(mtu) = mtu.filter(|_| self.config.underlay.backup.is_none()) {
                    self.commander.send(Command::SetUnderlayMtu(mtu)).await?;
                }
                self.endpoints.send_replace(addresses.endpoints.clone());
                egress::moved();
                self.addresses = addresses;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the gateway's addresses can't be read"),
        }
        Ok(())
    }

    async fn switch_offloads(&mut self) -> Result<(), Stopped> {
        // What the kernel merged goes nowhere where it can't be handed over whole.
        let whole = self.config.offloads.super_frames;
        let gro = *self.wants_gro.borrow_and_update() && whole;
        let interfaces: Vec<_> = setup::interfaces(&self.config).cloned().collect();
        for (index, interface) in interfaces.into_iter().enumerate() {
            let offloads = setup::offloads(interface, gro).await;
            self.commander.send(Command::Offloads(id(index), offloads)).await?;
        }
        Ok(())
    }

    /// Opens what is there again. What isn't waits for the next change or attempt.
    async fn open_missing(&mut self) -> Result<(), Stopped> {
        let mut back = Vec::new();
        for port in &self.missing {
            let Some(interface) = setup::interfaces(&self.config).nth(port.index()) else {
                continue;
            };
            match self.links.find(interface).await {
                // Plugged in anew; whoever configures the gateway's own interfaces does the same for a shared one.
                Ok(Some(link)) if port.is_uplink() && link.index != self.uplink_index => {
                    self.uplink_index = link.index;
                    if let Err(error) = ports::switch_on_uplink(&self.config, &self.links).await {
                        tracing::warn!(%error, "the uplink isn't switched on");
                    }
                    if link.up {
                        back.push((*port, link));
                    }
                }
                // While an uplink is switched off, opening it would only report that once more. Ports are switched
                // on below, unless they are off to show a dead uplink.
                Ok(Some(link)) if !port.is_uplink() || link.up => back.push((*port, link)),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "an interface can't be read"),
            }
        }
        if self.cables.ports_are_off() {
            back.retain(|(port, _)| port.is_uplink());
        }
        if back.is_empty() {
            return Ok(());
        }
        // The filter's chains went with the interfaces, and their numbers changed: nothing is opened before it is
        // written anew.
        if let Err(error) = self.sentry.rebuild().await {
            tracing::warn!(%error, "ports can't be isolated; they stay closed");
            back.retain(|(port, _)| port.is_uplink());
        }
        if back.iter().any(|(port, _)| !port.is_uplink())
            && let Err(error) = ports::switch_on(&self.config, &self.links).await
        {
            tracing::warn!(%error, "ports can't be switched on; they stay closed");
            back.retain(|(port, _)| port.is_uplink());
        }
        for (port, link) in back {
            self.open(port, &link).await?;
        }
        Ok(())
    }

    async fn open(&mut self, port: PortId, link: &Link) -> Result<(), Stopped> {
        let opened: Result<PacketSocket, _> = match port.index().checked_sub(1) {
            None => setup::open_uplink(&self.config, link, false),
            Some(index) => match self.config.ports.get(index) {
                Some(port) => setup::open_port(&self.config, &port.interface, link, false),
                None => return Ok(()),
            },
        };
        match opened {
            Ok(socket) => {
                self.missing.remove(&port);
                if let Some(interface) = setup::interfaces(&self.config).nth(port.index()).cloned()
                {
                    let whole = self.config.offloads.super_frames;
                    let gro = *self.wants_gro.borrow() && whole;
                    let offloads = setup::offloads(interface, gro).await;
                    self.commander.send(Command::Offloads(port, offloads)).await?;
                }
                self.commander.send(Command::PortOpened(port, Box::new(socket))).await
            }
            Err(error) => {
                tracing::debug!(%error, %port, "can't be opened yet");
                Ok(())
            }
        }
    }
}

/// The port with this place among all ports.
fn id(index: usize) -> PortId {
    match index.checked_sub(1).map(u16::try_from) {
        Some(Ok(index)) => PortId::device(index),
        _ => PortId::UPLINK,
    }
}
