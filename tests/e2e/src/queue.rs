//! What waits in a machine's UDP sockets, and what found no room there, as its kernel tells: so that a flood goes no faster than it is
//! taken, and what is lost beside it is lost by who took it.

use std::fs::File;
use std::io::{Read as _, Seek as _};

use anteroom_lab::topology::Host;
use anyhow::{Context as _, Result};

/// The UDP sockets at one port of a machine.
#[derive(Debug)]
pub struct Queue {
    /// The kernel's tables for IPv4 and IPv6.
    tables: Vec<File>,
    port: u16,
}

impl Queue {
    /// Looks at `port` of `host`.
    ///
    /// # Errors
    /// If its kernel doesn't tell.
    pub fn at(host: &Host, port: u16) -> Result<Self> {
        let open = |name: &str| File::open(format!("/proc/thread-self/net/{name}"));
        let tables = host.enter(|| ["udp", "udp6"].map(open))?;
        Ok(Self { tables: tables.into_iter().collect::<std::io::Result<_>>()?, port })
    }

    /// Bytes that wait, as the kernel counts them: with what it costs to keep them.
    ///
    /// # Errors
    /// If its kernel doesn't tell.
    pub fn waiting(&mut self) -> Result<u64> {
        let mut text = String::new();
        for table in &mut self.tables {
            table.rewind()?;
            table.read_to_string(&mut text)?;
        }
        waiting_at(self.port, &text).with_context(|| text.clone())
    }
}

/// The queue to read of all sockets at `port`. Each line has number, local and other address, state, `written:to read` and more.
fn waiting_at(port: u16, table: &str) -> Option<u64> {
    let wanted = format!("{port:04X}");
    let lines = table.lines().filter(|line| !line.trim_start().starts_with("sl"));
    let mut sum = 0;
    for line in lines {
        let mut words = line.split_whitespace().skip(1);
        let (_, port) = words.next()?.rsplit_once(':')?;
        if port == wanted {
            let (_, waits) = words.nth(2)?.split_once(':')?;
            sum += u64::from_str_radix(waits, 16).ok()?;
        }
    }
    Some(sum)
}

/// Datagrams that found a socket's buffer full on a machine.
///
/// # Errors
/// If its kernel doesn't tell.
pub fn overrun(host: &Host) -> Result<u64> {
    let text = host.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let mut count = || {
        let place = lines.next()?.split(' ').position(|name| name == "RcvbufErrors")?;
        lines.next()?.split(' ').nth(place)?.parse().ok()
    };
    count().with_context(|| text.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_at_a_port_is_read_from_both_tables() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
             \u{20}  17: 0200140A:CA6C 00000000:0000 07 00000000:00000300 00:00000000 00000000     0        0 1 2 0 0\n\
             \u{20}  18: 0200140A:CA6D 00000000:0000 07 00000000:00000500 00:00000000 00000000     0        0 1 2 0 0\n\
             \u{20}  sl  local_address                         remote_address                        st tx_queue rx_queue\n\
             \u{20}  19: 00000000000000000000000000000000:CA6C 00000000000000000000000000000000:0000 07 00000000:00000010 00:0 0\n";
        assert_eq!(waiting_at(0xca6c, table), Some(0x310));
        assert_eq!(waiting_at(9, table), Some(0));
        assert_eq!(waiting_at(9, "what is this"), None);
    }
}
