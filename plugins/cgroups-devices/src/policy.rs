//! The operator's choice of devices.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use cofferdam_plugin_api::devices::{Access, Kind, Rule, Rules};
use cofferdam_plugin_api::prelude::*;

/// Those that Docker permits. Creating a device file is harmless, as using it is not permitted by that.
const STANDARD: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",   // null
    "c 1:5 rwm",   // zero
    "c 1:7 rwm",   // full
    "c 1:8 rwm",   // random
    "c 1:9 rwm",   // urandom
    "c 5:0 rwm",   // tty
    "c 5:1 rwm",   // console
    "c 5:2 rwm",   // ptmx
    "c 136:* rwm", // pseudoterminals
];

/// A device of the host.
#[derive(Debug, Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its path, such as `/dev/fuse`.
    path: PathBuf,
    /// What containers may do with it: `r` to read, `w` to write, `m` to create a file for it.
    #[serde(default)]
    access: Option<String>,
}

/// What is permitted to all containers.
pub fn rules(standard: bool, allowed: &[Device], numbers: &[String]) -> Result<Rules> {
    let standard = STANDARD.iter().copied().filter(|_| standard);
    let mut rules = Vec::new();
    for text in standard.chain(numbers.iter().map(String::as_str)) {
        rules.push(text.parse::<Rule>().context("`rules` is invalid")?);
    }
    for device in allowed {
        rules.push(device.rule()?);
    }
    let rules = Rules::from(rules);
    rules.check()?;
    Ok(rules)
}

impl Device {
    fn rule(&self) -> Result<Rule> {
        let path = self.path.display();
        if !self.path.is_absolute() {
            return Err(Error::new(format!("`{path}` of `allowed` is not an absolute path")));
        }
        let found =
            fs::metadata(&self.path).context(format!("cannot find the device `{path}` of `allowed`"))?;
        let kind = match found.file_type() {
            kind if kind.is_char_device() => Kind::Character,
            kind if kind.is_block_device() => Kind::Block,
            _ => return Err(Error::new(format!("`{path}` of `allowed` is not a device"))),
        };
        let access = match &self.access {
            None => Access::ALL,
            Some(text) => text.parse().map_err(|_| {
                Error::new(format!("`{text}` is no access to `{path}`; expected some of `r`, `w` and `m`"))
            })?,
        };
        Ok(Rule::of(kind, found.rdev(), access))
    }
}
