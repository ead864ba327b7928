//! Changes of several interface files, of which all are made or none.

use std::fmt::Display;

use crate::cgroup::{Cgroup, CgroupError};

/// Changes of interface files of a cgroup, made in order. Unless they are [kept](Changes::keep), what was in the files is
/// put back on drop, in reverse order.
///
/// ```no_run
/// # use cofferdam_plugin_api::prelude::*;
/// # fn limit(cgroup: &Cgroup) -> Result<()> {
/// let mut changes = cgroup.changes();
/// changes.write("memory.max", 64 << 20)?;
/// // If this fails, the limit is what it was.
/// changes.write("memory.low", 32 << 20)?;
/// changes.keep();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Changes<'c> {
    cgroup: &'c Cgroup,
    /// What was in the files before.
    before: Vec<(String, String)>,
}

impl Cgroup {
    /// Begins to change interface files, so that all changes are made or none.
    #[must_use]
    pub fn changes(&self) -> Changes<'_> {
        Changes { cgroup: self, before: Vec::new() }
    }
}

impl Changes<'_> {
    /// Writes an interface file whose content can be written as it is read: one with one value, such as a limit.
    ///
    /// # Errors
    /// [`CgroupError::Refused`].
    pub fn write(&mut self, knob: &str, value: impl Display) -> Result<(), CgroupError> {
        let before = self.cgroup.read(knob)?;
        self.cgroup.write(knob, value)?;
        self.before.push((knob.to_owned(), before));
        Ok(())
    }

    /// Keeps the changes.
    pub fn keep(mut self) {
        self.before.clear();
    }
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        for (knob, before) in self.before.drain(..).rev() {
            // An empty write would not reach the kernel.
            let value = if before.is_empty() { "\n" } else { &before };
            if let Err(error) = self.cgroup.write(&knob, value)
                && !error.is_missing()
            {
                tracing::error!("a change that was not completed is not undone: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use cofferdam_plugin_model as model;

    use super::*;

    /// A directory that looks like the cgroup of a container, whose files are longer than what is written to them.
    fn cgroup(directory: &Path) -> Cgroup {
        let cgroups = model::Cgroups {
            v2: Some(directory.to_owned()),
            v2_controllers: vec!["memory".into()],
            path: "web".into(),
            ..model::Cgroups::default()
        };
        fs::create_dir(directory.join("web")).unwrap();
        for (knob, content) in [("memory.max", "100"), ("memory.low", "200"), ("cpuset.cpus", "")] {
            fs::write(directory.join("web").join(knob), content).unwrap();
        }
        Cgroup::of(&cgroups, "memory").unwrap()
    }

    #[test]
    fn changes_are_kept_or_put_back() {
        let directory = tempfile::tempdir().unwrap();
        let cgroup = cgroup(directory.path());
        for keeps in [false, true] {
            let mut changes = cgroup.changes();
            changes.write("memory.max", 300).unwrap();
            changes.write("memory.low", 400).unwrap();
            changes.write("memory.max", 500).unwrap();
            let error = changes.write("memory.high", 1).unwrap_err();
            assert!(error.is_missing() && error.to_string().contains("memory.high"), "{error}");
            match keeps {
                true => changes.keep(),
                false => drop(changes),
            }
            let found = ["memory.max", "memory.low"].map(|knob| cgroup.read(knob).unwrap());
            assert_eq!(found, if keeps { ["500", "400"] } else { ["100", "200"] });
        }
    }
}
