//! Hot path: decimal numbers in byte buffers. No allocation, no formatting machinery.

/// Appends a number.
pub(crate) fn push_u64(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a number with its sign if negative.
pub(crate) fn push_i64(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    push_u64(out, value.unsigned_abs());
}

/// Reads digits and nothing else; `None` also when the number is too large.
pub(crate) fn parse_u64(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0_u64;
    for digit in text {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some(value)
}

/// Reads digits after an optional minus.
pub(crate) fn parse_i64(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0_i64.checked_sub_unsigned(parse_u64(digits)?),
        None => i64::try_from(parse_u64(text)?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(unsigned in any::<u64>(), signed in any::<i64>()) {
            let mut out = Vec::new();
            push_u64(&mut out, unsigned);
            prop_assert_eq!(parse_u64(&out), Some(unsigned));

            out.clear();
            push_i64(&mut out, signed);
            prop_assert_eq!(parse_i64(&out), Some(signed));
        }
    }

    #[test]
    fn what_is_not_a_number_or_too_large_is_refused() {
        for text in ["", "-", "+1", "1a", " 1", "18446744073709551616"] {
            assert_eq!(parse_u64(text.as_bytes()), None, "{text:?}");
            assert_eq!(parse_i64(text.as_bytes()), None, "{text:?}");
        }
    }
}
