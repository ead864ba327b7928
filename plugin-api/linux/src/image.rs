//! A program to execute: in sealed memory, which is immutable, or a file of the host.
//!
//! A process in a container can reach the file it was started from as `/proc/self/exe`, and a container that could
//! write to it would control every later one (CVE-2019-5736). A sealed memory file has no path, cannot be written
//! through any descriptor, and its pages are shared by all processes that execute it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, openat};
use rustix::io::Errno;

/// An executable.
#[derive(Debug)]
pub struct Image {
    file: OwnedFd,
}

impl Image {
    /// Copies `program`, the content of an ELF file, into memory and seals it. `name` only appears in
    /// `/proc/PID/maps`.
    pub fn seal(name: &str, program: &[u8]) -> io::Result<Self> {
        // Kernels before 6.3 do not know MFD_EXEC; later ones can be configured to require it.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = match memfd_create(name, flags | MemfdFlags::EXEC) {
            Err(Errno::INVAL) => memfd_create(name, flags)?,
            other => other?,
        };
        let mut file = File::from(memory);
        file.write_all(program)?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { file: file.into() })
    }

    /// Opens a program that no container can reach, such as the dynamic loader. It is what the path leads to now.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { file })
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, AsRawFd};

    use super::Image;

    #[test]
    fn a_sealed_image_can_be_read_but_not_changed() {
        let image = Image::seal("unit-test", b"\x7fELF").unwrap();
        let path = format!("/proc/self/fd/{}", image.as_fd().as_raw_fd());

        let mut bytes = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"\x7fELF");

        let through_own = File::from(image.as_fd().try_clone_to_owned().unwrap()).write(b"x");
        assert_eq!(through_own.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        // Opening for writing is allowed by the kernel; writing, shrinking and growing are not.
        if let Ok(mut reopened) = OpenOptions::new().write(true).open(&path) {
            assert!(reopened.write(b"x").is_err());
            assert!(reopened.set_len(0).is_err());
            assert!(reopened.set_len(100).is_err());
        }
    }
}
