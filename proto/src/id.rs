//! Lasting ids. Random ones name things that move and are renamed; derived ones stand in a view for a
//! name that a gateway needn't know.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// Text that isn't an id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {article} id: expected \"{prefix}-\" and {digits} hexadecimal digits")]
pub struct ParseIdError {
    /// What was read, cut to a length that fits a message.
    pub text: String,
    /// The kind of id with its article, such as "a gateway".
    pub article: &'static str,
    /// The prefix that the kind has.
    pub prefix: &'static str,
    /// How many digits must follow the prefix.
    pub digits: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $prefix:literal, $article:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// An id from its bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes, as they go into CBOR.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}-{}", $prefix, HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let error = || ParseIdError {
                    text: text.chars().take(64).collect(),
                    article: $article,
                    prefix: $prefix,
                    digits: 2 * $len,
                };
                let digits = text
                    .strip_prefix($prefix)
                    .and_then(|rest| rest.strip_prefix('-'))
                    .ok_or_else(error)?;
                let bytes = HEXLOWER.decode(digits.as_bytes()).map_err(|_| error())?;
                Ok(Self(bytes.try_into().map_err(|_| error())?))
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
                    crate::cbor::deserialize_array(deserializer).map(Self)
                }
            }
        }
    };
}

id!(
    /// One trust domain.
    OrganisationId, 16, "org", "an organisation"
);
id!(
    /// An enrolled appliance. The operator's command line draws it when it makes the invite.
    GatewayId, 16, "gw", "a gateway"
);
id!(
    /// A member: a device or a client. History and policy belong to this id, wherever the device is attached.
    MemberId, 16, "dev", "a device"
);
impl From<MemberId> for GatewayId {
    /// What stands where the gateway in front of a member is asked for and the member is a client: it is its own.
    fn from(member: MemberId) -> Self {
        Self(member.0)
    }
}

id!(
    /// One invitation of one gateway.
    InviteId, 16, "inv", "an invite"
);
id!(
    /// One run of an agent, so that nothing it reports counts twice.
    BootId, 16, "boot", "a boot"
);
id!(
    /// A rule as a view names it: derived from the rule's name, which stays with the operators.
    RuleId, 4, "rule", "a rule"
);
id!(
    /// A segment as a view names it.
    SegmentId, 4, "seg", "a segment"
);
id!(
    /// An external as a view names it.
    ExternalId, 4, "ext", "an external"
);
id!(
    /// A site as a view names it.
    SiteId, 4, "site", "a site"
);

macro_rules! derived {
    ($name:ident, $domain:literal) => {
        impl $name {
            /// The id that stands for `name`: the first four bytes of a SHA-256 under a domain of its own.
            /// Whoever compiles a view checks that no two names share one.
            #[must_use]
            pub fn of(name: &str) -> Self {
                let digest =
                    Sha256::new().chain_update($domain).chain_update(name.as_bytes()).finalize();
                Self([digest[0], digest[1], digest[2], digest[3]])
            }
        }
    };
}

derived!(RuleId, "anteroom rule\0");
derived!(SegmentId, "anteroom segment\0");
derived!(ExternalId, "anteroom external\0");
derived!(SiteId, "anteroom site\0");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_names_what_is_wrong() {
        let id = GatewayId::from_bytes([0xa5; 16]);
        assert_eq!(id.to_string().parse::<GatewayId>().unwrap(), id);
        for bad in ["", "gw-", "gw-zz", "dev-a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5", "gw-a5a5"] {
            let error = bad.parse::<GatewayId>().unwrap_err().to_string();
            assert!(error.contains("expected \"gw-\" and 32 hexadecimal digits"), "{error}");
        }
    }

    #[test]
    fn derived_ids_differ_by_kind() {
        assert_ne!(RuleId::of("ct").as_bytes(), SegmentId::of("ct").as_bytes());
        assert_eq!(RuleId::of("ct"), RuleId::of("ct"));
    }
}
