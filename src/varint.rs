//! Numbers in 7-bit groups, low first, each but the last with the high bit set: short when small, 10 bytes at most.
//!
//! Invariant: reading any bytes ends with a number or an error, and looks at no more than 10. That a number has its shortest form is not
//! asked for.

/// The longest number.
pub(crate) const BYTES_MAX: usize = 10;

/// Bytes that do not begin with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VarintError {
    /// The bytes end within it.
    #[error("a number is cut off")]
    CutOff,
    /// It does not fit.
    #[error("a number has more than 64 bits")]
    TooLong,
}

/// Gives the number's bytes to `push`.
#[inline]
pub(crate) fn put(mut value: u64, mut push: impl FnMut(u8)) {
    while value >= 0x80 {
        push(value as u8 | 0x80);
        value >>= 7;
    }
    push(value as u8);
}

/// Takes the number that the bytes begin with; after an error they are as before.
#[inline]
pub(crate) fn take(bytes: &mut &[u8]) -> Result<u64, VarintError> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(BYTES_MAX) {
        let bits = u64::from(byte & 0x7F);
        if index == BYTES_MAX - 1 && bits > 1 {
            return Err(VarintError::TooLong);
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Ok(value);
        }
    }
    Err(if bytes.len() < BYTES_MAX {
        VarintError::CutOff
    } else {
        VarintError::TooLong
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(value, |byte| bytes.push(byte));
        bytes
    }

    #[test]
    fn a_number_comes_back_and_what_is_behind_it_stays() {
        for value in [0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, 1 << 63, u64::MAX] {
            let mut bytes = bytes_of(value);
            assert!(bytes.len() <= BYTES_MAX);
            bytes.push(0xFF);
            let mut rest = bytes.as_slice();
            assert_eq!(take(&mut rest), Ok(value));
            assert_eq!(rest, [0xFF]);
        }
    }

    #[test]
    fn a_number_that_is_cut_off_or_too_long_is_an_error() {
        for (bytes, error) in [
            (vec![], VarintError::CutOff),
            (vec![0x80], VarintError::CutOff),
            (bytes_of(u64::MAX)[..9].to_vec(), VarintError::CutOff),
            ([vec![0xFF; 9], vec![2]].concat(), VarintError::TooLong),
            ([vec![0xFF; 9], vec![0x81]].concat(), VarintError::TooLong),
        ] {
            let mut rest = bytes.as_slice();
            assert_eq!(take(&mut rest), Err(error), "{bytes:?}");
            assert_eq!(rest, bytes);
        }
    }
}
