//! Handshakes: those with peers that are called, and with those that come.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anteroom_proto::key::PublicKey;
use anteroom_transport::direct::{Direct, Guest};
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Event, Task};
use crate::text::plain;

/// Most peers that are greeted at once, each once.
const MOST_GREETED: usize = 64;
/// How long a handshake may take.
const ANSWER: Duration = Duration::from_secs(3);
const GREETING: Duration = Duration::from_secs(5);

/// Connects to the first address that answers.
pub(super) async fn connect(
    socket: &Direct,
    addresses: &[SocketAddr],
    key: &PublicKey,
) -> Result<Connection, String> {
    let mut problem = "no address of it is known".to_owned();
    for address in addresses {
        match timeout(ANSWER, socket.connect(*address, key)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => problem = plain(&error.to_string()),
            Err(_) => problem = format!("{address}: no answer within {} s", ANSWER.as_secs()),
        }
    }
    Err(problem)
}

/// Takes peers' connections for as long as it is polled.
pub(super) async fn take_peers(socket: Arc<Direct>, events: mpsc::Sender<Event>) {
    let mut greeted: HashMap<PublicKey, Task> = HashMap::new();
    while let Some(guest) = socket.accept().await {
        greeted.retain(|_, greeting| !greeting.0.is_finished());
        let peer = guest.peer();
        if greeted.contains_key(&peer) || greeted.len() >= MOST_GREETED {
            // It comes again.
            guest.ignore();
            continue;
        }
        let events = events.clone();
        let greeting = tokio::spawn(async move {
            if let Some(connection) = greet(guest).await {
                let _ = events.send(Event::Came(peer, connection)).await;
            }
        });
        greeted.insert(peer, Task(greeting));
    }
    let _ = events.send(Event::Closed).await;
}

async fn greet(guest: Guest) -> Option<Connection> {
    timeout(GREETING, guest.greet()).await.ok()?
}
