// SPDX-License-Identifier: Apache-2.0
//! Keys from the bytes that a terminal sends. Our own decoder, because crossterm's reader never returns once the terminal is
//! gone (it repeats a read that fails), which would use a CPU of the node after a lost `kubectl exec`.

/// A key that `kube-ipvs top` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopKey {
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Backspace,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-L.
    Repaint,
    Char(char),
}

/// Longest sequence of a key; what is longer is dropped.
const LONGEST: usize = 16;

/// Bytes that are no whole key yet.
#[derive(Debug, Default)]
pub struct KeyDecoder(Vec<u8>);

/// What stands at the begin of the bytes: a key if it is known, and its length.
type KeyPart = Option<(Option<TopKey>, usize)>;

impl KeyDecoder {
    /// The keys of these bytes.
    pub fn add(&mut self, bytes: &[u8]) -> Vec<TopKey> {
        self.0.extend_from_slice(bytes);
        let (mut keys, mut done) = (Vec::new(), 0);
        while let Some((key, length)) = self.0.get(done..).and_then(decode) {
            keys.extend(key);
            done += length;
        }
        self.0.drain(..done.min(self.0.len()));
        keys
    }

    /// Whether the next bytes may belong to a key that has begun.
    pub fn is_waiting(&self) -> bool {
        !self.0.is_empty()
    }

    /// No more bytes came for a while: an escape is the key of that name.
    pub fn end(&mut self) -> Option<TopKey> {
        let bytes = std::mem::take(&mut self.0);
        bytes.starts_with(&[0x1b]).then_some(TopKey::Escape)
    }
}

/// `None`: the key is not whole, or there is none.
fn decode(bytes: &[u8]) -> KeyPart {
    match *bytes.first()? {
        0x1b => escape(bytes),
        0x03 => Some((Some(TopKey::Interrupt), 1)),
        0x0c => Some((Some(TopKey::Repaint), 1)),
        b'\r' | b'\n' => Some((Some(TopKey::Enter), 1)),
        0x08 | 0x7f => Some((Some(TopKey::Backspace), 1)),
        0..0x20 => Some((None, 1)),
        byte if byte.is_ascii() => Some((Some(TopKey::Char(char::from(byte))), 1)),
        byte => character(byte, bytes),
    }
}

fn character(first: u8, bytes: &[u8]) -> KeyPart {
    let length = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return Some((None, 1)),
    };
    let text = std::str::from_utf8(bytes.get(..length)?);
    Some(match text.ok().and_then(|text| text.chars().next()) {
        Some(character) => (Some(TopKey::Char(character)), length),
        None => (None, 1),
    })
}

fn escape(bytes: &[u8]) -> KeyPart {
    match bytes.get(1)? {
        b'O' => Some((last_letter(*bytes.get(2)?), 3)),
        b'[' => {
            let parameters = bytes.get(2..)?;
            let Some(length) = parameters.iter().position(|byte| (0x40..0x7f).contains(byte)) else {
                return (parameters.len() >= LONGEST).then_some((None, bytes.len()));
            };
            let (numbers, last) = (parameters.get(..length)?, *parameters.get(length)?);
            let key = if last == b'~' { numbered(numbers) } else { last_letter(last) };
            Some((key, length + 3))
        }
        // Alt and a key, or an escape typed before another key.
        _ => Some((Some(TopKey::Escape), 1)),
    }
}

fn last_letter(letter: u8) -> Option<TopKey> {
    Some(match letter {
        b'A' => TopKey::Up,
        b'B' => TopKey::Down,
        b'C' => TopKey::Right,
        b'D' => TopKey::Left,
        b'H' => TopKey::Home,
        b'F' => TopKey::End,
        b'M' => TopKey::Enter,
        _ => return None,
    })
}

fn numbered(numbers: &[u8]) -> Option<TopKey> {
    Some(match numbers.split(|byte| *byte == b';').next()? {
        b"1" | b"7" => TopKey::Home,
        b"4" | b"8" => TopKey::End,
        b"5" => TopKey::PageUp,
        b"6" => TopKey::PageDown,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_of_terminals() {
        let keys = |bytes: &[u8]| KeyDecoder::default().add(bytes);
        assert_eq!(keys(b"q/\r"), [TopKey::Char('q'), TopKey::Char('/'), TopKey::Enter]);
        assert_eq!(
            keys(b"\x1b[A\x1b[B\x1b[C\x1b[D"),
            [TopKey::Up, TopKey::Down, TopKey::Right, TopKey::Left]
        );
        assert_eq!(keys(b"\x1bOA\x1bOH\x1b[F\x1b[1;5A"), [TopKey::Up, TopKey::Home, TopKey::End, TopKey::Up]);
        let pages = [TopKey::PageUp, TopKey::PageDown, TopKey::Home, TopKey::End];
        assert_eq!(keys(b"\x1b[5~\x1b[6~\x1b[1~\x1b[4~"), pages);
        assert_eq!(keys(b"\x7f\x03\x0c\x01"), [TopKey::Backspace, TopKey::Interrupt, TopKey::Repaint]);
        assert_eq!(keys("ä".as_bytes()), [TopKey::Char('ä')]);
        assert_eq!(keys(b"\x1b[200~\xffq"), [TopKey::Char('q')], "unknown keys are passed over");
        assert_eq!(keys(b"\x1bq"), [TopKey::Escape, TopKey::Char('q')]);
    }

    #[test]
    fn a_sequence_may_arrive_in_parts() {
        let mut decoder = KeyDecoder::default();
        assert_eq!(decoder.add(b"\x1b"), []);
        assert!(decoder.is_waiting());
        assert_eq!(decoder.add(b"["), []);
        assert_eq!(decoder.add(b"A"), [TopKey::Up]);
        assert!(!decoder.is_waiting());
        assert_eq!(decoder.add(b"\x1b"), []);
        assert_eq!(decoder.end(), Some(TopKey::Escape));
        assert!(!decoder.is_waiting() && decoder.end().is_none());
        assert_eq!(decoder.add(&[0xc3]), []);
        assert_eq!(decoder.end(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_and_few_are_kept(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let mut decoder = KeyDecoder::default();
            for part in parts {
                decoder.add(&part);
                prop_assert!(decoder.0.len() <= LONGEST + 2);
            }
        }
    }
}
