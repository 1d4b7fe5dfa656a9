//! What arrives at a controller of what devices let be seen is what the parsers alone read of the same frames; and reading changes
//! no frame. Captures of real devices, through a real gateway that reports to a real controller.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anteroom::home::Home;
use anteroom::remote::Remote;
use anteroom_e2e::replay::{DEVICE, Sided, capture_files, captures, ends, read, rename, sides};
use anteroom_e2e::wire::{End, Way, carry};
use anteroom_e2e::{Stage, fixture};
use anteroom_lab::hospital::Hospital;
use anteroom_lab::story::approve_all;
use anteroom_lab::wait;
use anteroom_proto::api::HintsQuery;
use anteroom_proto::inventory::HintKind;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::time::UnixMillis;
use anteroom_sensor::{Collector, Gate, Sensor, Sights, sender, source};
use serde_json::Value;

/// How long anything may take on a machine that has a lot else to do.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long the sensor has to read what it lets through. Where it takes longer, it doesn't get to it at all.
const A_WHILE: Duration = Duration::from_secs(20);
/// Most frames under way at once: few enough that the sensor passes none over.
const WINDOW: usize = 32;
/// The gateway that carries them, and its device's interface.
const GATEWAY: &str = "imaging";
/// As much of a frame as a gateway copies.
const SNAP: usize = 2048;

/// Of whom what was seen.
type Seen = BTreeSet<(MacAddr, HintKind, String)>;

/// The parsers alone, with the gate before them and the collector behind them, for a port that only this test's frames pass.
struct Alone {
    gate: Gate,
    sensor: Sensor,
    sights: Sights,
    collector: Collector,
    frames: u32,
    /// Frames that the gate let through.
    through: u64,
}

impl Alone {
    fn new() -> Self {
        Self {
            gate: Gate::new(1),
            sensor: Sensor::new(),
            sights: Sights::default(),
            collector: Collector::new(256),
            frames: 0,
            through: 0,
        }
    }

    fn read(&mut self, (way, frame): &Sided) {
        let arrived = *way == Way::Out;
        self.frames += 1;
        let way = anteroom_sensor::Way { port: 0, arrived };
        // Never so many in a second that any would be passed over.
        let Some(look) = self.gate.look(frame, way, self.frames * 20) else { return };
        self.through += 1;
        let frame = &frame[..frame.len().min(SNAP)];
        self.sensor.frame(frame, None, look, &mut self.sights);
        if let Some(who) = sender(frame, None).filter(|_| arrived) {
            self.collector.heard(who, source(frame), UnixMillis(1));
        }
        for sight in self.sights.drain() {
            self.collector.note(sight, UnixMillis(1));
        }
    }

    fn seen(&mut self) -> Seen {
        let news = self.collector.take_news(usize::MAX).into_iter();
        news.flat_map(|(who, hints)| hints.into_iter().map(move |h| (who.mac, h.kind, h.value)))
            .collect()
    }
}

/// What the controller keeps.
fn kept(hospital: &Hospital) -> anyhow::Result<Seen> {
    hospital.operator.host.enter(|| {
        let mut remote = Remote::open(&Home::locate(Some(&hospital.operator.home))?)?;
        let (mut seen, mut query) = (Seen::new(), HintsQuery::default());
        while let Some(page) = remote.hints_page(&query)? {
            seen.extend(page.hints.into_iter().map(|hint| (hint.mac, hint.kind, hint.value)));
            query.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        Ok(seen)
    })?
}

/// What the gateway says of its sensor: frames that it has read, and that it has passed over.
fn sensor(hospital: &Hospital) -> anyhow::Result<(u64, u64)> {
    let status = hospital.gateways[GATEWAY].status()?;
    let sensor = &status["data_plane"]["sensor"];
    let count = |key: &str| sensor[key].as_u64().ok_or_else(|| anyhow::anyhow!("{status}"));
    Ok((count("read")?, count("passed_over")?))
}

/// Restarts the agent, so that nothing is known of earlier frames, and waits until it carries them and reports.
fn anew(hospital: &mut Hospital, ends: (&mut End, &mut End)) {
    let gateway = hospital.gateway(GATEWAY);
    gateway.stop().unwrap();
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
    wait_until_it_carries(hospital, ends);
}

fn wait_until_it_carries(hospital: &Hospital, (port, uplink): (&mut End, &mut End)) {
    let probe = [&[0xff; 6][..], &DEVICE, &[0x88, 0xb5], &[0x77; 46]].concat();
    wait::until_ok(PATIENCE, "frames to pass the gateway", || {
        port.send(&probe)?;
        uplink.listen(Duration::from_millis(50))?;
        anyhow::ensure!(uplink.take().contains(&probe), "{:?}", hospital.gateways[GATEWAY].tail());
        let status = hospital.gateways[GATEWAY].status()?;
        anyhow::ensure!(status["data_plane"]["sensor"] != Value::Null, "{status}");
        Ok(())
    })
    .unwrap();
    // What is late of the probes is none of a capture's frames: their Ethernet type isn't counted below.
}

fn is_probe(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x88, 0xb5])
}

fn replay(test: &str, captures_of: impl Fn(&Path) -> Vec<std::path::PathBuf>, most: usize) {
    let Some(mut fixture) = fixture(test, Stage::Built) else { return };
    let Some(folder) = captures() else {
        eprintln!(
            "skipped {test}: no captures in ../shared/traffic (the repository doesn't bring them)"
        );
        return;
    };
    let hospital = &mut fixture.hospital;
    // Captures of one host with itself have frames as large as may be.
    let ct = hospital.machine("ct-1").host.clone();
    let gateway = hospital.gateways[GATEWAY].host.clone();
    for (host, interface) in
        [(&ct, "eth0"), (&gateway, "port1"), (&gateway, "uplink"), (&hospital.campus, "u-imaging")]
    {
        host.ip(&format!("link set {interface} mtu 65535")).unwrap();
    }
    hospital.start_anteroom().unwrap();
    approve_all(hospital).unwrap();
    // The test speaks for the CT, whose own kernel is to be silent.
    ct.ip("address flush dev eth0").unwrap();
    ct.ip("link set eth0 arp off").unwrap();
    let mut port = End::open(&ct, "eth0").unwrap();
    let mut uplink = End::open(&hospital.campus, "u-imaging").unwrap();
    wait_until_it_carries(hospital, (&mut port, &mut uplink));

    let mut alone = Alone::new();
    let (mut wanted, mut run, mut frames, mut through) = (Seen::new(), 0, 0, 0);
    let (mut window, mut tries) = (WINDOW, 0);
    let files = captures_of(&folder);
    for file in &files {
        let mut capture = read(file);
        capture.truncate(most);
        let (first, second) = ends(&capture);
        // Each end of the conversation is the device once.
        for device in [first, second] {
            let sided = sides(capture.clone(), device);
            loop {
                run += 1;
                let ways = sided.iter().map(|(way, _)| *way);
                let bytes = sided.iter().map(|(_, frame)| frame.clone()).collect();
                let sided: Vec<Sided> = ways.zip(rename(bytes, run)).collect();
                let macs: BTreeSet<[u8; 6]> =
                    sided.iter().map(|(_, frame)| frame[6..12].try_into().unwrap()).collect();
                let (before, passed_over) = sensor(hospital).unwrap();
                let begun = alone.through;
                let mut was_read = true;
                for part in sided.chunks(window) {
                    // An answer goes in once what it answers is out, as on any network.
                    for part in part.chunk_by(|a, b| a.0 == b.0) {
                        let lent: Vec<(Way, &[u8])> =
                            part.iter().map(|(way, frame)| (*way, &frame[..])).collect();
                        let ours = |frame: &[u8]| macs.contains(&frame[6..12]) && !is_probe(frame);
                        carry(&mut port, &mut uplink, &lent, ours)
                            .unwrap_or_else(|error| panic!("{}: {error:#}", file.display()));
                    }
                    part.iter().for_each(|frame| alone.read(frame));
                    let all = alone.through - begun;
                    was_read = wait::until(A_WHILE, "the sensor to have read them", || {
                        let now = sensor(hospital).ok()?;
                        (now.0 + now.1 >= before + passed_over + all).then_some(())
                    })
                    .is_ok();
                    if !was_read {
                        break;
                    }
                }
                let seen = alone.seen();
                if was_read && sensor(hospital).unwrap().1 == passed_over {
                    frames += sided.len();
                    through += alone.through - begun;
                    wanted.extend(seen);
                    break;
                }
                // This machine is too slow: the sensor passed frames over, or the kernel carried some for the agent.
                tries += 1;
                assert!(tries < 20, "the sensor doesn't get to read {}", file.display());
                window = (window / 2).max(1);
                anew(hospital, (&mut port, &mut uplink));
                alone = Alone::new();
            }
        }
    }
    let devices: BTreeSet<MacAddr> = wanted.iter().map(|(mac, ..)| *mac).collect();
    let of_ours = |seen: Seen| -> Seen {
        seen.into_iter().filter(|(mac, ..)| devices.contains(mac)).collect()
    };
    let seen = wait::until_ok(PATIENCE, "the hints to be at the controller", || {
        let seen = kept(hospital)?;
        let missing: Vec<_> = wanted.difference(&seen).collect();
        anyhow::ensure!(missing.is_empty(), "{} are missing: {missing:?}", missing.len());
        Ok(of_ours(seen))
    })
    .unwrap();
    let more: Vec<_> = seen.difference(&wanted).collect();
    assert!(more.is_empty(), "nobody showed {more:?}");
    println!(
        "{} captures: {frames} frames all alike, {through} of them read; {} hints of {} devices; {tries} tries more",
        files.len(),
        wanted.len(),
        devices.len()
    );
    assert!(wanted.len() > 60, "{wanted:?}");
}

#[test]
fn hints_at_the_controller_are_what_the_parsers_alone_read() {
    let test = "hints_at_the_controller_are_what_the_parsers_alone_read";
    let some = |folder: &Path| {
        let is_of_homes =
            |path: &Path| path.components().any(|part| part.as_os_str() == "iot-setup");
        let (homes, others): (Vec<_>, Vec<_>) =
            capture_files(folder, 1).into_iter().partition(|path| is_of_homes(path));
        others.into_iter().chain(homes.into_iter().step_by(6)).collect()
    };
    replay(test, some, 200);
}

/// Of each device one session, whole: `cargo test -p anteroom-e2e --test hints -- --ignored`.
#[test]
#[ignore = "takes some minutes"]
fn hints_of_whole_captures_are_what_the_parsers_alone_read() {
    let test = "hints_of_whole_captures_are_what_the_parsers_alone_read";
    replay(test, |folder| capture_files(folder, 1), 20_000);
}
