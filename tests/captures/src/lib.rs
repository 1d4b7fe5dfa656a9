//! How well devices are recognised, measured on captures of real ones.
//!
//! A folder of captures has one folder for each device, with `device-mac.txt`, which names its Ethernet address, and captures of
//! sessions in pcap's classic format. [`load`] reads them as a gateway would; [`measure`] judges what is made of them.
//! `cargo run --release -p anteroom-captures -- DIR` prints the tables.

mod flows;
pub mod measure;
pub mod random;
pub mod truth;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anteroom_controller_core::classify::Observation;
use anteroom_proto::inventory::{MAX_HINTS, most_of};
use anteroom_proto::mac::MacAddr;
use anteroom_sensor::{Look, Sensor, Sights, capture};

/// Where captures lie for tests: beside the repository, or where `ANTEROOM_TRAFFIC` says. None, said in a line, where they aren't there.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traffic");
    let folder = std::env::var_os("ANTEROOM_TRAFFIC").map_or(folder, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("passed over: there are no captures in {}", folder.display());
    None
}

/// One session of one device.
#[derive(Debug, Clone)]
pub struct Session {
    /// The device's kind: what its folder is called, without the number where there are two of a kind.
    pub kind: String,
    /// The device: its folder.
    pub device: String,
    /// The capture's name.
    pub capture: String,
    /// What a gateway would have seen.
    pub observation: Observation,
}

/// What a gateway would have seen of the stations in a capture, each by its Ethernet address.
///
/// # Errors
/// When the bytes are no capture of Ethernet.
pub fn observe(bytes: &[u8]) -> Result<BTreeMap<MacAddr, Observation>, capture::NoCapture> {
    let (mut sensor, mut sights) = (Sensor::new(), Sights::default());
    let mut seen: BTreeMap<MacAddr, Observation> = BTreeMap::new();
    let mut talks = flows::Talks::default();
    let at = |mac| Observation { mac: Some(mac), ..Observation::default() };
    for frame in capture::frames(bytes)? {
        sensor.frame(frame.bytes, None, Look::Further, &mut sights);
        for sight in sights.drain() {
            let mac = sight.who.mac;
            let observation = seen.entry(mac).or_insert_with(|| at(mac));
            // As much as gateways keep.
            let of_kind = observation.hints.iter().filter(|(kind, _)| *kind == sight.kind).count();
            if observation.hints.len() < MAX_HINTS && of_kind < most_of(sight.kind) {
                observation.add(sight.kind, &sight.value);
            }
        }
        talks.take(frame.bytes);
    }
    for talk in talks.answered() {
        seen.entry(talk.from).or_insert_with(|| at(talk.from)).uses.insert(talk.port);
        seen.entry(talk.to).or_insert_with(|| at(talk.to)).offers.insert(talk.port);
    }
    Ok(seen)
}

/// Reads all sessions of a folder, sorted.
///
/// # Errors
/// When something can't be read, or is no capture.
pub fn load(folder: &Path) -> io::Result<Vec<Session>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().join("device-mac.txt").is_file() {
            devices.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    devices.sort();
    let mut sessions = Vec::new();
    for device in &devices {
        let path = folder.join(device);
        let text = fs::read_to_string(path.join("device-mac.txt"))?;
        let mac: MacAddr = text.trim().parse().map_err(io::Error::other)?;
        let mut captures: Vec<_> =
            fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        captures.retain(|path| path.extension().is_some_and(|kind| kind == "pcap"));
        captures.sort();
        for path in captures {
            let mut seen = observe(&fs::read(&path)?).map_err(io::Error::other)?;
            let observation = seen
                .remove(&mac)
                .unwrap_or_else(|| Observation { mac: Some(mac), ..Observation::default() });
            let capture = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let kind = kind_of(device, &devices);
            sessions.push(Session { kind, device: device.clone(), capture, observation });
        }
    }
    Ok(sessions)
}

/// A device's kind: its folder's name, without a last 1 or 2 where there is another of it.
fn kind_of(device: &str, all: &[String]) -> String {
    let has = |name: String| all.contains(&name);
    let alone = device.strip_suffix(['1', '2']).filter(|stem| {
        let twin = if device.ends_with('1') { format!("{stem}2") } else { format!("{stem}1") };
        has(twin) || has((*stem).to_owned())
    });
    alone.unwrap_or(device).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_devices_of_a_kind_are_one_kind() {
        let all = ["Cam1", "Cam2", "Plug", "Plug2", "Kettle2", "HS100"].map(str::to_owned);
        let kinds: Vec<String> = all.iter().map(|device| kind_of(device, &all)).collect();
        assert_eq!(kinds, ["Cam", "Cam", "Plug", "Plug", "Kettle2", "HS100"]);
    }
}
