//! Texts of others, made fit for rows, logs and people: cut, on one line, without control characters.

use crate::limits::MAX_FOREIGN_TEXT;

/// `text` on one line and cut to [`MAX_FOREIGN_TEXT`] characters.
pub(crate) fn cut(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    // Control characters become spaces, so they go from the ends with them: what was cut once is not cut again.
    let text = text.trim_matches(|c: char| c.is_whitespace() || c.is_control());
    let mut out: String = text.chars().take(MAX_FOREIGN_TEXT).map(plain).collect();
    if text.chars().nth(MAX_FOREIGN_TEXT).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters_and_kept_on_one_line() {
        assert_eq!(cut(" a\nb\x1b[31m "), "a b [31m");
        // A provider's text began with a control character: read, written and read again it was another one.
        assert_eq!(cut("\u{1} a \u{2}"), "a");
        let long = "ß".repeat(MAX_FOREIGN_TEXT + 1);
        assert_eq!(cut(&long).chars().count(), MAX_FOREIGN_TEXT + 1);
        assert_eq!(cut(&long[..2 * MAX_FOREIGN_TEXT]), long[..2 * MAX_FOREIGN_TEXT]);
    }
}
