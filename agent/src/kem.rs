//! ML-KEM-768 keys of this gateway: what pre-shared keys with other gateways are agreed on with.

use std::sync::Arc;

use anteroom_agent_core::peer::{CIPHERTEXT_LEN, Kem};
use aws_lc_rs::kem::{AlgorithmId, Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use zeroize::Zeroizing;

/// Length of a private key as FIPS 203 writes it: the private half of the encryption key, the encapsulation key, its hash,
/// and what is used in place of a secret that doesn't fit.
const PRIVATE_LEN: usize = 2400;
/// Where the encapsulation key stands in it.
const PUBLIC: std::ops::Range<usize> = 1152..1152 + PUBLIC_LEN;
/// Length of an encapsulation key.
pub const PUBLIC_LEN: usize = 1184;

/// An ML-KEM-768 key pair.
pub struct KemKey {
    key: DecapsulationKey<AlgorithmId>,
    bytes: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for KemKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KemKey").finish_non_exhaustive()
    }
}

impl PartialEq for KemKey {
    fn eq(&self, other: &Self) -> bool {
        self.public() == other.public()
    }
}

impl Eq for KemKey {}

impl KemKey {
    /// A new key pair. None where the library gives none.
    #[must_use]
    pub fn generate() -> Option<Arc<Self>> {
        let key = DecapsulationKey::generate(&ML_KEM_768).ok()?;
        let bytes = Zeroizing::new(key.key_bytes().ok()?.as_ref().to_vec());
        (bytes.len() == PRIVATE_LEN).then(|| Arc::new(Self { key, bytes }))
    }

    /// The key pair that [`Self::bytes`] was of. None where that was none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Arc<Self>> {
        let key = DecapsulationKey::new(&ML_KEM_768, bytes).ok()?;
        let bytes = Zeroizing::new(bytes.to_vec());
        let found = Self { key, bytes };
        // What was damaged on the disk opens nothing.
        let (ciphertext, secret) = found.encapsulate(found.public())?;
        (found.decapsulate(&ciphertext)? == secret).then(|| Arc::new(found))
    }

    /// The private half, to be kept.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The encapsulation key, which peers are told.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.bytes.get(PUBLIC).unwrap_or_default()
    }
}

fn secret(bytes: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    <[u8; 32]>::try_from(bytes).ok().map(Zeroizing::new)
}

impl Kem for KemKey {
    fn encapsulate(&self, to: &[u8]) -> Option<(Vec<u8>, Zeroizing<[u8; 32]>)> {
        let to = EncapsulationKey::new(&ML_KEM_768, to).ok()?;
        let (ciphertext, shared) = to.encapsulate().ok()?;
        let ciphertext = ciphertext.as_ref().to_vec();
        Some((ciphertext, secret(shared.as_ref())?)).filter(|made| made.0.len() == CIPHERTEXT_LEN)
    }

    fn decapsulate(&self, ciphertext: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self.key.decapsulate(Ciphertext::from(ciphertext)).ok()?;
        secret(shared.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_was_kept_opens_what_was_made_for_it_and_nothing_else_the_same_way() {
        let (one, other) = (KemKey::generate().unwrap(), KemKey::generate().unwrap());
        let found = one.key.encapsulation_key().unwrap();
        assert_eq!(found.key_bytes().unwrap().as_ref(), one.public());
        let kept = KemKey::from_bytes(one.bytes()).unwrap();
        assert_eq!((&*kept, kept.public().len()), (&*one, PUBLIC_LEN));
        let (mut ciphertext, secret) = other.encapsulate(one.public()).unwrap();
        assert_eq!(kept.decapsulate(&ciphertext).unwrap(), secret);
        // Another key, or another ciphertext, gives another secret and no error.
        assert_ne!(other.decapsulate(&ciphertext).unwrap(), secret);
        ciphertext[500] ^= 1;
        assert_ne!(kept.decapsulate(&ciphertext).unwrap(), secret);
        assert_ne!(kept.decapsulate(&[0; CIPHERTEXT_LEN]).unwrap(), secret);
        for len in [0, 1, CIPHERTEXT_LEN - 1, CIPHERTEXT_LEN + 1] {
            assert!(kept.decapsulate(&vec![0; len]).is_none());
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let key = KemKey::generate().unwrap();
        for len in [0, 1, PRIVATE_LEN - 1, PRIVATE_LEN + 1] {
            assert!(KemKey::from_bytes(&vec![1; len]).is_none());
        }
        let mut damaged = key.bytes().to_vec();
        damaged[7] ^= 0x55;
        assert!(KemKey::from_bytes(&damaged).is_none());
        let mut damaged = key.bytes().to_vec();
        damaged[PUBLIC.start + 9] ^= 0x55;
        assert!(KemKey::from_bytes(&damaged).is_none());
        for bad in [&[][..], &[0; 32], &[0; PUBLIC_LEN - 1], &[0xff; PUBLIC_LEN]] {
            assert!(key.encapsulate(bad).is_none(), "{} bytes", bad.len());
        }
    }

    /// What ML-KEM-768 costs beside WireGuard's handshake: `cargo test --release -p anteroom-agent --lib -- --ignored
    /// --nocapture kem::tests::cost`.
    #[test]
    #[ignore = "measures"]
    fn cost() {
        use aws_lc_rs::agreement::{PrivateKey, X25519};
        const TIMES: u32 = 5_000;
        let used = || {
            let now =
                nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
            std::time::Duration::from(now)
        };
        let measure = |what: &dyn Fn()| {
            let mut runs = [0; 3].map(|_: u8| {
                let before = used();
                (0..TIMES).for_each(|_| what());
                (used() - before) / TIMES
            });
            runs.sort_unstable();
            runs[1]
        };
        let key = KemKey::generate().unwrap();
        let (ciphertext, _) = key.encapsulate(key.public()).unwrap();
        println!("key pair: {:?}", measure(&|| drop(KemKey::generate())));
        println!("encapsulate: {:?}", measure(&|| drop(key.encapsulate(key.public()))));
        println!("decapsulate: {:?}", measure(&|| drop(key.decapsulate(&ciphertext))));
        println!("X25519 key pair: {:?}", measure(&|| drop(PrivateKey::generate(&X25519))));
    }
}
