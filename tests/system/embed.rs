//! The core as a library: `examples/embed` leaves nothing behind, and the core changes nothing of its process.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_core::agent::{Agent, StartError, instance_of};
use cofferdam_core::model::{Request, Uri};
use cofferdam_tests::world::{World, id, run};
use cofferdam_tests::{is_root, paths, text};
use tempfile::TempDir;

/// A user and group that own nothing.
const NOBODY: u32 = 65534;

/// Set in the process that embeds the core.
const EMBEDDED: &str = "COFFERDAM_TEST_EMBEDDED";

/// The example with its logger, in a directory that every user can read.
struct Example {
    directory: TempDir,
    program: PathBuf,
}

impl Example {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("cofferdam-test-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("embed");
        for file in ["embed", "libcofferdam_logger_sandbox.so"] {
            fs::copy(paths::build().join(file), directory.path().join(file)).unwrap();
        }
        Self { directory, program }
    }

    /// Runs a shell command in a container, as this user or as another one. Returns what the example prints, after
    /// checking that neither files, nor mounts, nor processes of it are left.
    fn run(&self, user: Option<u32>, command: &str) -> String {
        let temporary = self.directory.path().join("tmp");
        fs::create_dir_all(&temporary).unwrap();
        let mut example = Command::new(&self.program);
        example.arg(command).env("TMPDIR", &temporary);
        if let Some(user) = user {
            chown(&temporary, Some(user), Some(user)).unwrap();
            example.uid(user).gid(user);
        }
        let output = example.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {stderr}", output.status);
        assert_eq!(stderr, "");

        let left: Vec<_> = fs::read_dir(&temporary).unwrap().flatten().map(|entry| entry.path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new());
        assert_eq!(processes_in(&temporary), Vec::<PathBuf>::new());
        let mounts = text(Path::new("/proc/self/mountinfo"));
        assert!(!mounts.contains(temporary.to_str().unwrap()), "{mounts}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The processes whose working directory is, or was, below a directory.
fn processes_in(directory: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_below = |process: &PathBuf| {
        fs::read_link(process.join("cwd")).is_ok_and(|working| working.starts_with(directory))
    };
    processes.filter(is_below).collect()
}

#[test]
fn the_example_runs_a_container_for_an_ordinary_user_and_leaves_nothing() {
    let example = Example::new();
    let (user, uid) = match nix::unistd::geteuid() {
        root if root.is_root() => (Some(NOBODY), NOBODY),
        user => (None, user.as_raw()),
    };
    // The daemon leaves its session; it is destroyed with its container.
    let output = example.run(user, "id -u; setsid sleep 1000 & exit 3");
    assert_eq!(output, format!("{uid}\nthe container exited with 3\n"));
}

#[test]
fn the_example_runs_a_container_for_root_and_leaves_no_cgroup() {
    if !is_root("the `linux` launcher") {
        return;
    }
    // Its own cgroup namespace does not show where its cgroup is; that of the keeper does.
    let output = Example::new()
        .run(None, "setsid sleep 1000 & exec nsenter --cgroup --target $PPID cat /proc/self/cgroup");
    let (cgroups, end) = output.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(end, "the container exited with 0");
    let cgroups: Vec<&str> = cgroups.lines().filter_map(|line| line.split(':').nth(2)).collect();
    let own = cgroups.into_iter().find(|cgroup| cgroup.ends_with("/hello.container"));
    let agent = Path::new(own.expect("a cgroup of the container's own")).parent().unwrap();
    assert_eq!(existing_cgroups(agent), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_start_leaves_no_cgroup() {
    if !is_root("the `linux` launcher") {
        return;
    }
    let mut without_plugin = World::new();
    without_plugin.add("test/missing", serde_json::json!({}));
    assert!(matches!(without_plugin.start().await, Err(StartError::Lookup(_))));
    // After the plugins.
    let mut without_program = World::new();
    let launcher_dir = without_program.directory().join("programs");
    fs::create_dir_all(launcher_dir.join("cofferdam-executor")).unwrap();
    without_program.config.executors.launcher_dir = Some(launcher_dir);
    assert!(matches!(without_program.start().await, Err(StartError::ExecutorProgram(_))));
    // And after the recovery of containers.
    let without_journals = World::new();
    fs::create_dir_all(&without_journals.config.work_dir).unwrap();
    fs::write(without_journals.config.work_dir.join("executors"), "").unwrap();
    assert!(matches!(without_journals.start().await, Err(StartError::Executors { .. })));
    for world in [&without_plugin, &without_program, &without_journals] {
        let agent = Path::new("/cofferdam-test").join(instance_of(&world.config.runtime_dir));
        assert_eq!(existing_cgroups(&agent), Vec::<PathBuf>::new());
    }
}

/// Where a cgroup exists, in any hierarchy.
fn existing_cgroups(cgroup: &Path) -> Vec<PathBuf> {
    let relative = cgroup.strip_prefix("/").unwrap();
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let mounts = hierarchies.chain(["/sys/fs/cgroup".into()]);
    mounts.map(|mount| mount.join(relative)).filter(|directory| directory.exists()).collect()
}

/// Everything the kernel says of this process that a library could change.
fn attributes() -> BTreeMap<String, String> {
    const STATUS: [&str; 15] = [
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "NoNewPrivs",
        "Seccomp",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "TracerPid",
    ];
    let mut found = BTreeMap::new();
    // Of this thread: the first one blocks all signals for as long as it starts another one.
    for line in text(Path::new("/proc/thread-self/status")).lines() {
        if let Some((name, value)) = line.split_once(':').filter(|(name, _)| STATUS.contains(name)) {
            found.insert(name.to_owned(), value.trim().to_owned());
        }
    }
    assert_eq!(found.len(), STATUS.len(), "{found:?}");
    // Another test may mount a hierarchy, in which every process is at `/`.
    let cgroups = text(Path::new("/proc/self/cgroup"));
    found.extend(
        cgroups.lines().filter(|line| !line.ends_with(":/")).map(|line| (line.to_owned(), String::new())),
    );
    for file in ["limits", "oom_score_adj", "coredump_filter", "personality"] {
        found.insert(file.to_owned(), text(&Path::new("/proc/self").join(file)));
    }
    let namespaces = fs::read_dir("/proc/self/ns").unwrap().flatten().map(|entry| entry.path());
    let links = ["cwd", "root", "fd/0", "fd/1", "fd/2"].map(|link| Path::new("/proc/self").join(link));
    for path in namespaces.chain(links) {
        found.insert(path.display().to_string(), fs::read_link(&path).unwrap().display().to_string());
    }
    found.insert("dumpable".into(), nix::sys::prctl::get_dumpable().unwrap().to_string());
    found.insert("child subreaper".into(), nix::sys::prctl::get_child_subreaper().unwrap().to_string());
    found.insert("priority".into(), rustix::process::getpriority_process(None).unwrap().to_string());
    found.extend(std::env::vars().map(|(name, value)| (format!("${name}"), value)));
    found
}

/// Runs in a process of its own, as other tests of this program would change the same attributes.
#[test]
fn the_core_leaves_the_process_that_embeds_it_as_it_was() {
    const NAME: &str = "embed::the_core_leaves_the_process_that_embeds_it_as_it_was";
    if std::env::var_os(EMBEDDED).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", NAME, "--nocapture"]).env(EMBEDDED, "1").output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
        assert!(stdout.contains("1 passed"), "{stdout}");
        return;
    }
    // Not the defaults, so that setting the defaults is noticed too.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard.min(512), hard).unwrap();

    let root = nix::unistd::geteuid().is_root();
    let worlds = if root { vec![World::shipped(), World::posix()] } else { vec![World::posix()] };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let before = attributes();
    for world in &worlds {
        runtime.block_on(async {
            let agent = world.start().await.unwrap();
            use_agent(&agent, world, &before).await;
            agent.shutdown().await;
        });
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
    drop(runtime);
    assert_eq!(attributes(), before);
}

/// Launches, fetches, updates, asks, signals and destroys.
async fn use_agent(agent: &Agent, world: &World, before: &BTreeMap<String, String>) {
    let file = world.directory().join("file");
    fs::write(&file, "fetched\n").unwrap();
    let uri = Uri {
        value: file.display().to_string(),
        executable: false,
        extract: false,
        cache: false,
        output_file: Some("copy".into()),
        sha256: None,
    };
    let mut request = Request::shell(id("short"), "cat copy");
    request.uris = vec![uri];
    assert_eq!(run(agent, request).await, "fetched\n");

    let running = id("running");
    agent.launch(Request::shell(running.clone(), "sleep 1000")).await.unwrap();
    agent.usage(&running).await.unwrap();
    agent.status(&running).await.unwrap();
    agent.update(&running, cofferdam_core::model::Resources::default()).await.unwrap();
    assert_eq!(attributes(), *before, "while a container is running");
    assert_eq!(agent.destroy_all().await, Vec::new());
    for container in [id("short"), running] {
        assert!(agent.remove(&container).await.unwrap());
    }
}
