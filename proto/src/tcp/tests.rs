use proptest::prelude::*;

use super::*;

fn written(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(frame, &mut bytes).unwrap();
    bytes
}

#[test]
fn frames_are_read_as_they_were_written_and_not_before_they_are_whole() {
    let long = vec![7; MAX_PIECE];
    let frames = [
        Frame::Piece(&long),
        Frame::Datagram(&long[..MAX_DATAGRAM]),
        Frame::Finish,
        Frame::Ping([1; PING_LEN]),
        Frame::Pong([2; PING_LEN]),
        Frame::Close { code: 3, reason: b"the relay ends" },
        Frame::Close { code: u32::MAX, reason: &long[..MAX_REASON] },
    ];
    for frame in frames {
        let mut bytes = written(&frame);
        let len = bytes.len();
        for cut in [0, 1, PREFIX_LEN - 1, len - 1] {
            assert_eq!(read(&bytes[..cut]), Ok(None), "{frame:?} cut to {cut}");
        }
        bytes.extend_from_slice(&[0xff; 3]);
        assert_eq!(read(&bytes), Ok(Some((frame, len))), "{frame:?}");
    }
}

#[test]
fn what_is_too_long_is_refused_by_its_prefix_and_never_written() {
    let mut bytes = Vec::new();
    for (frame, kind) in [
        (Frame::Piece(&[0; MAX_PIECE + 1]), Kind::Piece),
        (Frame::Piece(&[]), Kind::Piece),
        (Frame::Datagram(&[0; MAX_DATAGRAM + 1]), Kind::Datagram),
        (Frame::Close { code: 0, reason: &[0; MAX_REASON + 1] }, Kind::Close),
    ] {
        let error = write(&frame, &mut bytes).unwrap_err();
        assert!(matches!(error, FrameError::Length { kind: of, .. } if of == kind), "{error}");
        assert!(bytes.is_empty(), "{kind:?}");
    }
    for (prefix, error) in [
        ([0, 0xff, 0xff, 0xff], FrameError::Length { kind: Kind::Piece, len: 0x00ff_ffff }),
        ([1, 0, 0x05, 0xad], FrameError::Length { kind: Kind::Datagram, len: 1453 }),
        ([2, 0, 0, 1], FrameError::Length { kind: Kind::Finish, len: 1 }),
        ([3, 0, 0, 7], FrameError::Length { kind: Kind::Ping, len: 7 }),
        ([4, 0, 0, 9], FrameError::Length { kind: Kind::Pong, len: 9 }),
        ([5, 0, 0, 3], FrameError::Length { kind: Kind::Close, len: 3 }),
        ([6, 0, 0, 8], FrameError::Kind(6)),
        (*b"GET ", FrameError::Kind(b'G')),
    ] {
        assert_eq!(read(&prefix), Err(error));
    }
}

fn any_frame() -> impl Strategy<Value = (Kind, Vec<u8>, u32)> {
    (prop::sample::select(&Kind::ALL[..]), prop::collection::vec(any::<u8>(), 0..600), any::<u32>())
}

proptest! {
    #[test]
    fn any_frame_that_is_written_is_read((kind, mut body, code) in any_frame()) {
        if matches!(kind, Kind::Ping | Kind::Pong) { body.resize(PING_LEN, 9); }
        let fixed = body.first_chunk().copied().unwrap_or_default();
        let frame = match kind {
            Kind::Piece => Frame::Piece(&body),
            Kind::Datagram => Frame::Datagram(&body),
            Kind::Finish => Frame::Finish,
            Kind::Ping => Frame::Ping(fixed),
            Kind::Pong => Frame::Pong(fixed),
            Kind::Close => Frame::Close { code, reason: &body },
        };
        let mut bytes = vec![];
        match write(&frame, &mut bytes) {
            Ok(()) => prop_assert_eq!(read(&bytes), Ok(Some((frame, bytes.len())))),
            Err(error) => {
                let length = matches!(error, FrameError::Length { .. });
                prop_assert!(length && bytes.is_empty(), "{}", error);
            }
        }
    }

    #[test]
    fn anything_at_all_is_read_without_a_panic_and_in_bounds(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(Some((frame, taken))) = read(&bytes) {
            prop_assert!(taken <= bytes.len());
            prop_assert_eq!(written(&frame), &bytes[..taken]);
        }
    }
}
