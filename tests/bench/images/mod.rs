//! Images: pulled, imported, found to be there, and launched from, compared with programs that do the same.
//!
//! Each program has a place of its own, and daemons that were started for it. What it has is removed before the next turn, which
//! is not measured.

mod daemon;
mod memory;
mod others;
mod ours;
mod place;
mod source;

use cofferdam::config::Isolation;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_tests::registry::Registry;

use crate::cli::{self, Cli, Root};
use crate::environment::{Environment, Scratch};
use crate::floor::{self, Floor};
use crate::launch::Subject;
use crate::report::{Group, Report};
use crate::rounds::{Rounds, in_turns};
use crate::sample::Samples;
use crate::{Options, Outcome};

use others::{CANDIDATES, installed};
use ours::Cofferdam;
use place::Place;
use source::Shape;

const PULL: &str = "images-pull";
const AGAIN: &str = "images-again";
const LAUNCH: &str = "images-launch";
const IMPORT: &str = "images-import";
const MEMORY: &str = "images-memory";

/// What is added to the name of a program for the time until all is on disk.
const ON_DISK: &str = "on disk";

/// A program that handles images.
trait Tool {
    fn name(&self) -> &str;

    /// Where its commands run.
    fn place(&self) -> &Place;

    /// Removes everything of all images.
    fn clear(&self) -> Outcome<()>;

    /// Pulls an image from a registry without TLS and unpacks it.
    fn pull(&self, image: &str) -> Command;

    /// Imports an image from an archive and unpacks it.
    fn import(&self, archive: &Path) -> Command;

    /// Runs busybox' `true` in a container of an image that it has pulled, and removes the container. `None` if it does not
    /// run containers, or if they are measured in another way.
    fn launch(&self, _image: &str) -> Option<Command> {
        None
    }
}

/// What all benchmarks of images use.
struct Images<'a> {
    environment: &'a Environment,
    options: &'a Options,
    seed: u32,
    ours: Cofferdam,
    others: Vec<Box<dyn Tool>>,
}

/// Measures all programs that are installed.
pub fn measure(environment: &Environment, options: &Options, seed: u32, report: &mut Report) -> Outcome<()> {
    let wants = |names: &[&str]| names.iter().any(|name| options.wants(name));
    if !wants(&[PULL, AGAIN, LAUNCH, IMPORT, MEMORY]) {
        return Ok(());
    }
    let mut others = Vec::new();
    for candidate in &CANDIDATES {
        others.extend(candidate.start(environment, |name| options.wants_subject(name))?);
    }
    let images = Images { environment, options, seed, ours: Cofferdam::new(environment)?, others };
    if wants(&[PULL, AGAIN, LAUNCH, IMPORT]) {
        let shape = match options.quick {
            true => Shape { layers: 8, mebibytes: 32 },
            false => Shape { layers: 40, mebibytes: 512 },
        };
        report.fact("image", shape.to_string());
        let archive = environment.directory().join("image.tar");
        let has_registry = installed("a registry", &[("docker-registry", "docker-registry")]);
        let registry = has_registry.then(|| Registry::start(false));
        if let Some(image) = source::create(&archive, shape, registry.as_ref())? {
            images.measure_registry(&image, report)?;
        }
        if options.wants(IMPORT) {
            report.add(images.import(&archive)?);
        }
        std::fs::remove_file(archive)?;
    }
    if options.wants(MEMORY) {
        report.add(images.memory()?);
    }
    Ok(())
}

impl Images<'_> {
    fn tools(&self) -> Vec<&dyn Tool> {
        let ours: &dyn Tool = &self.ours;
        std::iter::once(ours).chain(self.others.iter().map(|tool| &**tool)).collect()
    }

    /// For a turn that takes seconds.
    fn rounds(&self) -> Rounds {
        match self.options.quick {
            true => Rounds { warm_up: 0, most: 2, least: 2, budget: Duration::ZERO },
            false => Rounds { warm_up: 0, most: 7, least: 3, budget: Duration::from_secs(80) },
        }
    }

    /// For one that takes less than one.
    fn more_rounds(&self) -> Rounds {
        match self.options.quick {
            true => Rounds { warm_up: 1, most: 3, least: 3, budget: Duration::ZERO },
            false => Rounds { warm_up: 1, most: 21, least: 7, budget: Duration::from_secs(30) },
        }
    }

    fn measure_registry(&self, image: &str, report: &mut Report) -> Outcome<()> {
        let tools = self.tools();
        if self.options.wants(PULL) {
            let title = "Pull of an image from a registry on this machine, until it is unpacked";
            let pull = |tool: &dyn Tool| tool.pull(image);
            report.add(self.unpack(PULL, title, &pull)?);
        }
        // Nothing to do for those that have pulled it just now.
        for tool in &tools {
            tool.place().run(tool.pull(image))?;
        }
        if self.options.wants(AGAIN) {
            let title = "The same, of an image that is there";
            let turn = |number: usize| {
                let tool = tools[number];
                tool.place().run(tool.pull(image))
            };
            let taken = in_turns(self.environment, self.seed, self.more_rounds(), tools.len(), turn)?;
            let mut group = Group::new(AGAIN, title, "ms");
            for (tool, taken) in tools.iter().zip(taken) {
                group.row(tool.name(), taken.into_iter().map(millis).collect());
            }
            for tool in &self.others {
                group.compare(ours::NAME, tool.name());
            }
            report.add(group);
        }
        if self.options.wants(LAUNCH) {
            report.add(self.launch(image)?);
        }
        Ok(())
    }

    fn import(&self, archive: &Path) -> Outcome<Group> {
        let title = "Import of the image from an archive, until it is unpacked";
        self.unpack(IMPORT, title, &|tool| tool.import(archive))
    }

    /// Measures commands that unpack an image which is not there: until they end, and until all is on disk, as some wait for
    /// that themselves.
    fn unpack(
        &self,
        name: &'static str,
        title: &str,
        command: &dyn Fn(&dyn Tool) -> Command,
    ) -> Outcome<Group> {
        let tools = self.tools();
        let turn = |number: usize| {
            let tool = tools[number];
            tool.clear()?;
            tool.place().write_back()?;
            let started = Instant::now();
            let took = tool.place().run(command(tool))?;
            tool.place().write_back()?;
            Ok((took, started.elapsed()))
        };
        let taken = in_turns(self.environment, self.seed, self.rounds(), tools.len(), turn)?;
        let mut group = Group::new(name, title, "ms");
        let on_disk = |name: &str| format!("{name}, {ON_DISK}");
        for (tool, taken) in tools.iter().zip(taken) {
            group.row(tool.name(), taken.iter().map(|(took, _)| millis(*took)).collect());
            group.row(on_disk(tool.name()), taken.iter().map(|(_, took)| millis(*took)).collect());
        }
        for tool in &self.others {
            group.compare(ours::NAME, tool.name());
            group.compare(&on_disk(ours::NAME), &on_disk(tool.name()));
        }
        Ok(group)
    }

    /// Launches in containers of an image that all have.
    fn launch(&self, image: &str) -> Outcome<Group> {
        type Once<'a> = dyn Fn() -> Outcome<Duration> + 'a;
        let store = self.ours.store();
        let root = Root::Image { store: &store, name: image };
        let alone = Cli::alone(self.environment, root, Isolation::Docker)?;
        let daemon = Cli::daemon(self.environment, root, Isolation::Docker)?;
        let floor_name = floor::shipped(Scratch::WorkDirectory);
        let program = floor::compile(self.environment)?;
        let floor = Floor::shipped(self.environment, &program, 1, Scratch::WorkDirectory)?;
        let mut subjects: Vec<(&str, Box<Once<'_>>)> = vec![
            (floor_name, Box::new(|| floor.once(0))),
            (cli::DAEMON, Box::new(|| daemon.once(0))),
            (cli::ALONE, Box::new(|| alone.once(0))),
        ];
        for tool in self.others.iter().filter(|tool| tool.launch(image).is_some()) {
            let launch = || tool.place().run(tool.launch(image).ok_or("it does not run containers")?);
            subjects.push((tool.name(), Box::new(launch)));
        }
        let turn = |number: usize| {
            let (_, once) = &subjects[number];
            // What the subject before it left to the kernel would count as its own.
            once()?;
            once()
        };
        let taken = in_turns(self.environment, self.seed, self.more_rounds(), subjects.len(), turn)?;
        let title = "Launch to removal of busybox `true` in a container of the image";
        let mut group = Group::new(LAUNCH, title, "ms");
        for ((name, _), taken) in subjects.iter().zip(taken) {
            group.row(*name, taken.into_iter().map(millis).collect());
        }
        for ours in [cli::DAEMON, cli::ALONE] {
            for (name, _) in subjects.iter().filter(|(name, _)| ![cli::DAEMON, cli::ALONE].contains(name)) {
                group.compare(ours, name);
            }
        }
        Ok(group)
    }

    /// Imports of a larger image, and, with ours, of one that is a quarter of it.
    fn memory(&self) -> Outcome<Group> {
        let whole = match self.options.quick {
            true => Shape { layers: 8, mebibytes: 128 },
            false => Shape { layers: 40, mebibytes: 5 << 10 },
        };
        let quarter = Shape { mebibytes: whole.mebibytes / 4, ..whole };
        let title = format!("Memory during the import of {whole}, with that of daemons");
        let mut group = Group::new(MEMORY, title, "MiB");
        let archive = |shape| -> Outcome<PathBuf> {
            let archive = self.environment.directory().join("large.tar");
            source::create(&archive, shape, None)?;
            Ok(archive)
        };
        let peak = |tool: &dyn Tool, archive: &Path| -> Outcome<Samples> {
            self.environment.check_interrupted()?;
            tool.clear()?;
            tool.place().write_back()?;
            let peak = memory::peak(tool.place(), &tool.import(archive))?;
            tool.clear()?;
            Ok(Samples(vec![peak]))
        };
        let small = peak(&self.ours, &archive(quarter)?)?;
        group.row(format!("{}, a quarter of it", ours::NAME), small);
        let large = archive(whole)?;
        for tool in self.tools() {
            group.row(tool.name(), peak(tool, &large)?);
        }
        for tool in &self.others {
            group.compare(ours::NAME, tool.name());
        }
        std::fs::remove_file(large)?;
        Ok(group)
    }
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}
