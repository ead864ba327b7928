//! The order of the containers.

/// What containers are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum SortBy {
    /// Use of CPUs
    Cpu,
    /// Memory
    Memory,
    /// Number of processes
    Processes,
    /// Bytes per second of block devices
    Io,
    /// Id
    Name,
}

impl SortBy {
    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Processes => "processes",
            Self::Io => "I/O",
            Self::Name => "name",
        }
    }
}
