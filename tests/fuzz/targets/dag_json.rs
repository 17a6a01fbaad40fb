//! Any bytes as a dag-json block: links or an error, in bounded memory; a block that scans names its links alike
//! each time.
#![no_main]

use floe_core::cid::code;
use floe_fuzz::{BASE, within};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let scan = || {
        let mut links = 0usize;
        floe_dag::scan(code::DAG_JSON, data, &mut |_| links += 1).map(|()| links)
    };
    let first = within(data.len(), BASE, scan);
    assert_eq!(first.is_ok(), scan().is_ok());
    if let (Ok(first), Ok(again)) = (first, scan()) {
        assert_eq!(first, again);
    }
});
