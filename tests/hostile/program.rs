//! Containers that try to change the program of the agent's helpers, as in CVE-2019-5736.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cofferdam_core::model::Command;
use cofferdam_linux::process::{Stat, children_of};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id};

use super::{Attack, Kind, attacker, is_privileged, of_kind, run_and_remove, worlds};

/// Launches at most until the attacker has opened a program: it misses those during which it does not get the CPU.
const MAX_LAUNCHES: usize = 50;

/// The program of the keeper of an agent in this process, from which it forks all others.
fn program(world: &World) -> Vec<u8> {
    let is_of_world = |pid: &i32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        Stat::read(*pid).is_ok_and(|stat| stat.name == "cofferdam-keep")
            && links.any(|link| link.starts_with(world.directory()))
    };
    let own = i32::try_from(std::process::id()).unwrap();
    let keeper = children_of(own).unwrap().into_iter().find(is_of_world).unwrap();
    fs::read(format!("/proc/{keeper}/exe")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_of_the_helpers_is_not_overwritten_from_a_container() {
    if !is_root("nested containers") {
        return;
    }
    for world in worlds() {
        // Executed, it executes the program that has just become the command.
        let itself = world.rootfs().join("bin/itself");
        fs::write(&itself, "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(&itself, fs::Permissions::from_mode(0o755)).unwrap();
        let agent = world.start().await.unwrap();
        let before = program(&world);
        let attack = Attack::start(&agent, &world, 0, &["overwrite"]).await;
        // With fewer capabilities than the process, the attacker can only try.
        let tried =
            || attack.count("opened") + if is_privileged(&world) { 0 } else { attack.count("not opened") };
        let mut launches = 0..MAX_LAUNCHES;
        while tried() < 3 {
            launches.next().unwrap_or_else(|| panic!("{:#?}", attack.report()));
            run_and_remove(&agent, of_kind(attacker(&world, "pod.web", 0, &["self"]), Kind::Shared)).await;
        }
        let mut request = of_kind(attacker(&world, "pod.itself", 0, &[]), Kind::Shared);
        request.command = Command { shell: false, value: Some("/bin/itself".into()), ..Command::default() };
        if agent.launch(request).await.is_ok() {
            // It is a command as any other, without what the keeper has.
            agent.destroy(&id("pod.itself")).await.unwrap();
            assert!(agent.remove(&id("pod.itself")).await.unwrap());
        }
        assert!(program(&world) == before, "the program was changed");
        run_and_remove(&agent, attacker(&world, "web", 0, &["self"])).await;
        let report = attack.end().await;
        let is_allowed = |what: &str| ["seen", "opened", "not opened"].contains(&what);
        assert!(report.iter().all(|line| is_allowed(&line.what)), "{report:#?}");
    }
}
