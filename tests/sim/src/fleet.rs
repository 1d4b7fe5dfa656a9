//! Gateways with whatever intents somebody compiled, their tunnels up and nothing plugged in: for what engines make of
//! flows, where no packet has to travel.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent_core::batch::RxDatagram;
use anteroom_agent_core::config::{Config, PortConfig, TunnelIdentity};
use anteroom_agent_core::engine::Engine;
use anteroom_agent_core::limits::Limits;
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::id::GatewayId;
use anteroom_proto::intent::Intent;
use anteroom_proto::key::{Hash, IdentityKey, TunnelSecret};
use anteroom_proto::operation::{Operation, ViewNumber};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::Unlisted;
use anteroom_proto::view::{Peer, View};

use crate::plan::mac;
use crate::world::Out;

/// Engines by gateway, joined by an underlay that loses nothing.
pub struct Fleet {
    /// The time.
    pub now: Instant,
    engines: BTreeMap<GatewayId, (SocketAddr, Engine)>,
}

impl Fleet {
    /// Starts a gateway for each intent, tells all of them the time, and waits until their tunnels are up.
    ///
    /// # Panics
    /// When a port's name isn't one, which the intents' own names can't bring about.
    #[must_use]
    pub fn start(intents: &[Intent], ports: &[&str], wall: UnixMillis) -> Self {
        let now = Instant::now();
        let known: BTreeMap<GatewayId, (SocketAddr, TunnelSecret)> = intents
            .iter()
            .zip(1_u8..)
            .map(|(intent, number)| {
                let at = SocketAddr::from(([192, 0, 2, number], 51_820));
                (intent.gateway, (at, TunnelSecret::from_bytes([number; 32])))
            })
            .collect();
        let mut engines = BTreeMap::new();
        for (intent, number) in intents.iter().zip(1_u8..) {
            let Some((at, secret)) = known.get(&intent.gateway) else { continue };
            let ports = ports.iter().zip(0_u8..).map(|(name, port)| PortConfig {
                name: name.parse().unwrap_or_else(|error| panic!("{name}: {error}")),
                mac: mac(0x90 + number, port),
                unlisted: Unlisted::Hold,
            });
            let config = Config {
                gateway_macs: vec![mac(0xb0, number)],
                own_addresses: vec![at.ip()],
                ports: ports.collect(),
                uplink_mac: mac(0xa0, number),
                limits: Limits::default(),
            };
            let identity = TunnelIdentity {
                gateway: intent.gateway,
                secret: secret.clone(),
                identity: IdentityKey::from_seed(&[number; 32]),
                seed: [number; 32],
            };
            let mut engine = Engine::new(config, identity, now);
            engine.set_time(wall, true, now);
            engine.apply(Arc::new(view(intent, &known)), now);
            engines.insert(intent.gateway, (*at, engine));
        }
        let mut fleet = Self { now, engines };
        fleet.run(Duration::from_secs(3));
        fleet
    }

    /// The engine of a gateway.
    #[must_use]
    pub fn engine(&self, gateway: GatewayId) -> Option<&Engine> {
        self.engines.get(&gateway).map(|(_, engine)| engine)
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let mut under_way: Vec<(SocketAddr, SocketAddr, Vec<u8>)> = Vec::new();
            for (at, engine) in self.engines.values_mut() {
                let mut out = Out::default();
                engine.handle_timeout(self.now, &mut out);
                under_way.extend(out.datagrams.into_iter().map(|(to, bytes)| (*at, to, bytes)));
            }
            while let Some((from, to, mut bytes)) = under_way.pop() {
                let Some((at, engine)) = self.engines.values_mut().find(|(at, _)| *at == to) else {
                    continue;
                };
                let mut out = Out::default();
                let segment = bytes.len();
                let mut batch = [RxDatagram { from, segment, bytes: &mut bytes }];
                engine.handle_datagrams(&mut batch, self.now, &mut out);
                under_way.extend(out.datagrams.into_iter().map(|(to, bytes)| (*at, to, bytes)));
            }
            self.now += Duration::from_millis(100);
        }
    }
}

fn view(intent: &Intent, known: &BTreeMap<GatewayId, (SocketAddr, TunnelSecret)>) -> View {
    let peers = intent.peers.iter().filter_map(|peer| {
        let (at, secret) = known.get(&peer.gateway)?;
        let key = TunnelKeyBinding {
            organisation: intent.organisation,
            gateway: peer.gateway,
            x25519: secret.public(),
            ml_kem_768: None,
            serial: 1,
            not_before: UnixMillis(0),
        };
        Some(Peer { gateway: peer.clone(), endpoints: vec![*at], keys: vec![key], quic: None })
    });
    let operation = Operation {
        organisation: intent.organisation,
        gateway: intent.gateway,
        number: ViewNumber { incarnation: 1, sequence: 1 },
        revision: 1,
        peers: Vec::new(),
        quarantined: Vec::new(),
        suspended: Vec::new(),
        issued_at: UnixMillis(0),
    };
    View {
        peers: peers.collect(),
        intent: intent.clone(),
        revision: 1,
        incarnation: 1,
        signed_at: UnixMillis(0),
        root_hash: Hash::ZERO,
        intent_hash: Hash::ZERO,
        operation,
        upheld: anteroom_proto::approval::Upheld::default(),
        left_out: Vec::new(),
    }
}
