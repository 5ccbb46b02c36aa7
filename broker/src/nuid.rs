//! Random names: ephemeral consumers, ids of advisories. Letters and digits, as NATS draws them.

use crate::runtime::chance::Chance;

const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A random name of `chars` letters and digits.
#[must_use]
pub fn draw(chars: usize) -> String {
    let mut chance = Chance::new();
    (0..chars).map(|_| char::from(ALPHABET[chance.below(ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_differ_and_are_fit_for_subjects() {
        let (one, other) = (super::draw(22), super::draw(22));

        assert_ne!(one, other);
        assert!(one.len() == 22 && one.chars().all(|c| c.is_ascii_alphanumeric()));
    }
}
