//! The setup process of a container: it waits for the plan, sets the container up, and creates the command's process.
//!
//! ```text
//! keeper            setup process                                       command                    process 1
//! ──────            ─────────────                                       ───────                    ─────────
//! clone3 ─────────▶ namespaces, `N` to the agent
//!                   reads the plan … (waits)
//!                   mounts, root, operations, pivot, cgroups of v1
//!                   fork ────────────────────────────────────────────────────────────────────────▶ closes all, rests
//!                   fork ──────────────────────────────────────────────▶ waits
//! registration ◀─── writes which processes are the container's
//!                   lets the command's process continue ───────────────▶ limits, user, …
//!                   reads its report, up to the end of file ◀─────────── exec
//!                   report to the agent, with a pidfd of the command
//!                   ends
//! ```
//!
//! It is in no pid namespace of a container, so that no process in a container can see it. It joins foreign namespaces,
//! and is the only process that has both privileges of the host and something of the container. The command's process
//! is created without any descriptor that is not the container's, if others in its pid namespace can see it.
//!
//! Nor is it in a cgroup of the container, until its work is done: see [`crate::cgroup`]. Only the freezer of v1, where that
//! tracks containers, is joined before.

use crate::cgroup::{CgroupNamespace, Membership};
use crate::failure::{Failure, Text};
use crate::hook;
use crate::operation::Operations;
use crate::plan::read::{self, Plan};
use crate::plan::{CONTROL, DESCRIPTORS, HEADER, flag, stage};
use crate::proc::Proc;
use crate::protocol::Spawn;
use crate::report::{MAX_DETAIL, READY, RECORD_HEAD, RUNNING, Record, STARTED, Step};
use crate::root;
use crate::supervise;
use crate::sys::{
    self, CGROUP_NAMESPACE, Child, Creation, Errno, Fd, MOUNT_NAMESPACE, Mapping, PID_NAMESPACE, Parent, Pid,
    SIGKILL, SharedNumber,
};
use crate::task::{self, Channels};
use crate::terminal;

/// Descriptor on which a setup process registers with the keeper.
const REGISTRATION: i32 = 4;

/// Length of a registration in bytes. It is written at once, as it is shorter than a page.
pub(crate) const REGISTRATION_LENGTH: usize = 12;

/// The pids in a registration: of the setup process, of the command, and of process 1, which is 0 if there is none.
pub(crate) fn parse_registration(message: [u8; REGISTRATION_LENGTH]) -> [i32; 3] {
    let number = |index: usize| {
        let bytes = message.get(index * 4..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| i32::from_ne_bytes(*bytes))
    };
    [number(0), number(1), number(2)]
}

/// What a setup process starts with.
pub(crate) struct Inherited<'a> {
    pub(crate) spawn: &'a Spawn,
    /// Those of the request, in its order, by ascending number.
    pub(crate) descriptors: &'a [i32],
    /// Where to register.
    pub(crate) registrations: Fd,
    /// Score for the out-of-memory killer to go back to.
    pub(crate) oom_score: Option<i32>,
}

/// Descriptors of the setup process that are not the plan's.
struct Places {
    /// The container's cgroup of v2.
    cgroup: Option<Fd>,
    cgroups: TaskFiles,
    late_cgroups: TaskFiles,
    /// The process whose namespaces are entered.
    entered: Option<Fd>,
}

/// `tasks` files of v1 cgroups, by number: the first, and how many there are.
#[derive(Clone, Copy)]
struct TaskFiles {
    first: i32,
    count: i32,
}

/// Runs in a child of the keeper. Returns the exit status.
pub(crate) fn run(inherited: &Inherited<'_>) -> u8 {
    sys::set_name(c"cofferdam-setup");
    let spawn = *inherited.spawn;
    let places = match arrange_descriptors(inherited) {
        Ok(places) => places,
        Err(errno) => return fail(&Failure::new(Step::Descriptors, errno)),
    };
    if !sys::is_root() {
        // It has no more privileges than the command, and would only lose access to its own files in `/proc`.
        sys::become_dumpable();
    }
    let joined = join(&spawn, &places, inherited.oom_score).and_then(|proc| Ok((proc, receive()?)));
    let (proc, message) = match joined {
        Ok((proc, Some(message))) => (proc, message),
        // The launch was cancelled before the plan was sent.
        Ok((_, None)) => return 1,
        Err(failure) => return fail(&failure),
    };
    let role = match set_up(&spawn, &places, proc, &message) {
        Ok(role) => role,
        Err(failure) => return fail(&failure),
    };
    match role {
        Role::Finished(status) => {
            // The kernel does it at the exit.
            core::mem::forget(message);
            status
        }
        Role::Reaper => reap_orphans(),
        Role::Parent(command) => {
            drop(message);
            sys::set_name(c"cofferdam-init");
            release_descriptors();
            supervise::supervise(command)
        }
    }
}

fn fail(failure: &Failure<'_>) -> u8 {
    failure.report();
    1
}

/// Gives the descriptors their numbers: the standard streams, [`CONTROL`], [`REGISTRATION`], those of the plan, and
/// what remains. All others are closed.
///
/// The kernel hands out the lowest free numbers, and the keeper has more descriptors open than this needs, so that no
/// number is overwritten before it is moved.
fn arrange_descriptors(inherited: &Inherited<'_>) -> Result<Places, Errno> {
    let spawn = inherited.spawn;
    sys::duplicate_to(inherited.registrations, REGISTRATION, true)?;
    let mut target = 0;
    for fd in inherited.descriptors {
        if target == REGISTRATION {
            target += 1;
        }
        sys::duplicate_to(Fd(*fd), target, target >= CONTROL)?;
        target += 1;
    }
    sys::close_range(target.max(REGISTRATION + 1).cast_unsigned(), u32::MAX);

    let mut next = (DESCRIPTORS + spawn.plan_descriptors as usize) as i32;
    let mut take = |count: u32| {
        let first = next;
        next += count as i32;
        TaskFiles { first, count: count as i32 }
    };
    let cgroup = take(spawn.cgroup.into());
    let entered = take((spawn.enter != 0).into());
    let (cgroups, late_cgroups) = (take(spawn.early_tasks), take(spawn.late_tasks));
    let single = |files: TaskFiles| (files.count > 0).then_some(Fd(files.first));
    Ok(Places { cgroup: single(cgroup), cgroups, late_cgroups, entered: single(entered) })
}

/// Joins early cgroups, and namespaces, and tells the agent. Returns the host's `/proc`.
fn join(spawn: &Spawn, places: &Places, oom_score: Option<i32>) -> Result<Proc, Failure<'static>> {
    let session = |errno| Failure::new(Step::Session, errno);
    sys::new_session().map_err(session)?;
    if let Some(score) = oom_score {
        task::set_oom_score(Proc::BY_PATH, score)?;
    }
    join_cgroups(places.cgroups)?;
    let enter = |errno| Failure::new(Step::EnterNamespace, errno);
    let proc = match spawn.enter & MOUNT_NAMESPACE {
        0 => Proc::BY_PATH,
        _ => Proc::open().map_err(enter)?,
    };
    if let Some(process) = places.entered {
        // A pid namespace would be that of all further children: see `create_unseen`.
        match spawn.enter & !(PID_NAMESPACE | CGROUP_NAMESPACE) {
            0 => {}
            others => sys::enter_namespaces_of(process, others).map_err(enter)?,
        }
    }
    match spawn.create & !PID_NAMESPACE {
        0 => {}
        others => sys::create_namespaces(others).map_err(|errno| Failure::new(Step::Namespaces, errno))?,
    }
    if spawn.stays {
        sys::become_subreaper().map_err(session)?;
    }
    // The agent waits for it, or for the end of this process.
    let told = sys::write(Fd(CONTROL), &[READY]);
    told.map(|_| proc).map_err(|errno| Failure::new(Step::Register, errno))
}

/// A single thread that writes itself is moved without the kernel's global lock.
fn join_cgroups(files: TaskFiles) -> Result<(), Failure<'static>> {
    (files.first..files.first + files.count).try_for_each(|file| {
        let joined = sys::write(Fd(file), b"0");
        sys::close(Fd(file));
        joined.map(drop).map_err(|errno| Failure::new(Step::JoinCgroup, errno))
    })
}

/// Receives the plan. A container waits here until it is isolated. `None` if the agent has gone.
fn receive() -> Result<Option<Mapping>, Failure<'static>> {
    let malformed =
        |error: read::Malformed| Failure::with_message(Step::Plan, Errno::BADMSG, error.message());
    let failed = |errno| Failure::new(Step::Plan, errno);
    let mut header = [0; HEADER];
    if !fill(&mut header)? {
        return Ok(None);
    }
    let length = read::header(&header).map_err(malformed)?;
    let mut message = Mapping::new(length).map_err(failed)?;
    let (head, body) = message.split_at_mut(HEADER);
    head.copy_from_slice(&header);
    if !fill(body)? {
        return Ok(None);
    }
    Plan::parse(&message).map_err(malformed)?;
    Ok(Some(message))
}

/// Fills a buffer. Returns false at the end of the connection.
fn fill(mut buffer: &mut [u8]) -> Result<bool, Failure<'static>> {
    while !buffer.is_empty() {
        match sys::read(Fd(CONTROL), buffer) {
            Ok(0) => return Ok(false),
            Ok(read) => buffer = buffer.get_mut(read..).unwrap_or_default(),
            Err(errno) => return Err(Failure::new(Step::Plan, errno)),
        }
    }
    Ok(true)
}

/// What a process goes on as.
enum Role {
    /// The setup process that has done its part, or a command that could not be executed.
    Finished(u8),
    /// The setup process that stays as the parent of the command.
    Parent(Pid),
    /// Process 1 of the container's pid namespace.
    Reaper,
}

/// Sets the container up and creates its processes. The order keeps the host safe: nothing of the container is
/// executed, and nothing is resolved outside its root, before everything in the plan is in place.
fn set_up<'a>(spawn: &Spawn, places: &Places, proc: Proc, message: &'a [u8]) -> Result<Role, Failure<'a>> {
    let plan = Plan::parse(message)
        .map_err(|error| Failure::with_message(Step::Plan, Errno::BADMSG, error.message()))?;
    let membership = Membership { cgroup: places.cgroup, namespace: cgroup_namespace(spawn, places, &plan) };
    // All of these need the host's `/proc` and the agent's privileges, so they come before the root changes.
    for namespace in plan.entered.iter().filter(|it| u64::from(it.kind) != CGROUP_NAMESPACE) {
        sys::enter_namespace(Fd(namespace.descriptor.cast_signed()), namespace.kind)
            .map_err(|errno| Failure::new(Step::EnterNamespace, errno))?;
    }
    if let Some(offsets) = plan.time_offsets {
        task::create_time_namespace(proc, offsets)?;
    }
    if let Some(name) = plan.hostname {
        sys::set_hostname(name).map_err(|errno| Failure::of(Step::Hostname, errno, name))?;
    }
    for sysctl in plan.sysctls.iter() {
        proc.write(sysctl.path, sysctl.value.to_bytes())
            .map_err(|errno| Failure::of(Step::Sysctl, errno, sysctl.path))?;
    }
    if let Some(score) = plan.oom_score_adj {
        task::set_oom_score(proc, score)?;
    }
    proc.close();
    let mounts = !plan.operations.is_empty() || !matches!(plan.root, read::Root::Host);
    if mounts && !plan.has(flag::MOUNT_NAMESPACE) {
        // Would mount on the host.
        return Err(Failure::with_message(
            Step::Root,
            Errno::INVAL,
            "the plan needs its own mount namespace",
        ));
    }
    let operations = mount(&plan, &membership)?;
    // Last, so that the work up to here is not limited by the container's quota, and charged to it. What the kernel keeps of
    // a file system for others, such as blocks with directories, would keep the container's memory cgroup as well.
    join_cgroups(places.late_cgroups)?;
    create_command(spawn, places, &plan, &membership, operations)
}

/// The cgroup namespace of the container.
fn cgroup_namespace(spawn: &Spawn, places: &Places, plan: &Plan<'_>) -> CgroupNamespace {
    let mut open = plan.entered.iter().filter(|it| u64::from(it.kind) == CGROUP_NAMESPACE);
    match (open.next(), places.entered) {
        _ if plan.has(flag::CGROUP_NAMESPACE) => CgroupNamespace::New,
        (Some(namespace), _) => CgroupNamespace::Open(Fd(namespace.descriptor.cast_signed())),
        (None, Some(process)) if spawn.enter & CGROUP_NAMESPACE != 0 => CgroupNamespace::OfProcess(process),
        (None, _) => CgroupNamespace::Inherited,
    }
}

/// Mounts the root with everything in it but what depends on the pid or cgroup namespace, and enters it. Returns what is
/// left.
fn mount<'a>(plan: &Plan<'a>, membership: &Membership) -> Result<Option<Operations<'a>>, Failure<'a>> {
    if !plan.has(flag::MOUNT_NAMESPACE) {
        hook::run_all(plan, stage::BEFORE_ROOT, membership)?;
        return Ok(None);
    }
    let private = plan.has(flag::PRIVATE_MOUNTS);
    sys::cut_propagation(private).map_err(|errno| Failure::new(Step::Propagation, errno))?;
    let root = root::mount(plan.root, plan.has(flag::ROOT_WITHOUT_DEVICES))?;
    let create = !plan.has(flag::CREATE_NOTHING);
    let mut operations = Operations::new(root.directory(), create, plan.operations)?;
    operations.perform_outside()?;
    hook::run_all(plan, stage::BEFORE_ROOT, membership)?;
    root.enter(plan.has(flag::READ_ONLY_ROOT))?;
    Ok(Some(operations))
}

/// Creates the command's process, and process 1 of its pid namespace if it gets one, and waits until it executes. They
/// are children of the keeper from the beginning, unless this process stays.
fn create_command<'a>(
    spawn: &Spawn,
    places: &Places,
    plan: &Plan<'a>,
    membership: &Membership,
    operations: Option<Operations<'a>>,
) -> Result<Role, Failure<'a>> {
    if let Some(terminal) = plan.terminal {
        terminal::open(terminal, plan.user)?;
    }
    let failed = |errno| Failure::new(Step::Fork, errno);
    let (report, report_writer) = sys::pipe().map_err(failed)?;
    let (go, go_writer) = sys::pipe().map_err(failed)?;
    let channels = Channels { report: report_writer, go, go_writer };
    let parent = if spawn.stays { Parent::Caller } else { Parent::CallersParent };
    let mut reaper = Pid::new(0);
    let own_pids = spawn.create & PID_NAMESPACE != 0;
    if own_pids {
        sys::create_namespaces(PID_NAMESPACE).map_err(|errno| Failure::new(Step::Namespaces, errno))?;
    }
    if own_pids && plan.has(flag::REAPER) {
        match membership.create_process(parent).map_err(failed)? {
            // All in the pid namespace can enter its namespaces.
            Creation::Child if membership.namespace.enter().is_err() => return Ok(Role::Finished(1)),
            Creation::Child => return Ok(Role::Reaper),
            Creation::Parent(child) => reaper = child.pid,
        }
    }
    let mut namespace = membership.namespace;
    let command = match places.entered.filter(|_| spawn.enter & PID_NAMESPACE != 0) {
        Some(process) => {
            namespace = CgroupNamespace::Inherited;
            create_unseen(process, membership, &channels, operations.as_ref())
        }
        None => membership.create_process(parent).map(|creation| match creation {
            Creation::Child => Command::Here(channels),
            Creation::Parent(child) => Command::Other(child),
        }),
    };
    let command = match command.map_err(failed)? {
        Command::Here(channels) => {
            return Ok(Role::Finished(task::run(plan, &channels, namespace, operations)));
        }
        Command::Other(command) => command,
        Command::Killed => return Ok(Role::Finished(1)),
    };
    if !spawn.stays {
        // This process is about to end.
        core::mem::forget(operations);
    }
    sys::close(report_writer);
    sys::close(go);
    let started =
        release(spawn, &command, reaper, go_writer).map_err(|failure| failure.report()).and_then(|()| {
            match Report::read(report) {
                Report::Runs => announce(spawn, &command).map_err(|failure| failure.report()),
                Report::Failed(record) => {
                    let _ = sys::write(Fd(CONTROL), record.as_bytes());
                    Err(())
                }
                Report::Nothing => Err(()),
            }
        });
    match (started, spawn.stays) {
        (Ok(()), true) => Ok(Role::Parent(command.pid)),
        (Ok(()), false) => Ok(Role::Finished(0)),
        // The keeper kills what is left.
        (Err(()), false) => Ok(Role::Finished(1)),
        (Err(()), true) => {
            sys::send_signal(command.pid, SIGKILL);
            sys::wait_for(command.pid);
            // It may have been running already, and nobody else knows what it has started.
            supervise::kill_descendants();
            Ok(Role::Finished(1))
        }
    }
}

/// The command's process, seen from one of the two processes.
enum Command {
    /// This is it.
    Here(Channels),
    /// It is another process.
    Other(Child),
    /// It, or the process that was to create it, was killed.
    Killed,
}

/// Creates the command's process in the pid namespace of another one, in which others see it from its first moment: it
/// must not have a descriptor or a namespace of the host, and whoever creates it must not be in the namespace. So a process
/// in between drops all but the container's descriptors before it creates the command.
fn create_unseen(
    process: Fd,
    membership: &Membership,
    channels: &Channels,
    operations: Option<&Operations<'_>>,
) -> Result<Command, Errno> {
    const REPORT: i32 = 3;
    const GO: i32 = 4;
    let is_kept =
        |fd: Fd| fd == process || operations.is_some_and(|it| it.descriptors().any(|kept| kept == fd));
    let last =
        operations.and_then(|it| it.descriptors().map(|fd| fd.0).max()).max(Some(process.0)).unwrap_or(0);
    let outcome = SharedNumber::new()?;
    let between = match membership.create_process(Parent::CallersParent)? {
        Creation::Parent(between) => between,
        Creation::Child => {
            let create = || {
                outcome.hide()?;
                membership.namespace.enter()?;
                sys::duplicate_to(channels.report, REPORT, true)?;
                sys::duplicate_to(channels.go, GO, true)?;
                (GO + 1..last).map(Fd).filter(|fd| !is_kept(*fd)).for_each(sys::close);
                sys::close_range(last as u32 + 1, u32::MAX);
                sys::enter_namespaces_of(process, PID_NAMESPACE)?;
                sys::close(process);
                sys::create_process(Parent::CallersParent, None)
            };
            match create() {
                Ok(Creation::Child) => {
                    let channels = Channels { report: Fd(REPORT), go: Fd(GO), go_writer: Fd(-1) };
                    return Ok(Command::Here(channels));
                }
                Ok(Creation::Parent(command)) => outcome.set(command.pid.number()),
                Err(errno) => outcome.set(-errno.0),
            }
            sys::exit(0)
        }
    };
    sys::wait_until_ended(between.pidfd);
    sys::close(between.pidfd);
    match outcome.get() {
        number @ 1.. => Ok(open_unseen(Pid::new(number)).map_or(Command::Killed, Command::Other)),
        0 => Ok(Command::Killed),
        errno => Err(Errno(-errno)),
    }
}

/// Opens the command's process, unless others in its pid namespace have killed it already: then the keeper has reaped it,
/// and its pid may be that of another process, but not of one in this session.
fn open_unseen(pid: Pid) -> Option<Child> {
    let pidfd = sys::open_process(pid).ok()?;
    if sys::session_of(pid) == Ok(sys::current_pid()) {
        return Some(Child { pid, pidfd });
    }
    sys::close(pidfd);
    None
}

/// Registers the command with the keeper, and lets it continue.
fn release(spawn: &Spawn, command: &Child, reaper: Pid, go: Fd) -> Result<(), Failure<'static>> {
    if !spawn.stays {
        register(command.pid, reaper)?;
    }
    // Fails if the process was killed, which its report tells.
    let _ = sys::write(go, &[0]);
    // Process 1 may still have the other copy of it.
    sys::close(go);
    Ok(())
}

fn register(command: Pid, reaper: Pid) -> Result<(), Failure<'static>> {
    let numbers = [sys::current_pid().number(), command.number(), reaper.number()];
    let mut registration = [0; REGISTRATION_LENGTH];
    for (to, number) in registration.chunks_exact_mut(4).zip(numbers) {
        to.copy_from_slice(&number.to_ne_bytes());
    }
    // Fails if the keeper has ended: then nobody would record how the command ends.
    let written = sys::write(Fd(REGISTRATION), &registration);
    written.map(drop).map_err(|errno| Failure::new(Step::Register, errno))
}

/// Tells the agent that the command runs. If the agent has gone, the next one takes the command for not started.
fn announce(spawn: &Spawn, command: &Child) -> Result<(), Failure<'static>> {
    let failed = |errno| Failure::new(Step::Register, errno);
    let own = sys::current_pid();
    let (pid, pidfd) = if spawn.stays {
        register(own, Pid::new(0))?;
        (own, sys::open_process(own).map_err(failed)?)
    } else {
        (command.pid, command.pidfd)
    };
    let mut message = [STARTED; 5];
    if let Some((_, number)) = message.split_first_mut() {
        number.copy_from_slice(&pid.number().to_ne_bytes());
    }
    sys::send(Fd(CONTROL), &message, Some(pidfd)).map_err(failed)
}

/// What the command's process reported.
#[allow(clippy::large_enum_variant, reason = "there is one, on the stack, and no allocator")]
enum Report {
    /// It executed the program.
    Runs,
    /// A step failed: the encoded record.
    Failed(Text<{ RECORD_HEAD + MAX_DETAIL }>),
    /// It ended, or reported something else.
    Nothing,
}

impl Report {
    /// Reads up to the end of file at the exec. Others in its pid namespace may control the process, so nothing is
    /// believed beyond the format.
    fn read(report: Fd) -> Self {
        let mut buffer = [0; 1 + RECORD_HEAD + MAX_DETAIL + 1];
        let mut length = 0;
        while let Ok(read @ 1..) = sys::read(report, buffer.get_mut(length..).unwrap_or_default()) {
            length += read;
        }
        sys::close(report);
        let message = buffer.get(..length).unwrap_or_default();
        let (runs, rest) = match message.split_first() {
            Some((&RUNNING, rest)) => (true, rest),
            _ => (false, message),
        };
        if runs && rest.is_empty() {
            return Self::Runs;
        }
        let mut record = Text::new();
        match Record::parse(rest) {
            Some(_) if record.push(rest) => Self::Failed(record),
            _ => Self::Nothing,
        }
    }
}

/// Process 1 of a pid namespace: the kernel gives it orphans, which it has reaped without being woken up. It has
/// neither privileges nor descriptors, so that nobody gains anything by controlling it.
fn reap_orphans() -> ! {
    sys::set_name(c"cofferdam-init");
    sys::ignore_child_exits();
    sys::close_range(0, u32::MAX);
    let _ = sys::change_directory(c"/");
    let _ = sys::forbid_new_privileges();
    let _ = sys::set_capabilities(sys::CapabilitySets { effective: 0, permitted: 0, inheritable: 0 });
    sys::rest()
}

/// Closes all descriptors and leaves the working directory, so that no pipe is kept open and no mount busy.
fn release_descriptors() {
    sys::close_range(0, u32::MAX);
    let _ = sys::change_directory(c"/");
}
