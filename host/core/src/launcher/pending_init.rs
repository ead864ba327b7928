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
}

/// How long the setup of a container may take, without its hooks, which have timeouts of their own.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Flags of a plan that follow from how the process was created.
const CREATION_FLAGS: u32 = flag::MOUNT_NAMESPACE;

impl PendingInit {
    pub(super) fn new(spawned: SetupProcess, create: Namespaces) -> Self {
        let SetupProcess { process, control, slot } = spawned;
        let flags = if create.contains(Namespace::Mount) { flag::MOUNT_NAMESPACE } else { 0 };
        Self { process, control, slot, flags }
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
        let deadline = Instant::now() + START_TIMEOUT;
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
        let deadline = Instant::now() + hooks.fold(START_TIMEOUT, Duration::saturating_add);
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
            Outcome::TimedOut => Err(StartError::TimedOut),
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
    #[error("the container was not set up within {} s and its hooks' timeouts", START_TIMEOUT.as_secs())]
    TimedOut,
}

fn in_parentheses(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" (`{detail}`)") }
}
