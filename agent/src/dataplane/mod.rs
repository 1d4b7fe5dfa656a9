//! The worker thread around the engine, and the handle to it.
//!
//! ```text
//! let setup = Setup::prepare(&config, Wiring::of(&config, None)).await?;
//! let mut engine = Engine::new(setup.engine_config(), identity, Instant::now());
//! engine.restore(learned);
//! let handle = dataplane::spawn(setup, engine)?;
//! ```

mod cables;
mod handle;
mod host;
mod keepalive;
mod keeper;
mod lanes;
mod one_port;
mod outbox;
pub mod relayed;
mod sensing;
mod setup;
mod shares;
mod status;
mod timer;
mod underlays;
mod worker;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use anteroom_agent_core::engine::Engine;
use anteroom_agent_core::port::PortId;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{mpsc, watch};

use crate::net::defence::Defence;
use cables::Cables;
use handle::{COMMANDS, Commander, Heartbeat};
use host::HostKeeper;
use keepalive::Keepalive;
use keeper::Keeper;
use one_port::OnePort;
use outbox::Outbox;
use underlays::{Mirrors, Underlays};
use worker::{Start, Worker};

#[cfg(test)]
pub(crate) use handle::fake;
pub use handle::{Handle, Stopped};
pub use one_port::NoSocket;
pub use sensing::{Seen, SensorStatus};
pub use setup::{Setup, SetupError};
pub use status::{
    InterfaceCounters, InterfaceStatus, LaneThreadStatus, Offloads, Status, ThreadsStatus,
    UnderlayCounters, UnderlayStatus,
};
pub(crate) use underlays::Told as UnderlaysTold;
pub use underlays::{UnderlayLink, UnderlaysStatus};

/// Most views' leavings that wait to be dropped.
const RETIRED: usize = 8;

/// Starts the worker thread. Runs inside a tokio runtime, which also watches the links.
///
/// A panic of the worker, or the loss of its event queue, ends the process: half a data plane would be worse than a
/// restart.
///
/// # Errors
/// Where the thread or its descriptors can't be made.
pub fn spawn(setup: Setup, mut engine: Engine) -> Result<Handle, SetupError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source: io::Error| SetupError::System { what, source }
    };
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(io::Error::from)
        .map_err(failed("making an event descriptor"))?;
    let wake = Arc::new(wake);
    let heartbeat = Arc::new(Heartbeat::new());
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let (inlet, brought) = relayed::Inlet::new(wake.clone());
    let commander = Commander { commands, wake: wake.clone() };
    let Setup {
        config,
        links,
        changes,
        sockets,
        offloads,
        underlay,
        threads,
        threads_chosen,
        addresses,
        sentry,
        host,
        uplink_index,
        pulse,
        beat,
        exits,
        ..
    } = setup;
    if let Some(mtu) = addresses.underlay_mtu {
        engine.set_underlay_mtu(mtu, Instant::now());
    }
    let (lost, lost_receiver) = mpsc::channel(sockets.len());
    let (wants_gro, gro_receiver) = watch::channel(false);
    let (open, open_receiver) = watch::channel(Vec::new());
    let (endpoints, endpoints_receiver) = watch::channel(addresses.endpoints.clone());
    let missing = sockets
        .iter()
        .enumerate()
        .filter(|(_, socket)| socket.is_none())
        .filter_map(|(index, _)| Some(PortId::device(u16::try_from(index.checked_sub(1)?).ok()?)))
        .collect();
    // What stands in the uplink's place on a host is nothing.
    let uplink = if host.is_some() { "" } else { "uplink" };
    let names = std::iter::once(uplink).chain(config.ports.iter().map(|port| port.name.as_str()));
    let interfaces = names
        .zip(setup::interfaces(&config))
        .map(|(name, interface)| (name.to_owned(), interface.to_string()))
        .collect();
    pulse.follow(wake.clone());
    let seed = engine.seed();
    let (retired, buried) = mpsc::channel(RETIRED);
    let one_port = match (underlay.quic, &underlay.steering) {
        (Some(socket), _) => Ok(Arc::new(OnePort::new(socket, wake.clone()))),
        (None, steering) => Err(format!("steering is {steering}")),
    };
    let mut own = underlay.sockets.into_iter();
    let first = own.next().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
    let first = first.map_err(failed("opening the underlay's socket"))?;
    let lanes = own.next();
    let lane_heartbeats =
        threads.iter().flat_map(|threads: &lanes::Threads| threads.heartbeats()).collect();
    let mut outbox = Outbox::new(sockets, first, lanes);
    (outbox.threads, outbox.threads_chosen) = (threads, threads_chosen);
    // What a host says of itself needs no sensor.
    let findings = if config.sensor.enabled && host.is_none() {
        let mut own = [0; 8];
        own.copy_from_slice(&seed[..8]);
        let (tap, findings) = sensing::start(config.ports.len(), u64::from_le_bytes(own))
            .map_err(failed("starting the sensor's thread"))?;
        outbox.tap = Some(tap);
        Some(findings)
    } else {
        None
    };
    let worker = Worker::new(Start {
        engine,
        retired,
        interfaces,
        offloads,
        outbox,
        steering: underlay.steering,
        one_port: one_port.as_ref().ok().map(|port| port.shared.clone()),
        commands: receiver,
        brought,
        inlet: inlet.clone(),
        wake,
        heartbeat: heartbeat.clone(),
        keepalive: Keepalive::new(beat, pulse),
        lost,
        wants_gro,
        open,
    })
    .map_err(failed("preparing the worker"))?;
    std::thread::Builder::new()
        .name("dataplane".into())
        .spawn(move || {
            let whole = EndTogether;
            if let Err(error) = worker.run() {
                tracing::error!(%error, "the data plane's event queue failed");
                std::process::abort();
            }
            std::mem::forget(whole);
        })
        .map_err(failed("starting the worker thread"))?;
    let shared = Arc::new(config.clone());
    let mirrors = Mirrors::default();
    let (told, underlays) = watch::channel(None);
    let second =
        Underlays::new(&config, links.clone(), commander.clone(), exits, mirrors.clone(), told)?;
    if let Some(second) = second {
        tokio::spawn(second.run());
    }
    let defended = links.clone();
    let follows = config.uplink.follow_port;
    let (kept, keeps) = watch::channel(());
    let (mut defences, mut network) = (Vec::new(), None);
    match (sentry.clone(), host) {
        (Some(sentry), _) => {
            let keeper = Keeper {
                config,
                links,
                changes,
                commander: commander.clone(),
                lost: lost_receiver,
                wants_gro: gro_receiver,
                addresses,
                endpoints,
                missing,
                cables: Cables::new(follows, tokio::time::Instant::now()),
                sentry,
                uplink_index,
                kept,
            };
            tokio::spawn(keeper.run());
            defences.extend(shared.underlay.interfaces().map(|interface| {
                let asked = commander.clone();
                let peers = move || {
                    let commander = asked.clone();
                    async move { commander.peers().await.unwrap_or_default() }
                };
                Defence::start(interface.clone(), defended.clone(), peers)
            }));
        }
        (None, Some(own)) => {
            network = Some(own.network.clone());
            let keeper = HostKeeper {
                config: shared.clone(),
                host: own.host,
                frames: own.frames,
                links,
                network: own.network,
                changes,
                commander: commander.clone(),
                lost: lost_receiver,
                addresses,
                endpoints,
                kept,
            };
            tokio::spawn(keeper.run());
        }
        (None, None) => {}
    }
    tokio::spawn(handle::bury(buried));
    Ok(Handle {
        commander,
        inlet,
        heartbeat,
        lane_heartbeats,
        endpoints: endpoints_receiver,
        open: open_receiver,
        sentry,
        defences,
        network,
        keeps,
        mirrors,
        underlays,
        config: shared,
        seed,
        one_port,
        findings,
    })
}

/// Ends the process when it is dropped, which only unwinding does.
struct EndTogether;

impl Drop for EndTogether {
    fn drop(&mut self) {
        tracing::error!("the data plane panicked; the agent ends, to be started anew");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_panicking_worker_takes_the_process_with_it() {
        const INSIDE: &str = "ANTEROOM_TEST_PANIC";
        if std::env::var_os(INSIDE).is_some() {
            let worker = std::thread::spawn(|| {
                let _whole = EndTogether;
                panic!("as a worker might");
            });
            let _ = worker.join();
            std::process::exit(0);
        }
        let test = "dataplane::tests::a_panicking_worker_takes_the_process_with_it";
        let this = std::env::current_exe().unwrap();
        let output = Command::new(this).args(["--exact", test]).env(INSIDE, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    }
}
