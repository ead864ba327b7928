//! Sockets of a process, from `/proc`.

use std::fs;
use std::path::Path;

/// Whether `link`, a descriptor in `/proc`, is one end of a socket pair, as control sockets are. Sockets of the API have
/// a name.
pub fn is_unnamed_socket(tid: i32, link: &Path) -> bool {
    let Some(inode) = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')) else {
        return false;
    };
    let sockets = fs::read_to_string(format!("/proc/{tid}/net/unix")).unwrap_or_default();
    sockets.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(6);
        fields.next() == Some(inode) && fields.next().is_none()
    })
}
