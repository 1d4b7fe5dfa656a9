//! Sending: runs of datagrams that the kernel cuts apart (`UDP_SEGMENT`), in batches that never wait.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anteroom_agent_core::lane;
use socket2::SockAddr;

use super::{BATCH, UdpSocket};
use crate::net::offload::Offload;
use crate::net::sys::{self, Control, Sent};

/// Most datagrams in a run: what the kernel takes (`UDP_MAX_SEGMENTS`).
pub(crate) const MAX_SEGMENTS: usize = 64;

/// Most bytes in a run: the longest payload of UDP over IPv4.
pub(crate) const MAX_RUN: usize = 65_507;

/// Most addresses to which datagrams were too big that are kept until they are asked for. Others are met again.
const MAX_TOO_BIG: usize = 64;

/// How long datagrams are sent one by one after a run was refused. It may have been for one peer's route only, which
/// the others shouldn't pay for as long as the agent runs.
const SINGLY_FOR: Duration = Duration::from_secs(300);

/// Datagrams to one address, and there to one [owner](lane::owner_of), one behind the other. All are as long as a segment,
/// but the last may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run<'a> {
    pub(crate) to: SocketAddr,
    /// The type-of-service byte.
    pub(crate) tos: u8,
    /// Length of each datagram but the last.
    pub(crate) segment: usize,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Run<'a> {
    /// One datagram.
    pub(crate) const fn single(to: SocketAddr, tos: u8, bytes: &'a [u8]) -> Self {
        Self { to, tos, segment: bytes.len(), bytes }
    }

    const fn is_single(&self) -> bool {
        self.bytes.len() <= self.segment
    }

    /// How many datagrams it is.
    fn count(&self) -> u64 {
        if self.is_single() { 1 } else { self.bytes.len().div_ceil(self.segment.max(1)) as u64 }
    }

    /// Its datagrams, each a run of its own.
    fn singles(self) -> impl Iterator<Item = Self> + Clone {
        let empty = self.bytes.is_empty().then_some(self);
        let parts = self.bytes.chunks(self.segment.max(1));
        empty.into_iter().chain(parts.map(move |part| Self::single(self.to, self.tos, part)))
    }
}

/// The times to live of what goes out: for owner 0 of the receiver's (lane 0, and whatever isn't a lane's) the machine's usual
/// one, for each other owner one of its own.
///
/// The far end's kernel merges by addresses and lengths, not by what is inside, and gives the whole to the socket of
/// the first. It doesn't merge what differs in time to live: so its sockets get runs of their own lanes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hops {
    /// The usual ones. None where the system doesn't say, or there is no such family.
    v4: Option<u8>,
    v6: Option<u8>,
}

impl Hops {
    pub(super) fn of(socket: &impl AsFd, ipv6: bool) -> Self {
        let usual = |level, name| {
            let usual = sys::get_option::<libc::c_int>(socket, level, name).ok()?;
            u8::try_from(usual).ok().filter(|usual| *usual > 0)
        };
        Self {
            v4: usual(libc::IPPROTO_IP, libc::IP_TTL),
            v6: ipv6.then(|| usual(libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS)).flatten(),
        }
    }

    /// Gives a socket that shares the port, and isn't any owner's, times to live that no owner's datagrams have. Where the
    /// system refuses, more is merged that doesn't belong together.
    pub(super) fn set_apart(self, socket: &impl AsFd) {
        let apart = |usual: u8| libc::c_int::from(usual.checked_add(16).unwrap_or(usual - 16));
        if let Some(usual) = self.v4 {
            let _ = sys::set_option(socket, libc::IPPROTO_IP, libc::IP_TTL, apart(usual));
        }
        if let Some(usual) = self.v6 {
            let hops = libc::IPV6_UNICAST_HOPS;
            let _ = sys::set_option(socket, libc::IPPROTO_IPV6, hops, apart(usual));
        }
    }

    /// The control message for a run to this owner: level, kind and number. None where the usual one is right.
    fn of_run(self, run: &Run<'_>) -> Option<(libc::c_int, libc::c_int, i32)> {
        let owner = lane::owner_of(run.bytes).filter(|owner| *owner > 0)?;
        let (level, kind, usual) = if run.to.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_TTL, self.v4?)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, self.v6?)
        };
        let own = usual.checked_add(owner).unwrap_or(usual - owner);
        Some((level, kind, own.into()))
    }
}

/// Whether the kernel is given runs, which it or the network card cuts apart.
#[derive(Debug, Clone)]
pub(super) struct Segmentation {
    offload: Offload,
    /// When it is tried again, after a run was refused.
    again: Option<Instant>,
}

impl Segmentation {
    /// Asks the kernel whether it knows of runs. One that doesn't would send a run as one long datagram.
    pub(super) fn probe(socket: &impl AsFd) -> Self {
        let known = sys::get_option::<libc::c_int>(socket, libc::SOL_UDP, libc::UDP_SEGMENT);
        let offload = match known {
            Ok(_) => Offload::On,
            Err(error) => Offload::Off(format!("the kernel doesn't have it: {error}")),
        };
        Self { offload, again: None }
    }

    /// Tries it again when it is time to.
    fn retry(&mut self) {
        if self.again.is_some_and(|again| again <= Instant::now()) {
            *self = Self { offload: Offload::On, again: None };
        }
    }

    const fn is_on(&self) -> bool {
        matches!(self.offload, Offload::On)
    }
}

impl UdpSocket {
    /// Whether the kernel cuts runs of datagrams apart (`UDP_SEGMENT`).
    #[must_use]
    pub fn segmentation(&self) -> &Offload {
        &self.segmentation.offload
    }

    /// Sends each datagram by itself from now on, for this reason.
    pub(crate) fn stop_segmentation(&mut self, why: &str) {
        self.segmentation = Segmentation { offload: Offload::Off(why.into()), again: None };
    }

    /// To whom datagrams were too big since this was last asked.
    pub(crate) fn take_too_big(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.too_big_to)
    }

    /// Sends runs, never waiting. Where the kernel refuses to cut them their datagrams are sent one by one; nothing
    /// is lost for it.
    pub(crate) fn send<'a>(
        &mut self,
        mut runs: impl Iterator<Item = Run<'a>> + Clone,
        outcome: &mut Sent,
    ) {
        self.segmentation.retry();
        while self.segmentation.is_on() {
            let Some((run, error)) = self.deliver(&mut runs, outcome) else { return };
            self.send_singly(run, &error, outcome);
        }
        self.deliver(&mut runs.flat_map(Run::singles), outcome);
    }

    /// Sends the datagrams of a run that was refused. Where the first passes by itself, cutting is what the kernel or
    /// the driver can't do, and isn't asked for again for a while; otherwise the run was too long for the interface, or
    /// nothing passes at all, which says nothing of cutting.
    fn send_singly(&mut self, run: Run<'_>, error: &io::Error, outcome: &mut Sent) {
        let mut singles = run.singles();
        let first = singles.next();
        let before = outcome.sent;
        self.deliver(&mut first.into_iter(), outcome);
        if outcome.sent > before {
            tracing::warn!(
                %error,
                "the kernel refuses runs of datagrams (UDP_SEGMENT): they are sent one by one for some minutes"
            );
            self.segmentation = Segmentation {
                offload: Offload::Off(format!("refused: {error}")),
                again: Some(Instant::now() + SINGLY_FOR),
            };
        }
        self.deliver(&mut singles, outcome);
    }

    /// Sends runs up to one of several datagrams that is refused, which it returns. Other refusals are counted.
    fn deliver<'a>(
        &mut self,
        runs: &mut (impl Iterator<Item = Run<'a>> + Clone),
        outcome: &mut Sent,
    ) -> Option<(Run<'a>, io::Error)> {
        loop {
            let error = match self.transmit(runs.clone()) {
                Ok(0) => return None,
                Ok(taken) => {
                    outcome.sent += runs.by_ref().take(taken).map(|run| run.count()).sum::<u64>();
                    continue;
                }
                Err(error) => error,
            };
            let run = runs.next()?;
            if !run.is_single() && may_be_for_cutting(&error) {
                return Some((run, error));
            }
            outcome.note(&error, run.count());
            if error.raw_os_error() == Some(libc::EMSGSIZE)
                && self.too_big_to.len() < MAX_TOO_BIG
                && !self.too_big_to.contains(&run.to)
            {
                self.too_big_to.push(run.to);
            }
            if error.kind() == io::ErrorKind::WouldBlock {
                outcome.queue_full += runs.map(|run| run.count()).sum::<u64>();
                return None;
            }
        }
    }

    /// Hands the first runs to the kernel with one system call. Returns how many it took.
    fn transmit<'a>(&self, runs: impl Iterator<Item = Run<'a>>) -> io::Result<usize> {
        let mut vectors = [const { MaybeUninit::uninit() }; BATCH];
        let mut names = [const { MaybeUninit::<SockAddr>::uninit() }; BATCH];
        let mut controls = [const { MaybeUninit::uninit() }; BATCH];
        let mut messages = [const { MaybeUninit::uninit() }; BATCH];
        let mut count = 0;
        for run in runs.take(BATCH) {
            let vector = vectors[count].write(libc::iovec {
                iov_base: run.bytes.as_ptr().cast_mut().cast(),
                iov_len: run.bytes.len(),
            });
            let name = names[count].write(SockAddr::from(self.mapped(run.to)));
            let header = &mut messages[count].write(sys::empty_message()).msg_hdr;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name.len();
            let hops = self.hops.of_run(&run);
            if run.tos != 0 || !run.is_single() || hops.is_some() {
                let control = controls[count].write(Control::EMPTY);
                header.msg_controllen = write_control(control, &run, hops);
                header.msg_control = control.0.as_mut_ptr().cast();
            }
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        // SAFETY: the first `count` messages were written above. Their vectors cover bytes that are borrowed for 'a;
        // names and controls live in this function; all lengths are theirs. The kernel only reads.
        unsafe { sys::send_some(&self.socket, messages[..count].assume_init_mut()) }
    }

    fn mapped(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.ipv6 => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            other => other,
        }
    }
}

/// Writes a run's type of service, time to live and segment length. Returns how many bytes of the room that takes.
fn write_control(
    control: &mut Control,
    run: &Run<'_>,
    hops: Option<(libc::c_int, libc::c_int, i32)>,
) -> usize {
    let mut used = 0;
    if run.tos != 0 {
        let (level, kind) = if run.to.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_TOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
        };
        used = control.put(used, level, kind, &i32::from(run.tos).to_ne_bytes());
    }
    if let Some((level, kind, hops)) = hops {
        used = control.put(used, level, kind, &hops.to_ne_bytes());
    }
    if !run.is_single() {
        // A run is no longer than a datagram can be, and its segments are shorter.
        let segment = u16::try_from(run.segment).unwrap_or(u16::MAX);
        used = control.put(used, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    used
}

/// Whether an error may mean that the kernel or the driver can't cut the run apart. Some of them say as well that its
/// datagrams are too long for the interface.
fn may_be_for_cutting(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

#[cfg(test)]
mod tests;
