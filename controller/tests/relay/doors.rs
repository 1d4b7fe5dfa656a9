//! First packets in somebody else's name.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anteroom_transport::endpoint;
use anteroom_transport::tls::Protocol;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{Bed, DEADLINE, Gateway, key, soon};

/// The two bits that say what kind of packet with a long header it is (RFC 9000, 17.2).
const KIND: u8 = 0x30;
const INITIAL: u8 = 0;
const RETRY: u8 = 0x30;

/// Kind, destination and source id of a QUIC packet with a long header.
fn long_header(packet: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let first = packet.first().filter(|first| **first & 0x80 != 0)?;
    let (len, rest) = packet.get(5..)?.split_first()?;
    let (to, rest) = rest.split_at_checked((*len).into())?;
    let (len, rest) = rest.split_first()?;
    let from = rest.get(..(*len).into())?;
    Some((first & KIND, to, from))
}

/// The first packets of `count` connections to the relay, by their source ids. Nobody goes on with these.
async fn first_packets(bed: &Bed, count: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let trap = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = trap.local_addr().unwrap();
    let mut packets = BTreeMap::new();
    let mut buffer = [0; 2048];
    while packets.len() < count {
        let (identity, servers) = (key(900), [bed.key]);
        let connecting = endpoint::connect_for(at, &identity, &servers, Protocol::Relay);
        let len = tokio::select! {
            _ = connecting => continue,
            came = trap.recv_from(&mut buffer) => came.unwrap().0,
        };
        if let Some((INITIAL, _, from)) = long_header(&buffer[..len]) {
            packets.entry(from.to_vec()).or_insert_with(|| buffer[..len].to_vec());
        }
    }
    packets
}

/// All that hospitals behind one address have in common with whoever sends in its name is that address.
#[tokio::test(flavor = "multi_thread")]
async fn first_packets_in_the_name_of_an_address_dont_keep_out_who_is_there() {
    const FORGED: usize = 40;
    // Of 256 unknown ones 32 may be of one network; a quarter of these unproved.
    const UNPROVED: usize = 8;
    let bed = Bed::new("");
    let packets = first_packets(&bed, FORGED).await;
    assert_eq!(packets.len(), FORGED);
    let forger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut to_prove = BTreeSet::new();
    let mut buffer = [0; 2048];
    // Sent again and again, all of them: a place is held for five seconds, and one that is free goes to another at once.
    let asked = Cell::new(0);
    let mut flood = async |until: usize| {
        while to_prove.len() < until {
            for packet in packets.values() {
                forger.send_to(packet, bed.address).await.unwrap();
            }
            let answers = async {
                loop {
                    let (len, _) = forger.recv_from(&mut buffer).await.unwrap();
                    if let Some((RETRY, to, _)) = long_header(&buffer[..len]) {
                        to_prove.insert(to.to_vec());
                        asked.set(to_prove.len());
                    }
                }
            };
            let _ = timeout(Duration::from_millis(100), answers).await;
        }
    };
    let beyond = FORGED - UNPROVED;
    let flooded = timeout(DEADLINE, flood(beyond)).await;
    assert!(flooded.is_ok(), "of {beyond} {} were asked where they are", asked.get());
    tokio::select! {
        gateway = Gateway::connect(&bed, 1, 1, &[]) => gateway.leave().await,
        () = flood(usize::MAX) => unreachable!("it floods for ever"),
    }
}

/// Whole handshakes from the address of a hospital, by whoever has made up a key, and then not a word.
#[tokio::test(flavor = "multi_thread")]
async fn who_shakes_hands_and_says_nothing_keeps_nobody_of_its_network_out() {
    let bed = Bed::new("");
    let (address, server) = (bed.address, bed.key);
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut strangers = JoinSet::new();
    for n in 0..40 {
        let tell = tell.clone();
        strangers.spawn(async move {
            let (identity, servers) = (key(900 + n), [server]);
            loop {
                let connecting =
                    endpoint::connect_for(address, &identity, &servers, Protocol::Relay);
                if let Ok(link) = connecting.await {
                    let _ = tell.send(link.connection().closed().await.to_string());
                }
                // Where the runtime goes, connecting fails at once: only here this ends then.
                tokio::task::yield_now().await;
            }
        });
    }
    let pushed_out = async {
        while let Some(why) = told.recv().await {
            if why.contains("others need the place") {
                return;
            }
        }
    };
    soon("one to have to go for another", pushed_out).await;
    Gateway::connect(&bed, 1, 1, &[]).await.leave().await;
}
