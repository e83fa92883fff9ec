// SPDX-License-Identifier: Apache-2.0
//! Types of JSON objects that declare each used field once: for the struct that is decoded and for the tape.

use super::tape::UsedField;

/// The used fields of a type; a plain value has none.
pub trait UsedFields {
    const FIELDS: &'static [UsedField] = &[];
}

impl UsedFields for &str {}
impl UsedFields for bool {}
impl UsedFields for u32 {}

impl<T: UsedFields> UsedFields for Option<T> {
    const FIELDS: &'static [UsedField] = T::FIELDS;
}

impl<T: UsedFields> UsedFields for Vec<T> {
    const FIELDS: &'static [UsedField] = T::FIELDS;
}

/// Declares structs with the name, the JSON name and the type of each field. The fields after `+` are on the tape only.
macro_rules! used_fields {
    () => {};
    ($(#[$doc:meta])* $name:ident<'a> $fields:tt $($rest:tt)*) => {
        used_fields! { @ $(#[$doc])* #[serde(bound(deserialize = "'de: 'a"))] [$name<'a>] $fields }
        used_fields! { $($rest)* }
    };
    (@ $(#[$attr:meta])* [$name:ident $($generics:tt)*] {
        $(+ $more:ident,)?
        $($field:ident $json:literal: $type:ty,)*
    }) => {
        #[derive(serde::Deserialize, Default)]
        #[serde(default)]
        $(#[$attr])*
        pub(super) struct $name $($generics)* {
            $(#[serde(rename = $json)] pub $field: $type,)*
        }

        impl $($generics)* $crate::source::decode::used_fields::UsedFields for $name $($generics)* {
            const FIELDS: &'static [$crate::source::decode::tape::UsedField] = &[
                $($more,)?
                $($crate::source::decode::tape::UsedField(
                    $json,
                    <$type as $crate::source::decode::used_fields::UsedFields>::FIELDS,
                ),)*
            ];
        }
    };
    ($(#[$doc:meta])* $name:ident $fields:tt $($rest:tt)*) => {
        used_fields! { @ $(#[$doc])* [$name] $fields }
        used_fields! { $($rest)* }
    };
}

pub(super) use used_fields;
