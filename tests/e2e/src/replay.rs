//! Captures of real traffic, made fit to go through a gateway.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anteroom_sensor::capture;

use crate::wire::Way;

/// The Ethernet address of a device in made-up traffic.
pub const DEVICE: [u8; 6] = [0x00, 0x1b, 0x21, 0, 0xde, 0x01];
/// That of someone on the network.
pub const OTHER: [u8; 6] = [0x00, 0x1b, 0x21, 0, 0xcc, 0x01];

/// A frame, and the end that it goes in at.
pub type Sided = (Way, Vec<u8>);

/// Where captures of real devices lie beside the repository, if they do: it doesn't bring them.
#[must_use]
pub fn captures() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traffic");
    folder.is_dir().then_some(folder)
}

/// Every capture, the smaller names first.
#[must_use]
pub fn capture_files(folder: &Path, per_type: usize) -> Vec<PathBuf> {
    let list = |directory: &Path| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let is_capture = |path: &PathBuf| path.extension().is_some_and(|end| end == "pcap");
    let mut files = Vec::new();
    for directory in list(folder).into_iter().filter(|path| path.is_dir()) {
        files.extend(list(&directory).into_iter().filter(is_capture));
        for kind in list(&directory).into_iter().filter(|path| path.is_dir()) {
            files.extend(list(&kind).into_iter().filter(is_capture).take(per_type));
        }
    }
    files
}

/// The frames of a capture in libpcap's first format, of Ethernet.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn read(file: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let frames = capture::frames(&bytes);
    let frames = frames.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    frames.map(|frame| frame.bytes.to_vec()).collect()
}

/// Gives each frame a side: what the device sends goes out, what is for it or for a group comes in. A capture of one host
/// with itself bears no Ethernet addresses; there the lower port number is the device's.
#[must_use]
pub fn sides(frames: Vec<Vec<u8>>, device: [u8; 6]) -> Vec<Sided> {
    let mut sided = Vec::new();
    for mut frame in frames.into_iter().filter(|frame| frame.len() >= 14) {
        if frame[..12] == [0; 12] {
            let port =
                |at: usize| frame.get(at..at + 2).map_or(0, |p| u16::from_be_bytes([p[0], p[1]]));
            let out = port(34) <= port(36);
            let (to, from) = if out { (OTHER, DEVICE) } else { (DEVICE, OTHER) };
            frame[..6].copy_from_slice(&to);
            frame[6..12].copy_from_slice(&from);
            sided.push((if out { Way::Out } else { Way::In }, frame));
        } else if frame[6..12] == device {
            if frame[..6] != device {
                sided.push((Way::Out, frame));
            }
        } else if frame[..6] == device || frame[0] & 1 == 1 {
            sided.push((Way::In, frame));
        }
    }
    sided
}

/// Who sends most, and who is sent most by them.
#[must_use]
pub fn ends(frames: &[Vec<u8>]) -> ([u8; 6], [u8; 6]) {
    let count = |of: &dyn Fn(&[u8]) -> Option<[u8; 6]>| {
        let mut counts: BTreeMap<[u8; 6], usize> = BTreeMap::new();
        for frame in frames.iter().filter(|frame| frame.len() >= 14) {
            if let Some(mac) = of(frame) {
                *counts.entry(mac).or_default() += 1;
            }
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map_or([0; 6], |(mac, _)| mac)
    };
    let source = |frame: &[u8]| -> [u8; 6] { frame[6..12].try_into().unwrap() };
    let first = count(&|frame| Some(source(frame)));
    let second = count(&|frame| {
        let to: [u8; 6] = frame[..6].try_into().unwrap();
        (source(frame) == first && to[0] & 1 == 0 && to != first).then_some(to)
    });
    (first, second)
}

/// An Ethernet address that only the run of this number has: to the gateway, no machine moves from side to side.
#[must_use]
pub fn renamed(mac: [u8; 6], run: u16) -> [u8; 6] {
    if mac[0] & 1 == 1 || mac == [0; 6] {
        return mac;
    }
    let [high, low] = run.to_be_bytes();
    [mac[0] ^ 0x40, mac[1] ^ high, mac[2] ^ low, mac[3], mac[4], mac[5]]
}

/// The frames of a run, by addresses that only this run has.
#[must_use]
pub fn rename(mut frames: Vec<Vec<u8>>, run: u16) -> Vec<Vec<u8>> {
    for frame in &mut frames {
        for at in [0, 6] {
            if let Some(mac) = frame.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<6>()) {
                *mac = renamed(*mac, run);
            }
        }
    }
    frames
}
