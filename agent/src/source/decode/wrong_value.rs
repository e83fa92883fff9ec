// SPDX-License-Identifier: Apache-2.0
//! Errors of fields, in the words of the Kubernetes documentation instead of the types of this program.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

/// A value of the wrong type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WrongValue(String);

fn found(value: Unexpected<'_>) -> String {
    match value {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => value.to_string(),
        Unexpected::Str(text) => format!("{text:?}"),
        Unexpected::Unit | Unexpected::Option => "null".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "an object".to_owned(),
        _ => "this".to_owned(),
    }
}

/// serde names the expected types of the program.
fn wanted(expected: &dyn Expected) -> &'static str {
    match expected.to_string().as_str() {
        "u16" | "u32" | "u64" => "a number without sign",
        "i64" | "i32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a borrowed string" | "a string" => "a text",
        _ => "an object",
    }
}

impl de::Error for WrongValue {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(value: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(format!("{} is not {}", found(value), wanted(expected)))
    }

    fn invalid_value(value: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = found(value);
        match value {
            Unexpected::Unsigned(_) => Self(format!("{found} is too large")),
            _ => Self(format!("{found} is not {}", wanted(expected))),
        }
    }
}
