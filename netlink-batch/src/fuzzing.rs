// SPDX-License-Identifier: Apache-2.0
//! The decoder of datagrams by itself, for fuzzing: it takes what a kernel may send and panics when what it reads
//! breaks a rule. No part of the API.

use crate::{AttributeIter, Refusal, messages};

/// A datagram of many messages. Cut short it holds the first of them, then perhaps an error.
pub fn datagram(bytes: &[u8]) {
    let all: Vec<_> = messages(bytes).map_while(Result::ok).collect();
    let total: usize = all.iter().map(|message| 16 + message.payload.len()).sum();
    assert!(total <= bytes.len(), "{total} bytes of messages in {}", bytes.len());
    for message in &all {
        if let Ok(refusal) = Refusal::of(message) {
            // A byte that is no text is shown by a character of three.
            let text = refusal.text.unwrap_or_default();
            assert!(text.len() <= 3 * message.payload.len(), "{text:?}");
        }
        let attributes = AttributeIter::new(message.payload).flatten();
        let attributes: usize = attributes.map(|(_, value)| 4 + value.len()).sum();
        assert!(attributes <= message.payload.len());
    }
    let cut: Vec<_> = messages(&bytes[..bytes.len() / 2]).map_while(Result::ok).collect();
    assert!(all.starts_with(&cut));
}
