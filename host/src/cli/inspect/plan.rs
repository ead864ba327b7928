//! A launch plan as tables: mounts, what is hidden and read-only, and everything else.

use serde_json::Value as Json;

use crate::api::operator::types::PlanEntry;
use crate::cli::output::{Cell, Column, Table, escape_control};

/// The field that has the changes to the view of the file system, one entry for each.
const OPERATIONS: &str = "operations";

/// The tables that show a plan, without those that would be empty.
pub(super) fn tables(plan: &[PlanEntry]) -> Vec<Table> {
    let mut mounts = Table::new(vec![
        Column::new("MOUNT").elastic(),
        Column::new("TYPE").optional(2),
        Column::new("SOURCE").elastic().optional(1),
        Column::new("OPTIONS").elastic().optional(3),
        Column::new("SET BY"),
    ]);
    let mut hidden =
        Table::new(vec![Column::new("PATH").elastic(), Column::new("ACCESS"), Column::new("SET BY")]);
    let mut others = Table::new(vec![
        Column::new("SET BY"),
        Column::new("FIELD").elastic(),
        Column::new("VALUE").elastic(),
    ]);
    for entry in plan {
        match operation(entry) {
            Some(Shown::Mount(cells)) => mounts.push(with_owner(cells.into(), entry)),
            Some(Shown::Access(cells)) => hidden.push(with_owner(cells.into(), entry)),
            None => others.push(vec![
                entry.owner.clone().into(),
                escape_control(&entry.field).into(),
                escape_control(&entry.value).into(),
            ]),
        }
    }
    [others, mounts, hidden].into_iter().filter(|table| !table.is_empty()).collect()
}

fn with_owner(texts: Vec<String>, entry: &PlanEntry) -> Vec<Cell> {
    texts.into_iter().map(|text| escape_control(&text)).chain([entry.owner.clone()]).map(Cell::from).collect()
}

/// Where an operation is shown.
#[derive(Debug, PartialEq)]
enum Shown {
    /// Target, type, source and options.
    Mount([String; 4]),
    /// Path, and what can be done with it.
    Access([String; 2]),
}

/// What is shown of an operation. `None` for other entries, and for those that this version does not know.
fn operation(entry: &PlanEntry) -> Option<Shown> {
    if entry.field != OPERATIONS {
        return None;
    }
    let operation: Json = serde_json::from_str(&entry.value).ok()?;
    let text = |name: &str| operation.get(name).and_then(Json::as_str).map(str::to_owned);
    let list = |name: &str| {
        let values = operation.get(name).and_then(Json::as_array).into_iter().flatten();
        values.filter_map(|value| value.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let options = || {
        let recursive =
            (operation.get("recursive") == Some(&Json::Bool(true))).then(|| "recursive".to_owned());
        list("flags").into_iter().chain(list("options")).chain(recursive).collect::<Vec<_>>().join(",")
    };
    let dash = || "-".to_owned();
    let number = |name: &str| operation.get(name).map_or_else(dash, Json::to_string);
    let octal = || {
        let mode = operation.get("mode").and_then(Json::as_u64);
        mode.map(|mode| format!("mode={mode:o}")).unwrap_or_default()
    };
    Some(match operation.get("type")?.as_str()? {
        "bind" => Shown::Mount([text("target")?, "bind".into(), text("source")?, options()]),
        "bind_descriptor" => {
            Shown::Mount([text("target")?, "bind".into(), "of the plugin".into(), options()])
        }
        "mount" => Shown::Mount([text("target")?, text("fstype")?, dash(), options()]),
        "move" => Shown::Mount([text("target")?, "moved".into(), text("source")?, String::new()]),
        "device" => {
            let numbers = format!("{}:{}", number("major"), number("minor"));
            Shown::Mount([text("path")?, text("kind").unwrap_or_else(|| "device".into()), numbers, octal()])
        }
        "symlink" => Shown::Mount([text("path")?, "link".into(), text("target")?, String::new()]),
        "mkdir" => Shown::Mount([text("path")?, "directory".into(), dash(), octal()]),
        "write_file" => Shown::Mount([text("path")?, "file".into(), dash(), octal()]),
        "propagation" => Shown::Mount([text("path")?, "propagation".into(), dash(), text("propagation")?]),
        "mask" => Shown::Access([text("path")?, "hidden".into()]),
        "read_only" => Shown::Access([text("path")?, "read-only".into()]),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(field: &str, value: &str) -> PlanEntry {
        PlanEntry { field: field.into(), value: value.into(), owner: "filesystem/linux".into() }
    }

    #[test]
    fn every_entry_is_in_one_of_the_tables() {
        let plan = [
            entry("hostname", "web"),
            entry(
                "operations",
                r#"{"type":"mount","fstype":"proc","target":"/proc","flags":["nosuid"],"options":["a=b"]}"#,
            ),
            entry(
                "operations",
                r#"{"type":"bind","source":"/srv","target":"/data","recursive":true,"flags":["ro"]}"#,
            ),
            entry(
                "operations",
                r#"{"type":"device","path":"/dev/null","kind":"char","major":1,"minor":3,"mode":438}"#,
            ),
            entry("operations", r#"{"type":"mask","path":"/proc/keys"}"#),
            entry("operations", r#"{"type":"read_only","path":"/proc/sys"}"#),
            entry("operations", r#"{"type":"teleport","path":"/"}"#),
        ];
        let texts: Vec<String> = tables(&plan).iter().map(|table| table.layout(None, false)).collect();
        let [others, mounts, hidden] = &texts[..] else { panic!("{texts:?}") };
        assert!(
            others.contains("filesystem/linux  hostname    web\n") && others.contains("teleport"),
            "{others}"
        );
        assert_eq!(
            mounts,
            "MOUNT      TYPE  SOURCE  OPTIONS       SET BY\n\
             /proc      proc  -       nosuid,a=b    filesystem/linux\n\
             /data      bind  /srv    ro,recursive  filesystem/linux\n\
             /dev/null  char  1:3     mode=666      filesystem/linux\n"
        );
        assert_eq!(
            hidden,
            "PATH        ACCESS     SET BY\n\
             /proc/keys  hidden     filesystem/linux\n\
             /proc/sys   read-only  filesystem/linux\n"
        );
        assert_eq!(tables(&[]).len(), 0);
    }
}
