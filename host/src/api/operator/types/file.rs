//! One entry of a directory of the agent's file service.

use super::wire::TimeInfo;

message! {
    /// One file or directory, as `stat` sees it.
    pub struct FileInfo {
        /// Its virtual path: what READ_FILE and LIST_FILES take.
        required path: String,
        /// Its hard links.
        optional nlink: i32,
        /// Its size in bytes.
        optional size: u64,
        /// When it was last written.
        optional mtime: TimeInfo,
        /// Its type and permissions, as in `st_mode`.
        optional mode: u32,
        /// The name of its owner, or the number when there is no name.
        optional uid: String,
        /// The name of its group, or the number when there is no name.
        optional gid: String,
    }
}
