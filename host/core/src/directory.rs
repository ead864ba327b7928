//! Directories that users of containers pass through on the way to theirs.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Everybody may search it; only its owner may list it.
pub(crate) const SEARCHABLE: u32 = 0o711;

/// Creates a directory and those above it that are missing, each with mode 0711, whatever the umask of the process is.
/// Existing ones stay as they are.
///
/// # Errors
/// Of a system call; [`io::ErrorKind::AlreadyExists`] if there is something else.
pub(crate) fn create_searchable(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.is_dir()).collect();
    for path in missing.into_iter().rev().filter(|path| !path.as_os_str().is_empty()) {
        match DirBuilder::new().mode(SEARCHABLE).create(path) {
            Ok(()) => fs::set_permissions(path, Permissions::from_mode(SEARCHABLE))?,
            // Somebody else has created it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn missing_directories_are_created_and_others_stay_as_they_are() {
        let base = tempfile::tempdir().unwrap();
        let mode = |path: &str| fs::metadata(base.path().join(path)).unwrap().mode() & 0o7777;
        fs::create_dir(base.path().join("a")).unwrap();
        fs::set_permissions(base.path().join("a"), Permissions::from_mode(0o750)).unwrap();
        for _ in 0..2 {
            create_searchable(&base.path().join("a/b/c")).unwrap();
            assert_eq!((mode("a"), mode("a/b"), mode("a/b/c")), (0o750, SEARCHABLE, SEARCHABLE));
        }
        symlink("a/b", base.path().join("link")).unwrap();
        create_searchable(&base.path().join("link/d")).unwrap();
        assert_eq!(mode("a/b/d"), SEARCHABLE);
    }

    #[test]
    fn something_else_is_not_replaced() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("file"), "").unwrap();
        let error = create_searchable(&base.path().join("file")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(create_searchable(&base.path().join("file/below")).is_err());
    }
}
