//! The times of output: pairs of an offset and a time, see `LogFiles` of the plugin API. The container can change them like
//! its output, so nothing is assumed of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

const PAIR: u64 = 16;

/// The times of one file.
#[derive(Debug)]
pub(super) struct Times {
    file: File,
    /// The last answer: the time of the offsets from the first to before the second.
    known: Option<(u64, u64, SystemTime)>,
}

impl Times {
    pub(super) const fn new(file: File) -> Self {
        Self { file, known: None }
    }

    /// When the byte at an offset was read from the container; `None` if that is not known.
    pub(super) fn at(&mut self, offset: u64) -> io::Result<Option<SystemTime>> {
        if let Some((first, end, time)) = self.known
            && (first..end).contains(&offset)
        {
            return Ok(Some(time));
        }
        let after = self.first(|pair| pair.offset > offset)?;
        let Some(index) = after.checked_sub(1) else { return Ok(None) };
        let Some(pair) = self.pair(index)? else { return Ok(None) };
        // There may be more pairs later.
        self.known = self.pair(after)?.map(|next| (pair.offset, next.offset, pair.time()));
        Ok(Some(pair.time()))
    }

    /// The first offset that was read at a time or later; `None` if all were read before.
    pub(super) fn since(&self, time: SystemTime) -> io::Result<Option<u64>> {
        let index = self.first(|pair| pair.time() >= time)?;
        Ok(self.pair(index)?.map(|pair| pair.offset))
    }

    /// The index of the first pair with a property that all later ones have.
    fn first(&self, is: impl Fn(Pair) -> bool) -> io::Result<u64> {
        let (mut low, mut high) = (0, self.file.metadata()?.len() / PAIR);
        while low < high {
            let middle = low.midpoint(high);
            match self.pair(middle)? {
                Some(pair) if !is(pair) => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    fn pair(&self, index: u64) -> io::Result<Option<Pair>> {
        let mut bytes = [0; PAIR as usize];
        match self.file.read_exact_at(&mut bytes, index.saturating_mul(PAIR)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let (offset, nanoseconds) = bytes.split_at(8);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Ok(Some(Pair { offset: number(offset), nanoseconds: number(nanoseconds) }))
    }
}

#[derive(Debug, Clone, Copy)]
struct Pair {
    offset: u64,
    nanoseconds: u64,
}

impl Pair {
    /// Before the year 2554.
    fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn seconds(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Times from offsets and seconds.
    fn times(pairs: &[(u64, u64)]) -> (Times, File) {
        let mut file = tempfile::tempfile().unwrap();
        let append = file.try_clone().unwrap();
        for (offset, time) in pairs {
            file.write_all(&offset.to_le_bytes()).unwrap();
            file.write_all(&(time * 1_000_000_000).to_le_bytes()).unwrap();
        }
        (Times::new(file), append)
    }

    #[test]
    fn each_offset_has_the_time_of_the_last_pair_before_it() {
        let (mut times, mut more) = times(&[(0, 10), (100, 20), (150, 30)]);
        for (offset, time) in [(0, 10), (99, 10), (100, 20), (149, 20), (150, 30), (9000, 30), (50, 10)] {
            assert_eq!(times.at(offset).unwrap(), Some(seconds(time)), "{offset}");
        }
        // It grows, and the last pair may be incomplete.
        more.write_all(&9000_u64.to_le_bytes()).unwrap();
        assert_eq!(times.at(9000).unwrap(), Some(seconds(30)));
        more.write_all(&40_000_000_000_u64.to_le_bytes()).unwrap();
        assert_eq!(times.at(9000).unwrap(), Some(seconds(40)));
        assert_eq!(super::tests::times(&[(5, 1)]).0.at(4).unwrap(), None);
        assert_eq!(super::tests::times(&[]).0.at(0).unwrap(), None);
    }

    #[test]
    fn the_first_offset_since_a_time_is_found() {
        let (times, _) = times(&[(0, 10), (100, 20), (150, 30)]);
        for (time, offset) in [(0, Some(0)), (10, Some(0)), (11, Some(100)), (30, Some(150)), (31, None)] {
            assert_eq!(times.since(seconds(time)).unwrap(), offset, "{time}");
        }
    }
}
