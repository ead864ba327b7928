//! Profiles in Docker's JSON format.

use std::collections::BTreeSet;
use std::fmt;

use cofferdam_plugin_api::capability::{self, NAMES};
use cofferdam_plugin_api::prelude::*;
use serde::de::{self, Deserializer, Visitor};

use crate::bpf::{Action, Comparison, Condition};
use crate::numbers::{self, Architecture};
use crate::profile::{Filter, Profile, Rule};

/// What a rule with an error returns if it does not say it.
const EPERM: u16 = 1;
/// Limit of the kernel for the number of an error.
const MAX_ERRNO: u16 = 4095;

/// Reads a profile. Errors name the line, the key and the value.
pub fn parse(text: &[u8]) -> Result<Profile> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let document: Document = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        // `.` is the document itself.
        let at = if path == "." { String::new() } else { format!("`{path}`: ") };
        Error::new(format!("{at}{}", error.inner()))
    })?;
    deserializer.end()?;
    document.into_profile()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    default_action: ActionName,
    #[serde(default)]
    default_errno_ret: Option<Errno>,
    #[serde(default)]
    architectures: Option<Vec<ArchitectureName>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<Flag>>,
    #[serde(default)]
    syscalls: Option<Vec<Syscalls>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    listener_metadata: Option<String>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: ArchitectureName,
    #[serde(default)]
    sub_architectures: Option<Vec<ArchitectureName>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Syscalls {
    #[serde(default)]
    names: Option<Vec<SyscallName>>,
    /// The older form, of one name.
    #[serde(default)]
    name: Option<SyscallName>,
    action: ActionName,
    #[serde(default)]
    errno_ret: Option<Errno>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Conditions>,
    #[serde(default)]
    excludes: Option<Conditions>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: Index,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Conditions {
    #[serde(default)]
    caps: Option<Vec<CapabilityName>>,
    #[serde(default)]
    arches: Option<Vec<ArchName>>,
    #[serde(default)]
    min_kernel: Option<Kernel>,
}

#[derive(Clone, Copy, Deserialize)]
enum ActionName {
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

impl ActionName {
    fn action(self, errno: Option<Errno>) -> Action {
        let errno = errno.map_or(EPERM, |Errno(errno)| errno);
        match self {
            Self::KillThread => Action::KILL_THREAD,
            Self::KillProcess => Action::KILL_PROCESS,
            Self::Trap => Action::TRAP,
            Self::Errno => Action::errno(errno),
            Self::Trace => Action::trace(errno),
            Self::Allow => Action::ALLOW,
            Self::Log => Action::LOG,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    Masked,
}

/// A string that is checked where it is read, so that the error has its position.
macro_rules! checked {
    ($($name:ident($type:ty), $what:literal, $parse:expr;)+) => {$(
        struct $name($type);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        let parse: fn(&str) -> Option<$type> = $parse;
                        let invalid = || E::custom(format!("`{text}` is not {}", $what));
                        parse(text).map($name).ok_or_else(invalid)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }
    )+};
}

checked! {
    SyscallName(String), "the name of a system call that this version knows", |text| {
        numbers::is_known(text).then(|| text.to_owned())
    };
    CapabilityName(String), "a capability such as `CAP_SYS_ADMIN`", |text| {
        NAMES.get(capability::number(text)?).map(|&name| name.to_owned())
    };
    ArchitectureName(Option<Architecture>), "an architecture such as `SCMP_ARCH_X86_64`", architecture;
    ArchName(bool), "an architecture such as `amd64`", |text| is_this(text);
    Flag(String), "a flag: `SECCOMP_FILTER_FLAG_TSYNC`, `…_LOG` or `…_SPEC_ALLOW`", |text| {
        let flag = text.strip_prefix("SECCOMP_FILTER_FLAG_")?;
        matches!(flag, "TSYNC" | "LOG" | "SPEC_ALLOW").then(|| flag.to_owned())
    };
    Kernel((u32, u32)), "a version of the kernel such as `4.8`", kernel_version;
}

/// Major and minor version at the beginning of a text: `6.1` of `6.1.0-13-amd64`.
pub fn kernel_version(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..end].parse().ok()?))
}

/// `None` is an architecture that has no meaning here.
#[expect(clippy::option_option, reason = "unknown, without a meaning here, and known")]
fn architecture(text: &str) -> Option<Option<Architecture>> {
    const OTHERS: [&str; 22] = [
        "AARCH64",
        "ARM",
        "LOONGARCH64",
        "M68K",
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PARISC",
        "PARISC64",
        "PPC",
        "PPC64",
        "PPC64LE",
        "RISCV64",
        "S390",
        "S390X",
        "SH",
        "SHEB",
        "SPARC",
        "X32",
    ];
    match text.strip_prefix("SCMP_ARCH_")? {
        "X86_64" => Some(Some(Architecture::X86_64)),
        "X86" => Some(Some(Architecture::X86)),
        other => OTHERS.contains(&other).then_some(None),
    }
}

/// Whether a name is that of this architecture; `None` if it is unknown.
fn is_this(text: &str) -> Option<bool> {
    const OTHERS: [&str; 17] = [
        "386",
        "arm",
        "arm64",
        "loong64",
        "mips",
        "mips64",
        "mips64le",
        "mips64n32",
        "mipsel64",
        "mipsel64n32",
        "ppc",
        "ppc64",
        "ppc64le",
        "riscv64",
        "s390",
        "s390x",
        "x32",
    ];
    match text {
        "amd64" | "x86_64" => Some(true),
        "x86" | "mipsle" | "mipsel" | "aarch64" => Some(false),
        other => OTHERS.contains(&other).then_some(false),
    }
}

/// The number of an error.
#[derive(Clone, Copy)]
struct Errno(u16);

impl<'de> Deserialize<'de> for Errno {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            number if number <= u64::from(MAX_ERRNO) => Ok(Self(number as u16)),
            number => Err(de::Error::custom(format!(
                "{number} is not the number of an error: expected at most {MAX_ERRNO}"
            ))),
        }
    }
}

/// The index of an argument.
#[derive(Clone, Copy)]
struct Index(u8);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            index @ 0..=5 => Ok(Self(index as u8)),
            index => {
                Err(de::Error::custom(format!("{index} is not the index of an argument: expected 0 to 5")))
            }
        }
    }
}

impl Document {
    fn into_profile(self) -> Result<Profile> {
        let architectures = self.architectures()?;
        if self.listener_path.is_some() || self.listener_metadata.is_some() {
            return Err(Error::new(
                "`listenerPath`: notifications are not supported; remove it, and use another action than SCMP_ACT_NOTIFY",
            ));
        }
        let mut rules = Vec::new();
        for (index, syscalls) in self.syscalls.into_iter().flatten().enumerate() {
            rules.push(syscalls.into_rule(format!("syscalls[{index}]"))?);
        }
        Ok(Profile {
            default: self.default_action.action(self.default_errno_ret),
            architectures,
            rules,
            flags: self.flags.into_iter().flatten().map(|Flag(flag)| flag).collect(),
        })
    }

    /// Those of this host's entry; without any, this host's only.
    fn architectures(&self) -> Result<BTreeSet<Architecture>> {
        let known = |names: &[ArchitectureName]| -> BTreeSet<Architecture> {
            names.iter().filter_map(|ArchitectureName(architecture)| *architecture).collect()
        };
        let native = BTreeSet::from([Architecture::X86_64]);
        match (&self.architectures, &self.arch_map) {
            (Some(list), Some(map)) if !list.is_empty() && !map.is_empty() => {
                Err(Error::new("`architectures` and `archMap` are both set; use one of them"))
            }
            (Some(list), _) if !list.is_empty() => Ok(native.union(&known(list)).copied().collect()),
            (_, Some(map)) => {
                let own = map.iter().find(|entry| entry.architecture.0 == Some(Architecture::X86_64));
                let others = own.and_then(|entry| entry.sub_architectures.as_deref()).unwrap_or_default();
                Ok(native.union(&known(others)).copied().collect())
            }
            _ => Ok(native),
        }
    }
}

impl Syscalls {
    fn into_rule(self, place: String) -> Result<Rule> {
        let names: Vec<String> = match (self.names, self.name) {
            (Some(_), Some(_)) => {
                return Err(Error::new(format!("`{place}`: `names` and `name` are both set; use `names`")));
            }
            (names, name) => names.into_iter().flatten().chain(name).map(|SyscallName(name)| name).collect(),
        };
        if names.is_empty() {
            return Err(Error::new(format!(
                "`{place}.names` is empty; name a system call, or remove the rule"
            )));
        }
        if self.errno_ret.is_some() && !matches!(self.action, ActionName::Errno | ActionName::Trace) {
            return Err(Error::new(format!(
                "`{place}.errnoRet` needs the action SCMP_ACT_ERRNO or SCMP_ACT_TRACE"
            )));
        }
        let mut conditions: Vec<Condition> = Vec::new();
        for (index, argument) in self.args.into_iter().flatten().enumerate() {
            let condition = argument.condition(&format!("{place}.args[{index}]"))?;
            if conditions.iter().any(|other| other.argument == condition.argument) {
                // Runtimes disagree on whether one or all of them have to hold.
                return Err(Error::new(format!(
                    "`{place}.args[{index}]` is a second condition on argument {}; write a rule for each condition",
                    condition.argument
                )));
            }
            conditions.push(condition);
        }
        Ok(Rule {
            place,
            names,
            action: self.action.action(self.errno_ret),
            conditions,
            includes: self.includes.unwrap_or_default().filter(),
            excludes: self.excludes.unwrap_or_default().filter(),
        })
    }
}

impl Argument {
    fn condition(self, place: &str) -> Result<Condition> {
        let comparison = match self.op {
            Operator::NotEqual => Comparison::NotEqual,
            Operator::Less => Comparison::Less,
            Operator::LessOrEqual => Comparison::LessOrEqual,
            Operator::Equal => Comparison::Equal,
            Operator::GreaterOrEqual => Comparison::GreaterOrEqual,
            Operator::Greater => Comparison::Greater,
            Operator::Masked if self.value_two & !self.value != 0 => {
                return Err(Error::new(format!(
                    "`{place}` never holds: `valueTwo` has bits that the mask in `value` has not"
                )));
            }
            Operator::Masked => {
                let comparison = Comparison::Masked(self.value);
                return Ok(Condition { argument: self.index.0, comparison, value: self.value_two });
            }
        };
        Ok(Condition { argument: self.index.0, comparison, value: self.value })
    }
}

impl Conditions {
    fn filter(self) -> Filter {
        Filter {
            capabilities: self.caps.into_iter().flatten().map(|CapabilityName(name)| name).collect(),
            architecture: self
                .arches
                .filter(|arches| !arches.is_empty())
                .map(|arches| arches.iter().any(|ArchName(is_this)| *is_this)),
            min_kernel: self.min_kernel.map(|Kernel(version)| version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [
        { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"] },
        { "architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"] }
    ],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "syscalls": [
        { "names": ["read", "s390_runtime_instr"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {} },
        {
            "name": "clone", "action": "SCMP_ACT_TRACE", "errnoRet": 7,
            "args": [{ "index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }],
            "includes": { "arches": ["arm64", "amd64"], "minKernel": "4.8" },
            "excludes": { "caps": ["CAP_SYS_ADMIN"] }
        }
    ]
}"#;

    #[test]
    fn a_profile_is_read() {
        let profile = parse(PROFILE.as_bytes()).unwrap();
        assert_eq!(profile.default, Action::errno(38));
        assert_eq!(profile.architectures, [Architecture::X86_64, Architecture::X86].into());
        assert_eq!(profile.flags, ["LOG".to_owned()].into());
        let [read, clone] = &profile.rules[..] else { panic!("{:?}", profile.rules) };
        assert_eq!(read.names, ["read", "s390_runtime_instr"]);
        assert_eq!((&read.includes, &read.excludes), (&Filter::default(), &Filter::default()));
        assert_eq!(clone.action, Action::trace(7));
        let masked = Comparison::Masked(0x7e02_0000);
        assert_eq!(clone.conditions, [Condition { argument: 0, comparison: masked, value: 0 }]);
        assert_eq!((clone.includes.architecture, clone.includes.min_kernel), (Some(true), Some((4, 8))));
        assert_eq!(clone.excludes.capabilities, ["SYS_ADMIN".to_owned()].into());
    }

    #[test]
    fn only_the_architectures_that_are_listed_are_accepted() {
        for (key, expected) in [
            ("", &[Architecture::X86_64][..]),
            (r#""archMap": [],"#, &[Architecture::X86_64]),
            (r#""archMap": null,"#, &[Architecture::X86_64]),
            (r#""architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],"#, &[Architecture::X86_64]),
            (r#""architectures": ["SCMP_ARCH_X86"],"#, &[Architecture::X86_64, Architecture::X86]),
            (
                r#""archMap": [{ "architecture": "SCMP_ARCH_ARM", "subArchitectures": ["SCMP_ARCH_X86"] }],"#,
                &[Architecture::X86_64],
            ),
        ] {
            let text = format!(r#"{{ {key} "defaultAction": "SCMP_ACT_ALLOW" }}"#);
            let profile = parse(text.as_bytes()).unwrap();
            assert_eq!(profile.architectures, expected.iter().copied().collect(), "{key}");
        }
    }

    #[test]
    fn an_error_names_line_key_and_value() {
        for (old, new, expected) in [
            (
                "\"read\"",
                "\"raed\"",
                &["`syscalls[0].names[0]`", "`raed` is not the name of a system call", "line 10"][..],
            ),
            (
                "SCMP_ACT_TRACE",
                "SCMP_ACT_NOTIFY",
                &["`syscalls[1].action`", "unknown variant `SCMP_ACT_NOTIFY`", "line 12"],
            ),
            (
                "\"defaultErrnoRet\": 38",
                "\"defaultErrnoRet\": 4096",
                &["`defaultErrnoRet`", "4096 is not", "line 3"],
            ),
            (
                "\"index\": 0",
                "\"index\": 6",
                &["`syscalls[1].args[0].index`", "6 is not the index", "line 13"],
            ),
            ("SCMP_CMP_MASKED_EQ", "SCMP_CMP_IS", &["`syscalls[1].args[0].op`", "`SCMP_CMP_IS`", "line 13"]),
            ("\"valueTwo\": 0", "\"valueTwo\": 1", &["`syscalls[1].args[0]`", "never holds"]),
            ("CAP_SYS_ADMIN", "CAP_FLY", &["`syscalls[1].excludes.caps[0]`", "`CAP_FLY`", "line 15"]),
            ("\"amd64\"", "\"amd65\"", &["`syscalls[1].includes.arches[1]`", "`amd65`", "line 14"]),
            ("\"4.8\"", "\"new\"", &["`syscalls[1].includes.minKernel`", "`new`", "line 14"]),
            (
                "SCMP_ARCH_ARM\"",
                "SCMP_ARCH_NEW\"",
                &["`archMap[1].subArchitectures[0]`", "`SCMP_ARCH_NEW`", "line 6"],
            ),
            ("FLAG_LOG", "FLAG_NEW_LISTENER", &["`flags[0]`", "FLAG_NEW_LISTENER", "line 8"]),
            ("\"errnoRet\": 7", "\"errno\": 7", &["`syscalls[1]", "unknown field `errno`", "line 12"]),
            ("\"name\": \"clone\",", "", &["`syscalls[1].names` is empty"]),
            ("SCMP_ACT_ALLOW\",", "SCMP_ACT_ALLOW\", \"errnoRet\": 1,", &["`syscalls[0].errnoRet` needs"]),
            (
                "[{ \"index\"",
                "[{ \"index\": 0, \"value\": 1, \"op\": \"SCMP_CMP_GT\" }, { \"index\"",
                &["`syscalls[1].args[1]` is a second condition on argument 0"],
            ),
            (
                "\"flags\"",
                "\"architectures\": [\"SCMP_ARCH_X86\"], \"flags\"",
                &["`architectures` and `archMap`"],
            ),
            ("\"flags\"", "\"listenerPath\": \"/x\", \"flags\"", &["`listenerPath`"]),
            ("    ]\n}", "    ]\n} x", &["trailing characters", "line 18"]),
        ] {
            let text = PROFILE.replacen(old, new, 1);
            assert_ne!(text, PROFILE, "{old}");
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            for part in expected {
                assert!(error.contains(part), "{new} gave: {error}, without {part}");
            }
        }
        assert!(parse(b"").unwrap_err().to_string().contains("EOF"));
        assert!(parse(b"{}").unwrap_err().to_string().contains("missing field `defaultAction`"));
    }

    #[test]
    fn versions_of_the_kernel_are_compared_by_number() {
        assert_eq!(kernel_version("6.18.2-rc1"), Some((6, 18)));
        assert_eq!(kernel_version("5.10-custom"), Some((5, 10)));
        assert_eq!((kernel_version("6"), kernel_version("a.b"), kernel_version("6.x")), (None, None, None));
    }
}
