//! The controller service: it keeps what operators have signed, gives every gateway its part, and hears what
//! gateways see.
//!
//! It decides nothing: a change is an operator's, compiled and signed on the operator's machine. What it signs
//! itself can carry on or close, never open.

pub mod store;
