//! The mounts of the operations, as a tree like the kernel's: each is attached at a path of another one or the root.
//!
//! A path is followed through the tree as text, without the kernel, so that no other process has an influence on the
//! mount that it leads to. Two paths that differ as text are different here, although a symbolic link may lead from
//! one to the other.

use core::ffi::CStr;

use super::base::Base;
use super::path;
use crate::sys::{self, Errno, Fd, Table};

/// The number of the root. The mount of the first operation is number 1.
const ROOT: usize = 0;

/// A path of the plan: the mount that it leads to, and the path below that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) mount: usize,
    /// Without a leading slash; empty at the mount itself.
    pub(super) path: &'a CStr,
}

impl<'a> Place<'a> {
    pub(super) const fn is_root(&self) -> bool {
        self.mount == ROOT && self.path.is_empty()
    }

    /// The rest of this path, if it is at or below `other`, as far as one mount is concerned.
    fn below(&self, other: Place<'_>) -> Option<&'a CStr> {
        (self.mount == other.mount).then(|| path::strip(self.path, other.path)).flatten()
    }
}

/// What an operation has mounted.
#[derive(Clone, Copy)]
struct Mount<'a> {
    /// `None` if the operation has mounted nothing, and when it has been moved.
    at: Option<Place<'a>>,
    /// `None` if the operation has not been performed.
    descriptor: Option<Fd>,
}

/// The root, and one entry per operation.
pub(super) struct Mounts<'a> {
    entries: Table<Mount<'a>>,
}

impl<'a> Mounts<'a> {
    pub(super) fn new(root: Fd, operations: usize) -> Result<Self, Errno> {
        let mut entries = Table::new(operations + 1, Mount { at: None, descriptor: None })?;
        if let Some(first) = entries.first_mut() {
            first.descriptor = Some(root);
        }
        Ok(Self { entries })
    }

    /// Where a path of the plan leads to.
    pub(super) fn locate(&self, path: &'a CStr) -> Result<Place<'a>, Errno> {
        self.follow(path, |_| true)
    }

    /// Where the parent directory of a path leads to, with the name in it as the last component.
    pub(super) fn locate_name(&self, path: &'a CStr) -> Result<Place<'a>, Errno> {
        self.follow(path, |rest| !rest.is_empty())
    }

    fn follow(&self, path: &'a CStr, enters: fn(&CStr) -> bool) -> Result<Place<'a>, Errno> {
        let path = path::in_root(path).ok_or(Errno::INVAL)?;
        Ok(self.enter(Place { mount: ROOT, path }, enters))
    }

    /// Follows a path into the mounts that are attached on it. Of several the last one covers the others.
    fn enter(&self, mut place: Place<'a>, enters: fn(&CStr) -> bool) -> Place<'a> {
        let next = |place: Place<'a>| {
            self.entries.iter().enumerate().rev().find_map(|(mount, entry)| {
                let path = place.below(entry.at?).filter(|rest| enters(rest))?;
                Some(Place { mount, path })
            })
        };
        while let Some(entered) = next(place) {
            place = entered;
        }
        place
    }

    /// What paths below a mount are resolved from.
    pub(super) fn base(&self, mount: usize) -> Result<Base, Errno> {
        let descriptor = self.descriptor(mount).ok_or(Errno::NOENT)?;
        Ok(if mount == ROOT { Base::Root(descriptor) } else { Base::Mount(descriptor) })
    }

    pub(super) fn descriptor(&self, mount: usize) -> Option<Fd> {
        self.entries.get(mount)?.descriptor
    }

    /// All descriptors, that of the root among them.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = Fd> {
        self.entries.iter().filter_map(|mount| mount.descriptor)
    }

    /// Whether a mount, or one that it is attached below, has yet to be made.
    pub(super) fn is_missing(&self, mount: usize) -> bool {
        let mut next = self.entries.get(mount);
        while let Some(mount) = next {
            if mount.descriptor.is_none() {
                return true;
            }
            next = mount.at.and_then(|at| self.entries.get(at.mount));
        }
        false
    }

    /// Whether anything is attached below a place.
    pub(super) fn any_below(&self, place: Place<'_>) -> bool {
        self.below(place).next().is_some()
    }

    /// Whether a mount below a place has yet to be made.
    pub(super) fn any_missing_below(&self, place: Place<'_>) -> bool {
        self.below(place).any(|mount| mount.descriptor.is_none())
    }

    fn below(&self, place: Place<'_>) -> impl Iterator<Item = &Mount<'a>> {
        let is_below = move |mount: &&Mount<'a>| {
            let mut at = mount.at;
            while let Some(parent) = at {
                if parent.below(place).is_some() {
                    return true;
                }
                at = self.entries.get(parent.mount).and_then(|mount| mount.at);
            }
            false
        };
        self.entries.iter().filter(is_below)
    }

    /// Adds the mount of an operation, without a descriptor if it has yet to be performed.
    pub(super) fn attach(&mut self, mount: usize, at: Place<'a>, descriptor: Option<Fd>) {
        if let Some(entry) = self.entries.get_mut(mount) {
            *entry = Mount { at: Some(at), descriptor };
        }
    }

    /// Removes a mount, which another operation has moved.
    pub(super) fn detach(&mut self, mount: usize) {
        if let Some(entry) = self.entries.get_mut(mount) {
            entry.at = None;
        }
    }

    /// Attaches what is attached below a place to another mount instead.
    pub(super) fn move_below(&mut self, from: Place<'_>, to: usize) {
        for entry in self.entries.iter_mut() {
            if let Some(path) = entry.at.and_then(|at| at.below(from)) {
                entry.at = Some(Place { mount: to, path });
            }
        }
    }

    /// Removes all mounts, and keeps their descriptors.
    pub(super) fn detach_all(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.at = None);
    }

    /// Replaces the descriptors of the mounts below a place, which has been covered by a copy, by those of their
    /// copies. `base` leads to the place.
    ///
    /// A copy is found by its path only. If another process has put something else there, the copy may be anywhere,
    /// and that is an error.
    pub(super) fn open_copies(&mut self, place: Place<'a>, base: Base) -> Result<(), Errno> {
        for mount in 1..self.entries.len() {
            let Some(at) = self.entries.get(mount).and_then(|mount| mount.at) else { continue };
            if at.below(place).is_none() {
                continue;
            }
            // Several mounts may be attached at one path. Only the last one can be opened or is ever used.
            let Place { mount: top, path } = self.enter(at, |_| true);
            let (true, Some(original)) = (path.is_empty(), self.descriptor(top)) else { continue };
            let copy = base.open(at.path)?;
            if !sys::stat(copy)?.is_mount_of_same(&sys::stat(original)?) {
                return Err(Errno::STALE);
            }
            if let Some(entry) = self.entries.get_mut(top) {
                entry.descriptor = Some(copy);
            }
            sys::close(original);
            self.open_copies(Place { mount: top, path: c"" }, Base::Mount(copy))?;
        }
        Ok(())
    }
}

/// Closes the descriptors, except the root's.
impl Drop for Mounts<'_> {
    fn drop(&mut self) {
        self.entries.iter().skip(1).filter_map(|mount| mount.descriptor).for_each(sys::close);
    }
}

#[cfg(test)]
mod tests {
    use core::ffi::CStr;

    use super::{Mounts, Place};
    use crate::sys::Fd;

    /// Attaches one mount at each path in order. No descriptor is opened.
    fn mounts<'a>(paths: &[&'a CStr]) -> Mounts<'a> {
        let mut mounts = Mounts::new(Fd(-1), paths.len()).unwrap();
        for (number, path) in (1..).zip(paths) {
            let at = mounts.locate(path).unwrap();
            mounts.attach(number, at, Some(Fd(-1)));
        }
        mounts
    }

    #[track_caller]
    fn assert_at(mounts: &Mounts<'_>, path: &CStr, mount: usize, rest: &CStr) {
        assert_eq!(mounts.locate(path), Ok(Place { mount, path: rest }), "{path:?}");
    }

    #[test]
    fn a_path_leads_to_the_mount_that_is_nearest() {
        let mounts = mounts(&[c"/dev", c"//dev/./pts/", c"/proc"]);
        assert_at(&mounts, c"/dev/pts/ptmx", 2, c"ptmx");
        assert_at(&mounts, c"/dev/pts", 2, c"");
        assert_at(&mounts, c"/dev/shm/x", 1, c"shm/x");
        assert_at(&mounts, c"/proc/sys", 3, c"sys");
        assert_at(&mounts, c"/process", 0, c"process");
        assert_at(&mounts, c"/", 0, c"");
        assert_at(&mounts, c"/../proc/sys", 3, c"sys");
        assert!(mounts.locate(c"/proc/../dev").is_err());
    }

    #[test]
    fn a_later_mount_covers_those_at_and_below_its_path() {
        let mounts = mounts(&[c"/a/b", c"/a", c"/a", c"/a/b/c"]);
        assert_at(&mounts, c"/a/b/x", 3, c"b/x");
        assert_at(&mounts, c"/a/b/c/x", 4, c"x");
        assert_at(&mounts, c"/a", 3, c"");
    }

    #[test]
    fn a_name_is_found_in_the_mount_of_its_directory() {
        let mounts = mounts(&[c"/etc", c"/etc/hosts"]);
        assert_eq!(mounts.locate_name(c"/etc/hosts"), Ok(Place { mount: 1, path: c"hosts" }));
        assert_eq!(mounts.locate_name(c"/etc"), Ok(Place { mount: 0, path: c"etc" }));
        assert_eq!(mounts.locate_name(c"/etc/hosts/x"), Ok(Place { mount: 2, path: c"x" }));
    }

    #[test]
    fn what_is_mounted_below_moves_along() {
        let mut mounts = mounts(&[c"/a", c"/a/b", c"/other", c"/last"]);
        let source = mounts.locate(c"/a").unwrap();
        let target = mounts.locate(c"/other/new").unwrap();
        mounts.move_below(source, 4);
        mounts.detach(source.mount);
        mounts.attach(4, target, Some(Fd(-1)));
        assert_at(&mounts, c"/other/new/b/x", 2, c"x");
        assert_at(&mounts, c"/other/new/x", 4, c"x");
        assert_at(&mounts, c"/a/b/x", 0, c"a/b/x");
    }

    #[test]
    fn a_copy_has_copies_of_what_is_mounted_below() {
        let mut mounts = Mounts::new(Fd(-1), 2).unwrap();
        let inner = mounts.locate(c"/a/b/c").unwrap();
        mounts.attach(1, inner, None);
        let covered = mounts.locate(c"/a/b").unwrap();
        assert!(mounts.any_below(covered) && mounts.any_missing_below(covered));
        mounts.move_below(covered, 2);
        mounts.attach(2, covered, Some(Fd(-1)));
        assert_at(&mounts, c"/a/b/c/x", 1, c"x");
        assert_at(&mounts, c"/a/b/x", 2, c"x");
        let outside = mounts.locate(c"/a/x").unwrap();
        assert!(!mounts.any_below(outside));
        let above = mounts.locate(c"/a").unwrap();
        assert!(mounts.any_missing_below(above));
    }
}
