//! What gateways said to each other inside tunnels before these, as they wrote it: a line each of `earlier.txt`, its
//! name and its CBOR behind the version byte. They knew lanes, and nothing of pre-shared keys or of addresses as they are
//! from outside.

use data_encoding::HEXLOWER;

use crate::peer::message::Message;

const MESSAGES: &str = include_str!("earlier.txt");

#[test]
fn what_earlier_gateways_say_is_read_and_written_as_it_was() {
    let mut names = Vec::new();
    for line in MESSAGES.lines() {
        let (name, hex) = line.split_once(' ').unwrap();
        let bytes = [vec![1], HEXLOWER.decode(hex.as_bytes()).unwrap()].concat();
        let message = Message::decode(&bytes)
            .unwrap_or_else(|reason| panic!("{name} can't be read: {reason:?}"));
        assert_eq!(message.encode(), bytes, "{name} is written otherwise: {message:?}");
        names.push(name);
    }
    assert_eq!(names, ["hello", "hello-reply", "claim", "claim-answer", "lanes"]);
}
