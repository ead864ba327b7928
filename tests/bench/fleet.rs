//! Many containers at a time: memory of their inits and of the agent, and the recovery after the agent was killed.

use std::fs;
use std::time::Instant;

use crate::agent_process::AgentProcess;
use crate::environment::Environment;
use crate::report::{Group, Report};
use crate::sample::Samples;
use crate::sweep_floor::SweepFloor;
use crate::{Options, Outcome};

/// Number of running containers for the memory of one init.
const SOME: usize = 100;

/// Measures with sleeping containers.
pub fn measure(environment: &Environment, options: &Options, report: &mut Report) -> Outcome<()> {
    const NAMES: [&str; 4] = ["helper-memory", "agent-memory", "recovery", "usage-sweep"];
    if !NAMES.iter().any(|name| options.wants(name)) {
        return Ok(());
    }
    let many = if options.quick { SOME } else { 1000 };
    let mut agent_process = AgentProcess::start(environment)?;

    let mut memory = Group::new(NAMES[1], "The agent", "kB, except for threads and descriptors");
    measure_memory(&mut memory, "with none running", agent_process.pid())?;
    let mut recovery = Group::new(NAMES[2], "From exec to ready, after `kill -9`", "ms");
    if options.wants(NAMES[2]) {
        recovery.row("with none running", recover(environment, &mut agent_process, options)?);
    }

    let mut helpers =
        Group::new(NAMES[0], format!("`cofferdam-init` of each of {SOME} sleeping containers"), "kB");
    agent_process.launch(SOME)?;
    if options.wants(NAMES[0]) {
        let pids = agent_process.pids()?;
        for field in ["Pss", "Rss", "Private_Dirty"] {
            helpers.row(field, pids.iter().map(|&pid| rollup(pid, field)).collect::<Outcome<_>>()?);
        }
        report.add(helpers);
    }

    // In parts, so that Ctrl-C is noticed in between.
    for _ in (SOME..many).step_by(SOME) {
        environment.check_interrupted()?;
        agent_process.launch(SOME)?;
    }
    if options.wants(NAMES[1]) {
        measure_memory(&mut memory, &format!("with {many} running"), agent_process.pid())?;
        report.add(memory);
    }
    if options.wants(NAMES[3]) {
        let mut sweep = Group::new(NAMES[3], format!("`usage` of {many} containers, all at once"), "ms");
        let rounds = if options.quick { 3 } else { 7 };
        let floor = SweepFloor::new(&agent_process.pids()?)?;
        let (mut elapsed, mut spent, mut direct) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (time, cpu) = agent_process.sweep()?;
            elapsed.push(time);
            spent.push(cpu);
            direct.push(floor.read()?);
        }
        sweep.row("sweep, elapsed", Samples(elapsed));
        sweep.row("sweep, CPU time", Samples(spent));
        let files = floor.files(many);
        sweep.row(format!("floor, CPU time: the same {files} files of each"), Samples(direct));
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
    agent_process.end()
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
fn rollup(pid: i32, field: &str) -> Outcome<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let value =
        text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.split_whitespace().next());
    Ok(value.ok_or_else(|| format!("{path} has no field `{field}`"))?.parse()?)
}
