//! What sealing and opening alone cost: the floor under every tunnel's cost per byte.

use std::time::Duration;

use anyhow::{Result, anyhow};
use nix::time::{ClockId, clock_gettime};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Bytes of a packet that is sealed: the largest in WireGuard's usual tunnel.
const PACKET: usize = 1_420;
/// Bytes of TCP payload in it: the rest are the headers of IPv4 and of TCP with timestamps.
const PAYLOAD: usize = PACKET - 20 - 32;
/// Gateways that are at work at once.
const GATEWAYS: usize = 2;
/// Packets that are worked on in turn: a super-frame's.
const PACKETS: usize = 44;

/// Seconds of processor time that sealing and then opening the packets of a gigabyte of TCP payload takes, measured for about
/// `time` on two cores at once: cores that share caches and a clock rate are slower together, as two gateways are.
///
/// # Errors
/// If the clock can't be read, or a sealed packet doesn't open.
pub fn seconds_per_gigabyte(time: Duration) -> Result<f64> {
    let work = |_| std::thread::Builder::new().name("aead".into()).spawn(move || seal_open(time));
    let threads: Vec<_> = (0..GATEWAYS).map(work).collect::<std::io::Result<_>>()?;
    let (mut seconds, mut packets) = (0.0, 0);
    for thread in threads {
        let (used, count) = thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        seconds += used.as_secs_f64();
        packets += count;
    }
    Ok(seconds * 1e9 / (packets * PAYLOAD) as f64)
}

/// Seals and opens packets until this thread has worked for `time`. Returns how long that was, and how many packets.
fn seal_open(time: Duration) -> Result<(Duration, usize)> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(|_| anyhow!("a bad key"))?;
    let key = LessSafeKey::new(key);
    let mut buffers = vec![[0x5a_u8; PACKET + 16]; PACKETS];
    let mut counter = 0_u64;
    let begun = thread_time()?;
    let mut packets = 0;
    loop {
        for buffer in &mut buffers {
            counter += 1;
            let nonce = || {
                let mut nonce = [0; 12];
                nonce[4..].copy_from_slice(&counter.to_le_bytes());
                Nonce::assume_unique_for_key(nonce)
            };
            let (packet, tag) = buffer.split_at_mut(PACKET);
            let sealed = key
                .seal_in_place_separate_tag(nonce(), Aad::empty(), packet)
                .map_err(|_| anyhow!("sealing failed"))?;
            tag.copy_from_slice(sealed.as_ref());
            key.open_in_place(nonce(), Aad::empty(), buffer)
                .map_err(|_| anyhow!("what was sealed doesn't open"))?;
            packets += 1;
        }
        let used = thread_time()? - begun;
        if used >= time {
            return Ok((used, packets));
        }
    }
}

/// Processor time of this thread.
fn thread_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_gigabyte_takes_some_time() {
        let cost = super::seconds_per_gigabyte(std::time::Duration::from_millis(5)).unwrap();
        assert!(cost > 0.0 && cost.is_finite(), "{cost}");
    }
}
