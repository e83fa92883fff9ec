// SPDX-License-Identifier: Apache-2.0
//! Objects that name their kind themselves, as in files: one pass reads the used fields of all kinds.

use serde::de::{DeserializeSeed, MapAccess};

use super::tape::{Tape, UsedField, plain};
use super::used_fields::UsedFields;
use super::{METADATA, RawObject, node, selected_labels, service, slice};
use crate::store::Kind;

const ITEMS: &str = "items";

const SPEC: &[&[UsedField]] = &[service::RawServiceSpec::FIELDS, node::RawNodeSpec::FIELDS];
const STATUS: &[&[UsedField]] = &[service::RawServiceStatus::FIELDS, node::RawNodeStatus::FIELDS];

/// The used fields of all kinds. Only spec and status are in several kinds, apart from the metadata.
const FIELDS: &[&[UsedField]] = &[
    &[
        plain("kind"),
        plain("apiVersion"),
        plain(ITEMS),
        UsedField("spec", &joined::<{ count(SPEC) }>(SPEC)),
        UsedField("status", &joined::<{ count(STATUS) }>(STATUS)),
    ],
    slice::RawSlice::FIELDS,
];

pub(super) static ALL_FIELDS: [UsedField; count(FIELDS)] = joined(FIELDS);

const fn count(lists: &[&[UsedField]]) -> usize {
    let (mut count, mut i) = (0, 0);
    while i < lists.len() {
        count += lists[i].len();
        i += 1;
    }
    count
}

const fn joined<const N: usize>(lists: &[&[UsedField]]) -> [UsedField; N] {
    let mut all = [METADATA; N];
    let (mut to, mut list) = (0, 0);
    while list < lists.len() {
        let mut from = 0;
        while from < lists[list].len() {
            all[to] = lists[list][from];
            to += 1;
            from += 1;
        }
        list += 1;
    }
    all
}

/// An object of any kind.
#[derive(Debug)]
pub struct UntypedObject<'de>(Tape<'de>);

impl<'de> UntypedObject<'de> {
    /// Reads a map. `items` reads the first value of its field of that name, if it has one.
    ///
    /// # Errors
    /// The text is not in the format of the deserializer, or an error of `items`.
    pub fn read<A: MapAccess<'de>, S: DeserializeSeed<'de>>(
        map: A,
        items: S,
    ) -> Result<(Self, Option<S::Value>), A::Error> {
        let (tape, items) = Tape::read_map(map, selected_labels::untyped_fields(), ITEMS, items)?;
        Ok((Self(tape), items))
    }

    /// Its kind; empty if it has none.
    pub fn kind(&self) -> &str {
        self.0.text(&["kind"]).unwrap_or_default()
    }

    /// Its API group and version; empty if it has none.
    pub fn api_version(&self) -> &str {
        self.0.text(&["apiVersion"]).unwrap_or_default()
    }

    pub fn of_kind(self, kind: Kind) -> RawObject<'de> {
        RawObject { kind, tape: self.0 }
    }
}
