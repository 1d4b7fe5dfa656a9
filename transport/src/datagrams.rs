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

/// Puts the datagrams that are there into `batch`, until that holds `most`. Where none is left, those that came and weren't
/// read by anybody are [lost](Connection::lost).
pub fn read_more(connection: &Connection, most: usize, batch: &mut Vec<Bytes>) {
    let quic = match connection {
        Connection::Quic(connection) => Some((connection, connection.arrived())),
        Connection::Tcp(_) => None,
    };
    while batch.len() < most {
        let next = pin!(connection.read_datagram());
        match next.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(datagram)) => batch.push(datagram),
            // Who waits next hears why it ended.
            Poll::Ready(Err(_)) | Poll::Pending => {
                if let Some((connection, arrived)) = quic {
                    connection.all_read(arrived);
                }
                return;
            }
        }
    }
}
