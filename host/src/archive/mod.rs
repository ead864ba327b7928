//! Formats of archives that are read from hostile sources: compression, and what the tar library leaves to its users.

mod gunzip;
mod members;
mod sparse;
mod stream;

pub(crate) use gunzip::Gunzip;
pub(crate) use members::{Member, Members};
pub(crate) use sparse::{Segment, Sparse};
pub(crate) use stream::{Unzstd, decompress};
