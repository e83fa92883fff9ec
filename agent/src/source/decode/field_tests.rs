// SPDX-License-Identifier: Apache-2.0
//! The lists of used fields are exactly the fields of the types that are decoded: a field that is missing in a list
//! would always be absent.

use std::collections::BTreeMap;

use serde::de::value::StrDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use super::tape::UsedField;
use super::used_fields::UsedFields;
use super::wrong_value::WrongValue;
use super::{METADATA, node, service, slice};

/// The fields of a type, with those of their values.
#[derive(Debug, Default, PartialEq)]
struct Tree(BTreeMap<String, Tree>);

impl Tree {
    fn of_list(fields: &[UsedField]) -> Self {
        Self(fields.iter().map(|field| (field.0.to_owned(), Self::of_list(field.1))).collect())
    }

    fn of_type<'de, T: Deserialize<'de>>() -> Self {
        let mut tree = Self::default();
        T::deserialize(Recorder(&mut tree)).unwrap_or_else(|error| panic!("{error}"));
        tree
    }
}

/// Gives every type a value and records the fields that the types have.
struct Recorder<'t>(&'t mut Tree);

impl<'de> Deserializer<'de> for Recorder<'_> {
    type Error = WrongValue;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, WrongValue> {
        Err(WrongValue::custom(format!("a value for {:?}", std::any::type_name::<V>())))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WrongValue> {
        visitor.visit_borrowed_str("")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WrongValue> {
        visitor.visit_bool(true)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WrongValue> {
        visitor.visit_u32(0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WrongValue> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WrongValue> {
        visitor.visit_seq(OneItem(Some(self.0)))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WrongValue> {
        visitor.visit_map(AllFields { tree: self.0, fields, next: 0 })
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u64 u128 f32 f64 char string bytes byte_buf unit unit_struct newtype_struct tuple
        tuple_struct map enum identifier ignored_any
    }
}

struct OneItem<'t>(Option<&'t mut Tree>);

impl<'de> SeqAccess<'de> for OneItem<'_> {
    type Error = WrongValue;

    fn next_element_seed<T: serde::de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, WrongValue> {
        self.0.take().map(|tree| seed.deserialize(Recorder(tree))).transpose()
    }
}

struct AllFields<'t> {
    tree: &'t mut Tree,
    fields: &'static [&'static str],
    next: usize,
}

impl<'de> MapAccess<'de> for AllFields<'_> {
    type Error = WrongValue;

    fn next_key_seed<K: serde::de::DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, WrongValue> {
        let Some(name) = self.fields.get(self.next) else { return Ok(None) };
        self.next += 1;
        seed.deserialize(StrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<V: serde::de::DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, WrongValue> {
        let name = self.fields[self.next - 1].to_owned();
        seed.deserialize(Recorder(self.tree.0.entry(name).or_default()))
    }
}

#[test]
fn the_used_fields_are_those_of_the_decoded_types() {
    for (list, of_type) in [
        (service::RawService::FIELDS, Tree::of_type::<service::RawService<'_>>()),
        (slice::RawSlice::FIELDS, Tree::of_type::<slice::RawSlice<'_>>()),
        (node::RawNode::FIELDS, Tree::of_type::<node::RawNode<'_>>()),
    ] {
        let mut of_list = Tree::of_list(list);
        assert_eq!(of_list.0.remove("metadata"), Some(Tree::of_list(METADATA.1)));
        assert_eq!(of_list, of_type);
    }
}
