//! Lines that users lay out: `{{.ID}} {{.State}}`, as docker has them.

use super::{Row, output};

/// A line with fields.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Field(Field),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Field {
    Id,
    State,
    Pid,
    Age,
    Command,
    Exit,
}

/// The fields, by their names in lower case.
const FIELDS: [(&str, Field); 9] = [
    ("id", Field::Id),
    ("names", Field::Id),
    ("state", Field::State),
    ("status", Field::State),
    ("pid", Field::Pid),
    ("age", Field::Age),
    ("runningfor", Field::Age),
    ("command", Field::Command),
    ("exit", Field::Exit),
];

impl Template {
    /// Parses a template. `\t` and `\n` in it are a tab and a line feed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").ok_or("`{{` is not closed by `}}`")?;
            parts.push(Part::Text(unescaped(before)));
            parts.push(Part::Field(field(name)?));
            rest = after;
        }
        parts.push(Part::Text(unescaped(rest)));
        if parts.len() == 1 {
            return Err("expected fields such as `{{.ID}}`; `--json` prints JSON".to_owned());
        }
        Ok(Self(parts))
    }

    /// The line of a container.
    pub(super) fn line(&self, row: &Row) -> String {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field(Field::Id) => row.id.clone(),
            Part::Field(Field::State) => row.state.clone(),
            Part::Field(Field::Pid) => row.pid.clone(),
            Part::Field(Field::Age) => row.age.clone(),
            Part::Field(Field::Command) => output::escape_control(&row.command),
            Part::Field(Field::Exit) => row.exit.clone(),
        };
        self.0.iter().map(part).collect()
    }
}

fn field(name: &str) -> Result<Field, String> {
    let word = name.trim().trim_start_matches('.').to_ascii_lowercase();
    let found = FIELDS.iter().find(|(known, _)| *known == word);
    found.map(|(_, field)| *field).ok_or_else(|| {
        format!(
            "there is no field `{}`; expected `.ID`, `.State`, `.Pid`, `.Age`, `.Command` or `.Exit`",
            output::escape_control(name.trim())
        )
    })
}

fn unescaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_replaced() {
        let row = Row {
            id: "web".into(),
            state: "ENDED".into(),
            pid: "-".into(),
            age: "3 s".into(),
            command: "echo \u{1b}".into(),
            exit: "exited with 3".into(),
        };
        for (template, line) in [
            ("{{.ID}}\\t{{ .Status }}", "web\tENDED"),
            ("{{.Names}}: {{.Command}}!", "web: echo \\u{1b}!"),
            ("{{.Exit}}", "exited with 3"),
        ] {
            assert_eq!(Template::parse(template).unwrap().line(&row), line);
        }
        for (wrong, why) in
            [("{{.Image}}", "there is no field `.Image`"), ("{{.ID", "not closed"), ("x", "expected")]
        {
            assert!(Template::parse(wrong).unwrap_err().contains(why), "{wrong}");
        }
    }
}
