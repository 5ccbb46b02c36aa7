//! Base64, as the API gives headers and bodies.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Base64 as text; nothing is empty.
///
/// # Errors
/// When it is no base64 or no text.
pub fn decoded(value: &Value) -> Result<String> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for byte in value.as_str().unwrap_or_default().bytes().filter(|byte| *byte != b'=') {
        let digit = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
            .iter()
            .position(|known| *known == byte)
            .context("base64")?;
        bits = bits << 6 | u32::try_from(digit)?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff)?);
        }
    }
    Ok(String::from_utf8(bytes)?)
}
