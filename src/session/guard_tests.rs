//! What passes the guard, and what does not.

use futures_util::{stream, task::noop_waker};

use super::*;

/// The header of a masked frame and so many bytes of it.
fn frame(first: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![first];
    match u16::try_from(len) {
        Ok(short) if short < 126 => bytes.push(0x80 | short as u8),
        Ok(medium) => {
            bytes.push(0x80 | 126);
            bytes.extend(medium.to_be_bytes());
        }
        Err(_) => {
            bytes.push(0x80 | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(vec![0xff; len]);
    bytes
}

fn passes(limit: u64, chunk: usize, bytes: &[u8]) -> bool {
    let mut frames = Frames::default();
    bytes.chunks(chunk).all(|mut bytes| {
        while !bytes.is_empty() {
            match frames.follow(bytes, Some(limit)) {
                Ok((followed, _)) => bytes = &bytes[followed..],
                Err(_) => return false,
            }
        }
        true
    })
}

type Chunks = stream::Iter<std::vec::IntoIter<Result<Bytes, PayloadError>>>;

/// A guard of these bytes in chunks.
fn guard(limit: usize, chunk: usize, bytes: &[u8]) -> (FrameGuard<Chunks>, Input) {
    let chunks = bytes.chunks(chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
    FrameGuard::new(stream::iter(chunks.collect::<Vec<_>>()), limit)
}

fn poll(guard: &mut FrameGuard<Chunks>) -> Poll<Option<Result<Bytes, PayloadError>>> {
    let waker = noop_waker();
    guard.poll_next_unpin(&mut Context::from_waker(&waker))
}

/// How many frames are passed on until the next pause, when each is handled at once, and their bytes.
fn turn(guard: &mut FrameGuard<Chunks>, input: &Input) -> (u32, Vec<u8>) {
    let (mut frames, mut passed) = (0, Vec::new());
    while let Poll::Ready(Some(Ok(bytes))) = poll(guard) {
        passed.extend(bytes);
        frames += input.0.unhandled.get();
        while input.0.unhandled.get() > 0 {
            assert!(poll(guard).is_pending(), "while frames are unhandled nothing is passed on");
            input.handled();
        }
    }
    (frames, passed)
}

#[test]
fn a_turn_has_a_bounded_number_of_frames() {
    for chunk in [3, 100, 100_000] {
        let flood: Vec<u8> = (0..100).flat_map(|n| frame(0x81, n)).collect();
        let (mut guard, input) = guard(65_536, chunk, &flood);
        let (mut turns, mut passed) = (0, Vec::new());
        while passed.len() < flood.len() {
            let (frames, bytes) = turn(&mut guard, &input);
            assert!((1..=FRAMES_PER_TURN).contains(&frames));
            assert_eq!(input.end_turn(), passed.len() + bytes.len() < flood.len());
            turns += 1;
            passed.extend(bytes);
        }
        assert_eq!((turns, passed == flood), (100_u32.div_ceil(FRAMES_PER_TURN), true));
    }
}

#[test]
fn nothing_passes_while_many_replies_wait_for_the_socket() {
    let (mut guard, input) = guard(65_536, 100_000, &frame(0x81, 3).repeat(20));
    input.hold(MAX_WAITING + 1);
    assert!(poll(&mut guard).is_pending());
    input.release(1);
    assert_eq!(turn(&mut guard, &input).0, FRAMES_PER_TURN);
}

#[test]
fn frames_before_a_message_that_is_too_big_pass() {
    let bytes = [frame(0x81, 10), frame(0x81, 20), frame(0x81, 101), frame(0x81, 1)].concat();
    for chunk in [1, 5, 36, 37, 1000] {
        let (mut guard, input) = guard(100, chunk, &bytes);
        let (frames, passed) = turn(&mut guard, &input);
        assert_eq!(frames, 2);
        assert!(passed.starts_with(&bytes[..16 + 26]) && passed.len() < 16 + 26 + 8);
        assert_eq!(input.error(), Some(FrameError::TooBig));
        assert!(matches!(poll(&mut guard), Poll::Ready(None)), "the rest is skipped");
    }
}

#[test]
fn after_a_frame_error_the_input_ends_with_the_close_frame_of_the_peer() {
    let unmasked = vec![0x81, 3, b'a', b'b', b'c'];
    let (reserved, unknown) = (frame(0xc1, 3), frame(0x83, 3));
    let long_unmasked = [vec![0x81, 126, 0, 200], vec![0; 200]].concat();
    let all = [
        (frame(0x81, 70_000), FrameError::TooBig),
        (unmasked, FrameError::Malformed),
        (long_unmasked, FrameError::Malformed),
        (reserved, FrameError::Malformed),
        (unknown, FrameError::Malformed),
    ];
    for (malformed, why) in all {
        let rest = [frame(0x81, 3), frame(0x88, 2), frame(0x81, 3)].concat();
        for chunk in [1, 2, 3, 100, 100_000] {
            let bytes = [frame(0x81, 5), malformed.clone(), rest.clone()].concat();
            let (mut guard, input) = guard(100, chunk, &bytes);
            let (frames, passed) = turn(&mut guard, &input);
            assert_eq!((frames, input.error()), (1, Some(why)));
            assert!(bytes.starts_with(&passed));
            // The codec has no whole header of it, and nothing that it could refuse.
            let rest = &passed[frame(0x81, 5).len()..];
            assert!(rest.len() < 2 || why == FrameError::TooBig && rest.len() < 14, "{rest:?}");
            assert!(matches!(poll(&mut guard), Poll::Ready(None)));
            let left = guard.unread.len() + guard.stream.size_hint().0 * chunk;
            assert!(left > 0, "nothing is read after the close frame");
        }
    }
}

#[test]
fn nothing_passes_after_a_close_frame() {
    let close = frame(0x88, 2);
    let bytes = [close.clone(), frame(0x81, 3), frame(0x81, 3)].concat();
    for chunk in [1, 7, 1000] {
        let (mut guard, input) = guard(100, chunk, &bytes);
        assert_eq!(turn(&mut guard, &input), (1, close.clone()));
    }
}

#[test]
fn a_message_of_the_limit_passes_and_one_byte_more_does_not_however_it_is_cut() {
    for limit in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
        for chunk in [1, 2, 3, 7, 4096] {
            let (whole, more) = (frame(0x81, limit), frame(0x81, limit + 1));
            assert!(passes(limit as u64, chunk, &[whole.clone(), whole].concat()));
            assert!(!passes(limit as u64, chunk, &more[..more.len() - limit]));
        }
    }
}

#[test]
fn fragments_count_together_and_control_frames_between_them_do_not() {
    let fragments =
        |last| [frame(0x01, 40), frame(0x89, 100), frame(0x00, 40), frame(0x80, last)].concat();
    assert!(passes(100, 5, &fragments(20)));
    assert!(!passes(100, 5, &fragments(21)));
    // A new message begins anew.
    assert!(passes(100, 5, &[fragments(20), fragments(20)].concat()));
}

#[test]
fn a_huge_length_fails_at_its_header() {
    let header = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    assert!(!passes(65_536, 14, &header));
}
