//! Gateways by the thousand: engines in one thread, each with an address of its own, behind one socket.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anteroom_agent_core::batch::{RxDatagram, VlanTag};
use anteroom_agent_core::config::{Config, PortConfig, TunnelIdentity};
use anteroom_agent_core::engine::Engine;
use anteroom_agent_core::limits::Limits;
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::sink::Sink;
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_lab::topology::Host;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::Unlisted;
use anteroom_proto::view::View;
use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use nix::sys::time::TimeSpec;

/// Longest datagram of a tunnel's.
const LONGEST: usize = 2_048;
/// First byte of a datagram that carries data: its sender has shaken hands.
const DATA: u8 = 4;
/// Size of the socket's buffers in bytes.
const BUFFER: usize = 32 << 20;
/// How long to sleep at most, so that an end is noticed.
const NAP: Duration = Duration::from_millis(50);

/// Who one of the crowd is.
#[derive(Debug)]
pub struct Person {
    /// Its keys.
    pub identity: TunnelIdentity,
    /// What it holds.
    pub view: View,
}

/// The crowd's address number `index`.
#[must_use]
pub fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 21, 0, 1).to_bits() + index as u32)
}

/// The network that all of [`address`] are in.
pub const NETWORK: &str = "172.21.0.0/16";

/// What the thread tells others.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Counts the times that everybody was to shake hands anew.
    generation: AtomicU32,
    /// How many have done so.
    shaken: AtomicUsize,
}

/// The crowd, until it is dropped.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    size: usize,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

impl Crowd {
    /// Begins to speak, at `port` of each address in [`NETWORK`], which all must be `host`'s.
    ///
    /// # Errors
    /// If the socket can't be had.
    pub fn start(host: &Host, port: u16, people: Vec<Person>) -> Result<Self> {
        let socket = host
            .enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?
            .context("binding the crowd's socket")?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        // As large as a gateway's own, where this user may: thousands speak at once.
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).ok();
        setsockopt(&socket, sockopt::SndBufForce, &BUFFER).ok();
        let shared = Arc::new(Shared::default());
        let (size, known) = (people.len(), shared.clone());
        let thread = host.thread(move || live(&socket, people, &known))?;
        Ok(Self { shared, size, thread: Some(thread) })
    }

    /// Forgets who has shaken hands.
    pub fn begin_anew(&self) {
        self.shared.shaken.store(0, Ordering::SeqCst);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// How many have shaken hands since, and were sent something after that.
    #[must_use]
    pub fn shaken(&self) -> usize {
        self.shared.shaken.load(Ordering::SeqCst)
    }

    /// Whether all have.
    #[must_use]
    pub fn all_shaken(&self) -> bool {
        self.shaken() >= self.size
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(Ok(())))) | None => {}
            ended => eprintln!("the crowd ended early: {ended:?}"),
        }
    }
}

/// One of the crowd.
struct Member {
    engine: Engine,
    /// The generation in which it was last sent data.
    shaken: u32,
    /// When it is to be woken, as the queue has it.
    due: Option<Instant>,
}

/// Sends what an engine wants sent, from its own address.
struct Post<'a> {
    socket: &'a UdpSocket,
    from: Ipv4Addr,
    buffer: Vec<u8>,
}

impl Sink for Post<'_> {
    fn frame(&mut self, _: PortId, _: VnetHeader, _: Option<VlanTag>, _: &[&[u8]]) {
        // Nothing is plugged in.
    }

    fn datagram(
        &mut self,
        to: SocketAddr,
        _: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        self.buffer.resize(capacity.max(LONGEST), 0);
        let length = write(&mut self.buffer);
        let SocketAddr::V4(to) = to else { return };
        if length == 0 {
            return;
        }
        let info = in_pktinfo(self.from);
        // What finds no room is lost, as on any network.
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&self.buffer[..length])],
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrIn::from(to)),
        )
        .ok();
    }
}

fn in_pktinfo(from: Ipv4Addr) -> nix::libc::in_pktinfo {
    let address = |address: Ipv4Addr| nix::libc::in_addr { s_addr: address.to_bits().to_be() };
    nix::libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: address(from),
        ipi_addr: address(Ipv4Addr::UNSPECIFIED),
    }
}

/// An engine that has little to do.
fn engine(index: usize, person: Person, now: Instant) -> Result<Engine> {
    let limits = Limits {
        flows: 64,
        flows_per_device: 64,
        bridge_entries: 64,
        edges: 64,
        edges_per_device: 64,
        ..Limits::default()
    };
    let number = (index as u32).to_be_bytes();
    let mac = |kind: u8| MacAddr([0x02, kind, number[0], number[1], number[2], number[3]]);
    let config = Config {
        gateway_macs: vec![mac(1), mac(2)],
        own_addresses: vec![address(index).into()],
        ports: vec![PortConfig { name: "port1".parse()?, mac: mac(1), unlisted: Unlisted::Hold }],
        uplink_mac: mac(2),
        limits,
    };
    let mut engine = Engine::new(config, person.identity, now);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    engine.set_time(UnixMillis(u64::try_from(wall)?), true, now);
    engine.apply(Arc::new(person.view), now);
    Ok(engine)
}

/// The crowd's thread.
fn live(socket: &UdpSocket, people: Vec<Person>, shared: &Shared) -> Result<()> {
    let begun = Instant::now();
    let mut members = Vec::with_capacity(people.len());
    for (index, person) in people.into_iter().enumerate() {
        let engine = engine(index, person, begun)?;
        members.push(Member { engine, shaken: u32::MAX, due: None });
    }
    let mut queue: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
    let mut post = Post { socket, from: Ipv4Addr::UNSPECIFIED, buffer: Vec::new() };
    let schedule = |queue: &mut BinaryHeap<_>, members: &mut [Member], index: usize| {
        let member = &mut members[index];
        let due = member.engine.poll_timeout().map(|(at, _)| at);
        if due != member.due {
            member.due = due;
            queue.extend(due.map(|at| Reverse((at, index))));
        }
    };
    for index in 0..members.len() {
        schedule(&mut queue, &mut members, index);
    }
    let mut bytes = vec![0; LONGEST];
    while !shared.stop.load(Ordering::Relaxed) {
        // A bounded number at a time, so that time-outs have their turn.
        for _ in 0..256 {
            let Some((index, from, length)) = receive(socket, &mut bytes)? else { break };
            let Some(member) = members.get_mut(index) else { continue };
            let generation = shared.generation.load(Ordering::SeqCst);
            if bytes[0] == DATA && member.shaken != generation {
                member.shaken = generation;
                shared.shaken.fetch_add(1, Ordering::SeqCst);
            }
            post.from = address(index);
            let bytes = &mut bytes[..length];
            let mut batch = [RxDatagram { from, segment: length, bytes }];
            member.engine.handle_datagrams(&mut batch, Instant::now(), &mut post);
            schedule(&mut queue, &mut members, index);
        }
        let now = Instant::now();
        while let Some(Reverse((at, index))) = queue.peek().copied().filter(|next| next.0.0 <= now)
        {
            queue.pop();
            // Entries that were overtaken stay in the queue until their time.
            if members[index].due == Some(at) {
                members[index].due = None;
                post.from = address(index);
                members[index].engine.handle_timeout(now, &mut post);
                schedule(&mut queue, &mut members, index);
            }
        }
        let next = queue.peek().map_or(NAP, |next| next.0.0.saturating_duration_since(now));
        let mut events = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut events, Some(TimeSpec::from_duration(next.min(NAP))), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for datagrams"),
        }
    }
    Ok(())
}

/// The next datagram: whose it is, where it is from and how long it is.
fn receive(socket: &UdpSocket, bytes: &mut [u8]) -> Result<Option<(usize, SocketAddr, usize)>> {
    let mut pieces = [IoSliceMut::new(bytes)];
    let mut control = nix::cmsg_space!(nix::libc::in_pktinfo);
    let flags = MsgFlags::MSG_DONTWAIT;
    // A far port that is closed, as while a gateway restarts, is told here too.
    let Ok(message) =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut pieces, Some(&mut control), flags)
    else {
        return Ok(None);
    };
    let to = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr)))
        }
        _ => None,
    });
    let from = message.address.map(|from| SocketAddr::from((from.ip(), from.port())));
    let index = to.and_then(|to| to.to_bits().checked_sub(address(0).to_bits()));
    Ok(from.zip(index).map(|(from, index)| (index as usize, from, message.bytes)))
}
