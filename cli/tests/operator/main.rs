//! The command line against a controller in memory: all of an operator's ways, and every lie that must not pass.

mod assets;
mod cables;
mod changes;
mod clients;
mod controller;
mod devices;
mod learn;
mod lies;
mod login;
mod person;
mod real;
mod relays;
mod standing;
mod surface;
mod swap;
mod trust;
