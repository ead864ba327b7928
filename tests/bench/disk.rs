//! Measuring a tree of files, compared with programs that do the same.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use cofferdam_linux::measure::measure as measure_tree;

use crate::environment::Environment;
use crate::report::{Group, Report};
use crate::sample::Samples;
use crate::{Options, Outcome};

const WARM: &str = "disk-warm";
const COLD: &str = "disk-cold";

const OURS: &str = "cofferdam, two threads";
const OURS_ALONE: &str = "cofferdam, one thread";
const DU: &str = "du";

/// Programs that are measured if they are installed.
const PROGRAMS: [(&str, &[&str]); 4] =
    [(DU, &["-s"]), ("diskus", &["-j", "2"]), ("ncdu", &["-0", "-o", "/dev/null"]), ("gdu", &["-n", "-p"])];

/// Something that measures a tree.
enum Subject {
    Ours { threads: usize },
    Program(&'static str, &'static [&'static str]),
}

impl Subject {
    fn name(&self) -> &'static str {
        match self {
            Self::Ours { threads: 1 } => OURS_ALONE,
            Self::Ours { .. } => OURS,
            Self::Program(name, _) => name,
        }
    }

    /// Milliseconds.
    fn run(&self, tree: &Path) -> Outcome<f64> {
        let started = Instant::now();
        match self {
            Self::Ours { threads } => {
                measure_tree(File::open(tree)?, *threads)?;
            }
            Self::Program(name, arguments) => {
                let mut command = Command::new(name);
                command
                    .args(*arguments)
                    .arg(tree)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                let status = command.status()?;
                if !status.success() {
                    return Err(format!("`{name}` ended with {status}").into());
                }
            }
        }
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }
}

/// Measures a tree that is in the kernel's caches, and one that is not.
pub fn measure(environment: &Environment, options: &Options, report: &mut Report) -> Outcome<()> {
    if !options.wants(WARM) && !options.wants(COLD) {
        return Ok(());
    }
    let mut subjects = vec![Subject::Ours { threads: 2 }, Subject::Ours { threads: 1 }];
    for (name, arguments) in PROGRAMS {
        if Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
            subjects.push(Subject::Program(name, arguments));
        } else {
            report.fact(name, "not installed");
        }
    }
    subjects.retain(|subject| options.wants_subject(subject.name()));
    let (directories, rounds): (usize, usize) = if options.quick { (200, 3) } else { (2000, 21) };
    let mut disk = Disk::create(&environment.directory().join("disk"), directories)?;
    for (name, title, rounds) in
        [(WARM, "in the caches", rounds), (COLD, "not in the caches", rounds.div_ceil(3))]
    {
        if options.wants(name) {
            let title =
                format!("Measuring {} files in {directories} directories, {title}", directories * 100);
            report.add(compare(environment, &subjects, &mut disk, name, title, rounds)?);
        }
    }
    Ok(())
}

fn compare(
    environment: &Environment,
    subjects: &[Subject],
    disk: &mut Disk,
    name: &'static str,
    title: String,
    rounds: usize,
) -> Outcome<Group> {
    let mut samples = vec![Samples::default(); subjects.len()];
    for round in 0..rounds {
        for turn in 0..subjects.len() {
            environment.check_interrupted()?;
            // Each is the first one, the second one, … equally often.
            let index = (turn + round) % subjects.len();
            let Some((subject, samples)) = subjects.get(index).zip(samples.get_mut(index)) else { continue };
            if name == COLD {
                disk.mount_again()?;
            } else {
                measure_tree(File::open(disk.tree())?, 2)?;
            }
            samples.0.push(subject.run(&disk.tree())?);
        }
    }
    let mut group = Group::new(name, title, "ms");
    for (subject, samples) in subjects.iter().zip(samples) {
        group.row(subject.name(), samples);
    }
    for (theirs, _) in PROGRAMS {
        group.compare(theirs, OURS);
        group.compare(theirs, OURS_ALONE);
    }
    Ok(group)
}

/// A file system in a file. What of it is in caches is forgotten when it is mounted again: no cache of others is touched.
struct Disk {
    device: String,
    mounted: PathBuf,
}

impl Disk {
    /// Creates one with 100 files in each of some directories, a tenth of them with content.
    fn create(directory: &Path, directories: usize) -> Outcome<Self> {
        fs::create_dir(directory)?;
        let (image, mounted) = (directory.join("image"), directory.join("mounted"));
        fs::create_dir(&mounted)?;
        File::create(&image)?.set_len(2 << 30)?;
        shell("mkfs.ext4 -q -N 300000", &image)?;
        // Not through the caches of the file system that contains it.
        let device = shell("losetup --direct-io=on --find --show", &image)?.trim().to_owned();
        let disk = Self { device, mounted };
        disk.mount()?;
        for index in 0..directories {
            let inner = disk.tree().join(format!("{}/{index}", index / 100));
            fs::create_dir_all(&inner)?;
            for file in 0..100 {
                let mut file_of = File::create(inner.join(format!("file-{file}.dat")))?;
                if file % 10 == 0 {
                    file_of.write_all(&[1; 5000])?;
                }
            }
        }
        Ok(disk)
    }

    fn tree(&self) -> PathBuf {
        self.mounted.join("tree")
    }

    fn mount(&self) -> Outcome<()> {
        shell(&format!("mount {}", self.device), &self.mounted).map(drop)
    }

    fn mount_again(&mut self) -> Outcome<()> {
        shell("umount", &self.mounted)?;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Nothing can be done about an error.
        let _ = shell("umount", &self.mounted);
        let _ = shell("losetup --detach", Path::new(&self.device));
    }
}

/// Runs a program with a path as its last argument, and returns its output.
fn shell(line: &str, path: &Path) -> Outcome<String> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program)
        .args(words)
        .arg(path)
        .output()
        .map_err(|error| format!("`{program}`: {error}"))?;
    if !output.status.success() {
        return Err(format!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
