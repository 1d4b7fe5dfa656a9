//! Offloads of an interface, read and set by ethtool's ioctl.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::config::InterfaceName;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GET_FLAGS: u32 = 0x25;
const ETHTOOL_SET_FLAGS: u32 = 0x26;
const ETHTOOL_GET_GRO: u32 = 0x2b;
const ETHTOOL_SET_GRO: u32 = 0x2c;
const FLAG_LRO: u32 = 1 << 15;

/// Whether something that spares work is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum Offload {
    /// It is.
    On,
    /// It isn't, and why. Everything works without it, at a higher cost.
    Off(String),
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On => f.write_str("on"),
            Self::Off(reason) => write!(f, "off ({reason})"),
        }
    }
}

/// Whether the kernel merges received packets (generic receive offload).
///
/// # Errors
/// Where the interface is gone or can't tell.
pub fn gro(interface: &InterfaceName) -> io::Result<bool> {
    Ok(ethtool(interface, ETHTOOL_GET_GRO, 0)? != 0)
}

/// Switches generic receive offload. Off, it also ends the merging of the interface's UDP (`UDP_GRO`).
///
/// # Errors
/// Where the interface is gone or the process lacks CAP_NET_ADMIN.
pub fn set_gro(interface: &InterfaceName, on: bool) -> io::Result<()> {
    ethtool(interface, ETHTOOL_SET_GRO, on.into()).map(drop)
}

/// Whether the hardware merges received packets.
///
/// # Errors
/// Where the interface is gone or can't tell.
pub fn lro(interface: &InterfaceName) -> io::Result<bool> {
    Ok(ethtool(interface, ETHTOOL_GET_FLAGS, 0)? & FLAG_LRO != 0)
}

/// Keeps the hardware from merging received packets: what it merges can't be taken apart again.
///
/// # Errors
/// Where it does and won't stop.
pub fn clear_lro(interface: &InterfaceName) -> io::Result<()> {
    match ethtool(interface, ETHTOOL_GET_FLAGS, 0) {
        Ok(flags) if flags & FLAG_LRO != 0 => {
            ethtool(interface, ETHTOOL_SET_FLAGS, flags & !FLAG_LRO).map(drop)
        }
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    }
}

/// `struct ethtool_value` (linux/ethtool.h).
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

fn ethtool(interface: &InterfaceName, command: u32, data: u32) -> io::Result<u32> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut value = Value { command, data };
    // SAFETY: all zeros is a valid ifreq: a union of integers, addresses and pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.as_str().bytes().take(15)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: these commands read and write one `struct ethtool_value`, which `ifru_data` points to and which lives
    // beyond the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}

#[cfg(test)]
mod tests {
    use anteroom_lab::namespace::in_private_network;
    use anteroom_lab::topology::{self, Host};

    use super::*;

    #[test]
    fn merging_is_switched_and_read_back() {
        if !in_private_network("net::offload::tests::merging_is_switched_and_read_back") {
            return;
        }
        let [near, far] = ["near", "far"].map(|name| Host::create(name).unwrap());
        topology::cable((&near, "eth0", None), (&far, "eth0")).unwrap();
        near.enter(|| {
            let eth0 = "eth0".parse().unwrap();
            for on in [true, false, true] {
                set_gro(&eth0, on).unwrap();
                assert_eq!(gro(&eth0).unwrap(), on);
            }
            clear_lro(&eth0).unwrap();
            assert!(!lro(&eth0).unwrap());
            let gone = "gone0".parse().unwrap();
            assert_eq!(gro(&gone).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        })
        .unwrap();
    }
}
