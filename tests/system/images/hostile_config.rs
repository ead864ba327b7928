//! Images whose configuration attacks the host: what they say of the working directory, volumes, users, variables and programs.

use std::fs;

use cofferdam_core::provisioner::Backend;
use cofferdam_tests::images::{Layer, busybox};
use cofferdam_tests::is_root;
use cofferdam_tests::world::id;
use serde_json::{Value as Json, json};

use super::{Fixture, request};

/// What a container must not get to know.
const SECRET: &str = "of the host alone";

/// Names what it can reach, who it is, and leaves something in its directory and in the volume.
const LINE: &str = "id -u; cat ./secret ../secret ../../secret 2>/dev/null; echo x > ./left; echo x > /link/left; \
                    cat /link/secret; env; true";

/// Configurations, by what is wrong with them, with the user that they may run as.
fn configurations(victim: &str) -> Vec<(String, Json, &'static str)> {
    let mut all = Vec::new();
    let mut add = |name: &str, config: Json, user| all.push((name.to_owned(), config, user));
    // As in CVE-2024-21626: a directory that is still open, by any number.
    for number in 0..24 {
        add(&format!("fd-{number}"), json!({ "WorkingDir": format!("/proc/self/fd/{number}") }), "0");
    }
    for (number, path) in [
        "/proc/1/root",
        "/proc/1/cwd",
        "/proc/self/root/../..",
        "/link",
        "/link/..",
        "../../../..",
        "",
        "/a\u{0}b",
    ]
    .into_iter()
    .enumerate()
    {
        add(&format!("directory-{number}"), json!({ "WorkingDir": path }), "0");
    }
    add("directory-up", json!({ "WorkingDir": format!("/../../../..{victim}") }), "0");
    for (number, path) in ["/link", "/link/deeper", "/proc/self", "/dev", "/..", "relative", "/", "/a\u{0}b"]
        .into_iter()
        .enumerate()
    {
        add(&format!("volume-{number}"), json!({ "Volumes": { path: {} } }), "0");
    }
    add("volume-up", json!({ "Volumes": { format!("/../../../..{victim}"): {} } }), "0");
    // None of these is root in any way to read it.
    for (number, user) in [
        "4294967296",
        "-1",
        "4294967295",
        "18446744073709551616",
        "0x0",
        " 0",
        "1234:0x0",
        "web ",
        "0\n",
        ":",
        "web:4294967296",
    ]
    .into_iter()
    .enumerate()
    {
        add(&format!("user-{number}"), json!({ "User": user }), "1234");
    }
    for (number, variable) in ["NONE", "=empty", "A=b\u{0}c", ""].into_iter().enumerate() {
        add(&format!("variable-{number}"), json!({ "Env": [variable] }), "0");
    }
    for (number, program) in
        ["/proc/self/exe", "/link/secret", "../../..", "", "/a\u{0}b"].into_iter().enumerate()
    {
        add(&format!("program-{number}"), json!({ "Entrypoint": [program], "Cmd": ["--help"] }), "0");
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_configuration_reaches_nothing_of_the_host() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let victim = fixture.path("victim");
    fs::create_dir_all(victim.join("deeper")).unwrap();
    fs::write(victim.join("secret"), SECRET).unwrap();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let link = Layer::new().symlink("link", victim.to_str().unwrap());
    let world = {
        let mut world = fixture.world();
        world.config.image_backend = Backend::Overlay;
        world
    };
    let agent = world.start().await.unwrap();
    let (mut ran, mut refused) = (0, 0);
    for (name, config, user) in configurations(victim.to_str().unwrap()) {
        let image = format!("{name}:1");
        let of_image = config["Entrypoint"].is_array();
        fixture.image(&image, &[busybox(), link.clone()], config);
        let web = if of_image { super::own("web", &image) } else { request("web", &image, LINE) };
        match agent.launch(web).await {
            Ok(_) => {
                match of_image {
                    // Whatever the program is, it need not end.
                    true => agent.destroy(&id("web")).await,
                    false => agent.wait(&id("web")).await,
                };
                let logs = agent.inspect(&id("web")).unwrap().logs;
                let output = cofferdam_tests::text(&logs.stdout.unwrap());
                assert!(!output.contains(SECRET), "{name}: {output}");
                assert!(of_image || output.starts_with(&format!("{user}\n")), "{name}: {output}");
                assert!(agent.remove(&id("web")).await.unwrap());
                ran += 1;
            }
            Err(error) => {
                eprintln!("{name}: {}", cofferdam_core::error_chain::describe(&error));
                refused += 1;
            }
        }
        assert_eq!(names(), before, "{name}");
    }
    // Neither is all refused, nor is nothing.
    assert!(ran > 3 && refused > 20, "{ran} ran, {refused} were refused");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
