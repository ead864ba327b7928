//! Directories, their file systems, and plugin files.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use cofferdam_core::error_chain;
use cofferdam_core::provisioner::check_overlay;
use cofferdam_linux::mounts::is_noexec;
use cofferdam_linux::quota::{self, Kind};
use rustix::fs::{Access, access, statvfs};

use super::finding::Finding;
use crate::cli::format;
use crate::cli::index::Files;
use crate::config::{Config, Environment, Overrides, PluginIndex};

/// Free space, in per cent, below which it is said.
const LITTLE: u64 = 10;

pub(super) fn findings(
    config: Option<&Config>,
    overrides: &Overrides,
    environment: &Environment,
) -> Vec<Finding> {
    let (runtime_dir, work_dir, plugin_dir) = match config {
        Some(config) => (&config.agent.runtime_dir, &config.agent.work_dir, &config.agent.plugin_dir),
        None => (
            overrides.runtime_dir.as_ref().unwrap_or(&environment.runtime_dir),
            overrides.work_dir.as_ref().unwrap_or(&environment.work_dir),
            overrides.plugin_dir.as_ref().unwrap_or(&environment.plugin_dir),
        ),
    };
    let mut findings = vec![
        directory("runtime_dir", runtime_dir),
        directory("work_dir", work_dir),
        execution(existing(work_dir)),
        quotas(existing(work_dir)),
    ];
    if environment.is_root() {
        findings.push(overlay(existing(work_dir)));
    }
    findings.push(plugins(plugin_dir));
    findings
}

/// The directory, or the nearest one above it that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn directory(check: &'static str, path: &Path) -> Finding {
    let (shown, found) = (path.display(), existing(path));
    if path.exists() && !path.is_dir() {
        return Finding::failure(
            check,
            format!("`{shown}` is not a directory"),
            format!("set another `{check}`"),
        );
    }
    if let Err(errno) = access(found, Access::WRITE_OK | Access::EXEC_OK) {
        let message = format!("`{}` cannot be written: {}", found.display(), io::Error::from(errno));
        return Finding::failure(check, message, format!("set a `{check}` that is yours"));
    }
    let Ok(space) = statvfs(found) else {
        return Finding::ok(check, format!("`{shown}`"));
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let total = space.f_blocks.saturating_mul(space.f_frsize);
    let is_little = |free: u64, total: u64| total > 0 && free < total / 100 * LITTLE;
    let message = format!("`{shown}`: {} of {} are free", format::bytes(free), format::bytes(total));
    if is_little(space.f_favail, space.f_files) {
        let message = format!("`{shown}`: {} of {} files are free", space.f_favail, space.f_files);
        return Finding::warning(check, message, "remove files, or choose another file system");
    }
    match is_little(free, total) {
        true => Finding::warning(check, message, "remove files, or choose another file system"),
        false => Finding::ok(check, message),
    }
}

/// Plugins are loaded, and executors executed, from copies in the work directory.
fn execution(work_dir: &Path) -> Finding {
    const CHECK: &str = "programs";
    let shown = work_dir.display();
    match is_noexec(work_dir) {
        Ok(false) => Finding::ok(CHECK, format!("plugins can be loaded from `{shown}`")),
        Ok(true) => Finding::failure(
            CHECK,
            format!("no plugin can be loaded from `{shown}`: its file system is mounted `noexec`"),
            "mount it without this option, or set another `work_dir`",
        ),
        Err(error) => Finding::warning(CHECK, format!("not known: {error}"), "set another `work_dir`"),
    }
}

fn quotas(work_dir: &Path) -> Finding {
    const CHECK: &str = "disk quotas";
    let advice = "for limits that the kernel enforces (`disk/xfs`), mount the file system of `work_dir`, XFS or ext4, with \
                  `prjquota`; `disk/du` works everywhere";
    let found = File::open(work_dir)
        .and_then(|directory| Ok((quota::kind(&directory)?, quota::quotas(&directory).ok())));
    match found {
        Ok((Kind::Xfs | Kind::Ext, Some(quotas))) if quotas.are_enforced => {
            Finding::ok(CHECK, "limits of disk space are enforced for projects")
        }
        Ok((Kind::Xfs | Kind::Ext, Some(quotas))) if quotas.are_counted => {
            Finding::ok(CHECK, "disk space is counted for projects, and limits can be enforced")
        }
        Ok((Kind::Xfs | Kind::Ext, _)) => {
            Finding::warning(CHECK, "the file system of `work_dir` is mounted without project quotas", advice)
        }
        Ok((Kind::Other(_), _)) => {
            Finding::warning(CHECK, "the file system of `work_dir` has no project quotas", advice)
        }
        Err(error) => Finding::warning(CHECK, format!("not known: {error}"), advice),
    }
}

/// Mounts an overlay that nobody sees.
fn overlay(work_dir: &Path) -> Finding {
    const CHECK: &str = "overlay";
    let probe = || -> Result<(), String> {
        let directory = tempfile::Builder::new()
            .prefix(".cofferdam-doctor-")
            .tempdir_in(work_dir)
            .map_err(|error| format!("`{}` cannot be written: {error}", work_dir.display()))?;
        let lower = directory.path().join("lower");
        fs::create_dir(&lower).map_err(|error| error.to_string())?;
        check_overlay(&lower, directory.path()).map_err(|error| error_chain::describe(&error))
    };
    match probe() {
        Ok(()) => Finding::ok(CHECK, "images are mounted, not copied"),
        Err(reason) => Finding::warning(
            CHECK,
            reason,
            "images are copied for each container; put `work_dir` on ext4, XFS or btrfs, and load the module `overlay`",
        ),
    }
}

fn plugins(directory: &Path) -> Finding {
    const CHECK: &str = "plugins";
    let shown = directory.display();
    let found = Files::Read.in_directory(directory);
    if found.is_empty() {
        return Finding::failure(
            CHECK,
            format!("there are none in `{shown}`"),
            "install them, or set `plugin_dir`; a program that was built finds those beside it",
        );
    }
    let wrong = |(file, manifest): &(std::path::PathBuf, Result<_, crate::config::Unusable>)| {
        let error = manifest.as_ref().err()?;
        Some(format!("{}: {}", file.display(), error_chain::describe(error.as_ref())))
    };
    let wrong: Vec<String> = found.iter().filter_map(wrong).collect();
    match &wrong[..] {
        [] => Finding::ok(CHECK, format!("{} in `{shown}`", found.len())),
        reasons => Finding::warning(
            CHECK,
            format!(
                "{} of {} files in `{shown}` cannot be used\n{}",
                reasons.len(),
                found.len(),
                reasons.join("\n")
            ),
            "remove them, or install those of this version",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Verdict;

    #[test]
    fn directories_are_those_that_can_be_written() {
        let place = tempfile::tempdir().unwrap();
        assert_ne!(directory("work_dir", &place.path().join("a/b")).verdict, Verdict::Failure);
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(directory("work_dir", &file).verdict, Verdict::Failure);
        assert_eq!(directory("work_dir", Path::new("/proc/1/x")).verdict, Verdict::Failure);
    }

    #[test]
    fn an_empty_plugin_directory_is_a_failure() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(plugins(place.path()).verdict, Verdict::Failure);
        fs::write(place.path().join("lib.so"), "no library").unwrap();
        let finding = plugins(place.path());
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.message.contains("lib.so: "), "{}", finding.message);
    }
}
