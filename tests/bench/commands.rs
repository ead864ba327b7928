//! `run` and `exec` of busybox' `true`, as users type them, beside container engines and OCI runtimes.

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cofferdam::config::Isolation;
use cofferdam_core::model::Request;
use cofferdam_tests::world::{World, id};

use crate::cli::{self, Cli, Root};
use crate::embedded::{CPUS, MEM, request};
use crate::engine::{self, Bundle, Engine, Executed};
use crate::engines::{Client, DOCKER, Engines, PODMAN};
use crate::environment::Environment;
use crate::launch::{Reference, Subject, compare, one};
use crate::ours::Ours;
use crate::report::Report;
use crate::rounds::Rounds;
use crate::{Options, Outcome};

pub const NAMES: [&str; 2] = ["client-run", "client-exec"];

/// Row of ours; the others are those of `cli.rs`.
const EXEC: &str = "cofferdam exec, daemon";

/// Name of the container in which commands are executed.
const CONTAINER: &str = "bench-exec";

/// The command that is measured.
const TRUE: [&str; 2] = ["/bin/busybox", "true"];

/// The command of a container that does nothing.
pub const SLEEP: [&str; 3] = ["/bin/busybox", "sleep", "1000000"];

/// Measures both.
pub fn measure(
    environment: &Environment,
    engines: &Engines,
    options: &Options,
    seed: u32,
    report: &mut Report,
) -> Outcome<()> {
    if !NAMES.iter().any(|name| options.wants(name)) {
        return Ok(());
    }
    let namespace = engine::namespace(environment)?;
    let runtimes = engine::programs(&options.runtime)?;
    let (cpus, memory) = (CPUS.to_string(), format!("{MEM}m"));
    let limits = ["--network", "host", "--cpus", &cpus, "--memory", &memory];
    let rounds = match options.quick {
        true => Rounds { warm_up: 1, most: 4, least: 2, budget: Duration::from_secs(8) },
        false => Rounds { warm_up: 2, most: 21, least: 10, budget: Duration::from_secs(60) },
    };

    if options.wants(NAMES[0]) {
        let mut subjects: Vec<Box<dyn Subject + '_>> = Vec::new();
        if options.wants_subject(cli::DAEMON) {
            subjects.push(Box::new(Cli::daemon(environment, Root::Directory, Isolation::Docker)?));
        }
        if options.wants_subject(cli::ALONE) {
            subjects.push(Box::new(Cli::alone(environment, Root::Directory, Isolation::Docker)?));
        }
        for client in engines.clients() {
            let name = format!("{} run", client.name);
            if options.wants_subject(&name) {
                let run = client.run(&[&["--rm"], &limits[..]].concat(), &TRUE);
                subjects.push(Box::new(ByClient::new(client, name, run)));
            }
        }
        for runtime in &runtimes {
            if options.wants_subject(&Bundle::Alike.label(runtime))
                && let Some(runtime) = Engine::new(environment, namespace.as_ref(), runtime, Bundle::Alike)?
            {
                subjects.push(Box::new(runtime));
            }
        }
        let title = "`run` of busybox' `true`, until the command line returns";
        let mut group = compare(environment, &subjects, seed, NAMES[0], title, rounds, &one)?;
        for ours in [cli::DAEMON, cli::ALONE] {
            for engine in [DOCKER, PODMAN] {
                group.compare(ours, &format!("{engine} run"));
            }
        }
        report.add(group);
    }

    if options.wants(NAMES[1]) {
        let mut subjects: Vec<Box<dyn Subject + '_>> = Vec::new();
        if options.wants_subject(EXEC) {
            subjects.push(Box::new(InOurs::start(environment)?));
        }
        for client in engines.clients() {
            let name = format!("{} exec", client.name);
            if options.wants_subject(&name) {
                client.call(&client.run(&[&["-d", "--name", CONTAINER], &limits[..]].concat(), &SLEEP))?;
                let exec = ["exec", CONTAINER].into_iter().chain(TRUE).collect();
                let mut by_client = ByClient::new(client, name, exec);
                by_client.container = Some(CONTAINER);
                subjects.push(Box::new(by_client));
            }
        }
        for runtime in &runtimes {
            if options.wants_subject(&Executed::label(runtime))
                && let Some(runtime) = Executed::start(environment, namespace.as_ref(), runtime)?
            {
                subjects.push(Box::new(runtime));
            }
        }
        let title = "`exec` of busybox' `true` in a running container";
        let mut group = compare(environment, &subjects, seed, NAMES[1], title, rounds, &one)?;
        for engine in [DOCKER, PODMAN] {
            group.compare(EXEC, &format!("{engine} exec"));
        }
        report.add(group);
    }
    Ok(())
}

/// A call of an engine's client.
struct ByClient<'a> {
    client: &'a Client,
    name: String,
    arguments: Vec<String>,
    /// The container in which a command is executed, which is removed on drop.
    container: Option<&'static str>,
}

impl<'a> ByClient<'a> {
    fn new(client: &'a Client, name: String, arguments: Vec<&str>) -> Self {
        Self { client, name, arguments: arguments.into_iter().map(str::to_owned).collect(), container: None }
    }
}

impl Subject for ByClient<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn once(&self, _: usize) -> Outcome<Duration> {
        self.client.timed(&self.arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Drop for ByClient<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.container.map(|container| self.client.remove(container)) {
            eprintln!("bench: a container may be left: {error}");
        }
    }
}

/// `cofferdam exec` in a container of a daemon.
struct InOurs(Ours);

impl InOurs {
    fn start(environment: &Environment) -> Outcome<Self> {
        let ours = Ours::start(World::shipped());
        let request = request(Some(environment.rootfs()), 0, &SLEEP[1..])?;
        ours.launch(&Request { id: id(CONTAINER), ..request })?;
        Ok(Self(ours))
    }
}

impl Subject for InOurs {
    fn name(&self) -> &str {
        EXEC
    }

    fn once(&self, _: usize) -> Outcome<Duration> {
        let [program, argument] = TRUE;
        let mut command = self.0.command(&["exec", CONTAINER, "--", program, argument]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let started = Instant::now();
        let output = command.output()?;
        let took = started.elapsed();
        match output.status.success() {
            true => Ok(took),
            false => Err(format!("{EXEC}: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
        }
    }

    fn compared_to(&self) -> Vec<Reference> {
        vec![Reference::Runtimes]
    }
}
