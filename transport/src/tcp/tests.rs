use std::net::Ipv4Addr;

use anteroom_proto::key::IdentityKey;
use anteroom_proto::tcp::{Frame, FrameError, Kind, write};
use anteroom_proto::v1::frame::MAX_TO_AGENT;
use anteroom_proto::v1::{Refusal, RefusalCode, ToAgent};
use quinn::VarInt;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::*;
use crate::endpoint::{NAME, TransportError};
use crate::link::{Connection, Link};
use crate::message::{MessageReader, MessageWriter};
use crate::tls::{self, ServerPin};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const DEADLINE: Duration = Duration::from_secs(60);
const BOTH: [Protocol; 2] = [Protocol::Control, Protocol::Relay];

fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

fn refusal(message: &str) -> ToAgent {
    ToAgent::Refused(Refusal {
        code: RefusalCode::Unknown,
        message: message.to_owned(),
        fatal: false,
    })
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: nothing within {DEADLINE:?}"))
}

/// A listener that takes in whoever comes.
struct Server {
    listener: TcpListener,
    acceptor: Acceptor,
    address: SocketAddr,
}

impl Server {
    async fn new() -> Self {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, acceptor: Acceptor::new(&key(1), &BOTH).unwrap(), address }
    }

    async fn accept(&self) -> Result<Tcp, AcceptError> {
        let (stream, _) = self.listener.accept().await.unwrap();
        self.acceptor.accept(stream).await
    }

    /// Two ends of one connection.
    async fn pair(&self, protocol: Protocol) -> (Connection, Link) {
        let (us, servers) = (key(2), [key(1).public()]);
        let connecting = connect(self.address, &us, &servers, protocol);
        let (accepted, link) =
            soon("a connection", async { tokio::join!(self.accept(), connecting) }).await;
        (Connection::Tcp(accepted.unwrap()), link.unwrap())
    }

    /// A connection whose other end is just TLS.
    async fn bare(&self) -> (Tcp, tokio_rustls::client::TlsStream<TcpStream>) {
        let pin = ServerPin::new(vec![key(1).public()]);
        let config = tls::client_config(&key(2), &pin, Protocol::Relay).unwrap();
        let bare = async {
            let stream = TcpStream::connect(self.address).await.unwrap();
            let name = ServerName::try_from(NAME).unwrap();
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
        };
        let (accepted, bare) =
            soon("a connection", async { tokio::join!(self.accept(), bare) }).await;
        (accepted.unwrap(), bare)
    }
}

#[tokio::test]
async fn ends_meet_by_their_keys_and_speak() {
    let server = Server::new().await;
    let (connection, link) = server.pair(Protocol::Control).await;
    assert_eq!(connection.peer_key(), Some(key(2).public()));
    assert_eq!(link.connection().peer_key(), Some(key(1).public()));
    assert_eq!(connection.protocol(), Some(Protocol::Control));
    assert_eq!(link.connection().max_datagram_size(), None, "none are for a controller");
    let serve = async {
        let (send, receive) = connection.accept_bi().await.unwrap();
        let mut reader = MessageReader::<ToAgent>::new(receive, MAX_TO_AGENT);
        let mut writer = MessageWriter::new(send);
        while let Some(message) = reader.next().await.unwrap() {
            writer.send(&message).await.unwrap();
        }
        writer.finish().await;
        connection.closed().await
    };
    let client = async {
        let (send, receive) = link.connection().open_bi().await.unwrap();
        assert!(link.connection().open_bi().await.is_err(), "there is one stream");
        let mut reader = MessageReader::<ToAgent>::new(receive, MAX_TO_AGENT);
        let mut writer = MessageWriter::new(send);
        for length in [0, 1, 1000, MAX_PIECE - 4, MAX_PIECE, 600_000] {
            let message = refusal(&"x".repeat(length));
            writer.send(&message).await.unwrap();
            assert_eq!(reader.next().await.unwrap(), Some(message));
        }
        writer.finish().await;
        assert_eq!(reader.next().await.unwrap(), None);
        link.close("done").await;
    };
    let (closed, ()) = soon("a talk", async { tokio::join!(serve, client) }).await;
    assert!(closed.is_by_peer() && closed.to_string().contains("done"), "{closed}");
}

#[tokio::test]
async fn no_end_sends_segments_that_some_paths_dont_carry() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let to = listener.local_addr().unwrap();
    let connecting =
        tokio::spawn(async move { connect(to, &key(2), &[key(1).public()], BOTH[0]).await });
    let (stream, _) = soon("a connection", listener.accept()).await.unwrap();
    let most = SockRef::from(&stream).tcp_mss().unwrap();
    assert!((500..=SEGMENT).contains(&most), "{most}");
    connecting.abort();
}

#[tokio::test]
async fn another_servers_key_is_refused_and_named() {
    let server = Server::new().await;
    let (us, wanted) = (key(2), [key(3).public()]);
    let connecting = connect(server.address, &us, &wanted, Protocol::Control);
    let (served, connected) =
        soon("a refusal", async { tokio::join!(server.accept(), connecting) }).await;
    match connected {
        Err(TransportError::WrongKey { key: found, .. }) => assert_eq!(found, key(1).public()),
        other => panic!("{other:?}"),
    }
    assert!(served.is_err(), "the server took a client that refused it");
}

fn classic() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    Arc::new(provider)
}

#[tokio::test]
async fn a_handshake_that_a_quantum_computer_could_open_is_refused_by_either_end() {
    let mut server = Server::new().await;
    let pin = ServerPin::new(vec![key(1).public()]);
    let config = tls::client_config_with(classic(), &key(2), &pin, Protocol::Relay).unwrap();
    let connecting = connect::connect_with(server.address, config, &pin, Protocol::Relay);
    let (served, connected) =
        soon("a refusal", async { tokio::join!(server.accept(), connecting) }).await;
    assert!(matches!(served, Err(AcceptError::KeyExchange)), "{served:?}");
    assert!(matches!(connected, Err(TransportError::KeyExchange { .. })), "{connected:?}");

    let tls = tls::server_config_with(classic(), &key(1), &BOTH).unwrap();
    server.acceptor = Acceptor { tls: Arc::new(tls) };
    let (us, servers) = (key(2), [key(1).public()]);
    let connecting = connect(server.address, &us, &servers, Protocol::Relay);
    let (served, connected) =
        soon("a refusal", async { tokio::join!(server.accept(), connecting) }).await;
    assert!(served.is_err() && connected.is_err(), "{served:?} {connected:?}");
}

#[tokio::test]
async fn datagrams_pass_both_ways_and_bounds_hold() {
    let server = Server::new().await;
    let (connection, link) = server.pair(Protocol::Relay).await;
    let ours = link.connection();
    for len in [1, 100, MAX_DATAGRAM] {
        let datagram = Bytes::from(vec![7; len]);
        ours.send_datagram_wait(datagram.clone()).await.unwrap();
        assert_eq!(soon("a datagram", connection.read_datagram()).await.unwrap(), datagram);
        connection.send_datagram(datagram.clone()).unwrap();
        assert_eq!(soon("a datagram", ours.read_datagram()).await.unwrap(), datagram);
    }
    for len in [0, MAX_DATAGRAM + 1] {
        let sent = ours.send_datagram_wait(Bytes::from(vec![7; len])).await;
        assert_eq!(sent, Err(SendDatagramError::TooLarge), "{len}");
    }
    let measured = async {
        while ours.rtt() == Duration::ZERO || ours.rtt() > Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("a round trip", measured).await;
    connection.close(VarInt::from_u32(4), b"enough");
    let closed = soon("the end", ours.closed()).await;
    assert_eq!(closed.to_string(), "closed by peer: enough (code 4)");
    assert_eq!(ours.send_datagram(Bytes::from_static(b"x")), Err(SendDatagramError::Gone));
    assert!(soon("the end", ours.read_datagram()).await.is_err());
}

#[tokio::test]
async fn who_never_reads_gets_no_more_than_the_bounds_hold_and_messages_go_first() {
    let server = Server::new().await;
    let (connection, mut bare) = server.bare().await;
    // Far more than every buffer on the way holds.
    let mut sent = 0_u64;
    let begun = Instant::now();
    while connection.lost().in_all() < 1000 {
        for _ in 0..100 {
            connection.send_datagram(Bytes::from(vec![0; 1400])).unwrap();
            sent += 1;
        }
        tokio::task::yield_now().await;
        assert!(begun.elapsed() < DEADLINE, "{sent} taken, {} dropped", connection.lost().in_all());
    }
    assert_eq!(connection.datagram_send_buffer_space() / 1400, 0, "it is full");
    let (send, _receive) = connection.stream().unwrap();
    let mut writer = MessageWriter::new(send);
    writer.send(&refusal("first")).await.unwrap();
    // The message comes before the datagrams that waited: those beyond what was on its way already.
    let mut buffer = Vec::new();
    let (mut before, mut seen) = (0, false);
    while !seen {
        let mut more = [0; 4096];
        let len = soon("bytes", bare.read(&mut more)).await.unwrap();
        assert_ne!(len, 0);
        buffer.extend_from_slice(&more[..len]);
        while let Some((frame, taken)) = anteroom_proto::tcp::read(&buffer).unwrap() {
            match frame {
                Frame::Datagram(_) => before += 1,
                Frame::Piece(_) => seen = true,
                _ => {}
            }
            buffer.drain(..taken);
            if seen {
                break;
            }
        }
    }
    let mut after = 0;
    let rest = async {
        loop {
            while let Some((frame, taken)) = anteroom_proto::tcp::read(&buffer).unwrap() {
                after += usize::from(matches!(frame, Frame::Datagram(_)));
                buffer.drain(..taken);
            }
            if after >= 20 {
                return;
            }
            let mut more = [0; 4096];
            let len = bare.read(&mut more).await.unwrap();
            buffer.extend_from_slice(&more[..len]);
        }
    };
    soon("the datagrams behind it", rest).await;
    assert!(u64::try_from(before).unwrap() < sent, "{before} of {sent}");
}

/// Writes `frame` every 200 ms for as long as it can.
async fn go_on_saying(mut to: impl AsyncWrite + Unpin, frame: Frame<'_>) {
    let mut bytes = Vec::new();
    write(&frame, &mut bytes).unwrap();
    while to.write_all(&bytes).await.is_ok() && to.flush().await.is_ok() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How long the socket stays of a connection that is closed while the other end talks and reads nothing.
async fn stays_for() -> Duration {
    let server = Server::new().await;
    let (connection, bare) = server.bare().await;
    // It talks and never reads: the writer stands still, and it is never silent.
    let (unread, to) = tokio::io::split(bare);
    let talking = tokio::spawn(async move { go_on_saying(to, Frame::Ping([7; 8])).await });
    while connection.lost().in_all() < 1000 {
        connection.send_datagram(Bytes::from(vec![0; 1400])).unwrap();
        tokio::task::yield_now().await;
    }
    let closed = Instant::now();
    connection.close(0, b"");
    soon("the end", connection.gone()).await;
    let took = closed.elapsed();
    // The other end hears that there is nobody any more.
    soon("the other end", talking).await.unwrap();
    drop(unread);
    took
}

#[tokio::test]
async fn a_closed_connection_is_soon_gone_whatever_the_other_end_does() {
    let mut took = Vec::new();
    // A test that is kept from running for long measures that.
    while took.len() < 3 {
        match stays_for().await {
            soon if soon < IDLE_TIMEOUT / 2 => return,
            long => took.push(long),
        }
    }
    panic!("its socket stayed for {took:?}");
}

#[tokio::test]
async fn who_answers_no_sign_of_life_counts_as_gone_however_much_it_talks() {
    let server = Server::new().await;
    let (connection, bare) = server.bare().await;
    let (mut from, to) = tokio::io::split(bare);
    let reading =
        tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
    let talking = tokio::spawn(async move { go_on_saying(to, Frame::Ping([7; 8])).await });
    let began = Instant::now();
    let ended = soon("the end", connection.closed()).await;
    let took = began.elapsed();
    assert_eq!(ended, Ended::TimedOut, "after {took:?}");
    assert!(took >= LINGER - Duration::from_millis(100), "{took:?}");
    soon("the other end", talking).await.unwrap();
    let _ = soon("the other end", reading).await.unwrap();
}

#[tokio::test]
async fn what_no_end_would_say_ends_the_connection_with_a_word() {
    let server = Server::new().await;
    for (bytes, error) in [
        (&[0, 0xff, 0xff, 0xff][..], FrameError::Length { kind: Kind::Piece, len: 0x00ff_ffff }),
        (b"GET / HTTP/1.1\r\n\r\n", FrameError::Kind(b'G')),
        (&[1, 0, 0, 0], FrameError::Length { kind: Kind::Datagram, len: 0 }),
    ] {
        let (connection, mut bare) = server.bare().await;
        bare.write_all(bytes).await.unwrap();
        bare.flush().await.unwrap();
        assert_eq!(soon("the end", connection.closed()).await, Ended::Broken(error));
        let mut all = Vec::new();
        let _ = soon("the last word", bare.read_to_end(&mut all)).await;
        let mut said = None;
        while let Ok(Some((frame, taken))) = anteroom_proto::tcp::read(&all) {
            if let Frame::Close { reason, .. } = frame {
                said = Some(String::from_utf8_lossy(reason).into_owned());
            }
            all.drain(..taken);
        }
        assert_eq!(said, Some(error.to_string()));
    }
}

#[tokio::test]
async fn strangers_get_no_more_than_tls_says() {
    let server = Server::new().await;
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0x16, 3, 1, 0x40, 0], &[0; 300]] {
        let stranger = async {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            all
        };
        let (served, answer) =
            soon("a refusal", async { tokio::join!(server.accept(), stranger) }).await;
        assert!(served.is_err(), "{bytes:?} was taken in");
        assert!(answer.len() <= 7, "an alert at most: {answer:?}");
    }
}

#[tokio::test]
async fn an_end_that_says_nothing_counts_as_gone_after_a_while() {
    let server = Server::new().await;
    // It holds the connection open and never says a word.
    let (connection, _bare) = server.bare().await;
    let began = Instant::now();
    let ended = soon("the end", connection.closed()).await;
    assert_eq!(ended, Ended::TimedOut);
    assert!(began.elapsed() >= IDLE_TIMEOUT - Duration::from_millis(100));
}

#[tokio::test]
async fn a_quiet_connection_stays_and_dropping_it_closes_it() {
    let server = Server::new().await;
    let (connection, link) = server.pair(Protocol::Relay).await;
    tokio::time::sleep(IDLE_TIMEOUT + KEEP_ALIVE).await;
    assert_eq!(connection.close_reason(), None);
    assert_eq!(link.connection().close_reason(), None);
    drop(connection);
    assert!(soon("the end", link.connection().closed()).await.is_by_peer());
}

#[tokio::test]
async fn who_doesnt_read_messages_holds_the_writer_up() {
    let server = Server::new().await;
    let (connection, link) = server.pair(Protocol::Control).await;
    let (send, _unread) = link.connection().open_bi().await.unwrap();
    let (_send, receive) = connection.accept_bi().await.unwrap();
    let mut writer = MessageWriter::new(send);
    let long = refusal(&"x".repeat(50_000));
    let mut sent = 0_u32;
    // The kernel's buffers hold some; then it stands still.
    while timeout(Duration::from_secs(2), writer.send(&long)).await.is_ok() {
        sent += 1;
        assert!(sent < 4_000, "{sent} messages went where nobody reads");
    }
    assert_eq!(connection.close_reason(), None, "that alone is no reason to end it");
    assert!(sent > 0, "not one message was taken before it stood still");
    let mut reader = MessageReader::<ToAgent>::new(receive, MAX_TO_AGENT);
    for _ in 0..sent {
        assert_eq!(soon("a message", reader.next()).await.unwrap(), Some(long.clone()));
    }
}

#[tokio::test]
async fn a_last_message_arrives_whatever_the_other_end_was_saying() {
    let server = Server::new().await;
    for _ in 0..20 {
        let (connection, link) = server.pair(Protocol::Control).await;
        let (mut send, receive) = link.connection().open_bi().await.unwrap();
        // What nobody reads any more when the connection is closed.
        send.write_all(&[9; 60_000]).await.unwrap();
        let (last, _receive) = connection.accept_bi().await.unwrap();
        let mut writer = MessageWriter::new(last);
        writer.send(&refusal("go away")).await.unwrap();
        writer.finish().await;
        connection.close(VarInt::from_u32(3), b"");
        let mut reader = MessageReader::<ToAgent>::new(receive, MAX_TO_AGENT);
        let read = soon("the last word", reader.next()).await;
        assert_eq!(read.unwrap(), Some(refusal("go away")));
    }
}

#[test]
fn the_oldest_datagrams_go_first() {
    let who = (key(1).public(), Protocol::Relay);
    let (shared, _inner) = Shared::new(who, LOOPBACK, Duration::ZERO);
    let mut state = lock(&shared.state);
    for n in 0..100_u8 {
        state.push_out(Bytes::from(vec![n; 1000]));
    }
    let left: Vec<u8> = std::iter::from_fn(|| state.pop_out()).map(|bytes| bytes[0]).collect();
    assert_eq!(left, (68..100).collect::<Vec<u8>>());
    assert_eq!((state.lost, state.space()), (Lost { unread: 0, unsent: 68 }, 32 * 1024));
}
