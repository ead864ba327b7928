//! Imports between the modules of a crate go downwards: a module imports only modules in earlier rows of its table.

use std::collections::{BTreeMap, BTreeSet};

use crate::workspace::{name, root, sources, text};

/// A module, and the modules that it may import.
type Row = (&'static str, &'static [&'static str]);

const CORE: &[Row] = &[
    ("model", &[]),
    ("error_chain", &[]),
    ("directory", &[]),
    ("fatal", &[]),
    ("parallel", &[]),
    ("readiness", &[]),
    ("regular_file", &[]),
    ("scratch", &["directory"]),
    ("shared_operation", &[]),
    ("short_path", &[]),
    ("stats", &[]),
    ("descriptor_limit", &[]),
    ("events", &["model"]),
    ("descriptor_store", &["readiness"]),
    ("credentials", &[]),
    ("engine", &[]),
    ("blocking", &["model"]),
    ("provisioner", &["blocking", "directory", "error_chain", "model", "shared_operation"]),
    ("config", &["engine", "provisioner"]),
    ("ledger", &["directory", "model", "parallel"]),
    ("keeper", &["blocking", "error_chain", "model", "readiness", "short_path"]),
    ("switchboard", &["keeper", "model", "short_path"]),
    ("launcher", &["keeper", "regular_file"]),
    ("fetcher", &["blocking", "config", "directory", "error_chain", "ledger", "model", "shared_operation"]),
    ("image_gc", &["blocking", "config", "error_chain", "provisioner"]),
    ("plugin", &["blocking", "config", "events", "model", "error_chain", "parallel"]),
    ("chain", &["blocking", "config", "model", "plugin"]),
    ("hooks", &["blocking", "config", "plugin"]),
    (
        "containerizer",
        &[
            "blocking",
            "chain",
            "config",
            "credentials",
            "descriptor_limit",
            "descriptor_store",
            "directory",
            "engine",
            "error_chain",
            "events",
            "fatal",
            "fetcher",
            "hooks",
            "keeper",
            "launcher",
            "ledger",
            "model",
            "parallel",
            "plugin",
            "provisioner",
            "readiness",
            "scratch",
            "switchboard",
        ],
    ),
    (
        "executor",
        &["blocking", "config", "containerizer", "error_chain", "fatal", "hooks", "model", "regular_file"],
    ),
    (
        "agent",
        &[
            "blocking",
            "chain",
            "config",
            "containerizer",
            "descriptor_limit",
            "descriptor_store",
            "directory",
            "engine",
            "error_chain",
            "executor",
            "events",
            "fatal",
            "fetcher",
            "hooks",
            "image_gc",
            "keeper",
            "launcher",
            "ledger",
            "model",
            "parallel",
            "plugin",
            "provisioner",
            "regular_file",
            "scratch",
            "stats",
            "switchboard",
        ],
    ),
];

const HOST: &[Row] = &[
    ("engine", &[]),
    ("config", &["engine"]),
    ("agent_watch", &[]),
    ("archive", &[]),
    ("http", &[]),
    ("secret_file", &[]),
    ("fetch", &["agent_watch", "archive", "http", "secret_file"]),
    ("image", &["agent_watch", "archive", "http"]),
    ("telemetry", &[]),
    ("api", &["config", "secret_file", "telemetry"]),
    ("cli", &["api", "config", "fetch", "image", "telemetry"]),
];

const INIT: &[Row] = &[
    ("entry", &[]),
    ("sys", &[]),
    ("cgroup", &["sys"]),
    ("plan", &[]),
    ("report", &[]),
    ("failure", &["plan", "report", "sys"]),
    ("operation", &["failure", "plan", "report", "sys"]),
    ("root", &["failure", "plan", "report", "sys"]),
    ("privileges", &["plan", "sys"]),
    ("hook", &["cgroup", "failure", "plan", "privileges", "report", "sys"]),
    ("proc", &["sys"]),
    ("streams", &[]),
    ("terminal", &["failure", "plan", "report", "sys"]),
    ("task", &["cgroup", "failure", "hook", "operation", "plan", "privileges", "proc", "report", "sys"]),
    ("supervise", &["sys"]),
    ("protocol", &[]),
    (
        "setup",
        &[
            "cgroup",
            "failure",
            "hook",
            "operation",
            "plan",
            "proc",
            "protocol",
            "report",
            "root",
            "supervise",
            "sys",
            "task",
            "terminal",
        ],
    ),
    ("switchboard", &["failure", "protocol", "streams", "sys"]),
    ("keeper", &["protocol", "setup", "supervise", "switchboard", "sys"]),
    ("client", &["protocol", "report", "sys"]),
];

const EXECUTOR: &[Row] = &[
    ("wait_status", &[]),
    ("memory", &[]),
    ("signals", &[]),
    ("entry", &[]),
    ("environment", &[]),
    ("message", &[]),
    ("status", &[]),
    ("record_io", &[]),
    ("http", &[]),
    ("exchange", &["environment", "http"]),
    ("session", &["environment", "message"]),
    ("updates", &["status"]),
    ("kill", &["message"]),
    ("checks", &["message", "status", "wait_status"]),
    ("process", &["environment", "message", "wait_status"]),
    ("probe", &["checks", "environment", "exchange", "http", "message"]),
    ("agent", &["environment", "exchange", "http", "message", "record_io", "session", "updates"]),
    ("executor", &["agent", "message", "status", "updates", "wait_status"]),
    (
        "command",
        &["checks", "entry", "executor", "kill", "message", "probe", "process", "status", "wait_status"],
    ),
    (
        "default",
        &[
            "agent",
            "checks",
            "exchange",
            "executor",
            "http",
            "kill",
            "message",
            "probe",
            "status",
            "wait_status",
        ],
    ),
    ("run", &["agent", "executor", "memory", "message", "process", "signals"]),
];

const LINUX: &[Row] = &[
    ("boot", &[]),
    ("capability", &[]),
    ("descent", &[]),
    ("foreign", &[]),
    ("generated", &[]),
    ("quota", &["descent", "foreign"]),
    ("image", &[]),
    ("measure", &["descent"]),
    ("mounts", &[]),
    ("namespace", &[]),
    ("overlay", &["foreign"]),
    ("own_table", &[]),
    ("perf", &[]),
    ("resource_limit", &[]),
    ("signal", &[]),
    ("pidfd_info", &[]),
    ("tree", &["descent"]),
    ("process", &["pidfd_info", "signal"]),
    ("cgroup", &["descent", "generated", "mounts", "process", "tree"]),
    ("bpf", &[]),
    ("devices", &["bpf", "cgroup"]),
    ("spawn", &["image", "process"]),
];

const MODEL: &[Row] = &[
    ("id", &[]),
    ("units", &[]),
    ("manifest", &[]),
    ("resources", &[]),
    ("bpf", &[]),
    ("launch", &["bpf"]),
    ("cgroups", &[]),
    ("container", &["cgroups", "id", "launch", "resources"]),
    ("service", &["id"]),
    ("exchange", &["cgroups", "container", "id", "launch", "resources"]),
    ("hook", &["container", "resources"]),
];

const SDK: &[Row] = &[
    ("error", &[]),
    ("note", &[]),
    ("command", &[]),
    ("config", &["note"]),
    ("deadline", &[]),
    ("descriptors", &[]),
    ("event", &[]),
    ("host", &["error"]),
    ("log", &[]),
    ("mount", &[]),
    ("network", &[]),
    ("panic", &[]),
    ("process", &[]),
    ("secret", &["error"]),
    ("space", &[]),
    ("companion", &["host"]),
    ("leases", &["error", "host"]),
    ("cgroup", &["error", "event"]),
    ("changes", &["cgroup"]),
    ("event_counters", &["cgroup", "event"]),
    ("perf_samples", &["cgroup", "event"]),
    ("container_ref", &["cgroup", "deadline", "error", "process"]),
    ("pressure", &["cgroup", "container_ref", "error"]),
    ("new_container", &["deadline", "error"]),
    ("hook_call", &["deadline", "error"]),
    ("volume", &["error", "new_container"]),
    ("prepared", &["error"]),
    ("controllers", &["cgroup", "container_ref", "error", "new_container", "prepared"]),
    ("recovery", &["deadline", "error"]),
    ("log_companion", &["companion", "container_ref", "error", "host", "recovery"]),
    ("isolator", &["config", "container_ref", "error", "host", "new_container", "prepared", "recovery"]),
    ("logger", &["config", "container_ref", "error", "host", "new_container", "recovery"]),
    ("hook", &["config", "error", "hook_call", "host"]),
    ("export", &["config", "note"]),
    (
        "bridge",
        &[
            "config",
            "container_ref",
            "deadline",
            "descriptors",
            "error",
            "hook",
            "hook_call",
            "host",
            "isolator",
            "log",
            "logger",
            "new_container",
            "panic",
            "recovery",
        ],
    ),
    ("testing", &["bridge", "cgroup", "controllers", "event", "hook", "isolator", "logger"]),
];

#[test]
fn modules_of_the_core_import_downwards_only() {
    check("host/core/src", CORE);
}

#[test]
fn modules_of_the_host_import_downwards_only() {
    check("host/src", HOST);
}

#[test]
fn modules_of_init_import_downwards_only() {
    check("host/init/src", INIT);
}

#[test]
fn modules_of_the_executor_import_downwards_only() {
    check("host/executor/src", EXECUTOR);
}

#[test]
fn modules_of_the_plugin_api_import_downwards_only() {
    check("plugin-api/src", SDK);
    check("plugin-api/model/src", MODEL);
    check("plugin-api/linux/src", LINUX);
}

/// Checks the imports of all modules of a crate against its table, and that the table itself has no cycle.
#[track_caller]
fn check(directory: &str, table: &[Row]) {
    for (index, (module, allowed)) in table.iter().enumerate() {
        for lower in *allowed {
            assert!(
                table[..index].iter().any(|(earlier, _)| earlier == lower),
                "{directory}: the row of `{module}` has `{lower}`, which is not in an earlier row"
            );
        }
    }
    let library = code(&text(&root().join(directory).join("lib.rs")));
    let files: Vec<_> = sources(directory)
        .into_iter()
        .map(|path| (name(&path), code(&text(&path))))
        .filter(|(file, _)| !file.ends_with("/tests.rs"))
        .collect();
    let modules: BTreeSet<&str> = files.iter().filter_map(|(file, _)| module(directory, file)).collect();
    let reexports = reexports(&library, &modules);
    for (file, code) in &files {
        let Some(own) = module(directory, file) else { continue };
        let row = table.iter().find(|(module, _)| *module == own);
        let (_, allowed) =
            row.unwrap_or_else(|| panic!("{directory}: the module `{own}` has no row; add one"));
        for imported in names_after("crate::", code) {
            let Some(imported) = modules.get(imported).or_else(|| reexports.get(imported)).copied() else {
                // A macro of the crate, or a re-export of another crate.
                continue;
            };
            assert!(
                imported == own || allowed.contains(&imported),
                "{file} imports from `{imported}`, which is not below `{own}`: move what they share to a lower \
                 module, or argue for a new import in the row of `{own}`"
            );
        }
    }
}

/// The top-level module that a file belongs to; `None` for the roots of crates.
fn module<'f>(directory: &str, file: &'f str) -> Option<&'f str> {
    let path = file.strip_prefix(directory)?.strip_prefix('/')?;
    let module = path.split('/').next()?.trim_end_matches(".rs");
    (!matches!(module, "lib" | "main" | "bin")).then_some(module)
}

/// The code of a file without comments, and without the tests at its end.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The names that directly follow a prefix such as `crate::`, those of a `{…}` list one by one.
fn names_after<'c>(prefix: &str, code: &'c str) -> Vec<&'c str> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| c == '$' || c == '_' || c.is_alphanumeric()) {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => names.extend(members(list).into_iter().map(first_name)),
            None => names.push(first_name(rest)),
        }
    }
    names
}

/// The members of a `use` list, up to its closing brace.
fn members(list: &str) -> Vec<&str> {
    let (mut depth, mut start) = (0_usize, 0);
    let mut members = Vec::new();
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                members.push(list[start..at].trim());
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    members.retain(|member| !member.is_empty());
    members
}

fn first_name(text: &str) -> &str {
    let end = text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len());
    &text[..end]
}

/// The names that a crate's root re-exports from its modules, with the module of each.
fn reexports<'c>(library: &'c str, modules: &BTreeSet<&'c str>) -> BTreeMap<&'c str, &'c str> {
    let mut found = BTreeMap::new();
    for statement in library.split("pub use ").skip(1) {
        let statement = statement.split(';').next().unwrap_or_default();
        let path = statement.strip_prefix("crate::").unwrap_or(statement);
        let Some(module) = modules.get(first_name(path)).copied() else { continue };
        match statement.split_once('{') {
            Some((_, list)) => {
                found.extend(members(list).into_iter().map(|member| (first_name(member), module)))
            }
            None => found.extend(statement.rsplit("::").next().map(|last| (first_name(last), module))),
        }
    }
    found
}

#[test]
fn names_of_imports_are_read_from_paths_and_lists() {
    let code = "use crate::model::Phase;\nuse crate::{a::B, c::{d, e}, f};\nx!($crate::g, mycrate::h);";
    assert_eq!(names_after("crate::", code), ["model", "a", "c", "f"]);
    let modules = BTreeSet::from(["a", "b"]);
    let found = reexports("pub use a::{B, C as D};\npub use b::E;\npub use serde::F;", &modules);
    assert_eq!(found, BTreeMap::from([("B", "a"), ("C", "a"), ("E", "b")]));
}
