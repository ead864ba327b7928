//! What is on the screen.

use super::keys::Action;
use super::sort::SortBy;
use crate::api::operator::types::{Container, ResourceStatistics};
use crate::cli::format;
use crate::cli::output::{Cell, Column, Table, Tone, truncated};
use crate::cli::stats::{Sample, memory, near};

/// Lines that are not containers: a title, an empty line, headings, and the keys.
const FRAME: usize = 4;

/// The containers, and which part of them is shown.
#[derive(Debug)]
pub(super) struct View {
    containers: Vec<Container>,
    before: Sample,
    sort: SortBy,
    is_reversed: bool,
    /// Containers above the screen.
    above: usize,
}

impl View {
    pub(super) fn new(sort: SortBy, containers: Vec<Container>) -> Self {
        let mut this =
            Self { containers: Vec::new(), before: Sample::default(), sort, is_reversed: false, above: 0 };
        this.update(containers);
        this
    }

    /// Shows newer usage.
    pub(super) fn update(&mut self, mut containers: Vec<Container>) {
        containers.retain(|container| container.resource_statistics.is_some());
        self.before = Sample::of(&self.containers);
        self.containers = containers;
        self.arrange();
    }

    /// Does what a key is for, on a screen of so many rows.
    pub(super) fn act(&mut self, action: Action, rows: usize) {
        let page = rows.saturating_sub(FRAME).max(1);
        let last = self.containers.len().saturating_sub(page);
        // There may be fewer containers now, or more rows.
        self.above = self.above.min(last);
        match action {
            Action::Quit => {}
            Action::Sort(sort) => {
                (self.sort, self.is_reversed, self.above) = (sort, false, 0);
                self.arrange();
            }
            Action::Reverse => {
                self.is_reversed = !self.is_reversed;
                self.arrange();
            }
            Action::Up => self.above = self.above.saturating_sub(1),
            Action::Down => self.above += 1,
            Action::PageUp => self.above = self.above.saturating_sub(page),
            Action::PageDown => self.above += page,
            Action::Home => self.above = 0,
            Action::End => self.above = last,
        }
        self.above = self.above.min(last);
    }

    /// Sorts: the largest first, names in their order.
    fn arrange(&mut self) {
        let Self { containers, before, sort, is_reversed, .. } = self;
        let name = |container: &Container| container.container_id.to_string();
        #[expect(clippy::cast_precision_loss, reason = "compared only")]
        let amount = |container: &Container| {
            let statistics = container.resource_statistics.as_ref()?;
            match sort {
                SortBy::Cpu => before.cpus(container),
                SortBy::Memory => memory(statistics).map(|bytes| bytes as f64),
                SortBy::Processes => statistics.processes.map(f64::from),
                SortBy::Io => before.io_rate(container),
                SortBy::Name => None,
            }
        };
        containers.sort_by(|one, other| {
            let by_amount = amount(other).unwrap_or(-1.0).total_cmp(&amount(one).unwrap_or(-1.0));
            by_amount.then_with(|| name(one).cmp(&name(other)))
        });
        if *is_reversed {
            containers.reverse();
        }
    }

    /// The control sequences and texts that fill a screen.
    pub(super) fn screen(&self, rows: usize, columns: usize, has_colour: bool) -> String {
        let count = self.containers.len();
        let title = format!(
            "{count} running {}, by {}{}",
            if count == 1 { "container" } else { "containers" },
            self.sort.heading(),
            if self.is_reversed { ", reversed" } else { "" }
        );
        let page = rows.saturating_sub(FRAME);
        let above = self.above.min(count.saturating_sub(page));
        let shown = self.containers.iter().skip(above).take(page);
        let mut table = Table::new(headings());
        shown.for_each(|container| table.push(self.row(container)));
        let table = table.layout(Some(columns), has_colour);
        let keys = "sort: c CPU, m memory, p processes, i I/O, n name; r reverse; q quit";
        let mut lines = vec![Tone::Strong.paint(&truncated(&title, columns), has_colour), String::new()];
        lines.extend(table.lines().map(str::to_owned));
        lines.resize(lines.len().max(rows.saturating_sub(1)), String::new());
        lines.truncate(rows.saturating_sub(1));
        lines.push(Tone::Faint.paint(&truncated(keys, columns), has_colour));
        // Each line is overwritten and the rest of it erased, so that nothing flickers. Lines that are too long are cut.
        format!("\x1b[?7l\x1b[H{}\x1b[K\x1b[J\x1b[?7h", lines.join("\x1b[K\r\n"))
    }

    fn row(&self, container: &Container) -> Vec<Cell> {
        let none = ResourceStatistics::default();
        let statistics = container.resource_statistics.as_ref().unwrap_or(&none);
        let dash = || "-".to_owned();
        let (used, limit) = (memory(statistics), statistics.mem_limit_bytes);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate of bytes")]
        let rate = |rate: f64| format!("{}/s", format::bytes(rate as u64));
        vec![
            container.container_id.to_string().into(),
            self.before.cpus(container).map_or_else(dash, format::percent).into(),
            statistics.cpus_limit.map_or_else(dash, |cpus| cpus.to_string()).into(),
            Cell::toned(used.map_or_else(dash, format::bytes), near(used, limit)),
            limit.map_or_else(dash, format::bytes).into(),
            statistics.processes.map_or_else(dash, |count| count.to_string()).into(),
            self.before.io_rate(container).map_or_else(dash, rate).into(),
            crate::cli::output::escape_control(container.command.as_deref().unwrap_or_default()).into(),
        ]
    }
}

fn headings() -> Vec<Column> {
    vec![
        Column::new("ID").elastic(),
        Column::new("CPU"),
        Column::new("CPUS").optional(2),
        Column::new("MEMORY"),
        Column::new("LIMIT").optional(1),
        Column::new("PROCESSES").optional(3),
        Column::new("I/O").optional(4),
        Column::new("COMMAND").elastic().optional(5),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(id: &str, time: f64, cpu: f64, memory: u64) -> Container {
        serde_json::from_value(json!({
            "container_id": { "value": id },
            "resource_statistics": { "timestamp": time, "cpus_user_time_secs": cpu, "mem_total_bytes": memory },
        }))
        .unwrap()
    }

    fn view() -> View {
        let at = |time: f64| {
            vec![
                container("a", time, time * 0.1, 30),
                container("b", time, time, 10),
                container("c", time, 0.0, 20),
            ]
        };
        let mut view = View::new(SortBy::Cpu, at(1.0));
        view.update(at(2.0));
        view
    }

    fn order(view: &View) -> String {
        view.containers.iter().map(|container| container.container_id.to_string()).collect()
    }

    #[test]
    fn keys_sort_and_reverse() {
        let mut view = view();
        assert_eq!(order(&view), "bac");
        for (action, expected) in [
            (Action::Sort(SortBy::Memory), "acb"),
            (Action::Reverse, "bca"),
            (Action::Sort(SortBy::Name), "abc"),
        ] {
            view.act(action, 24);
            assert_eq!(order(&view), expected, "{action:?}");
        }
    }

    #[test]
    fn the_screen_is_filled_and_scrolled() {
        let mut view = view();
        let lines = |view: &View| {
            let screen = view.screen(6, 40, false);
            let text = screen
                .strip_prefix("\x1b[?7l\x1b[H")
                .and_then(|rest| rest.strip_suffix("\x1b[K\x1b[J\x1b[?7h"));
            text.expect("a screen").split("\x1b[K\r\n").map(str::to_owned).collect::<Vec<_>>()
        };
        let screen = lines(&view);
        assert_eq!(screen.len(), 6);
        assert_eq!(screen[0], "3 running containers, by CPU");
        assert!(screen[3].starts_with("b   100.0 %") && screen[4].starts_with('a'), "{screen:?}");
        assert!(screen.iter().all(|line| line.chars().count() <= 40), "{screen:?}");
        view.act(Action::Down, 6);
        view.act(Action::PageDown, 6);
        assert!(lines(&view)[3].starts_with('a'), "{:?}", lines(&view));
        view.act(Action::Home, 6);
        assert!(lines(&view)[3].starts_with('b'));
        // What was scrolled to is gone.
        view.act(Action::End, 5);
        view.update(vec![container("a", 3.0, 0.0, 30)]);
        assert!(lines(&view)[3].starts_with('a'), "{:?}", lines(&view));
        // A terminal of one row has at least the keys.
        assert_eq!(view.screen(1, 10, false), "\x1b[?7l\x1b[Hsort: c C…\x1b[K\x1b[J\x1b[?7h");
    }
}
