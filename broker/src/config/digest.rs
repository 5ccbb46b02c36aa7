//! The digest of a configuration, as nats-server computes it: SHA-256 of the values as JSON with sorted keys and
//! a newline. Two files with one meaning have one digest, and the same one on both servers.

use std::collections::BTreeMap;

use serde::ser::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::grammar::{Block, Value};

/// `sha256:` and the digest in hexadecimal.
pub(super) fn digest(block: &Block) -> String {
    // Keys are strings and floats are finite, so this can not fail; an empty text would only change a digest.
    let mut text = serde_json::to_string(&Sorted(block)).unwrap_or_default();
    for (plain, escaped) in [("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e")] {
        text = text.replace(plain, escaped);
    }
    text.push('\n');
    let mut out = "sha256:".to_owned();
    for byte in Sha256::digest(text.as_bytes()) {
        out.push_str(&format!("{byte:02x}"));
    }
    out
}

struct Sorted<'a>(&'a Block);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let sorted: BTreeMap<&str, &Value> =
            self.0.entries().map(|entry| (entry.key.as_str(), &entry.value)).collect();
        out.collect_map(sorted)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => out.serialize_bool(*value),
            Self::Integer(value) => out.serialize_i64(*value),
            Self::Float(value) => out.serialize_f64(*value),
            Self::Text(value) | Self::Date(value) => out.serialize_str(value),
            Self::List(list) => out.collect_seq(list.iter().map(|element| &element.value)),
            Self::Block(block) => Sorted(block).serialize(out),
        }
    }
}
