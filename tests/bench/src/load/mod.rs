//! Traffic, made by threads of this program in the devices' networks.

pub mod crowd;
pub mod echo;
pub mod flood;
pub mod tcp;
pub mod udp;
