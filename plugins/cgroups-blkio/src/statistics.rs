//! Maps the statistics of the kernel to `CgroupInfo.Blkio.Statistics` of Mesos.

use std::collections::BTreeMap;

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;

use crate::device::Device;

/// Devices that are reported at most.
const MAX_DEVICES: usize = 1024;

/// Statistics by device; `None` is the sum of all. Each has fields of Mesos.
type ByDevice = BTreeMap<Option<Device>, BTreeMap<&'static str, Json>>;

/// Field in Mesos, and the end of the file's name on v1: of all schedulers.
const COUNTERS: [(&str, &str); 2] =
    [("io_serviced", "io_serviced"), ("io_service_bytes", "io_service_bytes")];

/// Likewise, in kernels that can debug their scheduler.
const DETAILS: [(&str, &str); 6] = [
    ("sectors", "sectors"),
    ("time", "time"),
    ("io_service_time", "io_service_time"),
    ("io_wait_time", "io_wait_time"),
    ("io_merged", "io_merged"),
    ("io_queued", "io_queued"),
];

/// The value of `blkio_statistics`.
pub fn read(cgroup: &Cgroup) -> Result<Json, CgroupError> {
    match cgroup.version() {
        CgroupVersion::V1 => read_v1(cgroup),
        CgroupVersion::V2 => Ok(json!({ "throttling": encode(parse_io_stat(&cgroup.read("io.stat")?)) })),
    }
}

fn read_v1(cgroup: &Cgroup) -> Result<Json, CgroupError> {
    let mut statistics = json!({ "throttling": encode(throttling(cgroup)?) });
    // BFQ has taken the place of CFQ, with the same statistics.
    for prefix in ["blkio.bfq.", "blkio."] {
        let Some(recursive) = scheduler(cgroup, prefix, "_recursive")? else { continue };
        // Mostly no device has this scheduler.
        if recursive.keys().any(Option::is_some) {
            statistics["cfq_recursive"] = encode(recursive);
            let own = scheduler(cgroup, prefix, "")?.unwrap_or_default();
            statistics["cfq"] = encode(own);
        }
        break;
    }
    Ok(statistics)
}

/// With the cgroups below, where the kernel has that: what a container does in a cgroup of its own making counts.
fn throttling(cgroup: &Cgroup) -> Result<ByDevice, CgroupError> {
    let mut found = ByDevice::new();
    for (field, file) in COUNTERS {
        let recursive = read_into(&mut found, cgroup, field, &format!("blkio.throttle.{file}_recursive"))?;
        if !recursive {
            read_into(&mut found, cgroup, field, &format!("blkio.throttle.{file}"))?;
        }
    }
    Ok(found)
}

/// `None` if the kernel does not have this scheduler.
fn scheduler(cgroup: &Cgroup, prefix: &str, suffix: &str) -> Result<Option<ByDevice>, CgroupError> {
    let mut found = ByDevice::new();
    for (field, file) in COUNTERS {
        if !read_into(&mut found, cgroup, field, &format!("{prefix}{file}{suffix}"))? {
            return Ok(None);
        }
        if found.keys().all(Option::is_none) {
            return Ok(Some(found));
        }
    }
    for (field, file) in DETAILS {
        if !read_into(&mut found, cgroup, field, &format!("{prefix}{file}{suffix}"))? {
            break;
        }
    }
    Ok(Some(found))
}

/// Reads a file into a field. Returns whether it exists.
fn read_into(
    found: &mut ByDevice,
    cgroup: &Cgroup,
    field: &'static str,
    file: &str,
) -> Result<bool, CgroupError> {
    match cgroup.read(file) {
        Ok(text) => {
            parse(found, field, &text);
            Ok(true)
        }
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lines like `8:0 Read 4096`, `8:0 4096` or `Total 4096`.
fn parse(found: &mut ByDevice, field: &'static str, text: &str) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some(first) = words.next() else { continue };
        let device = Device::parse(first);
        let operation = if device.is_some() { words.next() } else { Some(first) };
        let number = |word: &str| word.parse::<u64>().ok();
        match (operation, words.next()) {
            (Some(operation), Some(value)) => {
                if let Some(value) = number(value) {
                    add(found, device, field, operation, value);
                }
            }
            // Without an operation.
            (Some(value), None) => {
                if let (Some(fields), Some(value)) = (fields(found, device), number(value)) {
                    fields.insert(field, value.into());
                }
            }
            (None, _) => {}
        }
    }
}

/// Lines like `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn parse_io_stat(text: &str) -> ByDevice {
    const KEYS: [(&str, &str, &str); 6] = [
        ("rbytes", "io_service_bytes", "READ"),
        ("wbytes", "io_service_bytes", "WRITE"),
        ("dbytes", "io_service_bytes", "DISCARD"),
        ("rios", "io_serviced", "READ"),
        ("wios", "io_serviced", "WRITE"),
        ("dios", "io_serviced", "DISCARD"),
    ];
    let mut found = ByDevice::new();
    let mut totals: BTreeMap<&str, u64> = COUNTERS.iter().map(|(field, _)| (*field, 0)).collect();
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some(device) = words.next().and_then(Device::parse) else { continue };
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Some(&(_, field, operation)) = KEYS.iter().find(|(name, ..)| *name == key) else { continue };
            let Ok(value) = value.parse::<u64>() else { continue };
            add(&mut found, Some(device), field, operation, value);
            let sum = sums.entry(field).or_default();
            *sum = sum.saturating_add(value);
        }
        for (field, sum) in sums {
            let field = if field == "io_serviced" { "io_serviced" } else { "io_service_bytes" };
            add(&mut found, Some(device), field, "TOTAL", sum);
            let total = totals.entry(field).or_default();
            *total = total.saturating_add(sum);
        }
    }
    for (field, _) in COUNTERS {
        add(&mut found, None, field, "TOTAL", totals.get(field).copied().unwrap_or_default());
    }
    found
}

fn fields(found: &mut ByDevice, device: Option<Device>) -> Option<&mut BTreeMap<&'static str, Json>> {
    if found.len() >= MAX_DEVICES && !found.contains_key(&device) {
        return None;
    }
    Some(found.entry(device).or_default())
}

fn add(found: &mut ByDevice, device: Option<Device>, field: &'static str, operation: &str, value: u64) {
    let Some(fields) = fields(found, device) else { return };
    let values = fields.entry(field).or_insert_with(|| json!([]));
    if let Some(values) = values.as_array_mut() {
        values.push(json!({ "op": operation.to_ascii_uppercase(), "value": value }));
    }
}

/// The sum first, as in Mesos without a device.
fn encode(found: ByDevice) -> Json {
    let message = |(device, fields): (Option<Device>, BTreeMap<&str, Json>)| {
        let mut message = json!(fields);
        if let Some(Device { major, minor }) = device {
            message["device"] = json!({ "major_number": major, "minor_number": minor });
        }
        message
    };
    found.into_iter().map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_v1_become_messages() {
        let mut found = ByDevice::new();
        parse(&mut found, "io_service_bytes", "8:0 Read 10\n8:0 Write 5\n8:0 Total 15\nTotal 15");
        parse(&mut found, "sectors", "8:0 30");
        let expected = json!([
            { "io_service_bytes": [{ "op": "TOTAL", "value": 15 }] },
            {
                "device": { "major_number": 8, "minor_number": 0 },
                "io_service_bytes": [
                    { "op": "READ", "value": 10 }, { "op": "WRITE", "value": 5 }, { "op": "TOTAL", "value": 15 },
                ],
                "sectors": 30,
            },
        ]);
        assert_eq!(encode(found), expected);
    }

    #[test]
    fn the_file_of_v2_becomes_messages_with_sums() {
        let found = parse_io_stat(
            "8:0 rbytes=10 wbytes=5 rios=2 wios=1 dbytes=0 dios=0 cost.usage=7\n8:16 rbytes=1 wbytes=0 rios=1 wios=0",
        );
        let messages = encode(found);
        assert_eq!(messages[0]["io_service_bytes"], json!([{ "op": "TOTAL", "value": 16 }]));
        assert_eq!(messages[0]["io_serviced"], json!([{ "op": "TOTAL", "value": 4 }]));
        assert_eq!(messages[1]["device"], json!({ "major_number": 8, "minor_number": 0 }));
        let bytes = &messages[1]["io_service_bytes"];
        assert_eq!(bytes[0], json!({ "op": "READ", "value": 10 }));
        assert_eq!(bytes[3], json!({ "op": "TOTAL", "value": 15 }));
        assert_eq!(messages.as_array().unwrap().len(), 3);
        assert_eq!(encode(parse_io_stat(""))[0]["io_serviced"], json!([{ "op": "TOTAL", "value": 0 }]));
    }

    #[test]
    fn devices_are_bounded() {
        let text: String = (0..2 * MAX_DEVICES).map(|minor| format!("8:{minor} Read 1\n")).collect();
        let mut found = ByDevice::new();
        parse(&mut found, "io_serviced", &text);
        assert_eq!(found.len(), MAX_DEVICES);
    }
}
