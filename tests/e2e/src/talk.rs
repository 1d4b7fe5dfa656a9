//! Traffic between the CT and the PACS that a test may put an underlay under: whole transfers, and a connection that
//! goes on and on.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anteroom_lab::hospital::{Hospital, Machine};
use anteroom_lab::story::POLICY;
use anteroom_lab::wait;

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
}

impl Talk {
    /// Opens it.
    ///
    /// # Panics
    /// If it can't be opened.
    #[must_use]
    pub fn start(from: &Machine, to: &Machine) -> Self {
        let listener = to.host.enter(|| TcpListener::bind(to.at(PORT))).unwrap().unwrap();
        let near = from.host.enter(|| TcpStream::connect_timeout(&to.at(PORT), PATIENCE));
        let (near, (far, _)) = (near.unwrap().unwrap(), listener.accept().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let carried = [near, far].map(|stream| {
            let (mut mouth, mut ear) = (stream.try_clone().unwrap(), stream);
            let (ended, counter) = (stop.clone(), Arc::new(AtomicU64::new(0)));
            mouth.set_write_timeout(Some(PATIENCE)).unwrap();
            ear.set_read_timeout(Some(PATIENCE)).unwrap();
            let counted = counter.clone();
            std::thread::spawn(move || {
                let mut at = 0usize;
                let mut buffer = vec![0; 65_536];
                while let Ok(len @ 1..) = ear.read(&mut buffer) {
                    let sound = (0..len).all(|i| buffer[i] == ((at + i) % 251) as u8);
                    assert!(sound, "other bytes came at {at}");
                    at += len;
                    counted.fetch_add(len as u64, Relaxed);
                }
            });
            std::thread::spawn(move || {
                let mut at = 0usize;
                while !ended.load(Relaxed) {
                    let part: Vec<u8> = (0..16_384).map(|i| ((at + i) % 251) as u8).collect();
                    if mouth.write_all(&part).is_err() {
                        break;
                    }
                    at += part.len();
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            counter
        });
        Self { carried, stop }
    }

    /// Waits until both ends have heard so many bytes more.
    ///
    /// # Panics
    /// If they haven't in time.
    pub fn goes_on(&self, more_bytes: u64, when: &str) {
        let begun = Instant::now();
        let before = [0, 1].map(|end| self.carried[end].load(Relaxed));
        wait::until_ok(PATIENCE, &format!("a connection to go on {when}"), || {
            let more = [0, 1].map(|end| self.carried[end].load(Relaxed) - before[end]);
            anyhow::ensure!(more.iter().all(|more| *more > more_bytes), "{more:?} bytes more");
            Ok(())
        })
        .unwrap();
        println!("{when}: {more_bytes} bytes each way took {:?}", begun.elapsed());
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}
