//! Holds a table of the file against a JSON schema: the agent's own, or that of a plugin.
//!
//! The subset is the one that plugins are exported with: `type`, `properties`, `required`,
//! `additionalProperties`, `items`, `enum`, `minimum`, `maximum`, `format` for `duration`, `size` and `path`,
//! and `$ref` to another place of the same schema. Words that are not known say nothing.

use std::ops::Range;

use cofferdam_plugin_model::units;
use serde_json::{Map, Value as Json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Finding, nearest, words};

/// Whose table it is, for sentences about it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner<'a> {
    /// The agent's own.
    Agent,
    /// That of a plugin.
    Plugin(&'a str),
}

/// Everything in `table` that `schema` does not allow. `span` is where the table itself is, for what is
/// missing in it.
pub(super) fn check(
    table: &DeTable<'_>,
    span: Range<usize>,
    schema: &Json,
    owner: Owner<'_>,
) -> Vec<Finding> {
    let mut checker = Checker { whole: schema, owner, findings: Vec::new() };
    checker.table(table, span, schema, "");
    checker.findings
}

/// What a value of the file is in JSON, as a plugin receives it. Dates become text.
pub(super) fn to_json(value: &DeValue<'_>) -> Json {
    match value {
        DeValue::String(text) => Json::from(text.as_ref()),
        DeValue::Integer(number) => integer(number).map_or(Json::Null, Json::from),
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Json::Null, Json::from),
        DeValue::Boolean(value) => Json::from(*value),
        DeValue::Datetime(date) => Json::from(date.to_string()),
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect(),
        DeValue::Table(table) => table_to_json(table),
    }
}

/// [`to_json`] for a table.
pub(super) fn table_to_json(table: &DeTable<'_>) -> Json {
    let entries = table.iter().map(|(key, value)| (key.get_ref().to_string(), to_json(value.get_ref())));
    Json::Object(entries.collect())
}

fn integer(number: &toml::de::DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

struct Checker<'a> {
    whole: &'a Json,
    owner: Owner<'a>,
    findings: Vec<Finding>,
}

impl<'a> Checker<'a> {
    fn table(&mut self, table: &DeTable<'_>, span: Range<usize>, schema: &'a Json, path: &str) {
        let known = schema["properties"].as_object();
        let schema_of = |name: &str| known.and_then(|known| known.get(name));
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let path = join(path, name);
            match (schema_of(name), &schema["additionalProperties"]) {
                (Some(schema), _) => self.value(value, schema, &path),
                (None, Json::Bool(false)) => self.unknown(name, key.span(), known),
                (None, schema @ Json::Object(_)) => self.value(value, schema, &path),
                (None, _) => {}
            }
        }
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
        for name in required.filter(|name| !table.contains_key(*name)) {
            let expected = schema_of(name).map_or_else(|| "a value".to_owned(), expected);
            let finding = Finding::at(
                span.clone(),
                format!("the key `{}` is missing{}", join(path, name), self.whose()),
                format!("this table needs `{name}`: {expected}"),
            );
            self.findings.push(finding.maybe_help(schema_of(name).and_then(described)));
        }
    }

    fn unknown(&mut self, name: &str, span: Range<usize>, known: Option<&Map<String, Json>>) {
        let message = match self.owner {
            Owner::Agent => format!("there is no key `{name}`"),
            Owner::Plugin(plugin) => format!("plugin `{plugin}` knows no key `{name}`"),
        };
        let keys = || known.into_iter().flat_map(Map::keys).map(String::as_str);
        let advice = match nearest(name, keys()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if keys().next().is_none() => "the table takes no keys; remove this one".to_owned(),
            None => format!("the keys there are: {}", words(keys(), "and")),
        };
        self.findings.push(Finding::at(span, message, "expected a key of this table").help(advice));
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, schema: &'a Json, path: &str) {
        let span = value.span();
        let schema = self.followed(schema);
        let kind = schema["type"].as_str();
        match (value.get_ref(), kind) {
            (DeValue::Table(table), Some("object")) => self.table(table, span, schema, path),
            (DeValue::Array(items), Some("array")) => {
                for (i, item) in items.iter().enumerate() {
                    self.value(item, &schema["items"], &format!("{path}[{i}]"));
                }
            }
            (DeValue::String(text), Some("string") | None) if !schema["enum"].is_array() => {
                self.form(text, span, schema, path);
            }
            (DeValue::String(text), Some("string") | None) => self.choice(text, span, schema, path),
            (DeValue::Boolean(_), Some("boolean")) => {}
            (DeValue::Integer(number), Some("integer")) => self.integer(number, span, schema, path),
            // TOML tells `1` from `1.0`; whoever expects a number does not mind.
            (DeValue::Integer(_), Some("number")) => {}
            (DeValue::Float(number), Some("number")) => {
                if !number.as_str().parse::<f64>().is_ok_and(f64::is_finite) {
                    self.refuse(span, schema, path, &format!("`{}`", number.as_str()));
                }
            }
            (_, None) if !schema["enum"].is_array() => {}
            (other, _) => self.refuse(span, schema, path, article(other)),
        }
    }

    fn integer(&mut self, number: &toml::de::DeInteger<'_>, span: Range<usize>, schema: &Json, path: &str) {
        let least = schema["minimum"].as_i64().unwrap_or(i64::MIN);
        let greatest = schema["maximum"].as_i64().unwrap_or(i64::MAX);
        if !integer(number).is_some_and(|number| (least..=greatest).contains(&number)) {
            self.refuse(span, schema, path, &format!("`{number}`"));
        }
    }

    fn form(&mut self, text: &str, span: Range<usize>, schema: &Json, path: &str) {
        let good = match schema["format"].as_str() {
            Some("duration") => units::duration(text).is_some(),
            Some("size") => units::size(text).is_some(),
            Some("path") => !text.is_empty() && !text.contains('\0'),
            _ => true,
        };
        if !good {
            self.refuse(span, schema, path, &format!("`{}`", text.escape_debug()));
        }
    }

    fn choice(&mut self, text: &str, span: Range<usize>, schema: &Json, path: &str) {
        let choices = || schema["enum"].as_array().into_iter().flatten().filter_map(Json::as_str);
        if !choices().any(|choice| choice == text) {
            self.refuse(span, schema, path, &format!("`{}`", text.escape_debug()));
            if let (Some(meant), Some(finding)) = (nearest(text, choices()), self.findings.last_mut()) {
                finding.help.insert(0, format!("did you mean `{meant}`?"));
            }
        }
    }

    fn refuse(&mut self, span: Range<usize>, schema: &Json, path: &str, found: &str) {
        let message = format!("`{path}` cannot be {found}{}", self.whose());
        let label = format!("expected {}", expected(schema));
        self.findings.push(Finding::at(span, message, label).maybe_help(described(schema)));
    }

    /// The schema that a `$ref` points to. One level: a schema cannot send us in circles.
    fn followed(&self, schema: &'a Json) -> &'a Json {
        let target = schema["$ref"].as_str().and_then(|place| place.strip_prefix('#'));
        target.and_then(|place| self.whole.pointer(place)).unwrap_or(schema)
    }

    fn whose(&self) -> String {
        match self.owner {
            Owner::Agent => String::new(),
            Owner::Plugin(plugin) => format!(" for plugin `{plugin}`"),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn described(schema: &Json) -> Option<String> {
    schema["description"].as_str().map(|text| format!("what it is for: {text}"))
}

/// What a schema wants, in words.
#[must_use]
pub fn expected(schema: &Json) -> String {
    if let Some(choices) = schema["enum"].as_array() {
        return words(choices.iter().filter_map(Json::as_str), "or");
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (_, Some("duration")) => "a length of time such as \"1m 30s\"".to_owned(),
        (_, Some("size")) => "a size such as \"64 MiB\"".to_owned(),
        (_, Some("path")) => "a path".to_owned(),
        (Some("string"), _) => "text in quotes".to_owned(),
        (Some("boolean"), _) => "`true` or `false`".to_owned(),
        (Some("number"), _) => "a number".to_owned(),
        (Some("array"), _) if schema["items"]["type"].is_null() => "a list".to_owned(),
        (Some("array"), _) => format!("a list, each entry {}", expected(&schema["items"])),
        (Some("object"), _) => "a table".to_owned(),
        (Some("integer"), _) => match (schema["minimum"].as_i64(), schema["maximum"].as_i64()) {
            (Some(least), Some(i64::MAX) | None) => format!("a whole number from {least}"),
            (Some(i64::MIN) | None, Some(greatest)) => format!("a whole number up to {greatest}"),
            (Some(least), Some(greatest)) => format!("a whole number from {least} to {greatest}"),
            (None, None) => "a whole number".to_owned(),
        },
        _ => "another value".to_owned(),
    }
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
