//! A logger that opens its files itself, so that only its reply tells the agent where they are.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use cofferdam_plugin_api::prelude::*;

struct DescriptorLogger(Config);

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Directory of the files: `<container>.out` and `<container>.err`.
    directory: PathBuf,
    /// File that is the input of every container.
    input: PathBuf,
}

#[cofferdam_plugin_api::logger]
impl Logger for DescriptorLogger {
    const NAME: &'static str = "test/logger";
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        Ok(Self(config))
    }

    fn prepare(&self, container: &NewContainer) -> Result<Streams> {
        let file = |end: &str| self.0.directory.join(format!("{}.{end}", container.id));
        let (stdout, stderr) = (file("out"), file("err"));
        let open = |path| OpenOptions::new().append(true).create(true).open(path);
        let output = |path| Ok::<_, Error>(Output::Descriptor(open(path)?.into()));
        Ok(Streams::new(output(&stdout)?, output(&stderr)?)
            .stdin(Output::Descriptor(File::open(&self.0.input)?.into()))
            .environment("LOGGER", Self::NAME)
            .files(stdout, stderr))
    }
}
