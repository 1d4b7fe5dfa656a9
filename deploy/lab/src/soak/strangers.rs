//! Who speaks without being allowed to, without end; and ears where nothing of it may be heard.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use memchr::memmem::Finder;

use super::endless;
use crate::hospital::{GATEWAYS, Hospital, Socket, address};
use crate::packet::{PacketSocket, checksum};
use crate::topology::Host;

/// In all that comes from outside: no device may hear it.
const OUTSIDE: &[u8; 24] = b"OUTSIDE^ANTEROOM^SOAK^01";
/// In all that a device says against the rules: no other device may hear it, nor the campus.
const INSIDE: &[u8; 24] = b"INSIDE^ANTEROOM^SOAK^001";
/// Who says what comes from outside.
const STRANGER: &str = "a stranger";
/// In each message of the monitor.
const MESSAGE: &[u8] = b"|MONITOR-1|";
/// How long a stranger may take to say something, on a machine with a lot else to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two rounds of each stranger.
const EVERY: Duration = Duration::from_millis(50);
/// Ports that some rule opens for somebody, and one that none does.
const PORTS: [u16; 4] = [104, 11_112, 2_575, 9];

/// What one listener must not hear.
#[derive(Debug)]
struct Ear {
    place: String,
    frames: Arc<AtomicU64>,
    /// How often each of `words` was heard.
    heard: Vec<(&'static str, Arc<AtomicU64>)>,
    /// Says in the end how many frames came too fast to be looked at.
    thread: JoinHandle<Result<std::io::Result<u32>>>,
}

/// What was tried, and arrived nowhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vain {
    /// Packets that were sent.
    pub(super) sent: u64,
    /// Frames that were looked at where none of these may come, and that came too fast for that.
    frames: u64,
    missed: u64,
}

impl fmt::Display for Vain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, frames, missed } = self;
        write!(
            f,
            "0 of {sent} forbidden packets arrived; {frames} frames looked at, {missed} missed"
        )
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Strangers {
    stop: Arc<AtomicBool>,
    ears: Vec<Ear>,
    /// Hears the strangers, to prove that they speak and that ears hear.
    campus: Ear,
    mouths: Vec<Mouth>,
}

/// Who speaks, and how often so far.
#[derive(Debug)]
struct Mouth {
    name: String,
    word: &'static [u8],
    /// Where what they say comes in: a host's interface.
    at: (Host, String),
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Result<std::io::Result<()>>>,
}

impl Strangers {
    /// Starts them.
    pub(super) fn start(hospital: &Hospital) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut ears = Vec::new();
        for device in hospital.devices() {
            let ear = device.host.enter(|| PacketSocket::open_on("eth0", 3))??;
            let words: [(_, &'static [u8]); 2] =
                [(STRANGER, OUTSIDE), ("a device that may not", INSIDE)];
            ears.push(Ear::listen(device.plan.name, &device.host, ear, &words, &stop)?);
        }
        let ear = hospital.campus.enter(|| PacketSocket::open(0, 3))??;
        let words: [(_, &'static [u8]); 4] = [
            ("the endless connection", endless::MARK),
            ("a message of the monitor", MESSAGE),
            ("a device that may not", INSIDE),
            (STRANGER, OUTSIDE),
        ];
        let campus = Ear::listen("the campus", &hospital.campus, ear, &words, &stop)?;
        let mut mouths = Vec::new();
        let devices: Vec<Ipv4Addr> = hospital.device_addresses();
        for (name, word) in [("hvac-1", OUTSIDE), ("pump-1", INSIDE), ("mri-1", INSIDE)] {
            let own = hospital.machine(name).address();
            let at = match hospital.machine(name).plan.socket {
                Socket::Gateway(gateway, port) => {
                    (hospital.gateways[gateway].host.clone(), port.to_owned())
                }
                Socket::Campus => (hospital.campus.clone(), format!("p-{name}")),
            };
            let to: Vec<Ipv4Addr> =
                devices.iter().copied().filter(|address| *address != own).collect();
            // The MRI may speak DICOM to the PACS, by TCP; this is UDP.
            let host = &hospital.machine(name).host;
            let sent = Arc::new(AtomicU64::new(0));
            let (ended, count) = (stop.clone(), sent.clone());
            let thread = host.thread(move || speak(&to, word, &ended, &count))?;
            mouths.push(Mouth { name: name.into(), word, at, sent, thread });
        }
        for subnet in GATEWAYS {
            let intruder = &hospital.machine("intruder").host;
            let own = intruder.mac(subnet)?;
            let mut frames = vec![[&[0xff; 6][..], &own, &[0x88, 0xb5], OUTSIDE].concat()];
            let pacs = hospital.machine("pacs-1");
            for device in hospital.devices().filter(|device| device.plan.subnet == subnet) {
                let mac = device.host.mac("eth0")?;
                for from in [address(subnet, 66), pacs.address()] {
                    for port in PORTS {
                        let to = (device.address(), port);
                        frames.push(forged((own, (from, port)), (mac, to), OUTSIDE));
                    }
                }
            }
            let socket = intruder.enter(|| PacketSocket::open_on(subnet, 0))??;
            let sent = Arc::new(AtomicU64::new(0));
            let (ended, count) = (stop.clone(), sent.clone());
            let thread = intruder.thread(move || {
                while !ended.load(Relaxed) {
                    // What can't be sent now comes again.
                    let sent = frames.iter().filter(|frame| socket.send(frame).is_ok()).count();
                    count.fetch_add(sent as u64, Relaxed);
                    std::thread::sleep(EVERY);
                }
                Ok(())
            })?;
            let name = format!("the intruder in {subnet}");
            let at = (hospital.campus.clone(), format!("x-{subnet}"));
            mouths.push(Mouth { name, word: OUTSIDE, at, sent, thread });
        }
        let strangers = Self { stop, ears, campus, mouths };
        strangers.all_speak()?;
        Ok(strangers)
    }

    /// Waits until each has said something that left their machine: that nobody heard it would prove nothing otherwise.
    fn all_speak(&self) -> Result<()> {
        let mut buffer = vec![0; 70_000];
        for Mouth { name, word, at: (host, interface), .. } in &self.mouths {
            let socket = host.enter(|| PacketSocket::open_on(interface, 3))??;
            let finder = Finder::new(*word);
            crate::wait::until_ok(PATIENCE, &format!("{name} to speak"), || {
                let length = socket.receive(&mut buffer, Duration::from_millis(50))?;
                let frame = length.and_then(|length| buffer.get(..length)).unwrap_or_default();
                ensure!(finder.find(frame).is_some(), "nothing of them came in at {interface}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// An error if anything was heard that must not be.
    pub(super) fn found_nothing(&self) -> Result<()> {
        for ear in &self.ears {
            for (who, count) in &ear.heard {
                let count = count.load(Relaxed);
                ensure!(count == 0, "{} heard {who}, {count} times", ear.place);
            }
        }
        for (who, count) in self.campus.heard.iter().filter(|(who, _)| *who != STRANGER) {
            let count = count.load(Relaxed);
            ensure!(count == 0, "{who} can be read on the campus: {count} frames");
        }
        Ok(())
    }

    /// Ends all, and says what was tried in vain.
    pub(super) fn end(mut self) -> Result<Vain> {
        self.all_speak()?;
        self.stop.store(true, Relaxed);
        let mut sent = 0;
        for Mouth { name, sent: of_one, thread, .. } in std::mem::take(&mut self.mouths) {
            let ended = thread.join();
            ended
                .map_err(|_| anyhow::anyhow!("{name}'s thread panicked"))??
                .context(name.clone())?;
            let of_one = of_one.load(Relaxed);
            ensure!(of_one > 0, "{name} sent nothing, so that nobody heard it proves nothing");
            sent += of_one;
        }
        self.found_nothing()?;
        let of_strangers = self.campus.heard.iter().find(|(who, _)| *who == STRANGER);
        if of_strangers.is_none_or(|(_, count)| count.load(Relaxed) == 0) {
            bail!("the campus didn't hear the strangers either: that nobody did proves nothing");
        }
        let (mut frames, mut missed) = (0, 0);
        for ear in self.ears.into_iter().chain([self.campus]) {
            frames += ear.frames.load(Relaxed);
            let ended =
                ear.thread.join().map_err(|_| anyhow::anyhow!("an ear's thread panicked"))?;
            missed += u64::from(ended?.context(ear.place)?);
        }
        Ok(Vain { sent, frames, missed })
    }
}

impl Ear {
    fn listen(
        place: &str,
        host: &Host,
        socket: PacketSocket,
        words: &[(&'static str, &'static [u8])],
        stop: &Arc<AtomicBool>,
    ) -> Result<Self> {
        let heard: Vec<(&str, Arc<AtomicU64>)> =
            words.iter().map(|(who, _)| (*who, Arc::new(AtomicU64::new(0)))).collect();
        let frames = Arc::new(AtomicU64::new(0));
        let finders: Vec<(Finder<'_>, Arc<AtomicU64>)> = words
            .iter()
            .zip(&heard)
            .map(|((_, word), (_, count))| (Finder::new(*word), count.clone()))
            .collect();
        let (counting, ended) = (frames.clone(), stop.clone());
        let thread = host.thread(move || {
            let mut buffer = vec![0; 70_000];
            while !ended.load(Relaxed) {
                let length = match socket.receive(&mut buffer, Duration::from_millis(50)) {
                    // A dead cable has nothing to say.
                    Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => None,
                    other => other?,
                };
                let Some(frame) = length.and_then(|length| buffer.get(..length)) else { continue };
                counting.fetch_add(1, Relaxed);
                for (finder, count) in &finders {
                    if finder.find(frame).is_some() {
                        count.fetch_add(1, Relaxed);
                    }
                }
            }
            socket.missed()
        })?;
        Ok(Self { place: place.into(), frames, heard, thread })
    }
}

/// Sends the word to everyone, by UDP, for ever.
fn speak(
    to: &[Ipv4Addr],
    word: &[u8],
    ended: &AtomicBool,
    count: &AtomicU64,
) -> std::io::Result<()> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let socket = UdpSocket::bind(any)?;
    while !ended.load(Relaxed) {
        for address in to {
            for port in PORTS {
                // Refusals are what is expected.
                let sent = socket.send_to(word, (*address, port));
                count.fetch_add(u64::from(sent.is_ok()), Relaxed);
            }
        }
        std::thread::sleep(EVERY);
    }
    Ok(())
}

/// A UDP packet whose sender may be anybody.
pub(super) fn forged(
    from: ([u8; 6], (Ipv4Addr, u16)),
    to: ([u8; 6], (Ipv4Addr, u16)),
    payload: &[u8],
) -> Vec<u8> {
    let ((from, (source, near)), (to, (target, far))) = (from, to);
    let length = u16::try_from(20 + 8 + payload.len()).unwrap_or(0);
    let mut header =
        [&[0x45, 0][..], &length.to_be_bytes(), &[0, 0, 0x40, 0, 64, 17, 0, 0]].concat();
    header.extend(source.octets());
    header.extend(target.octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    // A sum of 0 is none.
    let udp = [near.to_be_bytes(), far.to_be_bytes(), (length - 20).to_be_bytes(), [0, 0]].concat();
    [&to[..], &from, &[0x08, 0x00], &header, &udp, payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_packet_is_whole() {
        let ends = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let frame = forged(([2; 6], (ends.0, 7)), ([4; 6], (ends.1, 104)), OUTSIDE);
        assert_eq!(frame.len(), 14 + 20 + 8 + OUTSIDE.len());
        assert_eq!(checksum(&frame[14..34]), 0, "the header's sum holds");
        assert!(frame.ends_with(OUTSIDE) && frame.starts_with(&[4; 6]));
        assert_eq!(frame[34..40], [0, 7, 0, 104, 0, 32]);
    }
}
