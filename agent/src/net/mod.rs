//! Sockets, links and packet filters of the machine.

pub mod packet;
pub mod ports;
