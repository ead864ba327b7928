//! What the process reports to the agent.

use std::io::Write;

use cofferdam_core::fetcher::FetchMessage;
use cofferdam_core::model::FetchProgress;

/// Bytes after which progress is reported at least, if the size of a file is not known, and at most otherwise.
const UNKNOWN_STEP: u64 = 1 << 20;
const MIN_STEP: u64 = 64 << 10;

/// Reports to the agent.
pub(super) struct Report {
    output: Box<dyn Write>,
    progress: FetchProgress,
    /// Bytes that were reported.
    reported: u64,
}

impl Report {
    /// For a number of files.
    pub(super) fn new(output: impl Write + 'static, files: usize) -> Self {
        let progress = FetchProgress { files: files as u64, ..FetchProgress::default() };
        Self { output: Box::new(output), progress, reported: 0 }
    }

    /// A file is received from its beginning.
    pub(super) fn begin(&mut self, size: Option<u64>) {
        self.progress.bytes = size.unwrap_or(0);
        self.progress.received = 0;
        self.send_progress();
    }

    /// So much of a file was received.
    pub(super) fn received(&mut self, received: u64) {
        let FetchProgress { bytes, .. } = self.progress;
        self.progress.received = received;
        let step = if bytes == 0 { UNKNOWN_STEP } else { (bytes / 100).max(MIN_STEP) };
        if received.saturating_sub(self.reported) >= step {
            self.send_progress();
        }
    }

    /// A file was fetched.
    pub(super) fn fetched(&mut self) {
        self.progress.fetched_files += 1;
        (self.progress.bytes, self.progress.received) = (0, 0);
        self.send_progress();
    }

    pub(super) fn send(&mut self, message: &FetchMessage) {
        // An error means that the agent does not read any more, and that this process ends.
        drop(message.write(&mut self.output));
    }

    fn send_progress(&mut self) {
        self.reported = self.progress.received;
        self.send(&FetchMessage::Progress(self.progress));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn progress_is_reported_in_steps() {
        let lines = Lines::default();
        let mut report = Report::new(lines.clone(), 2);
        report.begin(Some(10 << 20));
        for received in 1..=10 << 10 {
            report.received(received << 10);
        }
        report.fetched();
        report.begin(None);
        for received in 1..=2048 {
            report.received(received << 10);
        }
        let lines = String::from_utf8(lines.0.lock().clone()).unwrap();
        let seen: Vec<(u64, u64, u64)> = lines
            .lines()
            .map(|line| match serde_json::from_str(line).unwrap() {
                FetchMessage::Progress(FetchProgress { fetched_files, bytes, received, .. }) => {
                    (fetched_files, bytes, received)
                }
                message => panic!("{message:?}"),
            })
            .collect();
        assert_eq!(seen[..2], [(0, 10 << 20, 0), (0, 10 << 20, 103 << 10)]);
        assert!(seen.len() < 110, "{}", seen.len());
        assert_eq!(seen[seen.len() - 4..], [(1, 0, 0), (1, 0, 0), (1, 0, 1 << 20), (1, 0, 2 << 20)]);
    }
}
