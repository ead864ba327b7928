//! Images: imports from all sources, pulls by commands and by agents, hostile archives and registries, the store, containers of
//! images, volumes that are images, and images in files and directories.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

pub(crate) mod agent;
mod containers;
mod debian;
mod hostile;
mod hostile_config;
mod hostile_registry;
mod local;
mod prune;
pub(crate) mod registry;
mod runtime;
mod secure_registry;
mod sources;
mod store;
mod volumes;
mod zstd;

use std::path::PathBuf;

use cofferdam_core::model::{Command, Request};
use cofferdam_tests::images::{Images, Layer, Layout};
use cofferdam_tests::world::{World, id};
use serde_json::Value as Json;
use tempfile::TempDir;

/// A store of images in a directory of a test.
struct Fixture {
    directory: TempDir,
    images: Images,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("cofferdam-test-").tempdir().unwrap();
        let images = Images { store: directory.path().join("store") };
        Self { directory, images }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Imports an image.
    fn image(&self, name: &str, layers: &[Layer], config: Json) {
        let path = self.path(&format!("layout-{}", name.replace([':', '/'], "-")));
        Layout::create(&path, name, layers, config);
        self.images.run(&["import", path.to_str().unwrap()]);
    }

    /// A world whose agents use this store.
    fn world(&self) -> World {
        let mut world = World::shipped();
        world.config.image_store = Some(self.images.store.clone());
        world
    }
}

/// A container of an image that runs a shell command.
fn request(name: &str, image: &str, line: &str) -> Request {
    let mut request = Request::shell(id(name), line);
    request.image = Some(image.to_owned());
    request
}

/// A container of an image with the image's command.
fn own(name: &str, image: &str) -> Request {
    let mut request = Request::new(id(name), Command { shell: false, ..Command::default() });
    request.image = Some(image.to_owned());
    request
}
