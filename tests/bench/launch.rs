//! Launches: from the request for a container until everything of it is removed.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use cofferdam::config::Isolation;

use crate::cli::{self, Cli};
use crate::embedded::{self, Embedded, Writes};
use crate::engine::{self, Bundle, Engine};
use crate::environment::{Environment, Scratch, is_memory};
use crate::floor::{self, Floor};
use crate::report::{Group, Report};
use crate::sample::Samples;
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
pub fn measure(environment: &Environment, options: &Options, report: &mut Report) -> Outcome<()> {
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
    let seed = options.seed.unwrap_or_else(Random::seed);
    report.fact("seed", seed.to_string());
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
    subjects.add(cli::DAEMON, || Cli::daemon(environment, Isolation::Docker))?;
    subjects.add(cli::PRIVILEGED_DAEMON, || Cli::daemon(environment, Isolation::Mesos))?;
    subjects.add(cli::ALONE, || Cli::alone(environment, Isolation::Docker))?;
    subjects.add(cli::PRIVILEGED_ALONE, || Cli::alone(environment, Isolation::Mesos))?;
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
        true => Rounds { most: 12, least: 5, budget: Duration::from_secs(seconds / 8) },
        false => Rounds { most: rounds, least: 15, budget: Duration::from_secs(seconds) },
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

/// Number of iterations.
#[derive(Clone, Copy)]
pub struct Rounds {
    pub most: usize,
    /// Minimum, even if the budget is used up.
    pub least: usize,
    pub budget: Duration,
}

/// One measurement of one subject.
pub type Turn<'a> = dyn Fn(&dyn Subject) -> Outcome<Vec<Duration>> + 'a;

/// Launches one after the other. The first is not measured: what the subject before it left to the kernel would count
/// as its own, and a runtime that waits for the kernel waits less directly after a launch of its own.
fn in_sequence(subject: &dyn Subject, lane: usize, measured: usize) -> Outcome<Vec<Duration>> {
    subject.once(lane)?;
    (0..measured).map(|_| subject.once(lane)).collect()
}

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

/// Pseudo-random numbers, the same for the same seed.
pub struct Random(u64);

impl Random {
    /// A random seed.
    #[expect(clippy::cast_possible_truncation, reason = "short enough to be typed")]
    pub fn seed() -> u32 {
        // Its keys are random.
        RandomState::new().hash_one(()) as u32
    }

    /// Knuth's linear congruential generator, of which the upper bits are used.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % end
    }

    fn shuffle(&mut self, order: &mut [usize]) {
        for last in (1..order.len()).rev() {
            order.swap(last, self.below(last + 1));
        }
    }
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
    let mut taken = vec![Samples::default(); subjects.len()];
    let mut per_round = 1;
    // A subject may still affect the next one through deferred work of the kernel, so the order is random.
    let mut order: Vec<usize> = (0..subjects.len()).collect();
    let mut random = Random(seed.into());
    let warm_up = rounds.most / 10;
    let started = Instant::now();
    for round in 0..warm_up + rounds.most {
        if round >= warm_up + rounds.least && started.elapsed() > rounds.budget {
            break;
        }
        random.shuffle(&mut order);
        for &place in &order {
            environment.check_interrupted()?;
            let durations = turn(&*subjects[place])?;
            if round >= warm_up {
                per_round = durations.len();
                taken[place].0.extend(durations.iter().map(|took| took.as_secs_f64() * 1e6));
            }
        }
    }
    let mut group = Group::new(name, title, "µs").per_round(per_round);
    for (subject, samples) in subjects.iter().zip(taken) {
        group.row(subject.name(), samples);
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
