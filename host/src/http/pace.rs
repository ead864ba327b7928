//! Bodies of servers that may send a byte at a time.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// A body whose server has to be faster than a minimum rate.
pub(super) struct Paced<R> {
    body: R,
    min_bytes: u64,
    stall: Duration,
    since: Instant,
    received: u64,
}

/// A server is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server sends less than {min_bytes} bytes in {stall:?}")]
pub(crate) struct TooSlow {
    min_bytes: u64,
    stall: Duration,
}

impl<R: Read> Paced<R> {
    /// A body of which `min_bytes` have to arrive in every `stall`, unless it ends.
    pub(super) fn new(body: R, min_bytes: u64, stall: Duration) -> Self {
        Self { body, min_bytes, stall, since: Instant::now(), received: 0 }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(buffer)?;
        self.received += count as u64;
        if count > 0 && self.since.elapsed() >= self.stall {
            let Self { min_bytes, stall, .. } = *self;
            if self.received < min_bytes {
                return Err(io::Error::other(TooSlow { min_bytes, stall }));
            }
            (self.since, self.received) = (Instant::now(), 0);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_to_send_some_bytes_in_every_period() {
        let min_bytes = 100;
        let read = |stall, at_once: usize| {
            let mut paced = Paced::new(&[0; 300][..], min_bytes, stall);
            let mut buffer = vec![0; at_once];
            loop {
                match paced.read(&mut buffer) {
                    Ok(0) => return true,
                    Ok(_) => {}
                    Err(error) => {
                        let error = error.downcast::<TooSlow>().unwrap();
                        assert_eq!(error, TooSlow { min_bytes, stall });
                        return false;
                    }
                }
            }
        };
        assert!(read(Duration::ZERO, 100));
        assert!(!read(Duration::ZERO, 99));
        assert!(read(Duration::MAX, 1));
    }
}
