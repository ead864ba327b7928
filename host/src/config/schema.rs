//! Validates tables of the file against a JSON schema: that of the agent, or that of a plugin.
//!
//! Supports the subset of JSON schema that plugins are exported with: `type`, `properties`, `required`,
//! `additionalProperties`, `items`, `enum`, `minimum`, `maximum`, `format` (`duration`, `size` and `path`), and `$ref`
//! within the same schema. Other keywords are ignored.

use std::ops::Range;

use cofferdam_plugin_model::units;
use serde_json::{Map, Value as Json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;
use super::suggest::{list, nearest};

/// The owner of a table, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner<'a> {
    Agent,
    Plugin(&'a str),
}

/// All violations of `schema` in `table`. `span` is the position of the table, for missing keys.
pub(super) fn check(
    table: &DeTable<'_>,
    span: Range<usize>,
    schema: &Json,
    owner: Owner<'_>,
) -> Vec<Diagnostic> {
    let mut checker = Checker { root: schema, owner, diagnostics: Vec::new() };
    checker.table(table, span, schema, "");
    checker.diagnostics
}

/// A value as JSON, as a plugin receives it. Dates become strings.
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
    root: &'a Json,
    owner: Owner<'a>,
    diagnostics: Vec<Diagnostic>,
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
            let diagnostic = Diagnostic::at(
                span.clone(),
                format!("missing key `{}`{}", join(path, name), self.of_owner()),
                format!("expected `{name}`: {expected}"),
            );
            self.diagnostics.push(diagnostic.maybe_help(schema_of(name).and_then(description)));
        }
    }

    fn unknown(&mut self, name: &str, span: Range<usize>, known: Option<&Map<String, Json>>) {
        let message = match self.owner {
            Owner::Agent => format!("unknown key `{name}`"),
            Owner::Plugin(plugin) => format!("unknown key `{name}` of plugin `{plugin}`"),
        };
        let keys = || known.into_iter().flat_map(Map::keys).map(String::as_str);
        let help = match nearest(name, keys()) {
            Some(similar) => format!("did you mean `{similar}`?"),
            None if keys().next().is_none() => "this table has no keys; remove it".to_owned(),
            None => format!("valid keys are {}", list(keys(), "and")),
        };
        self.diagnostics.push(Diagnostic::at(span, message, "not a key of this table").help(help));
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, schema: &'a Json, path: &str) {
        let span = value.span();
        let schema = self.resolve_ref(schema);
        let kind = schema["type"].as_str();
        match (value.get_ref(), kind) {
            (DeValue::Table(table), Some("object")) => self.table(table, span, schema, path),
            (DeValue::Array(items), Some("array")) => {
                for (i, item) in items.iter().enumerate() {
                    self.value(item, &schema["items"], &format!("{path}[{i}]"));
                }
            }
            (DeValue::String(text), Some("string") | None) if !schema["enum"].is_array() => {
                self.format(text, span, schema, path);
            }
            (DeValue::String(text), Some("string") | None) => self.choice(text, span, schema, path),
            (DeValue::Boolean(_), Some("boolean")) => {}
            (DeValue::Integer(number), Some("integer")) => self.integer(number, span, schema, path),
            // TOML distinguishes `1` from `1.0`, JSON schema does not.
            (DeValue::Integer(_), Some("number")) => {}
            (DeValue::Float(number), Some("number")) => {
                if !number.as_str().parse::<f64>().is_ok_and(f64::is_finite) {
                    self.reject_value(number.as_str(), span, schema, path, None);
                }
            }
            (_, None) if !schema["enum"].is_array() => {}
            (other, _) => self.reject_type(other, span, schema, path),
        }
    }

    fn integer(&mut self, number: &toml::de::DeInteger<'_>, span: Range<usize>, schema: &Json, path: &str) {
        let minimum = schema["minimum"].as_i64().unwrap_or(i64::MIN);
        let maximum = schema["maximum"].as_i64().unwrap_or(i64::MAX);
        if !integer(number).is_some_and(|number| (minimum..=maximum).contains(&number)) {
            self.reject_value(&number.to_string(), span, schema, path, None);
        }
    }

    fn format(&mut self, text: &str, span: Range<usize>, schema: &Json, path: &str) {
        let valid = match schema["format"].as_str() {
            Some("duration") => units::duration(text).is_some(),
            Some("size") => units::size(text).is_some(),
            Some("path") => !text.is_empty() && !text.contains('\0'),
            _ => true,
        };
        if !valid {
            self.reject_value(&text.escape_debug().to_string(), span, schema, path, None);
        }
    }

    fn choice(&mut self, text: &str, span: Range<usize>, schema: &Json, path: &str) {
        let choices = || schema["enum"].as_array().into_iter().flatten().filter_map(Json::as_str);
        if !choices().any(|choice| choice == text) {
            let similar = nearest(text, choices());
            self.reject_value(&text.escape_debug().to_string(), span, schema, path, similar);
        }
    }

    fn reject_value(
        &mut self,
        value: &str,
        span: Range<usize>,
        schema: &Json,
        path: &str,
        similar: Option<&str>,
    ) {
        let message = format!("invalid value `{value}` for `{path}`{}", self.of_owner());
        let suggestion = similar.map(|similar| format!("did you mean `{similar}`?"));
        let diagnostic = Diagnostic::at(span, message, format!("expected {}", expected(schema)));
        self.diagnostics.push(diagnostic.maybe_help(suggestion).maybe_help(description(schema)));
    }

    fn reject_type(&mut self, value: &DeValue<'_>, span: Range<usize>, schema: &Json, path: &str) {
        let message = format!("invalid type for `{path}`{}: {}", self.of_owner(), type_name(value));
        let diagnostic = Diagnostic::at(span, message, format!("expected {}", expected(schema)));
        let is_list_of_tables = self.resolve_ref(&schema["items"])["type"] == "object";
        let entry = (matches!(value, DeValue::Table(_)) && is_list_of_tables)
            .then(|| format!("write `[[{path}]]` with two brackets above each entry of the list"));
        self.diagnostics.push(diagnostic.maybe_help(entry).maybe_help(description(schema)));
    }

    /// The target of a `$ref`. A `$ref` in the target is not followed, so cycles are harmless.
    fn resolve_ref(&self, schema: &'a Json) -> &'a Json {
        let target = schema["$ref"].as_str().and_then(|pointer| pointer.strip_prefix('#'));
        target.and_then(|pointer| self.root.pointer(pointer)).unwrap_or(schema)
    }

    fn of_owner(&self) -> String {
        match self.owner {
            Owner::Agent => String::new(),
            Owner::Plugin(plugin) => format!(" of plugin `{plugin}`"),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn description(schema: &Json) -> Option<String> {
    schema["description"].as_str().map(|text| format!("description: {text}"))
}

/// A description of the values that a schema allows.
#[must_use]
pub fn expected(schema: &Json) -> String {
    if let Some(choices) = schema["enum"].as_array() {
        return list(choices.iter().filter_map(Json::as_str), "or");
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (_, Some("duration")) => "a duration such as \"1m 30s\"".to_owned(),
        (_, Some("size")) => "a size such as \"64 MiB\"".to_owned(),
        (_, Some("path")) => "a path".to_owned(),
        (Some("string"), _) => "a string".to_owned(),
        (Some("boolean"), _) => "`true` or `false`".to_owned(),
        (Some("number"), _) => "a number".to_owned(),
        (Some("array"), _) if schema["items"]["type"].is_null() => "an array".to_owned(),
        (Some("array"), _) => format!("an array, each element {}", expected(&schema["items"])),
        (Some("object"), _) => "a table".to_owned(),
        (Some("integer"), _) => match (schema["minimum"].as_i64(), schema["maximum"].as_i64()) {
            (Some(minimum), Some(i64::MAX) | None) => format!("an integer of at least {minimum}"),
            (Some(i64::MIN) | None, Some(maximum)) => format!("an integer of at most {maximum}"),
            (Some(minimum), Some(maximum)) => format!("an integer from {minimum} to {maximum}"),
            (None, None) => "an integer".to_owned(),
        },
        _ => "another value".to_owned(),
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date-time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
