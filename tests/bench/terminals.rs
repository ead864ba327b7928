//! Terminals of containers: from a key to its echo, and the memory of what holds them.

use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam::config::Isolation;
use cofferdam_core::model::{Request, Tty};
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::world::{World, id};

use crate::cli::{Cli, Root};
use crate::engines::{DOCKER, Engines, PODMAN};
use crate::environment::Environment;
use crate::fleet::rollup;
use crate::ours::Ours;
use crate::report::{Group, Report};
use crate::rounds::{Rounds, in_turns};
use crate::sample::Samples;
use crate::{Options, Outcome};

pub const NAMES: [&str; 2] = ["keystroke", "terminal-memory"];

/// Rows of the first table: none of a container, ours; the others are of engines.
const FLOOR: &str = "floor: a terminal without a container";
const DAEMON: &str = "cofferdam run -it, daemon";
const ALONE: &str = "cofferdam run -it, no daemon";

/// What runs at a terminal. The terminal echoes what is typed, as a shell would.
const SCRIPT: &str = "echo ready; exec busybox cat";

/// Pause before a key: everything on its way is asleep.
const PAUSE: Duration = Duration::from_millis(10);

/// Keys of a turn.
const KEYS: &[u8] = b"abcdefghijklmnopqrst";

/// Measures both.
pub fn measure(
    environment: &Environment,
    engines: &Engines,
    options: &Options,
    seed: u32,
    report: &mut Report,
) -> Outcome<()> {
    if options.wants(NAMES[0]) {
        report.add(keystrokes(environment, engines, options, seed)?);
    }
    if options.wants(NAMES[1]) {
        report.add(memory(environment, engines, options)?);
    }
    Ok(())
}

/// From a key that is written to a terminal until its echo is read from it.
fn keystrokes(environment: &Environment, engines: &Engines, options: &Options, seed: u32) -> Outcome<Group> {
    let rootfs = environment.rootfs().display().to_string();
    let mut ours = None;
    let mut alone = None;
    let mut terminals: Vec<(String, Terminal)> = Vec::new();
    let command = ["--rootfs", &rootfs, "--", "/bin/sh", "-c", SCRIPT];
    if options.wants_subject(FLOOR) {
        let shell = Terminal::run(Path::new("/bin/busybox"), &["sh", "-c", SCRIPT], &[]);
        terminals.push((FLOOR.to_owned(), shell));
    }
    if options.wants_subject(DAEMON) {
        let ours = ours.insert(Ours::start(World::shipped()));
        let run = ["run", "--rm", "-it"].into_iter().chain(command);
        terminals.push((DAEMON.to_owned(), ours.at_terminal(&run.collect::<Vec<_>>())));
    }
    if options.wants_subject(ALONE) {
        let alone = alone.insert(Cli::alone(environment, Root::Directory, Isolation::Docker)?);
        terminals.push((ALONE.to_owned(), alone.at_terminal(&command)?));
    }
    for client in engines.clients() {
        let name = format!("{} run -it", client.name);
        if options.wants_subject(&name) {
            let run = client.run(&["--rm", "-it", "--network", "host"], &["/bin/sh", "-c", SCRIPT]);
            terminals.push((name, client.at_terminal(&run)?));
        }
    }
    for (name, terminal) in &mut terminals {
        terminal.wait_for("ready");
        // Before, the client's own terminal would echo.
        while name != FLOOR && !terminal.is_raw() {
            std::thread::yield_now();
        }
    }

    let most = if options.quick { 2 } else { 25 };
    let rounds = Rounds { warm_up: 1, most, least: most, budget: Duration::MAX };
    let taken = in_turns(environment, seed, rounds, terminals.len(), |place| {
        let (_, terminal) = &mut terminals[place];
        Ok(KEYS.iter().map(|key| micros_until_echo(terminal, *key)).collect::<Vec<f64>>())
    })?;
    let mut group = Group::new(NAMES[0], "From a key until its echo", "µs").per_round(KEYS.len());
    for ((name, mut terminal), samples) in terminals.into_iter().zip(taken) {
        // The end of the line, and the end of input.
        terminal.type_keys("\n\u{4}");
        let status = terminal.wait()?;
        if !status.success() {
            return Err(format!("{name}: {status}").into());
        }
        group.row(name, Samples(samples.concat()));
    }
    for of in [DAEMON, ALONE] {
        group.compare(of, FLOOR);
        for engine in [DOCKER, PODMAN] {
            group.compare(of, &format!("{engine} run -it"));
        }
    }
    Ok(group)
}

/// Presses one key. Returns the time until its echo, in microseconds.
fn micros_until_echo(terminal: &mut Terminal, key: u8) -> f64 {
    std::thread::sleep(PAUSE);
    let key = char::from(key).to_string();
    let started = Instant::now();
    terminal.type_keys(&key);
    terminal.wait_for(&key);
    started.elapsed().as_secs_f64() * 1e6
}

/// Memory of the processes that hold the terminals of containers to which no client is attached.
fn memory(environment: &Environment, engines: &Engines, options: &Options) -> Outcome<Group> {
    const OURS: &str = "cofferdam: cofferdam-io";
    let count = if options.quick { 3 } else { 10 };
    let title = format!("What holds the terminal of a container, with {count} of them");
    let mut group = Group::new(NAMES[1], title, "kB");
    let mut add = |name: &str, processes: &[i32]| -> Outcome<()> {
        for field in ["Pss", "Rss", "Private_Dirty"] {
            let of_all = processes.iter().map(|&pid| rollup(pid, field)).collect::<Outcome<_>>()?;
            group.row(format!("{field} of {name}"), of_all);
        }
        Ok(())
    };
    if options.wants_subject(OURS) {
        let ours = Ours::start(World::shipped());
        for number in 0..count {
            environment.check_interrupted()?;
            let mut request = Request::shell(id(&format!("bench-terminal-{number}")), SCRIPT);
            request.rootfs = Some(environment.rootfs());
            request.tty = Some(Tty { rows: 24, columns: 80 });
            ours.launch(&request)?;
        }
        let switchboards = ours.switchboards()?;
        if switchboards.len() != count {
            return Err(format!("{} of {count} terminals are held", switchboards.len()).into());
        }
        add(OURS, &switchboards)?;
    }
    for (engine, monitor) in [(DOCKER, "docker: containerd-shim"), (PODMAN, "podman: conmon")] {
        let Some(client) = engines.client(engine).filter(|_| options.wants_subject(monitor)) else {
            continue;
        };
        let names: Vec<String> = (0..count).map(|number| format!("bench-terminal-{number}")).collect();
        let mut monitors = Vec::new();
        for name in &names {
            environment.check_interrupted()?;
            let run = ["-d", "-it", "--network", "host", "--name", name];
            client.call(&client.run(&run, &["/bin/sh", "-c", SCRIPT]))?;
            monitors.push(client.monitor(client.first_process(name)?)?);
        }
        add(monitor, &monitors)?;
        for name in &names {
            client.remove(name)?;
        }
    }
    for engine in ["docker: containerd-shim", "podman: conmon"] {
        group.compare(&format!("Pss of {OURS}"), &format!("Pss of {engine}"));
    }
    Ok(group)
}
