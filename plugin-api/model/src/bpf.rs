//! Classic BPF programs.

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serializer, de};

/// An instruction of a classic BPF program: code, jump if true, jump if false, operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpfInstruction(pub u16, pub u8, pub u8, pub u32);

/// Size of `struct sock_filter`.
const LENGTH: usize = 8;

impl BpfInstruction {
    /// As in `struct sock_filter`, in little-endian byte order.
    fn to_bytes(self) -> [u8; LENGTH] {
        let Self(code, if_true, if_false, operand) = self;
        let ([c0, c1], [k0, k1, k2, k3]) = (code.to_le_bytes(), operand.to_le_bytes());
        [c0, c1, if_true, if_false, k0, k1, k2, k3]
    }

    fn from_bytes([c0, c1, if_true, if_false, k0, k1, k2, k3]: [u8; LENGTH]) -> Self {
        Self(u16::from_le_bytes([c0, c1]), if_true, if_false, u32::from_le_bytes([k0, k1, k2, k3]))
    }
}

/// A program as Base64: it has hundreds of instructions, and is encoded and decoded at each launch.
pub(crate) mod base64 {
    use super::{BASE64, BpfInstruction, Deserialize, Deserializer, LENGTH, Serializer, de};

    pub fn serialize<S: Serializer>(program: &[BpfInstruction], serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = program.iter().flat_map(|instruction| instruction.to_bytes()).collect();
        serializer.serialize_str(&BASE64.encode(&bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BpfInstruction>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text.as_bytes()).map_err(de::Error::custom)?;
        let (instructions, []) = bytes.as_chunks::<LENGTH>() else {
            return Err(de::Error::custom("a BPF program consists of instructions of 8 bytes"));
        };
        Ok(instructions.iter().copied().map(BpfInstruction::from_bytes).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::BpfInstruction;
    use crate::Seccomp;

    #[test]
    fn a_program_is_encoded_as_the_kernel_reads_it() {
        let program = vec![BpfInstruction(0x20, 0, 0, 4), BpfInstruction(0x15, 1, 2, 0xc000_003e)];
        let seccomp = Seccomp { program, ..Seccomp::default() };
        let json = r#"{"program":"IAAAAAQAAAAVAAECPgAAwA=="}"#;
        assert_eq!(serde_json::to_string(&seccomp).unwrap(), json);
        assert_eq!(serde_json::from_str::<Seccomp>(json).unwrap(), seccomp);
    }

    #[test]
    fn what_is_not_a_program_is_refused() {
        for (program, reason) in
            [("IAAAAA==", "8 bytes"), ("IAAA*AQA", "invalid symbol"), ("IAAAAAQAAAA", "length")]
        {
            let error =
                serde_json::from_str::<Seccomp>(&format!(r#"{{"program":"{program}"}}"#)).unwrap_err();
            assert!(error.to_string().contains(reason), "{program}: {error}");
        }
    }
}
