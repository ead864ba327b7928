//! Installation: what `host/packaging/install` installs works, and `host/packaging/deb` makes a package of it.

mod systemd;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cofferdam_tests::{is_root, paths};

/// A script of `host/packaging`, for the build of this test.
fn script(name: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let build = paths::build();
    let mut command = Command::new(root.join("host/packaging").join(name));
    command.arg("--no-build").current_dir(root);
    command.env("CARGO_TARGET_DIR", build.parent().expect("a target directory"));
    command.env("COFFERDAM_PROFILE", build.file_name().expect("a profile"));
    // Whoever builds, what is installed is for root.
    command.env("XDG_RUNTIME_DIR", "/run/user/1000").env("XDG_STATE_HOME", "/home/builder/state");
    command
}

/// The output of a command that must succeed.
fn output(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes the Debian package in an empty directory.
fn package(directory: &Path) -> PathBuf {
    output(script("deb").arg("--output").arg(directory));
    let [package] = &files(directory).into_iter().collect::<Vec<_>>()[..] else { panic!("not one package") };
    directory.join(package)
}

/// The names of all files below a directory.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).expect("a directory").flatten() {
            if entry.path().is_dir() {
                directories.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(directory).expect("below it").to_owned());
            }
        }
    }
    found
}

#[test]
fn what_is_installed_works_and_can_be_removed() {
    let place = tempfile::tempdir().expect("a directory");
    let destdir = place.path().display().to_string();
    let install = || output(script("install").args(["--prefix", "/usr", "--destdir", &destdir]));
    install();
    let installed = files(place.path());
    for file in [
        "usr/bin/cofferdam",
        "usr/libexec/cofferdam/cofferdam-executor",
        "usr/lib/cofferdam/libcofferdam_cgroups_mem.so",
        "usr/lib/cofferdam/libcofferdam_logger_sandbox.so",
        "usr/share/man/man1/cofferdam.1",
        "usr/share/man/man1/cofferdam-run.1",
        "usr/share/bash-completion/completions/cofferdam",
        "usr/share/zsh/site-functions/_cofferdam",
        "usr/share/fish/vendor_completions.d/cofferdam.fish",
        "usr/lib/systemd/system/cofferdam.service",
        "usr/share/cofferdam/installed",
        "etc/cofferdam/agent.toml",
    ] {
        assert!(installed.contains(Path::new(file)), "{file} is not in {installed:?}");
    }
    let plugins =
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins")).expect("plugins").count();
    let is_plugin = |file: &&PathBuf| file.starts_with("usr/lib/cofferdam");
    assert_eq!(installed.iter().filter(is_plugin).count(), plugins, "one for each directory of `plugins`");

    // It finds its plugins, and accepts its configuration, but for the place at which they will be.
    let program = place.path().join("usr/bin/cofferdam");
    let listed = output(Command::new(&program).args(["plugin", "ls", "--socket", "/nowhere"]));
    assert!(listed.contains("cgroups/mem") && !listed.contains("cannot be used"), "{listed}");
    let config = place.path().join("etc/cofferdam/agent.toml");
    let text = fs::read_to_string(&config).expect("a configuration");
    for line in [
        "runtime_dir = \"/run/cofferdam\"",
        "work_dir = \"/var/lib/cofferdam\"",
        "plugin_dir = \"/usr/lib/cofferdam\"",
        "launcher_dir = \"/usr/libexec/cofferdam\"",
    ] {
        assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
    }
    let plugin_dir = place.path().join("usr/lib/cofferdam");
    output(
        Command::new(&program).arg("check").arg("--config").arg(&config).arg("--plugin-dir").arg(&plugin_dir),
    );
    let unit =
        fs::read_to_string(place.path().join("usr/lib/systemd/system/cofferdam.service")).expect("a unit");
    assert!(
        unit.contains("KillMode=process") && unit.contains("ExecStart=/usr/bin/cofferdam agent"),
        "{unit}"
    );

    // An upgrade keeps the configuration.
    fs::write(&config, "log = \"debug\"\n").expect("it is ours");
    install();
    assert_eq!(fs::read_to_string(&config).expect("a configuration"), "log = \"debug\"\n");
    assert_eq!(files(place.path()), installed);
    // A plugin of the operator stays.
    let own = "usr/lib/cofferdam/libown.so";
    fs::write(place.path().join(own), "").expect("it is ours");
    output(script("install").args(["--uninstall", "--prefix", "/usr", "--destdir", &destdir]));
    assert_eq!(files(place.path()), BTreeSet::from(["etc/cofferdam/agent.toml".into(), own.into()]));
}

#[test]
fn systemd_finds_the_unit_whatever_the_prefix() {
    let place = tempfile::tempdir().expect("a directory");
    let destdir = place.path().display().to_string();
    output(script("install").args(["--prefix", "/opt/cofferdam", "--destdir", &destdir]));
    let unit = fs::read_to_string(place.path().join("etc/systemd/system/cofferdam.service")).expect("a unit");
    assert!(unit.contains("ExecStart=/opt/cofferdam/bin/cofferdam agent"), "{unit}");
}

#[test]
fn an_installation_that_cannot_be_complete_changes_nothing() {
    let place = tempfile::tempdir().expect("a directory");
    let destdir = place.path().display().to_string();
    // In the place of a file that is among the last ones.
    fs::create_dir_all(place.path().join("usr/share/zsh/site-functions/_cofferdam")).expect("a directory");
    let refused =
        script("install").args(["--prefix", "/usr", "--destdir", &destdir]).output().expect("it starts");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("_cofferdam is a directory"), "{refused:?}");
    assert_eq!(files(place.path()), BTreeSet::new());
    // What is not of this script is not removed.
    let list = place.path().join("usr/share/cofferdam/installed");
    fs::create_dir_all(list.parent().expect("a directory")).expect("a directory");
    fs::write(&list, "/usr/lib/../../etc/passwd\n").expect("it is ours");
    let refused = script("install")
        .args(["--uninstall", "--prefix", "/usr", "--destdir", &destdir])
        .output()
        .expect("it starts");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("was not installed"), "{refused:?}");
}

#[test]
fn a_debian_package_has_the_same_files_and_names_what_it_needs() {
    let place = tempfile::tempdir().expect("a directory");
    let package = package(place.path());
    let field = |name: &str| output(Command::new("dpkg-deb").arg("--field").arg(&package).arg(name));
    assert_eq!((field("Package").trim(), field("Version").trim()), ("cofferdam", env!("CARGO_PKG_VERSION")));
    assert!(field("Depends").contains("libc6 (>="), "{}", field("Depends"));
    let listed = output(Command::new("dpkg-deb").arg("--contents").arg(&package));
    for file in [
        "./usr/bin/cofferdam",
        "./usr/share/man/man1/cofferdam-run.1.gz",
        "./usr/lib/cofferdam/libcofferdam_disk_du.so",
    ] {
        let line = listed.lines().find(|line| line.ends_with(file));
        assert!(line.is_some_and(|line| line.contains(" root/root ")), "{file} is not in:\n{listed}");
    }
    let control = place.path().join("control");
    output(Command::new("dpkg-deb").arg("--control").arg(&package).arg(&control));
    assert_eq!(fs::read_to_string(control.join("conffiles")).expect("a list"), "/etc/cofferdam/agent.toml\n");
    for script in ["postinst", "prerm", "postrm"] {
        output(Command::new("sh").arg("-n").arg(control.join(script)));
    }
    // What the removal reads from `check`.
    let shown = output(Command::new(paths::build().join("cofferdam")).arg("check"));
    for setting in ["runtime_dir ", "socket "] {
        assert!(shown.lines().any(|line| line.starts_with(setting)), "{setting}is not in:\n{shown}");
    }
    if is_root("installing a package") {
        assert_installable(&package, &place.path().join("session"));
    }
}

/// Installs a package, uses it, upgrades it and removes it, over the files of this machine.
fn assert_installable(package: &Path, directory: &Path) {
    fs::create_dir(directory).expect("a directory");
    let session = Path::new(env!("CARGO_MANIFEST_DIR")).join("system/packaging/session");
    let cgroup = format!("cofferdam-test-package-{}", std::process::id());
    let session = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh"])
        .args([session.as_path(), directory, package])
        .arg(&cgroup)
        .stdin(Stdio::null())
        .output()
        .expect("unshare (package util-linux)");
    let shown = String::from_utf8_lossy(&session.stdout);
    let errors = String::from_utf8_lossy(&session.stderr);
    assert!(shown.ends_with("== done\n"), "{shown}{errors}");
}
