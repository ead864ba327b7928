//! Mutations of JSON values. Their syntax stays valid, so that what is behind the parser is reached.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value as Json, json};

#[derive(Debug, Clone)]
enum Mutation {
    Replace {
        at: Index,
        value: Json,
    },
    /// Replaces a value by another one of the input.
    Move {
        from: Index,
        to: Index,
    },
    Remove {
        at: Index,
    },
    Rename {
        at: Index,
        key: String,
    },
    Add {
        at: Index,
        key: String,
        value: Json,
    },
}

/// Mutations of samples: often one, sometimes several.
pub(crate) fn mutated(samples: &[Json]) -> impl Strategy<Value = Json> + use<> {
    (select(samples.to_vec()), vec(mutation(), 0..6)).prop_map(|(mut input, mutations)| {
        for mutation in mutations {
            apply(mutation, &mut input);
        }
        input
    })
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    let key = || select(["", "name", "type", "value", "path", "id", "é\0"].map(str::to_owned).to_vec());
    prop_oneof![
        3 => (at(), strange()).prop_map(|(at, value)| Mutation::Replace { at, value }),
        1 => (at(), at()).prop_map(|(from, to)| Mutation::Move { from, to }),
        1 => at().prop_map(|at| Mutation::Remove { at }),
        1 => (at(), key()).prop_map(|(at, key)| Mutation::Rename { at, key }),
        1 => (at(), key(), strange()).prop_map(|(at, key, value)| Mutation::Add { at, key, value }),
    ]
}

/// Values that parsers tend to forget.
fn strange() -> impl Strategy<Value = Json> {
    let text = |text: &str| Json::from(text);
    let numbers = [
        json!(0),
        json!(1),
        json!(-1),
        json!(255),
        json!(65536),
        json!(4_294_967_295_u64),
        json!(2_147_483_648_u64),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e308),
        json!(-1e308),
        json!(1e-308),
        json!(0.1),
        json!(-0.0),
    ];
    let texts = [
        text(""),
        text("."),
        text(".."),
        text("/"),
        text("../../etc"),
        text("/a//b/../c/"),
        text("\0"),
        text("\n"),
        text("\u{1b}[2J"),
        text("ü\u{10ffff}"),
        text("-1"),
        text("4294967295"),
        text("Infinity"),
        text("NaN"),
        text("root"),
        text("0"),
        text("*"),
        text("="),
        text("a=b"),
        text("{"),
        text("🦀🦀🦀🦀"),
        Json::from("x".repeat(300)),
        Json::from("a/".repeat(3000)),
        Json::from("ü".repeat(5000)),
    ];
    let nested = (0..100).fold(json!(null), |inner, _| json!([inner]));
    let others = [
        json!(null),
        json!(true),
        json!(false),
        json!([]),
        json!({}),
        json!([null]),
        json!({"a": {}}),
        nested,
    ];
    prop_oneof![
        3 => select([&numbers[..], &texts, &others].concat()),
        1 => any::<i64>().prop_map(Json::from),
        1 => any::<f64>().prop_map(|number| serde_json::Number::from_f64(number).map_or(Json::Null, Json::Number)),
        1 => ".{0,20}".prop_map(Json::from),
    ]
}

fn apply(mutation: Mutation, input: &mut Json) {
    let pointers = pointers(input);
    let place = |at: Index| &pointers[at.index(pointers.len())];
    match mutation {
        Mutation::Replace { at, value } => replace(input, place(at), value),
        Mutation::Move { from, to } => {
            let value = input.pointer(place(from)).cloned().unwrap_or_default();
            replace(input, place(to), value);
        }
        Mutation::Remove { at } => drop(take(input, place(at))),
        Mutation::Rename { at, key } => {
            let pointer = place(at);
            if let Some(value) = take(input, pointer)
                && let Some((parent, _)) = pointer.rsplit_once('/')
                && let Some(Json::Object(object)) = input.pointer_mut(parent)
            {
                object.insert(key, value);
            }
        }
        Mutation::Add { at, key, value } => match input.pointer_mut(place(at)) {
            Some(Json::Object(object)) => drop(object.insert(key, value)),
            Some(Json::Array(array)) => array.push(value),
            _ => {}
        },
    }
}

fn replace(input: &mut Json, pointer: &str, value: Json) {
    if let Some(place) = input.pointer_mut(pointer) {
        *place = value;
    }
}

/// Removes a value from the one that contains it.
fn take(input: &mut Json, pointer: &str) -> Option<Json> {
    let (parent, key) = pointer.rsplit_once('/')?;
    match input.pointer_mut(parent)? {
        Json::Object(object) => object.remove(&key.replace("~1", "/").replace("~0", "~")),
        Json::Array(array) => Some(array.remove(key.parse().ok()?)),
        _ => None,
    }
}

/// Where the values of an input are.
fn pointers(input: &Json) -> Vec<String> {
    let mut pointers = vec![String::new()];
    let mut next = 0;
    while let Some(pointer) = pointers.get(next).cloned() {
        next += 1;
        match input.pointer(&pointer) {
            Some(Json::Object(object)) => {
                let keys = object.keys().map(|key| key.replace('~', "~0").replace('/', "~1"));
                pointers.extend(keys.map(|key| format!("{pointer}/{key}")));
            }
            Some(Json::Array(array)) => {
                pointers.extend((0..array.len()).map(|index| format!("{pointer}/{index}")));
            }
            _ => {}
        }
    }
    pointers
}
