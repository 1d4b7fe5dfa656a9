//! One DICOM association that stays open for hours, as some modalities keep theirs: pictures are stored over it one
//! after the other, and it is never made anew. Written by hand (PS3.7, PS3.8), since the programs that others wrote end
//! theirs with each transfer; what answers is one of those.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::study::data_set;
use crate::topology::Host;

/// How long an answer may take. Shorter than any modality's own patience, and longer than a move of paths.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest PDU that is taken.
const MAX_PDU: u32 = 64 * 1024;

/// Bytes of one picture: more than fit one PDU, and many packets.
const PICTURE: usize = 24 * 1024;

/// Most bytes of a data set in one PDU.
const PART: usize = 12 * 1024;

/// "Secondary Capture Image Storage".
const CAPTURE: &str = "1.2.840.10008.5.1.4.1.1.7";

/// "Implicit VR Little Endian".
const IMPLICIT: &str = "1.2.840.10008.1.2";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an association has come to.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Pictures whose storing was acknowledged as a success.
    pub stored: u32,
    /// The slowest acknowledgement.
    pub slowest: Duration,
    /// Why it ended before it was asked to.
    pub broken: Option<String>,
}

/// A modality that stores one picture after the other over one association.
#[derive(Debug)]
pub struct Association {
    number: u32,
    progress: Arc<Mutex<Progress>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Association {
    /// Opens one from a host, and begins to store. `number` tells the pictures of several apart.
    ///
    /// # Errors
    /// If it isn't accepted.
    pub fn open(host: &Host, to: SocketAddr, number: u32, every: Duration) -> Result<Self> {
        let mut link = host.enter(|| Link::open(to))??;
        let progress = Arc::new(Mutex::new(Progress::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, ended) = (progress.clone(), stop.clone());
        let thread = host.thread(move || {
            if let Err(error) = link.store_on(number, every, &shared, &ended) {
                lock(&shared).broken = Some(format!("{error:#}"));
                link.stream.shutdown(Shutdown::Both).ok();
            }
        })?;
        Ok(Self { number, progress, stop, thread: Some(thread) })
    }

    /// What it has come to so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// Ends it as the standard says, and compares with what lies in `directory`, byte by byte.
    ///
    /// # Errors
    /// If it had broken, the other end doesn't release it, or a picture that was acknowledged isn't there as it was.
    pub fn finish(mut self, directory: &Path) -> Result<Progress> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        let progress = self.progress();
        if let Some(why) = &progress.broken {
            bail!("the association broke after {} pictures: {why}", progress.stored);
        }
        let mut there = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            there.push(data_set(&entry?.path())?);
        }
        for picture in 0..progress.stored {
            let pixels = pixels(self.number, picture);
            let same = there.iter().filter(|data| data.ends_with(&pixels)).count();
            ensure!(same == 1, "picture {picture} of {} lies there {same} times", progress.stored);
        }
        ensure!(there.len() == progress.stored as usize, "{} lie there", there.len());
        Ok(progress)
    }
}

impl Drop for Association {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The element with the pixels of a picture: bytes that are the same in no two pictures.
fn pixels(number: u32, picture: u32) -> Vec<u8> {
    let mut state = u64::from(number) << 32 | u64::from(picture);
    let bytes: Vec<u8> = (0..PICTURE / 8)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.rotate_left(29).to_le_bytes()
        })
        .collect();
    element(0x7fe0, 0x0010, &bytes)
}

/// An element in Implicit VR Little Endian.
fn element(group: u16, tag: u16, value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes();
    [&group.to_le_bytes()[..], &tag.to_le_bytes(), &length, value].concat()
}

/// A text of even length, as all values are.
fn even(text: &str, pad: u8) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(pad);
    }
    bytes
}

fn instance(number: u32, picture: u32) -> String {
    format!("2.25.4712{number:06}.{}", picture + 1)
}

fn picture_data(number: u32, picture: u32) -> Vec<u8> {
    let word = |value: u16| value.to_le_bytes();
    [
        element(0x0008, 0x0016, &even(CAPTURE, 0)),
        element(0x0008, 0x0018, &even(&instance(number, picture), 0)),
        element(0x0008, 0x0060, b"OT"),
        element(0x0010, 0x0010, b"PHANTOM^ANTEROOM"),
        element(0x0020, 0x000d, &even(&format!("2.25.4712{number:06}"), 0)),
        element(0x0028, 0x0002, &word(1)),
        element(0x0028, 0x0004, &even("MONOCHROME2", b' ')),
        element(0x0028, 0x0010, &word(96)),
        element(0x0028, 0x0011, &word(128)),
        element(0x0028, 0x0100, &word(16)),
        element(0x0028, 0x0101, &word(16)),
        element(0x0028, 0x0102, &word(15)),
        element(0x0028, 0x0103, &word(0)),
        pixels(number, picture),
    ]
    .concat()
}

/// The command that stores a picture.
fn store_command(number: u32, picture: u32) -> Vec<u8> {
    let message = (picture as u16).to_le_bytes();
    let rest = [
        element(0, 0x0002, &even(CAPTURE, 0)),
        element(0, 0x0100, &1_u16.to_le_bytes()),
        element(0, 0x0110, &message),
        element(0, 0x0700, &0_u16.to_le_bytes()),
        element(0, 0x0800, &1_u16.to_le_bytes()),
        element(0, 0x1000, &even(&instance(number, picture), 0)),
    ]
    .concat();
    let length = u32::try_from(rest.len()).unwrap_or(u32::MAX).to_le_bytes();
    [element(0, 0, &length), rest].concat()
}

/// The value of a number in a command.
fn number_in(command: &[u8], tag: u16) -> Option<u16> {
    let mut rest = command;
    loop {
        let (head, after) = rest.split_at_checked(8)?;
        let length = u32::from_le_bytes(head.get(4..8)?.try_into().ok()?);
        let (value, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        if head.get(..4)? == [0, 0, tag.to_le_bytes()[0], tag.to_le_bytes()[1]] {
            return Some(u16::from_le_bytes(value.try_into().ok()?));
        }
        rest = after;
    }
}

/// An item of the association's negotiation.
fn item(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[kind, 0][..], &length, body].concat()
}

fn request() -> Vec<u8> {
    let context =
        [vec![1, 0, 0, 0], item(0x30, CAPTURE.as_bytes()), item(0x40, IMPLICIT.as_bytes())]
            .concat();
    let user = [item(0x51, &MAX_PDU.to_be_bytes()), item(0x52, b"2.25.4712")].concat();
    [
        &[0, 1, 0, 0][..],
        b"PACS-1          ",
        b"CT-1            ",
        &[0; 32],
        &item(0x10, b"1.2.840.10008.3.1.1.1"),
        &item(0x20, &context),
        &item(0x50, &user),
    ]
    .concat()
}

/// The first presentation context's result in what accepts an association: 0 is good.
fn result_of(accepted: &[u8]) -> Option<u8> {
    let mut rest = accepted.get(68..)?;
    loop {
        let (head, after) = rest.split_at_checked(4)?;
        let length = usize::from(u16::from_be_bytes([*head.get(2)?, *head.get(3)?]));
        let (body, after) = after.split_at_checked(length)?;
        if *head.first()? == 0x21 {
            return body.get(2).copied();
        }
        rest = after;
    }
}

struct Link {
    stream: TcpStream,
}

impl Link {
    fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut link = Self { stream };
        link.send(1, &request())?;
        let (kind, body) = link.receive()?;
        let result = result_of(&body);
        ensure!(
            kind == 2 && result == Some(0),
            "refused: PDU {kind}, presentation context {result:?}"
        );
        Ok(link)
    }

    fn send(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
        self.stream.write_all(&[&[kind, 0][..], &length, body].concat())
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 6];
        self.stream.read_exact(&mut head).context("waiting for an answer")?;
        let [kind, _, length @ ..] = head;
        let length = u32::from_be_bytes(length);
        ensure!(length <= MAX_PDU, "a PDU of {length} bytes");
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body).context("in the middle of an answer")?;
        Ok((kind, body))
    }

    /// Sends a part of a message: of its command or its data set.
    fn part(&mut self, control: u8, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len() + 2).unwrap_or(u32::MAX).to_be_bytes();
        self.send(4, &[&length[..], &[1, control], bytes].concat())
    }

    fn store(&mut self, number: u32, picture: u32) -> Result<()> {
        self.part(3, &store_command(number, picture))?;
        let data = picture_data(number, picture);
        let mut parts = data.chunks(PART).peekable();
        while let Some(part) = parts.next() {
            self.part(if parts.peek().is_none() { 2 } else { 0 }, part)?;
        }
        let mut command = Vec::new();
        loop {
            let (kind, body) = self.receive()?;
            ensure!(kind == 4, "PDU {kind} where an answer was due");
            let control = *body.get(5).context("an empty part of a message")?;
            ensure!(control & 1 == 1, "data where an answer was due");
            command.extend_from_slice(body.get(6..).unwrap_or_default());
            if control & 2 == 2 {
                break;
            }
        }
        let said = [0x0100, 0x0120, 0x0900].map(|tag| number_in(&command, tag));
        let due = [Some(0x8001), Some(picture as u16), Some(0)];
        ensure!(said == due, "answered {said:x?} where {due:x?} was due");
        Ok(())
    }

    fn store_on(
        &mut self,
        number: u32,
        every: Duration,
        progress: &Mutex<Progress>,
        stop: &AtomicBool,
    ) -> Result<()> {
        for picture in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let start = Instant::now();
            self.store(number, picture).with_context(|| format!("picture {picture}"))?;
            {
                let mut progress = lock(progress);
                progress.stored += 1;
                progress.slowest = progress.slowest.max(start.elapsed());
            }
            std::thread::sleep(every.saturating_sub(start.elapsed()));
        }
        self.send(5, &[0; 4])?;
        let (kind, _) = self.receive().context("waiting for its release")?;
        ensure!(kind == 6, "PDU {kind} where its release was due");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_in_a_command_and_nothing_in_half_of_one() {
        let command = store_command(7, 300);
        assert_eq!(number_in(&command, 0x0110), Some(300));
        assert_eq!(number_in(&command, 0x0100), Some(1));
        assert_eq!(number_in(&command, 0x0900), None);
        for cut in 0..command.len() {
            assert_ne!(number_in(&command[..cut], 0x1001), Some(0), "cut at {cut}");
        }
    }

    #[test]
    fn pictures_are_all_different_and_of_even_length() {
        assert_ne!(pixels(1, 1), pixels(1, 2));
        assert_ne!(pixels(1, 1), pixels(2, 1));
        assert_eq!(pixels(3, 4), pixels(3, 4));
        for picture in [0, 8, 98] {
            assert_eq!(picture_data(1, picture).len() % 2, 0);
        }
    }
}
