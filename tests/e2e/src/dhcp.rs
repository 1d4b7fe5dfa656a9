//! DHCP over real sockets: a client, a server and a relay, small and exact.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anteroom_agent_core::wire::dhcp::{self, DhcpMessage, MessageType};
use anteroom_lab::packet::PacketSocket;
use anteroom_lab::topology::Host;
use anteroom_proto::mac::MacAddr;
pub use anteroom_sim::dhcp::{Message, kind};
use anyhow::{Context as _, Result, bail};

use crate::attack::{self, BROADCAST, Mac};

/// How long anything waits before it looks whether it is to end.
const TURN: Duration = Duration::from_millis(10);

/// How long a client waits for an answer before it asks again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The addresses of one's own datagram in a frame, and what it says, if it is DHCP.
fn read(frame: &[u8]) -> Option<(attack::Ends, DhcpMessage, &[u8])> {
    let (ends, payload) = attack::datagram(frame)?;
    Some((ends, dhcp::parse_dhcp(payload).ok()?, payload))
}

/// A datagram in its frame, without the attacker's mark.
fn frame(to: Mac, from: Mac, ends: attack::Ends, payload: &[u8]) -> Vec<u8> {
    let packet = attack::plain_udp(ends, payload);
    [&to[..], &from, &[8, 0], &packet].concat()
}

/// What a server gives.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// The address: whoever asks for another one is refused.
    pub address: Ipv4Addr,
    /// For how many seconds.
    pub seconds: u32,
    /// Whether it answers at all.
    pub answers: bool,
}

/// A server with one address to give. It hears broadcasts, what is sent to it alone, and relays.
#[derive(Debug)]
pub struct Server {
    offer: Arc<Mutex<Offer>>,
    heard: Arc<Mutex<Vec<DhcpMessage>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Starts it at an interface of a host, with the host's address there.
    ///
    /// # Errors
    /// If the kernel refuses the sockets.
    pub fn start(host: &Host, interface: &str, own: Ipv4Addr, offer: Offer) -> Result<Self> {
        let mac = host.mac(interface)?;
        let raw = host.enter(|| PacketSocket::open_on(interface, 0x0800))??;
        let socket = host.enter(|| UdpSocket::bind(("0.0.0.0", dhcp::SERVER_PORT)))??;
        let offer = Arc::new(Mutex::new(offer));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (giving, hearing, ended) = (offer.clone(), heard.clone(), stop.clone());
        let thread = host.thread(move || -> Result<()> {
            while !ended.load(Relaxed) {
                let Some(got) = raw.receive_whole(TURN)? else { continue };
                let Some(((_, to), message, _)) = read(&got) else { continue };
                let mine = to.0 == own || to.0.is_broadcast();
                if !mine || to.1 != dhcp::SERVER_PORT {
                    continue;
                }
                locked(&hearing).push(message);
                let offer = *locked(&giving);
                let Some(answer) = answer(&message, own, offer) else { continue };
                let bytes = answer.bytes();
                if !message.relay.is_unspecified() {
                    socket.send_to(&bytes, (message.relay, dhcp::SERVER_PORT))?;
                } else if !message.client.is_unspecified() && answer.kind != kind::NAK {
                    socket.send_to(&bytes, (message.client, dhcp::CLIENT_PORT))?;
                } else if answer.kind == kind::OFFER {
                    let ends = ((own, 67), (answer.yours, 68));
                    raw.send(&frame(message.client_mac.0, mac, ends, &bytes))?;
                } else {
                    let ends = ((own, 67), (Ipv4Addr::BROADCAST, 68));
                    raw.send(&frame(BROADCAST, mac, ends, &bytes))?;
                }
            }
            Ok(())
        })?;
        Ok(Self { offer, heard, stop, thread: Some(thread) })
    }

    /// Gives something else from now on.
    pub fn give(&self, change: impl FnOnce(&mut Offer)) {
        change(&mut locked(&self.offer));
    }

    /// What it has heard since the last time.
    #[must_use]
    pub fn take_heard(&self) -> Vec<DhcpMessage> {
        std::mem::take(&mut locked(&self.heard))
    }

    /// Ends it.
    ///
    /// # Errors
    /// What it met with.
    pub fn end(mut self) -> Result<()> {
        self.stop.store(true, Relaxed);
        let thread = self.thread.take().context("it runs")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

fn answer(message: &DhcpMessage, own: Ipv4Addr, offer: Offer) -> Option<Message> {
    let wants = message.requested.unwrap_or(message.client);
    let kind = match message.message_type {
        _ if !offer.answers || message.server.is_some_and(|server| server != own) => return None,
        MessageType::Discover => kind::OFFER,
        MessageType::Request if wants == offer.address => kind::ACK,
        MessageType::Request => kind::NAK,
        _ => return None,
    };
    let gives = kind != kind::NAK;
    Some(Message {
        client: if gives { message.client } else { Ipv4Addr::UNSPECIFIED },
        yours: if gives { offer.address } else { Ipv4Addr::UNSPECIFIED },
        relay: message.relay,
        server: Some(own),
        lease: gives.then_some(offer.seconds),
        ..Message::new(kind, message.transaction, message.client_mac)
    })
}

/// A relay, as a router is one. It runs until it is dropped.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
}

impl Relay {
    /// Starts it at the clients' interface of a router.
    ///
    /// # Errors
    /// If the kernel refuses the sockets.
    pub fn start(host: &Host, interface: &str, own: Ipv4Addr, server: Ipv4Addr) -> Result<Self> {
        let mac = host.mac(interface)?;
        let raw = host.enter(|| PacketSocket::open_on(interface, 0x0800))??;
        let socket = host.enter(|| UdpSocket::bind((own, dhcp::SERVER_PORT)))??;
        socket.set_read_timeout(Some(TURN))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        host.thread(move || -> Result<()> {
            let mut buffer = [0; 2_048];
            while !ended.load(Relaxed) {
                while let Some(got) = raw.receive_whole(Duration::ZERO)? {
                    let Some(((_, to), message, payload)) = read(&got) else { continue };
                    let fresh = message.relay.is_unspecified();
                    if to != (Ipv4Addr::BROADCAST, dhcp::SERVER_PORT) || !fresh {
                        continue;
                    }
                    let mut forwarded = payload.to_vec();
                    forwarded[3] += 1;
                    forwarded[24..28].copy_from_slice(&own.octets());
                    socket.send_to(&forwarded, (server, dhcp::SERVER_PORT))?;
                }
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let Ok(message) = dhcp::parse_dhcp(&buffer[..length]) else { continue };
                if from.ip() != server || message.op() != dhcp::Op::Reply {
                    continue;
                }
                let ends = ((own, dhcp::SERVER_PORT), (Ipv4Addr::BROADCAST, dhcp::CLIENT_PORT));
                raw.send(&frame(BROADCAST, mac, ends, &buffer[..length]))?;
            }
            Ok(())
        })?;
        Ok(Self { stop })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// What a client holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// The server that gave it.
    pub server: Ipv4Addr,
}

/// A client on a host whose interface is `eth0`, in a network of 256 addresses with this router.
#[derive(Debug)]
pub struct Client {
    /// Its machine.
    pub host: Host,
    mac: Mac,
    router: Ipv4Addr,
    raw: PacketSocket,
    transaction: AtomicU32,
}

impl Client {
    /// A client that has nothing yet.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn new(host: &Host, router: Ipv4Addr) -> Result<Self> {
        let raw = host.enter(|| PacketSocket::open_on("eth0", 0x0800))??;
        let mac = host.mac("eth0")?;
        Ok(Self { host: host.clone(), mac, router, raw, transaction: AtomicU32::new(0x5000) })
    }

    fn next(&self) -> u32 {
        self.transaction.fetch_add(1, Relaxed)
    }

    /// The answer to a transaction, while it is sent again and again.
    fn ask(
        &self,
        transaction: u32,
        kinds: &[MessageType],
        limit: Duration,
        send: impl Fn() -> Result<()>,
    ) -> Result<DhcpMessage> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            send()?;
            let again = Instant::now() + ASK_AGAIN;
            while let Some(frame) =
                self.raw.receive_whole(again.saturating_duration_since(Instant::now()))?
            {
                let Some(((_, to), message, _)) = read(&frame) else { continue };
                if to.1 == dhcp::CLIENT_PORT
                    && message.transaction == transaction
                    && message.client_mac.0 == self.mac
                    && kinds.contains(&message.message_type)
                {
                    return Ok(message);
                }
            }
        }
        bail!("nobody answered {transaction:#x} with {kinds:?} within {limit:?}")
    }

    fn broadcast(&self, message: &Message) -> Result<()> {
        let ends = ((Ipv4Addr::UNSPECIFIED, 68), (Ipv4Addr::BROADCAST, 67));
        Ok(self.raw.send(&frame(BROADCAST, self.mac, ends, &message.bytes()))?)
    }

    /// Looks for servers without waiting for one: the transaction.
    ///
    /// # Errors
    /// If it can't be sent.
    pub fn discover(&self) -> Result<u32> {
        let transaction = self.next();
        self.broadcast(&Message::new(kind::DISCOVER, transaction, MacAddr(self.mac)))?;
        Ok(transaction)
    }

    /// Gets an address, from the first word to the last, and takes it as its own.
    ///
    /// # Errors
    /// If nobody gives it one within `limit`.
    pub fn lease(&self, limit: Duration) -> Result<Lease> {
        self.host.ip("address flush dev eth0")?;
        let transaction = self.next();
        let discover = Message::new(kind::DISCOVER, transaction, MacAddr(self.mac));
        let offer =
            self.ask(transaction, &[MessageType::Offer], limit, || self.broadcast(&discover))?;
        let request = Message {
            requested: Some(offer.yours),
            server: offer.server,
            ..Message::new(kind::REQUEST, transaction, MacAddr(self.mac))
        };
        let ack = self.ask(transaction, &[MessageType::Ack], limit, || self.broadcast(&request))?;
        let server = ack.server.context("a server that says who it is")?;
        self.host.address("eth0", ack.yours, 24)?;
        self.host.default_route(self.router)?;
        Ok(Lease { address: ack.yours, server })
    }

    /// Renews by asking the server alone; false if it refuses. Then nothing is left, and the client must begin anew.
    ///
    /// # Errors
    /// If it doesn't answer within `limit`.
    pub fn renew(&self, lease: Lease, limit: Duration) -> Result<bool> {
        let own = (lease.address, dhcp::CLIENT_PORT);
        let socket = self.host.enter(|| UdpSocket::bind(own))??;
        let transaction = self.next();
        let request = Message {
            client: lease.address,
            ..Message::new(kind::REQUEST, transaction, MacAddr(self.mac))
        };
        let bytes = request.bytes();
        let kinds = [MessageType::Ack, MessageType::Nak];
        let answer = self.ask(transaction, &kinds, limit, || {
            socket.send_to(&bytes, (lease.server, dhcp::SERVER_PORT))?;
            Ok(())
        })?;
        Ok(answer.message_type == MessageType::Ack)
    }
}
