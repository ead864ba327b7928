//! Many containers at a time: memory of what runs beside them and of the agent, launches beside them, the recovery after
//! the agent was killed, and the end of all.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use cofferdam_linux::process::{Stat, children_of};

use crate::agent_process::AgentProcess;
use crate::chain::Chain;
use crate::environment::Environment;
use crate::report::{Group, Report};
use crate::sample::Samples;
use crate::sweep_floor::SweepFloor;
use crate::{Options, Outcome};

/// How many containers are launched between two measurements.
const SOME: usize = 100;

/// Memory that a container with `sleep` takes at most, of the kernel and of its processes, in kB.
const PER_CONTAINER: u64 = 1_500;

/// Measures with sleeping containers.
pub fn measure(environment: &Environment, options: &Options, report: &mut Report) -> Outcome<()> {
    const NAMES: [&str; 6] =
        ["helper-memory", "agent-memory", "recovery", "usage-sweep", "launch-beside", "destroy-all"];
    if !NAMES.iter().any(|name| options.wants(name)) {
        return Ok(());
    }
    let many = options.containers.map_or(if options.quick { SOME } else { 1000 }, |count| count as usize);
    check_limits(many)?;
    let mut agent_process = AgentProcess::start(environment, Chain::Shipped)?;

    let mut memory = Group::new(NAMES[1], "The agent", "kB, except for threads and descriptors");
    measure_memory(&mut memory, "with none running", agent_process.pid())?;
    let mut recovery = Group::new(NAMES[2], "From exec to ready, after `kill -9`", "ms");
    if options.wants(NAMES[2]) {
        recovery.row("with none running", recover(environment, &mut agent_process, options)?);
    }

    let mut beside = Group::new(NAMES[4], format!("A launch, eight at a time, mean of {SOME}"), "ms");
    let mut helpers = Group::new(NAMES[0], "What runs beside sleeping containers", "kB");
    beside.row("with none running", launch(environment, &mut agent_process)?);
    measure_helpers(&mut helpers, &agent_process.pids()?)?;
    for number in (SOME..many).step_by(SOME) {
        let samples = launch(environment, &mut agent_process)?;
        if number + SOME >= many {
            beside.row(format!("with {number} running"), samples);
            measure_helpers(&mut helpers, &agent_process.pids()?)?;
        }
    }
    if options.wants(NAMES[4]) {
        report.add(beside);
    }
    if options.wants(NAMES[0]) {
        report.add(helpers);
    }
    if options.wants(NAMES[1]) {
        measure_memory(&mut memory, &format!("with {many} running"), agent_process.pid())?;
        report.add(memory);
    }
    if options.wants(NAMES[3]) {
        let mut sweep = Group::new(NAMES[3], format!("`usage` of {many} containers, all at once"), "ms");
        measure_sweep(&mut sweep, &mut agent_process, options)?;
        report.add(sweep);
    }
    if options.wants(NAMES[2]) {
        recovery.row(format!("with {many} running"), recover(environment, &mut agent_process, options)?);
        let known = agent_process.pids()?.len();
        if known != many {
            return Err(
                format!("only {known} of {many} containers are running after the agent was killed").into()
            );
        }
        report.add(recovery);
    }
    let mut end = Group::new(NAMES[5], format!("The end of all {many}, requested at once"), "ms");
    let started = Instant::now();
    agent_process.end()?;
    end.row("destroyed", Samples(vec![started.elapsed().as_secs_f64() * 1e3]));
    if options.wants(NAMES[5]) {
        report.add(end);
    }
    if options.wants(NAMES[3]) {
        report.add(sweep_of_full_chain(environment, options, many)?);
    }
    Ok(())
}

/// Adds the time in which the usage of all is read.
fn measure_sweep(group: &mut Group, agent_process: &mut AgentProcess<'_>, options: &Options) -> Outcome<()> {
    let rounds = if options.quick { 3 } else { 7 };
    let pids = agent_process.pids()?;
    let floor = SweepFloor::new(&pids)?;
    let (mut elapsed, mut spent, mut direct) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (time, cpu) = agent_process.sweep()?;
        elapsed.push(time);
        spent.push(cpu);
        direct.push(floor.read()?);
    }
    group.row("sweep, elapsed", Samples(elapsed));
    group.row("sweep, CPU time", Samples(spent));
    group.row(format!("floor, CPU time: {} files of each", floor.files(pids.len())), Samples(direct));
    Ok(())
}

/// The same with all statistics. The floor still reads what the shipped chain reads.
fn sweep_of_full_chain(environment: &Environment, options: &Options, many: usize) -> Outcome<Group> {
    let mut agent_process = AgentProcess::start(environment, Chain::Full)?;
    for _ in (0..many).step_by(SOME) {
        launch(environment, &mut agent_process)?;
    }
    let title = format!("`usage` of {many} containers with all isolators and statistics");
    let mut group = Group::new("usage-sweep", title, "ms");
    measure_sweep(&mut group, &mut agent_process, options)?;
    agent_process.end()?;
    Ok(group)
}

/// Checks that the machine permits so many containers, before any of them runs.
fn check_limits(containers: usize) -> Outcome<()> {
    let number = |path: &str| -> Outcome<u64> {
        Ok(fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?.trim().parse()?)
    };
    // The command and process 1 of each.
    let processes = 2 * containers as u64 + 1000;
    for path in ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"] {
        let most = number(path)?;
        if most < processes {
            return Err(
                format!("{containers} containers need {processes} processes; {path} is {most}").into()
            );
        }
    }
    let memory = fs::read_to_string("/proc/meminfo")?;
    let available =
        memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next());
    let (available, needed): (u64, _) =
        (available.ok_or("no MemAvailable")?.parse()?, containers as u64 * PER_CONTAINER);
    if available < needed {
        return Err(format!(
            "{containers} containers may need {needed} kB of memory; {available} kB are available"
        )
        .into());
    }
    Ok(())
}

/// Launches further containers. Returns the time per launch.
fn launch(environment: &Environment, agent_process: &mut AgentProcess<'_>) -> Outcome<Samples> {
    environment.check_interrupted()?;
    let started = Instant::now();
    agent_process.launch(SOME)?;
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    let count = SOME as f64;
    Ok(Samples(vec![started.elapsed().as_secs_f64() * 1e3 / count]))
}

/// Adds the memory of the keepers, the parents of the commands, and of their other children: process 1 of each container.
fn measure_helpers(group: &mut Group, commands: &[i32]) -> Outcome<()> {
    let count = commands.len();
    let keepers: BTreeSet<i32> =
        commands.iter().map(|&pid| Ok(Stat::read(pid)?.parent)).collect::<Outcome<_>>()?;
    let commands: BTreeSet<i32> = commands.iter().copied().collect();
    let mut reapers = Vec::new();
    for &keeper in &keepers {
        reapers.extend(children_of(keeper)?.into_iter().filter(|pid| !commands.contains(pid)));
    }
    for field in ["Pss", "Rss", "Private_Dirty"] {
        // A process that set up a container may still have been there.
        let of_reapers = reapers.iter().filter_map(|&pid| rollup(pid, field).ok()).collect();
        group.row(format!("{field} of process 1 of each of {count}"), of_reapers);
        let of_keepers: f64 = keepers.iter().map(|&pid| rollup(pid, field)).sum::<Outcome<f64>>()?;
        group.row(format!("{field} of the keeper, with {count} running"), Samples(vec![of_keepers]));
    }
    Ok(())
}

fn recover(
    environment: &Environment,
    agent_process: &mut AgentProcess<'_>,
    options: &Options,
) -> Outcome<Samples> {
    let rounds = if options.quick { 2 } else { 5 };
    (0..rounds)
        .map(|_| {
            environment.check_interrupted()?;
            agent_process.kill()?;
            let started = Instant::now();
            agent_process.restart()?;
            Ok(started.elapsed().as_secs_f64() * 1e3)
        })
        .collect()
}

/// Adds memory, threads and descriptors of the agent's process.
fn measure_memory(group: &mut Group, when: &str, pid: i32) -> Outcome<()> {
    for field in ["Pss", "Rss", "Anonymous"] {
        group.row(format!("{field}, {when}"), Samples(vec![rollup(pid, field)?]));
    }
    for (what, directory) in [("threads", "task"), ("descriptors", "fd")] {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let count = fs::read_dir(format!("/proc/{pid}/{directory}"))?.count() as f64;
        group.row(format!("{what}, {when}"), Samples(vec![count]));
    }
    Ok(())
}

/// A field of `smaps_rollup`, in kB.
pub fn rollup(pid: i32, field: &str) -> Outcome<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let value =
        text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.split_whitespace().next());
    Ok(value.ok_or_else(|| format!("{path} has no field `{field}`"))?.parse()?)
}
