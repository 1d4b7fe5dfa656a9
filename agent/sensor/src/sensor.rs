//! Frames in, sights out.

use anteroom_proto::inventory::HintKind;

use crate::frame::{self, Frame, Segment};
use crate::gate::Look;
use crate::sight::Sights;
use crate::stream::Streams;
use crate::{cdp, lldp, tcp, udp};

/// Reads frames. Keeps the first bytes of streams, bounded, and who was asked by UDP.
#[derive(Debug, Default)]
pub struct Sensor {
    streams: Streams,
    asked: udp::Asked,
    repeaters: udp::Repeaters,
}

impl Sensor {
    /// One that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Flows and questions that were forgotten before their time, to make room for others.
    #[must_use]
    pub const fn pushed_out(&self) -> u64 {
        self.streams.pushed_out() + self.asked.pushed_out()
    }

    /// Reads an Ethernet frame, which may be cut short. `vlan` is a tag that was taken out of it before. With
    /// [`Look::Anew`] a stream that was done with is read again from here on.
    pub fn frame(&mut self, bytes: &[u8], vlan: Option<u16>, look: Look, sights: &mut Sights) {
        sights.begin();
        match frame::parse(bytes, vlan) {
            None => {}
            Some(Frame::Lldp { from, units }) => lldp::read(from, units, sights),
            Some(Frame::Cdp { from, message }) => cdp::read(from, message, sights),
            Some(Frame::Udp(datagram)) => {
                self.asked.take(&datagram, sights);
                if datagram.forwarded {
                    sights.tell(datagram.from, HintKind::Forwards, "ttl");
                } else {
                    udp::read(&datagram, &mut self.repeaters, sights);
                }
            }
            Some(Frame::Tcp(segment)) => {
                if segment.forwarded {
                    sights.tell(segment.from, HintKind::Forwards, "ttl");
                }
                self.segment(&segment, look, sights);
            }
        }
    }

    fn segment(&mut self, segment: &Segment<'_>, look: Look, sights: &mut Sights) {
        if segment.syn && !segment.rst {
            tcp::opening(segment, sights);
        }
        self.streams.take(segment, look, |mut talk| tcp::read(&mut talk, sights));
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::inventory::MAX_VALUE;
    use proptest::prelude::*;

    use super::*;

    /// An Ethernet frame with IPv4 and UDP or TCP around `payload`.
    fn frame(tcp: bool, ports: (u16, u16), sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        if tcp {
            segment.extend(sequence.to_be_bytes());
            segment.extend([0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        } else {
            let length = u16::try_from(8 + payload.len()).expect("a small payload");
            segment.extend(length.to_be_bytes());
            segment.extend([0, 0]);
        }
        segment.extend(payload);
        let length = u16::try_from(20 + segment.len()).expect("a small payload").to_be_bytes();
        let protocol = if tcp { 6 } else { 17 };
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend([0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(segment);
        frame
    }

    fn told(frames: &[Vec<u8>]) -> Vec<(HintKind, String)> {
        let (mut sensor, mut sights) = (Sensor::new(), Sights::default());
        let mut told = Vec::new();
        for frame in frames {
            sensor.frame(frame, None, Look::Further, &mut sights);
            told.extend(sights.drain().map(|sight| (sight.kind, sight.value)));
        }
        told
    }

    #[test]
    fn of_a_message_of_hl7_only_the_header_is_told() {
        let message = b"\x0bMSH|^~\\&|MONITOR|ICU|EHR|HOSP|202601010000||ORU^R01|1|P|2.5\rPID|1||4711||Mustermann^Erika\r\x1c\r";
        // The patient's segment comes in the same packet, and in parts.
        for cut in [0, 30, 70] {
            let frames = [
                frame(true, (40000, 2575), 1, &message[..cut]),
                frame(true, (40000, 2575), 1 + u32::try_from(cut).unwrap(), &message[cut..]),
            ];
            let told = told(&frames);
            assert!(told.contains(&(HintKind::Hl7Sender, "MONITOR".into())), "{told:?}");
            assert!(told.iter().all(|(kind, _)| *kind != HintKind::Hl7Receiver), "{told:?}");
            assert!(told.iter().all(|(_, value)| !value.contains("Muster")), "{told:?}");
        }
    }

    #[test]
    fn of_a_request_by_http_neither_path_nor_credentials_are_told() {
        let request = b"GET /patients/Mustermann?name=Erika HTTP/1.1\r\nHost: ris.example:8080\r\nAuthorization: Basic RXJpa2E=\r\nCookie: name=Erika\r\nReferer: http://x/Mustermann\r\nUser-Agent: Viewer/2\r\n\r\n";
        let mut told = told(&[frame(true, (40000, 8080), 1, request)]);
        told.sort();
        let wanted = [(HintKind::HttpAgent, "Viewer/2"), (HintKind::HttpHost, "ris.example")];
        assert_eq!(told, wanted.map(|(kind, value)| (kind, value.to_owned())));
    }

    /// A device's hello (WS-Discovery) with something in it.
    fn envelope(held: &str) -> String {
        format!(
            "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"><s:Body><Hello xmlns=\"http://docs.oasis-open.org/ws-dd/ns/discovery/2009/01\">{held}</Hello></s:Body></s:Envelope>"
        )
    }

    fn hello(kind: &str) -> String {
        envelope(&format!("<Types>{kind}</Types>"))
    }

    #[test]
    fn bodies_that_inflate_without_end_are_read_up_to_a_bound() {
        use std::io::Write;
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(hello("p:MedicalDevice").as_bytes()).unwrap();
        packed.write_all(&vec![b' '; 4 << 20]).unwrap();
        let packed = packed.finish().unwrap();
        let head = format!(
            "POST / HTTP/1.1\r\nContent-Type: application/soap+xml\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            packed.len()
        );
        let message = [head.as_bytes(), &packed].concat();
        let frames: Vec<_> = message
            .chunks(1400)
            .enumerate()
            .map(|(n, part)| frame(true, (40000, 80), 1 + 1400 * u32::try_from(n).unwrap(), part))
            .collect();
        assert!(told(&frames).contains(&(HintKind::WsdTypes, "MedicalDevice".into())));
    }

    #[test]
    fn what_compressed_bodies_of_a_flow_grow_to_is_bounded_in_all() {
        use std::io::Write;
        let message = |kind: &str, spaces: usize| {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            packed.write_all(hello(kind).as_bytes()).unwrap();
            packed.write_all(&vec![b' '; spaces]).unwrap();
            let packed = packed.finish().unwrap();
            let head = format!(
                "POST / HTTP/1.1\r\nContent-Type: text/xml\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
                packed.len()
            );
            [head.as_bytes(), &packed].concat()
        };
        let said = |spaces| {
            let frames = [message("First", spaces), message("Second", 0)].concat();
            let told = told(&[frame(true, (40000, 80), 1, &frames)]);
            told.into_iter().map(|(_, value)| value).collect::<Vec<_>>()
        };
        assert_eq!(said(0), ["First", "Second"]);
        assert_eq!(said(1 << 20), ["First"]);
    }

    #[test]
    fn what_people_type_in_a_terminal_is_never_a_greeting() {
        for lines in
            [["login: ", "erika\r\n", "Password: \r\n"], ["220 Erika\r\n", "a\r\n", "b\r\n"]]
        {
            for port in [21, 23, 25] {
                let mut sequence = 1;
                let frames = lines.map(|line| {
                    let frame = frame(true, (port, 40000), sequence, line.as_bytes());
                    sequence += u32::try_from(line.len()).unwrap();
                    frame
                });
                assert_eq!(told(&frames), [], "at port {port}, whose opening nobody saw");
            }
        }
        // The opening was seen: FTP's greeting is told, of Telnet nothing.
        let opened = |port| {
            let mut opening = frame(true, (port, 40000), 0, &[]);
            opening[14 + 20 + 13] = 0x12;
            told(&[opening, frame(true, (port, 40000), 1, b"220 Pump 3\r\n")])
        };
        assert!(opened(21).contains(&(HintKind::Banner, "ftp: Pump 3".into())));
        assert!(opened(23).iter().all(|(kind, _)| *kind != HintKind::Banner));
    }

    #[test]
    fn headers_of_hl7_that_are_short_or_end_otherwise_give_no_patient_away() {
        for header in [
            "MSH|^~\\&|MONITOR|ICU\nPID|1||4711||Mustermann^Erika",
            "MSH|^~\\&|MONITOR|ICU|||||Mustermann^Erika",
            "MSH|^~\\&|||||||MUSTERMANN^ERIKA",
            "MSH#PID#MONITOR#ICU#EHR#HOSP###ORU^R01#1",
        ] {
            let message = format!("\x0b{header}\r\x1c\r");
            assert_eq!(told(&[frame(true, (40000, 2575), 1, message.as_bytes())]), [], "{header}");
        }
    }

    #[test]
    fn scopes_of_patients_are_passed_by() {
        let scopes = "<Scopes>sdc.ctxt.pat:/x/Mustermann sdc.ctxt.loc:/x?bed=7 sdc.ctxt.locator:/Mustermann sdc.ctxt.opr:/x/Muster sdc%2ectxt.pat:/x/Muster biceps.ctxt.pat:/Muster</Scopes>";
        let told = told(&[frame(false, (3702, 3702), 0, envelope(scopes).as_bytes())]);
        assert_eq!(told, [(HintKind::WsdScope, "sdc.ctxt.loc:/x?bed=7".to_owned())]);
    }

    #[test]
    fn what_lies_behind_a_router_is_not_the_routers() {
        let lowered = |mut frame: Vec<u8>, by: u8| {
            frame[22] -= by;
            frame
        };
        let request = b"GET / HTTP/1.1\r\nHost: ris.example\r\nUser-Agent: Viewer/2\r\n\r\n";
        let query = b"\x01\x02\x01\0\0\x01\0\0\0\0\0\0\x03ntp\0\0\x01\0\x01";
        let mut opening = frame(true, (40001, 104), 0, &[]);
        opening[14 + 20 + 13] = 0x02;
        let frames =
            [frame(true, (40000, 80), 1, request), frame(false, (40000, 53), 0, query), opening];
        for by in 1..=3 {
            let frames = frames.clone().map(|frame| lowered(frame, by));
            for frame in frames {
                assert_eq!(told(&[frame]), [(HintKind::Forwards, "ttl".to_owned())]);
            }
        }
        // Some systems begin with 60.
        for by in [0, 4] {
            let frames = frames.clone().map(|frame| lowered(frame, by));
            let told = told(&frames);
            for kind in [HintKind::HttpAgent, HintKind::DnsQuery, HintKind::TcpSyn] {
                assert!(told.iter().any(|(found, _)| *found == kind), "{kind}: {told:?}");
            }
            assert!(told.iter().all(|(kind, _)| *kind != HintKind::Forwards), "{told:?}");
        }
        // A server behind a router answers: what that says of its client counts.
        let answers = |by| {
            let mut answer = frame(
                true,
                (2575, 40000),
                1,
                b"\x0bMSH|^~\\&|EHR|H|MONITOR|ICU|1||ACK|1|P|2.5\r\x1c\r",
            );
            // The other way round.
            answer[..12].rotate_left(6);
            answer[26..34].rotate_left(4);
            told(&[
                frame(
                    true,
                    (40000, 2575),
                    1,
                    b"\x0bMSH|^~\\&|MONITOR|ICU|EHR|H|1||ORU^R01|1|P|2.5\r\x1c\r",
                ),
                lowered(answer, by),
            ])
        };
        let sender = |told: &[(HintKind, String)], name: &str| {
            told.contains(&(HintKind::Hl7Sender, name.to_owned()))
        };
        assert!(sender(&answers(0), "EHR"), "{:?}", answers(0));
        assert!(!sender(&answers(1), "EHR") && sender(&answers(1), "MONITOR"), "{:?}", answers(1));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            told(&[bytes]);
        }

        #[test]
        fn no_payload_does_harm(
            tcp in any::<bool>(),
            port in prop::sample::select(vec![
                21_u16, 23, 25, 53, 67, 80, 104, 137, 138, 139, 161, 162, 443, 445, 502, 546, 547, 1900, 2575,
                3702, 4840, 5353, 6667, 7000, 24005, 24105, 47808,
            ]),
            start in prop::sample::select(vec![
                &b""[..], b"\x0bMSH|", b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03", b"\x01\x00\x00\x00\x01\x00\x00\x01",
                b"\x00\x00\x00\x80\xffSMBs", b"\x00\x00\x00\x80\xfeSMB", b"HELF", b"MSGF\x80\0\0\0", b"SSH-", b"HTTP/1.1 200 OK\r\n",
                b"\x81\x0b\x00\x10\x01\x00\x10\x00", b"\x30\x40\x02\x01\x01\x04\x06", b"\x01\x01\x06\x00",
            ]),
            rest in proptest::collection::vec(any::<u8>(), 0..700),
            answers in any::<bool>(),
        ) {
            let payload = [start, &rest].concat();
            let ports = if answers { (port, 40000) } else { (40000, port) };
            for (_, value) in told(&[frame(tcp, ports, 1, &payload)]) {
                prop_assert!(value.len() <= MAX_VALUE);
            }
        }
    }
}
