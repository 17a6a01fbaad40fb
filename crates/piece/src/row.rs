//! Whole rows of the tree.
//!
//! A row is kept as words and not as bytes ([`Words`]): what a hash gives is what the hash above it reads. Rows are hashed with
//! the processor's SHA extensions where it has them (`sha_ni`), else through the `sha2` crate, which on aarch64 uses that
//! processor's.

use crate::fr32::{self, Group};
use crate::node::{self, Words};

/// The root over groups, a power of two of them and at least one. `row` is room that is used again.
pub(crate) fn root_of_groups(groups: &[Group], row: &mut Vec<Words>) -> Words {
    row.resize(2 * groups.len(), [0; 8]);
    over_groups(groups, row);
    root(row)
}

/// The root over a row whose length is a power of two. The row is used up.
pub(crate) fn root(row: &mut [Words]) -> Words {
    let mut len = row.len();
    while len > 1 {
        halve(&mut row[..len]);
        len /= 2;
    }
    row.first().copied().unwrap_or_default()
}

/// Hashes the leaves of groups to the row above them, two nodes for each group.
fn over_groups(groups: &[Group], row: &mut [Words]) {
    #[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
    if crate::sha_ni::over_groups(groups, row) {
        return;
    }
    over_groups_portably(groups, row);
}

/// Hashes a row of nodes, an even number of them, to the row above, in place: the parents are the first half.
fn halve(row: &mut [Words]) {
    #[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
    if crate::sha_ni::halve(row) {
        return;
    }
    halve_portably(row);
}

fn over_groups_portably(groups: &[Group], row: &mut [Words]) {
    for (group, parents) in groups.iter().zip(row.as_chunks_mut::<2>().0) {
        let leaves = fr32::pad(group);
        for (children, parent) in leaves.as_chunks::<64>().0.iter().zip(parents) {
            *parent = node::parent_words(children);
        }
    }
}

fn halve_portably(row: &mut [Words]) {
    for i in 0..row.len() / 2 {
        let mut children = [0; 64];
        for (child, out) in [&row[2 * i], &row[2 * i + 1]].into_iter().zip(children.as_chunks_mut::<32>().0) {
            *out = node::bytes(child);
        }
        row[i] = node::parent_words(&children);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_groups() -> impl Strategy<Value = Vec<Group>> {
        let group = prop::collection::vec(any::<u8>(), fr32::GROUP_BYTES);
        prop::collection::vec(group.prop_map(|bytes| bytes.try_into().unwrap()), 0..12)
    }

    proptest! {
        /// Whatever this processor has: the same as the portable way, for rows of any length.
        #[test]
        fn rows_are_hashed_as_the_portable_way_does(row in prop::collection::vec(any::<Words>(), 0..40)) {
            let (mut fast, mut slow) = (row.clone(), row);
            halve(&mut fast);
            halve_portably(&mut slow);
            let parents = fast.len() / 2;
            prop_assert_eq!(&fast[..parents], &slow[..parents]);
        }

        #[test]
        fn groups_are_hashed_as_the_portable_way_does(groups in any_groups()) {
            let mut fast = vec![[0; 8]; 2 * groups.len()];
            let mut slow = fast.clone();
            over_groups(&groups, &mut fast);
            over_groups_portably(&groups, &mut slow);
            prop_assert_eq!(fast, slow);
        }
    }
}
