//! What happens to the layers of an image, or while a container is launched, on standard error: bars on a terminal, lines
//! elsewhere.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::{format, output, ps};
use crate::api::operator::types::{FetchProgress, PullProgress};
use crate::image::Progress;
use cofferdam_core::provisioner::Digest;

/// A bar for each layer, and `None` for the source of all of them.
type Bars = HashMap<Option<Digest>, ProgressBar>;

/// Reports to people.
pub(super) enum Reporter {
    Quiet,
    Lines,
    Bars { all: MultiProgress, bars: Mutex<Bars> },
}

impl Reporter {
    pub(super) fn new(quiet: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if io::stderr().is_terminal() {
            Self::Bars { all: MultiProgress::new(), bars: Mutex::default() }
        } else {
            Self::Lines
        }
    }

    pub(super) fn report(&self, progress: &Progress) {
        match self {
            Self::Quiet => {}
            Self::Lines => {
                if let Some(line) = describe(progress) {
                    // What is reported is optional.
                    drop(writeln!(io::stderr(), "{line}"));
                }
            }
            Self::Bars { all, bars } => draw(all, &mut bars.lock(), progress),
        }
    }

    /// Leaves the bars as they are, so that an error is below them.
    pub(super) fn finish(&self) {
        if let Self::Bars { bars, .. } = self {
            bars.lock().values().for_each(ProgressBar::abandon);
        }
    }
}

/// Reports how far a launch is that pulls an image or fetches files: a bar for all layers or for the file that is being
/// received, or lines.
pub(super) struct LaunchReporter {
    /// `None` if standard error is no terminal.
    bar: Option<ProgressBar>,
}

impl LaunchReporter {
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            match ProgressStyle::with_template("{prefix}: {bar:32} {bytes:>10} of {total_bytes:10}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self { bar }
    }

    pub(super) fn pull(&self, progress: &PullProgress) {
        let PullProgress { layers, pulled_layers, bytes, received } = *progress;
        match &self.bar {
            Some(bar) => {
                show(bar, format!("pulling, {pulled_layers} of {layers} layers"), received, Some(bytes))
            }
            None => print_line(&format!("pulling the image: {}", ps::pull_description(progress))),
        }
    }

    pub(super) fn fetch(&self, progress: &FetchProgress) {
        let FetchProgress { files, fetched_files, bytes, received } = *progress;
        let current = (fetched_files + 1).min(files);
        match &self.bar {
            Some(bar) => show(bar, format!("fetching file {current} of {files}"), received, bytes),
            None => print_line(&format!("fetching files: {}", ps::fetch_description(progress))),
        }
    }

    /// Removes the bar, so that the output of the command is not beside it.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn show(bar: &ProgressBar, prefix: String, received: u64, bytes: Option<u64>) {
    bar.set_prefix(prefix);
    match bytes {
        Some(bytes) => bar.set_length(bytes),
        None => bar.unset_length(),
    }
    bar.set_position(received);
}

fn print_line(line: &str) {
    // What is reported is optional.
    drop(writeln!(io::stderr(), "{}", output::escape_control(line)));
}

fn draw(all: &MultiProgress, bars: &mut Bars, progress: &Progress) {
    match progress {
        Progress::Received { layer, received, size } => {
            let bar = bars.entry(Some(*layer)).or_insert_with(|| add(all, Some(layer), Some(*size)));
            bar.set_position(*received);
        }
        Progress::Read { layer, read, size } => {
            // What was read before was the source of this.
            if *read == 0 || layer.is_some() {
                clear(bars, None);
            }
            let bar = bars.entry(*layer).or_insert_with(|| add(all, layer.as_ref(), *size));
            bar.set_position(*read);
        }
        Progress::Present { layer } | Progress::Unpacked { layer, .. } => {
            clear(bars, None);
            clear(bars, Some(*layer));
            print(all, progress);
        }
        _ => print(all, progress),
    }
}

/// Adds a bar for a layer, or for the source of all of them; only a number if its size is not known.
fn add(all: &MultiProgress, layer: Option<&Digest>, size: Option<u64>) -> ProgressBar {
    let bar = all.add(ProgressBar::new(size.unwrap_or(0)));
    let style = match size {
        Some(_) => "{prefix}: {bar:32} {bytes:>10} of {total_bytes:10} {eta:>4}",
        None => "{prefix}: {bytes:>10}",
    };
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.with_prefix(layer.map_or_else(|| "reading".to_owned(), |layer| format!("layer {}", layer.short())))
}

fn clear(bars: &mut Bars, layer: Option<Digest>) {
    if let Some(bar) = bars.remove(&layer) {
        bar.finish_and_clear();
    }
}

/// Prints a line above the bars.
fn print(all: &MultiProgress, progress: &Progress) {
    if let Some(line) = describe(progress) {
        // The bars are drawn again after it. What is reported is optional.
        all.suspend(|| drop(writeln!(io::stderr(), "{line}")));
    }
}

/// A line, unless it is one of many steps.
fn describe(progress: &Progress) -> Option<String> {
    let line = match progress {
        Progress::Present { layer } => format!("layer {}: present", layer.short()),
        Progress::Unpacked { layer, files, bytes } => {
            format!("layer {}: {files} files, {}", layer.short(), format::bytes(*bytes))
        }
        Progress::Waiting { layer } => {
            format!("layer {}: another command is pulling it; waiting", layer.short())
        }
        Progress::Received { layer, received: 0, size } => {
            format!("layer {}: downloading {}", layer.short(), format::bytes(*size))
        }
        Progress::Found { .. } | Progress::Received { .. } | Progress::Read { .. } => return None,
        Progress::Resumed { layer, received, size } => format!(
            "layer {}: continuing after {} of {}",
            layer.short(),
            format::bytes(*received),
            format::bytes(*size)
        ),
        Progress::Retry { reason, wait } => format!("{reason}; next attempt in {wait:?}"),
        Progress::NextRegistry { reason } => format!("{reason}; asking the next registry"),
    };
    Some(output::escape_control(&line))
}
