//! Profiles by name, and the filters that were compiled from them.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cofferdam_plugin_api::foreign::{self, Resolve};
use cofferdam_plugin_api::model::Seccomp;
use cofferdam_plugin_api::prelude::*;

use crate::document;
use crate::profile::{Circumstances, Profile};
use crate::standard;

/// Name of the profile that is part of the plugin. No file in a directory can have it.
pub const STANDARD: &str = "runtime/default";

/// The largest profile that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// The largest number of filters that are kept.
const MAX_FILTERS: usize = 64;

pub struct Store {
    directory: Option<PathBuf>,
    filters: Mutex<Vec<Entry>>,
}

/// A filter, and what it was compiled from.
struct Entry {
    /// `None` for the profile that is part of the plugin.
    content: Option<Vec<u8>>,
    circumstances: Circumstances,
    filter: Arc<Seccomp>,
}

impl Store {
    pub fn new(directory: Option<PathBuf>) -> Self {
        Self { directory, filters: Mutex::default() }
    }

    /// The filter of a profile for a container. The file is read every time; it is compiled when its content or the
    /// circumstances are new.
    pub fn filter(&self, name: &str, circumstances: &Circumstances) -> Result<Arc<Seccomp>> {
        let content = if name == STANDARD { None } else { Some(self.read(name)?) };
        let is_same = |entry: &Entry| entry.content == content && entry.circumstances == *circumstances;
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = filters.iter().position(is_same) {
            // The one that was used last is at the end.
            let entry = filters.remove(index);
            let filter = Arc::clone(&entry.filter);
            filters.push(entry);
            return Ok(filter);
        }
        let profile = match &content {
            Some(content) => document::parse(content).context(format!("the profile `{name}` is invalid"))?,
            None => standard::profile(),
        };
        let filter = Arc::new(compile(name, &profile, circumstances)?);
        if filters.len() == MAX_FILTERS {
            filters.remove(0);
        }
        filters.push(Entry { content, circumstances: circumstances.clone(), filter: Arc::clone(&filter) });
        Ok(filter)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let Some(directory) = &self.directory else {
            return Err(Error::invalid(format!(
                "there is no profile `{name}`: `config_dir` is not set; the profile that is part of the plugin is `{STANDARD}`"
            )));
        };
        let mut components = Path::new(name).components();
        let (Some(Component::Normal(_)), None) = (components.next(), components.next()) else {
            return Err(Error::invalid(format!(
                "`{name}` is not the name of a profile; expected the name of a file in `{}`, or `{STANDARD}`",
                directory.display()
            )));
        };
        let file = directory.join(name);
        read(directory, name).context(format!("cannot read the profile `{}`", file.display()))
    }
}

/// A request names the file, so nothing but a regular file in the directory itself is read.
fn read(directory: &Path, name: &str) -> Result<Vec<u8>> {
    let directory = foreign::directory(directory)?;
    let file: File = foreign::open_regular(foreign::find(directory, Path::new(name), Resolve::Beneath)?)?;
    let mut content = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_SIZE {
        return Err(Error::new(format!("it is larger than {MAX_SIZE} bytes")));
    }
    Ok(content)
}

fn compile(name: &str, profile: &Profile, circumstances: &Circumstances) -> Result<Seccomp> {
    profile.compile(circumstances).context(format!("the profile `{name}` cannot be compiled"))
}
