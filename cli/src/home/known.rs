//! What the operator's machine remembers for the night on which the controller is out of reach.

use std::collections::BTreeMap;

use anteroom_controller_core::model::Model;
use anteroom_controller_core::stale::Stale;
use anteroom_proto::bypass::BypassOrder;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, OrganisationId};
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::{Home, HomeError};

/// A gateway of the newest revision that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownGateway {
    /// Its id.
    pub id: GatewayId,
    /// The highest serial of a bypass order for it, in revisions or made here.
    pub serial: u64,
}

/// The gateways of the newest revision that was seen, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// They.
    pub gateways: BTreeMap<Name, KnownGateway>,
    /// Bypass orders made here without a controller, which the audit log hasn't heard of yet.
    pub untold: Vec<Signed<BypassOrder>>,
}

impl Known {
    /// The serial for a new order about a gateway: above all that were seen, above `reported`, the highest that a
    /// gateway says it follows by a file, and not below `now`, this machine's clock. An order that was made elsewhere by
    /// a clock that is ahead, and that is in neither, may still be above it.
    #[must_use]
    pub fn next_serial(
        &self,
        gateway: GatewayId,
        model: Option<&Model>,
        reported: Option<u64>,
        now: u64,
    ) -> u64 {
        let signed = model.and_then(|model| model.bypasses.get(&gateway)).map(|order| order.serial);
        let own = self.gateways.values().filter(|known| known.id == gateway);
        let highest = own.map(|known| known.serial).chain(signed).chain(reported).max();
        highest.map_or(now, |highest| now.max(highest.saturating_add(1)))
    }

    /// Takes over the gateways of a model.
    pub fn take(&mut self, model: &Model) {
        let before = std::mem::take(&mut self.gateways);
        self.gateways = model
            .gateways
            .iter()
            .map(|(id, gateway)| {
                let signed = model.bypasses.get(id).map_or(0, |order| order.serial);
                let own = before.values().find(|known| known.id == *id);
                let serial = own.map_or(signed, |known| known.serial.max(signed));
                (gateway.name.clone(), KnownGateway { id: *id, serial })
            })
            .collect();
    }
}

/// A review of the policy that was recorded here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Review {
    /// Of whose policy.
    pub organisation: OrganisationId,
    /// When.
    pub at: UnixMillis,
    /// What was found.
    pub found: Stale,
}

impl Home {
    /// The last review that was recorded; none where none was.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn review(&self) -> Result<Option<Review>, HomeError> {
        self.read_json("review.json")
    }

    /// Records a review in place of the last one.
    ///
    /// # Errors
    /// When it can't be written; what was there before then still is.
    pub fn write_review(&self, review: &Review) -> Result<(), HomeError> {
        self.write_json("review.json", review)
    }

    /// What is remembered of gateways; nothing where no revision was seen yet.
    ///
    /// # Errors
    /// When the file can't be read or is damaged.
    pub fn known(&self) -> Result<Known, HomeError> {
        Ok(self.read_json("gateways.json")?.unwrap_or_default())
    }

    /// Remembers gateways and orders.
    ///
    /// # Errors
    /// When it can't be written; what was there before then still is.
    pub fn write_known(&self, known: &Known) -> Result<(), HomeError> {
        self.write_json("gateways.json", known)
    }

    /// Remembers the gateways of `model`.
    ///
    /// # Errors
    /// When the file can't be read or written.
    pub fn remember(&self, model: &Model) -> Result<(), HomeError> {
        let before = self.known()?;
        let mut known = before.clone();
        known.take(model);
        if known == before { Ok(()) } else { self.write_known(&known) }
    }
}
