//! A Debian system, as debootstrap makes it of the packages of a mirror.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FlockOperation;

use crate::paths;

/// Packages beyond those that every system has: one with a program whose file has a capability, and what sets it.
const PACKAGES: &str = "--include=iputils-ping,libcap2-bin";

/// The release, as the tests change what it has.
const RELEASE: &str = "bookworm";

/// The archive of a minimal system. It is made once for all tests of a target directory. `None`, with a message, without
/// debootstrap or a mirror.
///
/// # Panics
/// If there is none with `CI` set; if the archive cannot be written.
pub fn base() -> Option<PathBuf> {
    let directory = paths::build().parent().expect("the target directory").join("tmp");
    fs::create_dir_all(&directory).expect("a directory");
    let archive = directory.join("debian.tar");
    // One test makes it, and the others wait. Released when this process ends.
    let lock = File::create(directory.join("debian.lock")).expect("a file");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("a lock");
    if archive.exists() {
        return Some(archive);
    }
    match create(&archive) {
        Ok(()) => Some(archive),
        Err(reason) => {
            assert!(std::env::var_os("CI").is_none(), "no Debian system: {reason}");
            eprintln!("SKIPPED a Debian system: {reason}");
            None
        }
    }
}

/// Makes the archive, or says what is missing.
fn create(archive: &Path) -> Result<(), String> {
    let parent = archive.parent().expect("a directory");
    let root = tempfile::Builder::new().prefix("debian-").tempdir_in(parent).expect("a directory");
    // What it mounts, and may leave mounted, is in a namespace of its own.
    let mut debootstrap = Command::new("unshare");
    debootstrap.args(["--mount", "--propagation", "private", "debootstrap", "--variant=minbase", PACKAGES]);
    debootstrap.arg(RELEASE).arg(root.path()).arg(mirror()?);
    run(&mut debootstrap)
        .map_err(|error| format!("{error}\n(packages debootstrap and util-linux, and a mirror)"))?;
    let new = archive.with_extension("new");
    let mut tar = Command::new("tar");
    tar.args([
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--exclude=./var/cache/apt/archives/*.deb",
    ]);
    tar.arg("-C").arg(root.path()).arg("-cf").arg(&new).arg(".");
    run(&mut tar)?;
    fs::rename(&new, archive).map_err(|error| error.to_string())
}

/// The mirror that apt uses here.
fn mirror() -> Result<String, String> {
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE)", "Created-By: Packages"])
        .arg(format!("Codename: {RELEASE}"))
        .output();
    let sites =
        targets.map(|listed| String::from_utf8_lossy(&listed.stdout).into_owned()).unwrap_or_default();
    let site = sites.lines().find(|site| site.starts_with("http"));
    site.map(str::to_owned).ok_or_else(|| format!("apt has no mirror of {RELEASE}"))
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(format!("{program}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)))
        }
    }
}
