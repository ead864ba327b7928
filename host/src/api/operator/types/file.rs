//! Files of the file service.

use super::wire::TimeInfo;

message! {
    /// A file or directory, as in stat(2).
    pub struct FileInfo {
        /// Virtual path, as in READ_FILE and LIST_FILES.
        required path: String,
        /// Number of hard links.
        optional nlink: i32,
        /// Size in bytes.
        optional size: u64,
        /// Time of the last modification.
        optional mtime: TimeInfo,
        /// Type and permissions, as in `st_mode`.
        optional mode: u32,
        /// Name of its owner; the number if it has no name.
        optional uid: String,
        /// Name of its group; the number if it has no name.
        optional gid: String,
    }
}
