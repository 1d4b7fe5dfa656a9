//! What a link or a router hangs at.

use std::io;

use anyhow::{Context as _, Result};
use nix::libc;

use crate::topology::{self, Host};

/// What an end hangs at.
#[derive(Debug, Clone, Copy)]
pub enum Attach<'a> {
    /// A host, by a new interface of this name.
    Host(&'a Host, &'a str),
    /// A switch of this host, by its bridge's name.
    Switch(&'a Host, &'a str),
}

/// Lays a cable from what `attach` names to a new interface `near` of `host`, which sees all frames, whole and with
/// their sums.
pub(super) fn attach(host: &Host, near: &str, attach: Attach<'_>) -> Result<()> {
    let (far_host, far) = match attach {
        Attach::Host(far_host, interface) => {
            topology::cable((host, near, None), (far_host, interface))?;
            (far_host, interface.to_owned())
        }
        Attach::Switch(far_host, bridge) => {
            let socket = format!("{}-{near}", host.name());
            topology::plug(host, near, None, far_host, bridge, &socket)?;
            (far_host, socket)
        }
    };
    // The kernel's own stack has no part in it.
    host.ip(&format!("link set {near} promisc on arp off mtu 65535"))?;
    far_host
        .enter(|| plain(&far))?
        .with_context(|| format!("turning the offloads of {far} on {} off", far_host.name()))
}

/// `ETHTOOL_STXCSUM` and `ETHTOOL_STSO`: sums and segmentation, which virtual cables leave to nobody at all.
const OFFLOADS: [u32; 2] = [0x17, 0x1f];
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// Has the kernel finish frames before they go onto the interface: what reads them off the cable needs them whole.
fn plain(interface: &str) -> io::Result<()> {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    for command in OFFLOADS {
        let mut value = Value { command, data: 0 };
        // SAFETY: all zeros is a valid request; the name is shorter than its field, so it ends in NUL; the value that
        // it points at is of the form that these commands have, and lives through the call.
        let result = unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            for (place, byte) in request.ifr_name.iter_mut().take(15).zip(interface.bytes()) {
                *place = byte.cast_signed();
            }
            request.ifr_ifru.ifru_data = (&raw mut value).cast();
            libc::ioctl(
                std::os::fd::AsRawFd::as_raw_fd(&socket),
                SIOCETHTOOL as _,
                &raw mut request,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
