//! The steps of init, in order.

use crate::failure::{Failure, not_started};
use crate::hook;
use crate::operation::Operations;
use crate::plan::read::{self, Plan};
use crate::plan::{CONTROL, HEADER, flag, stage};
use crate::reap;
use crate::report::{STATUS, Step};
use crate::root;
use crate::sys::{self, Errno, Fd, Fork, Mapping, Pid};
use crate::task;

/// Reads the plan, sets up the container, starts the task, and waits for its end. Returns the exit status: that of
/// the task, or 128 plus the signal that killed it, or 1 if the task never ran.
pub fn run() -> u8 {
    sys::set_name(c"cofferdam-init");
    // Other processes of the pid namespace must not trace init while it has the privileges of the host (CVE-2016-9962).
    // Without root, init has no more privileges than the task, and would only lose access to its own files in /proc.
    if sys::is_root() {
        sys::become_undumpable();
    }
    sys::block_signals();
    sys::reset_dispositions();

    let message = match receive() {
        Ok(message) => message,
        Err(ReceiveError::AgentGone) => {
            not_started(Step::Plan, Errno(0));
            return 1;
        }
        Err(ReceiveError::Failed(failure)) => {
            failure.report();
            return 1;
        }
    };
    let (task, sweep) = match start(&message) {
        Ok(started) => started,
        Err(failure) => {
            failure.report();
            return 1;
        }
    };
    drop(message);
    reap::supervise(task, sweep)
}

/// Why no plan was received.
enum ReceiveError {
    /// The other end is closed: the launch was cancelled before the plan was sent.
    AgentGone,
    Failed(Failure<'static>),
}

/// Receives the plan. A container waits here until it is isolated.
fn receive() -> Result<Mapping, ReceiveError> {
    let malformed = |error: read::Malformed| {
        ReceiveError::Failed(Failure::with_message(Step::Plan, Errno::BADMSG, error.message()))
    };
    let failed = |errno| ReceiveError::Failed(Failure::new(Step::Plan, errno));

    let mut header = [0; HEADER];
    fill(&mut header)?;
    let length = read::header(&header).map_err(malformed)?;
    let mut message = Mapping::new(length).map_err(failed)?;
    let (head, body) = message.split_at_mut(HEADER);
    head.copy_from_slice(&header);
    fill(body)?;
    Plan::parse(&message).map_err(malformed)?;
    Ok(message)
}

fn fill(mut buffer: &mut [u8]) -> Result<(), ReceiveError> {
    while !buffer.is_empty() {
        match sys::read(Fd(CONTROL), buffer) {
            Ok(0) => return Err(ReceiveError::AgentGone),
            Ok(read) => buffer = buffer.get_mut(read..).unwrap_or_default(),
            Err(errno) => return Err(ReceiveError::Failed(Failure::new(Step::Plan, errno))),
        }
    }
    Ok(())
}

/// Sets up the container and forks the task. The order keeps the host safe: nothing of the container is executed, and
/// nothing is resolved outside its root, before everything in the plan is in place.
fn start(message: &[u8]) -> Result<(Pid, bool), Failure<'_>> {
    let plan = Plan::parse(message)
        .map_err(|error| Failure::with_message(Step::Plan, Errno::BADMSG, error.message()))?;
    // Files are created with exactly the permissions in the plan.
    sys::set_umask(0);

    let session = |errno| Failure::new(Step::Session, errno);
    sys::new_session().map_err(session)?;
    if !plan.has(flag::PID_NAMESPACE) {
        sys::become_subreaper().map_err(session)?;
    }
    // All of these need the host's `/proc` and the agent's privileges, so they come before the root changes.
    for namespace in plan.entered.iter() {
        sys::enter_namespace(Fd(namespace.descriptor.cast_signed()), namespace.kind)
            .map_err(|errno| Failure::new(Step::EnterNamespace, errno))?;
    }
    if let Some(offsets) = plan.time_offsets {
        task::create_time_namespace(offsets)?;
    }
    if let Some(name) = plan.hostname {
        sys::set_hostname(name).map_err(|errno| Failure::of(Step::Hostname, errno, name))?;
    }
    if plan.has(flag::CGROUP_NAMESPACE) {
        sys::new_cgroup_namespace().map_err(|errno| Failure::new(Step::CgroupNamespace, errno))?;
    }
    for sysctl in plan.sysctls.iter() {
        task::write_at(sysctl.path, sysctl.value.to_bytes())
            .map_err(|errno| Failure::of(Step::Sysctl, errno, sysctl.path))?;
    }
    if let Some(score) = plan.oom_score_adj {
        task::set_oom_score(score)?;
    }
    if plan.has(flag::MOUNT_NAMESPACE) {
        let private = plan.has(flag::PRIVATE_MOUNTS);
        sys::cut_propagation(private).map_err(|errno| Failure::new(Step::Propagation, errno))?;
        let root = root::mount(plan.root)?;
        let create = !plan.has(flag::CREATE_NOTHING);
        Operations::new(root.directory(), create, plan.operations)?.perform_all()?;
        hook::run_all(&plan, stage::BEFORE_ROOT)?;
        root.enter(plan.has(flag::READ_ONLY_ROOT))?;
    } else if !plan.operations.is_empty() || !matches!(plan.root, read::Root::Host) {
        // Would mount on the host.
        return Err(Failure::with_message(
            Step::Root,
            Errno::INVAL,
            "the plan needs its own mount namespace",
        ));
    }
    if !plan.has(flag::MOUNT_NAMESPACE) {
        hook::run_all(&plan, stage::BEFORE_ROOT)?;
    }
    hook::run_all(&plan, stage::AFTER_ROOT)?;
    if let Some(working_directory) = plan.working_directory {
        task::change_directory(working_directory, plan.user)?;
    }

    match sys::fork().map_err(|errno| Failure::new(Step::Fork, errno))? {
        Fork::Child => sys::exit(task::become_program(&plan)),
        Fork::Parent(task) => {
            release_descriptors();
            Ok((task, plan.has(flag::KILL_DESCENDANTS)))
        }
    }
}

/// Closes all descriptors but the status file and leaves the working directory, so that init keeps no pipe open and
/// no mount busy.
fn release_descriptors() {
    sys::close_range(0, STATUS as u32 - 1);
    sys::close_range(STATUS as u32 + 1, u32::MAX);
    let _ = sys::change_directory(c"/");
}
