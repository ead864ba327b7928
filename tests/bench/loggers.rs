//! How much output passes through each logger, beside the log drivers of container engines.
//!
//! ```text
//! container ── 64 KiB at a time ──▶ pipe or terminal ──▶ the processes that are measured ──▶ file or journal
//! ```

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::{ContainerId, Request};
use cofferdam_linux::cgroup::{Cgroups, Version};
use cofferdam_plugin_model::{Volume, VolumeSource};
use cofferdam_tests::journal::Journal;
use cofferdam_tests::world::{World, id, object, sandbox_logger};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::engines::{Client, DOCKER, Engines, PODMAN};
use crate::environment::Environment;
use crate::ours::Ours;
use crate::report::{Group, Report};
use crate::rounds::{Rounds, in_turns};
use crate::sample::Samples;
use crate::sweep_floor::{cpu_time, relative};
use crate::{Options, Outcome};

pub const NAMES: [&str; 3] = ["log-output", "log-output-total", "log-output-elapsed"];

/// Rows of ours.
const SANDBOX: &str = "cofferdam, sandbox";
const ATTACHABLE: &str = "cofferdam, sandbox, clients can attach";
const LOGROTATE: &str = "cofferdam, logrotate";
const JOURNALD: &str = "cofferdam, journald";
const TEE: &str = "cofferdam, tee of logrotate and journald";

/// What containers run: they wait for a line, write everything, and report that.
const SCRIPT: &str = "read line < /bench/go; busybox dd if=/bench/lines bs=65536 2> /dev/null; \
                      echo > /bench/done; exec busybox sleep 1000000";

/// Length of a line in bytes. They are all different: the journal stores equal ones once.
const LINE: usize = 250;

/// How long a turn may take.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Measures all loggers in turns.
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
    let (megabytes, rounds) = if options.quick { (10, 1) } else { (100, 3) };
    let source = Source::create(environment, megabytes)?;
    let mut subjects: Vec<Subject<'_>> = Vec::new();
    ours(environment, engines, options, &mut subjects);
    for (engine, driver) in [
        (DOCKER, "json-file"),
        (DOCKER, "local"),
        (DOCKER, "journald"),
        (PODMAN, "k8s-file"),
        (PODMAN, "journald"),
    ] {
        let name = format!("{engine}, {driver}");
        let Some(client) = engines.client(engine).filter(|_| options.wants_subject(&name)) else { continue };
        if driver != "journald" || engines.journal.is_some() {
            subjects.push(Subject { name, runs: Runs::ByClient(client, driver) });
        }
    }

    let plan = Rounds { warm_up: 0, most: rounds, least: rounds, budget: Duration::MAX };
    let mut number = 0;
    let turns = in_turns(environment, seed, plan, subjects.len(), |place| {
        let subject = &subjects[place];
        number += 1;
        let turn = subject.turn(environment, engines, &source, &format!("bench-log-{number}"));
        turn.map_err(|error| format!("{}: {error}", subject.name).into())
    })?;

    let title = |what: &str| format!("{megabytes} MB of output in lines of {LINE} bytes: {what}");
    let of_cpu = |what: &str| title(&format!("MB per second of CPU time of {what}"));
    let groups = [
        Group::new(NAMES[0], of_cpu("the processes that pass it on"), "MB/s"),
        Group::new(NAMES[1], of_cpu("these and of the container"), "MB/s"),
        Group::new(NAMES[2], title("MB per second"), "MB/s"),
    ];
    let rate = |time: &Duration| f64::from(megabytes) / time.as_secs_f64();
    for (index, mut group) in groups.into_iter().enumerate() {
        for (subject, turns) in subjects.iter().zip(&turns) {
            let samples = turns.iter().filter_map(|turn| match index {
                0 => turn.passing,
                1 => Some(turn.total),
                _ => Some(turn.elapsed),
            });
            group.row(&subject.name, Samples(samples.map(|time| rate(&time)).collect()));
        }
        for (of, others) in [
            (ATTACHABLE, &["docker, json-file", "docker, local", "podman, k8s-file"][..]),
            (LOGROTATE, &["docker, json-file", "docker, local", "podman, k8s-file"]),
            (JOURNALD, &["docker, journald", "podman, journald"]),
            (TEE, &["docker, journald", "podman, journald"]),
        ] {
            others.iter().for_each(|other| group.compare(of, other));
        }
        if options.wants(NAMES[index]) {
            report.add(group);
        }
    }
    Ok(())
}

/// Adds ours, each with an agent of its own.
fn ours<'a>(
    environment: &Environment,
    engines: &Engines,
    options: &Options,
    subjects: &mut Vec<Subject<'a>>,
) {
    let logrotate = || object("logrotate", "libcofferdam_logger_logrotate.so", json!({}));
    let journald = |journal: &Journal| {
        object("journald", "libcofferdam_logger_journald.so", json!({ "socket": journal.socket() }))
    };
    let mut add = |name: &str, logger: PluginConfig, targets: Vec<PluginConfig>| {
        if options.wants_subject(name) {
            let mut world = World::shipped();
            let in_journal = logger.name == "journald" || !targets.is_empty();
            let in_file = logger.name != "journald";
            (world.config.logger, world.config.log_targets) = (Some(logger), targets);
            let runs = Runs::Ours {
                ours: Box::new(Ours::start(world)),
                rootfs: environment.rootfs(),
                attachable: name == ATTACHABLE,
                in_file,
                in_journal,
            };
            subjects.push(Subject { name: name.to_owned(), runs });
        }
    };
    add(SANDBOX, sandbox_logger(), Vec::new());
    add(ATTACHABLE, sandbox_logger(), Vec::new());
    add(LOGROTATE, logrotate(), Vec::new());
    if let Some(journal) = &engines.journal {
        add(JOURNALD, journald(journal), Vec::new());
        let tee = object("tee", "libcofferdam_logger_tee.so", json!({}));
        add(TEE, tee, vec![logrotate(), journald(journal)]);
    }
}

/// What a container writes, and the named pipes over which it is told to.
struct Source {
    directory: PathBuf,
    go: File,
    done: File,
    /// The last line.
    last: String,
}

impl Source {
    fn create(environment: &Environment, megabytes: u32) -> Outcome<Self> {
        let directory = environment.directory().join("log");
        fs::create_dir(&directory)?;
        let mut lines = BufWriter::new(File::create(directory.join("lines"))?);
        let count = u64::from(megabytes) * 1_000_000 / LINE as u64;
        let line = |number: u64| format!("{number:012} {:x<width$}", "", width = LINE - 14);
        for number in 0..count {
            writeln!(lines, "{}", line(number))?;
        }
        lines.into_inner()?.sync_all()?;
        let pipe = |name: &str| -> Outcome<File> {
            let path = directory.join(name);
            mkfifo(&path, Mode::from_bits_truncate(0o600))?;
            // Of both directions, so that neither this nor an open in the container waits for the other.
            Ok(File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?)
        };
        Ok(Self { go: pipe("go")?, done: pipe("done")?, last: line(count - 1), directory })
    }

    /// Lets the container begin, and waits until it has written everything.
    fn write_all(&self) -> Outcome<()> {
        (&self.go).write_all(b"\n")?;
        let timeout = Timespec { tv_sec: TIMEOUT.as_secs().cast_signed(), tv_nsec: 0 };
        let mut ready = [PollFd::new(&self.done, PollFlags::IN)];
        if poll(&mut ready, Some(&timeout))? == 0 {
            return Err("the container does not write".into());
        }
        (&self.done).read_exact(&mut [0])?;
        Ok(())
    }
}

struct Subject<'a> {
    name: String,
    runs: Runs<'a>,
}

/// How a subject runs its containers.
enum Runs<'a> {
    Ours {
        ours: Box<Ours>,
        rootfs: PathBuf,
        attachable: bool,
        in_file: bool,
        in_journal: bool,
    },
    /// With this log driver.
    ByClient(&'a Client, &'static str),
}

/// A container that waits to write.
struct Waiting {
    first: i32,
    /// The processes that serve all containers.
    daemons: Vec<i32>,
    /// Those that pass on what this one writes. None if it writes to a file itself.
    passing: Vec<i32>,
    file: Option<PathBuf>,
    in_journal: bool,
}

/// CPU times and time.
struct Turn {
    /// Of the processes that pass output on; `None` if there are none.
    passing: Option<Duration>,
    /// Of these and of the container.
    total: Duration,
    elapsed: Duration,
}

impl Subject<'_> {
    fn turn(
        &self,
        environment: &Environment,
        engines: &Engines,
        source: &Source,
        name: &str,
    ) -> Outcome<Turn> {
        let waiting = self.launch(engines, source, name)?;
        let has_passing = !waiting.passing.is_empty();
        let passing: Vec<i32> = waiting.daemons.iter().chain(&waiting.passing).copied().collect();
        let spent = || -> Outcome<Duration> {
            passing.iter().map(|pid| cpu_time(&format!("/proc/{pid}/task"))).sum()
        };
        let container = || cgroup_cpu_time(&environment.cgroups, waiting.first);
        let (spent_before, container_before) = (spent()?, container()?);
        let started = Instant::now();
        source.write_all()?;
        if let Some(file) = &waiting.file {
            until("the end is not in the file", Duration::from_millis(2), || ends_with(file, &source.last))?;
        }
        if let Some(journal) = engines.journal.as_ref().filter(|_| waiting.in_journal) {
            let field = format!("CONTAINER_NAME={name}");
            until("the end is not in the journal", Duration::from_millis(100), || {
                Ok(journal.last_message(&field) == source.last)
            })?;
        }
        let elapsed = started.elapsed();
        let spent = spent()?.saturating_sub(spent_before);
        let container = container()?.saturating_sub(container_before);
        self.remove(name)?;
        Ok(Turn { passing: has_passing.then_some(spent), total: spent + container, elapsed })
    }

    fn launch(&self, engines: &Engines, source: &Source, name: &str) -> Outcome<Waiting> {
        let journal = |in_journal: bool| {
            let journal = engines.journal.as_ref().filter(|_| in_journal);
            journal.map(Journal::pid)
        };
        match &self.runs {
            Runs::Ours { ours, rootfs, attachable, in_file, in_journal } => {
                let id = id(name);
                let mut request = Request::shell(id.clone(), SCRIPT);
                request.rootfs = Some(rootfs.clone());
                request.interactive = *attachable;
                let path = source.directory.clone();
                request.volumes = vec![Volume {
                    container_path: "/bench".into(),
                    read_only: false,
                    source: VolumeSource::HostPath { path, propagation: None },
                }];
                let first = ours.launch(&request)?;
                let mut passing = ours.companions();
                passing.extend(ours.switchboards()?);
                passing.extend(journal(*in_journal));
                Ok(Waiting {
                    first,
                    daemons: ours.daemons(),
                    passing,
                    file: in_file.then(|| ours.sandbox(&id).join("stdout")),
                    in_journal: *in_journal,
                })
            }
            Runs::ByClient(client, driver) => {
                let volume = format!("{}:/bench", source.directory.display());
                let path = format!("path={}", source.directory.join(name).display());
                let mut options = vec!["-d", "--network", "host", "--name", name, "-v", &volume];
                options.extend(["--log-driver", driver]);
                if *driver == "k8s-file" {
                    options.extend(["--log-opt", &path]);
                }
                client.call(&client.run(&options, &["/bin/sh", "-c", SCRIPT]))?;
                let first = client.first_process(name)?;
                let in_journal = *driver == "journald";
                let file = match *driver {
                    "json-file" => Some(client.inspect(name, "{{.LogPath}}")?.into()),
                    // It is not named anywhere.
                    "local" => {
                        let container = client.inspect(name, "{{.HostsPath}}")?;
                        let container = Path::new(&container).parent().map(Path::to_owned);
                        Some(container.unwrap_or_default().join("local-logs/container.log"))
                    }
                    "k8s-file" => Some(source.directory.join(name)),
                    _ => None,
                };
                let mut passing = vec![client.monitor(first)?];
                passing.extend(journal(in_journal));
                Ok(Waiting { first, daemons: client.daemons()?, passing, file, in_journal })
            }
        }
    }

    fn remove(&self, name: &str) -> Outcome<()> {
        match &self.runs {
            Runs::Ours { ours, .. } => ours.remove(&ContainerId::parse(name)?),
            Runs::ByClient(client, _) => client.remove(name),
        }
    }
}

/// Waits until something is so. There is no event for it that would not take CPU time of its own for each line.
fn until(what: &str, pause: Duration, is_so: impl Fn() -> Outcome<bool>) -> Outcome<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(what.into());
        }
        std::thread::sleep(pause);
    }
    Ok(())
}

/// Whether a line is near the end of a file.
fn ends_with(path: &Path, line: &str) -> Outcome<bool> {
    let mut file = match File::open(path) {
        // It is being rotated, or was not created yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let length = file.metadata()?.len();
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(length.saturating_sub(4 * LINE as u64)))?;
    file.read_to_end(&mut end)?;
    Ok(end.windows(line.len()).any(|part| part == line.as_bytes()))
}

/// CPU time of all processes of a container, also of those that have ended.
fn cgroup_cpu_time(cgroups: &Cgroups, first: i32) -> Outcome<Duration> {
    let own = fs::read_to_string(format!("/proc/{first}/cgroup"))?;
    let (controller, (hierarchy, version)) = ["cpuacct", "cpu"]
        .into_iter()
        .find_map(|controller| Some((controller, cgroups.hierarchy(controller)?)))
        .ok_or("there is no cgroup hierarchy that measures CPU time")?;
    let relative = relative(&own, controller, version)?;
    if relative == Path::new("") {
        return Err("the container has no cgroup of its own".into());
    }
    let directory = hierarchy.mount.join(relative);
    match version {
        Version::V1 => {
            Ok(Duration::from_nanos(fs::read_to_string(directory.join("cpuacct.usage"))?.trim().parse()?))
        }
        Version::V2 => {
            let text = fs::read_to_string(directory.join("cpu.stat"))?;
            let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
            Ok(Duration::from_micros(usage.ok_or("`cpu.stat` has no `usage_usec`")?.parse()?))
        }
    }
}
