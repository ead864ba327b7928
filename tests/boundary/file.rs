//! Files that are not plugins for this machine: refused by their content, before any of their code runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use cofferdam_core::config::PluginConfig;
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, entry};
use nix::sys::stat::Mode;
use serde_json::json;

use crate::fixture::{
    assert_contains, assert_works, assert_works_without_isolators, compile, modified_copy, note, patch,
    plain, start_error,
};

const FILE: &str = "libgreeting.so";

/// The agent refuses this file as `example/greeting` with a message that contains all of `parts`, and starts without
/// it.
async fn refused(mut world: World, path: impl Into<std::path::PathBuf>, parts: &[&str]) {
    let path = path.into();
    world.config.isolators =
        vec![PluginConfig { path: Some(path.clone()), ..entry("example/greeting", json!({})) }];
    let text = start_error(&world).await;
    assert_contains(&text, parts);
    assert_contains(&text, &[&path.file_name().unwrap().to_string_lossy()]);
    assert_works_without_isolators(&mut world).await;
}

/// The same for a modified copy of a valid plugin.
async fn refused_if(change: impl FnOnce(&mut Vec<u8>), parts: &[&str]) {
    let world = plain();
    let path = modified_copy(&world, FILE, change);
    refused(world, path, parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_truncated_anywhere_is_refused_and_never_mapped() {
    let whole = fs::metadata(cofferdam_tests::paths::build().join(FILE)).unwrap().len();
    let whole = usize::try_from(whole).unwrap();
    for len in [64, 100, 0x1000, 0x1001, whole / 4, whole / 2, whole - 0x1000, whole - 64, whole - 1] {
        let of = format!("the file has {len}");
        refused_if(
            |bytes| bytes.truncate(len),
            &["cannot be loaded: it is truncated", "its headers describe", &of],
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_truncated_within_its_header_is_refused() {
    refused_if(
        |bytes| bytes.truncate(40),
        &["it is truncated", "its headers describe 64 bytes, the file has 40"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_architecture_is_named() {
    let aarch64 = 183u16.to_le_bytes();
    let parts = "it was built for aarch64 (64-bit, little-endian), this agent runs on x86-64";
    refused_if(|bytes| bytes[18..20].copy_from_slice(&aarch64), &[parts]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_32_bit_file_is_named() {
    let parts = "it was built for x86 (32-bit, little-endian)";
    let change = |bytes: &mut Vec<u8>| {
        bytes[4] = 1;
        bytes[18..20].copy_from_slice(&3u16.to_le_bytes());
    };
    refused_if(change, &[parts]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_endian_file_is_named() {
    let change = |bytes: &mut Vec<u8>| {
        bytes[5] = 2;
        bytes[18..20].copy_from_slice(&22u16.to_be_bytes());
    };
    refused_if(change, &["it was built for s390x (64-bit, big-endian)"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_file_is_not_a_plugin() {
    let world = plain();
    let path = compile(&world, "int answer(void) { return 42; }", &["-c"]);
    refused(world, path, &["it is an object file, not a shared library"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_not_a_plugin() {
    for flags in [["-pie", "-fPIE"], ["-no-pie", "-fno-pie"]] {
        let world = plain();
        let path = compile(&world, "int main(void) { return 0; }", &flags);
        refused(world, path, &["it is a program, not a shared library"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_not_a_plugin() {
    let world = plain();
    let path = world.directory().join("plugin.so");
    fs::write(&path, "#!/bin/sh\necho I am a plugin, really\n").unwrap();
    refused(world, path, &["cannot be loaded: it is not an ELF file"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_file_is_not_a_plugin() {
    let world = plain();
    let path = world.directory().join("plugin.so");
    fs::write(&path, "").unwrap();
    refused(world, path, &["cannot be loaded: it is not an ELF file"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_a_pipe_and_a_missing_file_are_not_plugins() {
    let world = plain();
    let path = world.directory().join("directory.so");
    fs::create_dir(&path).unwrap();
    refused(world, path, &["is not a regular file"]).await;

    // Opening it for reading would block until it has a writer.
    let world = plain();
    let path = world.directory().join("pipe.so");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    refused(world, path, &["is not a regular file"]).await;

    let world = plain();
    let path = world.directory().join("nothing.so");
    refused(world, path, &["cannot read plugin file", "No such file or directory"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_without_a_note_is_refused_before_its_constructors_run() {
    let world = plain();
    let trace = world.directory().join("constructed");
    let source = format!(
        "#include <fcntl.h>\n\
         __attribute__((constructor)) static void run(void) {{ open({:?}, O_CREAT | O_WRONLY, 0600); }}\n",
        trace.display().to_string()
    );
    let path = compile(&world, &source, &["-shared", "-fPIC"]);
    let keep = trace.clone();
    // The constructor works: the dynamic loader runs it.
    let preloaded = std::process::Command::new("/bin/true").env("LD_PRELOAD", &path).status().unwrap();
    assert!(preloaded.success() && keep.exists());
    fs::remove_file(&keep).unwrap();

    let parts = ["is a shared library but not a Cofferdam plugin: it has no manifest note", "export it with"];
    let mut world = world;
    world.config.isolators = vec![PluginConfig { path: Some(path), ..entry("example/greeting", json!({})) }];
    assert_contains(&start_error(&world).await, &parts);
    assert!(!trace.exists(), "a constructor of a file that is not a plugin ran");
    assert_works_without_isolators(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_manifest_is_refused() {
    let parts = ["the manifest of plugin file", "cannot be read", "line 1"];
    refused_if(|bytes| patch(bytes, r#"{"kind":"isolator""#, r#"{"kind";"isolator""#), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_needs_an_unknown_feature_is_refused() {
    let none = r#""after":[],"before":[],"features":[]"#;
    let one = format!("{:36}", r#""features":["launch.future"]"#);
    let parts = [
        "isolator `example/greeting` 1.0.0",
        "it needs the feature `launch.future`, which this agent does not support",
    ];
    refused_if(|bytes| patch(bytes, none, &one), &[parts[0], parts[1], "upgrade the agent"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_without_a_plugin_is_refused() {
    let world = plain();
    let path = compile(&world, &note(), &["-shared", "-fPIC"]);
    let parts = ["isolator `example/greeting` 1.0.0", "it has a manifest but exports no plugin", "`cdylib`"];
    refused(world, path, &parts).await;
}

const ROOT: &str = "_1as_0lib_1header_0root_bmodule_bloader";

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_with_a_plugin_that_it_only_imports_is_refused_by_the_loader() {
    let world = plain();
    let source = format!("{}extern const char {ROOT}[];\nconst char *const root = {ROOT};\n", note());
    let path = compile(&world, &source, &["-shared", "-fPIC"]);
    let mut world = world;
    world.config.isolators = vec![PluginConfig { path: Some(path), ..entry("example/greeting", json!({})) }];
    let text = start_error(&world).await;
    assert_contains(
        &text,
        &["the dynamic loader cannot load plugin `example/greeting`", "undefined symbol", ROOT],
    );
    assert_works_without_isolators(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_with_an_incompatible_abi_stable_is_refused() {
    let mut world = plain();
    let source = format!("{}const char {ROOT}[4096] = \"something else\";\n", note());
    let path = compile(&world, &source, &["-shared", "-fPIC"]);
    world.config.isolators = vec![PluginConfig { path: Some(path), ..entry("example/greeting", json!({})) }];
    let text = start_error(&world).await;
    assert_contains(
        &text,
        &["plugin `example/greeting` was built with an incompatible abi_stable; rebuild it"],
    );
    assert!(text.len() < 300, "too long to read: {text}");
    assert_works_without_isolators(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_for_a_newer_glibc_is_refused_with_the_version() {
    let world = plain();
    let path = modified_copy(&world, FILE, |bytes| patch(bytes, "GLIBC_2.34\0", "GLIBC_2.99\0"));
    refused(world, path, &["it needs glibc 2.99, this host has 2.", "build it on an older system"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_with_static_thread_local_storage_is_refused() {
    let world = plain();
    let source = format!(
        "{}const char {ROOT}[4096];\n__thread int counter; int next(void) {{ return ++counter; }}",
        note()
    );
    let path = compile(&world, &source, &["-shared", "-fPIC", "-ftls-model=initial-exec"]);
    refused(world, path, &["it requires static thread-local storage", "without an allocator of its own"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_aborts_on_panic_is_refused() {
    let parts = ["it was built with `panic = \"abort\"`, so its first panic would end the agent"];
    refused_if(|bytes| patch(bytes, r#""panic":"unwind""#, r#""panic":"abort" "#), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_for_an_older_api_must_be_rebuilt() {
    let parts = [
        "isolator `example/greeting` 1.0.0",
        "built for plugin API 0.9.0, this agent supports 1.0 to",
        "rebuild it",
    ];
    refused_if(|bytes| patch(bytes, r#""api":"1.0.0""#, r#""api":"0.9.0""#), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_for_a_newer_api_needs_a_newer_agent() {
    let parts = ["built for plugin API 2.0.0, this agent supports 1.0 to", "upgrade the agent"];
    refused_if(|bytes| patch(bytes, r#""api":"1.0.0""#, r#""api":"2.0.0""#), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_of_an_unknown_kind_needs_a_newer_agent() {
    let parts = ["it is of a kind that plugin API", "does not know; upgrade the agent"];
    refused_if(|bytes| patch(bytes, r#""kind":"isolator""#, r#""kind":"scheduli""#), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_others_can_write_is_refused() {
    let world = plain();
    let path = modified_copy(&world, FILE, |_| ());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o757)).unwrap();
    refused(world, &path, &["can be changed by others", "has mode 757", "chmod go-w"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_in_a_directory_that_others_can_write_is_refused() {
    let world = plain();
    let directory = world.directory().join("open");
    fs::create_dir(&directory).unwrap();
    let path = directory.join(FILE);
    fs::rename(modified_copy(&world, FILE, |_| ()), &path).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    let culprit = format!("`{}` has mode 777", directory.display());
    refused(world, &path, &["can be changed by others", &culprit]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_of_another_user_is_refused() {
    if !is_root("a plugin of another user") {
        return;
    }
    let world = plain();
    let path = modified_copy(&world, FILE, |_| ());
    chown(&path, Some(12345), None).unwrap();
    refused(world, &path, &["can be changed by others", "belongs to user 12345"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_checked_by_its_target() {
    let mut world = plain();
    let good = modified_copy(&world, FILE, |_| ());
    let link = world.directory().join("link.so");
    symlink(&good, &link).unwrap();
    world.config.isolators =
        vec![PluginConfig { path: Some(link.clone()), ..entry("example/greeting", json!({})) }];
    {
        let agent = world.start().await.unwrap();
        assert_eq!(agent.plugins()[0].file, good.canonicalize().unwrap());
        assert_works(&agent).await;
    }

    let mut other = plain();
    let open = modified_copy(&other, FILE, |_| ());
    fs::set_permissions(&open, fs::Permissions::from_mode(0o722)).unwrap();
    let link = other.directory().join("link.so");
    symlink(&open, &link).unwrap();
    other.config.isolators = vec![PluginConfig { path: Some(link), ..entry("example/greeting", json!({})) }];
    let culprit = format!("`{}` has mode 722", open.canonicalize().unwrap().display());
    assert_contains(&start_error(&other).await, &["can be changed by others", &culprit]);
    assert_works_without_isolators(&mut other).await;

    let gone = plain();
    let link = gone.directory().join("link.so");
    symlink("nowhere", &link).unwrap();
    refused(gone, link, &["cannot read plugin file", "No such file or directory"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_needs_a_missing_library_is_named_with_it() {
    let mut world = plain();
    // A library that exists when the plugin is linked and not when it is loaded.
    let helper =
        compile(&world, "int help(void) { return 1; }", &["-shared", "-fPIC", "-Wl,-soname,libgone.so"]);
    let directory = world.directory().join("lib");
    fs::create_dir(&directory).unwrap();
    fs::rename(helper, directory.join("libgone.so")).unwrap();
    let source =
        format!("{}int help(void); const char {ROOT}[4096]; int use(void) {{ return help(); }}", note());
    let search = format!("-L{}", directory.display());
    let path =
        compile(&world, &source, &["-shared", "-fPIC", &search, "-Wl,--no-as-needed", "-l:libgone.so"]);
    world.config.isolators = vec![PluginConfig { path: Some(path), ..entry("example/greeting", json!({})) }];
    let text = start_error(&world).await;
    assert_contains(
        &text,
        &["the dynamic loader cannot load plugin `example/greeting`", "libgone.so", "No such file"],
    );
    assert_works_without_isolators(&mut world).await;
}
