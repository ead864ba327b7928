//! The root file system: mounted first, entered last.

use core::ffi::CStr;

use crate::failure::{Failure, Text};
use crate::plan::read::{self, List};
use crate::report::Step;
use crate::sys::{self, ATTR_NO_DEVICES, ATTR_READ_ONLY, Errno, Fd, O_DIRECTORY, O_PATH};

/// The mounted root file system.
pub(crate) struct Root {
    directory: Fd,
    /// Whether it differs from the host's.
    own: bool,
}

/// Mounts the root file system without entering it. Without devices, those that are files of it cannot be opened; what is
/// mounted in it later has its own.
pub(crate) fn mount(root: read::Root<'_>, without_devices: bool) -> Result<Root, Failure<'_>> {
    let mounted = match root {
        read::Root::Host => Ok(Root { directory: open_directory(c"/")?, own: false }),
        read::Root::Directory(path) => directory(path, false),
        read::Root::ReadOnly(path) => directory(path, true),
        read::Root::Overlay { lowers, upper, work, volatile } => {
            let layers = Layers { lowers, upper, work };
            Ok(Root { directory: overlay(layers, volatile)?, own: true })
        }
    }?;
    if without_devices && mounted.own {
        // Copies of parts of it that operations mount are without as well.
        let set = sys::set_attributes(mounted.directory, ATTR_NO_DEVICES, false);
        set.map_err(|errno| Failure::with_message(Step::Root, errno, "without devices"))?;
    }
    Ok(mounted)
}

impl Root {
    pub(crate) const fn directory(&self) -> Fd {
        self.directory
    }

    /// Makes it `/` and unmounts the host's root.
    pub(crate) fn enter(self, read_only: bool) -> Result<(), Failure<'static>> {
        let failed = |errno| Failure::new(Step::Pivot, errno);
        if self.own {
            if read_only {
                sys::set_attributes(self.directory, ATTR_READ_ONLY, false).map_err(failed)?;
            }
            sys::change_directory_to(self.directory).map_err(failed)?;
            sys::pivot_here().map_err(failed)?;
        }
        sys::change_directory(c"/").map_err(failed)?;
        if sys::inside_root().map_err(failed)? {
            Ok(())
        } else {
            Err(Failure::with_message(Step::Pivot, Errno::NOENT, "the working directory is outside the root"))
        }
    }
}

fn directory(path: &CStr, read_only: bool) -> Result<Root, Failure<'_>> {
    let failed = |errno| Failure::of(Step::Root, errno, path);
    let place = open_directory(path)?;
    // Only a mount can be pivoted to.
    let copy = sys::copy_mount(place, c"", true).map_err(failed)?;
    if read_only {
        sys::set_attributes(copy, ATTR_READ_ONLY, false).map_err(failed)?;
    }
    sys::attach_mount(copy, place).map_err(failed)?;
    Ok(Root { directory: copy, own: true })
}

fn open_directory(path: &CStr) -> Result<Fd, Failure<'_>> {
    sys::open(path, O_PATH | O_DIRECTORY).map_err(|errno| Failure::of(Step::Root, errno, path))
}

#[derive(Clone, Copy)]
struct Layers<'a> {
    lowers: List<'a, &'a CStr>,
    upper: Option<&'a CStr>,
    work: Option<&'a CStr>,
}

/// Limit of fsconfig(2) for a value.
const MAX_VALUE: usize = 255;

/// Mounts an overlay over its own upper directory, or its topmost layer if there is none.
///
/// A value may have 255 bytes, which neither a deep path nor many paths fit into, and a colon would separate two
/// paths. So each layer is opened and named by its descriptor's number, relative to `/proc/self/fd`.
fn overlay(layers: Layers<'_>, volatile: bool) -> Result<Fd, Failure<'_>> {
    let failed = |errno| Failure::with_message(Step::Root, errno, "overlay");
    let context = sys::filesystem(c"overlay").map_err(failed)?;
    let refused = |errno| failed(errno).with_context(context);

    let mut first = None;
    let mut joined = Text::<{ MAX_VALUE + 1 }>::new();
    let mut fits = true;
    for lower in layers.lowers.iter() {
        let layer = open_directory(lower)?;
        first.get_or_insert(layer);
        fits = fits
            && (joined.as_bytes().is_empty() || joined.push(b":"))
            && joined.push_number(layer.0.unsigned_abs());
    }
    let Some(first) = first else { return Err(failed(Errno::INVAL)) };
    let upper = layers.upper.map(open_directory).transpose()?;
    let work = layers.work.map(open_directory).transpose()?;

    sys::change_directory(c"/proc/self/fd")
        .map_err(|errno| Failure::with_message(Step::Root, errno, "overlay: /proc/self/fd"))?;
    match joined.as_c_str().filter(|_| fits) {
        Some(lowers) => sys::configure(context, c"lowerdir", Some(lowers)).map_err(refused)?,
        // Adding one layer at a time needs Linux 6.5.
        None => {
            for lower in layers.lowers.iter() {
                let layer = open_directory(lower)?;
                set_number(context, c"lowerdir+", layer).map_err(refused)?;
                sys::close(layer);
            }
        }
    }
    if let Some(upper) = upper {
        set_number(context, c"upperdir", upper).map_err(refused)?;
    }
    if let Some(work) = work {
        set_number(context, c"workdir", work).map_err(refused)?;
    }
    if volatile {
        sys::configure(context, c"volatile", None).map_err(refused)?;
    }
    let mount = sys::mount(context, 0).map_err(refused)?;
    sys::close(context);
    if let Some(upper) = upper {
        check_writable(mount, upper)?;
    }
    sys::attach_mount(mount, upper.unwrap_or(first)).map_err(failed)?;
    Ok(mount)
}

/// If the kernel finds no space for what it needs in the work directory, it mounts the overlay read-only, and says why in its
/// log only.
fn check_writable(mount: Fd, upper: Fd) -> Result<(), Failure<'static>> {
    match sys::check_writable(mount) {
        Err(Errno::ROFS) if sys::check_writable(upper).is_ok() => {
            let message = "overlay: no space in its work directory to make it writable";
            Err(Failure::with_message(Step::Root, Errno::NOSPC, message))
        }
        Err(Errno::ROFS) => {
            Err(Failure::with_message(Step::Root, Errno::ROFS, "overlay: its upper directory"))
        }
        // Whether this user may write to it is up to the image.
        _ => Ok(()),
    }
}

fn set_number(context: Fd, name: &CStr, directory: Fd) -> Result<(), Errno> {
    let mut number = Text::<12>::new();
    number.push_number(directory.0.unsigned_abs());
    sys::configure(context, name, number.as_c_str())
}
