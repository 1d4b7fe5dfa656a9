//! Turns of a flood of handshakes within one long transfer: what the machine does otherwise falls on neighbouring turns alike.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anteroom_e2e::talk;
use anteroom_lab::hospital::{Hospital, Machine};

use super::{Kinds, Paced, flooded};

/// How long a turn is, and how much of its beginning isn't counted: TCP finds its new pace.
const TURN: Duration = Duration::from_secs(2);
const SETTLES: Duration = Duration::from_millis(400);
/// Floods of each kind.
const ROUNDS: usize = 12;
/// Initiations a second.
const RATE: u64 = 100_000;

/// A transfer that goes on until it is dropped.
struct Transfer {
    received: Arc<AtomicU64>,
    near: TcpStream,
    ends: Vec<JoinHandle<()>>,
}

impl Transfer {
    fn start(from: &Machine, to: &Machine) -> Self {
        let at = to.at(talk::PORT);
        let listener = to.host.enter(|| TcpListener::bind(at)).unwrap().unwrap();
        let connect = || TcpStream::connect_timeout(&at, talk::PATIENCE);
        let near = from.host.enter(connect).unwrap().unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let (received, mut mouth) = (Arc::new(AtomicU64::new(0)), near.try_clone().unwrap());
        let counter = received.clone();
        let says = std::thread::spawn(move || {
            let piece = vec![0x5a; 128 << 10];
            while mouth.write_all(&piece).is_ok() {}
        });
        let hears = std::thread::spawn(move || {
            let mut piece = vec![0; 128 << 10];
            while let Ok(length @ 1..) = far.read(&mut piece) {
                counter.fetch_add(length as u64, Relaxed);
            }
        });
        Self { received, near, ends: vec![says, hears] }
    }

    /// Bytes a second in a turn, and processor time of a gateway for each byte.
    fn turn(&self, hospital: &mut Hospital) -> (f64, f64) {
        std::thread::sleep(SETTLES);
        let mut used = || {
            let process = hospital.gateway("imaging").process().unwrap();
            process.processor_time().unwrap().as_secs_f64()
        };
        let (begun, bytes, before) = (Instant::now(), self.received.load(Relaxed), used());
        std::thread::sleep(TURN - SETTLES);
        let bytes = self.received.load(Relaxed) - bytes;
        let (took, used) = (begun.elapsed().as_secs_f64(), used() - before);
        assert!(bytes > 0, "the transfer stands still");
        (bytes as f64 / took, used / bytes as f64)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let _ = self.near.shutdown(Shutdown::Both);
        for end in self.ends.drain(..) {
            let _ = end.join();
        }
    }
}

/// The median, and between what half of all are.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    format!("{:.3} ({:.3} to {:.3})", at(0.5), at(0.25), at(0.75))
}

/// What a flood of initiations takes of a transfer's rate, and adds to its cost, by turns with none:
/// `cargo test -p anteroom-e2e --test floods -- --ignored --nocapture turns_of`. `ANTEROOM_AGENT` names another build of the agent.
#[test]
#[ignore = "measures"]
fn what_turns_of_initiations_take_of_a_transfer() {
    let test = "turns::what_turns_of_initiations_take_of_a_transfer";
    let Some((mut fixture, Kinds(kinds))) = flooded(test) else { return };
    let hospital = &mut fixture.hospital;
    let campus = hospital.campus.clone();
    let (ct, pacs) = (hospital.machine("ct-1").clone(), hospital.machine("pacs-1").clone());
    let transfer = Transfer::start(&ct, &pacs);
    let mut without = transfer.turn(hospital);
    let mut told: Vec<_> = kinds.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    let (mut rates, mut sent) = (vec![without.0], Vec::new());
    for _ in 0..ROUNDS {
        for ((_, frames), told) in kinds.iter().zip(&mut told) {
            let flood = Paced::start(&campus, "u-imaging", frames.clone(), RATE, None);
            let with = transfer.turn(hospital);
            sent.push(flood.stop());
            let after = transfer.turn(hospital);
            told[0].push(2.0 * with.0 / (without.0 + after.0));
            told[1].push(2.0 * with.1 / (without.1 + after.1));
            rates.push(after.0);
            without = after;
        }
    }
    drop(transfer);
    let rates = rates.into_iter().map(|rate| rate * 8e-9).collect();
    println!("without: {} Gb/s; {} initiations a second otherwise", spread(rates), spread(sent));
    let shut = told[0][0].clone();
    for ((what, _), [rate, cost]) in kinds.iter().zip(told) {
        let beside = rate.iter().zip(&shut).map(|(rate, shut)| rate / shut).collect();
        println!(
            "{what}: rate {}, of that at a port that is shut {}; cost of a byte {}",
            spread(rate),
            spread(beside),
            spread(cost)
        );
    }
}
