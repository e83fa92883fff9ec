// SPDX-License-Identifier: Apache-2.0
//! Numbers and flags of the kernel as types.

/// An enum of the kernel. A number that has no name here is kept as `Other`.
macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident: $number:ty { $($(#[$item_doc:meta])* $item:ident = $value:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$item_doc])* $item,)*
            /// A number that this version does not know.
            Other($number),
        }

        impl From<$number> for $name {
            fn from(number: $number) -> Self {
                match number {
                    $(number if number == $value => Self::$item,)*
                    other => Self::Other(other),
                }
            }
        }

        impl From<$name> for $number {
            fn from(name: $name) -> $number {
                match name {
                    $($name::$item => $value,)*
                    $name::Other(other) => other,
                }
            }
        }
    };
}

/// A set of flags of the kernel.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $value:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(u32);

        impl $name {
            $($(#[$item_doc])* pub const $item: Self = Self($value);)*

            /// Flags with these bits.
            pub const fn from_bits(bits: u32) -> Self {
                Self(bits)
            }

            /// The bits.
            pub const fn bits(self) -> u32 {
                self.0
            }

            /// Whether all of these flags are set.
            pub const fn contains(self, flags: Self) -> bool {
                self.0 & flags.0 == flags.0
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    };
}
