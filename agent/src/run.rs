//! `run`: the agent itself.
//!
//! The order at start is what makes a gateway fail static: ports are shut off from the kernel, the view on disk
//! comes into force, frames flow, and only then is a controller looked for.

mod answers;
mod gate;
mod trials;
mod upkeep;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent_core::config::TunnelIdentity;
use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::{IdentityKey, TunnelSecret};
use anteroom_proto::view::Floor;
use anteroom_transport::egress;
use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::bypass::{Machine, Orders};
use crate::config::{Config, Keys};
use crate::control::{self, Client, ControlStatus, Reach};
use crate::dataplane::Handle;
use crate::direct::{self, DirectStatus};
use crate::local::protocol::Identity;
use crate::local::server::Socket;
use crate::net;
use crate::plane::Plane;
use crate::relay::{self, Known, Who};
use crate::slice;
use crate::state::{Enrolled, Enrolment, Held, StateDir};
use crate::trial;
use answers::Answers;
use gate::{Gate, Opener};

/// Runs until it is told to stop.
///
/// # Errors
/// When the state, the local socket or the data plane can't be had, or the data plane ends by itself.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let state = Arc::new(StateDir::open(&config.state)?);
    let _lock = state.lock()?;
    let stop = stop_on_signals()?;
    let socket = Socket::bind(&config.run).await?;
    let boot = BootId::from_bytes(random()?);
    let started = Instant::now();
    info!(version = env!("CARGO_PKG_VERSION"), %boot, "anteroom-agent starts");
    if config.host.is_some() {
        egress::mark(net::host::MARK);
    }
    loop {
        match Run::start(config, &state, boot, started).await?.until(&stop, &socket).await? {
            Next::Stop => break,
            Next::Again => info!("this machine is enrolled now"),
        }
    }
    info!("anteroom-agent has stopped");
    Ok(())
}

/// How long peers and relays may take to hear that it's over.
const FAREWELL: Duration = Duration::from_secs(1);

enum Next {
    Stop,
    Again,
}

/// One run of the data plane, as one gateway or as none.
struct Run {
    state: Arc<StateDir>,
    boot: BootId,
    started: Instant,
    gate: Gate,
    held: Held,
    orders: Orders,
    /// How old a tunnel key gets.
    keys: Keys,
    /// Where QUIC connections with peers come and go: the address that they are bound to, the port where they are taken,
    /// and whether that is the tunnels' own.
    quic: (IpAddr, Option<u16>, bool),
}

impl Run {
    async fn start(
        config: &Config,
        state: &Arc<StateDir>,
        boot: BootId,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let held = Held::load(state)?;
        for problem in &held.problems {
            error!("{problem}");
        }
        if held.enrolled.is_some()
            && let Err(problem) = state.finish_sealing()
        {
            warn!("private keys aren't all kept as they should be yet: {problem}");
        }
        if let Some(enrolled) = &held.enrolled
            && let Err(problem) = state.drop_needless_kem_keys(&enrolled.ring)
        {
            warn!("ML-KEM keys that nobody needs any more may still be on the disk: {problem}");
        }
        if let Some(enrolled) = &held.enrolled
            && let Some(named) = enrolled.view.as_ref().and_then(|view| view.intent.identity)
            && enrolled.identity.public() == named
            && let Err(problem) = state.adopt_identity(named)
        {
            error!(
                "the identity key that operators have approved isn't in its place yet: {problem}"
            );
        }
        let (gateway, secret, key) = match &held.enrolled {
            Some(enrolled) => {
                let fingerprint = enrolled.identity.public().fingerprint();
                let gateway = enrolled.enrolment.gateway;
                info!(%gateway, %fingerprint, "this machine is a gateway");
                (gateway, enrolled.ring.newest().secret.clone(), enrolled.identity.clone())
            }
            None => {
                match &held.locked {
                    Some(Enrolment { gateway, .. }) => warn!(
                        %gateway,
                        "this machine is a gateway, but its private keys are sealed and can't be opened: no tunnel and no controller until they can; nothing is made anew in their place"
                    ),
                    None => warn!("this machine isn't enrolled: it has no view and no controller"),
                }
                // Nobody knows these keys, so nobody can speak to it, or believes it.
                let secret = TunnelSecret::from_bytes(random()?);
                (GatewayId::from_bytes([0; 16]), secret, IdentityKey::from_seed(&random()?))
            }
        };
        let floor = held.enrolled.as_ref().map_or(Floor::default(), |enrolled| enrolled.floor);
        let gate = Gate::new(Opener {
            floor: floor.time,
            config: config.clone(),
            identity: TunnelIdentity { gateway, secret, identity: key, seed: random()? },
            lanes: TunnelSecret::from_bytes(random()?),
            learned: held.learned.clone(),
        });
        if let Some(enrolled) = &held.enrolled {
            let who = (enrolled.enrolment.organisation, enrolled.enrolment.gateway);
            gate.set_own_keys(enrolled.ring.own(who)).await?;
        }
        gate.set_time(control::system_time().max(floor.time), false).await?;
        let enrolment = held.enrolled.as_ref().map(|enrolled| enrolled.enrolment.clone());
        let orders = Orders::load(state, enrolment);
        gate.set_bypasses(orders.loaded(&Machine::look())).await?;
        let view = held.enrolled.as_ref().and_then(|enrolled| enrolled.view.clone());
        let wall = control::system_time().max(floor.time);
        let trials = trial::restore(trials::load(state), view.as_deref(), &Machine::look(), wall);
        gate.restore_trials(trials);
        if held.closed {
            if config.host.is_none() {
                for warning in net::ports::shut(config).await? {
                    warn!("{warning}");
                }
            }
            let marker = state.marker_file();
            let marker = marker.display();
            if held.locked.is_some() {
                error!(
                    "the ports stay closed: a device here is enforced ({marker} says so); they open as soon as the private keys can be opened"
                );
            } else {
                error!(
                    "the ports stay closed: a device here was enforced ({marker} says so) and the view for it is lost; they open with the next view"
                );
            }
        } else {
            let revision = view.as_ref().map(|view| view.revision);
            let opened = gate.open(view).await.context("the data plane doesn't start")?;
            for warning in opened {
                warn!("{warning}");
            }
            match revision {
                Some(revision) => info!(
                    revision,
                    milliseconds = started.elapsed().as_millis(),
                    "the view on disk is in force"
                ),
                None if config.host.is_some() => info!("no view: the host reaches no member"),
                None => info!("no view: the gateway is a wire"),
            }
        }
        let keys = config.keys;
        let underlay = &config.underlay;
        let quic = (underlay.listen.ip(), underlay.quic, underlay.shares_port());
        Ok(Self { state: state.clone(), boot, started, gate, held, orders, keys, quic })
    }

    /// Runs until the agent is to stop, or the machine has become a gateway.
    async fn until(self, stop: &watch::Receiver<bool>, socket: &Socket) -> anyhow::Result<Next> {
        let Self { state, boot, started, gate, held, orders, keys, quic } = self;
        let Held { enrolled, locked, learned, problems, .. } = held;
        let opened = gate.opened().borrow().clone();
        let reach = match opened {
            Some(open) => upkeep::reach(&open),
            None => Reach::default(),
        };
        let (reach_sender, reach) = watch::channel(reach);
        let identity = enrolled.as_ref().map(|enrolled| Identity {
            organisation: enrolled.enrolment.organisation,
            gateway: enrolled.enrolment.gateway,
            fingerprint: enrolled.identity.public().fingerprint().to_string(),
        });
        let (known, pass) = watch::channel(Known { chain: None, pass: upkeep::held_pass(&state) });
        let whose = enrolled.as_ref().map(|enrolled| enrolled.enrolment.clone());
        let (relays_sender, relays) = watch::channel(Vec::new());
        let (heeded_sender, heeded) = watch::channel(None);
        let client = enrolled.map(|enrolled: Enrolled| {
            Client::new(state.clone(), gate.clone(), enrolled, boot, reach, stop.clone())
                .rotating(keys.rotate.every())
                .with_quic(quic.1)
                .with_relays(known, relays.clone())
                .heeding(heeded)
        });
        let key = client.as_ref().map(Client::identity);
        let whose = whose.zip(key.clone());
        let own = whose.clone().map(|(enrolment, identity)| direct::Who {
            gateway: enrolment.gateway,
            identity,
            bind: quic.0,
            port: quic.1,
            shared: quic.2,
        });
        let relayed = whose.map(|(enrolment, identity)| Who {
            organisation: enrolment.organisation,
            identity,
            mtu: egress::mtu(),
        });
        let (direct_sender, direct) = watch::channel(DirectStatus::default());
        let (leave, leaving) = watch::channel(());
        let relaying = relayed.map(|who| {
            let table =
                |handle| Arc::new(relay::Table::new(handle, relays_sender).saying(heeded_sender));
            let known = pass.clone();
            tokio::spawn(use_relays(who, own, known, gate.clone(), table, direct_sender, leaving))
        });
        let keeping_pass = tokio::spawn(upkeep::keep_pass(pass, state.clone()));
        let control: Option<watch::Receiver<ControlStatus>> = client.as_ref().map(Client::status);
        let answers = Arc::new(Answers {
            plane: gate.clone(),
            boot,
            started,
            identity,
            key,
            locked: locked.map(|enrolment| enrolment.gateway),
            control,
            problems: problems.iter().map(ToString::to_string).collect(),
            classic: keys.classic,
            orders,
            relays,
            direct,
        });
        upkeep::notify(&[NotifyState::Ready]);
        let mut stop = stop.clone();
        // In tasks of their own, for these two do work; the rest only waits.
        let enrolled = client.is_some();
        let mut control = tokio::spawn(async move {
            match client {
                Some(client) => client.run().await,
                None => std::future::pending().await,
            }
        });
        let saving = tokio::spawn(upkeep::save_learned(gate.clone(), state.clone(), learned));
        let (keep_trials, left) = watch::channel(());
        let mut trying = tokio::spawn(trials::keep(gate.clone(), state.clone(), left));
        let next = tokio::select! {
            ended = &mut control => match ended {
                Ok(Ok(())) => Ok(Next::Stop),
                Ok(Err(error)) => Err(anyhow::Error::from(error)),
                Err(error) => Err(error.into()),
            },
            () = socket.serve(answers) => Ok(Next::Stop),
            () = upkeep::watch_reach(gate.clone(), reach_sender) => Ok(Next::Stop),
            () = upkeep::watchdog(gate.clone()) => Ok(Next::Stop),
            () = upkeep::wait_for_enrolment(state.clone()), if !enrolled => Ok(Next::Again),
            () = control::stopped(&mut stop) => {
                upkeep::notify(&[NotifyState::Stopping]);
                // It says goodbye to the controller, and tells it what is left to tell, which takes two seconds at most.
                if enrolled {
                    let _ = control.await;
                }
                Ok(Next::Stop)
            }
        };
        saving.abort();
        keeping_pass.abort();
        upkeep::save_now(&gate, &state).await;
        drop(keep_trials);
        if timeout(FAREWELL, &mut trying).await.is_err() {
            trying.abort();
        }
        gate.shutdown().await;
        // Relays carry the data plane's last packets, too. Peers are told that it's over.
        drop(leave);
        if let Some(mut relaying) = relaying
            && timeout(FAREWELL, &mut relaying).await.is_err()
        {
            relaying.abort();
        }
        next
    }
}

/// Connects to relays, and to peers by QUIC, as soon as there is a data plane to carry packets for.
async fn use_relays(
    who: Who,
    own: Option<direct::Who>,
    known: watch::Receiver<Known>,
    gate: Gate,
    table: impl FnOnce(Handle) -> Arc<relay::Table>,
    status: watch::Sender<DirectStatus>,
    mut leaving: watch::Receiver<()>,
) {
    let mut opened = gate.opened();
    let handle = tokio::select! {
        open = opened.wait_for(Option::is_some) => match open {
            Ok(open) => open.as_ref().map(|open| open.handle.clone()),
            Err(_) => None,
        },
        _ = leaving.changed() => None,
    };
    let (Some(handle), Some(own)) = (handle, own) else { return };
    let (table, views) = (table(handle.clone()), gate.views());
    // On one thread of their own: what carries a packet shares the core's caches with what has sealed it, and nothing
    // that control does stands in its way.
    let (ended, end) = oneshot::channel::<()>();
    let relaying = move || {
        let _ended = ended;
        // A refusal costs nothing but time.
        let _ = slice::ask();
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(async {
                let stop = leaving.clone();
                let relays = async {
                    tokio::select! {
                        () = relay::run(who, known, table.clone()) => {}
                        _ = leaving.changed() => {}
                    }
                };
                let directly = direct::run(own, views, handle, table.clone(), status, stop);
                tokio::join!(relays, directly);
            }),
            Err(error) => error!("relays can't be used: {error}"),
        }
    };
    match std::thread::Builder::new().name("relays".into()).spawn(relaying) {
        Ok(_) => {
            // It is never sent: this end is told by the other's going.
            let _ = end.await;
        }
        Err(error) => error!("relays can't be used: {error}"),
    }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the system gives no random bytes")?;
    Ok(bytes)
}

/// Becomes true with the first SIGTERM or SIGINT.
fn stop_on_signals() -> anyhow::Result<watch::Receiver<bool>> {
    let (sender, stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("told to stop (SIGTERM)"),
            _ = interrupt.recv() => info!("told to stop (SIGINT)"),
        }
        sender.send_replace(true);
        // The receivers tell a stop from an end of this task.
        std::future::pending::<()>().await;
    });
    Ok(stop)
}
