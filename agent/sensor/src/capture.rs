//! Captures in pcap's classic format (Ethernet, either byte order, micro- or nanoseconds), read out of memory: what tests and
//! measurements hand to a [`Sensor`](crate::Sensor) in place of a wire.

/// Bytes of a capture's own header.
const HEADER: usize = 24;
/// Bytes before each frame.
const BEFORE_FRAME: usize = 16;
/// The link type of Ethernet.
const ETHERNET: u32 = 1;

/// One frame of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured<'a> {
    /// When it was captured, in microseconds since 1970.
    pub micros: u64,
    /// The frame, as far as it was captured.
    pub bytes: &'a [u8],
}

/// Bytes that are no capture that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoCapture {
    /// The first bytes are those of another format.
    Format,
    /// It isn't of Ethernet, but of this link type.
    LinkType(u32),
}

impl std::fmt::Display for NoCapture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Format => f.write_str("not a capture in pcap's classic format"),
            Self::LinkType(link) => write!(f, "a capture of link type {link}, not of Ethernet"),
        }
    }
}

impl std::error::Error for NoCapture {}

/// The frames of a capture, in its order. One that is cut off in the middle of a frame ends before that.
///
/// # Errors
///
/// [`NoCapture`], where the bytes are something else.
pub fn frames(bytes: &[u8]) -> Result<impl Iterator<Item = Captured<'_>>, NoCapture> {
    let number = |at: usize, big: bool| -> Option<u32> {
        let four = *bytes.get(at..)?.first_chunk::<4>()?;
        Some(if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) })
    };
    let (big, nanos) = match number(0, false).ok_or(NoCapture::Format)? {
        0xa1b2_c3d4 => (false, false),
        0xd4c3_b2a1 => (true, false),
        0xa1b2_3c4d => (false, true),
        0x4d3c_b2a1 => (true, true),
        _ => return Err(NoCapture::Format),
    };
    let link = number(20, big).ok_or(NoCapture::Format)? & 0x0fff_ffff;
    if link != ETHERNET {
        return Err(NoCapture::LinkType(link));
    }
    let mut at = HEADER;
    Ok(std::iter::from_fn(move || {
        let seconds = u64::from(number(at, big)?);
        let fraction = u64::from(number(at + 4, big)?);
        let length = usize::try_from(number(at + 8, big)?).ok()?;
        let begin = at.checked_add(BEFORE_FRAME)?;
        let end = begin.checked_add(length)?;
        let frame = bytes.get(begin..end)?;
        at = end;
        let micros = seconds * 1_000_000 + if nanos { fraction / 1_000 } else { fraction };
        Some(Captured { micros, bytes: frame })
    }))
}
