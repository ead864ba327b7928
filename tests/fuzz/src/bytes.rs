//! Mutations of byte strings.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// No input grows beyond this.
const MAX: usize = 1 << 20;

#[derive(Debug, Clone)]
enum Mutation {
    Flip {
        at: Index,
        bit: u8,
    },
    Set {
        at: Index,
        byte: u8,
    },
    /// Replaces an integer of `width` bytes.
    Number {
        at: Index,
        width: usize,
        value: u64,
        big: bool,
    },
    Remove {
        at: Index,
        length: usize,
    },
    Repeat {
        at: Index,
        length: usize,
        times: usize,
    },
    Insert {
        at: Index,
        bytes: Vec<u8>,
    },
    Truncate {
        at: Index,
    },
    /// Copies a part of the input to another place of it.
    Copy {
        from: Index,
        to: Index,
        length: usize,
    },
    /// Continues with another sample.
    Splice {
        at: Index,
        other: Vec<u8>,
        from: Index,
    },
}

/// Mutations of samples: often one, sometimes several.
pub(crate) fn mutated(samples: &[Vec<u8>], words: &[&str]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).chain([vec![0]]).collect();
    let mutations = vec(mutation(samples.to_vec(), words), 0..6);
    (select(samples.to_vec()), mutations).prop_map(|(mut input, mutations)| {
        for mutation in mutations {
            apply(&mutation, &mut input);
            input.truncate(MAX);
        }
        input
    })
}

fn mutation(samples: Vec<Vec<u8>>, words: Vec<Vec<u8>>) -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    let value = prop_oneof![
        select(vec![0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]),
        select(vec![u64::MAX, u64::MAX - 7, 1 << 63, (1 << 63) - 1]),
        0..1024_u64,
        any::<u64>(),
    ];
    let width = select(vec![1, 2, 4, 8]);
    prop_oneof![
        (at(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip { at, bit }),
        (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set { at, byte }),
        (at(), width, value, any::<bool>()).prop_map(|(at, width, value, big)| Mutation::Number {
            at,
            width,
            value,
            big
        }),
        (at(), 1..64_usize).prop_map(|(at, length)| Mutation::Remove { at, length }),
        (at(), 1..64_usize, 1..64_usize).prop_map(|(at, length, times)| Mutation::Repeat {
            at,
            length,
            times
        }),
        (at(), vec(any::<u8>(), 1..16)).prop_map(|(at, bytes)| Mutation::Insert { at, bytes }),
        (at(), select(words)).prop_map(|(at, bytes)| Mutation::Insert { at, bytes }),
        at().prop_map(|at| Mutation::Truncate { at }),
        (at(), at(), 1..64_usize).prop_map(|(from, to, length)| Mutation::Copy { from, to, length }),
        (at(), select(samples), at()).prop_map(|(at, other, from)| Mutation::Splice { at, other, from }),
    ]
}

fn apply(mutation: &Mutation, input: &mut Vec<u8>) {
    // An end of the input is a place too.
    let place = |at: &Index, input: &Vec<u8>| at.index(input.len() + 1);
    let part = |from: usize, length: usize, input: &Vec<u8>| from..(from + length).min(input.len());
    match mutation {
        Mutation::Flip { at, bit } => {
            let at = place(at, input);
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        Mutation::Set { at, byte } => {
            let at = place(at, input);
            if let Some(old) = input.get_mut(at) {
                *old = *byte;
            }
        }
        Mutation::Number { at, width, value, big } => {
            // Integers are often aligned.
            let at = place(at, input) / width * width;
            let (little, large) = (value.to_le_bytes(), value.to_be_bytes());
            let bytes = if *big { &large[8 - width..] } else { &little[..*width] };
            if let Some(old) = input.get_mut(at..at + width) {
                old.copy_from_slice(bytes);
            }
        }
        Mutation::Remove { at, length } => {
            let at = place(at, input);
            drop(input.drain(part(at, *length, input)));
        }
        Mutation::Repeat { at, length, times } => {
            let at = place(at, input);
            let repeated = input[part(at, *length, input)].repeat(*times);
            drop(input.splice(at..at, repeated));
        }
        Mutation::Insert { at, bytes } => {
            let at = place(at, input);
            drop(input.splice(at..at, bytes.iter().copied()));
        }
        Mutation::Truncate { at } => input.truncate(at.index(input.len() + 1)),
        Mutation::Copy { from, to, length } => {
            let (from, to) = (place(from, input), place(to, input));
            let copied = input[part(from, *length, input)].to_vec();
            let replaced = part(to, copied.len(), input);
            drop(input.splice(replaced, copied));
        }
        Mutation::Splice { at, other, from } => {
            input.truncate(at.index(input.len() + 1));
            input.extend_from_slice(&other[from.index(other.len() + 1)..]);
        }
    }
}
