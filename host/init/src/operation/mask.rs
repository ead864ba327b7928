//! The mounts that hide what is below them: the null device over a file, an empty directory over a directory.

use crate::sys::{self, ATTR_READ_ONLY, Errno, Fd, O_PATH};

/// The first mount of each kind, of which the others are copies.
pub(super) struct Masks {
    null: Mask,
    empty: Mask,
}

impl Masks {
    pub(super) const fn new() -> Self {
        Self { null: Mask::new(null_device), empty: Mask::new(empty_directory) }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = Fd> {
        [self.null.first, self.empty.first].into_iter().flatten()
    }

    /// A detached mount to be attached over a file or directory.
    pub(super) fn over(&mut self, place: Fd) -> Result<Fd, Errno> {
        if sys::stat(place)?.is_directory() { self.empty.detached() } else { self.null.detached() }
    }

    /// Opens what cannot be opened after the root has been entered.
    pub(super) fn prepare(&mut self) -> Result<(), Errno> {
        self.null.first().map(drop)
    }
}

struct Mask {
    make: fn() -> Result<Fd, Errno>,
    first: Option<Fd>,
    used: bool,
}

impl Mask {
    const fn new(make: fn() -> Result<Fd, Errno>) -> Self {
        Self { make, first: None, used: false }
    }

    fn first(&mut self) -> Result<Fd, Errno> {
        match self.first {
            Some(first) => Ok(first),
            None => Ok(*self.first.insert((self.make)()?)),
        }
    }

    /// Kernels before 6.15 copy only mounts that are attached in a namespace, so the first one is attached itself.
    fn detached(&mut self) -> Result<Fd, Errno> {
        let first = self.first()?;
        if core::mem::replace(&mut self.used, true) {
            sys::copy_mount(first, c"", false)
        } else {
            sys::open_again(first)
        }
    }
}

impl Drop for Mask {
    fn drop(&mut self) {
        self.first.into_iter().for_each(sys::close);
    }
}

/// A detached mount of the host's null device, which is checked to be one.
fn null_device() -> Result<Fd, Errno> {
    const S_IFCHR: u32 = 0o020_000;
    let null = sys::open(c"/dev/null", O_PATH)?;
    let found = sys::stat(null)?;
    if !found.is_kind_of(S_IFCHR) || found.device != (1, 3) {
        return Err(Errno::NODEV);
    }
    let mount = sys::copy_mount(null, c"", false)?;
    sys::close(null);
    Ok(mount)
}

fn empty_directory() -> Result<Fd, Errno> {
    let context = sys::filesystem(c"tmpfs")?;
    sys::configure(context, c"mode", Some(c"0555"))?;
    let mount = sys::mount(context, ATTR_READ_ONLY)?;
    sys::close(context);
    Ok(mount)
}
