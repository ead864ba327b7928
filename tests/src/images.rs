//! Images that are made for a test: archives of layers, and OCI layouts of them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cofferdam_core::provisioner::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::FlockOperation;
use serde_json::{Value as Json, json};
use tar::{EntryType, Header};

use crate::paths;

/// The archive of a layer, as bytes. Whatever a test asks for is written, also what no tool would write.
#[derive(Debug, Clone, Default)]
pub struct Layer(Vec<u8>);

/// A member of an archive.
#[derive(Debug, Clone)]
pub struct Member<'a> {
    /// Its type.
    pub kind: EntryType,
    /// Its path, of at most 100 bytes.
    pub path: &'a [u8],
    /// Target of a link.
    pub link: &'a [u8],
    /// Content of a file.
    pub content: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: (u64, u64),
    /// Number of a device.
    pub device: (u32, u32),
}

impl Default for Member<'_> {
    fn default() -> Self {
        Self {
            kind: EntryType::Regular,
            path: b"",
            link: b"",
            content: b"",
            mode: 0o755,
            owner: (0, 0),
            device: (0, 0),
        }
    }
}

impl Layer {
    /// An archive without members.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a member.
    ///
    /// # Panics
    /// If its path is too long.
    #[must_use]
    pub fn with(mut self, member: &Member<'_>) -> Self {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..member.path.len()].copy_from_slice(member.path);
        header.as_old_mut().linkname[..member.link.len()].copy_from_slice(member.link);
        header.set_entry_type(member.kind);
        header.set_mode(member.mode);
        header.set_uid(member.owner.0);
        header.set_gid(member.owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(member.content.len() as u64);
        header.set_device_major(member.device.0).expect("a device number");
        header.set_device_minor(member.device.1).expect("a device number");
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(member.content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.with(&Member { path: path.as_bytes(), content, ..Member::default() })
    }

    /// Adds a directory.
    #[must_use]
    pub fn directory(self, path: &str) -> Self {
        self.with(&Member { kind: EntryType::Directory, path: path.as_bytes(), ..Member::default() })
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        let (path, link) = (path.as_bytes(), target.as_bytes());
        self.with(&Member { kind: EntryType::Symlink, path, link, ..Member::default() })
    }

    /// Adds a hard link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        let (path, link) = (path.as_bytes(), target.as_bytes());
        self.with(&Member { kind: EntryType::Link, path, link, ..Member::default() })
    }

    /// Adds pax records for the next member.
    #[must_use]
    pub fn records(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let body = 3 + key.len() + value.len();
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.with(&Member { kind: EntryType::XHeader, path: b"pax", content: &content, ..Member::default() })
    }

    /// The archive with its end.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [&self.0[..], &[0; 1024]].concat()
    }
}

/// A layer of busybox and its links, with users.
///
/// # Panics
/// If busybox is missing.
#[must_use]
pub fn busybox() -> Layer {
    let program = fs::read("/bin/busybox").expect("/bin/busybox (package busybox-static)");
    let mut layer = Layer::new().directory("bin/").directory("etc/").file("bin/busybox", &program);
    for tool in
        ["sh", "true", "cat", "echo", "ls", "sleep", "id", "touch", "stat", "pwd", "env", "rm", "kill"]
    {
        layer = layer.symlink(&format!("bin/{tool}"), "busybox");
    }
    layer
        .file("etc/passwd", b"root:x:0:0::/:/bin/sh\nweb:x:1234:1235::/:/bin/sh\n")
        .file("etc/group", b"root:x:0:\nweb:x:1235:\nextra:x:1300:web\n")
}

/// Compresses with gzip.
///
/// # Panics
/// Never: it is written to memory.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// An OCI layout in a directory.
#[derive(Debug)]
pub struct Layout {
    /// The directory.
    pub path: PathBuf,
}

impl Layout {
    /// Creates a layout of one image.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn create(path: &Path, name: &str, layers: &[Layer], config: Json) -> Self {
        let layout = Self { path: path.to_owned() };
        let blobs: Vec<_> = layers.iter().map(|layer| (layer.bytes(), layer.bytes())).collect();
        let manifest = layout.image(&blobs, config);
        layout.index(&[(manifest, json!({ "annotations": { "org.opencontainers.image.ref.name": name } }))]);
        layout
    }

    /// Adds an image of layers, each as an archive and as a blob. Returns the descriptor of its manifest.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn image(&self, layers: &[(Vec<u8>, Vec<u8>)], config: Json) -> Json {
        let diff_ids: Vec<_> = layers.iter().map(|(archive, _)| Digest::of(archive)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layer = |blob: &[u8]| self.blob("application/vnd.oci.image.layer.v1.tar", blob);
        let layers: Vec<Json> = layers.iter().map(|(_, blob)| layer(blob)).collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())
    }

    /// Writes a blob. Returns its descriptor.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Json {
        let digest = Digest::of(bytes);
        let directory = self.path.join("blobs/sha256");
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join(digest.hex()), bytes).expect("a file");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Writes the index: descriptors, and what is added to each.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn index(&self, manifests: &[(Json, Json)]) {
        let manifests: Vec<Json> = manifests
            .iter()
            .map(|(descriptor, more)| {
                let mut descriptor = descriptor.clone();
                let more = more.as_object().into_iter().flatten();
                more.for_each(|(key, value)| descriptor[key] = value.clone());
                descriptor
            })
            .collect();
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.path.join("index.json"), index.to_string()).expect("a file");
        fs::write(self.path.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("a file");
    }
}

/// `cofferdam image` with a store of its own.
#[derive(Debug)]
pub struct Images {
    /// The store.
    pub store: PathBuf,
}

impl Images {
    /// The command line with more arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(paths::program());
        command.arg("image").arg("--image-store").arg(&self.store).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs it. Returns its standard output.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("the program");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs it with standard input.
    ///
    /// # Panics
    /// If the program does not start.
    pub fn run_with(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program");
        // It may have refused it before its end.
        drop(child.stdin.take().expect("a pipe").write_all(input));
        child.wait_with_output().expect("a child")
    }

    /// Runs it. Returns its standard error.
    ///
    /// # Panics
    /// If it does not fail.
    pub fn error(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("the program");
        assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Imports a file or directory under a name.
    ///
    /// # Panics
    /// If it fails.
    pub fn import(&self, name: &str, source: &Path) -> String {
        self.run(&["import", "--name", name, source.to_str().expect("text")])
    }

    /// What `inspect --json` shows of an image.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn inspect(&self, image: &str) -> Json {
        serde_json::from_str(&self.run(&["inspect", "--json", image])).expect("JSON")
    }

    /// The directory of a layer of an image, counted from the lowest.
    ///
    /// # Panics
    /// If there is none.
    pub fn layer(&self, image: &str, number: usize) -> PathBuf {
        self.inspect(image)["layers"][number]["path"].as_str().expect("a layer").into()
    }

    /// The names in a directory of the store.
    pub fn entries(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.store.join(directory)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Waits until nobody uses the store: a process that was killed does for as long as the kernel closes its files.
    ///
    /// # Panics
    /// If there is no store.
    pub fn wait_unused(&self) {
        let lock = File::open(self.store.join("lock")).expect("a store");
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("its lock");
        // Not by closing it, as a process that was just created may still have it.
        rustix::fs::flock(&lock, FlockOperation::Unlock).expect("its lock");
    }

    /// What is in the store and belongs to no image; empty after an import that failed.
    pub fn leftovers(&self) -> Vec<String> {
        ["layers/sha256", "blobs/sha256", "staging", "references", "downloads"]
            .iter()
            .flat_map(|directory| self.entries(directory))
            .collect()
    }
}
