//! SSDP, UPnP's discovery: what a device says that it is. What others look for isn't.

use anteroom_proto::inventory::HintKind;

use crate::frame::Datagram;
use crate::sight::Sights;

/// Most lines of a message that is believed.
const MOST_LINES: usize = 48;

pub(super) fn read(datagram: &Datagram<'_>, sights: &mut Sights) {
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
