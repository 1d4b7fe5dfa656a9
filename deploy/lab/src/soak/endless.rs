//! A TCP connection on which both ends speak without end, each byte of which is known.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::topology::Host;

/// What is said at a time, and how often.
const PART: usize = 4 << 10;
const EVERY: Duration = Duration::from_millis(10);
/// After how long without a byte it counts as dead.
const SILENCE: Duration = Duration::from_secs(120);
/// What is said, in each piece of this length: nothing else on a campus looks like it.
pub(super) const MARK: &[u8; 24] = b"ENDLESS^ANTEROOM^SOAK^01";

/// A connection under way.
#[derive(Debug)]
pub(super) struct Endless {
    carried: [Arc<AtomicU64>; 2],
    /// What ended it.
    broken: Arc<Mutex<Option<String>>>,
    stop: Arc<AtomicBool>,
    streams: [TcpStream; 2],
}

impl Endless {
    /// Opens it.
    pub(super) fn open(from: &Host, to: &Host, address: SocketAddr) -> Result<Self> {
        let listener = to.enter(|| TcpListener::bind(address))?.context("listening")?;
        let near = from.enter(|| TcpStream::connect_timeout(&address, SILENCE))?;
        let streams = [near.context("connecting")?, listener.accept().context("accepting")?.0];
        let stop = Arc::new(AtomicBool::new(false));
        let broken = Arc::new(Mutex::new(None));
        let carried = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
        for (stream, counter) in streams.iter().zip(&carried) {
            stream.set_read_timeout(Some(SILENCE))?;
            stream.set_write_timeout(Some(SILENCE))?;
            let tell = |what: String, broken: &Mutex<Option<String>>, stop: &AtomicBool| {
                if !stop.load(Relaxed) {
                    let mut first = broken.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert(what);
                }
            };
            let (ear, counter) = (stream.try_clone()?, counter.clone());
            let (told, ended) = (broken.clone(), stop.clone());
            std::thread::spawn(move || tell(hear(ear, &counter), &told, &ended));
            let mouth = stream.try_clone()?;
            let (told, ended) = (broken.clone(), stop.clone());
            std::thread::spawn(move || tell(speak(mouth, &ended), &told, &ended));
        }
        Ok(Self { carried, broken, stop, streams })
    }

    /// Bytes that each end has heard so far.
    pub(super) fn carried(&self) -> Result<[u64; 2]> {
        if let Some(broken) = &*self.broken.lock().unwrap_or_else(PoisonError::into_inner) {
            bail!("the connection that was open from the beginning is broken: {broken}");
        }
        Ok([0, 1].map(|end: usize| self.carried[end].load(Relaxed)))
    }

    /// Ends it, and says how many bytes both ends heard, if it lived until now.
    pub(super) fn end(self) -> Result<u64> {
        self.carried().map(|both| both.iter().sum())
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for stream in &self.streams {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn speak(mut mouth: TcpStream, stop: &AtomicBool) -> String {
    let mut at = 0;
    while !stop.load(Relaxed) {
        let part: Vec<u8> = MARK.iter().cycle().skip(at % MARK.len()).take(PART).copied().collect();
        if let Err(error) = mouth.write_all(&part) {
            return format!("nothing more can be sent after {at} bytes: {error}");
        }
        at += PART;
        std::thread::sleep(EVERY);
    }
    "ended".into()
}

fn hear(mut ear: TcpStream, counter: &AtomicU64) -> String {
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        match ear.read(&mut buffer) {
            Ok(0) => return format!("it was closed after {at} bytes"),
            Ok(len) => {
                let expected = MARK.iter().cycle().skip(at % MARK.len());
                if buffer.iter().take(len).zip(expected).any(|(came, said)| came != said) {
                    return format!("other bytes came than were sent, behind {at}");
                }
                at += len;
                counter.fetch_add(len as u64, Relaxed);
            }
            Err(error) => return format!("nothing came any more after {at} bytes: {error}"),
        }
    }
}
