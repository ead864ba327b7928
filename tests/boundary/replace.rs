//! A plugin file that changes while the agent is running.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use cofferdam_core::config::PluginConfig;
use cofferdam_tests::paths;
use cofferdam_tests::world::World;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use serde_json::json;

use crate::fixture::{assert_works, greeting, id, long_running, plain, plugin, with_agent};

/// A world with its own copy of the greeting plugin.
fn world() -> (World, PathBuf) {
    let mut world = plain();
    let file = world.directory().join("plugin.so");
    fs::copy(paths::build().join("libgreeting.so"), &file).unwrap();
    world.config.isolators = vec![PluginConfig { path: Some(file.clone()), ..greeting(json!({})) }];
    (world, file)
}

#[test]
fn overwriting_the_file_in_place_has_no_effect() {
    let (world, file) = world();
    with_agent(&world, async |agent| {
        agent.launch(long_running("web")).await.unwrap();
        let len = usize::try_from(fs::metadata(&file).unwrap().len()).unwrap();
        OpenOptions::new().write(true).open(&file).unwrap().write_all(&vec![0xcc; len]).unwrap();
        assert_works(&agent).await;
        OpenOptions::new().write(true).truncate(true).open(&file).unwrap();
        assert_works(&agent).await;
        assert_eq!(agent.status(&id("web")).await.unwrap().status["greeting"], json!("hello there"));
        agent.destroy(&id("web")).await.unwrap();
    });
}

#[test]
fn renaming_another_version_over_it_takes_effect_at_the_next_start() {
    let (world, file) = world();
    let replace = |by: &str| {
        let new = file.with_extension("new");
        fs::copy(paths::build().join(by), &new).unwrap();
        fs::rename(&new, &file).unwrap();
    };
    with_agent(&world, async |agent| {
        replace("libgreeting_2.so");
        assert_works(&agent).await;
        assert_eq!(plugin(&agent, "example/greeting").version, "1.0.0");
    });
    // In the same process, where dlopen(3) would return the loaded library for a known path.
    with_agent(&world, async |agent| {
        assert_eq!(plugin(&agent, "example/greeting").version, "2.0.0");
        agent.launch(long_running("web")).await.unwrap();
        let status = agent.status(&id("web")).await.unwrap();
        assert_eq!(status.status["greeting"]["since_version"], json!("2.0.0"));
        agent.destroy(&id("web")).await.unwrap();
        assert_works(&agent).await;
    });
    replace("libgreeting.so");
    with_agent(&world, async |agent| {
        assert_eq!(plugin(&agent, "example/greeting").version, "1.0.0");
        assert_works(&agent).await;
    });
}

#[test]
fn nobody_removes_the_private_copies_of_a_running_agent() {
    let (mut world, _) = world();
    let store = world.directory().join("store");
    world.config.plugin_store = Some(store.clone());
    // Of all copies, as one who removes them has to lock them.
    let everything = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let lock = || OpenOptions::new().write(true).open(store.join("lock")).unwrap();
    with_agent(&world, async |agent| {
        assert_works(&agent).await;
        assert_eq!(fcntl(lock(), FcntlArg::F_OFD_SETLK(&everything)), Err(Errno::EAGAIN));
    });
    // Waits, as a process that was just created may still have the agent's descriptors.
    fcntl(lock(), FcntlArg::F_OFD_SETLKW(&everything)).unwrap();
}
