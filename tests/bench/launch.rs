//! Launches: from the request for a container until everything of it is removed.

use std::time::Duration;

use cofferdam::config::Isolation;

use crate::cli::{self, Cli, Root};
use crate::embedded::{self, Embedded, Writes};
use crate::engine::{self, Bundle, Engine};
use crate::environment::{Environment, Scratch, is_memory};
use crate::floor::{self, Floor};
use crate::report::{Group, Report};
use crate::rounds::{Rounds, in_turns};
use crate::{Options, Outcome};

/// Something that runs busybox' `true` in a container.
pub trait Subject: Sync {
    fn name(&self) -> &str;

    /// Creates a container, waits for its end, and removes everything of it. Different lanes may overlap.
    fn once(&self, lane: usize) -> Outcome<Duration>;

    /// The rows to which this one is compared.
    fn compared_to(&self) -> Vec<Reference> {
        Vec::new()
    }

    /// Whether it is one of [`Reference::Runtimes`].
    fn is_runtime(&self) -> bool {
        false
    }
}

/// What a subject is compared to.
#[derive(Clone, Copy)]
pub enum Reference {
    /// A row of the table: the floor that does the same.
    Row(&'static str),
    /// Each of the other runtimes, with a container like ours.
    Runtimes,
}

/// The subjects of a run, in the order of the table.
struct Subjects<'a> {
    options: &'a Options,
    all: Vec<Box<dyn Subject + 'a>>,
}

impl<'a> Subjects<'a> {
    /// Adds a subject if it is wanted.
    fn add<S: Subject + 'a>(&mut self, name: &str, create: impl FnOnce() -> Outcome<S>) -> Outcome<()> {
        if self.options.wants_subject(name) {
            self.all.push(Box::new(create()?));
        }
        Ok(())
    }
}

/// Number of lanes of the parallel benchmark.
const PARALLEL: usize = 2;

/// Pause before each launch of the sparse benchmark: long enough for the kernel's deferred work.
const PAUSE: Duration = Duration::from_millis(150);

/// Measures all subjects, one after the other, several at a time, and with pauses.
pub fn measure(environment: &Environment, options: &Options, seed: u32, report: &mut Report) -> Outcome<()> {
    const NAMES: [&str; 3] = ["launch-sequential", "launch-wide", "launch-sparse"];
    if !NAMES.iter().any(|name| options.wants(name)) {
        return Ok(());
    }
    let program = floor::compile(environment)?;
    let namespace = engine::namespace(environment)?;
    let runtimes = engine::programs(&options.runtime)?;
    for runtime in &runtimes {
        report.fact(&runtime.label, runtime.path.display().to_string());
    }
    let mut subjects = Subjects { options, all: Vec::new() };
    subjects.add(floor::EMPTY, || Floor::empty(environment, &program, PARALLEL))?;
    subjects.add(embedded::EMPTY, || Embedded::empty(environment))?;
    for scratch in [Scratch::WorkDirectory, Scratch::Memory] {
        if scratch == Scratch::Memory && !is_memory(environment.scratch(scratch)) {
            eprintln!("bench: SKIPPED {}: no tmpfs at /run or /dev/shm", floor::shipped(scratch));
            continue;
        }
        let create = || Floor::shipped(environment, &program, PARALLEL, scratch);
        subjects.add(floor::shipped(scratch), create)?;
    }
    subjects.add(embedded::SHIPPED, || Embedded::shipped(environment, Writes::Overlay))?;
    subjects.add(embedded::FULL, || Embedded::full(environment))?;
    subjects.add(embedded::PRIVILEGED, || Embedded::privileged(environment))?;
    subjects.add(embedded::MEMORY, || Embedded::in_memory(environment))?;
    subjects.add(embedded::DIRECT, || Embedded::shipped(environment, Writes::Direct))?;
    subjects.add(cli::DAEMON, || Cli::daemon(environment, Root::Directory, Isolation::Docker))?;
    subjects.add(cli::PRIVILEGED_DAEMON, || Cli::daemon(environment, Root::Directory, Isolation::Mesos))?;
    subjects.add(cli::ALONE, || Cli::alone(environment, Root::Directory, Isolation::Docker))?;
    subjects.add(cli::PRIVILEGED_ALONE, || Cli::alone(environment, Root::Directory, Isolation::Mesos))?;
    subjects.add(cli::MANY, || Cli::many(environment))?;
    for runtime in &runtimes {
        for bundle in [Bundle::Alike, Bundle::Stock] {
            if options.wants_subject(&bundle.label(runtime))
                && let Some(engine) = Engine::new(environment, namespace.as_ref(), runtime, bundle)?
            {
                subjects.all.push(Box::new(engine));
            }
        }
    }

    let plan = |rounds: usize, seconds: u64| match options.quick {
        true => Rounds { warm_up: 1, most: 12, least: 5, budget: Duration::from_secs(seconds / 8) },
        false => {
            Rounds { warm_up: rounds / 10, most: rounds, least: 15, budget: Duration::from_secs(seconds) }
        }
    };
    let mut run = |name: &'static str, title: &str, turn: &Turn<'_>, rounds: Rounds| -> Outcome<()> {
        if options.wants(name) {
            report.add(compare(environment, &subjects.all, seed, name, title, rounds, turn)?);
        }
        Ok(())
    };
    run(NAMES[0], "Launch to removal of busybox `true`, one after the other", &one, plan(33, 45))?;
    run(NAMES[1], "The same, two at a time", &wide, plan(50, 45))?;
    run(NAMES[2], "The same, each 0.15 s after the last", &sparsely, plan(21, 50))
}

/// One measurement of one subject.
pub type Turn<'a> = dyn Fn(&dyn Subject) -> Outcome<Vec<Duration>> + 'a;

/// Launches one after the other. The first is not measured: what the subject before it left to the kernel would count
/// as its own, and a runtime that waits for the kernel waits less directly after a launch of its own.
fn in_sequence(subject: &dyn Subject, lane: usize, measured: usize) -> Outcome<Vec<Duration>> {
    subject.once(lane)?;
    (0..measured).map(|_| subject.once(lane)).collect()
}

/// Three launches one after the other, of one subject.
pub fn one(subject: &dyn Subject) -> Outcome<Vec<Duration>> {
    in_sequence(subject, 0, 3)
}

/// Two are measured in each lane, so that they overlap even if one lane is faster.
fn wide(subject: &dyn Subject) -> Outcome<Vec<Duration>> {
    std::thread::scope(|scope| {
        let lanes: Vec<_> =
            (0..PARALLEL).map(|lane| scope.spawn(move || in_sequence(subject, lane, 2))).collect();
        let mut all = Vec::new();
        for lane in lanes {
            all.extend(lane.join().map_err(|_| "a lane panicked")??);
        }
        Ok(all)
    })
}

fn sparsely(subject: &dyn Subject) -> Outcome<Vec<Duration>> {
    std::thread::sleep(PAUSE);
    Ok(vec![subject.once(0)?])
}

/// Measures all subjects in turns.
pub fn compare(
    environment: &Environment,
    subjects: &[Box<dyn Subject + '_>],
    seed: u32,
    name: &'static str,
    title: &str,
    rounds: Rounds,
    turn: &Turn<'_>,
) -> Outcome<Group> {
    let taken = in_turns(environment, seed, rounds, subjects.len(), |place| turn(&*subjects[place]))?;
    let per_round = taken.iter().flatten().map(Vec::len).next().unwrap_or(1);
    let mut group = Group::new(name, title, "µs").per_round(per_round);
    for (subject, durations) in subjects.iter().zip(taken) {
        group.row(subject.name(), durations.iter().flatten().map(|took| took.as_secs_f64() * 1e6).collect());
    }
    for subject in subjects {
        for reference in subject.compared_to() {
            match reference {
                Reference::Row(row) => group.compare(subject.name(), row),
                Reference::Runtimes => {
                    for runtime in subjects.iter().filter(|other| other.is_runtime()) {
                        group.compare(subject.name(), runtime.name());
                    }
                }
            }
        }
    }
    Ok(group)
}
