//! Hooks: commands of plugins that run during a launch.

use crate::cgroup::Membership;
use crate::failure::Failure;
use crate::plan::read::{Hook, Plan};
use crate::plan::{CONTROL, flag, stage};
use crate::privileges;
use crate::report::Step;
use crate::sys::{self, Creation, Errno, Mapping, Parent, Vector};

/// Exit statuses of a hook that could not be executed, as shells use them.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs the hooks of a stage in order, up to the first failure. They are in the container's cgroup, with which they are
/// killed if the launch is.
pub(crate) fn run_all<'a>(plan: &Plan<'a>, stage: u8, membership: &Membership) -> Result<(), Failure<'a>> {
    plan.hooks.iter().filter(|hook| hook.stage == stage).try_for_each(|hook| run(plan, hook, membership))
}

/// Runs a hook and waits for its end. A hook that exceeds its timeout is killed, with its session.
fn run<'a>(plan: &Plan<'a>, hook: Hook<'a>, membership: &Membership) -> Result<(), Failure<'a>> {
    let failed = |errno| Failure::of(Step::Hook, errno, hook.program);
    let child = match membership.create_process(Parent::Caller).map_err(failed)? {
        Creation::Child => sys::exit(become_hook(plan, &hook, membership)),
        Creation::Parent(child) => child,
    };
    let ended = sys::wait_for_end(child.pidfd, hook.timeout_millis);
    sys::close(child.pidfd);
    if ended != Ok(true) {
        sys::kill_group(child.pid);
    }
    let status = sys::reap_child(child.pid).map_err(failed)?;
    if !ended.map_err(failed)? {
        return Err(failed(Errno::TIMEDOUT));
    }
    match status {
        0 => Ok(()),
        status if status == i32::from(NOT_FOUND) << 8 => Err(failed(Errno::NOENT)),
        status if status == i32::from(NOT_EXECUTABLE) << 8 => Err(failed(Errno::ACCES)),
        _ => Err(Failure::of(Step::HookFailed, Errno::CANCELED, hook.program)),
    }
}

/// Executes the hook. Returns only on failure, with the exit status.
fn become_hook(plan: &Plan<'_>, hook: &Hook<'_>, membership: &Membership) -> u8 {
    let execute = || -> Result<Errno, Errno> {
        sys::new_session()?;
        membership.namespace.enter()?;
        if hook.stage == stage::BEFORE_EXEC {
            if let Some(user) = plan.user {
                privileges::become_user(user)?;
            }
            privileges::set_capabilities(plan.capabilities)?;
            if plan.has(flag::NO_NEW_PRIVILEGES) {
                sys::forbid_new_privileges()?;
            }
        }
        sys::close_on_exec_from(CONTROL as u32)?;
        sys::set_umask(0o022);
        let slots = hook.arguments.len() + hook.environment.len() + 2;
        let mut memory = Mapping::new(slots * size_of::<usize>())?;
        let (arguments, environment) = memory.words().split_at_mut(hook.arguments.len() + 1);
        let arguments = Vector::fill(arguments, hook.arguments.iter());
        let environment = Vector::fill(environment, hook.environment.iter());
        sys::unblock_signals();
        Ok(sys::execute(hook.program, &arguments, &environment))
    };
    match execute() {
        Ok(Errno::NOENT) => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    }
}
