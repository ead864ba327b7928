//! Flags of commands that unpack images.

use cofferdam_core::provisioner::document::Platform;
use cofferdam_plugin_model::units;

use crate::image::Limits;

/// Which image is chosen, and what it may contain.
#[derive(Debug, clap::Args)]
pub(super) struct ImageFlags {
    /// Platform to choose if there are several, as in `linux/arm64/v8` [default: that of this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = platform)]
    platform: Option<Platform>,
    /// Maximum size of a layer, and of an archive that is compressed or read from standard input [default: 64 GiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// Maximum number of files and directories in a layer [default: 4000000]
    #[arg(long, value_name = "COUNT")]
    max_files: Option<u64>,
}

impl ImageFlags {
    pub(super) fn platform(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::host)
    }

    pub(super) fn limits(&self) -> Limits {
        let Limits { bytes, files } = Limits::default();
        Limits { bytes: self.max_size.unwrap_or(bytes), files: self.max_files.unwrap_or(files) }
    }
}

fn platform(text: &str) -> Result<Platform, String> {
    let mut parts = text.split('/').map(str::to_owned);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
            Ok(Platform { architecture, os, variant })
        }
        _ => Err("expected a platform such as `linux/arm64`".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    units::size(text).ok_or_else(|| "expected a size such as `64 GiB`".to_owned())
}
