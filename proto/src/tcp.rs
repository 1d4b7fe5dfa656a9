//! How one TLS connection over TCP carries what QUIC carries otherwise: the message stream, datagrams, signs of life,
//! and the word with which an end goes.
//!
//! Everything is cut into short frames, so that no end has to make room for more than one of them, and so that a long
//! message doesn't keep signs of life waiting. Each is behind four bytes: one that says what it is, three with its
//! length, big-endian.
//!
//! The message stream is the same bytes as on a QUIC stream ([`crate::v1::frame`]), wherever the pieces are cut.

/// Length of the prefix in bytes.
pub const PREFIX_LEN: usize = 4;
/// Longest piece of the message stream: it fits one TLS record with its prefix.
pub const MAX_PIECE: usize = 16 * 1024 - PREFIX_LEN;
/// Longest datagram: what QUIC carries on a usual path, so that nobody has to tell them apart.
pub const MAX_DATAGRAM: usize = 1452;
/// Length of what a sign of life carries, and its answer repeats.
pub const PING_LEN: usize = 8;
/// Most bytes of text that a last word may have.
pub const MAX_REASON: usize = 512;
/// Length of the code in front of that text.
const CODE_LEN: usize = 4;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The next bytes of the message stream.
    Piece = 0,
    /// A datagram.
    Datagram = 1,
    /// The message stream of this end is over.
    Finish = 2,
    /// A sign of life, to be answered with the same bytes.
    Ping = 3,
    /// The answer to it.
    Pong = 4,
    /// The last frame: a code, and why this end goes.
    Close = 5,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Piece, Self::Datagram, Self::Finish, Self::Ping, Self::Pong, Self::Close];

    /// The lengths that its frames may have.
    #[must_use]
    pub const fn lengths(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Piece => 1..=MAX_PIECE,
            Self::Datagram => 1..=MAX_DATAGRAM,
            Self::Finish => 0..=0,
            Self::Ping | Self::Pong => PING_LEN..=PING_LEN,
            Self::Close => CODE_LEN..=CODE_LEN + MAX_REASON,
        }
    }
}

/// What can't be a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Of no kind.
    #[error("there are no frames of kind {0}")]
    Kind(u8),
    /// Too long or too short for its kind.
    #[error("a frame of kind {kind:?} can't have {len} bytes")]
    Length {
        /// Its kind.
        kind: Kind,
        /// The length announced.
        len: usize,
    },
}

/// A frame that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// See [`Kind::Piece`].
    Piece(&'a [u8]),
    /// See [`Kind::Datagram`].
    Datagram(&'a [u8]),
    /// See [`Kind::Finish`].
    Finish,
    /// See [`Kind::Ping`].
    Ping([u8; PING_LEN]),
    /// See [`Kind::Pong`].
    Pong([u8; PING_LEN]),
    /// See [`Kind::Close`].
    Close {
        /// The code.
        code: u32,
        /// Why, for people. It needn't be text.
        reason: &'a [u8],
    },
}

/// What a prefix announces: the kind, and how many bytes follow.
///
/// # Errors
/// [`FrameError`].
pub fn announced(prefix: [u8; PREFIX_LEN]) -> Result<(Kind, usize), FrameError> {
    let [kind, a, b, c] = prefix;
    let len = u32::from_be_bytes([0, a, b, c]) as usize;
    let kind =
        Kind::ALL.into_iter().find(|known| *known as u8 == kind).ok_or(FrameError::Kind(kind))?;
    if kind.lengths().contains(&len) {
        Ok((kind, len))
    } else {
        Err(FrameError::Length { kind, len })
    }
}

/// The frame at the beginning of `bytes`, and how many of them it takes. None while some of it is missing.
///
/// # Errors
/// [`FrameError`] as soon as the prefix is there.
pub fn read(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_LEN>() else { return Ok(None) };
    let (kind, len) = announced(*prefix)?;
    let Some(body) = rest.get(..len) else { return Ok(None) };
    let wrong = FrameError::Length { kind, len };
    let frame = match kind {
        Kind::Piece => Frame::Piece(body),
        Kind::Datagram => Frame::Datagram(body),
        Kind::Finish => Frame::Finish,
        Kind::Ping => Frame::Ping(body.try_into().map_err(|_| wrong)?),
        Kind::Pong => Frame::Pong(body.try_into().map_err(|_| wrong)?),
        Kind::Close => {
            let (code, reason) = body.split_first_chunk().ok_or(wrong)?;
            Frame::Close { code: u32::from_be_bytes(*code), reason }
        }
    };
    Ok(Some((frame, PREFIX_LEN + len)))
}

/// Appends `frame` to `bytes`.
///
/// # Errors
/// [`FrameError::Length`] where it is longer or shorter than its kind may be; nothing is appended then.
pub fn write(frame: &Frame<'_>, bytes: &mut Vec<u8>) -> Result<(), FrameError> {
    let code_bytes;
    let (kind, head, body): (Kind, &[u8], &[u8]) = match frame {
        Frame::Piece(body) => (Kind::Piece, &[], body),
        Frame::Datagram(body) => (Kind::Datagram, &[], body),
        Frame::Finish => (Kind::Finish, &[], &[]),
        Frame::Ping(body) => (Kind::Ping, &[], body),
        Frame::Pong(body) => (Kind::Pong, &[], body),
        Frame::Close { code, reason } => {
            code_bytes = code.to_be_bytes();
            (Kind::Close, &code_bytes, reason)
        }
    };
    let len = head.len() + body.len();
    let long = u32::try_from(len).ok().filter(|_| kind.lengths().contains(&len));
    let [_, a, b, c] = long.ok_or(FrameError::Length { kind, len })?.to_be_bytes();
    bytes.reserve(PREFIX_LEN + len);
    bytes.extend_from_slice(&[kind as u8, a, b, c]);
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(body);
    Ok(())
}

#[cfg(test)]
mod tests;
