//! The recorded traffic of a real Lotus and a real Boost, sent again: what the devnet answers agrees in status, code,
//! text and form. Numbers, CIDs, addresses, signatures and times are masked ([`mask`]), nothing else.
//!
//! What cannot agree is listed by its label, with the reason. A label that is not in the recording, and one that agrees
//! after all, fail the test: the list cannot grow old.

mod boost;
mod lotus;
mod mask;
mod methods;

use super::*;

/// What of a recording cannot agree: label and reason.
type Excluded = &'static [(&'static str, &'static str)];

/// Compares, by label; `outcomes` has the complaint of each exchange that does not agree.
fn judge(excluded: Excluded, outcomes: &[(String, Option<String>)]) {
    let mut complaints: Vec<String> = Vec::new();
    for (label, outcome) in outcomes {
        let known = excluded.iter().any(|(name, _)| name == label);
        if let (Some(why), false) = (outcome, known) {
            complaints.push(format!("{label}: {why}"));
        }
    }
    for (name, reason) in excluded {
        let mut of = outcomes.iter().filter(|(label, _)| label == name).peekable();
        if of.peek().is_none() {
            complaints.push(format!("{name} is excluded ({reason}), and the recording has no such label"));
        } else if of.all(|(_, outcome)| outcome.is_none()) {
            complaints.push(format!("{name} is excluded ({reason}), and agrees"));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn an_exclusion_must_be_needed_and_known() {
    let outcomes = [("a".to_owned(), None), ("b".to_owned(), Some("differs".to_owned()))];
    judge(&[("b", "it is b")], &outcomes);
    for excluded in [&[][..], &[("b", ""), ("a", "")], &[("b", ""), ("c", "")]] {
        let excluded: Excluded = excluded;
        assert!(std::panic::catch_unwind(|| judge(excluded, &outcomes)).is_err(), "{excluded:?}");
    }
}
