// SPDX-License-Identifier: Apache-2.0
//! Data that the kernel keeps for user space, as nft(8) reads it: items of type, length and value (`nftnl_udata` of
//! libnftnl's `udata.h`). An item has at most 255 bytes, and the kernel takes 256 for each object.

/// `NFTNL_UDATA_TABLE_COMMENT`, `NFTNL_UDATA_CHAIN_COMMENT` and `NFTNL_UDATA_RULE_COMMENT`
const COMMENT: u8 = 0;
/// `NFTNL_UDATA_SET_KEYBYTEORDER`
const SET_KEY_BYTE_ORDER: u8 = 0;
/// `BYTEORDER_BIG_ENDIAN` of nftables
const BIG_ENDIAN: u32 = 2;
/// Longest comment of nft(8), without its terminating zero.
const LONGEST_COMMENT: usize = 127;

/// The comment of a table, a chain or a rule. Longer ones than nft(8) permits are cut off.
pub fn comment(text: &str) -> Vec<u8> {
    let end = (0..=LONGEST_COMMENT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    let mut value = text.as_bytes()[..end.unwrap_or_default()].to_vec();
    value.push(0);
    item(COMMENT, &value)
}

/// The comment in the user data of a table, a chain or a rule.
pub fn comment_of(userdata: &[u8]) -> Option<String> {
    let mut rest = userdata;
    while let [kind, len, tail @ ..] = rest {
        let value = tail.get(..usize::from(*len))?;
        if *kind == COMMENT {
            return Some(netlink_batch::text(value));
        }
        rest = &tail[value.len()..];
    }
    None
}

/// Says that the keys of a set are in network order. Without this nft(8) prints intervals wrongly.
pub fn network_order() -> Vec<u8> {
    item(SET_KEY_BYTE_ORDER, &BIG_ENDIAN.to_ne_bytes())
}

fn item(kind: u8, value: &[u8]) -> Vec<u8> {
    let len = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[kind, len], &value[..usize::from(len)]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_read_back_and_long_ones_are_cut_off() {
        assert_eq!(comment("abc"), b"\0\x04abc\0");
        assert_eq!(comment_of(&[&[9, 1, 7], &comment("abc")[..]].concat()).as_deref(), Some("abc"));
        assert_eq!(comment_of(&comment(&"ä".repeat(100))), Some("ä".repeat(63)));
        assert_eq!([comment_of(&[]), comment_of(&[0, 9, 1])], [None, None]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_byte_order_is_a_number_of_the_host() {
        assert_eq!(network_order(), [0, 4, 2, 0, 0, 0]);
    }
}
