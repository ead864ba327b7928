//! Secrets of requests, by value or by name.

use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use crate::foreign::{self, Resolve};
use crate::model::Secret;
use crate::{Error, Result, ResultExt};

/// The largest secret, in bytes.
const MAX_SIZE: u64 = 512 << 10;

/// Reads the secrets that requests contain or refer to. Its errors contain no values.
///
/// A reference is the name of a file in a directory of the host, or the name of a directory in it and, as its key, that of a
/// file. Links that lead out of the directory are not followed.
pub struct Resolver {
    directory: Option<PathBuf>,
}

impl Resolver {
    /// A resolver of references to files in `directory`; without one, references are refused.
    ///
    /// # Errors
    /// If it is no absolute path of a directory, or users other than its owner can write to it. The message names the
    /// setting `secret_dir`.
    pub fn new(directory: Option<PathBuf>) -> Result<Self> {
        if let Some(directory) = &directory {
            let named = || format!("`secret_dir` is `{}`", directory.display());
            let metadata = fs::metadata(directory).context(named())?;
            if !metadata.is_dir() || !directory.is_absolute() {
                return Err(Error::new(format!("{}; expected the absolute path of a directory", named())));
            }
            if metadata.permissions().mode() & 0o022 != 0 {
                return Err(Error::new(format!(
                    "{}, which users other than its owner can write to; remove that permission",
                    named()
                )));
            }
        }
        Ok(Self { directory })
    }

    /// The value of a secret, of at most 512 KiB.
    ///
    /// # Errors
    /// If it is larger, does not exist, or is of a kind that this version does not know.
    pub fn resolve(&self, secret: &Secret) -> Result<Vec<u8>> {
        let (name, key) = match secret {
            Secret::Value(value) => return check_size(value.clone().into_bytes()),
            Secret::Reference { name, key } => (name, key.as_deref()),
            _ => return Err(Error::new("it is of a kind that this version does not know")),
        };
        let Some(directory) = &self.directory else {
            return Err(Error::new(format!("it refers to the secret `{name}`, and `secret_dir` is not set")));
        };
        let path = path(name, key)?;
        read(directory, &path).context(format!("cannot read `{}`", directory.join(&path).display()))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("directory", &self.directory).finish()
    }
}

/// `<name>`, or `<name>/<key>`. Both are from a request.
fn path(name: &str, key: Option<&str>) -> Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in std::iter::once(name).chain(key) {
        let mut components = Path::new(part).components();
        let (Some(Component::Normal(component)), None) = (components.next(), components.next()) else {
            return Err(Error::new(format!(
                "it refers to the secret `{}`; expected names of files, without `/`",
                part.escape_debug()
            )));
        };
        path.push(component);
    }
    Ok(path)
}

fn read(directory: &Path, path: &Path) -> Result<Vec<u8>> {
    let directory = foreign::directory(directory)?;
    let file = foreign::open_regular(foreign::find(directory, path, Resolve::Beneath)?)?;
    let mut value = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut value)?;
    check_size(value)
}

fn check_size(value: Vec<u8>) -> Result<Vec<u8>> {
    if value.len() as u64 > MAX_SIZE {
        return Err(Error::new(format!("it is larger than {MAX_SIZE} bytes")));
    }
    Ok(value)
}
