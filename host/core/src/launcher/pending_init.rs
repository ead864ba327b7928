//! A container between its birth and its program: the first process exists, in all its namespaces and cgroups, and
//! reads from a socket.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cofferdam_init::plan::{EncodeError, Plan, flag};
use cofferdam_init::report::{RUNNING, Record, Step};
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::process::Process;

/// A first process that waits for its plan. Dropped, it ends by itself without running anything; whoever wants it
/// reaped calls [`PendingInit::abandon`].
#[derive(Debug)]
pub struct PendingInit {
    process: Process,
    control: UnixStream,
    flags: u32,
}

/// How long a first process that we have lost touch with is waited for.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// Flags of a plan that are facts of the birth rather than wishes.
const CREATION_FLAGS: u32 = flag::PID_NAMESPACE | flag::MOUNT_NAMESPACE | flag::KILL_DESCENDANTS;

impl PendingInit {
    /// The two ends of a control socket: the agent's and init's.
    pub(super) fn control() -> io::Result<(UnixStream, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((ours, theirs.into()))
    }

    /// `sweep`: whether init has to end what its task leaves behind, because nothing else tracks it.
    pub(super) fn new(process: Process, control: UnixStream, clone: Namespaces, sweep: bool) -> Self {
        let mut flags = 0;
        if clone.contains(Namespace::Pid) {
            flags |= flag::PID_NAMESPACE;
        }
        if clone.contains(Namespace::Mount) {
            flags |= flag::MOUNT_NAMESPACE;
        }
        if sweep {
            flags |= flag::KILL_DESCENDANTS;
        }
        Self { process, control, flags }
    }

    /// The first process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Hands the plan over and waits until its program runs.
    ///
    /// Facts of the birth among the plan's flags are set here. If the first process is killed meanwhile, as by
    /// `destroy`, this ends with [`StartError::Died`]. After an error the process has ended and is reaped; one that
    /// we have lost touch with may not have, and is left to `destroy`.
    pub fn start(mut self, mut plan: Plan) -> Result<Process, StartError> {
        plan.flags = plan.flags & !CREATION_FLAGS | self.flags;
        let outcome = plan.encode().map_err(StartError::Plan).and_then(|message| self.send_plan(&message));
        let Err(error) = outcome else { return Ok(self.process) };

        let process = self.abandon();
        // It has reported, or has lost us, and has nothing left to do but end. One that does not know that is not
        // waited for, or that would be for as long as its program runs: `destroy` ends it.
        let timeout = match &error {
            StartError::Failed { .. } => None,
            _ => Some(EXIT_GRACE),
        };
        if process.wait(timeout).unwrap_or(false) {
            drop(process.reap());
        }
        Err(error)
    }

    /// Gives the container up: its first process ends without having run anything. The caller reaps it.
    pub fn abandon(self) -> Process {
        self.process
    }

    fn send_plan(&mut self, message: &[u8]) -> Result<(), StartError> {
        match self.control.write_all(message) {
            // It does not read any more; what it has said on leaving tells why.
            Err(error) if is_hang_up(&error) => {}
            other => other.map_err(StartError::Control)?,
        }
        let mut answer = Vec::new();
        match self.control.read_to_end(&mut answer) {
            Err(error) if is_hang_up(&error) => {}
            other => drop(other.map_err(StartError::Control)?),
        }
        let (runs, rest) = match answer.split_first() {
            Some((&RUNNING, rest)) => (true, rest),
            _ => (false, answer.as_slice()),
        };
        match (Record::parse(rest), runs) {
            (Some(record), _) => Err(StartError::Failed {
                step: record.step,
                detail: String::from_utf8_lossy(record.detail).into_owned(),
                source: io::Error::from_raw_os_error(record.errno),
            }),
            (None, true) => Ok(()),
            (None, false) => Err(StartError::Died),
        }
    }
}

/// The other end was closed; with something unread in it, that is a reset.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

/// A container whose program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The plan cannot be written down.
    #[error("the launch plan cannot be handed over")]
    Plan(#[source] EncodeError),
    /// The socket failed.
    #[error("the launch plan did not reach the container")]
    Control(#[source] io::Error),
    /// A step in the container failed.
    #[error("the container failed while {step}{}", in_brackets(detail))]
    Failed {
        /// Which.
        step: Step,
        /// Of what, as a path, and what else the kernel said; may be empty.
        detail: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The first process was killed before its program ran.
    #[error("the container was killed before its program ran")]
    Died,
}

fn in_brackets(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" (`{detail}`)") }
}
