//! What names and sizes are allowed. The command line checks the syntax early, the services check everything again.

use proto::BLOCK_BYTES;

/// Longest name of a node or volume, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Smallest volume: 1 MiB.
pub const VOLUME_BYTES_MIN: u64 = 1 << 20;
/// Largest volume: 16 TiB.
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;

/// Checks a node's or volume's name. `what` begins the error's sentence, e.g. `volume name`.
pub fn check_name(what: &str, name: &str) -> Result<(), String> {
    let bytes = name.as_bytes();
    let plain = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    let begins_well = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
    // A name of digits only could be taken for a node's number.
    let all_digits = bytes.iter().all(u8::is_ascii_digit);
    if bytes.len() > NAME_BYTES_MAX || !plain || !begins_well || all_digits {
        return Err(format!(
            "{what} {name:?} is not allowed: use 1 to {NAME_BYTES_MAX} letters (a-z, A-Z), digits, '-', '_' and '.', \
             beginning with a letter or digit, and not digits only"
        ));
    }
    Ok(())
}

/// Checks a volume's size in bytes.
pub fn check_size(bytes: u64) -> Result<(), String> {
    if !(VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&bytes) || !bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(format!(
            "a size of {bytes} bytes is not allowed: it must be 1 MiB to 16 TiB and a multiple of 4 KiB"
        ));
    }
    Ok(())
}

/// Reads a size such as `20G`, `1.5T`, `512MiB` or `1048576`. Units are binary (K = 1024), as in LVM and DRBD; case and
/// a trailing `B` or `iB` do not matter. The limits of a volume are checked too.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let syntax = || {
        format!("{text:?} is not a size: write a number and a unit K, M, G or T (binary: 1G = 1024M), for example 20G")
    };
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits_end);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(syntax()),
    };
    let bytes = scaled(number, shift).ok_or_else(syntax)?;
    let bytes = u64::try_from(bytes).map_err(|_| check_size(u64::MAX).unwrap_err())?;
    check_size(bytes)?;
    Ok(bytes)
}

/// `number` (decimal, with up to six digits after the point) times 2^shift; `None` if it is no number or not whole bytes.
fn scaled(number: &str, shift: u32) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 6 || (number.contains('.') && fraction.is_empty()) {
        return None;
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let units = whole.parse::<u128>().ok()? * scale + fraction;
    let bytes = units << shift;
    bytes.is_multiple_of(scale).then(|| bytes / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_as_in_lvm() {
        assert_eq!(parse_size("20G"), Ok(20 << 30));
        assert_eq!(parse_size("20g"), Ok(20 << 30));
        assert_eq!(parse_size("20GiB"), Ok(20 << 30));
        assert_eq!(parse_size("20 GB"), Ok(20 << 30));
        assert_eq!(parse_size("1.5T"), Ok(3 << 39));
        assert_eq!(parse_size("1048576"), Ok(1 << 20));
        assert_eq!(parse_size("1024K"), Ok(1 << 20));
        assert_eq!(parse_size("16T"), Ok(16 << 40));
    }

    #[test]
    fn sizes_out_of_bounds_name_the_bounds() {
        for text in ["1023K", "0", "0G", "17T", "16.000001T", "1048577", "99999999999999999999T"] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains("1 MiB to 16 TiB") || error.contains("not a size"), "{text}: {error}");
        }
        assert!(parse_size("1048577").unwrap_err().contains("multiple of 4 KiB"));
    }

    #[test]
    fn sizes_that_are_no_sizes_say_how_to_write_one() {
        for text in ["", "G", "20X", "-1G", "1.G", ".5G", "1..5G", "1e9", "20G20", "٣G", "1.0000001G", "0x10M"] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains("for example 20G"), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_plain() {
        for name in ["a", "vm-disk.1", "db_2", "Box-A", "2nd", &"x".repeat(NAME_BYTES_MAX)] {
            assert_eq!(check_name("volume name", name), Ok(()), "{name}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in ["", "12", "-a", ".a", "a b", "a/b", "..", "ä", "a\n", "a\0b", long.as_str()] {
            let error = check_name("volume name", name).unwrap_err();
            assert!(error.contains("1 to 63"), "{name}: {error}");
        }
    }
}
