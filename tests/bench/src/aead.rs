//! What sealing and opening alone cost: the floor under every tunnel's cost per byte.

use std::time::Duration;

use anyhow::{Result, anyhow};
use nix::time::{ClockId, clock_gettime};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Bytes of a packet: about what a TCP segment in a tunnel has.
const PACKET: usize = 1_420;
/// Packets that are worked on in turn: a super-frame's.
const PACKETS: usize = 44;

/// Seconds of one core that sealing and then opening a gigabyte takes, measured for about `time` of one core.
///
/// # Errors
/// If the clock can't be read, or a sealed packet doesn't open.
pub fn seconds_per_gigabyte(time: Duration) -> Result<f64> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(|_| anyhow!("a bad key"))?;
    let key = LessSafeKey::new(key);
    let mut buffers = vec![[0x5a_u8; PACKET + 16]; PACKETS];
    let mut counter = 0_u64;
    let begun = thread_time()?;
    let mut bytes = 0;
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
            let opened = key
                .open_in_place(nonce(), Aad::empty(), buffer)
                .map_err(|_| anyhow!("what was sealed doesn't open"))?;
            bytes += opened.len();
        }
        let used = thread_time()? - begun;
        if used >= time {
            return Ok(used.as_secs_f64() * 1e9 / bytes as f64);
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
