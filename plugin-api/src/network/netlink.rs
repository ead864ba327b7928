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
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_DELLINKPROP: u16 = 109;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const EXCLUSIVE_CREATE: u16 = 0x600;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const NLA_F_NESTED: u16 = 0x8000;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const ENODEV: i32 = 19;
const EEXIST: i32 = 17;
const EADDRNOTAVAIL: i32 = 99;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
/// `RT_SCOPE_LINK`; host scope is larger.
const SCOPE_LINK: u8 = 253;

/// The kernel creates the loopback interface with this number in every namespace.
pub(super) const LOOPBACK: i32 = 1;

const HEADER: usize = 16;

/// Longest description of an interface that is read. Its list of alternative names, the only part of it that a container can
/// make long, is at most 64 KiB.
const MAX_REPLY: usize = 256 << 10;

/// Size of an acknowledgement without the request, which an error includes.
const ACKNOWLEDGEMENT: usize = 1 << 10;

/// Most that is read of a list. A container can make it as long as it likes.
const MAX_LIST: usize = 1 << 20;

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: i32,
    /// Not one of its alternative names.
    pub(super) name: Vec<u8>,
    pub(super) alias: Vec<u8>,
    pub(super) alternatives: Vec<Vec<u8>>,
    /// Such as `veth`; empty for hardware.
    pub(super) kind: Vec<u8>,
    /// The number of the other end, or of the one that it is on.
    pub(super) link: Option<i32>,
    /// Whether that is in another namespace.
    pub(super) is_link_elsewhere: bool,
}

/// Sets the loopback interface up, as `ip link set lo up` does.
pub(super) fn enable_loopback() -> io::Result<()> {
    request(RTM_NEWLINK, ACKNOWLEDGE, &link(LOOPBACK, IFF_UP, IFF_UP)).map(drop)
}

/// The interface that has a name, or has it as an alternative one.
pub(super) fn find(name: &[u8]) -> io::Result<Option<Link>> {
    get(&[link(0, 0, 0), attribute(IFLA_IFNAME, &zero_terminated(name))].concat())
}

/// The interface of a number.
pub(super) fn by_index(index: i32) -> io::Result<Option<Link>> {
    get(&link(index, 0, 0))
}

fn get(body: &[u8]) -> io::Result<Option<Link>> {
    match request(RTM_GETLINK, 0, body) {
        Ok(reply) => parse_link(&reply).map(Some).ok_or_else(unexpected),
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut found = Link { index: int(body, 4)?, ..Link::default() };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_IFNAME => found.name = text(value),
            IFLA_IFALIAS => found.alias = text(value),
            IFLA_LINK => found.link = int(value, 0),
            IFLA_LINK_NETNSID => found.is_link_elsewhere = true,
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                found.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            IFLA_PROP_LIST => {
                let names = attributes(value).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
                found.alternatives = names.map(|(_, value)| text(value)).collect();
            }
            _ => {}
        }
    }
    (!found.name.is_empty()).then_some(found)
}

/// Deletes an interface. The kernel keeps the loopback interface and hardware, and tells so of some kinds only.
pub(super) fn delete(index: i32) -> io::Result<()> {
    request(RTM_DELLINK, ACKNOWLEDGE, &link(index, 0, 0)).map(drop)
}

/// Creates an interface that leads nowhere: a bridge, which is the one that every kernel with CNI has.
pub(super) fn create(name: &[u8]) -> io::Result<()> {
    let kind = attribute(IFLA_INFO_KIND, b"bridge");
    let body =
        [link(0, 0, 0), attribute(IFLA_IFNAME, &zero_terminated(name)), attribute(IFLA_LINKINFO, &kind)];
    request(RTM_NEWLINK, ACKNOWLEDGE | EXCLUSIVE_CREATE, &body.concat()).map(drop)
}

/// Sets an interface down and gives it another name. `%d` in it is replaced by a number that makes it unique.
pub(super) fn rename(index: i32, name: &[u8]) -> io::Result<()> {
    // Most kernels rename no interface that is up.
    request(RTM_SETLINK, ACKNOWLEDGE, &link(index, 0, IFF_UP))?;
    let body = [link(index, 0, 0), attribute(IFLA_IFNAME, &zero_terminated(name))].concat();
    request(RTM_SETLINK, ACKNOWLEDGE, &body).map(drop)
}

/// Removes alternative names of an interface.
pub(super) fn remove_alternatives(index: i32, names: &[Vec<u8>]) -> io::Result<()> {
    for names in names.chunks(MAX_NAMES) {
        let list: Vec<u8> =
            names.iter().flat_map(|name| attribute(IFLA_ALT_IFNAME, &zero_terminated(name))).collect();
        let body = [link(index, 0, 0), attribute(IFLA_PROP_LIST | NLA_F_NESTED, &list)].concat();
        request(RTM_DELLINKPROP, ACKNOWLEDGE, &body)?;
    }
    Ok(())
}

/// Most alternative names in one request: each has at most 128 bytes, and an attribute less than 64 KiB.
const MAX_NAMES: usize = 256;

/// Sets the text that describes an interface.
pub(super) fn set_alias(index: i32, alias: &[u8]) -> io::Result<()> {
    let body = [link(index, 0, 0), attribute(IFLA_IFALIAS, alias)].concat();
    request(RTM_SETLINK, ACKNOWLEDGE, &body).map(drop)
}

/// Adds an address to an interface, without its network. Does nothing if the interface has it.
pub(super) fn add_address(index: i32, address: IpAddr) -> io::Result<()> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    match change_address(RTM_NEWADDR, EXCLUSIVE_CREATE, index, address, length) {
        Err(error) if error.raw_os_error() == Some(EEXIST) => Ok(()),
        other => other,
    }
}

/// Removes an address from an interface. Does nothing if the interface does not have it any more: with one address, the kernel
/// may remove others of its network.
pub(super) fn remove_address(index: i32, address: IpAddr, length: u8) -> io::Result<()> {
    match change_address(RTM_DELADDR, 0, index, address, length) {
        Err(error) if error.raw_os_error() == Some(EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

fn change_address(kind: u16, flags: u16, index: i32, address: IpAddr, length: u8) -> io::Result<()> {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    };
    let mut body = vec![family, length, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(attribute(IFA_LOCAL, &bytes));
    // Of a link to one other host, this would be that of the other, which is not known here.
    if kind == RTM_NEWADDR {
        body.extend(attribute(IFA_ADDRESS, &bytes));
    }
    request(kind, ACKNOWLEDGE | flags, &body).map(drop)
}

/// The addresses of an interface that are valid beyond its link, with the lengths of their prefixes; `None` if there are too
/// many interfaces and addresses to tell.
pub(super) fn addresses(index: i32) -> io::Result<Option<BTreeSet<(IpAddr, u8)>>> {
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

fn parse_address(body: &[u8]) -> Option<(IpAddr, u8)> {
    if *body.get(3)? >= SCOPE_LINK {
        return None;
    }
    let mut address = None;
    for (kind, value) in attributes(body.get(8..)?) {
        // Of a link to one other host, the former is its own, and the latter that of the other.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && address.is_none()) {
            address = <[u8; 4]>::try_from(value)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
                .ok();
        }
    }
    Some((address?, *body.get(1)?))
}

/// Sends a request and returns the body of the first reply, which is empty if that is an acknowledgement.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let socket = open()?;
    let message = message(kind, flags, body);
    send(&socket, &message, SendFlags::empty())?;
    let is_acknowledged = flags & ACKNOWLEDGE != 0;
    let mut reply = vec![0; if is_acknowledged { message.len() + ACKNOWLEDGEMENT } else { MAX_REPLY }];
    let (read, length) = recv(&socket, &mut reply[..], RecvFlags::TRUNC)?;
    if length > read {
        return Err(unexpected());
    }
    match messages(reply.get(..read).unwrap_or_default()).next() {
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

/// What a message about an interface begins with: flags, and which of them change.
fn link(index: i32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(change.to_ne_bytes());
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

fn zero_terminated(text: &[u8]) -> Vec<u8> {
    [text, b"\0"].concat()
}

/// Text up to its zero byte.
fn text(value: &[u8]) -> Vec<u8> {
    value.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// Attributes, with their kinds.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(short(bytes, 0)?);
        let found = (short(bytes, 2)? & !NLA_F_NESTED, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
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
