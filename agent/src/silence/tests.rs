//! With real connections over QUIC and TCP.

use std::sync::Mutex;

use anteroom_transport::endpoint;
use anteroom_transport::tcp::Acceptor;

use super::*;
use crate::testkit::Front;

/// A connection over QUIC that is cut, and TCP beside it that answers.
struct Cut {
    front: Front,
    server: IdentityKey,
    identity: IdentityKey,
    held: Link,
    _endpoint: quinn::Endpoint,
    theirs: quinn::Connection,
    words: Mutex<Vec<Word>>,
}

impl Cut {
    async fn new() -> Self {
        let [server, identity] = [50, 51].map(|seed| IdentityKey::from_seed(&[seed; 32]));
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoint = endpoint::listen_for(any, &server, &[Protocol::Relay]).unwrap();
        let front = Front::new(endpoint.local_addr().unwrap());
        let keys = [server.public()];
        let (held, theirs) = tokio::join!(
            dial::over(Carrier::Quic, front.address, &identity, &keys, Protocol::Relay),
            async { endpoint.accept().await.unwrap().await.unwrap() }
        );
        let held = held.unwrap();
        Self { front, server, identity, held, _endpoint: endpoint, theirs, words: Mutex::default() }
    }

    async fn until_owing(&self) {
        while !self.words.lock().unwrap().contains(&Word::Owes) {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it falls to once nothing gets through it.
    async fn fall<T: Fn(Word)>(&self, pace: &mut Pace, tell: T) -> Fallen<T> {
        let acceptor = Acceptor::new(&self.server, &[Protocol::Relay]).unwrap();
        let accepting = async {
            let mut accepted = Vec::new();
            loop {
                let (stream, _) = self.front.listener.accept().await.unwrap();
                accepted.push(acceptor.accept(stream).await);
            }
        };
        let held = self.held.connection();
        tokio::select! {
            fallen = over_tcp(held, &self.identity, Protocol::Relay, pace, tell) => fallen,
            () = accepting => unreachable!(),
        }
    }

    fn last(&self) -> Option<Word> {
        let words = self.words.lock().unwrap();
        words.iter().rfind(|word| !matches!(word, Word::Waits(_))).copied()
    }
}

#[tokio::test]
async fn who_looks_no_more_says_that_nothing_is_owed() {
    let cut = Cut::new().await;
    let held = cut.held.connection();
    let tell = |word| cut.words.lock().unwrap().push(word);
    let mut pace = Pace::default();
    cut.front.cut();
    {
        // Nobody accepts over TCP, so that this goes on until it is dropped.
        let looking = over_tcp(held, &cut.identity, Protocol::Relay, &mut pace, tell);
        tokio::select! {
            _ = looking => panic!("TCP got through"),
            () = cut.until_owing() => {}
        }
    }
    assert_eq!(cut.last(), Some(Word::OwesNothing));
    let first = cut.words.lock().unwrap().first().copied();
    assert!(matches!(first, Some(Word::Waits(_))), "before anything is owed: {first:?}");
    assert!(pace.tries >= 1, "{pace:?}");

    cut.words.lock().unwrap().clear();
    let fallen = cut.fall(&mut pace, tell).await;
    assert_eq!(cut.last(), Some(Word::Owes), "until it is seen whether TCP is greeted");
    drop(fallen);
    assert_eq!(cut.last(), Some(Word::OwesNothing));
}

/// How often a test tries anew that comes too late on a machine so slow that QUIC gives itself up meanwhile.
const TRIES: usize = 10;

#[tokio::test]
async fn a_network_that_lets_only_what_comes_through_is_found_silent_while_the_far_end_talks() {
    let mut fell = 0;
    for _ in 0..TRIES {
        let cut = Cut::new().await;
        let held = cut.held.connection();
        let Connection::Quic(quic) = held else { panic!("not over QUIC") };
        // Each says enough that there is something to acknowledge again and again.
        let talks = async {
            loop {
                let sent = cut.theirs.send_datagram_wait(vec![1; 600].into()).await;
                if sent.is_err() {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let hears = async {
            // By then nothing of the handshake is under way that would take of what the far end may send unheard.
            for _ in 0..50 {
                held.read_datagram().await.ok()?;
            }
            cut.front.deafen();
            // Few enough that the far end, which hears of none of them, may send as many.
            let (mut heard, mut acks) = (0, 0);
            while heard < 10 {
                let (before, frames) = (held.traffic(), quic.stats().frame_rx.acks);
                held.read_datagram().await.ok()?;
                if held.traffic().answers == before.answers {
                    (heard, acks) = (heard + 1, acks + quic.stats().frame_rx.acks - frames);
                } else {
                    (heard, acks) = (0, 0);
                }
            }
            Some(acks)
        };
        // Who has nothing to say asks so seldom that the far end may give up first.
        let says = async {
            loop {
                // It is full, or gone: the fall shows it.
                let _ = quic.send_datagram(vec![2; 100].into());
                sleep(Duration::from_millis(20)).await;
            }
        };
        let falls = async {
            let repeated = hears.await?;
            let mut pace = Pace::default();
            let fallen = tokio::select! {
                fallen = cut.fall(&mut pace, |_| {}) => fallen,
                () = says => unreachable!(),
            };
            Some((repeated, fallen.link.connection().carrier()))
        };
        tokio::select! {
            fallen = falls => {
                let Some((repeated, carrier)) = fallen else { continue };
                println!("{repeated} acknowledgements came of what needs no answer");
                assert_eq!(carrier, Carrier::Tcp);
                fell += u32::from(cut.theirs.close_reason().is_none());
                // None of these is taken for an answer. They come by chance, so that they are waited for a few times only.
                if fell > 0 && (repeated > 0 || fell >= 3) {
                    return;
                }
            }
            () = talks => {}
        }
    }
    assert!(fell > 0, "each time the far end had given up before");
}

#[tokio::test]
async fn quic_that_answers_before_the_greeting_over_tcp_keeps_its_place() {
    for _ in 0..TRIES {
        let cut = Cut::new().await;
        let held = cut.held.connection();
        cut.front.cut();
        let fallen = cut.fall(&mut Pace::default(), |_| {}).await;
        cut.front.mend();
        let never = std::future::pending::<()>();
        tokio::select! {
            ended = fallen.silence.unless_it_ends(held, never) => {
                assert_eq!(ended, None);
                return;
            }
            _ = held.closed() => {}
        }
    }
    panic!("each time QUIC had given itself up before");
}

#[tokio::test]
async fn a_greeting_over_tcp_is_waited_for_where_quic_is_closed_for_it() {
    let cut = Cut::new().await;
    let held = cut.held.connection();
    cut.front.cut();
    let fallen = cut.fall(&mut Pace::default(), |_| {}).await;
    cut.front.mend();
    // The other end closes what it was before for the new one, and its welcome takes a while.
    cut.theirs.close(1_u32.into(), b"replaced");
    let welcome = async {
        held.closed().await;
        sleep(2 * GRACE.0).await;
    };
    assert_eq!(fallen.silence.unless_it_ends(held, welcome).await, Some(()));
}
