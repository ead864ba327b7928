//! The setup process of a container: it exists in all its namespaces and cgroups, and waits for its plan.

use std::io;
use std::time::{Duration, Instant};

use cofferdam_init::client::{Control, Outcome};
use cofferdam_init::plan::{EncodeError, Plan, flag};
use cofferdam_init::report::{Record, Step};
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::process::Process;

use crate::keeper::{KeeperSlot, SetupProcess};

/// A setup process that waits for its plan. When dropped, the process ends without running anything.
#[derive(Debug)]
pub struct PendingInit {
    process: Process,
    control: Control,
    slot: KeeperSlot,
    flags: u32,
    timeout: Duration,
}

/// Flags of a plan that follow from how the process was created.
const CREATION_FLAGS: u32 = flag::MOUNT_NAMESPACE;

impl PendingInit {
    /// `timeout` is how long each of the two waits may take, without hooks, which have timeouts of their own.
    pub(super) fn new(spawned: SetupProcess, create: Namespaces, timeout: Duration) -> Self {
        let SetupProcess { process, control, slot } = spawned;
        let flags = if create.contains(Namespace::Mount) { flag::MOUNT_NAMESPACE } else { 0 };
        Self { process, control, slot, flags, timeout }
    }

    /// The setup process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Where its keeper records how the container ends.
    pub fn slot(&self) -> &KeeperSlot {
        &self.slot
    }

    /// Waits until the process is in its namespaces and in the cgroup that tracks the container.
    ///
    /// # Errors
    /// [`StartError`]. The process has ended, or ends with `destroy`.
    pub fn wait_until_ready(&mut self) -> Result<(), StartError> {
        let deadline = Instant::now() + self.timeout;
        if self.control.wait_until_ready(deadline) {
            return Ok(());
        }
        self.outcome(deadline).map(drop)
    }

    /// Sends the plan and waits until the program runs. Returns the container's first process from then on.
    ///
    /// Sets the flags that follow from how the process was created. If a process of the container is killed meanwhile,
    /// as by `destroy`, this fails with [`StartError::Died`].
    ///
    /// # Errors
    /// [`StartError`]. The processes have ended, or end with `destroy`.
    pub fn start(mut self, mut plan: Plan) -> Result<Process, StartError> {
        plan.flags = plan.flags & !CREATION_FLAGS | self.flags;
        let hooks = plan.hooks.iter().map(|hook| Duration::from_millis(hook.timeout_millis));
        let deadline = Instant::now() + hooks.fold(self.timeout, Duration::saturating_add);
        let message = plan.encode().map_err(StartError::Plan)?;
        self.control.send_plan(&message, deadline).map_err(StartError::Control)?;
        self.outcome(deadline)
    }

    /// Closes the control socket: the process ends without running anything.
    pub fn abandon(self) -> Process {
        self.process
    }

    fn outcome(&mut self, deadline: Instant) -> Result<Process, StartError> {
        match self.control.outcome(deadline).map_err(StartError::Control)? {
            Outcome::Started { pid, pidfd } => Ok(Process::from_spawned(pid, pidfd)),
            Outcome::Failed(record) => match Record::parse(&record) {
                Some(record) => Err(StartError::Failed {
                    step: record.step,
                    detail: String::from_utf8_lossy(record.detail).into_owned(),
                    source: io::Error::from_raw_os_error(record.errno),
                }),
                None => Err(StartError::Died),
            },
            Outcome::Ended => Err(StartError::Died),
            Outcome::TimedOut => Err(StartError::TimedOut { timeout: self.timeout }),
        }
    }
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
    /// A process of the container was killed before its program ran.
    #[error("the container was killed before its program ran")]
    Died,
    /// The setup takes too long, because a process was stopped, is traced, or waits for a file system.
    #[error(
        "the container was not set up within {timeout:?} and the timeouts of its hooks: a process of it was stopped, \
         is traced, or waits for a file system; if it only needs more time, increase `launch_timeout`"
    )]
    TimedOut {
        /// The launch timeout.
        timeout: Duration,
    },
}

fn in_parentheses(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" (`{detail}`)") }
}
