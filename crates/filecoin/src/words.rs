//! Texts of others, made fit for rows, logs and people: cut, on one line, without control characters.

use crate::limits::MAX_FOREIGN_TEXT;

/// `text` on one line and cut to [`MAX_FOREIGN_TEXT`] characters.
pub(crate) fn cut(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut out: String = text.trim().chars().take(MAX_FOREIGN_TEXT).map(plain).collect();
    if text.trim().chars().nth(MAX_FOREIGN_TEXT).is_some() {
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
        let long = "ß".repeat(MAX_FOREIGN_TEXT + 1);
        assert_eq!(cut(&long).chars().count(), MAX_FOREIGN_TEXT + 1);
        assert_eq!(cut(&long[..2 * MAX_FOREIGN_TEXT]), long[..2 * MAX_FOREIGN_TEXT]);
    }
}
