//! Short names for long texts.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// The first `digits` (at most 64) of the text's SHA-256, in lower-case hexadecimal.
pub(crate) fn digest(text: &str, digits: usize) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(text.as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex.truncate(digits);
    hex
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_what_sha256sum_says() {
        // printf agent | sha256sum
        let whole = "d4f0bc5a29de06b510f9aa428f1eedba926012b591fef7a518e776a7c9bd1824";
        assert_eq!(super::digest("agent", 64), whole);
        assert_eq!(super::digest("agent", 6), whole[..6]);
    }
}
