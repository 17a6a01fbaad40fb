//! A disk whose sync fails under the running service. Needs the crash points compiled in.

mod support;

use std::time::Duration;

use support::{Node, ends_with, exit_code, log, now, run};

const EMPTY: &str = "bafkqaaa";
const HELLO: &str = "bafkqabtimvwgy3yk";

/// The start syncs a few times and each pin some more, so the failure comes under load.
#[test]
fn r03_after_a_failed_sync_the_process_ends_with_12_and_the_next_start_has_all_that_was_acknowledged() {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path().join("floe");
    let mut child = Node::spawn(&dir, &[], &[("FAILPOINTS", "disk.sync=60*off->return")]);
    let begun = now();
    while !dir.join("endpoints.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it starts on a disk that works: {}", log(&dir));
        assert!(begun.elapsed() < Duration::from_secs(40), "{}", log(&dir));
        std::thread::sleep(Duration::from_millis(10));
    }
    let dir_arg = dir.display().to_string();
    let add = |cid: &str| {
        let added = run(&["pin", "add", cid, "--json", "--data-dir", &dir_arg]);
        let pin = serde_json::from_slice::<serde_json::Value>(&added.stdout).ok()?;
        added.status.success().then(|| pin["requestid"].as_str().unwrap().to_owned())
    };
    let mut acknowledged = vec![add(HELLO).expect("the disk still works")];
    let mut rounds = 0;
    // Pinned and removed, so that each round has something to make durable.
    while child.try_wait().unwrap().is_none() {
        rounds += 1;
        assert!(begun.elapsed() < Duration::from_secs(60), "{rounds} rounds and no failure");
        let Some(id) = add(EMPTY) else { continue };
        std::thread::sleep(Duration::from_millis(20));
        if child.try_wait().unwrap().is_some() {
            acknowledged.push(id);
            break;
        }
        // A removal without an answer may be done or not.
        run(&["pin", "rm", &id, "--data-dir", &dir_arg]);
    }
    assert_eq!(exit_code(&mut child), 12, "{}", log(&dir));
    assert!(log(&dir).contains("a sync failed"), "{}", log(&dir));

    let node = Node::start(&dir);
    for id in &acknowledged {
        let pin = node.json(0, &["pin", "status", id]);
        assert!(["queued", "pinning", "pinned"].contains(&pin["status"].as_str().unwrap()), "{pin}");
    }
    assert_eq!(node.stop(), 0);
    ends_with(0, &["verify", "--offline", "--data-dir", &dir_arg]);
}
