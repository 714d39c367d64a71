//! Amounts of memory as Kubernetes writes them.
//!
//! A whole number of bytes, or one with a suffix: `K`, `M`, `G`, `T` are powers
//! of 1000, `Ki`, `Mi`, `Gi`, `Ti` powers of 1024 (`resource.Quantity`); `k` is
//! taken as `K`.

use thiserror::Error;

/// Why a text is no amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// There is no whole number in front.
    #[error("is no size; one looks like 512Mi, 2G or 1073741824")]
    Number,
    /// The suffix is not one of those above.
    #[error("has an unknown suffix; known are K, M, G, T, Ki, Mi, Gi and Ti")]
    Suffix,
    /// More bytes than the machine can address.
    #[error("is too large")]
    TooLarge,
}

/// Reads an amount of memory, in bytes.
///
/// # Errors
///
/// [`SizeError`] says what is wrong with the text.
pub fn parse(text: &str) -> Result<usize, SizeError> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    if number.is_empty() {
        return Err(SizeError::Number);
    }
    let unit: u64 = match suffix {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return Err(SizeError::Suffix),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or(SizeError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1073741824", 1 << 30),
            ("4k", 4_000),
            ("4K", 4_000),
            ("4Ki", 4_096),
            ("2M", 2_000_000),
            ("2Mi", 2 << 20),
            ("1G", 1_000_000_000),
            ("1Gi", 1 << 30),
            ("1Ti", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, error) in [
            ("", SizeError::Number),
            ("Mi", SizeError::Number),
            ("-1", SizeError::Number),
            ("1.5Gi", SizeError::Suffix),
            ("1GB", SizeError::Suffix),
            ("1 G", SizeError::Suffix),
            ("99999999999999999999", SizeError::TooLarge),
            ("99999999999Ti", SizeError::TooLarge),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }
}
