//! The environment of the agent: its user and default directories. Nothing else reads environment variables for the
//! configuration.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cofferdam_core::executor::PROGRAM_NAME;
use cofferdam_plugin_model::Manifest;

/// Source of plugin manifests, which are read without running plugin code.
pub trait PluginIndex {
    /// All plugin files directly in a directory.
    fn in_directory(&self, directory: &Path) -> Vec<AvailablePlugin>;

    /// The manifest of one file.
    ///
    /// # Errors
    /// Why the file cannot be used as a plugin.
    fn manifest(&self, file: &Path) -> Result<Manifest, Unusable>;

    /// SHA-256 of one file, in lower-case hexadecimal.
    ///
    /// # Errors
    /// Why the file cannot be used as a plugin.
    fn sha256(&self, file: &Path) -> Result<String, Unusable>;
}

/// A plugin file, with its manifest or the reason why it cannot be used.
pub type AvailablePlugin = (PathBuf, Result<Manifest, Unusable>);

/// Why a file cannot be used as a plugin.
pub type Unusable = Box<dyn Error + Send + Sync>;

/// The environment of an agent.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Effective user id.
    pub uid: u32,
    /// Working directory, for relative paths of the command line.
    pub cwd: PathBuf,
    /// Default runtime directory.
    pub runtime_dir: PathBuf,
    /// Default work directory.
    pub work_dir: PathBuf,
    /// Default plugin directory.
    pub plugin_dir: PathBuf,
    /// Default directory of the executor program.
    pub launcher_dir: PathBuf,
    /// Default configuration file. It may be missing.
    pub config_file: PathBuf,
    /// Default files with credentials for registries, of which the first that exists is used.
    pub credentials: Vec<PathBuf>,
}

impl Environment {
    /// The environment of this process.
    #[must_use]
    pub fn detect() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let program = env::current_exe().ok();
        Self {
            uid,
            cwd: env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            runtime_dir: runtime_dir(uid, env::var_os("XDG_RUNTIME_DIR")),
            work_dir: work_dir(uid, env::var_os("XDG_STATE_HOME"), env::home_dir()),
            plugin_dir: plugin_dir(program.as_deref()),
            launcher_dir: launcher_dir(program.as_deref()),
            config_file: config_file(uid, env::var_os("XDG_CONFIG_HOME"), env::home_dir()),
            credentials: credentials(env::var_os("DOCKER_CONFIG"), env::home_dir()),
        }
    }

    /// The environment that root has.
    #[must_use]
    pub fn of_root(self) -> Self {
        Self {
            uid: 0,
            runtime_dir: runtime_dir(0, None),
            work_dir: work_dir(0, None, None),
            config_file: config_file(0, None, None),
            credentials: credentials(None, Some("/root".into())),
            ..self
        }
    }

    /// Default directory of images. Agents and `cofferdam run` share it.
    #[must_use]
    pub fn image_store(&self) -> PathBuf {
        self.work_dir.join("images")
    }

    /// Whether the user is root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

fn runtime_dir(uid: u32, xdg: Option<OsString>) -> PathBuf {
    match absolute(xdg) {
        _ if uid == 0 => PathBuf::from("/run/cofferdam"),
        Some(base) => base.join("cofferdam"),
        None => PathBuf::from(format!("/tmp/cofferdam-{uid}")),
    }
}

fn work_dir(uid: u32, xdg: Option<OsString>, home: Option<PathBuf>) -> PathBuf {
    match (absolute(xdg), home) {
        _ if uid == 0 => PathBuf::from("/var/lib/cofferdam"),
        (Some(base), _) => base.join("cofferdam"),
        (None, Some(home)) if home.is_absolute() => home.join(".local/state/cofferdam"),
        (None, _) => PathBuf::from(format!("/tmp/cofferdam-{uid}/state")),
    }
}

fn config_file(uid: u32, xdg: Option<OsString>, home: Option<PathBuf>) -> PathBuf {
    let directory = match (absolute(xdg), home) {
        (Some(base), _) if uid != 0 => base,
        (None, Some(home)) if uid != 0 => home.join(".config"),
        _ => PathBuf::from("/etc"),
    };
    directory.join("cofferdam/agent.toml")
}

/// The files of clients of Docker.
fn credentials(directory: Option<OsString>, home: Option<PathBuf>) -> Vec<PathBuf> {
    match (directory.filter(|directory| !directory.is_empty()), home) {
        (Some(directory), _) => vec![PathBuf::from(directory).join("config.json")],
        (None, Some(home)) => vec![home.join(".docker/config.json"), home.join(".dockercfg")],
        (None, None) => Vec::new(),
    }
}

fn plugin_dir(executable: Option<&Path>) -> PathBuf {
    beside_or_below_prefix(executable, contains_libraries, "lib/cofferdam")
}

fn launcher_dir(executable: Option<&Path>) -> PathBuf {
    let contains_program = |directory: &Path| directory.join(PROGRAM_NAME).exists();
    beside_or_below_prefix(executable, contains_program, "libexec/cofferdam")
}

/// The directory of the program if what is looked for is in it, as after a build; otherwise a directory of the prefix, as after
/// an installation.
fn beside_or_below_prefix(
    executable: Option<&Path>,
    is_in: impl Fn(&Path) -> bool,
    installed: &str,
) -> PathBuf {
    match executable.and_then(Path::parent) {
        None => Path::new("/usr").join(installed),
        Some(directory) if is_in(directory) => directory.to_owned(),
        Some(directory) => directory.parent().unwrap_or(directory).join(installed),
    }
}

fn contains_libraries(directory: &Path) -> bool {
    let Ok(entries) = directory.read_dir() else { return false };
    entries.flatten().any(|entry| Path::new(&entry.file_name()).extension().is_some_and(|end| end == "so"))
}

/// The XDG Base Directory Specification requires relative paths to be ignored.
fn absolute(variable: Option<OsString>) -> Option<PathBuf> {
    variable.map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_users_follow_the_xdg_specification() {
        assert_eq!(runtime_dir(1000, Some("/run/user/1000".into())), Path::new("/run/user/1000/cofferdam"));
        assert_eq!(runtime_dir(1000, Some("relative".into())), Path::new("/tmp/cofferdam-1000"));
        assert_eq!(runtime_dir(0, Some("/run/user/0".into())), Path::new("/run/cofferdam"));
        let home = Some(PathBuf::from("/home/eve"));
        assert_eq!(work_dir(1000, None, home), Path::new("/home/eve/.local/state/cofferdam"));
        assert_eq!(work_dir(1000, Some("/s".into()), None), Path::new("/s/cofferdam"));
    }

    #[test]
    fn the_environment_of_root_has_nothing_of_the_user() {
        let user = Environment {
            uid: 1000,
            cwd: "/home/me".into(),
            runtime_dir: "/run/user/1000/cofferdam".into(),
            work_dir: "/home/me/.local/state/cofferdam".into(),
            plugin_dir: "/usr/lib/cofferdam".into(),
            launcher_dir: "/usr/libexec/cofferdam".into(),
            config_file: "/home/me/.config/cofferdam/agent.toml".into(),
            credentials: vec!["/home/me/.docker/config.json".into()],
        };
        let root = user.of_root();
        assert!(root.is_root());
        assert!(root.credentials.iter().all(|file| file.starts_with("/root")), "{:?}", root.credentials);
        assert_eq!(
            [root.runtime_dir, root.work_dir, root.plugin_dir, root.config_file],
            ["/run/cofferdam", "/var/lib/cofferdam", "/usr/lib/cofferdam", "/etc/cofferdam/agent.toml"]
                .map(PathBuf::from)
        );
    }

    #[test]
    fn plugins_and_executors_are_next_to_the_program_or_in_directories_of_the_prefix() {
        let prefix = tempfile::tempdir().unwrap();
        let program = prefix.path().join("bin/cofferdam");
        std::fs::create_dir(prefix.path().join("bin")).unwrap();
        assert_eq!(plugin_dir(Some(&program)), prefix.path().join("lib/cofferdam"));
        std::fs::write(prefix.path().join("bin/libsandbox.so"), "").unwrap();
        assert_eq!(plugin_dir(Some(&program)), prefix.path().join("bin"));
        assert_eq!(launcher_dir(Some(&program)), prefix.path().join("libexec/cofferdam"));
        std::fs::write(prefix.path().join("bin/cofferdam-executor"), "").unwrap();
        assert_eq!(launcher_dir(Some(&program)), prefix.path().join("bin"));
    }
}
