//! Services that are built in.

use anteroom_proto::service::PortMatch;

/// A built-in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltIn {
    /// What rules call it.
    pub name: &'static str,
    /// Its protocols and ports.
    pub ports: &'static [PortMatch],
    /// What it is, in a line.
    pub description: &'static str,
    /// Where its ports are laid down.
    pub source: &'static str,
}

/// Every built-in service, in the order of names.
#[must_use]
pub fn all() -> &'static [BuiltIn] {
    &[]
}

/// The built-in service with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static BuiltIn> {
    all().iter().find(|service| service.name == name)
}
