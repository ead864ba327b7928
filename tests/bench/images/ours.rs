//! `cofferdam image`.

use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_linux::tree;
use cofferdam_tests::paths;

use super::{Place, Tool};
use crate::Outcome;
use crate::environment::Environment;

/// Row of the tables.
pub const NAME: &str = "cofferdam";

/// With a store of its own.
pub struct Cofferdam {
    place: Place,
}

impl Cofferdam {
    pub fn new(environment: &Environment) -> Outcome<Self> {
        Ok(Self { place: Place::create(environment, NAME)? })
    }

    /// Directory of its images.
    pub fn store(&self) -> PathBuf {
        self.place.path("store")
    }

    fn image(&self, command: &str) -> Command {
        let mut image = self.place.command(paths::program());
        image.args(["image", "--image-store"]).arg(self.store()).args([command, "--quiet"]);
        image
    }
}

impl Tool for Cofferdam {
    fn name(&self) -> &str {
        NAME
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn clear(&self) -> Outcome<()> {
        Ok(tree::remove(&self.store())?)
    }

    fn pull(&self, image: &str) -> Command {
        let mut pull = self.image("pull");
        pull.args(["--insecure", image]);
        pull
    }

    fn import(&self, archive: &Path) -> Command {
        let mut import = self.image("import");
        import.arg(archive);
        import
    }
}
