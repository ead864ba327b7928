//! `cofferdam image import`.

use std::io::Write;
use std::path::PathBuf;

use super::familiar;
use crate::cli::failure::Failure;
use crate::cli::{Outcome, format, output};
use crate::image::{self, Format, Limits, Progress, Request};
use cofferdam_core::provisioner::document::Platform;
use cofferdam_core::provisioner::{ImageName, Store};
use cofferdam_plugin_model::units;

/// Imports images from a file or a directory
///
/// Sources are an OCI image layout (a directory, or an archive of one), an archive of `docker save`, and a root file system (a
/// directory, or an archive of one). Archives and layers may be compressed with gzip or zstd. Every size and digest is
/// verified, and nothing of an image that is refused stays in the store.
///
/// Examples:
///   docker save busybox | cofferdam image import -
///   cofferdam image import --name team/web:1 web.oci.tar
///   cofferdam image import --name debian:12 /srv/debian
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The file or directory; `-` for standard input
    #[arg(value_name = "PATH")]
    source: PathBuf,
    /// Name of the image, instead of the one that it has; required if it has none
    #[arg(long, value_name = "NAME", value_parser = str::parse::<ImageName>)]
    name: Option<ImageName>,
    /// Format of the source
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Platform to choose if there are several, as in `linux/arm64/v8` [default: that of this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = platform)]
    platform: Option<Platform>,
    /// Maximum size of a layer, and of an archive that is compressed or read from standard input
    #[arg(long, value_name = "SIZE", default_value = "64 GiB", value_parser = size)]
    max_size: u64,
    /// Maximum number of files and directories in a layer
    #[arg(long, value_name = "COUNT", default_value_t = 4_000_000)]
    max_files: u64,
    /// Print nothing but the ids of the images
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(arguments: Arguments, store: &Store) -> Outcome {
    let Arguments { source, name, format, platform, max_size, max_files, quiet } = arguments;
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::message(
            "only root can unpack images, as their files belong to several users".to_owned(),
        ));
    }
    let request = Request {
        source: (source.as_os_str() != "-").then_some(source),
        format,
        name,
        platform: platform.unwrap_or_else(Platform::host),
        limits: Limits { bytes: max_size, files: max_files },
    };
    let report = |progress: Progress| {
        if !quiet {
            // What is reported is optional.
            drop(writeln!(std::io::stderr(), "{}", describe(&progress)));
        }
    };
    for image in image::import(store, &request, &report).map_err(Failure::of)? {
        let names: Vec<String> = image.names.iter().map(|name| familiar(name)).collect();
        match quiet {
            true => output::line(&image.id.to_string())?,
            false => output::line(&format!("{} {}", image.id, names.join(" ")))?,
        }
    }
    Ok(0)
}

fn describe(progress: &Progress) -> String {
    match progress {
        Progress::Present { layer } => format!("layer {}: present", layer.short()),
        Progress::Unpacked { layer, files, bytes } => {
            format!("layer {}: {} files, {}", layer.short(), files, format::bytes(*bytes))
        }
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
