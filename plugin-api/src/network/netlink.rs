//! Interfaces and addresses in the network namespace of the calling thread, see rtnetlink(7).

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const EXCLUSIVE_CREATE: u16 = 0x600;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const ENODEV: i32 = 19;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
/// `RT_SCOPE_LINK`; host scope is larger.
const SCOPE_LINK: u8 = 253;

/// The kernel creates the loopback interface with this number in every namespace.
const LOOPBACK: i32 = 1;

const HEADER: usize = 16;

/// Most that is read of a list. A container can make it as long as it likes.
const MAX_LIST: usize = 1 << 20;

/// Sets the loopback interface up, as `ip link set lo up` does.
pub(super) fn enable_loopback() -> io::Result<()> {
    request(RTM_NEWLINK, ACKNOWLEDGE, &link(LOOPBACK, IFF_UP)).map(drop)
}

/// The number of an interface; `None` if there is none of that name.
pub(super) fn index(name: &str) -> io::Result<Option<i32>> {
    let body = [link(0, 0), attribute(IFLA_IFNAME, &zero_terminated(name))].concat();
    match request(RTM_GETLINK, 0, &body) {
        Ok(reply) => int(&reply, 4).map(Some).ok_or_else(unexpected),
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes an interface.
pub(super) fn delete(index: i32) -> io::Result<()> {
    request(RTM_DELLINK, ACKNOWLEDGE, &link(index, 0)).map(drop)
}

/// Creates an interface that leads nowhere: a bridge, which is the one that every kernel with CNI has.
pub(super) fn create(name: &str) -> io::Result<()> {
    let kind = attribute(IFLA_INFO_KIND, b"bridge");
    let body = [link(0, 0), attribute(IFLA_IFNAME, &zero_terminated(name)), attribute(IFLA_LINKINFO, &kind)]
        .concat();
    request(RTM_NEWLINK, ACKNOWLEDGE | EXCLUSIVE_CREATE, &body).map(drop)
}

/// Adds an address to an interface, without its network.
pub(super) fn add_address(index: i32, address: IpAddr) -> io::Result<()> {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    };
    let length = u8::try_from(bytes.len() * 8).map_err(io::Error::other)?;
    let mut body = vec![family, length, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(attribute(IFA_LOCAL, &bytes));
    body.extend(attribute(IFA_ADDRESS, &bytes));
    request(RTM_NEWADDR, ACKNOWLEDGE | EXCLUSIVE_CREATE, &body).map(drop)
}

/// The addresses of an interface that are valid beyond its link; `None` if there are too many interfaces and addresses to
/// tell.
pub(super) fn addresses(index: i32) -> io::Result<Option<BTreeSet<IpAddr>>> {
    let socket = open()?;
    send(&socket, &message(RTM_GETADDR, DUMP, &[0; 8]), SendFlags::empty())?;
    let (mut found, mut read) = (BTreeSet::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        read += length;
        if read > MAX_LIST {
            return Ok(None);
        }
        for (kind, body) in messages(buffer.get(..length).unwrap_or_default()) {
            match kind {
                NLMSG_DONE => return Ok(Some(found)),
                NLMSG_ERROR => check(body)?,
                RTM_NEWADDR if int(body, 4) == Some(index) => found.extend(parse_address(body)),
                _ => {}
            }
        }
    }
}

fn parse_address(body: &[u8]) -> Option<IpAddr> {
    if *body.get(3)? >= SCOPE_LINK {
        return None;
    }
    let mut address = None;
    let mut rest = body.get(8..)?;
    while let (Some(length), Some(kind)) = (short(rest, 0), short(rest, 2)) {
        let length = usize::from(length);
        let value = rest.get(4..length)?;
        // Of a link to one other host, the former is its own, and the latter that of the other.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && address.is_none()) {
            address = <[u8; 4]>::try_from(value)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
                .ok();
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    address
}

/// Sends a request and returns the body of the first reply, which is empty if that is an acknowledgement.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let socket = open()?;
    send(&socket, &message(kind, flags, body), SendFlags::empty())?;
    let mut reply = vec![0; 64 << 10];
    let (length, _) = recv(&socket, &mut reply[..], RecvFlags::empty())?;
    match messages(reply.get(..length).unwrap_or_default()).next() {
        Some((NLMSG_ERROR, body)) => check(body).map(|()| Vec::new()),
        Some((_, body)) => Ok(body.to_vec()),
        None => Err(unexpected()),
    }
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// An error, or an acknowledgement, which is the error 0.
fn check(body: &[u8]) -> io::Result<()> {
    match int(body, 0) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(unexpected()),
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    // Sequence number and sender.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// What a message about an interface begins with. Flags that are set are those that change.
fn link(index: i32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut attribute = Vec::with_capacity(4 + value.len());
    attribute.extend(length.to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn zero_terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

/// The messages in what was received, with their kinds.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(int(bytes, 0)?).ok()?;
        let found = (short(bytes, 4)?, bytes.get(HEADER..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

fn int(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn unexpected() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the kernel has sent an unexpected netlink message")
}
