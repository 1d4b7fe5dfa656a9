//! An attacker with the keys and the view of a gateway: it speaks WireGuard with the gateway's peers, and says whatever
//! it likes inside.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent::state::{Held, StateDir};
use anteroom_agent_core::batch::VlanTag;
use anteroom_agent_core::peer::{Config, Local, Opened, PeerConfig, Peers, SCRATCH_LEN, Sent};
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::sink::Sink;
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_lab::anteroom::Gateway;
use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::view::View;
use anyhow::{Context as _, Result};

/// The attacker.
pub struct Stolen {
    /// The view that was stolen with the keys.
    pub view: Arc<View>,
    peers: Peers,
    socket: UdpSocket,
    /// Datagrams that came to its socket.
    pub heard: usize,
    /// Packets that came out of its tunnels.
    pub packets: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Out(Vec<(SocketAddr, Vec<u8>)>);

impl Sink for Out {
    fn frame(&mut self, _: PortId, _: VnetHeader, _: Option<VlanTag>, _: &[&[u8]]) {}

    fn datagram(
        &mut self,
        to: SocketAddr,
        _: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let mut bytes = vec![0; capacity];
        let length = write(&mut bytes);
        bytes.truncate(length);
        self.0.push((to, bytes));
    }
}

impl Stolen {
    /// Takes the place of a gateway whose agent doesn't run: its state, its machine, its address.
    ///
    /// # Errors
    /// If there is nothing to steal, or the socket is taken.
    pub fn take(gateway: &Gateway) -> Result<Self> {
        let held = Held::load(&StateDir::open(&gateway.state)?)?;
        let enrolled = held.enrolled.context("it was never enrolled")?;
        let view = enrolled.view.context("it has no view")?;
        let socket = gateway.host.enter(|| UdpSocket::bind("0.0.0.0:51820"))??;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        let now = Instant::now();
        let mut seed = [0; 32];
        seed[..16].copy_from_slice(&now.elapsed().as_nanos().to_be_bytes());
        let config = Config {
            secret: enrolled.ring.newest().secret.clone(),
            boot: BootId::from_bytes([0x66; 16]),
            seed,
            owner: 0,
            capabilities: Vec::new(),
        };
        let mut peers = Peers::new(config, now);
        let local = Local {
            overlay: view.intent.overlay,
            revision: view.revision,
            authority: 1,
            confirmed_time: None,
        };
        peers.set_local(local, now);
        let known: Vec<PeerConfig> = view
            .peers
            .iter()
            .map(|peer| PeerConfig {
                gateway: peer.gateway.gateway,
                overlay: peer.gateway.overlay,
                keys: peer.keys.iter().map(|key| key.x25519).collect(),
                endpoints: peer.endpoints.clone(),
                relation: 0,
                kems: Vec::new(),
                client: false,
            })
            .collect();
        peers.set_peers(&known, now);
        Ok(Self { view, peers, socket, heard: 0, packets: Vec::new() })
    }

    /// Lets its tunnels do what is due, for this long.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn run(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        let mut scratch = vec![0; SCRATCH_LEN];
        let mut buffer = vec![0; SCRATCH_LEN];
        while Instant::now() < end {
            let mut out = Out::default();
            self.peers.handle_timeout(Instant::now(), &mut out);
            while self.peers.poll_event().is_some() {}
            if let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
                self.heard += 1;
                let datagram = &buffer[..length];
                let now = Instant::now();
                if let Opened::Packet { packet, .. } =
                    self.peers.open(from, datagram, &mut scratch, now, &mut out)
                {
                    self.packets.push(packet.to_vec());
                }
            }
            self.send(out)?;
        }
        Ok(())
    }

    fn send(&self, out: Out) -> Result<()> {
        for (to, bytes) in out.0 {
            self.socket.send_to(&bytes, to).with_context(|| format!("sending to {to}"))?;
        }
        Ok(())
    }

    /// Whether a session with a peer stands.
    #[must_use]
    pub fn is_live(&self, peer: GatewayId) -> bool {
        let slot = self.peers.slot(peer).and_then(|slot| self.peers.get(slot));
        slot.is_some_and(|peer| peer.is_live(Instant::now()))
    }

    /// Says a packet to a peer, whatever it is.
    ///
    /// # Errors
    /// If there is no such peer, or the socket fails.
    pub fn say(&mut self, peer: GatewayId, packet: &[u8]) -> Result<Sent> {
        let slot = self.peers.slot(peer).context("there is no such peer in the view")?;
        let mut out = Out::default();
        let sent = self.peers.send(slot, packet, Instant::now(), &mut out);
        self.send(out)?;
        Ok(sent)
    }
}
