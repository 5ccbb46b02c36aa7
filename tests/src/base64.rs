//! Base64, as the API gives headers and bodies.

use anyhow::Result;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

/// Base64 as text; nothing is empty.
///
/// # Errors
/// When it is no base64 or no text.
pub fn decoded(value: &Value) -> Result<String> {
    Ok(String::from_utf8(BASE64_STANDARD.decode(value.as_str().unwrap_or_default())?)?)
}
