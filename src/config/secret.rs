//! Values that never show themselves, in messages of others neither.

use std::fmt;

/// Shorter values are not looked for in messages: they would hit words.
const MIN_BYTES: usize = 4;

/// A value that never shows itself.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A message of somebody else without our secrets.
pub fn hide<'a>(text: &str, secrets: impl Iterator<Item = &'a str>) -> String {
    let secrets = secrets.filter(|secret| secret.len() >= MIN_BYTES);
    secrets.fold(text.to_owned(), |text, secret| text.replace(secret, "<secret>"))
}
