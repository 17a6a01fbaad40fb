//! Timestamps as clients read them, and the clock that tests move.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use floe_core::{Clock as _, ManualClock, Timestamp};
use proptest::prelude::*;

#[test]
fn a_timestamp_is_written_with_exactly_three_digits() {
    for (millis, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (10, "1970-01-01T00:00:00.010Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (1_767_323_045_678, "2026-01-02T03:04:05.678Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (u64::MAX, "9999-12-31T23:59:59.999Z"),
    ] {
        assert_eq!(Timestamp::from_millis(millis).to_string(), text);
    }
}

#[test]
fn rfc_3339_is_read_in_its_forms_and_nothing_else_is() {
    let at = Timestamp::from_millis(1_767_323_045_678);
    for text in ["2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05.678999Z", "2026-01-02T05:04:05.678+02:00"] {
        assert_eq!(Timestamp::parse_rfc3339(text), Some(at), "{text}");
    }
    assert_eq!(
        Timestamp::parse_rfc3339("2026-01-02T03:04:05Z"),
        Some(Timestamp::from_millis(1_767_323_045_000))
    );
    for text in ["", "2026-01-02", "2026-13-02T03:04:05Z", "2026-01-02T03:04:05", "1969-12-31T23:59:59Z"] {
        assert_eq!(Timestamp::parse_rfc3339(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(millis in 0u64..253_402_300_800_000) {
        let at = Timestamp::from_millis(millis);
        prop_assert_eq!(Timestamp::parse_rfc3339(&at.to_string()), Some(at));
    }

    #[test]
    fn any_text_is_no_panic(text in ".{0,40}") {
        if let Some(at) = Timestamp::parse_rfc3339(&text) {
            prop_assert_eq!(Timestamp::parse_rfc3339(&at.to_string()), Some(at));
        }
    }
}

#[test]
fn a_sleeper_wakes_when_the_clock_is_moved_far_enough() {
    let clock = ManualClock::new(Timestamp::from_millis(1_000));
    let mut sleep = clock.sleep(Duration::from_secs(10));
    let mut poll = || sleep.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(poll(), Poll::Pending);
    clock.advance(Duration::from_millis(9_999));
    assert_eq!(poll(), Poll::Pending);
    clock.advance(Duration::from_millis(1));
    assert_eq!(poll(), Poll::Ready(()));
    assert_eq!(clock.now(), Timestamp::from_millis(11_000));
}

#[test]
fn a_jump_of_the_wall_clock_wakes_nobody_and_moves_no_deadline() {
    let clock = ManualClock::new(Timestamp::from_millis(5_000));
    clock.advance(Duration::from_secs(1));
    clock.jump_to(Timestamp::from_millis(3_600_000));
    assert_eq!(clock.now(), Timestamp::from_millis(3_600_000));
    assert_eq!(clock.monotonic(), Duration::from_secs(1));
    clock.advance(Duration::from_secs(1));
    assert_eq!(clock.now(), Timestamp::from_millis(3_601_000));
}
