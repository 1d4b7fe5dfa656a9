use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::checksum::Sum;
use crate::wire::ipv4::{self, Header};

fn syn(flags: u8, options: &[u8]) -> Vec<u8> {
    let mut transport = vec![0; 20];
    transport[..4].copy_from_slice(&[0x9c, 0x40, 0, 104]);
    transport[12] = (((20 + options.len()) / 4) << 4) as u8;
    transport[13] = flags;
    transport.extend_from_slice(options);
    let (source, destination) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    let len = transport.len();
    let sum = Sum::pseudo_ipv4(source, destination, ipv4::TCP, len as u16).bytes(&transport);
    put(&mut transport, CHECKSUM_AT, &sum.checksum().to_be_bytes());
    let header = Header {
        source,
        destination,
        protocol: ipv4::TCP,
        ttl: 64,
        dscp_ecn: 0,
        id: 1,
        payload_len: len,
    };
    [header.to_bytes().unwrap().as_slice(), &transport].concat()
}

fn sum(packet: &[u8]) -> u16 {
    let parsed = parse_ipv4(packet).unwrap();
    let len = parsed.payload().len() as u16;
    Sum::pseudo_ipv4(parsed.source, parsed.destination, ipv4::TCP, len)
        .bytes(parsed.payload())
        .checksum()
}

#[test]
fn a_size_that_is_too_large_is_lowered_at_even_and_odd_places() {
    for (options, at) in [
        (vec![2, 4, 5, 0xb4], 42),
        (vec![1, 2, 4, 5, 0xb4, 1, 1, 1], 43),
        (vec![4, 2, 1, 1, 2, 4, 5, 0xb4, 3, 3, 7, 0], 46),
    ] {
        for flags in [TcpFlags::SYN, TcpFlags::SYN | TcpFlags::ACK] {
            let mut packet = syn(flags, &options);
            assert_eq!(clamp(&mut packet, 1440, false), Some(1460));
            assert_eq!(be16(&packet, at), Some(1400));
            assert_eq!(sum(&packet), 0, "checksum with options {options:02x?}");
        }
    }
}

#[test]
fn what_fits_or_is_no_opening_stays_as_it_is() {
    for (what, original, mtu) in [
        ("small enough", syn(TcpFlags::SYN, &[2, 4, 5, 0x78]), 1440),
        ("no option", syn(TcpFlags::SYN, &[1, 1, 4, 2]), 1440),
        ("no SYN", syn(TcpFlags::ACK, &[2, 4, 5, 0xb4]), 1440),
        ("an option of another length", syn(TcpFlags::SYN, &[2, 3, 9, 0]), 600),
        ("an option that runs over", syn(TcpFlags::SYN, &[8, 40, 2, 4]), 600),
        ("an option of no length", syn(TcpFlags::SYN, &[9, 0, 2, 4]), 600),
    ] {
        let mut packet = original.clone();
        assert_eq!(clamp(&mut packet, mtu, false), None, "{what}");
        assert_eq!(packet, original, "{what}");
    }
}

#[test]
fn a_partial_checksum_does_not_cover_the_option() {
    let mut packet = syn(TcpFlags::SYN, &[2, 4, 5, 0xb4]);
    put(&mut packet, 20 + CHECKSUM_AT, &[0xab, 0xcd]);
    assert_eq!(clamp(&mut packet, 1440, true), Some(1460));
    assert_eq!(be16(&packet, 20 + CHECKSUM_AT), Some(0xabcd));
}

proptest! {
    #[test]
    fn any_options_and_any_bytes_leave_a_sound_packet(
        options in proptest::collection::vec(prop_oneof![Just(1u8), Just(2), Just(4), any::<u8>()], 0..10),
        mtu: u16,
        noise in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut packet = syn(TcpFlags::SYN, &options.repeat(4));
        clamp(&mut packet, mtu, false);
        prop_assert_eq!(sum(&packet), 0);
        clamp(&mut noise.clone(), mtu, false);
    }
}

#[test]
fn no_path_however_narrow_makes_it_less_than_what_applies_without() {
    for mtu in [0, 1, 40, 41, 500, 575, 576] {
        let mut packet = syn(0x02, &[2, 4, 5, 0xb4]);
        assert_eq!(clamp(&mut packet, mtu, false), Some(1460), "{mtu}");
        assert_eq!(be16(&packet, 42), Some(LEAST), "{mtu}");
        assert_eq!(sum(&packet), 0, "{mtu}");
        assert_eq!(clamp(&mut packet, mtu, false), None, "{mtu}");
    }
    let mut packet = syn(0x02, &[2, 4, 1, 0]);
    assert_eq!(clamp(&mut packet, 0, false), None, "what a device asks for itself");
}
