//! A first process that waits for its plan: it exists in all its namespaces and cgroups, and reads from a socket.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cofferdam_init::plan::{EncodeError, Plan, flag};
use cofferdam_init::report::{RUNNING, Record, Step};
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::process::Process;

/// A first process that waits for its plan. When dropped, the process ends without running anything, but is not
/// reaped; for that, call [`PendingInit::abandon`].
#[derive(Debug)]
pub struct PendingInit {
    process: Process,
    control: UnixStream,
    flags: u32,
}

/// How long to wait for a first process after its control socket has failed.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// Flags of a plan that follow from how the process was created.
const CREATION_FLAGS: u32 = flag::PID_NAMESPACE | flag::MOUNT_NAMESPACE | flag::KILL_DESCENDANTS;

impl PendingInit {
    /// The two ends of a control socket: the agent's and init's.
    pub(super) fn control() -> io::Result<(UnixStream, OwnedFd)> {
        let (ours, init_end) = UnixStream::pair()?;
        Ok((ours, init_end.into()))
    }

    /// `kill_descendants`: init has to kill remaining processes when its task has ended, because no cgroup tracks them.
    pub(super) fn new(
        process: Process,
        control: UnixStream,
        clone: Namespaces,
        kill_descendants: bool,
    ) -> Self {
        let mut flags = 0;
        if clone.contains(Namespace::Pid) {
            flags |= flag::PID_NAMESPACE;
        }
        if clone.contains(Namespace::Mount) {
            flags |= flag::MOUNT_NAMESPACE;
        }
        if kill_descendants {
            flags |= flag::KILL_DESCENDANTS;
        }
        Self { process, control, flags }
    }

    /// The first process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Sends the plan and waits until the program runs.
    ///
    /// Sets the flags that follow from how the process was created. If the first process is killed meanwhile, as by
    /// `destroy`, this fails with [`StartError::Died`]. After an error the process has ended and is reaped, unless the
    /// control socket failed and it did not end in time; then `destroy` ends it.
    pub fn start(mut self, mut plan: Plan) -> Result<Process, StartError> {
        plan.flags = plan.flags & !CREATION_FLAGS | self.flags;
        let outcome = plan.encode().map_err(StartError::Plan).and_then(|message| self.send_plan(&message));
        let Err(error) = outcome else { return Ok(self.process) };

        let process = self.abandon();
        // After a report or a closed socket the process exits. Without a report it may not have noticed, so the wait
        // has a limit, or it could last as long as the program; `destroy` ends it then.
        let timeout = match &error {
            StartError::Failed { .. } => None,
            _ => Some(EXIT_GRACE),
        };
        if process.wait(timeout).unwrap_or(false) {
            drop(process.reap());
        }
        Err(error)
    }

    /// Closes the control socket: the process ends without running anything. The caller reaps it.
    pub fn abandon(self) -> Process {
        self.process
    }

    fn send_plan(&mut self, message: &[u8]) -> Result<(), StartError> {
        match self.control.write_all(message) {
            // Init has closed its end; its report tells why.
            Err(error) if is_hang_up(&error) => {}
            other => other.map_err(StartError::Control)?,
        }
        let mut report = Vec::new();
        match self.control.read_to_end(&mut report) {
            Err(error) if is_hang_up(&error) => {}
            other => drop(other.map_err(StartError::Control)?),
        }
        let (runs, rest) = match report.split_first() {
            Some((&RUNNING, rest)) => (true, rest),
            _ => (false, report.as_slice()),
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

/// Whether the other end was closed; with unread data, that is a reset.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

/// Why the program of a container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The plan cannot be encoded.
    #[error("the launch plan cannot be encoded")]
    Plan(#[source] EncodeError),
    /// The control socket failed.
    #[error("the launch plan could not be sent to the container")]
    Control(#[source] io::Error),
    /// A step in the container failed.
    #[error("the container failed while {step}{}", in_parentheses(detail))]
    Failed {
        /// The step.
        step: Step,
        /// The path or name concerned, and the kernel's message if there is one; may be empty.
        detail: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The first process was killed before its program ran.
    #[error("the container was killed before its program ran")]
    Died,
}

fn in_parentheses(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" (`{detail}`)") }
}
