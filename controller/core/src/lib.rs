//! The brain of Anteroom: model, policy, compile, plan, lint. Pure; the command line uses it too.

pub mod model;
