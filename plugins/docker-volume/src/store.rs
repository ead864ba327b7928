//! What is kept of volumes: a directory for each that is in use, in the plugin's own directory, which survives a reboot.
//!
//! ```text
//! nfs,data/            locked while something is done with the volume
//!   volume             driver, name, options, id of the mount, boot; written before the driver is told to mount
//!   mounted            where it is mounted; written when the driver has answered
//!   releasing          the same, renamed before the driver is told to unmount
//!   users/web          one empty file per container
//! ```
//!
//! Nothing is written at the end of a container: that needs no space on the disk.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::tree;
use serde::de::DeserializeOwned;

/// Most of a file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Most bytes of a name of a directory, a limit of the kernel.
const MAX_KEY: usize = 255;

/// A volume, as it was requested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub driver: String,
    pub name: String,
    pub options: BTreeMap<String, String>,
    /// What the driver is told that the mount is for.
    pub id: String,
    /// The boot of the host in which it was mounted.
    pub boot: String,
}

impl Volume {
    /// One that is not mounted yet.
    pub fn new(driver: &str, name: &str, options: &BTreeMap<String, String>) -> Self {
        let (driver, name) = (driver.to_owned(), name.to_owned());
        Self { driver, name, options: options.clone(), id: String::new(), boot: String::new() }
    }
}

/// Where a volume is mounted, and which directory that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    pub path: PathBuf,
    pub device: (u32, u32),
    pub inode: u64,
}

/// The name of a volume's directory. A driver's name has no comma.
pub fn key(driver: &str, name: &str) -> Result<String> {
    let named = || format!("the volume `{}` cannot be used", name.escape_debug());
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Error::invalid("its name is empty or has control characters").context(named()));
    }
    let mut key = format!("{driver},");
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => key.push(byte.into()),
            other => key.push_str(&format!("%{other:02x}")),
        }
    }
    if key.len() > MAX_KEY {
        return Err(Error::invalid("its name is too long").context(named()));
    }
    Ok(key)
}

/// The directories of all volumes.
pub struct Store {
    root: PathBuf,
}

/// The directory of a volume, locked.
pub struct Entry {
    path: PathBuf,
    lock: File,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // A process that is being started may have the descriptor for a moment longer.
        let _ = self.lock.unlock();
    }
}

impl Store {
    pub fn new(directory: &Path) -> Self {
        Self { root: directory.join("volumes") }
    }

    /// The keys of all volumes that are in use.
    pub fn keys(&self) -> Result<Vec<String>> {
        names(&self.root)
    }

    /// Whether a container uses a volume.
    pub fn is_used_by(&self, key: &str, container: &str) -> bool {
        user(&self.root.join(key), container).symlink_metadata().is_ok()
    }

    /// Locks the directory of a volume; `None` if there is none.
    pub fn open(&self, key: &str) -> Result<Option<Entry>> {
        let path = self.root.join(key);
        let failed = || format!("cannot lock `{}`", path.display());
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(failed()),
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let error = "another instance of this plugin uses it at this moment";
                return Err(Error::new(error).retryable().context(failed()));
            }
            Err(TryLockError::Error(error)) => return Err(error).context(failed()),
        }
        // It may have been removed before it was locked.
        let inode = lock.metadata().context(failed())?.ino();
        match fs::metadata(&path) {
            Ok(found) if found.ino() == inode => Ok(Some(Entry { path, lock })),
            _ => Ok(None),
        }
    }

    /// Creates the directory of a volume that has none, and locks it.
    pub fn create(&self, key: &str) -> Result<Entry> {
        let path = self.root.join(key);
        let failed = || format!("cannot create `{}`", path.display());
        directories(&path).context(failed())?;
        let removed = || Error::new("it was removed meanwhile").retryable();
        self.open(key).and_then(|entry| entry.ok_or_else(removed)).map_err(|error| {
            // Fails if something is in it.
            let _ = fs::remove_dir(&path);
            error.context(failed())
        })
    }
}

impl Entry {
    /// The volume; `None` if its driver was told nothing yet.
    pub fn volume(&self) -> Result<Option<Volume>> {
        read(&self.path.join("volume")).context(
            "the volume cannot be unmounted: unmount it by other means, and remove the directory of that file",
        )
    }

    pub fn record(&self, volume: &Volume) -> Result<()> {
        write(&self.path, "volume", volume)
    }

    /// Where the volume is mounted; `None` if it is not known to be mounted, or is being released.
    pub fn mounted(&self) -> Result<Option<Mounted>> {
        read(&self.path.join("mounted"))
    }

    pub fn record_mounted(&self, mounted: &Mounted) -> Result<()> {
        write(&self.path, "mounted", mounted)
    }

    /// From now on nobody can use the volume. Returns where it was mounted, if that is known.
    pub fn begin_release(&self) -> Result<Option<Mounted>> {
        let releasing = self.path.join("releasing");
        match fs::rename(self.path.join("mounted"), &releasing) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).context(format!("cannot create `{}`", releasing.display()));
            }
            _ => {}
        }
        // A damaged file is as good as none.
        Ok(read(&releasing).unwrap_or_default())
    }

    /// The driver has refused to unmount the volume, which is still mounted.
    pub fn undo_release(&self) -> Result<()> {
        let mounted = self.path.join("mounted");
        fs::rename(self.path.join("releasing"), &mounted)
            .context(format!("cannot create `{}`", mounted.display()))
    }

    /// The containers that use the volume.
    pub fn users(&self) -> Result<Vec<String>> {
        names(&self.path.join("users"))
    }

    pub fn add_user(&self, container: &str) -> Result<()> {
        let path = user(&self.path, container);
        let create = || {
            directories(&self.path.join("users"))?;
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)
        };
        create().map(drop).context(format!("cannot create `{}`", path.display()))
    }

    pub fn remove_user(&self, container: &str) -> Result<()> {
        let path = user(&self.path, container);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context(format!("cannot remove `{}`", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Forgets the volume, which its driver has unmounted.
    pub fn remove(self) -> Result<()> {
        tree::remove(&self.path).context(format!("cannot remove `{}`", self.path.display()))?;
        Ok(())
    }
}

fn user(volume: &Path, container: &str) -> PathBuf {
    volume.join("users").join(container)
}

fn directories(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = || format!("cannot read `{}`", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(failed()),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.context(failed())?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(format!("cannot open `{}`", path.display())),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).context(format!("cannot read `{}`", path.display()))?;
    serde_json::from_slice(&text).map(Some).context(format!("`{}` is damaged", path.display()))
}

/// Replaces a file at once; on return it is on the disk.
fn write(directory: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let path = directory.join(name);
    let write = || -> io::Result<()> {
        let next = directory.join("next");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(&next, &path)?;
        // The directory, and its entry in the directory of all.
        File::open(directory)?.sync_all()?;
        directory.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    write().context(format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_volumes_become_names_of_directories() {
        for (name, expected) in [
            ("data", "nfs,data"),
            ("..", "nfs,.."),
            ("host/x y", "nfs,host%2fx%20y"),
            ("%,ä", "nfs,%25%2c%c3%a4"),
        ] {
            assert_eq!(key("nfs", name).unwrap(), expected);
        }
        for (name, expected) in [("", "is empty"), ("a\n", "control"), (&"/".repeat(100), "too long")] {
            assert!(key("nfs", name).unwrap_err().to_string().contains(expected), "{name}");
        }
    }
}
