//! Which devices the processes of a cgroup may use: rules, and how they are enforced.
//!
//! Cgroup v1 has a controller, to which rules are written. On v2 a program that is attached to the cgroup decides. In both,
//! a cgroup below cannot permit what one above it denies.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bpf::{self, Instruction, ProgramInfo};
use crate::cgroup::{Cgroup, CgroupError, Version};

/// Name by which a program is recognised as one of ours.
const NAME: [u8; 16] = *b"cofferdam_dev\0\0\0";

/// Maximum number of rules of one cgroup.
pub const MAX_RULES: usize = 400;

const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;

/// Character or block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A character device.
    Character,
    /// A block device.
    Block,
}

/// What may be done with a device, at least one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Read it.
    pub read: bool,
    /// Write to it.
    pub write: bool,
    /// Create a file for it.
    pub mknod: bool,
}

/// Permits access to devices. As text it is `c 1:3 rwm`, with `*` for every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// Kind of the devices.
    pub kind: Kind,
    /// Their major number; `None` for every.
    pub major: Option<u32>,
    /// Their minor number; `None` for every.
    pub minor: Option<u32>,
    /// What may be done.
    pub access: Access,
}

/// A text that is not a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a rule for devices; expected the kind (`c` or `b`), numbers and access, such as `c 10:229 rw` or \
     `b 8:* r`"
)]
pub struct InvalidRule {
    /// The text.
    pub text: String,
}

/// Why rules cannot be enforced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevicesError {
    /// There are too many of them.
    #[error("there are {count} rules for devices; at most {MAX_RULES} are possible")]
    TooMany {
        /// Their number.
        count: usize,
    },
    /// A file of the cgroup cannot be read or written.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel refuses the program.
    #[error(
        "cannot load the program for the devices of a cgroup; it needs Linux 4.15 with CONFIG_CGROUP_BPF, and root"
    )]
    Load(#[source] io::Error),
    /// The program cannot be attached, or those that are cannot be listed.
    #[error(
        "cannot attach the program for devices to the cgroup `{}`; a program of a cgroup above may not permit it",
        path.display()
    )]
    Attach {
        /// The cgroup.
        path: std::path::PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true, mknod: true };

    fn both(self, other: Self, combine: fn(bool, bool) -> bool) -> Self {
        Self {
            read: combine(self.read, other.read),
            write: combine(self.write, other.write),
            mknod: combine(self.mknod, other.mknod),
        }
    }

    fn covers(self, other: Self) -> bool {
        self.both(other, |a, b| a && b) == other
    }

    fn is_none(self) -> bool {
        !(self.read || self.write || self.mknod)
    }

    /// As in the context of a program.
    fn bits(self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (is_set, letter) in [(self.read, "r"), (self.write, "w"), (self.mknod, "m")] {
            if is_set {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl FromStr for Access {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let mut access = Self { read: false, write: false, mknod: false };
        for letter in text.chars() {
            let field = match letter {
                'r' => &mut access.read,
                'w' => &mut access.write,
                'm' => &mut access.mknod,
                _ => return Err(InvalidRule { text: text.to_owned() }),
            };
            if std::mem::replace(field, true) {
                return Err(InvalidRule { text: text.to_owned() });
            }
        }
        if access.is_none() { Err(InvalidRule { text: text.to_owned() }) } else { Ok(access) }
    }
}

impl Rule {
    /// Permits access to one device, with the number that stat(2) returns.
    #[must_use]
    pub fn of(kind: Kind, number: u64, access: Access) -> Self {
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        Self { kind, major: Some(major), minor: Some(minor), access }
    }

    /// Everything that both permit.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        /// The number that satisfies both; `Err` if none does.
        fn common(a: Option<u32>, b: Option<u32>) -> Result<Option<u32>, ()> {
            match (a, b) {
                (Some(a), Some(b)) if a != b => Err(()),
                (a, b) => Ok(a.or(b)),
            }
        }
        let access = self.access.both(other.access, |a, b| a && b);
        if self.kind != other.kind || access.is_none() {
            return None;
        }
        let major = common(self.major, other.major).ok()?;
        let minor = common(self.minor, other.minor).ok()?;
        Some(Self { kind: self.kind, major, minor, access })
    }

    /// Whether it permits everything that `other` does.
    fn covers(self, other: Self) -> bool {
        self.kind == other.kind
            && self.major.is_none_or(|major| other.major == Some(major))
            && self.minor.is_none_or(|minor| other.minor == Some(minor))
            && self.access.covers(other.access)
    }

    fn selects_the_same_as(self, other: Self) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }

    /// Permits the access and ends the program, if the request is covered.
    fn compile(self, program: &mut Vec<Instruction>) {
        let mut block = Vec::new();
        let kind = match self.kind {
            Kind::Block => 1,
            Kind::Character => 2,
        };
        block.push(Test::NotEqual(register::KIND, kind));
        block.extend(self.major.map(|major| Test::NotEqual(register::MAJOR, major as i32)));
        block.extend(self.minor.map(|minor| Test::NotEqual(register::MINOR, minor as i32)));
        if self.access != Access::ALL {
            block.push(Test::AnyBit(register::ACCESS, !self.access.bits() & Access::ALL.bits()));
        }
        for (index, test) in block.iter().enumerate() {
            // Over the remaining tests and the two instructions that permit it.
            let offset = (block.len() - index - 1 + 2) as i16;
            program.push(match *test {
                Test::NotEqual(register, value) => instruction(0x55, register, 0, offset, value),
                Test::AnyBit(register, bits) => instruction(0x45, register, 0, offset, bits),
            });
        }
        program.extend(answer(1));
    }
}

/// When a rule does not apply.
#[derive(Clone, Copy)]
enum Test {
    NotEqual(u8, i32),
    AnyBit(u8, i32),
}

mod register {
    pub const RESULT: u8 = 0;
    pub const CONTEXT: u8 = 1;
    pub const KIND: u8 = 2;
    pub const ACCESS: u8 = 3;
    pub const MAJOR: u8 = 4;
    pub const MINOR: u8 = 5;
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, constant: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, constant }
}

/// Ends the program with this result.
fn answer(result: i32) -> [Instruction; 2] {
    [instruction(0xb7, register::RESULT, 0, 0, result), instruction(0x95, 0, 0, 0, 0)]
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Character => 'c',
            Kind::Block => 'b',
        };
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

impl FromStr for Rule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let invalid = || InvalidRule { text: text.to_owned() };
        let number = |text: &str, maximum: u32| match text {
            "*" => Ok(None),
            _ if !text.bytes().all(|byte| byte.is_ascii_digit()) => Err(invalid()),
            _ => text.parse().ok().filter(|&number| number <= maximum).map(Some).ok_or_else(invalid),
        };
        let words: Vec<&str> = text.split_ascii_whitespace().take(4).collect();
        let [kind, numbers, access] = words[..] else { return Err(invalid()) };
        let (major, minor) = numbers.split_once(':').ok_or_else(invalid)?;
        Ok(Self {
            kind: match kind {
                "c" => Kind::Character,
                "b" => Kind::Block,
                _ => return Err(invalid()),
            },
            major: number(major, MAX_MAJOR)?,
            minor: number(minor, MAX_MINOR)?,
            access: access.parse().map_err(|_| invalid())?,
        })
    }
}

impl TryFrom<String> for Rule {
    type Error = InvalidRule;

    fn try_from(text: String) -> Result<Self, InvalidRule> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

/// All that is permitted; everything else is denied. No rule covers another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Rule>")]
pub struct Rules(Vec<Rule>);

impl From<Vec<Rule>> for Rules {
    fn from(rules: Vec<Rule>) -> Self {
        rules.into_iter().collect()
    }
}

impl FromIterator<Rule> for Rules {
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        let mut merged: Vec<Rule> = Vec::new();
        for rule in rules {
            // As the v1 controller does.
            match merged.iter_mut().find(|other| other.selects_the_same_as(rule)) {
                Some(other) => other.access = other.access.both(rule.access, |a, b| a || b),
                None => merged.push(rule),
            }
        }
        let needed = |rule: &Rule| !merged.iter().any(|other| other != rule && other.covers(*rule));
        Self(merged.iter().copied().filter(needed).collect())
    }
}

impl Rules {
    /// The rules.
    pub fn iter(&self) -> impl Iterator<Item = Rule> {
        self.0.iter().copied()
    }

    /// Everything that both permit.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.iter().flat_map(|rule| other.iter().filter_map(move |other| rule.intersection(other))).collect()
    }

    /// Whether there are not too many.
    ///
    /// # Errors
    /// [`DevicesError::TooMany`].
    pub fn check(&self) -> Result<(), DevicesError> {
        match self.0.len() {
            count if count > MAX_RULES => Err(DevicesError::TooMany { count }),
            _ => Ok(()),
        }
    }

    /// Restricts the processes of a cgroup, and of those below it, to these devices. On v1 it must be one of the `devices`
    /// controller. What an earlier call permitted is denied; on v2 there is no moment without rules.
    ///
    /// # Errors
    /// [`DevicesError`]; on v1 also if a cgroup above does not permit a rule.
    pub fn apply(&self, cgroup: &Cgroup) -> Result<(), DevicesError> {
        self.check()?;
        match cgroup.version() {
            Version::V1 => {
                cgroup.write("devices.deny", "a")?;
                Ok(self.iter().try_for_each(|rule| cgroup.write("devices.allow", rule))?)
            }
            Version::V2 => self.attach(cgroup),
        }
    }

    /// Whether a cgroup is restricted to these devices.
    ///
    /// # Errors
    /// [`DevicesError`].
    pub fn are_applied(&self, cgroup: &Cgroup) -> Result<bool, DevicesError> {
        match cgroup.version() {
            Version::V1 => {
                let found = cgroup.read("devices.list")?;
                let mut found: Vec<&str> = found.lines().collect();
                let own: Vec<String> = self.iter().map(|rule| rule.to_string()).collect();
                let mut own: Vec<&str> = own.iter().map(String::as_str).collect();
                found.sort_unstable();
                own.sort_unstable();
                Ok(found == own)
            }
            Version::V2 => {
                let expected = bpf::info(self.load()?).map_err(DevicesError::Load)?.tag;
                Ok(own_programs(cgroup)?.iter().any(|(_, info)| info.tag == expected))
            }
        }
    }

    fn attach(&self, cgroup: &Cgroup) -> Result<(), DevicesError> {
        let program = self.load()?;
        let earlier = own_programs(cgroup)?;
        let directory = cgroup.directory()?;
        let replaced = earlier.first().map(|(program, _)| program.as_fd());
        bpf::attach_device_program(directory.as_fd(), program.as_fd(), replaced)
            .map_err(|source| DevicesError::Attach { path: cgroup.path().to_owned(), source })
    }

    fn load(&self) -> Result<OwnedFd, DevicesError> {
        bpf::load_device_program(NAME, &self.program()).map_err(DevicesError::Load)
    }

    /// The context is a `struct bpf_cgroup_dev_ctx`: three words with kind and access, major and minor number.
    fn program(&self) -> Vec<Instruction> {
        const LOAD_WORD: u8 = 0x61;
        let load = |register, offset| instruction(LOAD_WORD, register, register::CONTEXT, offset, 0);
        let mut program = vec![
            load(register::KIND, 0),
            // The kind is in the lower half, the access in the upper one.
            instruction(0x57, register::KIND, 0, 0, 0xffff),
            load(register::ACCESS, 0),
            instruction(0x77, register::ACCESS, 0, 0, 16),
            load(register::MAJOR, 4),
            load(register::MINOR, 8),
        ];
        self.iter().for_each(|rule| rule.compile(&mut program));
        program.extend(answer(0));
        program
    }
}

/// The programs on the cgroup that this module has attached.
fn own_programs(cgroup: &Cgroup) -> Result<Vec<(OwnedFd, ProgramInfo)>, DevicesError> {
    let failed = |source| DevicesError::Attach { path: cgroup.path().to_owned(), source };
    let directory = cgroup.directory()?;
    let mut own = Vec::new();
    for program in bpf::attached_device_programs(directory.as_fd()).map_err(failed)? {
        let info = bpf::info(&program).map_err(failed)?;
        if info.name == NAME {
            own.push((program, info));
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Rules {
        texts.iter().map(|text| text.parse::<Rule>().unwrap()).collect()
    }

    fn texts(rules: &Rules) -> Vec<String> {
        rules.iter().map(|rule| rule.to_string()).collect()
    }

    #[test]
    fn rules_are_parsed_and_shown() {
        for text in ["c 1:3 rwm", "b *:* m", "b 8:* r", "c *:7 w"] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        assert_eq!("c 1:3 mwr".parse::<Rule>().unwrap().to_string(), "c 1:3 rwm");
        for text in [
            "",
            "c",
            "c 1:3",
            "c 1 rw",
            "a *:* rwm",
            "c 1:3 x",
            "c 1:3 rr",
            "c 1:3 r w",
            "c -1:3 r",
            "c +1:3 r",
            "c 4096:0 r",
            "c 1:1048576 r",
            "c 1:3:4 r",
        ] {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{text}` is not a rule")), "{error}");
        }
    }

    #[test]
    fn rules_for_the_same_devices_are_merged_and_covered_ones_dropped() {
        assert_eq!(texts(&rules(&["c 1:3 r", "c 1:3 w", "b 1:3 r"])), ["c 1:3 rw", "b 1:3 r"]);
        assert_eq!(
            texts(&rules(&["c 1:3 r", "c 1:* rw", "c *:* m", "c 1:3 rm"])),
            ["c 1:3 rm", "c 1:* rw", "c *:* m"]
        );
        assert_eq!(texts(&rules(&["c 1:3 rw", "c 1:* rw"])), ["c 1:* rw"]);
    }

    #[test]
    fn an_intersection_permits_what_both_permit() {
        let a = rules(&["c *:* m", "c 1:* rw", "b 8:0 r"]);
        let b = rules(&["c 1:3 rwm", "c *:5 r", "b 8:1 r"]);
        assert_eq!(texts(&a.intersection(&b)), ["c 1:3 rwm", "c 1:5 r"]);
        assert_eq!(a.intersection(&Rules::default()), Rules::default());
        assert_eq!(a.intersection(&a), a);
    }

    #[test]
    fn a_state_is_a_list_of_texts() {
        let own = rules(&["c 1:3 rwm", "b *:* m"]);
        let text = serde_json::to_string(&own).unwrap();
        assert_eq!(text, r#"["c 1:3 rwm","b *:* m"]"#);
        assert_eq!(serde_json::from_str::<Rules>(&text).unwrap(), own);
    }

    /// Whether no program of this number is left; it is freed some time after its cgroup was removed.
    fn is_gone(id: u32) -> bool {
        bpf::program(id).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    #[test]
    fn a_program_is_replaced_and_ends_with_its_cgroup() {
        let detected = crate::cgroup::Cgroups::detect().unwrap();
        let Some(cgroup) = detected.unified(format!("cofferdam-devices-{}", std::process::id())) else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "cgroup v2 is not mounted");
            return;
        };
        if cgroup.create().is_err() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "not root");
            return;
        }
        let ids = || -> Vec<u32> { own_programs(&cgroup).unwrap().iter().map(|(_, info)| info.id).collect() };
        let (first, second) = (rules(&["c 1:3 rw"]), rules(&["c 1:3 r", "b *:* m"]));
        assert!(!first.are_applied(&cgroup).unwrap());
        first.apply(&cgroup).unwrap();
        let old = ids();
        assert_eq!(old.len(), 1);
        assert!(first.are_applied(&cgroup).unwrap() && !second.are_applied(&cgroup).unwrap());
        second.apply(&cgroup).unwrap();
        assert!(second.are_applied(&cgroup).unwrap());
        let new = ids();
        assert!(new.len() == 1 && new != old, "{new:?} after {old:?}");
        cgroup.remove(std::time::Duration::from_secs(10)).unwrap();
        while ![old[0], new[0]].into_iter().all(is_gone) {
            std::thread::yield_now();
        }
        let many: Rules = (0..=MAX_RULES as u32)
            .map(|minor| Rule { kind: Kind::Block, major: Some(7), minor: Some(minor), access: Access::ALL })
            .collect();
        assert!(matches!(many.apply(&cgroup), Err(DevicesError::TooMany { count: 401 })));
    }

    #[test]
    fn jumps_stay_in_the_program() {
        let program = rules(&["c 1:3 rw", "b *:* m", "c 136:* rwm"]).program();
        for (index, instruction) in program.iter().enumerate() {
            let target = index
                + 1
                + usize::try_from(if instruction.code & 7 == 5 { instruction.offset } else { 0 }).unwrap();
            assert!(target <= program.len() && program.len() < 4096);
        }
    }
}
