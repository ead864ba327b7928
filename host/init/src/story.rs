//! What init does, from its first instruction to its last.

use crate::failure::{Failure, not_started};
use crate::operation;
use crate::plan::read::{self, Plan};
use crate::plan::{CONTROL, HEADER, flag};
use crate::reap;
use crate::report::{STATUS, Step};
use crate::root;
use crate::sys::{self, Errno, Fd, Fork, Mapping, Pid};
use crate::task;

/// Reads the plan, makes the container, starts the task, and waits for its end. Returns what to exit with: the
/// task's status, or 128 and the signal that killed it, or 1 if it never ran.
pub fn run() -> u8 {
    sys::set_name(c"cofferdam-init");
    // Whoever shares our pid namespace must not trace us while we can still do all that the host can (CVE-2016-9962).
    // Without root we can do nothing that the task could not, and would only lock ourselves out of our files in /proc.
    if sys::is_root() {
        sys::become_undumpable();
    }
    sys::block_signals();
    sys::reset_dispositions();

    let message = match receive() {
        Ok(message) => message,
        Err(Unreceived::AgentGone) => {
            not_started(Step::Plan, Errno(0));
            return 1;
        }
        Err(Unreceived::Failed(failure)) => {
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
    reap::until_the_end(task, sweep)
}

/// Why there is no plan.
enum Unreceived {
    /// Nobody holds the other end any more: the container was given up before it began.
    AgentGone,
    Failed(Failure<'static>),
}

/// Reads the whole plan. This is where a container waits until it is isolated.
fn receive() -> Result<Mapping, Unreceived> {
    let malformed = |error: read::Malformed| {
        Unreceived::Failed(Failure::with_words(Step::Plan, Errno::BADMSG, error.words()))
    };
    let failed = |errno| Unreceived::Failed(Failure::new(Step::Plan, errno));

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

fn fill(mut buffer: &mut [u8]) -> Result<(), Unreceived> {
    while !buffer.is_empty() {
        match sys::read(Fd(CONTROL), buffer) {
            Ok(0) => return Err(Unreceived::AgentGone),
            Ok(read) => buffer = buffer.get_mut(read..).unwrap_or_default(),
            Err(errno) => return Err(Unreceived::Failed(Failure::new(Step::Plan, errno))),
        }
    }
    Ok(())
}

/// Makes the container and forks the task. The order is what keeps it safe: nothing of the container's is executed,
/// and nothing is resolved outside its root, before all that the host wants is in place.
fn start(message: &[u8]) -> Result<(Pid, bool), Failure<'_>> {
    let plan = Plan::parse(message)
        .map_err(|error| Failure::with_words(Step::Plan, Errno::BADMSG, error.words()))?;
    // What the plan wants made gets the permissions it says.
    sys::set_umask(0);

    let session = |errno| Failure::new(Step::Session, errno);
    sys::new_session().map_err(session)?;
    if !plan.has(flag::PID_NAMESPACE) {
        sys::become_subreaper().map_err(session)?;
    }
    if let Some(name) = plan.hostname {
        sys::set_hostname(name).map_err(|errno| Failure::of(Step::Hostname, errno, name))?;
    }
    if plan.has(flag::CGROUP_NAMESPACE) {
        sys::new_cgroup_namespace().map_err(|errno| Failure::new(Step::CgroupNamespace, errno))?;
    }
    // While the host's `/proc` is in sight.
    if let Some(score) = plan.oom_score_adj {
        task::set_oom_score(score)?;
    }
    if plan.has(flag::MOUNT_NAMESPACE) {
        let private = plan.has(flag::PRIVATE_MOUNTS);
        sys::cut_propagation(private).map_err(|errno| Failure::new(Step::Propagation, errno))?;
        let root = root::mount(plan.root)?;
        operation::perform_all(root.directory(), plan.operations)?;
        root.enter(plan.has(flag::READ_ONLY_ROOT))?;
    } else if !plan.operations.is_empty() || !matches!(plan.root, read::Root::Host) {
        // Mounting here would be mounting on the host.
        return Err(Failure::with_words(Step::Root, Errno::INVAL, "there is no own mount namespace"));
    }
    if let Some(workplace) = plan.workplace {
        task::go_to(workplace, plan.user)?;
    }

    match sys::fork().map_err(|errno| Failure::new(Step::Fork, errno))? {
        Fork::Child => sys::exit(task::become_program(&plan)),
        Fork::Parent(task) => {
            let_go();
            Ok((task, plan.has(flag::SWEEP)))
        }
    }
}

/// Lets go of all that the task has or that was needed to make it, so that init keeps no pipe open, no mount busy.
fn let_go() {
    sys::close_range(0, STATUS as u32 - 1);
    sys::close_range(STATUS as u32 + 1, u32::MAX);
    let _ = sys::change_directory(c"/");
}
