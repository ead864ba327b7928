//! Paths of a plan, compared by component. Empty components and `.` do not count.

use core::ffi::CStr;

/// What remains of `path` below `prefix`, without a leading slash; empty if both are the same. `None` if `path` is
/// neither the same nor below it.
pub(super) fn strip<'p>(path: &'p CStr, prefix: &CStr) -> Option<&'p CStr> {
    let mut rest = at_component(path.to_bytes());
    let mut prefix = at_component(prefix.to_bytes());
    while !prefix.is_empty() {
        let (component, below) = split(rest);
        let (wanted, wanted_below) = split(prefix);
        if component != wanted {
            return None;
        }
        (rest, prefix) = (below, wanted_below);
    }
    end_of(path, rest.len())
}

/// The path relative to the root, of which the root is its own parent. `None` if `..` follows a name: to which
/// directory it leads then depends on whether that is a symbolic link.
pub(super) fn in_root(path: &CStr) -> Option<&CStr> {
    let mut rest = at_component(path.to_bytes());
    while let (b"..", below) = split(rest) {
        rest = below;
    }
    let has_parent = rest.split(|byte| *byte == b'/').any(|component| component == b"..");
    if has_parent { None } else { end_of(path, rest.len()) }
}

fn end_of(path: &CStr, length: usize) -> Option<&CStr> {
    let start = path.count_bytes().checked_sub(length)?;
    CStr::from_bytes_with_nul(path.to_bytes_with_nul().get(start..)?).ok()
}

/// The first component, and the path from the second one on.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
    let (component, rest) = path.split_at_checked(end).unwrap_or_default();
    (component, at_component(rest))
}

/// The path from its first component on.
fn at_component(mut path: &[u8]) -> &[u8] {
    loop {
        path = match path {
            [b'/', rest @ ..] | [b'.', b'/', rest @ ..] => rest,
            [b'.'] => return b"",
            _ => return path,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::{in_root, strip};

    #[test]
    fn paths_are_compared_by_component() {
        for (path, prefix, rest) in [
            (c"/proc/keys", c"/proc", Some(c"keys")),
            (c"/proc", c"/proc", Some(c"")),
            (c"//proc/./keys/", c"/./proc//", Some(c"keys/")),
            (c"/proc/.", c"proc/", Some(c"")),
            (c"/proc/..x/.y", c"/proc", Some(c"..x/.y")),
            (c"/proc/a//./b", c"/proc/a", Some(c"b")),
            (c"/a", c"/", Some(c"a")),
            (c"/", c"", Some(c"")),
            (c"/.", c"/", Some(c"")),
            (c"/process", c"/proc", None),
            (c"/pro", c"/proc", None),
            (c"/", c"/proc", None),
            (c"/x/proc", c"/proc", None),
            (c"/.proc", c"/proc", None),
        ] {
            assert_eq!(strip(path, prefix), rest, "{path:?} below {prefix:?}");
        }
    }

    #[test]
    fn the_root_is_its_own_parent_and_a_name_has_none() {
        for (path, relative) in [
            (c"/", Some(c"")),
            (c"/a/./b/", Some(c"a/./b/")),
            (c"//.././../a", Some(c"a")),
            (c"/..", Some(c"")),
            (c"../../", Some(c"")),
            (c"/..a/a../.../b", Some(c"..a/a../.../b")),
            (c"/a/..", None),
            (c"/../a/../b", None),
            (c"a/.//../", None),
        ] {
            assert_eq!(in_root(path), relative, "{path:?}");
        }
    }
}
