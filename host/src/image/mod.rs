//! Adds images to the store, in a process of its own: that of `cofferdam image import`.
//!
//! ```text
//! import   finds the images of a source, and verifies every size and digest
//!   ├──▶ layout   an OCI layout or an archive of `docker save`, as files by name
//!   ├──▶ pack     a directory, as the archive of a layer
//!   └──▶ layer    unpacks the archive of a layer
//! ```

mod import;
mod layer;
mod layout;
mod pack;

pub(crate) use import::{Format, Progress, Request, import};

/// Limits of an image, as who made it may want to fill the disk.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Bytes of the files of a layer.
    pub(crate) bytes: u64,
    /// Members of the archive of a layer.
    pub(crate) files: u64,
}
