//! The alphabet of byte-level BPE: every byte is written as one printable character, so that
//! tokens are text and merges can be separated by spaces. Bytes that print stand for themselves,
//! the 68 others take the characters from U+0100 on.

const FIRST_STAND_IN: u32 = 0x100;
const N_STAND_INS: usize = 68;

/// The character that stands for each byte.
pub(super) const CHARS: [char; 256] = chars();
/// The bytes behind U+0100, U+0101, and so on.
const STAND_INS: [u8; N_STAND_INS] = stand_ins();

const fn prints(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

const fn chars() -> [char; 256] {
    let mut chars = ['\0'; 256];
    let mut stand_in = FIRST_STAND_IN;
    let mut byte = 0;
    while byte < 256 {
        chars[byte] = if prints(byte as u8) {
            byte as u8 as char
        } else {
            stand_in += 1;
            match char::from_u32(stand_in - 1) {
                Some(char) => char,
                None => panic!("U+0100 to U+0143 are characters"),
            }
        };
        byte += 1;
    }
    chars
}

const fn stand_ins() -> [u8; N_STAND_INS] {
    let mut bytes = [0; N_STAND_INS];
    let mut found = 0;
    let mut byte = 0;
    while byte < 256 {
        if !prints(byte as u8) {
            bytes[found] = byte as u8;
            found += 1;
        }
        byte += 1;
    }
    assert!(found == N_STAND_INS);
    bytes
}

/// The byte that a character stands for.
pub(super) fn byte(char: char) -> Option<u8> {
    match u8::try_from(char) {
        Ok(byte) => prints(byte).then_some(byte),
        Err(_) => STAND_INS.get((char as u32 - FIRST_STAND_IN) as usize).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_is_the_published_one() {
        assert_eq!(CHARS[usize::from(b' ')], 'Ġ');
        assert_eq!(CHARS[usize::from(b'\n')], 'Ċ');
        assert_eq!(CHARS[usize::from(b'A')], 'A');
        assert_eq!(CHARS[0xad], '\u{143}');
        for each in 0..=255 {
            assert_eq!(byte(CHARS[usize::from(each)]), Some(each));
        }
        for none in [' ', '\u{ad}', '\u{144}', '▁', '\u{10ffff}'] {
            assert_eq!(byte(none), None, "{none:?}");
        }
    }
}
