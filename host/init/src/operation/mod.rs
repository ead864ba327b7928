//! The operations that the plan requests inside the root before anything of the container runs.
//!
//! The root's content may be hostile: a `/proc` that is a link to `/../../host`, a `dev` that is a link to `/`. So a
//! target is never named by a path of the host. It is opened relative to the root with openat2(2), which resolves
//! it inside, and everything after that uses the descriptor.
//!
//! Another container with the same root may also change it meanwhile: rename the `/proc` on which a file system has
//! been mounted, and put another directory there. So what is below a mount of the plan is opened relative to that
//! mount's descriptor, which no rename in the root has an influence on.

mod base;
mod create;
mod mask;
mod mounts;
mod path;
#[cfg(test)]
#[cfg(feature = "writer")]
mod tests;

use core::ffi::CStr;

pub(crate) use base::make_directories;

use self::base::Base;
use self::mask::Masks;
use self::mounts::{Mounts, Place};
use crate::failure::Failure;
use crate::plan::read::{List, MountOption, Operation};
use crate::report::Step;
use crate::sys::{self, ATTR_READ_ONLY, Errno, Fd, MS_SLAVE, Table};

/// The operations of a plan, which are performed in order, up to the first failure: all of them, or in two parts.
///
/// A `proc` file system shows the pid namespace of the process that mounts it, a `cgroup` one the cgroup namespace. If that
/// process has no access to the host, what does not depend on it is performed by another one before, which then forks it:
/// the descriptors are the same in both, and both have to be in one mount namespace.
pub(crate) struct Operations<'a> {
    list: List<'a, Operation<'a>>,
    /// Whether anything may be created in the root.
    create: bool,
    mounts: Mounts<'a>,
    masks: Masks,
    /// Which operations are left for the second part, by number.
    left: Option<Table<Option<Prepared>>>,
    /// Until the last one has been performed, descriptors are open.
    _raised: DescriptorLimit,
}

#[derive(Clone, Copy)]
enum Part {
    #[cfg(test)]
    #[cfg(feature = "writer")]
    All,
    Outside,
    Inside,
}

/// Where an operation is performed.
struct Location<'a> {
    target: Place<'a>,
    /// Only of a mount that is moved.
    source: Option<Place<'a>>,
}

/// What the first part has opened for an operation that it has left.
#[derive(Clone, Copy, Default)]
struct Prepared {
    /// The detached mount.
    source: Option<Fd>,
    /// Where to attach it.
    target: Option<Fd>,
}

impl<'a> Operations<'a> {
    /// Unless `create`, nothing is created in the root.
    pub(crate) fn new(root: Fd, create: bool, list: List<'a, Operation<'a>>) -> Result<Self, Failure<'a>> {
        let mounts = Mounts::new(root, list.len()).map_err(|errno| Failure::new(Step::Plan, errno))?;
        let raised = DescriptorLimit::raise();
        Ok(Self { list, create, mounts, masks: Masks::new(), left: None, _raised: raised })
    }

    /// Performs all operations.
    #[cfg(test)]
    #[cfg(feature = "writer")]
    fn perform_all(mut self) -> Result<(), Failure<'a>> {
        self.perform_part(Part::All)
    }

    /// Performs the first part: leaves every operation at or below a file system of the plan that depends on the namespaces
    /// of who mounts it, but creates the directory to mount it on.
    pub(crate) fn perform_outside(&mut self) -> Result<(), Failure<'a>> {
        let left = Table::new(self.list.len() + 1, None);
        self.left = Some(left.map_err(|errno| Failure::new(Step::Plan, errno))?);
        self.perform_part(Part::Outside)
    }

    /// The descriptors that the second part needs: mounts of the container, and places in them.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = Fd> {
        let passed = self.list.iter().filter_map(|operation| match operation {
            Operation::BindDescriptor { descriptor, .. } => Some(Fd(descriptor.cast_signed())),
            _ => None,
        });
        let left = self.left.iter().flat_map(|left| left.iter().flatten());
        let prepared = left.flat_map(|prepared| [prepared.source, prepared.target]).flatten();
        self.mounts.descriptors().chain(self.masks.descriptors()).chain(prepared).chain(passed)
    }

    /// Performs the second part: what the first one has left, also if the root has been entered since.
    pub(crate) fn perform_inside(mut self) -> Result<(), Failure<'a>> {
        // Each operation finds the mounts of those before it, and no others.
        self.mounts.detach_all();
        self.perform_part(Part::Inside)
    }

    fn perform_part(&mut self, part: Part) -> Result<(), Failure<'a>> {
        for (number, operation) in (1..).zip(self.list.iter()) {
            let location = self.locate(operation)?;
            let left = self.left.as_ref().and_then(|left| *left.get(number)?);
            let mount = match part {
                Part::Outside if self.is_inside(operation, &location) => {
                    let prepared = self.prepare(operation, &location)?;
                    if let Some(left) = self.left.as_mut().and_then(|left| left.get_mut(number)) {
                        *left = Some(prepared);
                    }
                    is_mount(operation).then_some(None)
                }
                Part::Inside if left.is_none() => self.mounts.descriptor(number).map(Some),
                _ => self.perform(operation, &location, left.unwrap_or_default())?.map(Some),
            };
            if let Some(mount) = mount {
                self.record(number, operation, &location, mount);
            }
        }
        Ok(())
    }

    fn locate(&self, operation: Operation<'a>) -> Result<Location<'a>, Failure<'a>> {
        let (step, path) = describe(operation);
        let failed = |errno| Failure::of(step, errno, path);
        let target = match operation {
            // These are names in a directory, also where something is mounted on what has the name.
            Operation::Device { .. } | Operation::Symlink { .. } | Operation::WriteFile { .. } => {
                self.mounts.locate_name(path)
            }
            _ => self.mounts.locate(path),
        }
        .map_err(failed)?;
        // A mount over the root is invisible to a process whose root it is.
        if is_mount(operation) && target.is_root() {
            return Err(failed(Errno::INVAL));
        }
        let source = match operation {
            Operation::Move { source, .. } => {
                let found = self.mounts.locate(source);
                Some(found.map_err(|errno| Failure::of(Step::Move, errno, source))?)
            }
            _ => None,
        };
        Ok(Location { target, source })
    }

    /// Whether an operation has to be performed by a process in the pid and cgroup namespaces.
    fn is_inside(&self, operation: Operation<'a>, location: &Location<'a>) -> bool {
        let changes_what_is_left = match operation {
            Operation::Filesystem { kind, .. } => [c"proc", c"cgroup", c"cgroup2"].contains(&kind),
            Operation::ReadOnly { .. } | Operation::Propagation { recursive: true, .. } => {
                self.mounts.any_missing_below(location.target)
            }
            _ => false,
        };
        changes_what_is_left
            || self.mounts.is_missing(location.target.mount)
            || location.source.is_some_and(|source| self.mounts.is_missing(source.mount))
    }

    /// Opens for an operation that is left what cannot be opened later.
    fn prepare(
        &mut self,
        operation: Operation<'a>,
        location: &Location<'a>,
    ) -> Result<Prepared, Failure<'a>> {
        let (step, path) = describe(operation);
        let failed = |errno| Failure::of(step, errno, path);
        let mut prepared = Prepared::default();
        match operation {
            Operation::Bind { source, attributes, recursive, .. } => {
                prepared.source = Some(bind_source(source, attributes, recursive)?);
            }
            Operation::Mask { .. } => self.masks.prepare().map_err(failed)?,
            // Until it is moved, the operations that follow would find it where it is.
            Operation::Move { source, .. }
                if !location.source.is_some_and(|place| self.mounts.is_missing(place.mount)) =>
            {
                return Err(Failure::of(Step::Move, Errno::INVAL, source));
            }
            _ => {}
        }
        if !self.mounts.is_missing(location.target.mount) {
            let opened = match operation {
                Operation::Filesystem { .. } | Operation::Move { .. } => {
                    self.mount_point(location.target, || Ok(true))
                }
                _ => self.open(location.target),
            };
            prepared.target = Some(opened.map_err(failed)?);
        }
        Ok(prepared)
    }

    /// Performs an operation. Returns the mount that it has attached, if any.
    fn perform(
        &mut self,
        operation: Operation<'a>,
        location: &Location<'a>,
        prepared: Prepared,
    ) -> Result<Option<Fd>, Failure<'a>> {
        let (step, path) = describe(operation);
        let target = location.target;
        let base = || if self.create { self.mounts.base(target.mount) } else { Err(Errno::PERM) };
        let no_mount = |()| None;
        match operation {
            Operation::Bind { source, attributes, recursive, .. } => {
                let mount = prepared.source.map_or_else(|| bind_source(source, attributes, recursive), Ok)?;
                self.attach(mount, target, prepared)
            }
            Operation::BindDescriptor { descriptor, attributes, recursive, .. } => {
                let mount = Fd(descriptor.cast_signed());
                // A clone of a mount that the host shares would propagate what the container mounts in it to the host.
                sys::set_propagation(mount, MS_SLAVE, true)
                    .and_then(|()| add_attributes(mount, attributes, recursive))
                    .and_then(|()| self.attach(mount, target, prepared))
            }
            Operation::Move { source, .. } => {
                let mount = location.source.map_or(Err(Errno::INVAL), |place| self.open(place));
                let mount = mount.map_err(|errno| Failure::of(step, errno, source))?;
                self.attach(mount, target, prepared)
            }
            Operation::Filesystem { kind, attributes, options, .. } => {
                let mount = filesystem(kind, path, attributes, options)?;
                self.attach(mount, target, prepared)
            }
            Operation::Mask { .. } => self.hide(target),
            Operation::ReadOnly { .. } => self.make_read_only(target, prepared),
            Operation::Propagation { propagation, recursive, .. } => {
                self.set_propagation(target, prepared, propagation, recursive).map(no_mount)
            }
            Operation::Device { mode, major, minor, uid, gid, .. } => base()
                .and_then(|base| create::device(base, target.path, mode, (major, minor), (uid, gid)))
                .map(no_mount),
            Operation::Symlink { target: content, .. } => {
                base().and_then(|base| create::symlink(base, target.path, content)).map(no_mount)
            }
            Operation::Directory { mode, uid, gid, .. } => {
                base().and_then(|base| create::directory(base, target.path, mode, (uid, gid))).map(no_mount)
            }
            Operation::WriteFile { content, mode, uid, gid, .. } => base()
                .and_then(|base| create::file(base, target.path, content, mode, (uid, gid)))
                .map(no_mount),
        }
        .map_err(|errno| Failure::of(step, errno, path))
    }

    /// Attaches a mount at its target, which is created if it is missing: a directory for a directory, a file for
    /// anything else.
    fn attach(&self, mount: Fd, target: Place<'a>, prepared: Prepared) -> Result<Option<Fd>, Errno> {
        let is_directory = || Ok(sys::stat(mount)?.is_directory());
        let point = match prepared.target {
            Some(point) => point,
            None => self.mount_point(target, is_directory)?,
        };
        sys::attach_mount(mount, point)?;
        sys::close(point);
        Ok(Some(mount))
    }

    fn mount_point(
        &self,
        target: Place<'a>,
        is_directory: impl FnOnce() -> Result<bool, Errno>,
    ) -> Result<Fd, Errno> {
        match self.open(target) {
            Err(Errno::NOENT) if self.create => {}
            other => return other,
        }
        let base = self.mounts.base(target.mount)?;
        if is_directory()? {
            return base.make_directories(target.path, None);
        }
        sys::close(base.in_parent(target.path, sys::create)?);
        self.open(target)
    }

    fn hide(&mut self, target: Place<'a>) -> Result<Option<Fd>, Errno> {
        let Some(point) = self.open_existing(target)? else { return Ok(None) };
        let mount = self.masks.over(point)?;
        sys::attach_mount(mount, point)?;
        sys::close(point);
        Ok(Some(mount))
    }

    fn make_read_only(&mut self, target: Place<'a>, prepared: Prepared) -> Result<Option<Fd>, Errno> {
        let point = match prepared.target {
            None => self.open_existing(target)?,
            opened => opened,
        };
        let Some(point) = point else { return Ok(None) };
        let mount = sys::copy_mount(point, c"", true)?;
        sys::set_attributes(mount, ATTR_READ_ONLY, true)?;
        sys::attach_mount(mount, point)?;
        sys::close(point);
        // What leads to a mount itself does not lead to the copy that covers it.
        let base =
            if target.path.is_empty() { Base::Mount(mount) } else { self.mounts.base(target.mount)? };
        self.mounts.open_copies(target, base)?;
        Ok(Some(mount))
    }

    fn set_propagation(
        &self,
        target: Place<'a>,
        prepared: Prepared,
        propagation: u64,
        recursive: bool,
    ) -> Result<(), Errno> {
        let mount = prepared.target.map_or_else(|| self.open(target), Ok)?;
        sys::set_propagation(mount, propagation, recursive)?;
        sys::close(mount);
        Ok(())
    }

    fn open(&self, place: Place<'_>) -> Result<Fd, Errno> {
        self.mounts.base(place.mount)?.open(place.path)
    }

    /// `None` if nothing is there: then nothing has to be hidden or protected. But where something has been mounted
    /// below, there was something.
    fn open_existing(&self, place: Place<'_>) -> Result<Option<Fd>, Errno> {
        match self.open(place) {
            Err(Errno::NOENT | Errno::NOTDIR) if !self.mounts.any_below(place) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Records what an operation mounts, so that the operations that follow find it.
    fn record(
        &mut self,
        number: usize,
        operation: Operation<'a>,
        location: &Location<'a>,
        mount: Option<Fd>,
    ) {
        match (operation, location.source) {
            (Operation::Move { .. }, Some(source)) => {
                self.mounts.move_below(source, number);
                if source.path.is_empty() {
                    self.mounts.detach(source.mount);
                }
            }
            // The copy includes the mounts below.
            (Operation::ReadOnly { .. }, _) => self.mounts.move_below(location.target, number),
            _ => {}
        }
        self.mounts.attach(number, location.target, mount);
    }
}

/// The step of an operation, and its path in the container.
fn describe(operation: Operation<'_>) -> (Step, &CStr) {
    match operation {
        Operation::Bind { target, .. } | Operation::BindDescriptor { target, .. } => (Step::Bind, target),
        Operation::Move { target, .. } => (Step::Move, target),
        Operation::Filesystem { target, .. } => (Step::Filesystem, target),
        Operation::Device { path, .. } => (Step::Device, path),
        Operation::Symlink { path, .. } => (Step::Symlink, path),
        Operation::Directory { path, .. } => (Step::Directory, path),
        Operation::WriteFile { path, .. } => (Step::WriteFile, path),
        Operation::Mask { path } => (Step::Mask, path),
        Operation::ReadOnly { path } => (Step::ReadOnly, path),
        Operation::Propagation { path, .. } => (Step::Propagation, path),
    }
}

/// Whether an operation mounts something at its path.
fn is_mount(operation: Operation<'_>) -> bool {
    matches!(describe(operation).0, Step::Bind | Step::Move | Step::Filesystem | Step::Mask | Step::ReadOnly)
}

fn bind_source(source: &CStr, attributes: u64, recursive: bool) -> Result<Fd, Failure<'_>> {
    let copy = || {
        let mount = sys::copy_mount(sys::CWD, source, recursive)?;
        add_attributes(mount, attributes, recursive).map(|()| mount)
    };
    copy().map_err(|errno| Failure::of(Step::Bind, errno, source))
}

fn add_attributes(mount: Fd, attributes: u64, recursive: bool) -> Result<(), Errno> {
    if attributes == 0 { Ok(()) } else { sys::set_attributes(mount, attributes, recursive) }
}

fn filesystem<'a>(
    kind: &'a CStr,
    target: &'a CStr,
    attributes: u64,
    options: List<'a, MountOption<'a>>,
) -> Result<Fd, Failure<'a>> {
    let failed = |errno| Failure::of(Step::Filesystem, errno, target);
    let context = sys::filesystem(kind).map_err(|errno| Failure::of(Step::Filesystem, errno, kind))?;
    let refused = |errno| failed(errno).with_context(context);
    for option in options.iter() {
        sys::configure(context, option.name, option.value).map_err(refused)?;
    }
    let mount = sys::mount(context, attributes).map_err(refused)?;
    sys::close(context);
    Ok(mount)
}

/// While it exists, as many descriptors may be open as possible: those of all mounts are.
struct DescriptorLimit(Option<(u64, u64)>);

impl DescriptorLimit {
    const RLIMIT_NOFILE: u32 = 7;

    fn raise() -> Self {
        let limit = sys::limit(Self::RLIMIT_NOFILE).ok();
        if let Some((_, hard)) = limit {
            let _ = sys::set_limit(Self::RLIMIT_NOFILE, hard, hard);
        }
        Self(limit)
    }
}

impl Drop for DescriptorLimit {
    fn drop(&mut self) {
        if let Some((soft, hard)) = self.0 {
            let _ = sys::set_limit(Self::RLIMIT_NOFILE, soft, hard);
        }
    }
}
