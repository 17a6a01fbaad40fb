//! Names as `iexact` and `ipartial` compare them.
//!
//! SQLite's LIKE folds ASCII only, and PostgreSQL's depends on the locale; so the folded form is made here and
//! stored. Upper case and then lower case, character by character, is full case folding for what people write
//! (`ß` meets `SS`, `ς` meets `Σ`), without a table of our own; NFC before and after lets two spellings of `é` meet.

use unicode_normalization::UnicodeNormalization;

/// The folded form.
pub(crate) fn fold(text: &str) -> String {
    text.nfc().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn m18_full_unicode_fold() {
        for (a, b) in
            [("Straße", "STRASSE"), ("ΟΔΟΣ", "οδος"), ("e\u{301}", "É"), ("ÄÖÜ", "äöü"), ("100%_", "100%_")]
        {
            assert_eq!(fold(a), fold(b), "{a} {b}");
        }
        assert_ne!(fold("a"), fold("b"));
    }
}
