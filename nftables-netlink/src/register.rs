// SPDX-License-Identifier: Apache-2.0
//! Registers (`enum nft_registers`).

/// `NFT_REG32_00`
const FIRST_32: u32 = 8;
/// `NFT_REG_1`, the first of four registers of 16 bytes.
const FIRST_128: u32 = 1;

/// One of sixteen registers of 4 bytes (`NFT_REG32_00` to `NFT_REG32_15`). Longer values take several in a row: a
/// concatenation is loaded field by field into registers that follow each other.
///
/// The kernel reports the registers 0, 4, 8 and 12 as `NFT_REG_1` to `NFT_REG_4`; both names are the same register here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(u8);

impl Register {
    /// The first register.
    pub const R0: Self = Self(0);

    /// The register with this index.
    ///
    /// # Panics
    /// If the index is above 15.
    pub const fn new(index: u8) -> Self {
        assert!(index < 16, "nf_tables has 16 registers");
        Self(index)
    }

    /// Its index, 0 to 15.
    pub const fn index(self) -> u8 {
        self.0
    }

    /// Its number (`NFT_REG32_*`).
    pub(crate) fn number(self) -> u32 {
        FIRST_32 + u32::from(self.0)
    }

    /// The register with a number of the kernel; `None` for the register of verdicts, and for numbers that do not
    /// exist.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        let index = match number {
            1..=4 => (number - FIRST_128) * 4,
            8..=23 => number - FIRST_32,
            _ => return None,
        };
        u8::try_from(index).ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_of_a_register_are_equal() {
        let index = |number| Register::from_number(number).map(Register::index);
        assert_eq!([1, 2, 3, 4].map(index), [Some(0), Some(4), Some(8), Some(12)]);
        assert_eq!([8, 12, 23].map(index), [Some(0), Some(4), Some(15)]);
        assert_eq!([0, 5, 7, 24].map(index), [None; 4]);
        assert_eq!(Register::new(15).number(), 23);
    }
}
