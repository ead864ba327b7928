//! A Debian system with many layers, which the engine has made of it by changing it, from a registry that asks for a password.

use std::fs;
use std::path::Path;
use std::process::Command;

use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::engine::{Engine, engine};
use cofferdam_tests::registry::{Registry, write_login};
use cofferdam_tests::world::id;
use cofferdam_tests::{assert_contains, debian, paths, text};

use super::agent::{exit_code, printed};
use super::{Fixture, own, request};

/// What is done to the system, a layer each: removed, replaced, of another kind, and there again.
const CHANGES: [&str; 10] = [
    // Directories that are gone, and one that is there again without what it had.
    "rm -rf /usr/share/doc /usr/share/man /usr/share/locale",
    "mkdir /usr/share/doc; echo again > /usr/share/doc/again",
    // A package with all of its files, and what dpkg knows of it.
    "dpkg --purge --force-depends libgcrypt20",
    "rm /etc/issue; mkdir /etc/issue; echo directory > /etc/issue/file",
    "rm -rf /etc/issue; ln -s debian_version /etc/issue",
    // A directory that is hidden as a whole, while some of it is changed.
    "rm -rf /var/lib/apt; mkdir -m 0700 -p /var/lib/apt/lists; echo 1 > /var/lib/apt/lists/one",
    "rm /var/lib/apt/lists/one; rmdir /var/lib/apt/lists; mkdir /var/lib/apt/lists",
    // Owners, modes, devices, links of all kinds.
    "groupadd -g 1500 app; useradd -u 1500 -g app -G audio -m app; chmod 2750 /home/app; mkfifo -m 0620 /home/app/fifo",
    "mkdir /srv/app; mknod -m 0666 /srv/app/null c 1 3; echo 1 > /srv/app/one; ln /srv/app/one /srv/app/two; \
     chown -h app:audio /srv/app/one; touch /srv/app/' odd\\name'",
    "rm /srv/app/two; ln /srv/app/one /srv/app/three; chmod u+s /srv/app/three",
];

/// How the image is to be run.
const CONFIG: [&str; 5] = [
    "USER app",
    "WORKDIR /srv/app",
    "ENV GREETING=\"hello world\"",
    "ENTRYPOINT [\"/bin/sh\",\"-c\"]",
    "CMD [\"id -un; id -Gn; pwd; echo $GREETING\"]",
];

/// Everything in the root file system but what a runtime provides: names, types, modes, owners, links, sizes, times, the content
/// of files and their capabilities. Sizes and times of directories depend on the file system, and what was done with them.
const LISTING: &str = r"cd /; find . -xdev \
  \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./mnt/mesos -o -path ./.dockerenv -o -path ./etc/hosts \
     -o -path ./etc/hostname -o -path ./etc/resolv.conf -o -path ./etc/mtab \) -prune \
  -o -type d -printf '%p %y %m %U:%G\n' -o -type f -printf '%p %y %m %U:%G %n %s %Ts\n' \
  -o -printf '%p %y %m %U:%G %n %l\n' | LC_ALL=C sort
find . -xdev -type f ! -path './etc/host*' ! -path ./etc/resolv.conf ! -path './mnt/*' ! -path ./.dockerenv -print0 \
  | LC_ALL=C sort -z | xargs -0 sha256sum
find . -xdev -type c ! -path './dev/*' -exec stat -c '%n %t:%T' {} + | LC_ALL=C sort
getcap -r /bin /usr 2>/dev/null | LC_ALL=C sort";

/// Makes the image in the engine.
fn make(engine: &Engine, base: &Path, name: &str) {
    let mut image = "cofferdam-test/debian:0".to_owned();
    engine.client(&["import", base.to_str().unwrap(), &image]);
    let container = "debian-layer";
    for (number, line) in CHANGES.iter().enumerate() {
        let line = format!("set -e; {line}");
        engine.client(&["run", "--name", container, "--network", "none", &image, "sh", "-c", &line]);
        let next = format!("cofferdam-test/debian:{}", number + 1);
        let mut commit = vec!["commit"];
        let is_last = number + 1 == CHANGES.len();
        for change in CONFIG.iter().filter(|_| is_last) {
            commit.extend(["--change", change]);
        }
        commit.extend([container, if is_last { name } else { &next }]);
        engine.client(&commit);
        engine.client(&["rm", container]);
        image = next;
    }
}

#[test]
fn a_debian_of_many_layers_is_the_same_as_in_docker() {
    let Some(engine) = engine() else { return };
    let Some(base) = debian::base() else { return };
    let fixture = Fixture::new();
    let pushed = engine.in_network(|| Registry::start(true));
    let name = pushed.name("debian:1");
    make(engine, &base, &name);
    let login = fixture.path("login");
    fs::create_dir(&login).unwrap();
    write_login(&login.join("config.json"), &pushed.address.to_string());
    engine.client(&["--config", login.to_str().unwrap(), "push", &name]);
    let docker = engine.client(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--user",
        "0",
        "--entrypoint",
        "sh",
        &name,
        "-c",
        LISTING,
    ]);
    assert_contains(
        &docker,
        &["cap_net_raw=ep", "./srv/app/null c 666 0:0", "./srv/app/null 1:3", "./etc/issue l 777"],
    );

    // The same registry, where the agent can reach it.
    let registry = pushed.again();
    let name = registry.name("debian:1");
    let mut world = fixture.pulling(&[registry.address.to_string()]);
    let credentials = fixture.path("config.json");
    write_login(&credentials, &registry.address.to_string());
    world.config.registry.credentials = Some(credentials);
    let daemon = Daemon::start(&world);
    let mut listing = request("listing", &name, LISTING);
    listing.command.user = Some("root".into());
    daemon.launch(&listing).unwrap_or_else(|error| panic!("{error:?}\n{}", daemon.log()));
    assert_eq!(exit_code(&daemon, "listing"), 0);
    let own_listing = text(&world.config.work_dir.join("containers/listing/stdout"));
    let (mut ours, mut theirs) = (own_listing.lines(), docker.lines());
    loop {
        match (ours.next(), theirs.next()) {
            (None, None) => break,
            (ours, theirs) => assert_eq!(ours, theirs),
        }
    }
    assert_eq!(fixture.images.inspect(&name)["layers"].as_array().unwrap().len(), CHANGES.len() + 1);

    // As the image says, by the agent and without one.
    daemon.launch(&own("own", &name)).unwrap();
    assert_eq!(exit_code(&daemon, "own"), 0);
    let output = "app\napp audio\n/srv/app\nhello world\n";
    assert_eq!(text(&world.config.work_dir.join("containers/own/stdout")), output);
    assert_eq!(printed(&world, &["run", "--rm", &name]), output);
    let mut alone = Command::new(paths::program());
    alone.arg("run").arg("--image-store").arg(&fixture.images.store).arg(&name);
    let alone = alone.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&alone.stdout), output, "{}", String::from_utf8_lossy(&alone.stderr));
    for name in ["listing", "own"] {
        daemon.remove(&id(name)).unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
