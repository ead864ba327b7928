//! `cofferdam image import`.

use std::path::PathBuf;

use super::familiar;
use super::limits::ImageFlags;
use super::ls::describe;
use crate::cli::failure::Failure;
use crate::cli::progress::Reporter;
use crate::cli::{Outcome, output};
use crate::image::{self, Format, Request};
use cofferdam_core::provisioner::{ImageName, Store};

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
    #[command(flatten)]
    flags: ImageFlags,
    /// Print nothing but the ids of the images
    #[arg(long, short)]
    quiet: bool,
    /// Print JSON: an array of the images as `inspect` prints them
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

pub(super) fn run(arguments: Arguments, store: &Store) -> Outcome {
    let Arguments { source, name, format, flags, quiet, json } = arguments;
    super::require_root()?;
    let request = Request {
        source: (source.as_os_str() != "-").then_some(source),
        found: None,
        format,
        name,
        platform: flags.platform(),
        limits: flags.limits(),
    };
    let reporter = Reporter::new(quiet);
    let imported = image::import(store, &request, &|progress| reporter.report(&progress));
    reporter.finish();
    let imported = imported.map_err(Failure::of)?;
    if json {
        output::json(&imported.iter().map(|image| describe(image, store)).collect::<Vec<_>>())?;
        return Ok(0);
    }
    for image in imported {
        let names: Vec<String> = image.names.iter().map(|name| familiar(name)).collect();
        match quiet {
            true => output::line(&image.id.to_string())?,
            false => output::line(&format!("{} {}", image.id, names.join(" ")))?,
        }
    }
    Ok(0)
}
