//! Keys, hashes and fingerprints.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, BASE64, BASE64URL_NOPAD, HEXLOWER};
use ed25519_dalek::pkcs8::EncodePrivateKey;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes that can't be the key they are said to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Text that isn't a key as WireGuard's tools write it.
    #[error(
        "{text:?} is not a WireGuard key: expected 44 characters of base64, as `wg pubkey` writes them"
    )]
    Wireguard {
        /// What was read, cut to a length that fits a message.
        text: String,
    },
    /// Text that isn't 32 bytes of base64url.
    #[error("{text:?} is not a key: expected 43 characters of base64url")]
    Text {
        /// What was read, cut to a length that fits a message.
        text: String,
    },
    /// A point of small order: whoever accepts it agrees on a secret that everyone knows.
    #[error("tunnel key {key} has low order and is refused; whoever offers it must make a new one")]
    LowOrder {
        /// The refused key in base64url.
        key: String,
    },
}

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident, $encoding:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The bytes, as they go into CBOR.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&$encoding.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let bytes = $encoding
                    .decode(text.as_bytes())
                    .ok()
                    .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
                    .ok_or_else(|| KeyError::Text { text: text.chars().take(80).collect() })?;
                Self::try_from(bytes)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
                } else {
                    Self::try_from(crate::cbor::deserialize_array(deserializer)?)
                        .map_err(de::Error::custom)
                }
            }
        }
    };
}

bytes32!(
    /// A SHA-256 digest.
    Hash,
    HEXLOWER
);

impl TryFrom<[u8; 32]> for Hash {
    type Error = KeyError;

    fn try_from(bytes: [u8; 32]) -> Result<Self, Self::Error> {
        Ok(Self(bytes))
    }
}

impl Hash {
    /// What stands for "nothing before this" in a chain.
    pub const ZERO: Self = Self([0; 32]);

    /// The digest of `parts`, one after another, under `domain`, so that bytes hashed for one purpose never
    /// pass for another.
    #[must_use]
    pub fn of(domain: &'static str, parts: &[&[u8]]) -> Self {
        let mut digest = Sha256::new().chain_update(domain).chain_update([0]);
        for part in parts {
            digest.update(part);
        }
        Self(digest.finalize().into())
    }
}

bytes32!(
    /// An Ed25519 public key (RFC 8032): who a gateway, a controller or an operator is.
    PublicKey,
    BASE64URL_NOPAD
);

impl TryFrom<[u8; 32]> for PublicKey {
    type Error = KeyError;

    fn try_from(bytes: [u8; 32]) -> Result<Self, Self::Error> {
        Ok(Self(bytes))
    }
}

impl PublicKey {
    /// What people compare: 100 bits of a SHA-256 as five groups of four letters and digits.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let hash = Hash::of("anteroom fingerprint", &[&self.0]);
        let mut bytes = [0; 13];
        bytes.copy_from_slice(&hash.as_bytes()[..13]);
        Fingerprint(bytes)
    }

    /// Whether `signature` is this key's over `message`. Strict (RFC 8032 5.1.7): no weak keys, no malleable
    /// signatures.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else { return false };
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        key.verify_strict(message, &signature).is_ok()
    }
}

/// A short form of a [`PublicKey`] that people read to each other and off labels.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 13]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = BASE32_NOPAD.encode(&self.0).to_ascii_lowercase();
        for (i, group) in text.as_bytes()[..20].chunks(4).enumerate() {
            if i > 0 {
                f.write_str("-")?;
            }
            f.write_str(std::str::from_utf8(group).unwrap_or_default())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ed25519 private key. It signs documents (see [`crate::cose`]) and TLS handshakes, never raw bytes.
#[derive(Clone)]
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// The key that grows from `seed`, which must come from a cryptographic random generator.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed, for a file that only its owner can read.
    #[must_use]
    pub fn to_seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// The key as PKCS #8 (RFC 8410), as TLS libraries take it. Wiped when dropped.
    #[must_use]
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        match self.0.to_pkcs8_der() {
            Ok(document) => Zeroizing::new(document.as_bytes().to_vec()),
            Err(error) => unreachable!("an Ed25519 key always has a PKCS #8 form: {error}"),
        }
    }

    /// What this key and `other` agree on under `domain`, and nobody else can find out: the same for both. None where
    /// `other` is no key with which there is anything to agree on.
    #[must_use]
    pub fn agree(&self, domain: &'static str, other: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        let point = VerifyingKey::from_bytes(&other.0).ok().filter(|key| !key.is_weak())?;
        let scalar = Zeroizing::new(self.0.to_scalar_bytes());
        let shared =
            Zeroizing::new(x25519_dalek::x25519(*scalar, point.to_montgomery().to_bytes()));
        let (own, other) = (self.public(), *other);
        let (low, high) = (own.min(other), own.max(other));
        let agreed = Hash::of(domain, &[shared.as_slice(), low.as_bytes(), high.as_bytes()]);
        (*shared != [0; 32]).then(|| Zeroizing::new(*agreed.as_bytes()))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).to_bytes().to_vec()
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.public().fingerprint())
    }
}

bytes32!(
    /// An X25519 public key of a WireGuard tunnel. Never one of low order: none can be made.
    TunnelPublicKey,
    BASE64URL_NOPAD
);

impl TryFrom<[u8; 32]> for TunnelPublicKey {
    type Error = KeyError;

    fn try_from(bytes: [u8; 32]) -> Result<Self, Self::Error> {
        // Any clamped scalar is a multiple of the cofactor and takes a low-order point to zero (RFC 7748 6.1).
        if x25519_dalek::x25519([0x42; 32], bytes) == [0; 32] {
            return Err(KeyError::LowOrder { key: BASE64URL_NOPAD.encode(&bytes) });
        }
        Ok(Self(bytes))
    }
}

impl TunnelPublicKey {
    /// The key in `text`, as WireGuard's own tools write it: base64 with padding.
    ///
    /// # Errors
    /// [`KeyError::Wireguard`] where it isn't one, [`KeyError::LowOrder`] where everyone knows what it agrees on.
    pub fn from_wireguard(text: &str) -> Result<Self, KeyError> {
        let bytes = BASE64.decode(text.as_bytes()).ok();
        let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let problem = || KeyError::Wireguard { text: text.chars().take(80).collect() };
        Self::try_from(bytes.ok_or_else(problem)?)
    }

    /// The key as WireGuard's own tools write it: base64 with padding.
    #[must_use]
    pub fn to_wireguard(&self) -> String {
        BASE64.encode(&self.0)
    }
}

/// An X25519 private key of a WireGuard tunnel. It never leaves the machine that made it.
#[derive(Clone)]
pub struct TunnelSecret(Zeroizing<[u8; 32]>);

impl TunnelSecret {
    /// A key from 32 bytes that must come from a cryptographic random generator, or from its own file.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The private bytes, for the engine and for a file that only its owner can read.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key as WireGuard's own tools write it: base64 with padding. Wiped when dropped.
    #[must_use]
    pub fn to_wireguard(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.as_bytes()))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> TunnelPublicKey {
        let secret = x25519_dalek::StaticSecret::from(*self.0);
        TunnelPublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

impl fmt::Debug for TunnelSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TunnelSecret(of {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_order_tunnel_keys_are_refused() {
        // The points of order 1, 2, 4 and 8 and their non-canonical forms (RFC 7748, "cr.yp.to/ecdh.html").
        let low_order = [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ];
        for hex in low_order {
            let bytes: [u8; 32] = HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap();
            assert!(
                matches!(TunnelPublicKey::try_from(bytes), Err(KeyError::LowOrder { .. })),
                "{hex}"
            );
            let text = BASE64URL_NOPAD.encode(&bytes);
            assert!(
                serde_json::from_str::<TunnelPublicKey>(&format!("{text:?}")).is_err(),
                "{hex}"
            );
        }
        assert!(
            TunnelPublicKey::try_from(*TunnelSecret::from_bytes([9; 32]).public().as_bytes())
                .is_ok()
        );
    }

    #[test]
    fn keys_are_read_as_wireguard_writes_them() {
        let key = TunnelSecret::from_bytes([9; 32]).public();
        let text = key.to_wireguard();
        assert_eq!(TunnelPublicKey::from_wireguard(&text), Ok(key));
        for bad in ["", "AAAA", &text[..43], &format!("{text} "), &key.to_string(), "ü"] {
            let refused = TunnelPublicKey::from_wireguard(bad);
            assert!(matches!(refused, Err(KeyError::Wireguard { .. })), "{bad:?}: {refused:?}");
        }
        let zero = TunnelPublicKey::from_wireguard(&BASE64.encode(&[0; 32]));
        assert!(matches!(zero, Err(KeyError::LowOrder { .. })), "{zero:?}");
    }

    #[test]
    fn two_identities_agree_on_what_no_third_finds_out() {
        let [a, b, c] = [1, 2, 3].map(|seed| IdentityKey::from_seed(&[seed; 32]));
        let agreed = a.agree("test", &b.public()).unwrap();
        assert_eq!(b.agree("test", &a.public()), Some(agreed.clone()));
        for other in [
            a.agree("another", &b.public()),
            a.agree("test", &c.public()),
            c.agree("test", &b.public()),
        ] {
            assert_ne!(other, Some(agreed.clone()));
        }
        // The neutral element, as compressed; and bytes that are no point at all.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut none = [0; 32];
        none[0] = 2;
        for bad in [neutral, [0; 32], none] {
            assert_eq!(a.agree("test", &PublicKey::try_from(bad).unwrap()), None, "{bad:?}");
        }
    }

    #[test]
    fn fingerprints_are_five_groups_of_four() {
        let text = IdentityKey::from_seed(&[1; 32]).public().fingerprint().to_string();
        assert_eq!(text.len(), 24);
        assert!(text.split('-').all(|group| group.len() == 4), "{text}");
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let text = format!(
            "{:?} {:?}",
            IdentityKey::from_seed(&[1; 32]),
            TunnelSecret::from_bytes([1; 32])
        );
        assert!(!text.contains("1, 1"), "{text}");
    }
}
