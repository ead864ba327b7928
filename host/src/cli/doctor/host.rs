//! The kernel and what it lets this user do.

use std::fs;

use cofferdam_core::config::LauncherKind;
use cofferdam_linux::capability::{self, OwnSets};
use cofferdam_linux::cgroup::{Cgroups, Layout, Version};
use cofferdam_linux::mounts::{Mount, mounts};
use nix::sys::resource::{Resource, getrlimit};

use super::finding::Finding;
use crate::config::Config;

/// The oldest kernel that works.
const MIN_KERNEL: (u32, u32) = (5, 12);

/// From this one on, cgroups can be told to favour changes of their members.
const DYNAMIC_KERNEL: (u32, u32) = (6, 0);

/// Descriptors that an agent should be allowed to have.
const DESCRIPTORS: u64 = 4096;

pub(super) fn findings(config: Option<&Config>) -> Vec<Finding> {
    let is_linux = config.is_none_or(|config| config.agent.launcher == LauncherKind::Linux);
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mounts = mounts().unwrap_or_default();
    let mut findings = vec![kernel(&release), permissions(is_linux)];
    findings.extend(
        cgroups(Cgroups::detect().unwrap_or_default())
            .into_iter()
            .map(|finding| finding.lowered_unless(is_linux)),
    );
    findings.extend(mount_options(&mounts, version(&release)));
    findings.push(user_namespaces(&read("/proc/sys/user/max_user_namespaces")));
    findings.push(system_calls(&read("/proc/sys/kernel/seccomp/actions_avail")));
    findings.push(descriptors());
    findings
}

/// A file of `/proc`, without white space at its ends; empty if there is none.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(release: &str) -> Finding {
    const CHECK: &str = "kernel";
    match version(release) {
        Some(version) if version >= MIN_KERNEL => Finding::ok(CHECK, format!("Linux {release}")),
        Some(_) => Finding::failure(
            CHECK,
            format!("Linux {release} is too old"),
            format!("install Linux {}.{} or later", MIN_KERNEL.0, MIN_KERNEL.1),
        ),
        None => Finding::warning(
            CHECK,
            format!("the version of Linux `{release}` is not known"),
            format!("it has to be {}.{} or later", MIN_KERNEL.0, MIN_KERNEL.1),
        ),
    }
}

fn permissions(is_linux: bool) -> Finding {
    const CHECK: &str = "permissions";
    if !rustix::process::geteuid().is_root() {
        let advice = "run it as root for root file systems, namespaces and limits";
        return match is_linux {
            true => Finding::failure(CHECK, "the launcher `linux` requires root", advice),
            false => Finding::warning(CHECK, "not root: containers are plain processes", advice),
        };
    }
    let permitted = OwnSets::read().map_or(u64::MAX, |sets| sets.permitted);
    let lacks =
        |name: &&str| capability::number(name).is_some_and(|number| !capability::contains(permitted, number));
    let needed = ["SYS_ADMIN", "SETUID", "SETGID", "CHOWN", "DAC_OVERRIDE", "KILL", "SYS_CHROOT", "MKNOD"];
    let missing: Vec<&str> = needed.into_iter().filter(lacks).collect();
    if !missing.is_empty() {
        return Finding::failure(
            CHECK,
            format!("root without {}", missing.join(", ")),
            "this seems to be a container; give it these capabilities",
        );
    }
    let useful =
        [("SYS_RESOURCE", "limits cannot be raised"), ("NET_ADMIN", "there are no networks of containers")];
    let missing: Vec<_> = useful.iter().filter(|(name, _)| lacks(name)).collect();
    if missing.is_empty() {
        return Finding::ok(CHECK, "root, with all capabilities that are needed");
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    let effects: Vec<&str> = missing.iter().map(|(_, effect)| *effect).collect();
    Finding::warning(
        CHECK,
        format!("root without {}", names.join(", ")),
        format!("without it, {}", effects.join(", and ")),
    )
}

fn cgroups(cgroups: Cgroups) -> Vec<Finding> {
    const CHECK: &str = "cgroups";
    let layout = match cgroups.layout() {
        Layout::Absent => {
            let advice = "mount them: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`";
            return vec![Finding::failure(CHECK, "none are mounted", advice)];
        }
        Layout::Legacy => "version 1",
        Layout::Hybrid => "versions 1 and 2",
        Layout::Unified => "version 2",
    };
    let place = |name: &str| {
        let (_, version) = cgroups.hierarchy(controller(name, &cgroups))?;
        Some(format!("{name} ({})", if version == Version::V1 { "v1" } else { "v2" }))
    };
    let wanted = ["cpu", "memory", "pids", "io", "cpuset", "hugetlb"];
    let (found, missing): (Vec<&str>, Vec<&str>) = wanted.into_iter().partition(|name| place(name).is_some());
    let found: Vec<String> = found.into_iter().filter_map(place).collect();
    let mut findings = vec![Finding::ok(CHECK, format!("{layout}: {}", found.join(", ")))];
    if !missing.is_empty() {
        let advice = "the plugins for them do not work; enable them in the kernel, or for the service in \
                      `cgroup.subtree_control` of the root";
        findings.push(Finding::warning("controllers", format!("there is no {}", missing.join(", ")), advice));
    }
    findings
}

/// The name of a controller, which may differ in version 1.
fn controller<'n>(name: &'n str, cgroups: &Cgroups) -> &'n str {
    if name == "io" && cgroups.hierarchy("io").is_none() { "blkio" } else { name }
}

/// Options of the hierarchies that matter.
fn mount_options(mounts: &[Mount], kernel: Option<(u32, u32)>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let has = |mount: &Mount, option: &str| mount.super_options.iter().any(|found| found == option);
    let unified = mounts.iter().find(|mount| mount.kind == "cgroup2");
    if let Some(unified) = unified {
        let target = unified.target.display();
        findings.push(match has(unified, "nsdelegate") {
            true => Finding::ok("nsdelegate", "namespaces are boundaries of delegation"),
            false => Finding::warning(
                "nsdelegate",
                "a container with a writable cgroup could change its own limits",
                format!("`mount -o remount,nsdelegate {target}`"),
            ),
        });
    }
    let mut hierarchies = mounts.iter().filter(|mount| mount.kind.starts_with("cgroup")).peekable();
    if hierarchies.peek().is_none() || kernel.is_none_or(|kernel| kernel < DYNAMIC_KERNEL) {
        return findings;
    }
    let slow: Vec<String> = hierarchies
        .filter(|mount| !has(mount, "favordynmods"))
        .map(|mount| mount.target.display().to_string())
        .collect();
    findings.push(match &slow[..] {
        [] => Finding::ok("favordynmods", "processes join cgroups at once"),
        // The setting is that of the kernel, for all hierarchies.
        [first, ..] => Finding::warning(
            "favordynmods",
            "on an idle machine, each process that joins a cgroup waits for some milliseconds",
            format!(
                "`mount -o remount,favordynmods {first}` makes launches faster, and forks a little slower"
            ),
        ),
    });
    findings
}

fn user_namespaces(max: &str) -> Finding {
    const CHECK: &str = "user namespaces";
    match max.parse::<u64>() {
        Ok(0) => Finding::warning(
            CHECK,
            "turned off",
            "`sysctl user.max_user_namespaces=15000`, if containers are to have them",
        ),
        Ok(max) => Finding::ok(CHECK, format!("up to {max}")),
        Err(_) => Finding::warning(CHECK, "the kernel has none", "nothing requires them"),
    }
}

fn system_calls(actions: &str) -> Finding {
    const CHECK: &str = "seccomp";
    if actions.split_ascii_whitespace().any(|action| action == "errno") {
        Finding::ok(CHECK, "system calls can be filtered")
    } else {
        Finding::failure(
            CHECK,
            "the kernel cannot filter system calls",
            "enable CONFIG_SECCOMP_FILTER, or leave `linux/seccomp` out of the chain",
        )
    }
}

fn descriptors() -> Finding {
    const CHECK: &str = "descriptors";
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    if limit >= DESCRIPTORS {
        return Finding::ok(CHECK, format!("up to {limit}"));
    }
    Finding::warning(
        CHECK,
        format!("an agent may have {limit} open descriptors"),
        format!(
            "raise the hard limit to {DESCRIPTORS} or more: `LimitNOFILE=` of the service, `ulimit -Hn` of a shell"
        ),
    )
}

#[cfg(test)]
mod tests {
    use cofferdam_linux::mounts;

    use super::*;
    use crate::cli::doctor::finding::Verdict;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        for (release, verdict) in [
            ("5.12.0", Verdict::Ok),
            ("6.1.0-18-amd64", Verdict::Ok),
            ("10.0-rc1", Verdict::Ok),
            ("5.9.16", Verdict::Failure),
            ("4.19", Verdict::Failure),
            ("next", Verdict::Warning),
        ] {
            assert_eq!(kernel(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn options_of_hierarchies_are_found() {
        let verdicts = |options: &str, kernel| {
            let line = format!("30 20 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 {options}");
            let found = mount_options(&mounts::parse(&line), kernel);
            found.into_iter().map(|finding| (finding.check, finding.verdict)).collect::<Vec<_>>()
        };
        assert_eq!(
            verdicts("rw,nsdelegate,favordynmods", Some((6, 1))),
            [("nsdelegate", Verdict::Ok), ("favordynmods", Verdict::Ok)]
        );
        assert_eq!(
            verdicts("rw", Some((6, 1))),
            [("nsdelegate", Verdict::Warning), ("favordynmods", Verdict::Warning)]
        );
        assert_eq!(verdicts("rw", Some((5, 15))), [("nsdelegate", Verdict::Warning)]);
        assert_eq!(mount_options(&[], Some((6, 1))), []);
    }

    #[test]
    fn what_the_kernel_lacks_is_said() {
        assert_eq!(user_namespaces("0").verdict, Verdict::Warning);
        assert_eq!(user_namespaces("15000").verdict, Verdict::Ok);
        assert_eq!(system_calls("kill_process errno allow").verdict, Verdict::Ok);
        assert_eq!(system_calls("").verdict, Verdict::Failure);
        assert_eq!(cgroups(Cgroups::default())[0].verdict, Verdict::Failure);
    }
}
