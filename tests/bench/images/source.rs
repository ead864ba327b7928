//! The image: many layers, each with a large file and small ones, of which the next layer removes one.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use cofferdam_core::provisioner::Digest;
use cofferdam_tests::images::{Layer, Layout, busybox, gzip};
use cofferdam_tests::registry::Registry;
use serde_json::{Value as Json, json};

use crate::Outcome;

/// Small files of a layer, and their size in bytes.
const SMALL_FILES: usize = 200;
const SMALL: usize = 2 << 10;

/// Layers that are made at a time.
const THREADS: usize = 2;

/// The repository, and its name in archives.
const REPOSITORY: &str = "bench";
const NAME: &str = "docker.io/library/bench:1";

/// How large an image is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Without the lowest, which is that of busybox.
    pub layers: usize,
    /// Of all large files.
    pub mebibytes: usize,
}

impl Shape {
    /// A layer, counted from the lowest.
    fn layer(self, number: usize) -> Layer {
        let Some(below) = number.checked_sub(1) else { return busybox() };
        let content = content((self.mebibytes << 20) / self.layers, number as u64);
        let mut layer = Layer::new().directory("layers").directory(&format!("layers/{number}"));
        layer = layer.file(&format!("layers/{number}/large"), &content);
        for (file, content) in content.chunks(SMALL).cycle().take(SMALL_FILES).enumerate() {
            layer = layer.file(&format!("layers/{number}/{file}"), content);
        }
        match below {
            0 => layer,
            below => layer.file(&format!("layers/{below}/.wh.0"), b""),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} layers, {} MiB, {} files", self.layers + 1, self.mebibytes, self.layers * SMALL_FILES)
    }
}

/// Bytes of which gzip leaves about a third, as of those of most images: some are new, more are found a little before.
fn content(length: usize, seed: u64) -> Vec<u8> {
    const NEW: usize = 16;
    const KNOWN: usize = 48;
    const WINDOW: usize = 16 << 10;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes: Vec<u8> = (0..KNOWN).map(|_| random.u8(..)).collect();
    while bytes.len() < length {
        let mut new = [0; NEW];
        random.fill(&mut new);
        bytes.extend_from_slice(&new);
        let from = random.usize(bytes.len().saturating_sub(WINDOW)..=bytes.len() - KNOWN);
        bytes.extend_from_within(from..from + KNOWN);
    }
    bytes.truncate(length);
    bytes
}

/// Makes an image, in an archive that is both an OCI layout and one of `docker save`, as newer versions of Docker write them.
/// If there is a registry, pushes it as well and returns its name there.
pub fn create(archive: &Path, shape: Shape, registry: Option<&Registry>) -> Outcome<Option<String>> {
    let directory = archive.with_extension("layout");
    fs::create_dir_all(&directory)?;
    let image = Image { layout: Layout { path: directory.clone() }, registry };
    image.write(shape)?;
    let mut pack = Command::new("tar");
    pack.arg("-C").arg(&directory).arg("-cf").arg(archive).args(["--remove-files", "."]);
    let packed = pack.status()?;
    if !packed.success() {
        return Err(format!("tar: {packed}").into());
    }
    Ok(registry.map(|registry| registry.name(&format!("{REPOSITORY}:1"))))
}

/// Where an image is written to.
struct Image<'a> {
    layout: Layout,
    registry: Option<&'a Registry>,
}

impl Image<'_> {
    /// Adds a blob. Returns its descriptor.
    fn blob(&self, kind: &str, bytes: &[u8]) -> Json {
        if let Some(registry) = self.registry {
            registry.blob(REPOSITORY, kind, bytes);
        }
        self.layout.blob(kind, bytes)
    }

    fn write(&self, shape: Shape) -> Outcome<()> {
        const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        let layers = self.layers(shape)?;
        let diff_ids: Vec<&Digest> = layers.iter().map(|(diff_id, _)| diff_id).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/true"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let layers: Vec<&Json> = layers.iter().map(|(_, descriptor)| descriptor).collect();
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        if let Some(registry) = self.registry {
            registry.manifest(REPOSITORY, "1", MANIFEST, &manifest);
        }
        let descriptor = self.layout.blob(MANIFEST, manifest.to_string().as_bytes());
        let named = json!({ "annotations": {
            "org.opencontainers.image.ref.name": "1", "io.containerd.image.name": NAME,
        } });
        self.layout.index(&[(descriptor, named)]);
        let saved = json!([{
            "Config": file(&config), "RepoTags": [NAME],
            "Layers": layers.iter().map(|layer| file(layer)).collect::<Vec<_>>(),
        }]);
        Ok(fs::write(self.layout.path.join("manifest.json"), saved.to_string())?)
    }

    /// Adds all layers, of which only as many as there are threads are in memory. Returns the digest of the archive and the
    /// descriptor of each.
    fn layers(&self, shape: Shape) -> Outcome<Vec<(Digest, Json)>> {
        const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
        let add = |number: usize| {
            let archive = shape.layer(number).bytes();
            (number, Digest::of(&archive), self.blob(LAYER, &gzip(&archive)))
        };
        let mut all = Vec::new();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|first| scope.spawn(move || (first..=shape.layers).step_by(THREADS).map(add).collect()))
                .collect();
            for thread in threads {
                let added: Vec<_> = thread.join().map_err(|_| "a thread panicked")?;
                all.extend(added);
            }
            Outcome::Ok(())
        })?;
        all.sort_by_key(|(number, _, _)| *number);
        Ok(all.into_iter().map(|(_, diff_id, descriptor)| (diff_id, descriptor)).collect())
    }
}

/// The file of a blob in a layout.
fn file(descriptor: &Json) -> String {
    format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
}
