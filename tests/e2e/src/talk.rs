//! Traffic between the CT and the PACS that a test may put an underlay under: whole transfers, and a connection that
//! goes on and on.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anteroom_lab::hospital::{Hospital, Machine};
use anteroom_lab::story::POLICY;

/// Where both listen.
pub const PORT: u16 = 5_000;
/// How long one mebibyte may take on a machine that has a lot else to do.
pub const PATIENCE: Duration = Duration::from_secs(60);

const RULES: &str = r#"
[service.talk]
ports = ["tcp/5000", "udp/5000", "icmp/echo"]
[rule.talk-out]
from = "ct-1"
to = "pacs-1"
services = ["talk"]
[rule.talk-back]
from = "pacs-1"
to = "ct-1"
services = ["talk"]
"#;

/// Lets the CT and the PACS talk, either of which may begin: TCP and UDP at [`PORT`], and pings.
///
/// # Panics
/// If the operator isn't let.
pub fn allow(hospital: &Hospital) {
    let policy = format!("{POLICY}{RULES}");
    let file = hospital.operator.write_policy("talk.toml", &policy).unwrap();
    hospital.operator.apply(&file, "talk").unwrap();
}

/// So many bytes that look like nothing else, others for each seed.
#[must_use]
pub fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + i / 253 + seed * 7) % 251) as u8).collect()
}

/// So many bytes over a TCP connection of their own, compared at the end; gives how long that took.
///
/// # Panics
/// If other bytes come, or not all in time.
pub fn transfer(from: &Machine, to: &Machine, len: usize) -> Duration {
    let listener = to.host.enter(|| TcpListener::bind(to.at(PORT))).unwrap().unwrap();
    let begun = Instant::now();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).map(|_| all)
    });
    let mut stream =
        from.host.enter(|| TcpStream::connect_timeout(&to.at(PORT), PATIENCE)).unwrap().unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let sent = bytes(1, len);
    stream.write_all(&sent).unwrap();
    drop(stream);
    let got = reader.join().unwrap();
    let got = got.unwrap_or_else(|error| panic!("{} to {}: {error}", from.plan.name, to.plan.name));
    assert!(got == sent, "{} of {len} bytes came, or others", got.len());
    begun.elapsed()
}

/// A connection on which both ends speak without end.
#[derive(Debug)]
pub struct Talk {
    carried: [Arc<AtomicU64>; 2],
    stop: Arc<AtomicBool>,
    /// Of each end: who speaks, who hears. Each ends with how many bytes that were.
    ends: Option<[(Thread, Thread); 2]>,
}

type Thread = JoinHandle<usize>;

impl Talk {
    /// Opens it.
    ///
    /// # Panics
    /// If it can't be opened.
    #[must_use]
    pub fn start(from: &Machine, to: &Machine) -> Self {
        let listener = to.host.enter(|| TcpListener::bind(to.at(PORT))).unwrap().unwrap();
        let near = from.host.enter(|| TcpStream::connect_timeout(&to.at(PORT), PATIENCE));
        Self::between(near.unwrap().unwrap(), listener.accept().unwrap().0)
    }

    fn between(near: TcpStream, far: TcpStream) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let carried = [0, 1].map(|_| Arc::new(AtomicU64::new(0)));
        let mut counters = carried.iter().cloned();
        let ends = [near, far].map(|stream| {
            let (mouth, stopped) = (stream.try_clone().unwrap(), stop.clone());
            let counter = counters.next().unwrap();
            let mouth = std::thread::spawn(move || speak(mouth, &stopped));
            (mouth, std::thread::spawn(move || hear(stream, &counter)))
        });
        Self { carried, stop, ends: Some(ends) }
    }

    /// Waits until both ends have heard so many bytes more.
    ///
    /// # Panics
    /// If they haven't in time, or one of them has ended: the panic says how.
    pub fn goes_on(&mut self, more_bytes: u64, when: &str) {
        let begun = Instant::now();
        let before = [0, 1].map(|end| self.carried[end].load(Relaxed));
        loop {
            let more = [0, 1].map(|end| self.carried[end].load(Relaxed) - before[end]);
            if more.iter().all(|more| *more > more_bytes) {
                break;
            }
            let late = begun.elapsed() > PATIENCE;
            let ended = self.ends.as_ref().is_some_and(|ends| {
                ends.iter().any(|(mouth, ear)| mouth.is_finished() || ear.is_finished())
            });
            if ended {
                println!("{when}: an end of the connection has ended, {more:?} bytes more");
                self.end();
            }
            assert!(!late && !ended, "a connection doesn't go on {when}: {more:?} bytes more");
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("{when}: {more_bytes} bytes each way took {:?}", begun.elapsed());
    }

    /// Has both ends say their last word, and waits until the other has heard it.
    ///
    /// # Panics
    /// If an end has failed, or hasn't heard all that the other said.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Relaxed);
        let join =
            |thread: Thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let Some([(near, near_ear), (far, far_ear)]) = self.ends.take() else { return };
        // Who hears something else panics first, and whoever speaks to it only fails for that.
        let heard = [join(far_ear), join(near_ear)];
        assert_eq!(heard, [join(near), join(far)], "bytes that were heard, and said");
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// Says what [`hear`] expects, until it is to stop. Gives how much that was.
fn speak(mut stream: TcpStream, stop: &AtomicBool) -> usize {
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut at = 0;
    while !stop.load(Relaxed) {
        let part: Vec<u8> = (0..16_384).map(|i| ((at + i) % 251) as u8).collect();
        if let Err(error) = stream.write_all(&part) {
            panic!("nothing can be said any more after {at} bytes: {error}");
        }
        at += part.len();
        std::thread::sleep(Duration::from_millis(2));
    }
    stream.shutdown(Shutdown::Write).unwrap_or_else(|error| panic!("no last word: {error}"));
    at
}

/// Hears to the end, and gives how much that was.
fn hear(mut stream: TcpStream, counter: &AtomicU64) -> usize {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut at = 0;
    let mut buffer = vec![0; 65_536];
    loop {
        let len = match stream.read(&mut buffer) {
            Ok(0) => return at,
            Ok(len) => len,
            Err(error) => panic!("nothing is heard any more after {at} bytes: {error}"),
        };
        let sound = (0..len).all(|i| buffer[i] == ((at + i) % 251) as u8);
        assert!(sound, "other bytes came at {at}");
        at += len;
        counter.fetch_add(len as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_talk_goes_on_and_ends_with_the_last_word_heard() {
        let (near, far) = pair();
        let mut talk = Talk::between(near, far);
        talk.goes_on(100_000, "on loopback");
        talk.stop();
    }

    #[test]
    fn other_bytes_and_an_end_that_is_gone_are_told_at_once() {
        let why = |spoil: &dyn Fn(TcpStream)| {
            let (near, far) = pair();
            let spoilt = near.try_clone().unwrap();
            let mut talk = Talk::between(near, far);
            spoil(spoilt);
            let begun = Instant::now();
            let fails = std::panic::AssertUnwindSafe(|| talk.goes_on(1 << 40, "with a spoiler"));
            let panic = std::panic::catch_unwind(fails).expect_err("it is noticed");
            assert!(begun.elapsed() < PATIENCE / 2, "and not by waiting for it");
            panic.downcast_ref::<String>().cloned().unwrap_or_default()
        };
        let other = why(&|mut stream| stream.write_all(&[255; 99]).unwrap());
        assert!(other.contains("other bytes came"), "{other}");
        let gone = why(&|stream| stream.shutdown(Shutdown::Both).unwrap());
        assert!(!gone.is_empty());
    }
}
