//! The kinds of faults.

use std::fs::File;
use std::io::Read;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;

use cofferdam_plugin_api::prelude::*;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::SigSet;
use rustix::io::FdFlags;

/// A fault in one method.
#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Method, or `drop`.
    method: String,
    /// Kind of fault.
    act: Act,
    /// Container; all if `None`.
    container: Option<String>,
    /// A file: no fault while it exists.
    unless: Option<PathBuf>,
    /// A file: no fault while it does not exist.
    when: Option<PathBuf>,
    /// A file that does not exist. The fault creates it, and applies only once.
    once: Option<PathBuf>,
    /// A named pipe: `hang` lasts until end of file.
    until: Option<PathBuf>,
}

/// Kind of fault.
#[derive(Clone, Copy, Deserialize, PluginConfig)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Panics with a text.
    Panic,
    /// Panics with a value that panics in drop.
    PanicTwice,
    /// Returns an error with a cause.
    Error,
    /// Blocks until the pipe is closed.
    Hang,
    /// Aborts the process.
    Abort,
    /// Logs an event in its own span.
    Log,
    /// Opens more spans than the agent keeps, logs a long text in the last one, and returns it as an error.
    LogTooMuch,
    /// Leaves a descriptor open that programs inherit.
    LeakDescriptor,
    /// Changes attributes of the whole process.
    ChangeProcess,
    /// Ignores the signals that stop the agent, in the whole process.
    IgnoreSignals,
    /// Blocks all signals on its thread.
    BlockSignals,
    /// Changes the user of its thread.
    ChangeUser,
    /// Moves its thread to a new network namespace.
    UnshareNetwork,
    /// Changes the working directory of its thread alone.
    UnshareDirectories,
    /// `prepare`: requests an unknown operation.
    UnknownOperation,
    /// `prepare`: requests an unknown namespace.
    UnknownNamespace,
    /// `usage`: returns NaN.
    NotANumber,
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("and once more, while the first panic is dropped");
    }
}

impl Fault {
    /// Whether the fault applies now.
    pub fn applies(&self, method: &str, container: &str) -> bool {
        self.method == method
            && self.container.as_deref().is_none_or(|wanted| wanted == container)
            && !self.unless.as_ref().is_some_and(|file| file.exists())
            && self.when.as_ref().is_none_or(|file| file.exists())
            && self.once.as_ref().is_none_or(|file| File::create_new(file).is_ok())
    }

    /// Applies the fault. Returns it, for the kinds that the method itself implements.
    pub fn apply(&self, method: &str, container: &str) -> Result<Act> {
        match self.act {
            Act::Panic => panic!("deliberate, for `{container}`"),
            Act::PanicTwice => std::panic::panic_any(Bomb),
            Act::Error => {
                return Err(Error::new("deliberate error").context(format!("cannot {method} `{container}`")));
            }
            Act::Hang => {
                let Some(pipe) = &self.until else { return Err(Error::new("`hang` needs `until`")) };
                File::open(pipe)?.read_to_end(&mut Vec::new())?;
            }
            Act::Abort => std::process::abort(),
            Act::Log => {
                let _in_span = tracing::info_span!("own_span", depth = 7).entered();
                info!(answer = 42, container, "logged by the plugin");
            }
            Act::LogTooMuch => {
                let text = "long ".repeat(8_000);
                let spans: Vec<_> =
                    (0..5_000).map(|number| tracing::info_span!("one_of_many", number)).collect();
                if let Some(last) = spans.last() {
                    last.in_scope(|| info!(other = text, "{text}"));
                }
                return Err(Error::new(text));
            }
            Act::LeakDescriptor => {
                let file = File::open("/dev/full")?;
                rustix::io::fcntl_setfd(&file, FdFlags::empty())?;
                let _leaked = file.into_raw_fd();
            }
            Act::ChangeProcess => {
                std::env::set_current_dir("/proc")?;
                rustix::process::umask(rustix::fs::Mode::RWXU);
            }
            Act::IgnoreSignals => crate::signals::ignore()?,
            Act::BlockSignals => SigSet::all().thread_block()?,
            Act::ChangeUser => {
                let nobody = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(None, Some(nobody), None)?;
            }
            Act::UnshareNetwork => unshare(CloneFlags::CLONE_NEWNET)?,
            Act::UnshareDirectories => {
                unshare(CloneFlags::CLONE_FS)?;
                std::env::set_current_dir("/proc")?;
            }
            Act::UnknownOperation | Act::UnknownNamespace | Act::NotANumber => {}
        }
        Ok(self.act)
    }
}
