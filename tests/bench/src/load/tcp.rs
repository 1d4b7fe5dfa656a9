//! TCP as fast as it goes.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anteroom_lab::topology::Host;
use anyhow::{Context as _, Result};

use crate::world::{Device, World};

/// The first port that is listened on.
const PORT: u16 = 5_001;
/// How long a connection may take to come about.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are written or read with one call.
const PIECE: usize = 128 * 1024;

/// Which way data goes. Connections are always opened by the first device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From who opened.
    Forward,
    /// To who opened.
    Reverse,
    /// Both at once.
    Both,
}

/// Connections that carry as much as they can until this is dropped.
#[derive(Debug)]
pub struct Load {
    received: Arc<AtomicU64>,
    ends: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Opens so many connections and starts to send.
    ///
    /// # Errors
    /// If a connection doesn't come about.
    pub fn start(
        world: &World,
        (from, to): (Device, Device),
        streams: u16,
        direction: Direction,
    ) -> Result<Self> {
        let ends = (world.device(from), (world.device(to), world.address(to)));
        Self::between(&[ends], streams, direction)
    }

    /// The same between other hosts: so many connections from each to the one beside it, at its address.
    ///
    /// # Errors
    /// If a connection doesn't come about.
    pub fn between(
        ends: &[(&Host, (&Host, Ipv4Addr))],
        streams: u16,
        direction: Direction,
    ) -> Result<Self> {
        let mut load = Self { received: Arc::default(), ends: Vec::new(), threads: Vec::new() };
        let mut pairs = Vec::new();
        for (from, to) in ends {
            for port in PORT..PORT + streams {
                pairs.push(connect(from, *to, port)?);
            }
        }
        for (near, far) in pairs {
            if direction != Direction::Reverse {
                load.carry(&near, &far)?;
            }
            if direction != Direction::Forward {
                load.carry(&far, &near)?;
            }
            load.ends.extend([near, far]);
        }
        Ok(load)
    }

    /// Starts the two threads of one direction.
    fn carry(&mut self, from: &TcpStream, to: &TcpStream) -> Result<()> {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        let received = self.received.clone();
        self.spawn("tcp-send", move || {
            let piece = vec![0x5a; PIECE];
            while from.write_all(&piece).is_ok() {}
        })?;
        self.spawn("tcp-receive", move || {
            let mut piece = vec![0; PIECE];
            while let Ok(length @ 1..) = to.read(&mut piece) {
                received.fetch_add(length as u64, Ordering::Relaxed);
            }
        })
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(work)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Bytes that have come through so far, of all connections and both directions.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for end in &self.ends {
            end.shutdown(Shutdown::Both).ok();
        }
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// Opens one connection: the near end, then the far one.
fn connect(from: &Host, (to, at): (&Host, Ipv4Addr), port: u16) -> Result<(TcpStream, TcpStream)> {
    let address = SocketAddr::from((at, port));
    let listener = to
        .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?
        .with_context(|| format!("listening on {address}"))?;
    let near = from
        .enter(|| TcpStream::connect_timeout(&address, PATIENCE))?
        .with_context(|| format!("connecting to {address}"))?;
    // The connection stands, so one waits to be accepted.
    let (far, _) = listener.accept().with_context(|| format!("accepting at {address}"))?;
    Ok((near, far))
}
