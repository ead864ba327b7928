//! Output that has not reached everybody yet: frames of [`crate::streams`] in a ring.

use crate::streams::{HEADER, Header, Kind, MAX_OUTPUT};
use crate::sys::{Errno, Mapping};

/// Bytes in the ring. Pages that are not used cost nothing.
const CAPACITY: usize = 128 << 10;

/// Bytes in a ring that has grown: more than pipes hold, unless a privileged program has made them larger.
const GROWN_CAPACITY: usize = 4 << 20;

/// Less space than this is not worth reading for.
const MIN_SPACE: usize = 1024;

/// Frames, addressed by the number of bytes that were written before.
pub(crate) struct Ring {
    bytes: Mapping,
    end: u64,
}

impl Ring {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self { bytes: Mapping::new(CAPACITY)?, end: 0 })
    }

    /// The position behind the last frame.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    /// How much data a new frame may have if everything from `oldest` on is kept. `None` if that is too little. There is
    /// always space for a frame without data after it.
    pub(crate) fn space(&self, oldest: u64) -> Option<usize> {
        let used = self.end.saturating_sub(oldest) as usize;
        let space = self.bytes.len().saturating_sub(used).saturating_sub(2 * HEADER).min(MAX_OUTPUT);
        (space >= MIN_SPACE).then_some(space)
    }

    /// Makes space for what a container has written last, so that it can be read before it has reached everybody. Keeps
    /// everything from `oldest` on.
    pub(crate) fn grow(&mut self, oldest: u64) -> Result<(), Errno> {
        if self.bytes.len() == GROWN_CAPACITY {
            return Ok(());
        }
        let mut grown = Self { bytes: Mapping::new(GROWN_CAPACITY)?, end: oldest };
        let mut position = oldest;
        while position < self.end {
            let part = self.from(position);
            grown.append(part);
            position += part.len() as u64;
        }
        *self = grown;
        Ok(())
    }

    /// Appends a frame, for which there must be space.
    pub(crate) fn push(&mut self, kind: Kind, data: &[u8]) {
        let length = data.len().min(MAX_OUTPUT);
        self.append(&Header { kind, length: length as u16 }.encode());
        self.append(data.get(..length).unwrap_or_default());
    }

    fn append(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let offset = self.offset(self.end);
            let free = self.bytes.get_mut(offset..).unwrap_or_default();
            let length = data.len().min(free.len());
            let (now, rest) = data.split_at(length);
            free.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            self.end += length as u64;
            data = rest;
        }
    }

    /// The bytes from a position on, up to the last one or to where the ring begins again.
    pub(crate) fn from(&self, position: u64) -> &[u8] {
        let start = self.offset(position);
        let length = (self.end.saturating_sub(position) as usize).min(self.bytes.len() - start);
        self.bytes.get(start..start + length).unwrap_or_default()
    }

    /// The header of the frame at a position. `None` at the end.
    pub(crate) fn header(&self, position: u64) -> Option<Header> {
        let mut bytes = [0; HEADER];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = *self.from(position + index as u64).first()?;
        }
        Header::parse(bytes)
    }

    fn offset(&self, position: u64) -> usize {
        (position % self.bytes.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::{CAPACITY, Ring};
    use crate::streams::{HEADER, Header, Kind, MAX_OUTPUT};

    fn read(ring: &Ring, mut position: u64) -> Vec<u8> {
        let mut read = Vec::new();
        while position < ring.end() {
            let part = ring.from(position);
            read.extend(part);
            position += part.len() as u64;
        }
        read
    }

    #[test]
    fn frames_are_read_as_they_were_written_also_where_the_ring_begins_again() {
        let mut ring = Ring::new().unwrap();
        let mut position = 0;
        for round in 0..100_u32 {
            let length = (round as usize * 7919) % MAX_OUTPUT + 1;
            let data: Vec<u8> = (0..length).map(|index| (index as u32 ^ round) as u8).collect();
            assert!(ring.space(position).unwrap() >= length);
            ring.push(Kind::Stderr, &data);
            assert_eq!(ring.header(position), Some(Header { kind: Kind::Stderr, length: length as u16 }));
            assert_eq!(read(&ring, position)[HEADER..], data);
            position = ring.end();
            assert_eq!(ring.header(position), None);
        }
    }

    #[test]
    fn there_is_no_space_before_the_oldest_is_read() {
        let mut ring = Ring::new().unwrap();
        while let Some(space) = ring.space(0) {
            ring.push(Kind::Stdout, &vec![b'x'; space]);
        }
        assert!(ring.end() <= CAPACITY as u64);
        assert!(ring.space(ring.end()).is_some());
    }

    #[test]
    fn a_ring_grows_without_losing_what_is_not_read() {
        let mut ring = Ring::new().unwrap();
        for _ in 0..20 {
            ring.push(Kind::Stdout, &[b'a'; MAX_OUTPUT]);
        }
        let oldest = ring.end() - 3 * (HEADER + MAX_OUTPUT) as u64;
        ring.push(Kind::Stderr, b"last");
        let before = read(&ring, oldest);
        ring.grow(oldest).unwrap();
        ring.grow(oldest).unwrap();
        assert_eq!(read(&ring, oldest), before);
        while let Some(space) = ring.space(oldest) {
            ring.push(Kind::Stdout, &vec![b'x'; space]);
        }
        assert_eq!(read(&ring, oldest)[..before.len()], before);
    }
}
