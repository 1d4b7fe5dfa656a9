//! A data plane that does nothing, for tests of those who speak with one.

use std::path::Path;

use super::*;
use crate::dataplane::relayed::Delivery;
use crate::dataplane::underlays;

/// What was told of relays.
#[derive(Debug)]
pub(crate) enum Told {
    Relays(GatewayId, Vec<RelayPath>),
    Opened(RelayId, Queues),
    Closed(RelayId),
    /// Relays that operators took out, the addresses of all that ever were, and the document's number.
    TakenOut(Vec<RelayId>, Vec<IpAddr>, u64),
}

/// The worker's side.
pub(crate) struct FakeWorker {
    commands: mpsc::Receiver<Command>,
    brought: Delivery,
    /// Whose packets it says go no direct way.
    pub(crate) indirect: Arc<std::sync::Mutex<Vec<GatewayId>>>,
    pub(crate) uplink: Uplink,
}

/// The uplink that it says it has.
#[derive(Clone)]
pub(crate) struct Uplink(watch::Sender<Option<underlays::Told>>);

impl Uplink {
    /// Another one is taken, which the failure of the one before forces or doesn't.
    pub(crate) fn change(&self, forced: bool) {
        self.0.send_modify(|told| {
            let before = told.as_ref().map_or(0, |told| told.changes().0);
            *told = Some(underlays::Told::after(before + 1, forced));
        });
    }
}

impl FakeWorker {
    /// A worker and its handle.
    pub(crate) fn new() -> (Self, Handle) {
        let text = "[uplink]\ninterface = \"up0\"\n[underlay]\nlisten = \"0.0.0.0:51820\"\n\
                    [[port]]\nname = \"port1\"\ninterface = \"p1\"\n";
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let wake = Arc::new(EventFd::new().unwrap());
        let (inlet, brought) = Inlet::new(wake.clone());
        let (told, underlays) = watch::channel(None);
        let handle = Handle {
            inlet,
            commander: Commander { commands, wake },
            heartbeat: Arc::new(Heartbeat::new()),
            lane_heartbeats: Arc::default(),
            endpoints: watch::channel(Vec::new()).1,
            open: watch::channel(Vec::new()).1,
            sentry: Some(Sentry::unanswering()),
            defences: Vec::new(),
            network: None,
            mirrors: Mirrors::default(),
            underlays,
            keeps: watch::channel(()).1,
            config: Arc::new(Config::parse(Path::new("test.toml"), text).unwrap()),
            seed: [7; 32],
            one_port: Err("this is a test".into()),
            findings: None,
        };
        let (indirect, uplink) = (Arc::default(), Uplink(told));
        (Self { commands: receiver, brought, indirect, uplink }, handle)
    }

    /// The next thing that is told of relays.
    pub(crate) async fn told(&mut self) -> Told {
        self.split().0.await
    }

    /// The next thing that is told of relays, and the next packet that one brought.
    pub(crate) fn split(
        &mut self,
    ) -> (
        impl Future<Output = Told>,
        impl Future<Output = (anteroom_agent_core::target::Through, Vec<u8>)>,
    ) {
        let Self { commands, brought, indirect, .. } = self;
        let told = async {
            loop {
                match commands.recv().await.expect("somebody has the handle") {
                    Command::SetRelays(gateway, relays) => {
                        return Told::Relays(gateway, relays);
                    }
                    Command::OpenRelay(relay, queues) => return Told::Opened(relay, queues),
                    Command::CloseRelay(relay) => return Told::Closed(relay),
                    Command::ForgetRelays { relays, addresses, document } => {
                        return Told::TakenOut(relays, addresses, document);
                    }
                    Command::Indirect(answer) => {
                        let indirect = indirect.lock().unwrap().clone();
                        let _ = answer.send(indirect);
                    }
                    _ => {}
                }
            }
        };
        let brought = async {
            let mut one = Vec::new();
            loop {
                // With no pause behind it: whoever drops the future loses nothing.
                brought.take(1, &mut one);
                if let Some(packet) = one.pop() {
                    return (packet.from, packet.bytes.to_vec());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        (told, brought)
    }

    /// The next packet that a relay brought.
    pub(crate) async fn brought(&mut self) -> (anteroom_agent_core::target::Through, Vec<u8>) {
        self.split().1.await
    }
}
