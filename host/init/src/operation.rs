//! The operations that the plan requests inside the root before anything of the container runs.
//!
//! The root's content may be hostile: a `/proc` that is a link to `/../../host`, a `dev` that is a link to `/`. So a
//! target is never named by a path of the host. It is opened relative to the root with openat2(2), which resolves
//! it inside, and everything after that uses the descriptor.

use core::ffi::CStr;

use crate::failure::{Failure, Text};
use crate::plan::read::{List, MountOption, Operation};
use crate::report::Step;
use crate::sys::{self, ATTR_READ_ONLY, Errno, Fd, O_DIRECTORY, O_PATH, O_RDONLY};

/// Performs the operations in order, up to the first failure. Unless `create`, nothing is created in the root.
pub(crate) fn perform_all<'a>(
    root: Fd,
    create: bool,
    operations: List<'a, Operation<'a>>,
) -> Result<(), Failure<'a>> {
    let mut mask = Mask { root, null: None, empty: None };
    operations.iter().try_for_each(|operation| perform(Place { root, create }, &mut mask, operation))
}

/// The root, and whether anything may be created in it.
#[derive(Clone, Copy)]
struct Place {
    root: Fd,
    create: bool,
}

fn perform<'a>(place: Place, mask: &mut Mask, operation: Operation<'a>) -> Result<(), Failure<'a>> {
    let root = place.root;
    match operation {
        Operation::Bind { source, target, attributes, recursive } => {
            let mount = bind_source(source, attributes, recursive)
                .map_err(|errno| Failure::of(Step::Bind, errno, source))?;
            attach_at(place, mount, target).map_err(|errno| Failure::of(Step::Bind, errno, target))
        }
        Operation::BindDescriptor { descriptor, target, attributes, recursive } => {
            let failed = |errno| Failure::of(Step::Bind, errno, target);
            let mount = Fd(descriptor.cast_signed());
            if attributes != 0 {
                sys::set_attributes(mount, attributes, recursive).map_err(failed)?;
            }
            attach_at(place, mount, target).map_err(failed)
        }
        Operation::Move { source, target } => {
            let mount = sys::open_in_root(root, source, O_PATH)
                .map_err(|errno| Failure::of(Step::Move, errno, source))?;
            attach_at(place, mount, target).map_err(|errno| Failure::of(Step::Move, errno, target))
        }
        Operation::Filesystem { kind, target, attributes, options } => {
            filesystem(place, kind, target, attributes, options)
        }
        Operation::Device { path, mode, major, minor, uid, gid } => {
            device(place, path, mode, (major, minor), (uid, gid))
                .map_err(|errno| Failure::of(Step::Device, errno, path))
        }
        Operation::Symlink { path, target } => {
            symlink(place, path, target).map_err(|errno| Failure::of(Step::Symlink, errno, path))
        }
        Operation::Directory { path, mode, uid, gid } => {
            directory(place, path, mode, uid, gid).map_err(|errno| Failure::of(Step::Directory, errno, path))
        }
        Operation::WriteFile { path, content, mode, uid, gid } => {
            write_file(place, path, content, mode, (uid, gid))
                .map_err(|errno| Failure::of(Step::WriteFile, errno, path))
        }
        Operation::Propagation { path, propagation, recursive } => {
            set_propagation(root, path, propagation, recursive)
                .map_err(|errno| Failure::of(Step::Propagation, errno, path))
        }
        Operation::Mask { path } => mask.hide(path).map_err(|errno| Failure::of(Step::Mask, errno, path)),
        Operation::ReadOnly { path } => {
            read_only(root, path).map_err(|errno| Failure::of(Step::ReadOnly, errno, path))
        }
    }
}

fn bind_source(source: &CStr, attributes: u64, recursive: bool) -> Result<Fd, Errno> {
    let mount = sys::copy_mount(sys::CWD, source, recursive)?;
    if attributes != 0 {
        sys::set_attributes(mount, attributes, recursive)?;
    }
    Ok(mount)
}

/// Attaches a mount at `target` inside the root, which is created if it is missing: a directory for a directory, a
/// file for anything else.
fn attach_at(place: Place, mount: Fd, target: &CStr) -> Result<(), Errno> {
    let root = place.root;
    let place = match sys::open_in_root(root, target, O_PATH) {
        Err(Errno::NOENT) if place.create => {
            if sys::stat(mount)?.is_directory() {
                make_directories(root, target, None)?
            } else {
                let mut name = Text::new();
                let (parent, name) = parent_of(root, target, &mut name)?;
                sys::close(sys::create(parent, name)?);
                sys::open_in_root(root, target, O_PATH)?
            }
        }
        other => other?,
    };
    sys::attach_mount(mount, place)?;
    sys::close(place);
    sys::close(mount);
    Ok(())
}

fn filesystem<'a>(
    place: Place,
    kind: &'a CStr,
    target: &'a CStr,
    attributes: u64,
    options: List<'a, MountOption<'a>>,
) -> Result<(), Failure<'a>> {
    let failed = |errno| Failure::of(Step::Filesystem, errno, target);
    let context = sys::filesystem(kind).map_err(|errno| Failure::of(Step::Filesystem, errno, kind))?;
    let refused = |errno| failed(errno).with_context(context);
    for option in options.iter() {
        sys::configure(context, option.name, option.value).map_err(refused)?;
    }
    let mount = sys::mount(context, attributes).map_err(refused)?;
    sys::close(context);
    attach_at(place, mount, target).map_err(failed)
}

fn device(
    place: Place,
    path: &CStr,
    mode: u32,
    number: (u32, u32),
    (uid, gid): (u32, u32),
) -> Result<(), Errno> {
    let mut name = Text::new();
    let (parent, name) = parent_of(place.creating()?, path, &mut name)?;
    match sys::make_node(parent, name, mode, number.0, number.1) {
        Err(Errno::EXIST) => {
            let there = sys::stat_at(parent, name)?;
            let same = there.is_kind_of(mode) && there.device == number;
            if same { Ok(()) } else { Err(Errno::EXIST) }
        }
        Ok(()) if (uid, gid) != (0, 0) => sys::change_owner_at(parent, name, uid, gid),
        other => other,
    }
}

impl Place {
    /// The root, for an operation that creates something in it.
    fn creating(self) -> Result<Fd, Errno> {
        if self.create { Ok(self.root) } else { Err(Errno::PERM) }
    }
}

fn write_file(
    place: Place,
    path: &CStr,
    content: &[u8],
    mode: u32,
    (uid, gid): (u32, u32),
) -> Result<(), Errno> {
    const S_IFREG: u32 = 0o100_000;
    let mut name = Text::new();
    let (parent, name) = parent_of(place.creating()?, path, &mut name)?;
    let file = sys::create(parent, name)?;
    // What exists may be a device or a FIFO, which was opened without blocking.
    if !sys::stat(file)?.is_kind_of(S_IFREG) {
        return Err(Errno::EXIST);
    }
    sys::truncate(file)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = sys::write(file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    // The owner first: changing it clears set-id bits.
    sys::change_owner(file, uid, gid)?;
    sys::change_mode_of_file(file, mode)?;
    sys::close(file);
    Ok(())
}

fn set_propagation(root: Fd, path: &CStr, propagation: u64, recursive: bool) -> Result<(), Errno> {
    let place = sys::open_in_root(root, path, O_PATH)?;
    sys::set_propagation(place, propagation, recursive)?;
    sys::close(place);
    Ok(())
}

fn symlink(place: Place, path: &CStr, target: &CStr) -> Result<(), Errno> {
    let mut name = Text::new();
    let (parent, name) = parent_of(place.creating()?, path, &mut name)?;
    match sys::make_symlink(target, parent, name) {
        Err(Errno::EXIST) => {
            let mut buffer = [0; MAX_PATH];
            match sys::read_symlink(parent, name, &mut buffer) {
                Ok(existing) if existing == target.to_bytes() => Ok(()),
                // Not a symbolic link.
                Ok(_) | Err(Errno::INVAL) => Err(Errno::EXIST),
                Err(errno) => Err(errno),
            }
        }
        other => other,
    }
}

fn directory(place: Place, path: &CStr, mode: u32, uid: u32, gid: u32) -> Result<(), Errno> {
    let directory = make_directories(place.creating()?, path, None)?;
    // The owner first: changing it clears set-id bits.
    sys::change_owner(directory, uid, gid)?;
    sys::change_mode(directory, mode)?;
    sys::close(directory);
    Ok(())
}

fn read_only(root: Fd, path: &CStr) -> Result<(), Errno> {
    let place = match sys::open_in_root(root, path, O_PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let mount = sys::copy_mount(place, c"", true)?;
    sys::set_attributes(mount, ATTR_READ_ONLY, true)?;
    sys::attach_mount(mount, place)?;
    sys::close(place);
    sys::close(mount);
    Ok(())
}

/// The mounts that cover masked paths; each is created when first needed and copied after that.
struct Mask {
    root: Fd,
    null: Option<Fd>,
    empty: Option<Fd>,
}

impl Mask {
    fn hide(&mut self, path: &CStr) -> Result<(), Errno> {
        let place = match sys::open_in_root(self.root, path, O_PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        let is_directory = sys::stat(place)?.is_directory();
        match (is_directory, self.empty) {
            // Kernels before 6.15 copy only mounts that are attached in a namespace, so the first one is attached
            // itself.
            (true, None) => sys::attach_mount(*self.empty.insert(empty_directory()?), place)?,
            (true, Some(empty)) => attach_copy(empty, place)?,
            (false, _) => attach_copy(once(&mut self.null, null_device)?, place)?,
        }
        sys::close(place);
        Ok(())
    }
}

fn attach_copy(cover: Fd, place: Fd) -> Result<(), Errno> {
    let mount = sys::copy_mount(cover, c"", false)?;
    sys::attach_mount(mount, place)?;
    sys::close(mount);
    Ok(())
}

fn once(slot: &mut Option<Fd>, make: fn() -> Result<Fd, Errno>) -> Result<Fd, Errno> {
    match *slot {
        Some(fd) => Ok(fd),
        None => Ok(*slot.insert(make()?)),
    }
}

/// Opens the host's null device, and checks that it is one.
fn null_device() -> Result<Fd, Errno> {
    const S_IFCHR: u32 = 0o020_000;
    let null = sys::open(c"/dev/null", O_PATH)?;
    let found = sys::stat(null)?;
    if found.is_kind_of(S_IFCHR) && found.device == (1, 3) { Ok(null) } else { Err(Errno::NODEV) }
}

fn empty_directory() -> Result<Fd, Errno> {
    let context = sys::filesystem(c"tmpfs")?;
    sys::configure(context, c"mode", Some(c"0555"))?;
    let mount = sys::mount(context, ATTR_READ_ONLY)?;
    sys::close(context);
    Ok(mount)
}

/// Limit of the kernel for a path, including the NUL.
const MAX_PATH: usize = 4096;

/// Opens the parent directory of `path`, created if it is missing, and returns it with the last component of `path`.
fn parent_of<'t>(root: Fd, path: &CStr, name: &'t mut Text<MAX_PATH>) -> Result<(Fd, &'t CStr), Errno> {
    let bytes = path.to_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let bytes = bytes.get(..end).unwrap_or_default();
    let start = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (parent, last) = bytes.split_at_checked(start).unwrap_or_default();
    if matches!(last, b"" | b"." | b"..") {
        return Err(Errno::INVAL);
    }

    let parent = if parent.is_empty() {
        sys::open_in_root(root, c"/", O_PATH | O_DIRECTORY)?
    } else {
        let mut text = Text::<MAX_PATH>::new();
        text.push(parent);
        make_directories(root, text.as_c_str().ok_or(Errno::NAMETOOLONG)?, None)?
    };
    name.push(last);
    Ok((parent, name.as_c_str().ok_or(Errno::NAMETOOLONG)?))
}

/// Opens a directory inside the root, created with its parents if missing. Created ones get `owner`, a user and a
/// group.
pub(crate) fn make_directories(root: Fd, path: &CStr, owner: Option<(u32, u32)>) -> Result<Fd, Errno> {
    match sys::open_in_root(root, path, O_RDONLY | O_DIRECTORY) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let mut walked = Text::<MAX_PATH>::new();
    let mut here = sys::open_in_root(root, c"/", O_PATH | O_DIRECTORY)?;
    for name in path.to_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        let before = walked.as_bytes().len();
        walked.push(b"/");
        walked.push(name);
        let step = walked.as_c_str().ok_or(Errno::NAMETOOLONG)?;
        let next = match sys::open_in_root(root, step, O_RDONLY | O_DIRECTORY) {
            Err(Errno::NOENT) => {
                let name = step.to_bytes_with_nul().get(before + 1..).unwrap_or_default();
                let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
                // The name exists and does not resolve: a dangling link, through which nothing is created.
                match sys::make_directory(here, name, 0o755) {
                    Err(Errno::EXIST) => return Err(Errno::NOENT),
                    other => other?,
                }
                let made = sys::open_in_root(here, name, O_RDONLY | O_DIRECTORY)?;
                if let Some((uid, gid)) = owner {
                    sys::change_owner(made, uid, gid)?;
                }
                made
            }
            other => other?,
        };
        sys::close(here);
        here = next;
    }
    Ok(here)
}
