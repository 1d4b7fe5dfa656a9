//! SSDP, UPnP's discovery: what a device says that it is. What others look for isn't looked at, nor what repeats another's address.

use anteroom_proto::inventory::HintKind;

use crate::frame::Datagram;
use crate::sight::Sights;
use crate::text;
use crate::udp::Repeaters;

/// Most lines of a message that is believed.
const MOST_LINES: usize = 48;

pub(super) fn read(datagram: &Datagram<'_>, repeaters: &mut Repeaters, sights: &mut Sights) {
    let bytes = datagram.payload;
    let mut lines = [httparse::EMPTY_HEADER; MOST_LINES];
    let lines = if bytes.starts_with(b"HTTP/") {
        let mut head = httparse::Response::new(&mut lines);
        // Some leave the empty line at the end out; the lines before it are read all the same.
        let _ = head.parse(bytes);
        &*head.headers
    } else if bytes.starts_with(b"NOTIFY ") {
        let mut head = httparse::Request::new(&mut lines);
        let _ = head.parse(bytes);
        &*head.headers
    } else {
        return;
    };
    let location = lines.iter().find(|line| line.name.eq_ignore_ascii_case("location"));
    let address = location.and_then(|line| text::address_of_url(line.value));
    match text::is_own(datagram.ips.0, address) {
        Some(true) => {}
        Some(false) => return repeaters.add(datagram.from),
        None if repeaters.has(datagram.from) => return,
        None => {}
    }
    for line in lines {
        match line.name.to_ascii_lowercase().as_str() {
            "server" => sights.tell(datagram.from, HintKind::SsdpServer, line.value),
            // A uuid is no type.
            "nt" | "st" if !line.value.starts_with(b"uuid:") => {
                sights.tell(datagram.from, HintKind::SsdpType, line.value);
            }
            _ => {}
        }
    }
}
