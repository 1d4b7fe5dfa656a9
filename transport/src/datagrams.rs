//! Datagrams of a connection, as many at once as there are.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::link::{Closed, Connection};

/// Waits for datagrams and puts all that are there into `batch`, `most` at once. Dropping the future loses nothing that
/// isn't in `batch`.
///
/// # Errors
/// Why the connection has ended.
pub async fn read(
    connection: &Connection,
    most: usize,
    batch: &mut Vec<Bytes>,
) -> Result<(), Closed> {
    batch.push(connection.read_datagram().await?);
    read_more(connection, most, batch);
    Ok(())
}

/// Puts the datagrams that are there into `batch`, until that holds `most`.
pub fn read_more(connection: &Connection, most: usize, batch: &mut Vec<Bytes>) {
    while batch.len() < most {
        let next = pin!(connection.read_datagram());
        match next.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(datagram)) => batch.push(datagram),
            // Who waits next hears why it ended.
            Poll::Ready(Err(_)) | Poll::Pending => return,
        }
    }
}
