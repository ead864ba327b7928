//! Many containers at a time: what they weigh, what the agent weighs with them, how fast it is back after it was killed.

use std::fs;
use std::time::Instant;

use crate::minion::Minion;
use crate::report::{Group, Report};
use crate::sample::Samples;
use crate::scene::Scene;
use crate::{Options, Outcome};

/// Running containers at which the weight of one is looked at.
const SOME: usize = 100;

/// Measures with containers that sleep.
pub fn measure(scene: &Scene, options: &Options, report: &mut Report) -> Outcome<()> {
    const NAMES: [&str; 4] = ["helper-memory", "agent-memory", "recovery", "usage-sweep"];
    if !NAMES.iter().any(|name| options.wants(name)) {
        return Ok(());
    }
    let many = if options.quick { SOME } else { 1000 };
    let mut minion = Minion::start(scene)?;

    let mut memory = Group::new(NAMES[1], "The agent", "kB, but for threads and descriptors");
    weigh(&mut memory, "with none running", minion.pid())?;
    let mut recovery = Group::new(NAMES[2], "From exec to serving again, after `kill -9`", "ms");
    if options.wants(NAMES[2]) {
        recovery.row("with none running", recover(scene, &mut minion, options)?);
    }

    let mut helpers =
        Group::new(NAMES[0], format!("`cofferdam-init` of each of {SOME} sleeping containers"), "kB");
    minion.launch(SOME)?;
    if options.wants(NAMES[0]) {
        let pids = minion.pids()?;
        for field in ["Pss", "Rss", "Private_Dirty"] {
            helpers.row(field, pids.iter().map(|&pid| rollup(pid, field)).collect::<Outcome<_>>()?);
        }
        report.add(helpers);
    }

    // In parts, so that Ctrl-C is heard in between.
    for _ in (SOME..many).step_by(SOME) {
        scene.go_on()?;
        minion.launch(SOME)?;
    }
    if options.wants(NAMES[1]) {
        weigh(&mut memory, &format!("with {many} running"), minion.pid())?;
        report.add(memory);
    }
    if options.wants(NAMES[3]) {
        let mut sweep =
            Group::new(NAMES[3], format!("`usage` of {many} containers, all asked at once"), "ms");
        let rounds = if options.quick { 3 } else { 7 };
        sweep.row("sweep", (0..rounds).map(|_| minion.sweep()).collect::<Outcome<_>>()?);
        report.add(sweep);
    }
    if options.wants(NAMES[2]) {
        recovery.row(format!("with {many} running"), recover(scene, &mut minion, options)?);
        let known = minion.pids()?.len();
        if known != many {
            return Err(
                format!("of {many} containers {known} run on after {} was killed", "the agent").into()
            );
        }
        report.add(recovery);
    }
    minion.end()
}

fn recover(scene: &Scene, minion: &mut Minion<'_>, options: &Options) -> Outcome<Samples> {
    let rounds = if options.quick { 2 } else { 5 };
    (0..rounds)
        .map(|_| {
            scene.go_on()?;
            minion.kill()?;
            let started = Instant::now();
            minion.restart()?;
            Ok(started.elapsed().as_secs_f64() * 1e3)
        })
        .collect()
}

/// Adds what the agent's process weighs.
fn weigh(group: &mut Group, when: &str, pid: i32) -> Outcome<()> {
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
    Ok(value.ok_or_else(|| format!("{path} does not say `{field}`"))?.parse()?)
}
