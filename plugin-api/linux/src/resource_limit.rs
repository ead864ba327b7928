//! Resource limits of processes, see setrlimit(2).

use std::collections::BTreeMap;

use rustix::process::{Resource, getrlimit};

/// All resource limits, by name without `RLIMIT_`.
const ALL: [(&str, Resource); 16] = [
    ("AS", Resource::As),
    ("CORE", Resource::Core),
    ("CPU", Resource::Cpu),
    ("DATA", Resource::Data),
    ("FSIZE", Resource::Fsize),
    ("LOCKS", Resource::Locks),
    ("MEMLOCK", Resource::Memlock),
    ("MSGQUEUE", Resource::Msgqueue),
    ("NICE", Resource::Nice),
    ("NOFILE", Resource::Nofile),
    ("NPROC", Resource::Nproc),
    ("RSS", Resource::Rss),
    ("RTPRIO", Resource::Rtprio),
    ("RTTIME", Resource::Rttime),
    ("SIGPENDING", Resource::Sigpending),
    ("STACK", Resource::Stack),
];

/// The names of all resource limits, without `RLIMIT_`, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|(name, _)| *name)
}

/// The hard limits of this process, by name. Those that are unlimited are missing.
#[must_use]
pub fn own_hard_limits() -> BTreeMap<String, u64> {
    let limit =
        |(name, resource): &(&str, Resource)| Some(((*name).to_owned(), getrlimit(*resource).maximum?));
    ALL.iter().filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [(&str, &str); 16] = [
        ("AS", "Max address space"),
        ("CORE", "Max core file size"),
        ("CPU", "Max cpu time"),
        ("DATA", "Max data size"),
        ("FSIZE", "Max file size"),
        ("LOCKS", "Max file locks"),
        ("MEMLOCK", "Max locked memory"),
        ("MSGQUEUE", "Max msgqueue size"),
        ("NICE", "Max nice priority"),
        ("NOFILE", "Max open files"),
        ("NPROC", "Max processes"),
        ("RSS", "Max resident set"),
        ("RTPRIO", "Max realtime priority"),
        ("RTTIME", "Max realtime timeout"),
        ("SIGPENDING", "Max pending signals"),
        ("STACK", "Max stack size"),
    ];

    #[test]
    fn limits_are_those_of_the_file_of_this_process() {
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        let limits = own_hard_limits();
        for (name, line) in LINES {
            let values = text.lines().find_map(|text| text.strip_prefix(line)).unwrap();
            let hard = values.split_whitespace().nth(1).unwrap();
            assert_eq!(limits.get(name).map_or("unlimited".to_owned(), u64::to_string), hard, "{name}");
            assert!(names().any(|known| known == name), "{name}");
        }
        assert_eq!(text.lines().count() - 1, names().count());
    }
}
