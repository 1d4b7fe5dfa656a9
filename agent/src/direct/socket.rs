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

use super::Event;
use crate::task::Task;
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

/// Takes peers' connections at the socket of this number for as long as it is polled.
pub(super) async fn take_peers(socket: Arc<Direct>, number: u64, events: mpsc::Sender<Event>) {
    let mut greetings = Greetings::default();
    while let Some(guest) = socket.accept().await {
        let peer = guest.peer();
        if !greetings.has_room(&peer) {
            // It comes again.
            guest.ignore();
            continue;
        }
        let events = events.clone();
        greetings.begin(peer, async move {
            if let Some(connection) = greet(guest).await {
                let _ = events.send(Event::Came(number, peer, connection)).await;
            }
        });
    }
    let _ = events.send(Event::Closed(number)).await;
}

/// Handshakes that are under way, one with each peer.
#[derive(Default)]
struct Greetings(HashMap<PublicKey, Task>);

impl Greetings {
    fn has_room(&mut self, peer: &PublicKey) -> bool {
        self.0.retain(|_, greeting| !greeting.0.is_finished());
        self.0.contains_key(peer) || self.0.len() < MOST_GREETED
    }

    /// Begins one in the place of the one before: a peer that comes again tries another of this end's addresses, since
    /// the first works one way at most.
    fn begin(&mut self, peer: PublicKey, greeting: impl Future<Output = ()> + Send + 'static) {
        self.0.insert(peer, Task(tokio::spawn(greeting)));
    }
}

async fn greet(guest: Guest) -> Option<Connection> {
    timeout(GREETING, guest.greet()).await.ok()?
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use anteroom_proto::key::IdentityKey;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn whoever_comes_again_has_the_place_of_its_own_greeting_and_of_no_others() {
        let key = |seed: usize| IdentityKey::from_seed(&[u8::try_from(seed).unwrap(); 32]).public();
        let mut greetings = Greetings::default();
        let (gone, mut ends) = mpsc::channel::<()>(1);
        greetings.begin(key(0), async move {
            let _held = gone;
            pending::<()>().await;
        });
        for other in 1..MOST_GREETED {
            assert!(greetings.has_room(&key(other)), "{other}");
            greetings.begin(key(other), pending());
        }
        assert!(!greetings.has_room(&key(MOST_GREETED)) && greetings.has_room(&key(0)));
        let (done, is_done) = tokio::sync::oneshot::channel();
        greetings.begin(key(0), async { done.send(()).unwrap_or_default() });
        let ended = timeout(DEADLINE, ends.recv()).await;
        assert_eq!(ended, Ok(None), "the first is let go");
        timeout(DEADLINE, is_done).await.unwrap().unwrap();
        let room = timeout(DEADLINE, async {
            while !greetings.has_room(&key(MOST_GREETED)) {
                tokio::task::yield_now().await;
            }
        });
        room.await.expect("one that is done leaves its place");
    }
}
