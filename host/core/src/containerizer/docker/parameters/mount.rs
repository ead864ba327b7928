//! The options `mount` and `gpus`: fields with commas in between.

use serde_json::{Value as Json, json};

/// `type=bind,source=/a,target=/b,readonly` and so on, as an element of `HostConfig.Mounts`.
pub(super) fn mount(text: &str) -> Option<Json> {
    let mut mount = json!({ "Type": "volume" });
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => mount["Type"] = value.to_lowercase().into(),
            "source" | "src" => mount["Source"] = value.into(),
            "target" | "destination" | "dst" => mount["Target"] = value.into(),
            "readonly" | "ro" => mount["ReadOnly"] = flag(value)?.into(),
            "consistency" => mount["Consistency"] = value.into(),
            "bind-propagation" => mount["BindOptions"]["Propagation"] = value.into(),
            "bind-nonrecursive" => mount["BindOptions"]["NonRecursive"] = flag(value)?.into(),
            "volume-nocopy" => mount["VolumeOptions"]["NoCopy"] = flag(value)?.into(),
            "volume-driver" => mount["VolumeOptions"]["DriverConfig"]["Name"] = value.into(),
            "volume-opt" => {
                let (name, value) = value.split_once('=')?;
                mount["VolumeOptions"]["DriverConfig"]["Options"][name] = value.into();
            }
            "volume-label" => {
                let (name, value) = value.split_once('=').unwrap_or((value, ""));
                mount["VolumeOptions"]["Labels"][name] = value.into();
            }
            "tmpfs-size" => mount["TmpfsOptions"]["SizeBytes"] = super::size(value)?.into(),
            "tmpfs-mode" => mount["TmpfsOptions"]["Mode"] = u32::from_str_radix(value, 8).ok()?.into(),
            _ => return None,
        }
    }
    let is_known = ["bind", "volume", "tmpfs", "npipe"].contains(&mount["Type"].as_str()?);
    (is_known && mount["Target"].as_str().is_some_and(|target| !target.is_empty())).then_some(mount)
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "" | "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// `all`, a number, or `device=0`, `driver=…`, `count=…`, `capabilities=…`, as an element of `HostConfig.DeviceRequests`.
pub(super) fn gpus(text: &str) -> Option<Json> {
    let (mut count, mut driver) = (None, "");
    let (mut devices, mut capabilities) = (Vec::new(), vec!["gpu"]);
    for field in text.split(',') {
        match field.split_once('=').unwrap_or(("count", field)) {
            ("count", "all") => count = Some(-1),
            ("count", number) => count = Some(number.parse::<i64>().ok().filter(|number| *number >= 0)?),
            ("device", device) => devices.push(device),
            ("driver", name) => driver = name,
            ("capabilities", capability) => capabilities.push(capability),
            _ => return None,
        }
    }
    if count.is_some() && !devices.is_empty() {
        return None;
    }
    let count = count.unwrap_or(if devices.is_empty() { 1 } else { 0 });
    Some(json!({ "Driver": driver, "Count": count, "DeviceIDs": devices, "Capabilities": [capabilities] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_of_all_kinds() {
        assert_eq!(
            mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave"),
            Some(json!({
                "Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true,
                "BindOptions": { "Propagation": "rslave" },
            }))
        );
        let volume =
            mount("source=data,target=/d,volume-driver=nfs,volume-opt=a=b,volume-label=x=y,ro=false");
        let options =
            json!({ "DriverConfig": { "Name": "nfs", "Options": { "a": "b" } }, "Labels": { "x": "y" } });
        assert_eq!(
            volume,
            Some(json!({
                "Type": "volume", "Source": "data", "Target": "/d", "ReadOnly": false, "VolumeOptions": options,
            }))
        );
        let tmpfs = mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap();
        assert_eq!(tmpfs["TmpfsOptions"], json!({ "SizeBytes": 1 << 20, "Mode": 0o1770 }));
        for wrong in
            ["", "type=bind,source=/a", "target=/a,colour=red", "type=nfs,target=/a", "target=/a,ro=x"]
        {
            assert_eq!(mount(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn gpus_are_counted_or_named() {
        let expected = |count: i64, devices: &[&str]| {
            let capabilities = json!([["gpu"]]);
            Some(json!({ "Driver": "", "Count": count, "DeviceIDs": devices, "Capabilities": capabilities }))
        };
        assert_eq!(gpus("all"), expected(-1, &[]));
        assert_eq!(gpus("2"), expected(2, &[]));
        assert_eq!(gpus("device=0,device=3"), expected(0, &["0", "3"]));
        for wrong in ["", "-1", "some", "2,device=1", "colour=red"] {
            assert_eq!(gpus(wrong), None, "{wrong}");
        }
    }
}
