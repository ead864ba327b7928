//! Plugin files that are recognised by the index of the store: only while they have not changed, whatever happens to
//! the files, the index or the private copies.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_core::config::PluginConfig;
use cofferdam_core::plugin::{LoadedPlugin, Store, Trust};
use cofferdam_plugin_model::Kind;
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, entry};
use serde_json::json;
use tempfile::TempDir;

use crate::fixture::{assert_contains, assert_works, patch, plain, plugin, start_error};

const FILE: &str = "libgreeting.so";

/// A store, and plugin files of the test's own.
struct StoreFixture {
    directory: TempDir,
}

impl StoreFixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn store_directory(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn index(&self) -> PathBuf {
        self.store_directory().join("index")
    }

    /// A copy of a plugin.
    fn plugin(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::copy(cofferdam_tests::paths::build().join(FILE), &path).unwrap();
        path
    }

    /// Loads a file as an agent does at its start. Returns whether it was known, its hash, and its private copy.
    fn load(&self, path: &Path) -> (bool, String, PathBuf) {
        let store = Store::open(&self.store_directory());
        let candidate = store.examine(path, Trust::Index).unwrap();
        let copy = store.keep(&candidate).unwrap();
        store.save();
        (candidate.is_known(), candidate.sha256().to_owned(), copy)
    }

    fn is_known(&self, path: &Path) -> bool {
        Store::open(&self.store_directory()).examine(path, Trust::Index).unwrap().is_known()
    }

    /// Loads these files until they and their copies are known. At first they are not, because a file that was just
    /// written can change again without a change of its times.
    fn load_until_known(&self, paths: &[&Path]) {
        let started = std::time::Instant::now();
        let copy_is_known = |path: &Path| {
            let store = Store::open(&self.store_directory());
            let candidate = store.examine(path, Trust::Index).unwrap();
            candidate.is_known() && candidate.has_known_copy()
        };
        while !paths.iter().all(|path| copy_is_known(path)) {
            assert!(started.elapsed().as_secs() < 60, "still not known after a minute");
            for path in paths {
                self.load(path);
            }
        }
    }
}

/// Another content of the same length, with the modification time it had before.
fn change_quietly(path: &Path) {
    let before = fs::metadata(path).unwrap();
    let mut bytes = fs::read(path).unwrap();
    patch(&mut bytes, r#""version":"1.0.0""#, r#""version":"1.0.7""#);
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(&bytes).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    let after = fs::metadata(path).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
}

fn sha256(path: &Path) -> String {
    use sha2::{Digest, Sha256};
    data_encoding::HEXLOWER.encode(&Sha256::digest(fs::read(path).unwrap()))
}

#[test]
fn a_known_file_is_recognised_until_its_content_changes() {
    let fixture = StoreFixture::new();
    let file = fixture.plugin("a.so");
    assert!(!fixture.load(&file).0, "it is not in the index yet");
    fixture.load_until_known(&[&file]);
    let (known, old, _) = fixture.load(&file);
    assert!(known && old == sha256(&file));

    change_quietly(&file);
    let (known, new, copy) = fixture.load(&file);
    assert!(!known, "its size and modification time are the same, but not its change time");
    assert_eq!((&new, new == old), (&sha256(&file), false));
    assert_eq!(sha256(&copy), new);
}

#[test]
fn another_file_with_the_same_name_size_and_modification_time_is_read() {
    let fixture = StoreFixture::new();
    let file = fixture.plugin("a.so");
    fixture.load_until_known(&[&file]);
    let other = fixture.plugin("b.so");
    change_quietly(&other);
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    File::options().write(true).open(&other).unwrap().set_modified(modified).unwrap();
    fs::rename(&other, &file).unwrap();
    let (known, hash, copy) = fixture.load(&file);
    assert!(!known && hash == sha256(&file) && sha256(&copy) == hash);
}

#[test]
fn a_file_that_is_open_for_writing_is_read_every_time() {
    let fixture = StoreFixture::new();
    let (open, closed) = (fixture.plugin("open.so"), fixture.plugin("closed.so"));
    let writer = OpenOptions::new().write(true).open(&open).unwrap();
    // Both are of the same age.
    fixture.load_until_known(&[&closed]);
    fixture.load(&open);
    assert!(!fixture.is_known(&open));
    drop(writer);
    fixture.load(&open);
    assert!(fixture.is_known(&open));
}

#[test]
fn an_index_that_is_torn_changed_or_from_before_a_reboot_is_ignored_and_rewritten() {
    let fixture = StoreFixture::new();
    let file = fixture.plugin("a.so");
    fixture.load_until_known(&[&file]);
    let whole = fs::read(fixture.index()).unwrap();
    let ignored = |bytes: &[u8]| {
        fs::write(fixture.index(), bytes).unwrap();
        assert!(!fixture.is_known(&file), "{} of {} bytes", bytes.len(), whole.len());
    };
    for len in [0, 1, 10, 30, 40, whole.len() / 2, whole.len() - 1] {
        ignored(&whole[..len]);
    }
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    ignored(&flipped);
    ignored(&resealed(&whole, r#"{"boot_id":""#, r#"{"boot_id":"0"#));
    ignored(&resealed(&whole, r#""manifests":["#, r#""manifests":[0,"#));
    let newer = String::from_utf8_lossy(&whole).replacen("index 2 ", "index 3 ", 1);
    ignored(newer.as_bytes());

    fixture.load(&file);
    assert!(fixture.is_known(&file), "it was rewritten");
}

/// An index with a change and the right checksum.
fn resealed(whole: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(whole.to_vec()).unwrap();
    let (head, body) = text.split_once('\n').unwrap();
    assert!(body.contains(from), "{body}");
    let body = body.replacen(from, to, 1);
    let magic = head.rsplit_once(' ').unwrap().0;
    format!("{magic} {:08x}\n{body}", crc32fast::hash(body.as_bytes())).into_bytes()
}

#[test]
fn a_layout_is_compared_once_for_each_program_and_content() {
    let fixture = StoreFixture::new();
    let file = fixture.plugin("a.so");
    fixture.load_until_known(&[&file]);
    let compatible = || {
        let store = Store::open(&fixture.store_directory());
        store.is_compatible(&store.examine(&file, Trust::Index).unwrap())
    };
    assert!(!compatible(), "nobody has loaded it");
    let load = || {
        let store = Store::open(&fixture.store_directory());
        LoadedPlugin::load(
            &entry("example/greeting", json!({})),
            Kind::Isolator,
            &file,
            &store,
            &Arc::default(),
        )
        .unwrap();
        store.save();
    };
    load();
    assert!(compatible());

    let whole = fs::read(fixture.index()).unwrap();
    fs::write(
        fixture.index(),
        resealed(&whole, r#""compatible_with":{"device":"#, r#""compatible_with":{"device":1"#),
    )
    .unwrap();
    assert!(fixture.is_known(&file) && !compatible(), "it was another program");
    load();
    assert!(compatible());

    change_quietly(&file);
    fixture.load_until_known(&[&file]);
    assert!(!compatible(), "it is another plugin");
}

#[test]
fn an_index_that_others_can_write_to_is_ignored_and_rewritten() {
    let fixture = StoreFixture::new();
    let file = fixture.plugin("a.so");
    fixture.load_until_known(&[&file]);
    fs::set_permissions(fixture.index(), Permissions::from_mode(0o620)).unwrap();
    assert!(!fixture.is_known(&file));
    fixture.load(&file);
    assert!(fixture.is_known(&file));

    // With a link, the index of another store would be used.
    let elsewhere = fixture.directory.path().join("elsewhere");
    fs::rename(fixture.index(), &elsewhere).unwrap();
    symlink(&elsewhere, fixture.index()).unwrap();
    assert!(!fixture.is_known(&file));
    fixture.load(&file);
    assert!(fixture.is_known(&file) && !fixture.index().is_symlink());

    // In a directory that others can write to, an index is neither used nor written.
    fs::set_permissions(fixture.store_directory(), Permissions::from_mode(0o770)).unwrap();
    assert!(!fixture.is_known(&file));
    fs::remove_file(fixture.index()).unwrap();
    fixture.load(&file);
    assert!(!fixture.index().exists());
}

#[test]
fn an_index_of_another_user_is_ignored_and_rewritten() {
    if !is_root("an index of another user") {
        return;
    }
    let fixture = StoreFixture::new();
    let file = fixture.plugin("a.so");
    fixture.load_until_known(&[&file]);
    chown(fixture.index(), Some(12345), None).unwrap();
    assert!(!fixture.is_known(&file));
    fixture.load(&file);
    assert!(fixture.is_known(&file));
    chown(fixture.store_directory(), Some(12345), None).unwrap();
    assert!(!fixture.is_known(&file));
}

#[test]
fn a_private_copy_that_was_changed_is_replaced() {
    let fixture = StoreFixture::new();
    let file = fixture.plugin("a.so");
    fixture.load_until_known(&[&file]);
    let (_, hash, copy) = fixture.load(&file);

    fs::set_permissions(&copy, Permissions::from_mode(0o700)).unwrap();
    change_quietly(&copy);
    assert_ne!(sha256(&copy), hash);
    let (known, _, again) = fixture.load(&file);
    assert!(known, "the file itself is unchanged");
    assert_eq!((again == copy, sha256(&copy)), (true, hash.clone()));

    for spoil in [
        |copy: &Path| fs::remove_file(copy).unwrap(),
        |copy: &Path| {
            fs::rename(copy, copy.with_extension("moved")).unwrap();
            symlink(copy.with_extension("moved"), copy).unwrap();
        },
        |copy: &Path| fs::set_permissions(copy, Permissions::from_mode(0o720)).unwrap(),
    ] {
        spoil(&copy);
        fixture.load(&file);
        let metadata = fs::symlink_metadata(&copy).unwrap();
        assert!(metadata.is_file(), "{metadata:?}");
        assert_eq!((metadata.permissions().mode() & 0o777, sha256(&copy)), (0o500, hash.clone()));
    }
}

#[test]
fn two_files_with_the_same_content_share_one_copy() {
    let fixture = StoreFixture::new();
    let (one, other) = (fixture.plugin("a.so"), fixture.plugin("b.so"));
    fixture.load_until_known(&[&one, &other]);
    assert_eq!(fixture.load(&one).2, fixture.load(&other).2);
    change_quietly(&one);
    assert_ne!(fixture.load(&one).2, fixture.load(&other).2);
    assert!(fixture.is_known(&other));
}

#[test]
fn files_that_are_gone_or_changed_are_dropped_from_the_index() {
    let fixture = StoreFixture::new();
    let (one, other) = (fixture.plugin("gone.so"), fixture.plugin("stays.so"));
    fixture.load_until_known(&[&one, &other]);
    assert!(fs::read_to_string(fixture.index()).unwrap().contains("gone.so"));
    fs::remove_file(&one).unwrap();
    // It is written when something is learned.
    let third = fixture.plugin("third.so");
    fixture.load_until_known(&[&third]);
    assert!(!fs::read_to_string(fixture.index()).unwrap().contains("gone.so"));
}

#[test]
fn agents_that_start_at_the_same_time_share_a_store() {
    let fixture = StoreFixture::new();
    let files: Vec<PathBuf> = (0..4).map(|n| fixture.plugin(&format!("{n}.so"))).collect();
    change_quietly(&files[3]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for file in files.iter().cycle().take(12) {
                    let (_, hash, copy) = fixture.load(file);
                    assert_eq!((sha256(&copy), &hash), (hash.clone(), &sha256(file)));
                }
            });
        }
    });
    fixture.load_until_known(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    let names = fs::read_dir(fixture.store_directory()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 4, "two copies, the index and the lock");
}

#[test]
fn a_pinned_hash_is_compared_with_the_content_whatever_the_index_says() {
    let fixture = StoreFixture::new();
    let file = fixture.plugin("a.so");
    fixture.load_until_known(&[&file]);
    let (_, hash, copy) = fixture.load(&file);
    let index = fs::read(fixture.index()).unwrap();
    let lie = "0".repeat(64);
    fs::write(fixture.index(), resealed(&index, &hash, &lie)).unwrap();
    let store = Store::open(&fixture.store_directory());
    assert_eq!(
        store.examine(&file, Trust::Index).unwrap().sha256(),
        lie,
        "the index is believed without a pin"
    );

    let candidate = store.examine(&file, Trust::Content).unwrap();
    assert_eq!((candidate.is_known(), candidate.sha256()), (false, hash.as_str()));
    // The copy is read as well.
    fs::set_permissions(&copy, Permissions::from_mode(0o700)).unwrap();
    change_quietly(&copy);
    assert_eq!(sha256(&store.keep(&candidate).unwrap()), hash);
}

fn world_with(file: &Path) -> World {
    let mut world = plain();
    world.config.isolators =
        vec![PluginConfig { path: Some(file.to_owned()), ..entry("example/greeting", json!({})) }];
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_runs_the_new_code_of_a_file_that_it_knew() {
    let fixture = StoreFixture::new();
    let file = fixture.plugin(FILE);
    let mut world = world_with(&file);
    world.config.plugin_store = Some(fixture.store_directory());
    fixture.load_until_known(&[&file]);
    {
        let agent = world.start().await.unwrap();
        assert_eq!(plugin(&agent, "example/greeting").version, "1.0.0");
        assert_works(&agent).await;
    }
    change_quietly(&file);
    let mut world = world_with(&file);
    world.config.plugin_store = Some(fixture.store_directory());
    let agent = world.start().await.unwrap();
    assert_eq!(plugin(&agent, "example/greeting").version, "1.0.7");
    assert_works(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_file_that_others_can_now_change_is_refused() {
    let fixture = StoreFixture::new();
    let directory = fixture.directory.path().join("plugins");
    fs::create_dir(&directory).unwrap();
    let file = directory.join(FILE);
    fs::rename(fixture.plugin(FILE), &file).unwrap();
    fixture.load_until_known(&[&file]);
    // The directory's mode is not among the times of the file.
    fs::set_permissions(&directory, Permissions::from_mode(0o777)).unwrap();
    let mut world = world_with(&file);
    world.config.plugin_store = Some(fixture.store_directory());
    assert_contains(&start_error(&world).await, &["can be changed by others", "has mode 777"]);
}
