// SPDX-License-Identifier: Apache-2.0
//! The used fields of an object as a flat list of tokens, made in one pass over the text. Other fields are skipped and
//! texts are borrowed. The pass does not check values, so a malformed object does not end its list or watch.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

use super::wrong_value::WrongValue;

/// The capacity for a usual object.
const CAPACITY: usize = 128;

/// A field, with the used fields of its value, or of the items of a list.
#[derive(Clone, Copy, Debug)]
pub struct UsedField(pub &'static str, pub &'static [UsedField]);

pub const fn plain(name: &'static str) -> UsedField {
    UsedField(name, &[])
}

#[derive(Debug)]
enum Token<'de> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(Cow<'de, str>),
    /// Before each value of a map.
    Key(&'static str),
    /// The start of a list, and the position after its end.
    List(usize),
    /// The start of a map, and the position after its end.
    Map(usize),
}

/// The tokens of one object.
#[derive(Debug)]
pub struct Tape<'de>(Vec<Token<'de>>);

impl<'de> Tape<'de> {
    /// Reads these fields of an object.
    ///
    /// # Errors
    /// The text is not in the format of the deserializer.
    pub fn read<D: Deserializer<'de>>(
        deserializer: D,
        fields: &'static [UsedField],
    ) -> Result<Self, D::Error> {
        let mut tokens = Vec::with_capacity(CAPACITY);
        TapeReader { tokens: &mut tokens, fields }.deserialize(deserializer)?;
        Ok(Self(tokens))
    }

    /// Reads these fields of a map. The first value of the field `other` is read by `seed` instead.
    ///
    /// # Errors
    /// The text is not in the format of the deserializer, or an error of `seed`.
    pub fn read_map<A: MapAccess<'de>, S: DeserializeSeed<'de>>(
        mut map: A,
        fields: &'static [UsedField],
        other: &str,
        seed: S,
    ) -> Result<(Self, Option<S::Value>), A::Error> {
        let mut tokens = Vec::with_capacity(CAPACITY);
        let (mut seed, mut value) = (Some(seed), None);
        tokens.push(Token::Map(0));
        while let Some(field) = map.next_key_seed(KeySeed(fields))? {
            match field {
                Some(field) if field.0 == other && seed.is_some() => {
                    value = seed.take().map(|seed| map.next_value_seed(seed)).transpose()?;
                }
                _ => read_value(&mut tokens, field, &mut map)?,
            }
        }
        tokens[0] = Token::Map(tokens.len());
        Ok((Self(tokens), value))
    }

    /// The value at a path, if there is one.
    pub fn at(&self, path: &[&str]) -> Option<TapeItem<'_>> {
        let root = TapeItem { tokens: &self.0, at: 0 };
        path.iter().try_fold(root, |item, key| item.get(key))
    }

    /// The text at a path, if there is one.
    pub fn text(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.text()
    }

    /// The object in the form of `T`.
    ///
    /// # Errors
    /// The path of the first field that is wrong, and what is wrong with it.
    pub fn decode<'a, T: Deserialize<'a>>(&'a self) -> Result<T, String> {
        let root = TapeItem { tokens: &self.0, at: 0 };
        // Tracking the path costs more than the value: only after an error.
        T::deserialize(root)
            .or_else(|_| serde_path_to_error::deserialize(root).map_err(|error| error.to_string()))
    }
}

struct TapeReader<'t, 'de> {
    tokens: &'t mut Vec<Token<'de>>,
    fields: &'static [UsedField],
}

impl<'de> DeserializeSeed<'de> for TapeReader<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! keep {
    ($($visit:ident($type:ty) $token:expr;)*) => {$(
        fn $visit<E>(self, value: $type) -> Result<(), E> {
            self.tokens.push($token(value));
            Ok(())
        }
    )*};
}

impl<'de> Visitor<'de> for TapeReader<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    keep! {
        visit_bool(bool) Token::Bool;
        visit_u64(u64) Token::Unsigned;
        visit_i64(i64) Token::Signed;
        visit_f64(f64) Token::Float;
        visit_borrowed_str(&'de str) |text| Token::Text(Cow::Borrowed(text));
        visit_str(&str) |text: &str| Token::Text(Cow::Owned(text.to_owned()));
        visit_string(String) |text| Token::Text(Cow::Owned(text));
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.tokens.push(Token::Null);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let (tokens, fields) = (self.tokens, self.fields);
        let at = tokens.len();
        tokens.push(Token::List(at));
        while list.next_element_seed(TapeReader { tokens, fields })?.is_some() {}
        tokens[at] = Token::List(tokens.len());
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let tokens = self.tokens;
        let at = tokens.len();
        tokens.push(Token::Map(at));
        while let Some(field) = map.next_key_seed(KeySeed(self.fields))? {
            read_value(tokens, field, &mut map)?;
        }
        tokens[at] = Token::Map(tokens.len());
        Ok(())
    }
}

/// Reads the value of a field, or skips that of a field that is not used.
fn read_value<'de, A: MapAccess<'de>>(
    tokens: &mut Vec<Token<'de>>,
    field: Option<&'static UsedField>,
    map: &mut A,
) -> Result<(), A::Error> {
    match field {
        Some(UsedField(name, fields)) => {
            tokens.push(Token::Key(name));
            map.next_value_seed(TapeReader { tokens, fields })
        }
        None => map.next_value::<IgnoredAny>().map(drop),
    }
}

/// Finds the field of a key.
struct KeySeed(&'static [UsedField]);

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Option<&'static UsedField>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Option<&'static UsedField>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|field| field.0 == key))
    }
}

/// A value on the tape.
#[derive(Clone, Copy, Debug)]
pub struct TapeItem<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
}

impl<'a> TapeItem<'a> {
    /// The position after this value.
    fn end(self) -> usize {
        match self.tokens[self.at] {
            Token::List(end) | Token::Map(end) => end,
            _ => self.at + 1,
        }
    }

    /// The value of a field of a map, if there is one.
    pub fn get(self, key: &str) -> Option<Self> {
        let Token::Map(end) = self.tokens[self.at] else { return None };
        let mut at = self.at + 1;
        while at < end {
            let value = TapeItem { at: at + 1, ..self };
            if matches!(self.tokens[at], Token::Key(name) if name == key) {
                return Some(value);
            }
            at = value.end();
        }
        None
    }

    /// The text, if it is one.
    pub fn text(self) -> Option<&'a str> {
        match &self.tokens[self.at] {
            Token::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn is_null(self) -> bool {
        matches!(self.tokens[self.at], Token::Null)
    }
}

/// The errors have the words of `serde_json`.
impl<'a> Deserializer<'a> for TapeItem<'a> {
    type Error = WrongValue;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        let inside = |end| ItemsLeft { next: TapeItem { at: self.at + 1, ..self }, end };
        match &self.tokens[self.at] {
            // A key is only read by `MapAccess`.
            Token::Null | Token::Key(_) => visitor.visit_unit(),
            Token::Bool(value) => visitor.visit_bool(*value),
            Token::Unsigned(value) => visitor.visit_u64(*value),
            Token::Signed(value) => visitor.visit_i64(*value),
            Token::Float(value) => visitor.visit_f64(*value),
            Token::Text(text) => visitor.visit_borrowed_str(text),
            Token::List(end) => visitor.visit_seq(inside(*end)),
            Token::Map(end) => visitor.visit_map(inside(*end)),
        }
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        <W: Visitor<'a>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}

/// The rest of a list or map.
struct ItemsLeft<'a> {
    next: TapeItem<'a>,
    end: usize,
}

impl<'a> ItemsLeft<'a> {
    fn take(&mut self) -> TapeItem<'a> {
        let item = self.next;
        self.next.at = item.end();
        item
    }
}

impl<'a> SeqAccess<'a> for ItemsLeft<'a> {
    type Error = WrongValue;

    fn next_element_seed<T: DeserializeSeed<'a>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Self::Error> {
        if self.next.at == self.end {
            return Ok(None);
        }
        seed.deserialize(self.take()).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        let mut item = self.next;
        let mut count = 0;
        while item.at < self.end {
            item.at = item.end();
            count += 1;
        }
        Some(count)
    }
}

impl<'a> MapAccess<'a> for ItemsLeft<'a> {
    type Error = WrongValue;

    fn next_key_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, Self::Error> {
        if self.next.at == self.end {
            return Ok(None);
        }
        let key = self.take();
        let Token::Key(key) = key.tokens[key.at] else { return Ok(None) };
        seed.deserialize(StrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<T::Value, Self::Error> {
        seed.deserialize(self.take())
    }
}
