//! From the wish for a container to its last trace being gone.

use std::time::{Duration, Instant};

use crate::cli::{self, Cli};
use crate::engine::{Bundle, Engine};
use crate::floor::{self, Floor};
use crate::ours::{self, Ours, Writes};
use crate::report::{Group, Report};
use crate::sample::Samples;
use crate::scene::Scene;
use crate::{Options, Outcome};

/// Something that makes containers of busybox' `true`.
pub trait Subject: Sync {
    fn name(&self) -> &str;

    /// Makes one container, waits for its end, and removes every trace. Those of different lanes may overlap.
    fn once(&self, lane: usize) -> Outcome<Duration>;
}

/// How many are made at a time where it is more than one.
const WIDE: usize = 2;

/// From one start to the next, where they are sparse: so long that the kernel has settled.
const APART: Duration = Duration::from_millis(150);

/// Measures all subjects, one after the other, several at a time, and with pauses.
pub fn measure(scene: &Scene, options: &Options, report: &mut Report) -> Outcome<()> {
    const NAMES: [&str; 3] = ["launch-sequential", "launch-wide", "launch-sparse"];
    if !NAMES.iter().any(|name| options.wants(name)) {
        return Ok(());
    }
    let program = floor::compile(scene)?;
    let mut subjects: Vec<Box<dyn Subject + '_>> = Vec::new();
    if options.wants_subject(ours::EMPTY) {
        subjects.push(Box::new(Ours::empty(scene)?));
    }
    if options.wants_subject(floor::EMPTY) {
        subjects.push(Box::new(Floor::empty(scene, &program, WIDE)?));
    }
    if options.wants_subject(ours::SHIPPED) {
        subjects.push(Box::new(Ours::shipped(scene, Writes::Overlay)?));
    }
    if options.wants_subject(floor::SHIPPED) {
        subjects.push(Box::new(Floor::shipped(scene, &program, WIDE)?));
    }
    if options.wants_subject(ours::DIRECT) {
        subjects.push(Box::new(Ours::shipped(scene, Writes::Direct)?));
    }
    if options.wants_subject(cli::DAEMON) {
        subjects.push(Box::new(Cli::daemon(scene)?));
    }
    if options.wants_subject(cli::ALONE) {
        subjects.push(Box::new(Cli::alone(scene)?));
    }
    for engine in ["crun", "runc"] {
        for bundle in [Bundle::Alike, Bundle::Stock] {
            if options.wants_subject(&bundle.label(engine))
                && let Some(engine) = Engine::find(scene, engine, bundle)?
            {
                subjects.push(Box::new(engine));
            }
        }
    }

    let plan = |rounds: usize, seconds: u64| match options.quick {
        true => Rounds { most: 12, least: 5, budget: Duration::from_secs(seconds / 8) },
        false => Rounds { most: rounds, least: 15, budget: Duration::from_secs(seconds) },
    };
    let mut run = |name: &'static str, title: &str, turn: &Turn<'_>, rounds: Rounds| -> Outcome<()> {
        if options.wants(name) {
            report.add(compare(scene, &subjects, name, title, rounds, turn)?);
        }
        Ok(())
    };
    run(NAMES[0], "Launch to last trace of busybox `true`, one after the other", &one, plan(100, 32))?;
    run(NAMES[1], "The same, two at a time", &wide, plan(100, 32))?;
    run(NAMES[2], "The same, one start every 0.15 s", &sparsely, plan(21, 40))
}

/// How often all take their turns.
#[derive(Clone, Copy)]
struct Rounds {
    most: usize,
    /// That many are made even if the time is over.
    least: usize,
    budget: Duration,
}

/// One turn of one subject.
type Turn<'a> = dyn Fn(&dyn Subject) -> Outcome<Vec<Duration>> + 'a;

fn one(subject: &dyn Subject) -> Outcome<Vec<Duration>> {
    Ok(vec![subject.once(0)?])
}

/// Each lane makes two, so that they overlap wherever the faster one is.
fn wide(subject: &dyn Subject) -> Outcome<Vec<Duration>> {
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..WIDE)
            .map(|lane| scope.spawn(move || (0..2).map(|_| subject.once(lane)).collect::<Outcome<Vec<_>>>()))
            .collect();
        let mut all = Vec::new();
        for lane in lanes {
            all.extend(lane.join().map_err(|_| "a lane died")??);
        }
        Ok(all)
    })
}

fn sparsely(subject: &dyn Subject) -> Outcome<Vec<Duration>> {
    let due = Instant::now() + APART;
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
    one(subject)
}

/// Numbers that look like chance, the same in every run.
struct Dice(u64);

impl Dice {
    /// Knuth's linear congruential generator; its upper bits are the good ones.
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

/// Lets all subjects take turns.
fn compare(
    scene: &Scene,
    subjects: &[Box<dyn Subject + '_>],
    name: &'static str,
    title: &str,
    rounds: Rounds,
    turn: &Turn<'_>,
) -> Outcome<Group> {
    let mut taken = vec![Samples::default(); subjects.len()];
    // Who comes after a peer finds the kernel still busy with what that one left, so nobody always comes after the same.
    let mut order: Vec<usize> = (0..subjects.len()).collect();
    let mut dice = Dice(1);
    let warm_up = rounds.most / 10;
    let started = Instant::now();
    for round in 0..warm_up + rounds.most {
        if round >= warm_up + rounds.least && started.elapsed() > rounds.budget {
            break;
        }
        dice.shuffle(&mut order);
        for &place in &order {
            scene.go_on()?;
            let durations = turn(&*subjects[place])?;
            if round >= warm_up {
                taken[place].0.extend(durations.iter().map(|took| took.as_secs_f64() * 1e6));
            }
        }
    }
    let mut group = Group::new(name, title, "µs");
    for (subject, samples) in subjects.iter().zip(taken) {
        group.row(subject.name(), samples);
    }
    group.compare(ours::EMPTY, floor::EMPTY);
    group.compare(ours::SHIPPED, floor::SHIPPED);
    for ours in [ours::SHIPPED, ours::DIRECT, cli::DAEMON, cli::ALONE] {
        for peer in ["crun", "runc"] {
            group.compare(ours, &Bundle::Alike.label(peer));
        }
    }
    Ok(group)
}
