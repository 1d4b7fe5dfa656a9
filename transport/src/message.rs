//! Messages over a stream: each behind its length, bounded, one type in each direction.

use std::marker::PhantomData;

use anteroom_proto::cbor::CborError;
use anteroom_proto::v1::frame;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::link::{RecvStream, SendStream, StreamError};

/// How much room is made for a message before its bytes have come.
const STEP: usize = 64 * 1024;

/// Why no message was read or written.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// What came isn't a message of this protocol.
    #[error("the other end sent what isn't a message of this protocol: {0}")]
    Malformed(#[from] CborError),
    /// The stream ended in the middle of a message.
    #[error("the other end stopped in the middle of a message")]
    CutShort,
    /// The stream or its connection is gone.
    #[error("{0}")]
    Gone(#[from] StreamError),
}

/// Reads messages of type `T`.
#[derive(Debug)]
pub struct MessageReader<T> {
    stream: RecvStream,
    max: usize,
    buffer: Vec<u8>,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> MessageReader<T> {
    /// Reads from `stream`, no message longer than `max` bytes.
    #[must_use]
    pub fn new(stream: impl Into<RecvStream>, max: usize) -> Self {
        Self { stream: stream.into(), max, buffer: Vec::new(), kind: PhantomData }
    }

    /// From now on takes messages of up to `max` bytes.
    pub const fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// The next message, or none when the other end has finished. Dropping the future loses nothing, so it may
    /// stand in a `select!`.
    ///
    /// # Errors
    /// [`MessageError`]; the stream is of no more use then.
    pub async fn next(&mut self) -> Result<Option<T>, MessageError> {
        loop {
            let wanted = match self.buffer.first_chunk::<{ frame::PREFIX_LEN }>() {
                None => frame::PREFIX_LEN,
                Some(prefix) => frame::PREFIX_LEN + frame::body_len(*prefix, self.max)?,
            };
            if self.buffer.len() > frame::PREFIX_LEN - 1 && self.buffer.len() == wanted {
                let message = frame::decode(&self.buffer[frame::PREFIX_LEN..], self.max)?;
                self.buffer.clear();
                // One long message shouldn't hold its memory for the life of the connection.
                self.buffer.shrink_to(STEP);
                return Ok(Some(message));
            }
            let missing = (wanted - self.buffer.len()).min(STEP);
            match self.stream.read_chunk(missing).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(MessageError::CutShort),
            }
        }
    }
}

/// Writes messages of type `T`.
#[derive(Debug)]
pub struct MessageWriter<T> {
    stream: SendStream,
    kind: PhantomData<fn(&T)>,
}

impl<T: Serialize> MessageWriter<T> {
    /// Writes to `stream`.
    #[must_use]
    pub fn new(stream: impl Into<SendStream>) -> Self {
        Self { stream: stream.into(), kind: PhantomData }
    }

    /// Writes one message, as far as the other end lets go of what went before. A future that is dropped
    /// half-way leaves half a message: close the stream then.
    ///
    /// # Errors
    /// [`MessageError::Gone`] when the stream is gone.
    pub async fn send(&mut self, message: &T) -> Result<(), MessageError> {
        Ok(self.stream.write_all(&frame::encode(message)).await?)
    }

    /// Says that no more messages follow, and waits until the other end has all of them or goes away.
    pub async fn finish(&mut self) {
        self.stream.finish().await;
    }
}
