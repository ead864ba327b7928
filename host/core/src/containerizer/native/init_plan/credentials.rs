//! What the command is allowed to do: user, capabilities, resource limits, seccomp filter.

use std::collections::BTreeSet;

use cofferdam_init::plan::{Capabilities, Limit, User};
use cofferdam_linux::capability;
use cofferdam_plugin_model as model;

use crate::chain::{LaunchPlan, Owned};
use crate::containerizer::native::record::NativeRecord;
use crate::model::Record;

/// The kernel's limit for a BPF program.
const MAX_INSTRUCTIONS: usize = 4096;

/// The user and groups; `None` if the agent cannot change them.
pub(super) fn user(record: &Record<NativeRecord>, merged: &LaunchPlan) -> Option<User> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let groups: BTreeSet<u32> =
        record.groups.iter().chain(merged.supplementary_groups.keys()).copied().collect();
    Some(User { uid: record.uid, gid: record.gid, groups: groups.into_iter().collect() })
}

/// The resource limits that plugins request, and that of descriptors if none does.
pub(super) fn limits(merged: &LaunchPlan, nofile: Option<(u64, u64)>) -> Result<Vec<Limit>, String> {
    let mut limits = merged.rlimits.iter().map(limit).collect::<Result<Vec<_>, _>>()?;
    if let Some((soft, hard)) = nofile.filter(|_| !merged.rlimits.contains_key("NOFILE")) {
        limits.push(Limit { resource: libc::RLIMIT_NOFILE, soft, hard });
    }
    Ok(limits)
}

fn limit((name, owned): (&String, &Owned<model::Rlimit>)) -> Result<Limit, String> {
    let owner = &owned.owner;
    let resource = match name.as_str() {
        "CPU" => libc::RLIMIT_CPU,
        "FSIZE" => libc::RLIMIT_FSIZE,
        "DATA" => libc::RLIMIT_DATA,
        "STACK" => libc::RLIMIT_STACK,
        "CORE" => libc::RLIMIT_CORE,
        "RSS" => libc::RLIMIT_RSS,
        "NPROC" => libc::RLIMIT_NPROC,
        "NOFILE" => libc::RLIMIT_NOFILE,
        "MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "AS" => libc::RLIMIT_AS,
        "LOCKS" => libc::RLIMIT_LOCKS,
        "SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "NICE" => libc::RLIMIT_NICE,
        "RTPRIO" => libc::RLIMIT_RTPRIO,
        "RTTIME" => libc::RLIMIT_RTTIME,
        other => return Err(format!("`{owner}` requests the unknown resource limit `{other}`")),
    };
    let soft = owned.value.soft.unwrap_or(u64::MAX);
    let hard = owned.value.hard.unwrap_or(u64::MAX);
    if soft > hard {
        return Err(format!(
            "`{owner}` requests the soft limit {soft} above the hard limit {hard} for {name}"
        ));
    }
    Ok(Limit { resource, soft, hard })
}

/// The five capability sets; `None` if no plugin requests any.
pub(super) fn capabilities(
    record: &Record<NativeRecord>,
    merged: &LaunchPlan,
) -> Result<Option<Capabilities>, String> {
    let effective = bits(&merged.effective_capabilities)?;
    let permitted = bits(&merged.permitted_capabilities)?;
    let inheritable = bits(&merged.inheritable_capabilities)?;
    let bounding = bits(&merged.bounding_capabilities)?;
    let ambient = bits(&merged.ambient_capabilities)?;
    let sets = [&effective, &permitted, &inheritable, &bounding, &ambient];
    if sets.iter().all(|set| set.is_none()) {
        return Ok(None);
    }
    let bounding = bounding.or(permitted).or(effective).unwrap_or(u64::MAX);
    let requested = effective.or(permitted);
    let effective = requested.unwrap_or(bounding);
    let permitted = permitted.unwrap_or(effective);
    // Only a user other than root needs ambient capabilities to keep its own over the exec. Without a request it has
    // none: a bounding set is a limit, and gives nothing.
    let ambient = ambient.unwrap_or(if record.uid == 0 { 0 } else { requested.unwrap_or(0) });
    // An inheritable set beyond that would let files raise capabilities (CVE-2022-24769).
    let inheritable = inheritable.unwrap_or(ambient);
    for (set, name, limit, limit_name) in [
        (effective, "effective", permitted, "permitted"),
        (permitted, "permitted", bounding, "bounding"),
        (ambient, "ambient", permitted, "permitted"),
        (ambient, "ambient", inheritable, "inheritable"),
    ] {
        if set & !limit != 0 {
            return Err(format!("its {name} capabilities exceed its {limit_name} ones"));
        }
    }
    Ok(Some(Capabilities { bounding, effective, permitted, inheritable, ambient }))
}

fn bits(set: &Option<Owned<BTreeSet<String>>>) -> Result<Option<u64>, String> {
    let Some(Owned { value, owner }) = set else { return Ok(None) };
    let bits = value.iter().try_fold(0u64, |bits, name| {
        let number = capability::number(name)
            .ok_or_else(|| format!("`{owner}` requests the unknown capability `{name}`"))?;
        Ok::<u64, String>(bits | 1 << number)
    })?;
    Ok(Some(bits))
}

/// The seccomp filter as an array of `struct sock_filter`, and its flags.
pub(super) fn seccomp(merged: &LaunchPlan) -> Result<(Vec<u8>, u32), String> {
    let Some(Owned { value, owner }) = &merged.seccomp else { return Ok((Vec::new(), 0)) };
    let length = value.program.len();
    if length == 0 || length > MAX_INSTRUCTIONS {
        return Err(format!(
            "`{owner}` requests a seccomp filter of {length} instructions; expected 1 to {MAX_INSTRUCTIONS}"
        ));
    }
    let mut program = Vec::with_capacity(length * 8);
    for &model::BpfInstruction(code, jump_true, jump_false, operand) in &value.program {
        program.extend(code.to_ne_bytes());
        program.extend([jump_true, jump_false]);
        program.extend(operand.to_ne_bytes());
    }
    let mut flags = 0;
    for flag in &value.flags {
        flags |= match flag.as_str() {
            // The command has one thread, so there is nothing to synchronize.
            "TSYNC" => 0,
            "LOG" => 1 << 1,
            "SPEC_ALLOW" => 1 << 2,
            other => return Err(format!("`{owner}` requests the unknown seccomp flag `{other}`")),
        };
    }
    Ok((program, flags))
}
