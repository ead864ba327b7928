//! What happens to the layers of an image, or to the files of a container, on standard error: a bar for each on a terminal,
//! lines elsewhere.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::{format, output, ps};
use crate::api::operator::types::FetchProgress;
use crate::image::Progress;
use cofferdam_core::provisioner::Digest;

/// Reports to people.
pub(super) enum Reporter {
    Quiet,
    Lines,
    Bars { all: MultiProgress, bars: Mutex<HashMap<Digest, ProgressBar>> },
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

/// Reports how far the fetch of a container's files is: a bar for the file that is being received, or lines.
pub(super) struct FetchReporter {
    /// `None` if standard error is no terminal.
    bar: Option<ProgressBar>,
}

impl FetchReporter {
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            let style = "fetching {prefix}: {bar:32} {bytes:>10} of {total_bytes:10}";
            match ProgressStyle::with_template(style) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self { bar }
    }

    pub(super) fn report(&self, progress: &FetchProgress) {
        let FetchProgress { files, fetched_files, bytes, received } = *progress;
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(format!("file {} of {files}", (fetched_files + 1).min(files)));
                match bytes {
                    Some(bytes) => bar.set_length(bytes),
                    None => bar.unset_length(),
                }
                bar.set_position(received);
            }
            None => {
                let line = format!("fetching files: {}", ps::fetch_description(progress));
                // What is reported is optional.
                drop(writeln!(io::stderr(), "{line}"));
            }
        }
    }

    /// Removes the bar, so that the output of the command is not beside it.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn draw(all: &MultiProgress, bars: &mut HashMap<Digest, ProgressBar>, progress: &Progress) {
    match progress {
        Progress::Received { layer, received, size } => {
            let bar = bars.entry(*layer).or_insert_with(|| {
                let bar = all.add(ProgressBar::new(*size));
                let style = "layer {prefix}: {bar:32} {bytes:>10} of {total_bytes:10} {eta:>4}";
                if let Ok(style) = ProgressStyle::with_template(style) {
                    bar.set_style(style);
                }
                bar.with_prefix(layer.short())
            });
            bar.set_position(*received);
        }
        Progress::Present { layer } | Progress::Unpacked { layer, .. } => {
            if let Some(bar) = bars.remove(layer) {
                bar.finish_and_clear();
            }
            print(all, progress);
        }
        _ => print(all, progress),
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
        Progress::Found { .. } | Progress::Received { .. } => return None,
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
