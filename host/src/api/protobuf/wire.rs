//! The wire format: each field is a tag, which is its number and how its value is stored, and the value.

use super::error::Error;

/// How a value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WireType {
    Varint = 0,
    Fixed64 = 1,
    Length = 2,
}

/// A value as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stored<'b> {
    Varint(u64),
    Fixed64(u64),
    /// A string, bytes, a message, or several numbers.
    Length(&'b [u8]),
    Fixed32,
}

/// Takes a field off the front: its number and its value.
pub(super) fn take_field<'b>(bytes: &mut &'b [u8]) -> Result<(u32, Stored<'b>), Error> {
    let tag = take_varint(bytes)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
    let number = number.ok_or_else(|| Error::new(format!("{} is no number of a field", tag >> 3)))?;
    let stored = match tag & 7 {
        0 => Stored::Varint(take_varint(bytes)?),
        1 => Stored::Fixed64(u64::from_le_bytes(take_array(bytes)?)),
        2 => Stored::Length(take_length(bytes)?),
        5 => {
            take_array::<4>(bytes)?;
            Stored::Fixed32
        }
        other => {
            return Err(Error::new(format!(
                "field {number} has the wire type {other}, which is not supported"
            )));
        }
    };
    Ok((number, stored))
}

/// Takes a number off the front, seven bits in each byte.
pub(super) fn take_varint(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or_else(ends)?;
        *bytes = rest;
        // Of the tenth byte, one bit is left.
        if shift == 63 && byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::new("a number has more than 64 bits"))
}

fn take_array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Error> {
    let (&array, rest) = bytes.split_first_chunk().ok_or_else(ends)?;
    *bytes = rest;
    Ok(array)
}

fn take_length<'b>(bytes: &mut &'b [u8]) -> Result<&'b [u8], Error> {
    let length = usize::try_from(take_varint(bytes)?).map_err(|_| ends())?;
    let (value, rest) = bytes.split_at_checked(length).ok_or_else(ends)?;
    *bytes = rest;
    Ok(value)
}

fn ends() -> Error {
    Error::new("the message ends within a field")
}

pub(super) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: WireType) {
    put_varint(out, u64::from(number) << 3 | wire_type as u64);
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

pub(super) fn put_length(out: &mut Vec<u8>, value: &[u8]) {
    put_varint(out, value.len() as u64);
    out.extend(value);
}

/// Puts the length in front of what was written since `start`.
pub(super) fn insert_length(out: &mut Vec<u8>, start: usize) {
    let mut length = Vec::with_capacity(10);
    put_varint(&mut length, (out.len() - start) as u64);
    out.splice(start..start, length);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_a_round_trip() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), 1 << 63, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut rest = &out[..];
            assert_eq!(take_varint(&mut rest).unwrap(), value);
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        for bytes in [
            &[][..],
            &[0x80],
            &[0xff; 9],
            &[0xff; 10],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
        ] {
            assert!(take_varint(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_field_is_an_error() {
        // The number 0; a group; an unknown wire type; a length that is too long, or overflows; fixed values that are cut.
        for bytes in [
            &[0x02, 0][..],
            &[0x0b],
            &[0x0f],
            &[0x0a, 2, 0],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x09, 1],
            &[0x0d, 1],
        ] {
            assert!(take_field(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
    }
}
