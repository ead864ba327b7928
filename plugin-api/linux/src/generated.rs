//! Files whose content the kernel generates when they are read.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// A page: what the kernel generates at once.
const LENGTH: usize = 4096;

/// The whole content. With fewer system calls than `std::fs::read`, which asks for the size, that is always 0, and begins
/// with a small buffer.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_file(File::open(path)?)
}

/// As [`read`], of an open file.
pub fn read_file(mut file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(LENGTH);
    let mut buffer = [0; LENGTH];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(content),
            Ok(length) => content.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// As [`read`], for a file that the kernel generates as a whole, such as `/proc/PID/stat` and the statistics of a cgroup, and
/// not line by line: what is shorter than the buffer is all, and there is no need to ask for more.
pub fn read_whole(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_whole_file(File::open(path)?)
}

/// As [`read_whole`], of an open file.
pub fn read_whole_file(mut file: File) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(LENGTH);
    let mut buffer = [0; LENGTH];
    loop {
        match file.read(&mut buffer) {
            Ok(length) => {
                content.extend_from_slice(&buffer[..length]);
                if length < LENGTH {
                    return Ok(content);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// As [`read`], for text.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_is_read_however_long_it_is() {
        assert_eq!(
            super::read_to_string("/proc/self/comm").unwrap(),
            std::fs::read_to_string("/proc/self/comm").unwrap()
        );
        let long = tempfile::NamedTempFile::new().unwrap();
        let content = vec![b'x'; 3 * super::LENGTH + 1];
        std::fs::write(long.path(), &content).unwrap();
        assert_eq!(super::read(long.path()).unwrap(), content);
        assert!(super::read("/proc/self/none").is_err());
        assert_eq!(super::read_whole(long.path()).unwrap(), content);
        assert_eq!(super::read_whole("/proc/self/comm").unwrap(), std::fs::read("/proc/self/comm").unwrap());
        assert!(super::read_whole("/proc/self/none").is_err());
    }
}
