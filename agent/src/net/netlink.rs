//! The little of netlink that the packet filter needs: messages with nested attributes, sent as one transaction.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{NetlinkAddr, bind, getsockname};
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::sys;

/// How long the kernel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_DUMP`.
const DUMP: u16 = 0x300;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;

const NESTED: u16 = 0x8000;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
/// Most messages that a question is answered with: more is nothing of the gateway's own.
const MOST_ANSWERS: usize = 1024;
const FLAG_CAPPED: u16 = 0x100;
const FLAG_ACK_TLVS: u16 = 0x200;
const HEADER: usize = 16;

/// A message, its attributes appended one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of this type with a family header in front of its attributes.
    pub(crate) fn new(kind: u16, flags: u16, family_header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(family_header);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Appends an attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // Longer ones don't occur: values here are names, numbers and addresses.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a text with the zero byte that the kernel wants behind it.
    pub(crate) fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(kind, &value)
    }

    /// Appends a number in network order, as nftables has all of its numbers.
    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Appends an attribute that holds those that `inside` appends.
    pub(crate) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        inside(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn finish(&mut self, sequence: u32, flags: u16) {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = flags | u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// The kernel's answer to a message of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    sequence: u32,
    code: i32,
    text: Option<String>,
}

/// Why a transaction wasn't carried out. None of it was.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Which message the kernel objected to; None where it doesn't say.
    pub(crate) message: Option<usize>,
    /// What the kernel said.
    pub(crate) source: io::Error,
}

impl From<io::Error> for Refused {
    fn from(source: io::Error) -> Self {
        Self { message: None, source }
    }
}

/// A connection to one of the kernel's netlink families.
#[derive(Debug)]
pub(crate) struct Session {
    socket: Socket,
    /// By this the kernel tells the connection from others, in notifications too.
    pub(crate) address: u32,
}

impl Session {
    /// Opens a connection.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn open(protocol: libc::c_int) -> io::Result<Self> {
        let socket = open(protocol, 0)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        sys::set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1_i32)?;
        sys::set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1_i32)?;
        let own: NetlinkAddr = getsockname(socket.as_raw_fd())?;
        Ok(Self { socket, address: own.pid() })
    }

    /// Sends `messages` between `begin` and `end` as one piece, and waits for the kernel's answer.
    ///
    /// # Errors
    /// Where the kernel refuses one of them, or doesn't answer.
    pub(crate) fn transaction(
        &self,
        mut begin: Message,
        mut messages: Vec<Message>,
        mut end: Message,
    ) -> Result<(), Refused> {
        let Some(last) = messages.len().checked_sub(1) else { return Ok(()) };
        // What an earlier transaction left behind is no answer to this one.
        self.discard();
        let mut bytes = Vec::new();
        begin.finish(1, 0);
        bytes.extend_from_slice(&begin.bytes);
        for (sequence, (i, message)) in (2..).zip(messages.iter_mut().enumerate()) {
            // Errors always come; one acknowledgement behind them says that they are complete, and hundreds would
            // overflow the socket's buffer.
            message.finish(sequence, if i == last { ACK } else { 0 });
            bytes.extend_from_slice(&message.bytes);
        }
        end.finish(u32::MAX, 0);
        bytes.extend_from_slice(&end.bytes);
        sys::grow_buffer(
            &self.socket,
            sys::Buffer::Send,
            libc::c_int::try_from(bytes.len() * 2).unwrap_or(libc::c_int::MAX).max(1 << 18),
        );
        self.socket.send(&bytes)?;
        let mut buffer = [0; 16 * 1024];
        loop {
            let received = (&self.socket).read(&mut buffer)?;
            for answer in answers(buffer.get(..received).unwrap_or_default()) {
                let message = (answer.sequence as usize).checked_sub(2);
                if answer.code != 0 {
                    let source = io::Error::from_raw_os_error(-answer.code);
                    let source = match answer.text {
                        Some(text) => io::Error::new(source.kind(), format!("{source} ({text})")),
                        None => source,
                    };
                    return Err(Refused { message: message.filter(|m| *m <= last), source });
                }
                if message == Some(last) {
                    return Ok(());
                }
            }
        }
    }

    /// Asks for all that there is of a kind, and gives what is behind each answer's header.
    ///
    /// # Errors
    /// What the kernel says, or where it doesn't answer, or with too much.
    pub(crate) fn dump(&self, mut question: Message) -> io::Result<Vec<Vec<u8>>> {
        const SEQUENCE: u32 = 1;
        self.discard();
        question.finish(SEQUENCE, DUMP);
        self.socket.send(&question.bytes)?;
        let (mut found, mut buffer) = (Vec::new(), [0; 32 * 1024]);
        loop {
            let received = (&self.socket).read(&mut buffer)?;
            let mut bytes = buffer.get(..received).unwrap_or_default();
            while let Some(message) = message(&mut bytes) {
                if u32_at(message, 8) != Some(SEQUENCE) {
                    continue;
                }
                let code = || u32_at(message, HEADER).map_or(0, u32::cast_signed);
                match u16_at(message, 4) {
                    Some(TYPE_ERROR) => return Err(io::Error::from_raw_os_error(-code())),
                    Some(TYPE_DONE) if code() < 0 => {
                        return Err(io::Error::from_raw_os_error(-code()));
                    }
                    Some(TYPE_DONE) => return Ok(found),
                    _ if found.len() >= MOST_ANSWERS => {
                        return Err(io::Error::other("the kernel's answer has no end"));
                    }
                    _ => found.push(message.get(HEADER..).unwrap_or_default().to_vec()),
                }
            }
        }
    }

    fn discard(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        while self.socket.recv_with_flags(&mut buffer, libc::MSG_DONTWAIT).is_ok() {}
    }
}

/// Hears what anybody changes.
#[derive(Debug)]
pub(crate) struct Notices {
    socket: Socket,
}

/// That somebody changed something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    /// The connection that did it: [`Session::address`]. 0: the kernel itself.
    pub(crate) by: u32,
    /// The first attribute's value, up to its first zero byte: in nftables the table that it is about.
    pub(crate) about: Vec<u8>,
}

impl Notices {
    /// Begins to listen to a group.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn listen(protocol: libc::c_int, group: u32) -> io::Result<Self> {
        let socket = open(protocol, 0)?;
        sys::set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)?;
        socket.set_nonblocking(true)?;
        sys::grow_buffer(&socket, sys::Buffer::Receive, 1 << 20);
        Ok(Self { socket })
    }

    /// What was heard since the last call. None: more than could be kept, so it may be anything.
    ///
    /// # Errors
    /// What the socket reports.
    pub(crate) fn take(&self) -> io::Result<Option<Vec<Notice>>> {
        let mut all = Some(Vec::new());
        let mut buffer = [0; 32 * 1024];
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(received) => {
                    let heard = notices(buffer.get(..received).unwrap_or_default());
                    all = all.map(|all: Vec<Notice>| [all, heard].concat());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(all),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => all = None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(protocol: libc::c_int, groups: u32) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW.cloexec(),
        Some(Protocol::from(protocol)),
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Attributes one behind the other, each with its kind and value. It ends where none can be read.
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Takes the first message off. None where there is no whole one.
fn message<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32_at(bytes, 0)? as usize;
    let message = bytes.get(..length).filter(|m| m.len() >= HEADER)?;
    *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(message)
}

/// The notices in a datagram from the kernel.
fn notices(mut bytes: &[u8]) -> Vec<Notice> {
    let mut found = Vec::new();
    while let Some(message) = message(&mut bytes) {
        let notice = || {
            // Behind the header and the family's own 4 bytes.
            let length = usize::from(u16_at(message, HEADER + 4)?);
            let kind = u16_at(message, HEADER + 6)?;
            let value = message.get(HEADER + 8..HEADER + 4 + length)?;
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            (kind & 0x3fff == 1)
                .then(|| Some(Notice { by: u32_at(message, 12)?, about: text.to_vec() }))?
        };
        found.extend(notice());
    }
    found
}

/// The acknowledgements and errors in a datagram from the kernel. What isn't one is passed over.
fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    while let Some(message) = message(&mut bytes) {
        let answer = || {
            (u16_at(message, 4)? == TYPE_ERROR).then_some(())?;
            let code = u32_at(message, HEADER)?.cast_signed();
            let flags = u16_at(message, 6)?;
            let sequence = u32_at(message, 8)?;
            let quoted = u32_at(message, HEADER + 4)? as usize;
            let quoted = if flags & FLAG_CAPPED != 0 { HEADER } else { quoted };
            let attributes = message.get(HEADER + 4 + quoted.next_multiple_of(4)..);
            let text = attributes.filter(|_| flags & FLAG_ACK_TLVS != 0).and_then(|attributes| {
                let (_, text) = Attributes(attributes).find(|(kind, _)| *kind == 1)?;
                Some(String::from_utf8_lossy(text.strip_suffix(b"\0")?).into())
            });
            Some(Answer { sequence, code, text })
        };
        found.extend(answer());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_nest_with_their_lengths_and_padding() {
        let mut message = Message::new(7, CREATE, &[5, 0, 0, 10]);
        message.nest(4, |inner| {
            inner.put_text(1, "eth10").put_u32(2, 0x0102_0304);
        });
        message.finish(9, ACK);
        let expected: Vec<u8> = [
            &44_u32.to_ne_bytes()[..],
            &7_u16.to_ne_bytes(),
            &(CREATE | ACK | REQUEST).to_ne_bytes(),
            &9_u32.to_ne_bytes(),
            &[0; 4],
            &[5, 0, 0, 10],
            &24_u16.to_ne_bytes(),
            &0x8004_u16.to_ne_bytes(),
            &10_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            b"eth10\0\0\0",
            &8_u16.to_ne_bytes(),
            &2_u16.to_ne_bytes(),
            &[1, 2, 3, 4],
        ]
        .concat();
        assert_eq!(message.bytes, expected);
    }

    #[test]
    fn an_error_is_read_with_its_text() {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&TYPE_ERROR.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(FLAG_CAPPED | FLAG_ACK_TLVS).to_ne_bytes());
        bytes[8..12].copy_from_slice(&3_u32.to_ne_bytes());
        bytes.extend((-2_i32).to_ne_bytes());
        bytes.extend([0; HEADER]);
        bytes.extend(7_u16.to_ne_bytes());
        bytes.extend(1_u16.to_ne_bytes());
        bytes.extend(b"no\0\0");
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let expected = Answer { sequence: 3, code: -2, text: Some("no".into()) };
        assert_eq!(answers(&bytes), [expected]);
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes: Vec<u8>, length in 0..64_u32) {
            let mut bytes = bytes;
            if bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&length.to_ne_bytes());
            }
            if bytes.len() >= 6 {
                bytes[4..6].copy_from_slice(&TYPE_ERROR.to_ne_bytes());
            }
            answers(&bytes);
            notices(&bytes);
        }
    }
}
