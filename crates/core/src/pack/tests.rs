use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn size(bytes: u64) -> PaddedSize {
    PaddedSize::from_bytes(bytes).unwrap()
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn rules(target: u64, align: bool) -> Rules {
    Rules {
        target: size(target),
        least: size(target / 4),
        flush_after: 1_000,
        align,
        most_items: 1_000,
        most_sections: 1 << 20,
        head: 150,
    }
}

fn item(key: u32, account: i64, since: u64, bytes: u64) -> Item<u32> {
    Item {
        key,
        account: AccountId(account),
        turn: 0,
        since: at(since),
        bytes,
        sections: 1 + bytes / 1_000,
        entry: 50,
    }
}

fn keys(plan: &Plan<u32>) -> Vec<u32> {
    let mut keys: Vec<u32> = plan.items.iter().map(|placed| placed.key).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_segment_leaves_nothing_or_room_for_a_filler() {
    for (bytes, padded) in
        [(0, 128), (90, 128), (91, 256), (126, 256), (127, 128), (128, 256), (254 - 37, 256), (254 - 36, 512)]
    {
        assert_eq!(segment_size(bytes), Some(size(padded)), "{bytes}");
    }
    assert_eq!(segment_size(PaddedSize::MAX.unpadded_bytes()), Some(PaddedSize::MAX));
    assert_eq!(segment_size(PaddedSize::MAX.unpadded_bytes() - 1), None);
}

#[test]
fn nothing_is_packed_before_it_is_due() {
    let rules = rules(8 * MIB, true);
    let items = [item(1, 1, 100, MIB), item(2, 1, 200, MIB)];
    assert_eq!(next(&items, &rules, at(1_099)), None);
    let plan = next(&items, &rules, at(1_100)).unwrap();
    assert_eq!((keys(&plan), plan.why), (vec![1, 2], Why::Age));
    // Two segments of 2 MiB (a MiB of payload is above the power of two), one with the head at 0.
    assert_eq!((plan.size, plan.items[0].place, plan.items[1].place), (size(8 * MIB), 0, 2 * MIB));
    assert_eq!(next::<u32>(&[], &rules, at(1 << 40)), None);
}

#[test]
fn a_piece_as_large_as_the_target_is_packed_at_once() {
    for align in [true, false] {
        let rules = rules(MIB, align);
        let items: Vec<_> = (0..20).map(|n| item(n, 1, 100, MIB / 10)).collect();
        let plan = next(&items, &rules, at(100)).unwrap();
        assert_eq!((plan.why, plan.size), (Why::Full, size(MIB)), "{align}");
        // 102 KiB are segments of 128 KiB; the last eighth has the index.
        let most = if align { 7 } else { 9 };
        assert_eq!(keys(&plan), (0..most).collect::<Vec<_>>(), "{align}");
    }
}

/// A piece of two halves has no room for its index: FRC-0058.
#[test]
fn a_segment_alone_needs_a_piece_of_twice_its_size() {
    let rules = rules(16 * MIB, true);
    for (bytes, segment) in [(MIB, 2 * MIB), (MIB / 2, MIB), (4 * MIB, 8 * MIB), (4_161_536 - 300, 4 * MIB)] {
        let plan = next(&[item(1, 1, 0, bytes)], &rules, at(1_000)).unwrap();
        assert_eq!(plan.items, [Placed { key: 1, place: 0, size: size(segment) }], "{bytes}");
        assert_eq!(plan.size.bytes(), (2 * segment).max(4 * MIB), "{bytes}");
    }
    // Without room for the head in its segment, that lies behind a place that stays empty.
    let full = next(&[item(1, 1, 0, 4_161_536)], &rules, at(1_000)).unwrap();
    assert_eq!((full.items[0].place, full.size), (4 * MIB, size(16 * MIB)));
}

#[test]
fn the_index_bounds_the_items() {
    let rules = Rules { least: size(1 << 10), ..rules(MIB, true) };
    let items: Vec<_> = (0..20).map(|n| item(n, 1, 0, 80)).collect();
    let plan = next(&items, &rules, at(10_000)).unwrap();
    assert_eq!((plan.items.len(), plan.size), (8, size(MIB)), "an index of 1 MiB has 8 entries");
    let tight = next(&items, &Rules { align: false, ..rules }, at(10_000)).unwrap();
    assert_eq!((tight.items.len(), tight.size), (20, size(4 << 10)));
}

/// The flood is older: without turns, nobody else would be packed until it is through.
#[test]
fn a_flood_of_one_account_holds_up_no_other() {
    let mut items: Vec<_> = (0..200).map(|n| item(n, 1, u64::from(n), MIB / 3)).collect();
    items.push(item(1_000, 2, 5_000, MIB / 3));
    items.push(item(1_001, 3, 5_001, 3 * MIB));
    for align in [true, false] {
        let plans = all(&items, &rules(8 * MIB, align), at(100_000), 1_000);
        let of = |key: u32| plans.iter().position(|plan| keys(plan).contains(&key)).unwrap();
        assert_eq!(of(1_000), 0, "{align}");
        assert!(of(1_001) < 3, "{align}: {}", of(1_001));
    }
}

/// A large item of an account was passed over for small ones behind it, for as long as these came.
#[test]
fn items_of_an_account_do_not_pass_each_other() {
    let rules = rules(8 * MIB, false);
    let mut items = vec![item(1, 1, 10, 4 * MIB), item(2, 2, 11, 5 * MIB)];
    items.extend((10..20).map(|n| item(n, 2, u64::from(n) + 10, MIB)));
    let plan = next(&items, &rules, at(100_000)).unwrap();
    assert_eq!(keys(&plan), [1]);
    items.retain(|item| item.key != 1);
    assert_eq!(keys(&next(&items, &rules, at(100_000)).unwrap()), [2, 10, 11]);
}

#[test]
fn parts_of_what_is_larger_than_a_piece_fill_pieces() {
    for (align, parts, per_piece, filled) in [(true, 30, 15, 0.92), (false, 2, 1, 0.99)] {
        for target in [8 * MIB, 4 << 30, 32 << 30] {
            let rules = Rules { most_sections: u64::MAX, ..rules(target, align) };
            // Aligned, one of each fifteen has room for the head.
            let part = |n: u32| item(n, 1, 0, rules.cut() - if n.is_multiple_of(15) { 1_000 } else { 0 });
            let items: Vec<_> = (0..parts).map(part).collect();
            let first = next(&items, &rules, at(0)).unwrap();
            assert_eq!((first.items.len(), first.size, first.why), (per_piece, size(target), Why::Full));
            assert!(first.bytes as f64 / first.size.unpadded_bytes() as f64 > filled, "{target} {align}");
        }
    }
}

#[test]
fn what_is_cut_to_the_capacity_goes_into_one_piece() {
    for align in [true, false] {
        for target in [MIB, 8 * MIB, 4 << 30, 64 << 30] {
            let rules = rules(target, align);
            let plan = next(&[item(1, 1, 0, rules.capacity())], &rules, at(1_000)).unwrap();
            assert_eq!(
                (plan.size, plan.items[0].place),
                (size(target), if align { 0 } else { 128 }),
                "{target} {align}"
            );
        }
    }
}

fn any_items() -> impl Strategy<Value = Vec<Item<u32>>> {
    let one = (0..5i64, 0..50u64, prop_oneof![1..500u64, 1..100_000u64, 1..1_500_000u64], 1..40u64);
    prop::collection::vec(one, 1..120).prop_map(|all| {
        (0..)
            .zip(all)
            .map(|(key, (account, since, bytes, sections))| Item {
                key,
                account: AccountId(account),
                // An account has one turn.
                turn: account.unsigned_abs() * 7 % 3,
                since: at(since),
                bytes,
                sections,
                entry: 45 + bytes % 9,
            })
            .collect()
    })
}

/// What must hold of a plan, whatever is in it.
fn check(plan: &Plan<u32>, items: &[Item<u32>], rules: &Rules) {
    let of = |key: u32| items.iter().find(|item| item.key == key).unwrap();
    let head = rules.head + plan.items.iter().map(|placed| of(placed.key).entry).sum::<u64>();
    let index = if rules.align { plan.size.bytes() - plan.size.index_bytes() } else { u64::MAX };
    let (mut end, mut bytes) = (0, 0);
    for placed in &plan.items {
        let item = of(placed.key);
        bytes += item.bytes;
        if !rules.align {
            continue;
        }
        assert!(placed.place >= end, "no two overlap, and they are in order");
        assert_eq!(placed.place % placed.size.bytes(), 0, "aligned");
        end = placed.place + placed.size.bytes();
        let before = if placed.place == 0 { head } else { 0 };
        let left = placed.size.unpadded_bytes() - before - item.bytes;
        assert!(left == 0 || left >= SHORTEST_FILLER, "room for a filler");
        if placed.place > 0 {
            assert!(placed.place / 128 * 127 >= head + SHORTEST_FILLER || plan.items[0].place == 0);
        }
    }
    assert!(end <= index, "before the index");
    assert_eq!(bytes, plan.bytes);
    assert_eq!(plan.bytes + plan.padding, plan.size.unpadded_bytes());
    assert!(head <= plan.padding);
    assert!(plan.size >= rules.least);
    if plan.items.len() > 1 {
        assert!(plan.size <= rules.target.max(rules.least));
        assert!(plan.items.iter().map(|placed| of(placed.key).sections).sum::<u64>() <= rules.most_sections);
    }
    assert!(plan.items.len() <= rules.most_items);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_is_lost_nothing_is_twice_and_the_bounds_hold(
        items in any_items(),
        target in 17..24u32,
        least in 10..24u32,
        align: bool,
        most_items in 1..40usize,
        most_sections in 1..200u64,
    ) {
        let rules = Rules {
            least: size(1 << least),
            most_items,
            most_sections,
            ..rules(1 << target, align)
        };
        let plans = all(&items, &rules, at(100), 10_000);
        let mut seen = BTreeSet::new();
        for plan in &plans {
            check(plan, &items, &rules);
            for placed in &plan.items {
                prop_assert!(seen.insert(placed.key), "twice: {}", placed.key);
            }
        }
        prop_assert_eq!(seen.len(), items.len(), "lost");
        // In whatever order they come.
        let mut reversed = items.clone();
        reversed.reverse();
        prop_assert_eq!(all(&reversed, &rules, at(100), 10_000), plans);
    }

    /// The oldest item of each account is in one of the next pieces, of which there is one for each account.
    #[test]
    fn each_account_has_its_turn(items in any_items(), target in 17..24u32, align: bool) {
        let rules = rules(1 << target, align);
        let accounts: BTreeSet<AccountId> = items.iter().map(|item| item.account).collect();
        let plans = all(&items, &rules, at(100), accounts.len());
        let packed: BTreeSet<u32> = plans.iter().flat_map(keys).collect();
        for account in accounts {
            let of = items.iter().filter(|item| item.account == account);
            let oldest = of.min_by_key(|item| (item.since, item.key)).unwrap();
            prop_assert!(packed.contains(&oldest.key), "{:?}", oldest);
        }
    }

    /// Counting says what placing does: a set that is said to fit has places, and one that has places is said to fit.
    #[test]
    fn counting_and_placing_agree(items in any_items(), height in 5..20u8, take in 1..30usize) {
        let rules = Rules { least: PaddedSize::MIN, ..rules(MIB, true) };
        let items = &items[..take.min(items.len())];
        let size = PaddedSize::from_height(height).unwrap();
        let sums = Sums::of(items, &rules).unwrap();
        prop_assert_eq!(sums.fits(size, &rules), place(items, size, &rules).is_some());
    }
}
