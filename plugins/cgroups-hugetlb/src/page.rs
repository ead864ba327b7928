//! Sizes of huge pages.

use std::fmt;
use std::fs;
use std::io::ErrorKind;

use cofferdam_plugin_api::prelude::*;

/// A size of huge pages, which is displayed as in names of interface files: `2MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageSize {
    kibibytes: u64,
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kibibytes {
            size if size >= 1 << 20 => write!(f, "{}GB", size >> 20),
            size if size >= 1 << 10 => write!(f, "{}MB", size >> 10),
            size => write!(f, "{size}KB"),
        }
    }
}

/// Those of this host; none if the kernel has no huge pages.
pub fn sizes() -> Result<Vec<PageSize>> {
    const DIRECTORY: &str = "/sys/kernel/mm/hugepages";
    let entries = match fs::read_dir(DIRECTORY) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(format!("cannot read `{DIRECTORY}`"))?,
    };
    let mut sizes = Vec::new();
    for entry in entries {
        let name = entry.context(format!("cannot read `{DIRECTORY}`"))?.file_name();
        sizes.extend(name.to_str().and_then(parse));
    }
    sizes.sort();
    Ok(sizes)
}

/// From `hugepages-2048kB`.
fn parse(name: &str) -> Option<PageSize> {
    let kibibytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(PageSize { kibibytes })
}

/// The one of that name.
pub fn find(sizes: &[PageSize], name: &str) -> Result<PageSize> {
    sizes.iter().copied().find(|size| size.to_string() == name).ok_or_else(|| {
        let known: Vec<String> = sizes.iter().map(ToString::to_string).collect();
        Error::invalid(format!("this host has no huge pages of `{name}`; it has: {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_named_as_the_kernel_does() {
        for (directory, name) in
            [("hugepages-64kB", "64KB"), ("hugepages-2048kB", "2MB"), ("hugepages-1048576kB", "1GB")]
        {
            let size = parse(directory).unwrap();
            assert_eq!(size.to_string(), name);
            assert_eq!(find(&[size], name).unwrap(), size);
        }
        assert_eq!(parse("hugepages-none"), None);
        assert!(find(&sizes().unwrap(), "3MB").unwrap_err().to_string().contains("no huge pages of `3MB`"));
    }
}
