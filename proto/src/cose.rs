//! Signed documents: COSE_Sign1 (RFC 9052) with Ed25519.
//!
//! The protected header carries the document's type, its organisation and the signer's key, so a signature
//! made for one purpose never passes for another. What was signed is kept and checked as carried.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use ciborium::Value;
use coset::{
    ContentType, CoseSign1, CoseSign1Builder, HeaderBuilder, Label, RegisteredLabelWithPrivate,
    TaggedCborSerializable, iana,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cbor::{self, Blob, CborError};
use crate::id::OrganisationId;
use crate::key::{Fingerprint, Hash, IdentityKey, PublicKey};

/// Header label that holds the organisation's id.
const ORGANISATION: &str = "org";

/// Something that can be signed.
pub trait Document: Serialize + DeserializeOwned {
    /// Names the type inside the signature.
    const TYPE: &'static str;
    /// Longest signed form that is read, in bytes.
    const MAX_LEN: usize;

    /// The organisation that the document belongs to. It must be the one that the signature names.
    fn organisation(&self) -> OrganisationId;
}

/// Why a signed document isn't believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not strict CBOR, too long, or not the document's shape.
    #[error("{expected}: {problem}")]
    Encoding {
        /// The type that was expected.
        expected: &'static str,
        /// What is wrong with the bytes.
        problem: CborError,
    },
    /// Not a COSE_Sign1 of the form that Anteroom writes.
    #[error("{expected}: not a signed document: {problem}")]
    Envelope {
        /// The type that was expected.
        expected: &'static str,
        /// What is wrong with the envelope.
        problem: String,
    },
    /// A document of another type.
    #[error("expected {expected}, found {found:?}")]
    Type {
        /// The type that was expected.
        expected: &'static str,
        /// The type that the signature names.
        found: String,
    },
    /// A document of another organisation.
    #[error("{document}: belongs to another organisation than {expected}")]
    Organisation {
        /// The document's type.
        document: &'static str,
        /// Our organisation.
        expected: OrganisationId,
    },
    /// Signed by a key that may not sign this.
    #[error("{document}: signed by {signer}, who may not sign it")]
    Signer {
        /// The document's type.
        document: &'static str,
        /// Whose signature it bears.
        signer: Fingerprint,
    },
    /// The signature doesn't fit the bytes.
    #[error("{document}: the signature of {signer} is wrong: the document was altered")]
    Forged {
        /// The document's type.
        document: &'static str,
        /// Whose signature it claims to bear.
        signer: Fingerprint,
    },
}

/// A document as it travels: bytes that nobody has checked yet.
pub struct Signed<T> {
    bytes: Blob,
    document: PhantomData<fn() -> T>,
}

impl<T> Signed<T> {
    /// Takes `bytes` as they came.
    #[must_use]
    pub const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes: Blob(bytes), document: PhantomData }
    }

    /// The bytes as carried.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes.0
    }

    /// The digest of the bytes as carried, by which one document refers to another.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of("anteroom signed document", &[&self.bytes.0])
    }
}

impl<T: Document> Signed<T> {
    /// `document`, signed by `key`.
    #[must_use]
    pub fn sign(document: &T, key: &IdentityKey) -> Self {
        let protected = HeaderBuilder::new()
            .algorithm(iana::Algorithm::EdDSA)
            .content_type(T::TYPE.to_owned())
            .key_id(key.public().as_bytes().to_vec())
            .text_value(
                ORGANISATION.to_owned(),
                Value::Bytes(document.organisation().as_bytes().to_vec()),
            )
            .build();
        let sign1 = CoseSign1Builder::new()
            .protected(protected)
            .payload(cbor::encode(document))
            .create_signature(&[], |message| key.sign(message))
            .build();
        match sign1.to_tagged_vec() {
            Ok(bytes) => Self::from_bytes(bytes),
            Err(error) => unreachable!("writing a COSE_Sign1 to memory failed: {error}"),
        }
    }

    /// The document, if it is one of `organisation`'s, signed by one of `signers`, and unaltered.
    ///
    /// # Errors
    /// [`SignatureError`], which names what doesn't fit.
    pub fn verify(
        &self,
        organisation: OrganisationId,
        signers: &[PublicKey],
    ) -> Result<Verified<T>, SignatureError> {
        let (sign1, signer) = self.open()?;
        if !signers.contains(&signer) {
            return Err(SignatureError::Signer { document: T::TYPE, signer: signer.fingerprint() });
        }
        self.check(&sign1, signer, Some(organisation))
    }

    /// The document, if it is unaltered and signed by whomever it names. For documents that introduce their
    /// own signer: the caller decides what that is worth.
    ///
    /// # Errors
    /// [`SignatureError`], which names what doesn't fit.
    pub fn verify_self_named(&self) -> Result<Verified<T>, SignatureError> {
        let (sign1, signer) = self.open()?;
        self.check(&sign1, signer, None)
    }

    fn open(&self) -> Result<(CoseSign1, PublicKey), SignatureError> {
        let envelope = |problem: String| SignatureError::Envelope { expected: T::TYPE, problem };
        let encoding = |problem| SignatureError::Encoding { expected: T::TYPE, problem };
        let bytes = &self.bytes.0;
        if bytes.len() > T::MAX_LEN {
            return Err(encoding(CborError::TooLong { len: bytes.len(), max: T::MAX_LEN }));
        }
        cbor::check(bytes).map_err(encoding)?;
        let sign1 =
            CoseSign1::from_tagged_slice(bytes).map_err(|error| envelope(error.to_string()))?;
        // The protected header travels inside a byte string, which the first check sees as opaque.
        match &sign1.protected.original_data {
            Some(protected) => cbor::check(protected).map_err(encoding)?,
            None => return Err(envelope("it has no protected header".into())),
        }
        if !sign1.unprotected.is_empty() {
            return Err(envelope("it has unprotected headers".into()));
        }
        let header = &sign1.protected.header;
        if header.alg != Some(RegisteredLabelWithPrivate::Assigned(iana::Algorithm::EdDSA)) {
            return Err(envelope("its algorithm isn't EdDSA".into()));
        }
        match &header.content_type {
            Some(ContentType::Text(found)) if found == T::TYPE => {}
            Some(ContentType::Text(found)) => {
                let found = found.chars().take(80).collect();
                return Err(SignatureError::Type { expected: T::TYPE, found });
            }
            _ => return Err(envelope("it names no type".into())),
        }
        let signer = <[u8; 32]>::try_from(header.key_id.as_slice())
            .ok()
            .and_then(|bytes| PublicKey::try_from(bytes).ok())
            .ok_or_else(|| envelope("it names no signer".into()))?;
        Ok((sign1, signer))
    }

    fn check(
        &self,
        sign1: &CoseSign1,
        signer: PublicKey,
        expected: Option<OrganisationId>,
    ) -> Result<Verified<T>, SignatureError> {
        let header = &sign1.protected.header;
        let named = match header.rest.as_slice() {
            [(Label::Text(label), Value::Bytes(bytes))] if label == ORGANISATION => {
                <[u8; 16]>::try_from(bytes.as_slice()).ok().map(OrganisationId::from_bytes)
            }
            _ => None,
        };
        let Some(named) = named else {
            let problem = "its header names no organisation, or more than that".into();
            return Err(SignatureError::Envelope { expected: T::TYPE, problem });
        };
        if let Some(expected) = expected.filter(|expected| *expected != named) {
            return Err(SignatureError::Organisation { document: T::TYPE, expected });
        }
        let forged = || SignatureError::Forged { document: T::TYPE, signer: signer.fingerprint() };
        sign1
            .verify_signature(&[], |signature, message| {
                if signer.verifies(message, signature) { Ok(()) } else { Err(()) }
            })
            .map_err(|()| forged())?;
        let payload = sign1.payload.as_deref().unwrap_or_default();
        let document: T = cbor::decode(payload, T::MAX_LEN)
            .map_err(|problem| SignatureError::Encoding { expected: T::TYPE, problem })?;
        if document.organisation() != named {
            return Err(SignatureError::Organisation { document: T::TYPE, expected: named });
        }
        Ok(Verified { document, signer, signed: self.clone() })
    }
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), document: PhantomData }
    }
}

impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for Signed<T> {}

impl<T> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signed({} bytes)", self.bytes.0.len())
    }
}

impl<T> Serialize for Signed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.bytes.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Signed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { bytes: Blob::deserialize(deserializer)?, document: PhantomData })
    }
}

/// A document whose signature was checked, with the bytes that it came in.
#[derive(Clone, PartialEq, Eq)]
pub struct Verified<T> {
    document: T,
    signer: PublicKey,
    signed: Signed<T>,
}

impl<T> Verified<T> {
    /// Who signed.
    #[must_use]
    pub const fn signer(&self) -> PublicKey {
        self.signer
    }

    /// The bytes as carried, to store or pass on.
    #[must_use]
    pub const fn signed(&self) -> &Signed<T> {
        &self.signed
    }

    /// The document alone.
    #[must_use]
    pub fn into_document(self) -> T {
        self.document
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.document
    }
}

impl<T: fmt::Debug> fmt::Debug for Verified<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("document", &self.document)
            .field("signer", &self.signer.fingerprint())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORG: OrganisationId = OrganisationId::from_bytes([1; 16]);

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Note {
        organisation: OrganisationId,
        text: String,
    }

    impl Document for Note {
        const TYPE: &'static str = "anteroom/note";
        const MAX_LEN: usize = 1024;

        fn organisation(&self) -> OrganisationId {
            self.organisation
        }
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Permit(Note);

    impl Document for Permit {
        const TYPE: &'static str = "anteroom/permit";
        const MAX_LEN: usize = 1024;

        fn organisation(&self) -> OrganisationId {
            self.0.organisation
        }
    }

    fn key(seed: u8) -> IdentityKey {
        IdentityKey::from_seed(&[seed; 32])
    }

    fn note() -> Note {
        Note { organisation: ORG, text: "hello".into() }
    }

    #[test]
    fn what_was_signed_is_read() {
        let signed = Signed::sign(&note(), &key(1));
        let verified = signed.verify(ORG, &[key(2).public(), key(1).public()]).unwrap();
        assert_eq!(*verified, note());
        assert_eq!(verified.signer(), key(1).public());
        assert_eq!(verified.signed(), &signed);
    }

    #[test]
    fn other_signers_types_and_organisations_are_refused() {
        let signed = Signed::sign(&note(), &key(1));
        assert!(matches!(
            signed.verify(ORG, &[key(2).public()]),
            Err(SignatureError::Signer { .. })
        ));
        assert!(matches!(signed.verify(ORG, &[]), Err(SignatureError::Signer { .. })));
        let permit = Signed::<Permit>::from_bytes(signed.as_bytes().to_vec());
        assert!(matches!(permit.verify(ORG, &[key(1).public()]), Err(SignatureError::Type { .. })));
        let other = OrganisationId::from_bytes([2; 16]);
        assert!(matches!(
            signed.verify(other, &[key(1).public()]),
            Err(SignatureError::Organisation { .. })
        ));
    }

    #[test]
    fn a_body_of_another_organisation_than_its_header_is_refused() {
        let header_lies = {
            let protected = HeaderBuilder::new()
                .algorithm(iana::Algorithm::EdDSA)
                .content_type(Note::TYPE.to_owned())
                .key_id(key(1).public().as_bytes().to_vec())
                .text_value(ORGANISATION.to_owned(), Value::Bytes(vec![9; 16]))
                .build();
            CoseSign1Builder::new()
                .protected(protected)
                .payload(cbor::encode(&note()))
                .create_signature(&[], |message| key(1).sign(message))
                .build()
                .to_tagged_vec()
                .unwrap()
        };
        let signed = Signed::<Note>::from_bytes(header_lies);
        let named = OrganisationId::from_bytes([9; 16]);
        let error = signed.verify(named, &[key(1).public()]).unwrap_err();
        assert!(matches!(error, SignatureError::Organisation { .. }), "{error}");
    }

    #[test]
    fn unprotected_headers_and_long_documents_are_refused() {
        let signed = Signed::sign(&note(), &key(1));
        let mut sign1 = CoseSign1::from_tagged_slice(signed.as_bytes()).unwrap();
        sign1.unprotected = HeaderBuilder::new().key_id(vec![1]).build();
        let extended = Signed::<Note>::from_bytes(sign1.to_tagged_vec().unwrap());
        assert!(matches!(
            extended.verify(ORG, &[key(1).public()]),
            Err(SignatureError::Envelope { .. })
        ));
        let long = Note { organisation: ORG, text: "x".repeat(2000) };
        let long = Signed::sign(&long, &key(1));
        assert!(matches!(
            long.verify(ORG, &[key(1).public()]),
            Err(SignatureError::Encoding { .. })
        ));
    }

    proptest! {
        #[test]
        fn every_altered_byte_is_noticed(at in 0usize..1000, flip in 1u8..) {
            let mut bytes = Signed::sign(&note(), &key(1)).as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert!(Signed::<Note>::from_bytes(bytes).verify(ORG, &[key(1).public()]).is_err());
        }

        #[test]
        fn anything_at_all_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Signed::<Note>::from_bytes(bytes).verify_self_named();
        }
    }
}
