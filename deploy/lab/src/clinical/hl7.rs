//! HL7 version 2 over MLLP: a monitor that sends vital signs once a second over one long connection, and the engine
//! that takes them.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::topology::Host;

/// The port that is registered for MLLP.
pub const PORT: u16 = 2575;

/// A monitor gives its interface engine this long to acknowledge before it connects anew.
const ACKNOWLEDGE: Duration = Duration::from_secs(10);

/// The longest message that is taken.
const MAX_MESSAGE: usize = 64 * 1024;

const START: u8 = 0x0b;
const END: [u8; 2] = [0x1c, 0x0d];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes messages out of a byte stream.
#[derive(Debug, Default)]
pub struct Framing {
    buffer: Vec<u8>,
}

impl Framing {
    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, without its frame.
    ///
    /// # Errors
    /// If what comes isn't MLLP.
    pub fn next_message(&mut self) -> io::Result<Option<String>> {
        match self.buffer.first() {
            None => return Ok(None),
            Some(&START) => {}
            Some(other) => {
                return Err(io::Error::other(format!("an MLLP frame began with {other:#04x}")));
            }
        }
        let Some(end) = memchr::memmem::find(&self.buffer, &END) else {
            if self.buffer.len() > MAX_MESSAGE {
                return Err(io::Error::other("an MLLP frame has no end"));
            }
            return Ok(None);
        };
        let message = String::from_utf8_lossy(&self.buffer[1..end]).into_owned();
        self.buffer.drain(..end + END.len());
        Ok(Some(message))
    }
}

/// Puts a message into its frame.
#[must_use]
pub fn framed(message: &str) -> Vec<u8> {
    let mut bytes = vec![START];
    bytes.extend_from_slice(message.as_bytes());
    bytes.extend_from_slice(&END);
    bytes
}

/// Field `index` of the first segment called `segment`; MSH counts its separator as field 1.
#[must_use]
pub fn field<'a>(message: &'a str, segment: &str, index: usize) -> Option<&'a str> {
    let line = message.split('\r').find(|line| line.starts_with(segment))?;
    line.split('|').nth(if segment == "MSH" { index.checked_sub(1)? } else { index })
}

/// An observation of vital signs, as a monitor sends it.
#[must_use]
pub fn observation(control_id: &str, heart_rate: u64) -> String {
    [
        &format!(
            "MSH|^~\\&|MONITOR-1|WARD|HL7-1|SERVERS|20261102081500||ORU^R01|{control_id}|P|2.5"
        ),
        "PID|1||4711^^^ANTEROOM||PHANTOM^ANTEROOM",
        "OBR|1|||VITALS^Vital signs",
        &format!("OBX|1|NM|8867-4^Heart rate^LN||{heart_rate}|/min|60-100|N|||F"),
        "OBX|2|NM|59408-5^Oxygen saturation^LN||97|%|95-100|N|||F",
        "",
    ]
    .join("\r")
}

/// An alarm, as a pump sends it about itself (IHE PCD-04).
#[must_use]
pub fn alarm(control_id: &str, number: u64) -> String {
    [
        &format!(
            "MSH|^~\\&|PUMP|WARD|CENTRAL-1|SERVERS|20261102081500||ORU^R40|{control_id}|P|2.6"
        ),
        "PID|1||4711^^^ANTEROOM||PHANTOM^ANTEROOM",
        "OBR|1|||196616^MDC_EVT_ALARM^MDC",
        &format!("OBX|1|ST|196910^MDC_EVT_FLUID_LINE_OCCL^MDC|1.0.0.0.{number}|occluded||||||F"),
        "",
    ]
    .join("\r")
}

fn acknowledgement(control_id: &str) -> String {
    format!(
        "MSH|^~\\&|HL7-1|SERVERS|MONITOR-1|WARD|20261102081500||ACK^R01|A{control_id}|P|2.5\r\
         MSA|AA|{control_id}\r"
    )
}

/// The interface engine: takes messages, remembers which, acknowledges.
#[derive(Debug)]
pub struct Engine {
    received: Arc<Mutex<BTreeSet<String>>>,
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    host: Host,
    accepting: Option<JoinHandle<Result<()>>>,
}

impl Engine {
    /// Starts one on a host.
    ///
    /// # Errors
    /// If the port can't be listened on.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listener = host
            .enter(|| TcpListener::bind(any))?
            .with_context(|| format!("listening for HL7 on {}", host.name()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr()?.port()));
        let received = Arc::new(Mutex::new(BTreeSet::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, ended) = (received.clone(), stop.clone());
        let accepting = host.thread(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (seen, ended) = (seen.clone(), ended.clone());
                std::thread::spawn(move || serve(stream, &seen, &ended));
            }
        })?;
        Ok(Self { received, stop, address, host: host.clone(), accepting: Some(accepting) })
    }

    /// Whether a message with this control id has arrived.
    #[must_use]
    pub fn has(&self, control_id: &str) -> bool {
        lock(&self.received).contains(control_id)
    }

    /// How many messages have arrived.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.received).len()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let address = self.address;
        self.host.enter(|| TcpStream::connect(address).ok()).ok();
        if let Some(thread) = self.accepting.take() {
            thread.join().ok();
        }
    }
}

fn serve(mut stream: TcpStream, received: &Mutex<BTreeSet<String>>, stop: &AtomicBool) {
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok();
    let mut framing = Framing::default();
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => framing.push(&buffer[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(_) => return,
        }
        loop {
            match framing.next_message() {
                Ok(Some(message)) => {
                    let Some(id) = field(&message, "MSH", 10) else { return };
                    lock(received).insert(id.to_owned());
                    if stream.write_all(&framed(&acknowledgement(id))).is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// What a monitor's sending has come to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Count {
    /// Messages sent, each counted once however often it was repeated.
    pub sent: u64,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Times that a message was sent again because no acknowledgement came.
    pub repeated: u64,
    /// Times that the connection had to be made anew.
    pub reconnects: u64,
    /// The slowest acknowledgement, in milliseconds from the first sending.
    pub slowest_ms: u64,
    /// Messages that never arrived. Known once the monitor has stopped.
    pub lost: u64,
}

/// The monitor: one message a second, over one connection for as long as that lasts; a message that isn't acknowledged
/// is sent again over a new one, as real monitors do.
#[derive(Debug)]
pub struct Monitor {
    count: Arc<Mutex<Count>>,
    ids: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Monitor {
    /// Starts sending from a host.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(host: &Host, to: SocketAddr, every: Duration) -> Result<Self> {
        Self::start_with(host, to, every, |id, number| observation(id, 60 + number % 40))
    }

    /// The same with other messages, made of their control id and number.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start_with(
        host: &Host,
        to: SocketAddr,
        every: Duration,
        message: fn(&str, u64) -> String,
    ) -> Result<Self> {
        let count = Arc::new(Mutex::new(Count::default()));
        let ids = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (counting, names, ended) = (count.clone(), ids.clone(), stop.clone());
        let name = host.name().to_owned();
        let thread = host.thread(move || {
            let mut sender = Sender { to, connection: None, connected_before: false };
            let mut next = Instant::now();
            for number in 1_u64.. {
                while Instant::now() < next {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(10).min(every));
                }
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                next = (next + every).max(Instant::now());
                let id = format!("{name}-{number:08}");
                lock(&names).push(id.clone());
                lock(&counting).sent += 1;
                sender.deliver(&id, &message(&id, number), &counting, &ended);
            }
        })?;
        Ok(Self { count, ids, stop, thread: Some(thread) })
    }

    /// What it has come to so far.
    #[must_use]
    pub fn count(&self) -> Count {
        lock(&self.count).clone()
    }

    /// Stops sending and compares with what arrived, for which `grace` is given.
    #[must_use]
    pub fn finish(mut self, engine: &Engine, grace: Duration) -> Count {
        let deadline = Instant::now() + grace;
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        let ids = lock(&self.ids).clone();
        let missing = || ids.iter().filter(|id| !engine.has(id)).count();
        while missing() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut count = self.count();
        count.lost = u64::try_from(missing()).unwrap_or(u64::MAX);
        count
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Sender {
    to: SocketAddr,
    connection: Option<(TcpStream, Framing)>,
    connected_before: bool,
}

impl Sender {
    /// Sends until it is acknowledged, or for [`ACKNOWLEDGE`] longer once the monitor is to stop.
    fn deliver(&mut self, id: &str, message: &str, count: &Mutex<Count>, stop: &AtomicBool) {
        let message = framed(message);
        let first = Instant::now();
        let mut attempts = 0_u64;
        let mut stopping: Option<Instant> = None;
        loop {
            if stop.load(Ordering::Relaxed) {
                let since = *stopping.get_or_insert_with(Instant::now);
                if attempts > 0 && since.elapsed() > ACKNOWLEDGE {
                    return;
                }
            }
            attempts += 1;
            if attempts > 1 {
                lock(count).repeated += 1;
            }
            match self.attempt(&message, id, count) {
                Ok(()) => {
                    let took = u64::try_from(first.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let mut count = lock(count);
                    count.acknowledged += 1;
                    count.slowest_ms = count.slowest_ms.max(took);
                    return;
                }
                Err(_) => {
                    if let Some((stream, _)) = self.connection.take() {
                        stream.shutdown(Shutdown::Both).ok();
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn attempt(&mut self, message: &[u8], id: &str, count: &Mutex<Count>) -> io::Result<()> {
        if self.connection.is_none() {
            let stream = TcpStream::connect_timeout(&self.to, Duration::from_secs(3))?;
            stream.set_nodelay(true)?;
            if self.connected_before {
                lock(count).reconnects += 1;
            }
            self.connected_before = true;
            self.connection = Some((stream, Framing::default()));
        }
        let Some((stream, framing)) = &mut self.connection else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        stream.write_all(message)?;
        let deadline = Instant::now() + ACKNOWLEDGE;
        let mut buffer = [0; 2048];
        loop {
            if let Some(answer) = framing.next_message()? {
                if field(&answer, "MSA", 2) != Some(id) {
                    continue;
                }
                return match field(&answer, "MSA", 1) {
                    Some("AA" | "CA") => Ok(()),
                    other => Err(io::Error::other(format!("refused: {other:?}"))),
                };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => framing.push(&buffer[..read]),
            }
        }
    }
}

/// Sends one message with python-hl7's `mllp_send`, if that is installed; `None` if it isn't.
///
/// # Errors
/// If it is and fails, or its message doesn't arrive.
pub fn send_with_python(
    from: &Host,
    to: SocketAddr,
    engine: &Engine,
    id: &str,
) -> Result<Option<()>> {
    let Some(program) = crate::programs::find("mllp_send") else { return Ok(None) };
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("message.hl7");
    std::fs::write(&file, framed(&observation(id, 72)))?;
    let mut command = from.command(program);
    command.arg("--port").arg(to.port().to_string()).arg("--file").arg(&file);
    command.arg(to.ip().to_string());
    super::dicom::run_to_end(command, Duration::from_secs(60))?;
    crate::wait::until(Duration::from_secs(60), "mllp_send's message to arrive", || {
        engine.has(id).then_some(Some(()))
    })
    .map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_of_a_stream_however_it_is_cut() {
        let bytes = [framed(&observation("A", 60)), framed("MSH|x")].concat();
        for cut in 1..bytes.len() {
            let mut framing = Framing::default();
            let mut messages = Vec::new();
            for part in bytes.chunks(cut) {
                framing.push(part);
                while let Some(message) = framing.next_message().unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, [observation("A", 60), "MSH|x".into()], "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_mllp_is_an_error() {
        let mut framing = Framing::default();
        framing.push(b"GET / HTTP/1.1");
        assert!(framing.next_message().is_err());
        let mut framing = Framing::default();
        framing.push(&[START]);
        framing.push(&vec![b'x'; MAX_MESSAGE]);
        assert!(framing.next_message().is_err());
    }

    #[test]
    fn fields_are_counted_as_the_standard_does() {
        let message = observation("M1", 72);
        assert_eq!(field(&message, "MSH", 10), Some("M1"));
        assert_eq!(field(&message, "MSH", 9), Some("ORU^R01"));
        assert_eq!(field(&acknowledgement("M1"), "MSA", 2), Some("M1"));
        assert_eq!(field(&message, "OBX", 5), Some("72"));
        assert_eq!(field(&message, "ZZZ", 1), None);
        assert_eq!(field(&message, "MSH", 0), None);
    }

    #[test]
    fn every_message_arrives_and_one_that_cannot_is_counted_lost() {
        let test =
            "clinical::hl7::tests::every_message_arrives_and_one_that_cannot_is_counted_lost";
        if !crate::namespace::in_private_network(test) {
            return;
        }
        let host = Host::create("ward").unwrap();
        let engine = Engine::start(&host, PORT).unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let monitor = Monitor::start(&host, to, Duration::from_millis(5)).unwrap();
        crate::wait::until(Duration::from_secs(60), "twenty messages", || {
            (monitor.count().acknowledged >= 20).then_some(())
        })
        .unwrap();
        let count = monitor.finish(&engine, Duration::from_secs(5));
        assert_eq!((count.lost, count.reconnects, count.repeated), (0, 0, 0), "{count:?}");
        assert_eq!(count.sent, count.acknowledged);

        let elsewhere = Host::create("elsewhere").unwrap();
        let silent = Engine::start(&elsewhere, PORT).unwrap();
        let monitor = Monitor::start(&host, to, Duration::from_secs(60)).unwrap();
        crate::wait::until(Duration::from_secs(60), "one message", || {
            (monitor.count().acknowledged == 1).then_some(())
        })
        .unwrap();
        assert_eq!(monitor.finish(&silent, Duration::from_millis(50)).lost, 1);
    }
}
