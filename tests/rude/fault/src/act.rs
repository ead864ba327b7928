//! The ways to misbehave.

use std::fs::File;
use std::io::Read;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;

use cofferdam_plugin_api::prelude::*;
use nix::sys::signal::SigSet;
use rustix::io::FdFlags;

/// One thing that goes wrong.
#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// In which method; `drop` is one here.
    method: String,
    /// What happens.
    act: Act,
    /// For which container; all, if not given.
    container: Option<String>,
    /// A file: nothing happens while it exists.
    unless: Option<PathBuf>,
    /// A file: nothing happens while it does not exist.
    when: Option<PathBuf>,
    /// A named pipe: `hang` lasts until somebody has written to it.
    until: Option<PathBuf>,
}

/// What goes wrong.
#[derive(Clone, Copy, Deserialize, PluginConfig)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// It panics with a text.
    Panic,
    /// It panics with a value that panics when it is dropped.
    PanicTwice,
    /// It fails, with a cause.
    Error,
    /// It does not answer before it is let go.
    Hang,
    /// It ends the process.
    Abort,
    /// It logs an event inside a span of its own.
    Log,
    /// It leaves a descriptor open that is inherited by every program.
    LeakDescriptor,
    /// It changes what belongs to the whole process, and to its thread.
    ChangeProcess,
    /// `prepare`: it asks for an operation that nobody knows.
    UnknownOperation,
    /// `prepare`: it asks for a namespace that nobody knows.
    UnknownNamespace,
    /// `usage`: one figure is not a number.
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
    /// Whether this is the place and the time.
    pub fn strikes(&self, method: &str, container: &str) -> bool {
        self.method == method
            && self.container.as_deref().is_none_or(|wanted| wanted == container)
            && !self.unless.as_ref().is_some_and(|file| file.exists())
            && self.when.as_ref().is_none_or(|file| file.exists())
    }

    /// Does it. What the method itself has to do is answered.
    pub fn strike(&self, method: &str, container: &str) -> Result<Act> {
        match self.act {
            Act::Panic => panic!("deliberate, for `{container}`"),
            Act::PanicTwice => std::panic::panic_any(Bomb),
            Act::Error => {
                return Err(
                    Error::new("the rude one did it").context(format!("cannot {method} `{container}`"))
                );
            }
            Act::Hang => {
                let Some(pipe) = &self.until else { return Err(Error::new("`hang` wants `until`")) };
                File::open(pipe)?.read_to_end(&mut Vec::new())?;
            }
            Act::Abort => std::process::abort(),
            Act::Log => {
                let _in_span = tracing::info_span!("own_span", depth = 7).entered();
                info!(answer = 42, container, "said by the rude one");
            }
            Act::LeakDescriptor => {
                let file = File::open("/dev/full")?;
                rustix::io::fcntl_setfd(&file, FdFlags::empty())?;
                let _leaked = file.into_raw_fd();
            }
            Act::ChangeProcess => {
                std::env::set_current_dir("/proc")?;
                rustix::process::umask(rustix::fs::Mode::RWXU);
                SigSet::all().thread_block()?;
            }
            Act::UnknownOperation | Act::UnknownNamespace | Act::NotANumber => {}
        }
        Ok(self.act)
    }
}
