//! Predefined chains, for configurations without isolators of their own.

use cofferdam_core::config::LauncherKind;

/// A predefined chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Isolation {
    /// `docker` with the launcher `linux`, `posix` with the launcher `posix`
    Auto,
    /// What Docker gives to its containers: namespaces, limits, few capabilities, a filter for system calls
    Docker,
    /// What Mesos isolates by itself: mounts, processes, CPU, memory; root keeps its privileges
    Mesos,
    /// Plain processes, for users who are not root
    Posix,
    /// No isolators and no logger
    None,
}

impl Isolation {
    /// What `Auto` stands for.
    #[must_use]
    pub fn with(self, launcher: LauncherKind) -> Self {
        match (self, launcher) {
            (Self::Auto, LauncherKind::Linux) => Self::Docker,
            (Self::Auto, LauncherKind::Posix) => Self::Posix,
            _ => self,
        }
    }

    /// Its name in configuration files and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Docker => "docker",
            Self::Mesos => "mesos",
            Self::Posix => "posix",
            Self::None => "none",
        }
    }

    /// Its isolators, and its logger after them, as the end of a configuration file. Empty for `None`, and for `Auto`.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Docker => include_str!("isolation/docker.toml"),
            Self::Mesos => include_str!("isolation/mesos.toml"),
            Self::Posix => include_str!("isolation/posix.toml"),
            Self::Auto | Self::None => "",
        }
    }

    /// [`Isolation::text`], divided into the isolators and the logger.
    pub(super) fn parts(self) -> (&'static str, &'static str) {
        let text = self.text();
        text.split_at(text.find("[logger]").unwrap_or(text.len()))
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for &isolation in Isolation::value_variants() {
            assert_eq!(isolation.to_possible_value().unwrap().get_name(), isolation.name());
        }
    }

    #[test]
    fn each_has_a_logger_after_its_isolators() {
        for isolation in [Isolation::Docker, Isolation::Mesos, Isolation::Posix] {
            let (isolators, logger) = isolation.parts();
            assert!(isolators.contains("[[isolator]]") && !logger.contains("[[isolator]]"), "{isolation:?}");
            assert!(logger.starts_with("[logger]"), "{isolation:?}");
        }
    }
}
