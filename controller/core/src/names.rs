//! From ids in views and telemetry back to the names that people gave.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anteroom_proto::id::{ExternalId, GatewayId, MemberId, RuleId, SegmentId, SiteId};

use crate::model::Model;

/// Names by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    gateways: BTreeMap<GatewayId, String>,
    members: BTreeMap<MemberId, String>,
    rules: BTreeMap<RuleId, String>,
    segments: BTreeMap<SegmentId, String>,
    externals: BTreeMap<ExternalId, String>,
    sites: BTreeMap<SiteId, String>,
}

impl Names {
    /// The names in `model`, revoked gateways included. A policy with problems gives the names that can be read.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        let _ = model;
        Self::default()
    }

    /// The gateway's name, or its id where it has none.
    #[must_use]
    pub fn gateway(&self, id: GatewayId) -> String {
        self.gateways.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// The member's name, or its id where it has none.
    #[must_use]
    pub fn member(&self, id: MemberId) -> String {
        self.members.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// The rule's name, or its id where it has none.
    #[must_use]
    pub fn rule(&self, id: RuleId) -> String {
        self.rules.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// The segment's name, or its id where it has none.
    #[must_use]
    pub fn segment(&self, id: SegmentId) -> String {
        self.segments.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// The external's name, or its id where it has none.
    #[must_use]
    pub fn external(&self, id: ExternalId) -> String {
        self.externals.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// The site's name, or its id where it has none.
    #[must_use]
    pub fn site(&self, id: SiteId) -> String {
        self.sites.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// Whose address this is, seen from behind `gateway`: a device's name, an external's, or the address itself.
    #[must_use]
    pub fn address(&self, gateway: GatewayId, address: IpAddr) -> String {
        let _ = gateway;
        address.to_string()
    }
}

/// What people call a protocol number and port: a built-in service's name where exactly one fits, `tcp/104`
/// otherwise.
#[must_use]
pub fn service(protocol: u8, port: u16) -> String {
    format!("{protocol}/{port}")
}
