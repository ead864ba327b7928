//! The process of the command: the last steps, from the fork to the program.

use core::ffi::CStr;

use crate::cgroup::{CgroupNamespace, Membership};
use crate::failure::{Failure, Text};
use crate::hook;
use crate::operation::{Operations, make_directories};
use crate::plan::read::{Plan, TimeOffsets, User, WorkingDirectory};
use crate::plan::{CONTROL, flag, stage};
use crate::privileges;
use crate::proc::Proc;
use crate::report::{RUNNING, Step};
use crate::sys::{self, Errno, Fd, Mapping, O_DIRECTORY, O_PATH, Vector};

/// Pipes between the setup process and the command's process.
#[derive(Clone, Copy)]
pub(crate) struct Channels {
    /// Where the command's process reports.
    pub(crate) report: Fd,
    /// A byte when the keeper knows the process, and the end of file when process 1 has closed its descriptors.
    pub(crate) go: Fd,
    /// The other end of it.
    pub(crate) go_writer: Fd,
}

/// Where a program is looked up if the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Executes the program. Returns only on failure, after reporting it, with the exit status.
pub(crate) fn run<'a>(
    plan: &Plan<'a>,
    channels: &Channels,
    namespace: CgroupNamespace,
    operations: Option<Operations<'a>>,
) -> u8 {
    let entered = enter_container(plan, channels, namespace, operations);
    let failure = match entered.and_then(|()| prepare(plan)) {
        Err(failure) => failure,
        Ok(()) => execute(plan),
    };
    failure.report();
    1
}

/// The part of the set-up that has to be done in the container's pid and cgroup namespaces.
fn enter_container<'a>(
    plan: &Plan<'a>,
    channels: &Channels,
    namespace: CgroupNamespace,
    operations: Option<Operations<'a>>,
) -> Result<(), Failure<'a>> {
    let failed = |errno| Failure::new(Step::Descriptors, errno);
    if channels.report != Fd(CONTROL) {
        sys::duplicate_to(channels.report, CONTROL, true).map_err(failed)?;
        sys::close(channels.report);
    }
    sys::close(channels.go_writer);
    namespace.enter().map_err(|errno| Failure::new(Step::CgroupNamespace, errno))?;
    if sys::read(channels.go, &mut [0]) != Ok(1) {
        // The setup process was killed.
        sys::exit(1);
    }
    operations.map_or(Ok(()), Operations::perform_inside)?;
    // Until then, a program could reach them through `/proc/1/fd`.
    let _ = sys::read(channels.go, &mut [0]);
    hook::run_all(plan, stage::AFTER_ROOT, &Membership::default())?;
    match plan.working_directory {
        Some(working_directory) => change_directory(working_directory, plan.user),
        None => Ok(()),
    }
}

/// The order matters: each step needs a privilege that a later one drops.
fn prepare<'a>(plan: &Plan<'a>) -> Result<(), Failure<'a>> {
    sys::new_session().map_err(|errno| Failure::new(Step::Session, errno))?;
    if plan.terminal.is_some() {
        sys::take_terminal(Fd(0)).map_err(|errno| Failure::new(Step::Terminal, errno))?;
    }
    for limit in plan.limits.iter() {
        sys::set_limit(limit.resource, limit.soft, limit.hard)
            .map_err(|errno| Failure::new(Step::Limit, errno))?;
    }
    if plan.has(flag::SESSION_KEYRING) {
        match sys::join_new_session_keyring() {
            // The agent is denied the call, and so is everything that it creates; or there are no keyrings.
            Ok(()) | Err(Errno::NOSYS | Errno::PERM) => {}
            Err(errno) => return Err(Failure::new(Step::Keyring, errno)),
        }
    }
    let capabilities = |errno| Failure::new(Step::Capabilities, errno);
    if let Some(sets) = plan.capabilities {
        privileges::narrow_bounding_set(sets.bounding).map_err(capabilities)?;
        sys::keep_capabilities().map_err(capabilities)?;
    }
    hook::run_all(plan, stage::BEFORE_EXEC, &Membership::default())?;
    // Unless new privileges are forbidden, loading a filter needs a capability that the next steps may drop.
    let filter = |errno| Failure::new(Step::Seccomp, errno);
    if !plan.seccomp.is_empty() && !plan.has(flag::NO_NEW_PRIVILEGES) {
        sys::set_filter(plan.seccomp, plan.seccomp_flags).map_err(filter)?;
    }
    if let Some(user) = plan.user {
        privileges::become_user(user).map_err(|errno| Failure::new(Step::User, errno))?;
    }
    privileges::set_capabilities(plan.capabilities).map_err(capabilities)?;
    if plan.has(flag::NO_NEW_PRIVILEGES) {
        sys::forbid_new_privileges().map_err(|errno| Failure::new(Step::NoNewPrivileges, errno))?;
        if !plan.seccomp.is_empty() {
            sys::set_filter(plan.seccomp, plan.seccomp_flags).map_err(filter)?;
        }
    }
    sys::close_on_exec_from(CONTROL as u32).map_err(|errno| Failure::new(Step::Descriptors, errno))?;
    sys::set_umask(plan.umask);
    Ok(())
}

/// Executes the program. Returns only on failure.
fn execute<'a>(plan: &Plan<'a>) -> Failure<'a> {
    let slots = plan.arguments.len() + plan.environment.len() + 2;
    let mut memory = match Mapping::new(slots * size_of::<usize>()) {
        Ok(memory) => memory,
        Err(errno) => return Failure::new(Step::Exec, errno),
    };
    let (arguments, environment) = memory.words().split_at_mut(plan.arguments.len() + 1);
    let arguments = Vector::fill(arguments, plan.arguments.iter());
    let environment = Vector::fill(environment, plan.environment.iter());

    // From here on the program is taken for running unless a failure follows.
    if let Err(errno) = sys::write(Fd(CONTROL), &[RUNNING]) {
        return Failure::of(Step::Exec, errno, plan.program);
    }
    sys::unblock_signals();
    let errno = if plan.program.to_bytes().contains(&b'/') {
        sys::execute(plan.program, &arguments, &environment)
    } else {
        let path = plan.environment.iter().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        search(plan.program, path.unwrap_or(DEFAULT_PATH), &arguments, &environment)
    };
    sys::block_signals();
    Failure::of(Step::Exec, errno, plan.program)
}

/// Tries the program in each directory of `path`, as execvp(3) does: a file that may not be executed is skipped, and
/// reported if no other is found.
fn search(program: &CStr, path: &[u8], arguments: &Vector<'_>, environment: &Vector<'_>) -> Errno {
    let mut errno = Errno::NOENT;
    if program.is_empty() {
        return errno;
    }
    for directory in path.split(|byte| *byte == b':') {
        let mut candidate = Text::<4096>::new();
        candidate.push(if directory.is_empty() { b"." } else { directory });
        candidate.push(b"/");
        candidate.push(program.to_bytes());
        // Too long for a path.
        let Some(candidate) = candidate.as_c_str() else { continue };
        match sys::execute(candidate, arguments, environment) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCES => errno = Errno::ACCES,
            other => return other,
        }
    }
    errno
}

/// Changes to the task's working directory.
fn change_directory<'a>(
    working_directory: WorkingDirectory<'a>,
    user: Option<User<'a>>,
) -> Result<(), Failure<'a>> {
    let failed = |errno| Failure::of(Step::WorkingDirectory, errno, working_directory.path);
    match sys::change_directory(working_directory.path) {
        Err(Errno::NOENT) if working_directory.create => {
            make_directory(working_directory.path, user).map_err(failed)?;
        }
        other => other.map_err(failed)?,
    }
    // A path through `/proc` can lead to a directory of the host that is still open (CVE-2024-21626).
    if sys::inside_root().map_err(failed)? { Ok(()) } else { Err(failed(Errno::ACCES)) }
}

/// Creates a directory, owned by `user`, and changes to it. Resolves inside the root only, because links may point to
/// descriptors of the host, which are still open.
fn make_directory(path: &CStr, user: Option<User<'_>>) -> Result<(), Errno> {
    let root = sys::open(c"/", O_PATH | O_DIRECTORY)?;
    let made = make_directories(root, path, user.map(|user| (user.uid, user.gid)))?;
    sys::change_directory_to(made)?;
    sys::close(made);
    sys::close(root);
    Ok(())
}

/// Sets the score for the out-of-memory killer, which children inherit.
pub(crate) fn set_oom_score(proc: Proc, score: i32) -> Result<(), Failure<'static>> {
    let failed = |errno| Failure::new(Step::OomScore, errno);
    let mut text = Text::<12>::new();
    if score < 0 {
        text.push(b"-");
    }
    text.push_number(score.unsigned_abs());
    proc.write(c"/proc/self/oom_score_adj", text.as_bytes()).map_err(failed)
}

/// Creates a time namespace for future children, and sets its offsets.
pub(crate) fn create_time_namespace(proc: Proc, offsets: TimeOffsets) -> Result<(), Failure<'static>> {
    let failed = |errno| Failure::new(Step::TimeNamespace, errno);
    sys::new_time_namespace().map_err(failed)?;
    let TimeOffsets { monotonic_nanos, boottime_nanos } = offsets;
    for (clock, nanos) in [(&b"monotonic "[..], monotonic_nanos), (b"boottime ", boottime_nanos)] {
        let (seconds, nanos) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
        let mut text = Text::<48>::new();
        text.push(clock);
        if seconds < 0 {
            text.push(b"-");
        }
        text.push_number(seconds.unsigned_abs());
        text.push(b" ");
        text.push_number(nanos.unsigned_abs());
        proc.write(c"/proc/self/timens_offsets", text.as_bytes()).map_err(failed)?;
    }
    Ok(())
}
