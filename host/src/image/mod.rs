//! Adds images to the store, in a process of its own: that of `cofferdam image import` or `cofferdam image pull`, or one that
//! the agent starts for each pull.
//!
//! ```text
//! agent_pull   the process of a pull for the agent, and the agent's side of it ──▶ pull
//! import   finds the images of a source
//!   ├──▶ metered  reports how much of a source was read
//!   ├──▶ layout   an OCI layout or an archive of `docker save`, as files by name
//!   └──▶ pack     a directory, as the archive of a layer
//! pull     finds an image in a registry, and downloads its layers
//!    both ──▶ add      verifies every size and digest
//!              ├──▶ stop     tells the other layers when one fails
//!              └──▶ layer    unpacks the archive of a layer
//! ```

mod add;
mod agent_pull;
mod error;
mod import;
mod layer;
mod layout;
mod metered;
mod pack;
mod pull;
mod stop;

use std::time::Duration;

use cofferdam_core::provisioner::Digest;

pub(crate) use agent_pull::{PullProcess, main as pull_for_agent};
pub(crate) use import::{Format, LocalRequest, Request, import, import_local};
pub(crate) use pull::{PullRequest, pull};

/// What happens to the layers of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// What an image consists of, and the bytes of the layers that are not in the store, compressed.
    Found { layers: usize, bytes: u64 },
    /// A layer is in the store already.
    Present { layer: Digest },
    /// A layer was unpacked.
    Unpacked { layer: Digest, files: u64, bytes: u64 },
    /// Somebody else is pulling a layer, and is waited for.
    Waiting { layer: Digest },
    /// A layer is continued where an earlier connection or pull has ended.
    Resumed { layer: Digest, received: u64, size: u64 },
    /// A part of a layer was received.
    Received { layer: Digest, received: u64, size: u64 },
    /// A part of a layer was read from a file; of the whole source if its layers are not known yet. `read` is 0 at the
    /// beginning.
    Read { layer: Option<Digest>, read: u64, size: Option<u64> },
    /// A request has failed and is repeated.
    Retry { reason: String, wait: Duration },
    /// A registry has failed, and the next one is asked.
    NextRegistry { reason: String },
}

/// Limits of an image, as who made it may want to fill the disk.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Bytes of the files of a layer.
    pub(crate) bytes: u64,
    /// Members of the archive of a layer.
    pub(crate) files: u64,
}

/// Bytes of the headers of a member, with its padding, that count towards the limit of an archive.
const HEADERS: u64 = 4 << 10;

impl Limits {
    /// Bytes of the archive of a layer without compression. What is between and after the files need not be written anywhere,
    /// but it takes time.
    fn archive_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.files.saturating_mul(HEADERS))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, files: 4_000_000 }
    }
}
