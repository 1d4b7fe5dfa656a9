//! Addresses as people write them: `host:port`.

use std::net::SocketAddr;

/// Whether `text` is `host:port`, where the host is a name, an IPv4 address or an IPv6 address in brackets.
#[must_use]
pub fn is_host_port(text: &str) -> bool {
    if text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
        return true;
    }
    text.rsplit_once(':').is_some_and(|(host, port)| {
        is_host_name(host) && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// Whether `text` is a host name (RFC 1123).
#[must_use]
pub fn is_host_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_need_a_port_and_a_name_that_can_be_one() {
        for good in ["10.0.0.1:443", "[2001:db8::1]:1", "relay.example:65535", "a:1"] {
            assert!(is_host_port(good), "{good}");
        }
        for bad in
            ["", ":1", "10.0.0.1", "a:0", "a:65536", "a b:1", "-a:1", "2001:db8::1:443", "a..b:1"]
        {
            assert!(!is_host_port(bad), "{bad}");
        }
    }
}
