//! What the hospital's machines do: around the clock, day by day, and once.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::machines::calls_itself;
use crate::clinical::dicom::{self, Archive, RETRIEVE_PORT, STORE_PORT};
use crate::clinical::hl7::{self, Engine, Monitor};
use crate::clinical::study::Study;
use crate::hospital::{Hospital, Machine};
use crate::story::open_tcp;
use crate::topology::Host;

/// How long an answer may take on a machine that has a lot else to do.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often monitors and pumps report.
const EVERY: Duration = Duration::from_millis(300);
/// Where printers listen.
pub(super) const PRINT_PORT: u16 = 9100;
/// Where small web servers do.
pub(super) const WEB_PORT: u16 = 80;
/// Where time servers do.
const NTP_PORT: u16 = 123;

/// Who opens what to whom every day: each becomes a rule.
pub(super) const DAILY: [(&str, &str, u16); 7] = [
    ("ct-1", "pacs-1", STORE_PORT),
    ("ct-2", "pacs-1", STORE_PORT),
    ("pacs-1", "ct-1", RETRIEVE_PORT),
    ("pacs-1", "ct-2", RETRIEVE_PORT),
    ("pump-1", "drugs-1", WEB_PORT),
    ("pump-2", "drugs-1", WEB_PORT),
    ("pump-3", "drugs-1", WEB_PORT),
];

/// Who does, on one day only: each becomes a question.
pub(super) const ONCE: [(&str, &str, u16); 2] =
    [("ct-1", "printer-1", PRINT_PORT), ("ws-1", "pump-1", WEB_PORT)];

/// On which of [`super::DAYS`] people do what is daily, the first of them aside.
pub(super) const WORKDAYS: [usize; 3] = [2, 3, 4];

/// Who reports to the central station around the clock.
pub(super) const REPORTING: [&str; 6] =
    ["monitor-1", "monitor-2", "monitor-3", "pump-1", "pump-2", "pump-3"];

/// A server that answers each connection with the same words.
#[derive(Debug)]
struct Server {
    stop: Arc<AtomicBool>,
    host: Host,
    port: u16,
    accepting: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Server {
    fn start(host: &Host, port: u16, words: &'static str) -> Result<Self> {
        let listener = host.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let accepting = host.thread(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::spawn(move || answer(stream, words));
            }
        })?;
        Ok(Self { stop, host: host.clone(), port, accepting: Some(accepting) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let port = self.port;
        self.host.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()).ok();
        if let Some(thread) = self.accepting.take() {
            thread.join().ok();
        }
    }
}

fn answer(mut stream: TcpStream, words: &str) {
    let mut asked = [0; 512];
    stream.set_read_timeout(Some(PATIENCE)).ok();
    if stream.read(&mut asked).is_ok_and(|count| count > 0) {
        stream.write_all(words.as_bytes()).ok();
    }
}

/// Something is asked, and answered.
///
/// # Errors
/// If it isn't, within `limit`.
pub(super) fn ask(from: &Machine, to: SocketAddr, limit: Duration) -> Result<()> {
    let SocketAddr::V4(address) = to else { bail!("the lab has no IPv6") };
    let mut stream = open_tcp(&from.host, (*address.ip(), to.port()), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\nUser-Agent: lab\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    if answer.is_empty() {
        bail!("{} got no answer from {to}", from.plan.name);
    }
    Ok(())
}

/// A time server, for as long as its host is.
#[derive(Debug)]
struct Clock {
    stop: Arc<AtomicBool>,
}

impl Clock {
    fn start(host: &Host) -> Result<Self> {
        let socket = host.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, NTP_PORT)))??;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        host.thread(move || {
            let mut packet = [0; 48];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((48, from)) = socket.recv_from(&mut packet) {
                    // Version 4, mode server, stratum 2.
                    packet[..2].copy_from_slice(&[0x24, 2]);
                    socket.send_to(&packet, from).ok();
                }
            }
        })?;
        Ok(Self { stop })
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Asks for the time until there is an answer.
fn ask_the_time(from: &Machine, server: Ipv4Addr) -> Result<()> {
    let socket = from.host.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut packet = [0; 48];
    // Version 4, mode client.
    packet[0] = 0x23;
    for _ in 0..10 {
        socket.send_to(&packet, (server, NTP_PORT))?;
        if matches!(socket.recv(&mut packet), Ok(48)) && packet[0] & 7 == 4 {
            return Ok(());
        }
    }
    bail!("{} wasn't told the time", from.plan.name)
}

/// Asks the network for its settings, with the name that the device has and what it is (RFC 2131, DHCPINFORM).
fn inform(device: &Machine) -> Result<()> {
    let Some((name, kind)) = calls_itself(device.plan.name) else { return Ok(()) };
    let mac = device.host.mac("eth0")?;
    // Ethernet, broadcast answers, the address that it has.
    let mut message = vec![1, 1, 6, 0, 0, 0, 0, device.plan.last, 0, 0, 0x80, 0];
    message.extend(device.address().octets());
    message.resize(28, 0);
    message.extend(mac);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 8]);
    for (option, text) in [(12, name.as_str()), (60, kind)] {
        message.extend([option, u8::try_from(text.len())?]);
        message.extend(text.as_bytes());
    }
    message.extend([55, 3, 1, 3, 6, 255]);
    let socket = device.host.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68)))??;
    socket.set_broadcast(true)?;
    socket.send_to(&message, (Ipv4Addr::BROADCAST, 67))?;
    Ok(())
}

/// The hospital's programs and habits.
#[derive(Debug)]
pub(super) struct Habits {
    /// The central station.
    pub(super) central: Engine,
    reports: Vec<Monitor>,
    archives: Vec<(&'static str, Archive)>,
    _servers: Vec<Server>,
    _clock: Clock,
    days: u32,
}

impl Habits {
    /// Starts all programs; monitors and pumps begin to report.
    pub(super) fn start(hospital: &Hospital, directory: &Path, logs: &Path) -> Result<Self> {
        let archive = |name: &'static str, port| -> Result<(&'static str, Archive)> {
            let (host, log) = (&hospital.machine(name).host, logs.join(format!("{name}.log")));
            let directory = directory.join(format!("{name}-images"));
            Ok((name, Archive::start(&hospital.programs, host, port, &directory, &log)?))
        };
        let archives = vec![
            archive("pacs-1", STORE_PORT)?,
            archive("ct-1", RETRIEVE_PORT)?,
            archive("ct-2", RETRIEVE_PORT)?,
        ];
        let served = "HTTP/1.0 200 OK\r\nServer: drug-library\r\n\r\nnothing new\n";
        let page = "HTTP/1.0 200 OK\r\nServer: SpaceCom\r\n\r\nBattery 97 %\n";
        let on = |name: &str, port, words| Server::start(&hospital.machine(name).host, port, words);
        let mut servers =
            vec![on("drugs-1", WEB_PORT, served)?, on("printer-1", PRINT_PORT, "printed\n")?];
        for pump in ["pump-1", "pump-2", "pump-3"] {
            servers.push(on(pump, WEB_PORT, page)?);
        }
        let clock = Clock::start(&hospital.machine("clock-1").host)?;
        let central = Engine::start(&hospital.machine("central-1").host, hl7::PORT)?;
        let mut habits =
            Self { central, reports: vec![], archives, _servers: servers, _clock: clock, days: 0 };
        habits.report(hospital)?;
        Ok(habits)
    }

    /// Has monitors and pumps report from now on.
    pub(super) fn report(&mut self, hospital: &Hospital) -> Result<()> {
        let to = hospital.machine("central-1").at(hl7::PORT);
        let reports = REPORTING.map(|name| {
            let host = &hospital.machine(name).host;
            if name.starts_with("pump") {
                Monitor::start_with(host, to, EVERY, hl7::alarm)
            } else {
                Monitor::start(host, to, EVERY)
            }
        });
        self.reports = reports.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(())
    }

    /// Does once what is done daily.
    pub(super) fn day(&mut self, hospital: &Hospital) -> Result<()> {
        self.days += 1;
        let outbox = hospital.directory.join(format!("outbox/{}", self.days));
        let study = Study::write(&outbox, self.days, 2)?;
        for (_, archive) in &self.archives {
            archive.clear()?;
        }
        for device in hospital.devices() {
            inform(device)?;
            ask_the_time(device, hospital.machine("clock-1").address())?;
        }
        for (from, to, port) in DAILY {
            let (from, target) = (hospital.machine(from), hospital.machine(to));
            if let Some((_, archive)) = self.archives.iter().find(|(name, _)| *name == to) {
                let at = (target.address(), port);
                dicom::store(&hospital.programs, &from.host, at, &study, &archive.directory)?;
                archive.clear()?;
            } else {
                ask(from, target.at(port), PATIENCE)?;
            }
        }
        Ok(())
    }

    /// What nobody does day by day.
    pub(super) fn once(hospital: &Hospital) -> Result<()> {
        for (from, to, port) in ONCE {
            ask(hospital.machine(from), hospital.machine(to).at(port), PATIENCE)?;
        }
        Ok(())
    }

    /// How many messages of each of [`REPORTING`] were acknowledged so far.
    pub(super) fn acknowledged(&self) -> Vec<u64> {
        self.reports.iter().map(|report| report.count().acknowledged).collect()
    }

    /// Waits until one of [`REPORTING`], by its place, got one more message acknowledged.
    pub(super) fn one_more(&self, place: usize) -> Result<u64> {
        let count = || self.reports.get(place).map(|report| report.count().acknowledged);
        let before = count().context("nobody reports there")?;
        crate::wait::until(PATIENCE, &format!("another message of {}", REPORTING[place]), || {
            count().filter(|now| *now > before)
        })
        .map_err(Into::into)
    }

    /// Ends the reports: how many were sent, and how many never arrived.
    pub(super) fn finish(&mut self) -> (u64, u64) {
        let counts = self.reports.drain(..).map(|report| report.finish(&self.central, PATIENCE));
        counts.fold((0, 0), |(sent, lost), count| (sent + count.sent, lost + count.lost))
    }
}
