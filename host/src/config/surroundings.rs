//! What the agent finds around it: who runs it, where things of its kind belong, and what plugins say of
//! themselves. The only place that reads environment variables for the configuration.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cofferdam_plugin_model::Manifest;

/// What plugins say of themselves, found out without running them.
pub trait PluginIndex {
    /// Every plugin file directly in a folder.
    fn in_directory(&self, directory: &Path) -> Vec<AvailablePlugin>;

    /// One file, with its SHA-256.
    ///
    /// # Errors
    /// Why it cannot be a plugin of this agent.
    fn at(&self, file: &Path) -> Result<(Manifest, String), Unusable>;
}

/// A file that claims to be a plugin, with what it says of itself or why it cannot be used.
pub type AvailablePlugin = (PathBuf, Result<Manifest, Unusable>);

/// Why a file cannot be used as a plugin.
pub type Unusable = Box<dyn Error + Send + Sync>;

/// Who runs the agent, and where.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The effective user id.
    pub uid: u32,
    /// Where relative paths of the command line begin.
    pub cwd: PathBuf,
    /// Where the agent keeps what lives as long as the machine runs.
    pub run: PathBuf,
    /// Where it keeps what outlives a reboot.
    pub state: PathBuf,
    /// Where its plugins are.
    pub plugins: PathBuf,
    /// The configuration file that is read when none is named, if it is there.
    pub usual_file: PathBuf,
}

impl Environment {
    /// Looks around.
    #[must_use]
    pub fn look() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self {
            uid,
            cwd: env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            run: run_dir(uid, env::var_os("XDG_RUNTIME_DIR")),
            state: state_dir(uid, env::var_os("XDG_STATE_HOME"), env::home_dir()),
            plugins: plugin_dir(env::current_exe().ok().as_deref()),
            usual_file: usual_file(uid, env::var_os("XDG_CONFIG_HOME"), env::home_dir()),
        }
    }

    /// Whether the agent may do everything.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

fn run_dir(uid: u32, xdg: Option<OsString>) -> PathBuf {
    match absolute(xdg) {
        _ if uid == 0 => PathBuf::from("/run/cofferdam"),
        Some(base) => base.join("cofferdam"),
        None => PathBuf::from(format!("/tmp/cofferdam-{uid}")),
    }
}

fn state_dir(uid: u32, xdg: Option<OsString>, home: Option<PathBuf>) -> PathBuf {
    match (absolute(xdg), home) {
        _ if uid == 0 => PathBuf::from("/var/lib/cofferdam"),
        (Some(base), _) => base.join("cofferdam"),
        (None, Some(home)) if home.is_absolute() => home.join(".local/state/cofferdam"),
        (None, _) => PathBuf::from(format!("/tmp/cofferdam-{uid}/state")),
    }
}

fn usual_file(uid: u32, xdg: Option<OsString>, home: Option<PathBuf>) -> PathBuf {
    let directory = match (absolute(xdg), home) {
        (Some(base), _) if uid != 0 => base,
        (None, Some(home)) if uid != 0 => home.join(".config"),
        _ => PathBuf::from("/etc"),
    };
    directory.join("cofferdam/agent.toml")
}

/// A program that was built or unpacked lies beside its plugins; one that was installed has them in `lib`.
fn plugin_dir(executable: Option<&Path>) -> PathBuf {
    let Some(directory) = executable.and_then(Path::parent) else {
        return PathBuf::from("/usr/lib/cofferdam");
    };
    if holds_libraries(directory) {
        return directory.to_owned();
    }
    directory.parent().unwrap_or(directory).join("lib/cofferdam")
}

fn holds_libraries(directory: &Path) -> bool {
    let Ok(entries) = directory.read_dir() else { return false };
    entries.flatten().any(|entry| Path::new(&entry.file_name()).extension().is_some_and(|end| end == "so"))
}

/// The XDG specification says to ignore relative paths.
fn absolute(variable: Option<OsString>) -> Option<PathBuf> {
    variable.map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_user_stays_at_home() {
        assert_eq!(run_dir(1000, Some("/run/user/1000".into())), Path::new("/run/user/1000/cofferdam"));
        assert_eq!(run_dir(1000, Some("relative".into())), Path::new("/tmp/cofferdam-1000"));
        assert_eq!(run_dir(0, Some("/run/user/0".into())), Path::new("/run/cofferdam"));
        let home = Some(PathBuf::from("/home/eve"));
        assert_eq!(state_dir(1000, None, home), Path::new("/home/eve/.local/state/cofferdam"));
        assert_eq!(state_dir(1000, Some("/s".into()), None), Path::new("/s/cofferdam"));
    }

    #[test]
    fn plugins_lie_beside_the_program_or_in_lib() {
        let prefix = tempfile::tempdir().unwrap();
        let program = prefix.path().join("bin/cofferdam");
        std::fs::create_dir(prefix.path().join("bin")).unwrap();
        assert_eq!(plugin_dir(Some(&program)), prefix.path().join("lib/cofferdam"));
        std::fs::write(prefix.path().join("bin/libsandbox.so"), "").unwrap();
        assert_eq!(plugin_dir(Some(&program)), prefix.path().join("bin"));
    }
}
