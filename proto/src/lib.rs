//! What Anteroom's programs say to each other, and what they sign.
//!
//! Four layers, none of which does I/O or reads a clock:
//!
//! - values: [`id`], [`name`], [`mac`], [`key`], [`keyed`], [`time`], [`mode`], [`service`], [`verdict`],
//!   [`alarm`], [`rhythm`], [`inventory`], [`rollout`], and [`text`] that others wrote;
//! - signed documents: [`authority`], [`invite`], [`binding`], [`rekey`], [`approval`], [`intent`], [`operation`], put together
//!   for one gateway as a [`view`]; [`cose`], [`cbor`] and [`merkle`] are how they are signed and encoded;
//! - codes that people carry: [`invite::InviteCode`], [`setup::SetupCode`], [`bypass::BypassCode`];
//! - messages: [`v1`] between agent and controller (CBOR), [`relay`] between agent and relay, [`api`] between operators and controller (JSON);
//!   [`tcp`] is how they travel where UDP doesn't get through.

#![forbid(unsafe_code)]

pub mod address;
pub mod alarm;
pub mod api;
pub mod approval;
pub mod authority;
pub mod binding;
pub mod bypass;
pub mod cbor;
pub mod claim;
mod code;
pub mod cose;
pub mod direct;
pub mod export;
pub mod id;
pub mod intent;
pub mod inventory;
pub mod invite;
pub mod key;
pub mod keyed;
pub mod mac;
pub mod merkle;
pub mod mode;
pub mod name;
pub mod operation;
pub mod overlay;
pub mod rekey;
pub mod relay;
pub mod request;
pub mod rhythm;
pub mod rollout;
pub mod service;
pub mod setup;
pub mod tcp;
pub mod text;
pub mod time;
pub mod v1;
pub mod verdict;
pub mod view;
