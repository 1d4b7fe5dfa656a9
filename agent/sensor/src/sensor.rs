//! Frames in, sights out.

use crate::frame::{self, Frame, Segment};
use crate::gate::Look;
use crate::sight::Sights;
use crate::stream::Streams;
use crate::{tcp, udp};

/// Reads frames. Keeps the first bytes of streams, bounded, and who was asked by UDP.
#[derive(Debug, Default)]
pub struct Sensor {
    streams: Streams,
    asked: udp::Asked,
}

impl Sensor {
    /// One that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads an Ethernet frame, which may be cut short. `vlan` is a tag that was taken out of it before. With
    /// [`Look::Anew`] a stream that was done with is read again from here on.
    pub fn frame(&mut self, bytes: &[u8], vlan: Option<u16>, look: Look, sights: &mut Sights) {
        sights.begin();
        match frame::parse(bytes, vlan) {
            None => {}
            Some(Frame::Lldp { from, units }) => udp::lldp(from, units, sights),
            Some(Frame::Udp(datagram)) => {
                self.asked.take(&datagram, sights);
                udp::read(&datagram, sights);
            }
            Some(Frame::Tcp(segment)) => self.segment(&segment, look, sights),
        }
    }

    fn segment(&mut self, segment: &Segment<'_>, look: Look, sights: &mut Sights) {
        if segment.syn && !segment.rst {
            tcp::opening(segment, sights);
        }
        self.streams.take(segment, look, |talk| tcp::read(&talk, sights));
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::inventory::{HintKind, MAX_VALUE};
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
            assert!(told.contains(&(HintKind::Hl7Receiver, "EHR".into())), "{told:?}");
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

    #[test]
    fn bodies_that_inflate_without_end_are_read_up_to_a_bound() {
        use std::io::Write;
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(b"<Hello><Types>p:MedicalDevice</Types></Hello>").unwrap();
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
    fn scopes_of_patients_are_passed_by() {
        let hello = b"<e:Envelope><Hello><Scopes>sdc.ctxt.pat:/x/Mustermann sdc.ctxt.loc:/x?bed=7</Scopes></Hello></e:Envelope>";
        let told = told(&[frame(false, (3702, 3702), 0, hello)]);
        assert_eq!(told, [(HintKind::WsdScope, "sdc.ctxt.loc:/x?bed=7".to_owned())]);
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
