//! Traffic, made by threads of this program in the devices' networks.

pub mod echo;
pub mod tcp;
pub mod udp;
