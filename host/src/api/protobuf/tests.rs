use std::collections::{BTreeMap, BTreeSet};

use cofferdam_fuzz::fuzz_bytes;
use data_encoding::BASE64;
use serde_json::{Map, Value as Json, json};

use super::schema::{Field, Kind, Label, Message, agent, executor, task};
use super::*;
use crate::api::encoding::Encoding;
use crate::api::operator::types::{self as wire, Call, Response};

/// The messages that are sent and received as such.
const ROOTS: [&Message; 5] =
    [&agent::CALL, &agent::RESPONSE, &agent::PROCESS_IO, &executor::CALL, &executor::EVENT];

/// Fields that the agent does not know, in messages that it has types for.
const UNKNOWN_FIELDS: &[&str] = &[
    // What is refused: images of type `APPC`.
    "mesos.v1.Image.appc",
    // Deprecated, for `config`.
    "mesos.v1.Image.Docker.credential",
    // What a master and resource providers set.
    "mesos.v1.Resource.allocation_info",
    "mesos.v1.Resource.provider_id",
    // What this agent does not have, or not always, such as a port.
    "mesos.v1.AgentInfo.attributes",
    "mesos.v1.AgentInfo.domain",
    "mesos.v1.AgentInfo.port",
];

/// All messages, by name.
fn messages() -> BTreeMap<&'static str, &'static Message> {
    let mut found = BTreeMap::new();
    let mut next: Vec<&'static Message> = ROOTS.to_vec();
    while let Some(message) = next.pop() {
        if found.insert(message.name, message).is_none() {
            next.extend(message.fields.iter().filter_map(|field| match field.kind {
                Kind::Message(message) => Some(message),
                _ => None,
            }));
        }
    }
    found
}

/// How large a sample is.
#[derive(Clone, Copy)]
struct Size {
    /// How many levels of messages have all fields. Those within have the required ones only.
    depth: usize,
    /// Values of repeated fields and maps.
    elements: usize,
}

/// Enough where the messages within are samples of their own.
const SHALLOW: Size = Size { depth: 1, elements: 2 };

/// All levels.
const DEEP: Size = Size { depth: usize::MAX, elements: 1 };

/// A message with all fields. Of enumerations, it has the value number `seed`, or what that is after the last. Messages that
/// are within one of their own kind have no fields but required ones.
fn sample(message: &'static Message, seed: usize, size: Size) -> Json {
    sample_within(message, seed, size, &mut Vec::new())
}

fn sample_within(message: &'static Message, seed: usize, size: Size, outer: &mut Vec<&'static str>) -> Json {
    let is_full = outer.len() < size.depth && !outer.contains(&message.name);
    outer.push(message.name);
    let mut fields = Map::new();
    for field in message.fields {
        if !is_full && field.label != Label::Required {
            continue;
        }
        let mut value = |number| sample_value(field, seed + number, size, outer);
        let value = match field.label {
            Label::Required | Label::Optional => value(0),
            Label::Repeated => (0..size.elements).map(value).collect(),
            Label::Map => (0..size.elements).map(|number| (format!("{number}.b"), value(number))).collect(),
        };
        fields.insert(field.name.to_owned(), value);
    }
    outer.pop();
    fields.into()
}

/// How many seeds there are until every enumeration of a message has had all of its values.
fn seeds(message: &Message) -> usize {
    let values = message.fields.iter().map(|field| match field.kind {
        Kind::Enumeration(known) => known.values.len(),
        _ => 2,
    });
    values.max().unwrap_or(1)
}

fn sample_value(field: &Field, seed: usize, size: Size, outer: &mut Vec<&'static str>) -> Json {
    let is_odd = seed % 2 == 1;
    match field.kind {
        Kind::Bool => json!(true),
        Kind::Int32 => json!(if is_odd { i32::MIN } else { i32::MAX }),
        Kind::Int64 => json!(if is_odd { i64::MIN } else { i64::MAX }),
        Kind::Uint32 => json!(if is_odd { u32::MAX } else { field.number }),
        Kind::Uint64 => json!(if is_odd { u64::MAX } else { u64::from(field.number) }),
        Kind::Double => json!(f64::from(field.number) + if is_odd { 0.5 } else { 0.25 }),
        Kind::String => json!(format!("{} {seed} é", field.name)),
        Kind::Bytes => json!(BASE64.encode(format!("\0{}\u{ff}", field.name).as_bytes())),
        Kind::Enumeration(known) => json!(known.values[seed % known.values.len()].0),
        Kind::Message(message) => sample_within(message, seed, size, outer),
    }
}

/// The fields of `sample` that `found` does not have, or that are different.
fn lost(message: &'static Message, sample: &Json, found: &Json, lost_fields: &mut BTreeSet<String>) {
    for field in message.fields {
        let (sample, found) = (&sample[field.name], &found[field.name]);
        if sample == found {
            continue;
        }
        let values = |value: &Json| match (value, field.label) {
            (Json::Array(values), Label::Repeated) => values.clone(),
            (Json::Object(values), Label::Map) => values.values().cloned().collect(),
            (value, _) => vec![value.clone()],
        };
        match field.kind {
            Kind::Message(inner) if !found.is_null() => {
                assert_eq!(values(sample).len(), values(found).len(), "{}.{}", message.name, field.name);
                for (sample, found) in values(sample).iter().zip(values(found)) {
                    lost(inner, sample, &found, lost_fields);
                }
            }
            _ => {
                assert!(found.is_null(), "{}.{}: {found} instead of {sample}", message.name, field.name);
                lost_fields.insert(format!("{}.{}", message.name, field.name));
            }
        }
    }
}

#[test]
fn the_schema_is_consistent() {
    let messages = messages();
    assert!(messages.len() > 100);
    for message in messages.values() {
        let numbers: Vec<u32> = message.fields.iter().map(|field| field.number).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{}: {numbers:?}", message.name);
        let names: BTreeSet<&str> = message.fields.iter().map(|field| field.name).collect();
        assert_eq!(names.len(), numbers.len(), "{}", message.name);
        assert!(numbers.len() <= 128, "{} has more fields than can be noted as written", message.name);
        let mut required = vec![*message];
        for _ in 0..=messages.len() {
            let inner = |message: &&'static Message| {
                let required = message.fields.iter().filter(|field| field.label == Label::Required);
                required
                    .filter_map(
                        |field| if let Kind::Message(inner) = field.kind { Some(inner) } else { None },
                    )
                    .collect::<Vec<_>>()
            };
            required = required.iter().flat_map(inner).collect();
        }
        assert!(required.is_empty(), "{} requires a message of its own kind", message.name);
    }
}

#[test]
fn every_field_of_every_message_survives_a_round_trip() {
    for message in messages().values() {
        for seed in 0..seeds(message) {
            let sample = sample(message, seed, SHALLOW);
            let bytes = to_vec(message, &sample).unwrap_or_else(|error| panic!("{}: {error}", message.name));
            let found: Json = from_slice(message, &bytes).unwrap();
            assert_eq!(found, sample, "{}", message.name);
        }
    }
}

/// What is lost of a message on the way from the wire to a type of the API, to the wire, and to JSON.
fn assert_kept<T: serde::Serialize>(
    message: &'static Message,
    sample: &Json,
    read: impl Fn(&[u8]) -> T,
    lost_fields: &mut BTreeSet<String>,
) {
    let first = read(&to_vec(message, sample).unwrap());
    lost(message, sample, &serde_json::to_value(&first).unwrap(), lost_fields);
    let second: Json = from_slice(message, &to_vec(message, &first).unwrap()).unwrap();
    lost(message, sample, &second, lost_fields);
}

#[test]
fn the_types_of_the_api_have_the_published_fields() {
    // Those with the enumerations that have most values: capabilities and limits, reasons and states, operations.
    const WITH_ALL_VALUES: [&str; 3] = ["LAUNCH_CONTAINER", "WAIT_CONTAINER", "GET_CONTAINERS"];
    let mut lost_fields = BTreeSet::new();
    for (message, types) in [(&agent::CALL, Call::TYPES), (&agent::RESPONSE, Response::TYPES)] {
        let Kind::Enumeration(kinds) = message.fields[0].kind else { panic!("{:?}", message.fields[0]) };
        for (kind, _) in kinds.values.iter().filter(|(kind, _)| types.contains(kind)) {
            let body = kind.to_lowercase();
            for seed in 0..if WITH_ALL_VALUES.contains(kind) { 48 } else { 2 } {
                let mut sample = json!({ "type": kind });
                for field in message.fields.iter().filter(|field| field.name == body) {
                    sample[&body] = sample_value(field, seed, DEEP, &mut Vec::new());
                }
                let read_call = |bytes: &[u8]| {
                    let call = Call::read(Call::codec(Encoding::Protobuf), bytes);
                    call.unwrap_or_else(|error| panic!("{kind}: {error:?}"))
                };
                let read_response = |bytes: &[u8]| {
                    let response = Response::read(Response::codec(Encoding::Protobuf), bytes);
                    response.unwrap_or_else(|error| panic!("{kind}: {error:?}"))
                };
                match std::ptr::eq(message, &agent::CALL) {
                    true => assert_kept(message, &sample, read_call, &mut lost_fields),
                    false => assert_kept(message, &sample, read_response, &mut lost_fields),
                }
            }
        }
    }
    for seed in 0..4 {
        let read = |bytes: &[u8]| from_slice::<wire::ProcessIo>(&agent::PROCESS_IO, bytes).unwrap();
        assert_kept(&agent::PROCESS_IO, &sample(&agent::PROCESS_IO, seed, DEEP), read, &mut lost_fields);
    }
    let known: BTreeSet<String> = UNKNOWN_FIELDS.iter().map(|field| (*field).to_owned()).collect();
    assert_eq!(lost_fields, known, "adjust the type, or the list above");
}

#[test]
fn the_parts_of_tasks_that_the_agent_knows_have_the_published_form() {
    for seed in 0..48 {
        let bytes = |message| to_vec(message, &sample(message, seed, DEEP)).unwrap();
        from_slice::<wire::TaskInfo>(&task::TASK_INFO, &bytes(&task::TASK_INFO)).unwrap();
        from_slice::<wire::FrameworkInfo>(&task::FRAMEWORK_INFO, &bytes(&task::FRAMEWORK_INFO)).unwrap();
        from_slice::<wire::ExecutorInfo>(&task::EXECUTOR_INFO, &bytes(&task::EXECUTOR_INFO)).unwrap();
    }
}

/// Bytes that were worked out by hand from the published numbers.
#[test]
fn messages_have_the_published_bytes() {
    let cases: [(&'static Message, Json, &[u8]); 6] = [
        (
            &agent::CALL,
            json!({"type": "WAIT_CONTAINER", "wait_container": {"container_id": {"value": "web"}}}),
            &[0x08, 23, 0x72, 7, 0x0a, 5, 0x0a, 3, b'w', b'e', b'b'],
        ),
        (
            &agent::CALL,
            json!({"type": "KILL_CONTAINER", "kill_container": {
                "container_id": {"value": "a", "parent": {"value": "b"}}, "signal": -1,
            }}),
            &[
                0x08, 24, 0x7a, 21, 0x0a, 8, 0x0a, 1, b'a', 0x12, 3, 0x0a, 1, b'b', 0x10, 0xff, 0xff, 0xff,
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
        ),
        (
            &agent::CALL,
            json!({"type": "LAUNCH_CONTAINER", "launch_container": {
                "container_id": {"value": "c"}, "limits": {"cpus": {"value": "Infinity"}},
            }}),
            &[
                0x08, 22, 0x6a, 24, 0x0a, 3, 0x0a, 1, b'c', 0x2a, 17, 0x0a, 4, b'c', b'p', b'u', b's', 0x12,
                9, 0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x7f,
            ],
        ),
        (
            &agent::RESPONSE,
            json!({"type": "GET_HEALTH", "get_health": {"healthy": true}}),
            &[8, 1, 0x12, 2, 8, 1],
        ),
        (
            &agent::PROCESS_IO,
            json!({"type": "DATA", "data": {"type": "STDERR", "data": "AP8="}}),
            &[0x08, 1, 0x12, 6, 0x08, 3, 0x12, 2, 0x00, 0xff],
        ),
        (
            &executor::EVENT,
            json!({"type": "ACKNOWLEDGED", "acknowledged": {"task_id": {"value": "t"}, "uuid": "AQI="}}),
            &[0x08, 4, 0x1a, 9, 0x0a, 3, 0x0a, 1, b't', 0x12, 2, 1, 2],
        ),
    ];
    for (message, value, bytes) in cases {
        assert_eq!(from_slice::<Json>(message, bytes).unwrap(), value);
        // A value has its fields in the order of their names, a type in that of the published message.
        assert_eq!(to_vec(message, &value).unwrap().len(), bytes.len(), "{value}");
        let written = match () {
            () if std::ptr::eq(message, &agent::CALL) => {
                to_vec(message, &Call::read(Call::codec(Encoding::Protobuf), bytes).unwrap())
            }
            () if std::ptr::eq(message, &agent::RESPONSE) => {
                to_vec(message, &Response::read(Response::codec(Encoding::Protobuf), bytes).unwrap())
            }
            () if std::ptr::eq(message, &agent::PROCESS_IO) => {
                to_vec(message, &from_slice::<wire::ProcessIo>(message, bytes).unwrap())
            }
            () => continue,
        };
        assert_eq!(written.unwrap(), bytes, "{value}");
    }
}

#[test]
fn required_fields_are_always_set() {
    let bytes = to_vec(&task::TASK_INFO, &json!({"name": "n"})).unwrap();
    let found: Json = from_slice(&task::TASK_INFO, &bytes).unwrap();
    assert_eq!(found, json!({"name": "n", "task_id": {"value": ""}, "agent_id": {"value": ""}}));
}

#[test]
fn a_field_may_be_stored_in_several_parts() {
    // Numbers one by one and packed; of a single value, the last; a message in two parts; a field that is not known.
    let http =
        |bytes: &[u8]| from_slice::<Json>(messages()["mesos.v1.HealthCheck.HTTPCheckInfo"], bytes).unwrap();
    assert_eq!(http(&[0x20, 1, 0x22, 3, 2, 0xac, 2, 0x20, 4])["statuses"], json!([1, 2, 300, 4]));
    assert_eq!(http(&[0x08, 1, 0x08, 2, 0x98, 6, 1])["port"], json!(2));
    let id = [0x0a, 3, 0x0a, 1, b'a', 0x0a, 5, 0x12, 3, 0x0a, 1, b'b'];
    let call =
        from_slice::<wire::WaitContainer>(messages()["mesos.v1.agent.Call.WaitContainer"], &id).unwrap();
    assert_eq!(call.container_id.to_string(), "b.a");
}

/// As those of proto2 and of Mesos do, so that a newer library is understood.
#[test]
fn a_value_of_an_enumeration_that_is_newer_than_the_schema_is_kept_or_left_out() {
    let status = json!({"task_id": {"value": "t"}, "state": "TASK_LOST", "reason": 99});
    let bytes = to_vec(&task::TASK_STATUS, &status).unwrap();
    assert_eq!(from_slice::<Json>(&task::TASK_STATUS, &bytes).unwrap(), status);
    let named = json!({"task_id": {"value": "t"}, "state": "TASK_LOST", "reason": "REASON_NEW"});
    check(&task::TASK_STATUS, &named).unwrap();
    let found: Json = from_slice(&task::TASK_STATUS, &to_vec(&task::TASK_STATUS, &named).unwrap()).unwrap();
    assert_eq!(found, json!({"task_id": {"value": "t"}, "state": "TASK_LOST"}));
    // One that is required has to be known, and so has one on which the agent acts.
    assert!(check(&task::TASK_STATUS, &json!({"task_id": {"value": "t"}, "state": "TASK_NEW"})).is_err());
    let linux = messages()["mesos.v1.LinuxInfo"];
    let bytes = to_vec(linux, &json!({"ipc_mode": 77})).unwrap();
    let error = from_slice::<wire::LinuxInfo>(linux, &bytes).unwrap_err().to_string();
    assert_eq!(error, "`ipc_mode`: 77 is not a value of `mesos.v1.LinuxInfo.IpcMode`");
}

/// Two parts at each of many levels are not copied: the whole is read in its own size.
#[test]
fn a_message_in_parts_at_every_level_is_read() {
    let mut id = vec![0x0a, 1, b'x'];
    id.extend([0x0a, 0x80, 0x80, 0x04]);
    id.extend([b'y'; 1 << 16]);
    for _ in 0..80 {
        let mut outer = vec![0x0a, 1, b'x', 0x12, 0, 0x12];
        super::wire::put_varint(&mut outer, id.len() as u64);
        outer.extend(id);
        id = outer;
    }
    let id: wire::ContainerId = from_slice(messages()["mesos.v1.ContainerID"], &id).unwrap();
    assert_eq!((id.depth(), id.root().value.len()), (80, 1 << 16));
}

#[test]
fn an_error_names_the_field() {
    let error = |bytes: &[u8]| {
        let error = Call::read(Call::codec(Encoding::Protobuf), bytes).unwrap_err();
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    for (bytes, expected) in [
        (&[][..], "`type` is missing"),
        (&[0x08, 99], "`type`: invalid type: integer `99`, expected a string"),
        (&[0x08, 27], "`ADD_RESOURCE_PROVIDER_CONFIG` is not implemented"),
        (&[0x0a, 0], "`type`: it has the wrong wire type; expected a number"),
        (&[0x08, 23], "`WAIT_CONTAINER` requires the field `wait_container`"),
        (&[0x08, 23, 0x72, 0], "`wait_container`: missing field `container_id`"),
        (&[0x08, 23, 0x72, 2, 0x0a, 0], "`wait_container.container_id`: missing field `value`"),
        (&[0x08, 23, 0x72, 2, 0x08, 0], "`wait_container.container_id`: it has the wrong wire type"),
        (
            &[0x08, 23, 0x72, 5, 0x0a, 3, 0x0a, 1, 0xff],
            "`wait_container.container_id.value`: it is not UTF-8",
        ),
        (
            &[0x08, 23, 0x72, 5, 0x0a, 3, 0x0a, 2, b'x'],
            "`wait_container.container_id`: the message ends within a field",
        ),
        (
            &[0x08, 22, 0x6a, 9, 0x0a, 3, 0x0a, 1, b'c', 0x1a, 2, 0x0a, 0],
            "`launch_container.resources[0]`: missing field `type`",
        ),
        (
            &[0x08, 22, 0x6a, 12, 0x0a, 3, 0x0a, 1, b'c', 0x2a, 5, 0x0a, 1, b'x', 0x12, 0],
            "`launch_container.limits[\"x\"]`: missing field `value`",
        ),
    ] {
        let found = error(bytes);
        assert!(found.contains(expected), "{bytes:?}: {found}");
    }
}

#[test]
fn values_of_another_kind_are_not_encoded() {
    for (value, expected) in [
        (json!({"name": 1}), "`name`: expected a string, found the number 1"),
        (json!({"task_id": "t"}), "`task_id`: expected an object, found a string"),
        (json!({"resources": {}}), "`resources`: expected a list, found an object"),
        (
            json!({"resources": [{"type": "SCALER"}]}),
            "`resources[0].type`: expected a value of `mesos.v1.Value.Type`, found `SCALER`",
        ),
        (json!({"resources": [null]}), "`resources[0]`: expected an object, found null"),
        (
            json!({"limits": {"mem": {"value": true}}}),
            "`limits[\"mem\"].value`: expected a number, found a boolean",
        ),
        (json!({"limits": {"mem": null}}), "`limits[\"mem\"]`: expected an object, found null"),
        (json!({"data": "="}), "`data`: expected base64, found a string"),
        (
            json!({"health_check": {"http": {"port": -1}}}),
            "`health_check.http.port`: expected an integer in range, found the number -1",
        ),
        (json!([]), "expected an object, found a list"),
    ] {
        let error = check(&task::TASK_INFO, &value).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{value}: {error}");
    }
    // As in JSON, 64-bit integers may be strings, and unknown and unset fields are ignored.
    let value = json!({"max_completion_time": {"nanoseconds": "5"}, "discovery": null, "colour": []});
    check(&task::TASK_INFO, &value).unwrap();
}

#[test]
fn nesting_has_a_limit() {
    let nested = |levels: usize| {
        let mut id = json!({"value": "x"});
        for _ in 1..levels {
            id = json!({"value": "x", "parent": id});
        }
        id
    };
    let id = messages()["mesos.v1.ContainerID"];
    let bytes = to_vec(id, &nested(MAX_DEPTH)).unwrap();
    from_slice::<wire::ContainerId>(id, &bytes).unwrap();
    let mut deeper = bytes;
    for _ in 0..1000 {
        let mut outer = vec![0x0a, 1, b'x', 0x12];
        super::wire::put_varint(&mut outer, deeper.len() as u64);
        outer.extend(deeper);
        deeper = outer;
    }
    let error = from_slice::<wire::ContainerId>(id, &deeper).unwrap_err().to_string();
    assert!(error.contains("nested more than 100 levels deep"), "{error}");
    assert!(to_vec(id, &nested(MAX_DEPTH + 2)).is_err());
}

#[test]
fn any_bytes_are_a_message_or_refused() {
    let samples: Vec<Vec<u8>> = ROOTS
        .iter()
        .map(|message| to_vec(message, &sample(message, 0, Size { depth: 2, elements: 1 })).unwrap())
        .chain([vec![0x08, 23, 0x72, 7, 0x0a, 5, 0x0a, 3, b'w', b'e', b'b']])
        .collect();
    fuzz_bytes(&samples, &["\u{1}", "\u{80}", "\u{ff}"], |bytes| {
        drop(Call::read(Call::codec(Encoding::Protobuf), bytes));
        for message in ROOTS {
            let Ok(value) = from_slice::<Json>(message, bytes) else { continue };
            // What was read can be written, and is read as the same.
            let again = to_vec(message, &value).unwrap_or_else(|error| panic!("{value}: {error}"));
            let found: Json = from_slice(message, &again).unwrap();
            assert_eq!(without_defaults(message, &found, &value), value);
        }
    });
}

/// A message without the required fields that were added to it.
fn without_defaults(message: &'static Message, found: &Json, original: &Json) -> Json {
    let (Json::Object(found), Json::Object(original)) = (found, original) else { return found.clone() };
    let mut kept = Map::new();
    for field in message.fields {
        let (Some(found), Some(original)) = (found.get(field.name), original.get(field.name)) else {
            continue;
        };
        let Kind::Message(inner) = field.kind else {
            kept.insert(field.name.to_owned(), found.clone());
            continue;
        };
        let value = match (found, original) {
            (Json::Array(found), Json::Array(original)) => found
                .iter()
                .zip(original)
                .map(|(found, original)| without_defaults(inner, found, original))
                .collect(),
            (Json::Object(found), Json::Object(original)) if field.label == Label::Map => {
                let entry = |(key, value): (&String, &Json)| {
                    (key.clone(), without_defaults(inner, value, &original[key]))
                };
                Json::Object(found.iter().map(entry).collect())
            }
            (found, original) => without_defaults(inner, found, original),
        };
        kept.insert(field.name.to_owned(), value);
    }
    kept.into()
}
