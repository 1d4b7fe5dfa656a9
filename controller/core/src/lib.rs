//! The brain of Anteroom: model, policy, compile, plan, lint. Pure; the command line uses it too.
//!
//! The way through: an operator's command line takes the newest signed [`model`], changes it ([`edit`]), compiles
//! it ([`mod@compile`]: policy text to one intent leaf a gateway), shows what differs ([`plan`], with what [`lint`]
//! finds and what recorded traffic would break), and signs. The controller compiles the same model and must
//! come to the same root. [`decide`] is the reference for what a model allows; [`why`], [`blast`] and the
//! policy's own tests stand on it. [`mod@relay`] is what a relay decides: beside all that, and knowing none of it.
//!
//! What gateways saw becomes a [`history`]. From it [`mod@suggest`] learns a policy, [`mod@coverage`] says who was watched long
//! enough to be enforced, [`mod@simulate`] what a policy would break, and [`mod@stale`] what nobody uses. [`surface`] says how much
//! care hangs on each device, by which all of it can be sorted.

#![forbid(unsafe_code)]

pub mod approvals;
pub mod assets;
pub mod baseline;
pub mod blast;
pub mod classify;
pub mod compile;
pub mod coverage;
pub mod decide;
pub mod edit;
mod ends;
pub mod export;
#[cfg(test)]
mod fixture;
pub mod history;
pub mod lint;
pub mod map;
pub mod model;
pub mod mud;
pub mod names;
mod parties;
pub mod plan;
pub mod policy;
pub mod problem;
pub mod reach;
mod reader;
pub mod relay;
pub mod resolve;
pub mod service_catalog;
pub mod sighted;
pub mod simulate;
pub mod spreadsheet;
pub mod stale;
pub mod standing;
pub mod suggest;
pub mod surface;
pub mod why;
mod words;
