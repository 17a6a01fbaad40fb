//! What every journal of messages has to do, wherever its entries are. The binary runs the same over its rows.

use floe_filecoin::escrow::top_up_message;
use floe_filecoin::messages::{Entry, Journal, JournalError, Progress, Version};
use floe_filecoin::types::{Address, AttoFil, Epoch, Signature, SignatureKind, SignedMessage};

const WALLET: &str = "f1ghrejg5rcic6csaduor6ak4wcgj7ikrrxxo72my";

fn wallet() -> Address {
    WALLET.parse().unwrap()
}

fn version(nonce: u64, premium: u128) -> Version {
    let mut message = top_up_message(wallet(), AttoFil::new(500));
    (message.nonce, message.gas_premium) = (nonce, AttoFil::new(premium));
    let signature = Signature::new(SignatureKind::Secp256k1, vec![7; 65]).unwrap();
    Version { message: SignedMessage { message, signature }, pushed_at: None }
}

fn entry(intent: &str, nonce: u64) -> Entry {
    Entry {
        intent: intent.into(),
        from: wallet(),
        nonce,
        versions: vec![version(nonce, 0)],
        progress: Progress::Signed,
        since: Epoch::new(1),
    }
}

/// Runs all of it on an empty journal.
pub(crate) async fn conforms(journal: &dyn Journal) {
    numbers_and_intents_are_used_once(journal).await;
    each_step_comes_back(journal).await;
    versions_are_of_one_call(journal).await;
    what_is_settled_stays(journal).await;
    so_many_wait(journal).await;
}

async fn numbers_and_intents_are_used_once(journal: &dyn Journal) {
    assert_eq!(journal.find("a").await, Ok(None));
    assert_eq!(journal.next_nonce(wallet()).await, Ok(None));
    journal.add(&entry("a", 7)).await.unwrap();
    assert_eq!(journal.find("a").await, Ok(Some(entry("a", 7))));
    assert_eq!(journal.next_nonce(wallet()).await, Ok(Some(8)));
    for twice in [entry("a", 8), entry("b", 7), entry("c", 6)] {
        assert!(matches!(journal.add(&twice).await, Err(JournalError::Conflict(_))), "{}", twice.intent);
    }
    assert_eq!(journal.next_nonce(Address::Id(1)).await, Ok(None), "each sender has its own numbers");
    assert_eq!(journal.unsettled(wallet()).await, Ok(vec![entry("a", 7)]));
}

async fn each_step_comes_back(journal: &dyn Journal) {
    let refused = Progress::Refused { reason: "in the node's words".into() };
    for (head, step) in (2..).zip([Progress::Pooled, refused, Progress::Signed]) {
        journal.pushed("a", Epoch::new(head), &step).await.unwrap();
        let found = journal.find("a").await.unwrap().unwrap();
        assert_eq!((found.progress, found.versions[0].pushed_at), (step, Some(Epoch::new(head))));
    }
    for step in [Progress::Included { version: 0, height: Epoch::new(9) }, Progress::Missing] {
        journal.progress("a", &step).await.unwrap();
        let found = journal.find("a").await.unwrap().unwrap();
        assert_eq!((found.progress, found.versions[0].pushed_at), (step, Some(Epoch::new(4))));
    }
    let unknown = journal.progress("nobody", &Progress::Pooled).await;
    assert!(matches!(unknown, Err(JournalError::Conflict(_))));
}

async fn versions_are_of_one_call(journal: &dyn Journal) {
    let mut other = version(7, 1);
    other.message.message.value = AttoFil::new(501);
    for (what, wrong) in
        [("another call", other), ("another nonce", version(8, 1)), ("the same bytes", version(7, 0))]
    {
        assert!(matches!(journal.add_version("a", &wrong).await, Err(JournalError::Conflict(_))), "{what}");
    }
    for premium in 1..=25 {
        journal.add_version("a", &version(7, premium)).await.unwrap();
    }
    assert!(journal.add_version("a", &version(7, 26)).await.is_err(), "the first and 25 replacements");
    let found = journal.find("a").await.unwrap().unwrap();
    assert_eq!(found.versions.len(), 26);
    assert_eq!(found.versions.last(), Some(&version(7, 25)));
    journal.pushed("a", Epoch::new(30), &Progress::Pooled).await.unwrap();
    let found = journal.find("a").await.unwrap().unwrap();
    let pushed: Vec<_> = found.versions.iter().map(|version| version.pushed_at).collect();
    assert_eq!((pushed[0], pushed[24], pushed[25]), (Some(Epoch::new(4)), None, Some(Epoch::new(30))));
}

async fn what_is_settled_stays(journal: &dyn Journal) {
    let done = Progress::Final { version: 3, height: Epoch::new(40), exit_code: 16 };
    journal.progress("a", &done).await.unwrap();
    assert!(journal.progress("a", &Progress::Pooled).await.is_err());
    assert!(journal.pushed("a", Epoch::new(41), &Progress::Pooled).await.is_err());
    assert!(journal.add_version("a", &version(7, 99)).await.is_err());
    assert_eq!(journal.find("a").await.unwrap().unwrap().progress, done);
    assert_eq!(journal.unsettled(wallet()).await, Ok(vec![]));
    assert_eq!(journal.next_nonce(wallet()).await, Ok(Some(8)), "its number stays taken");
}

async fn so_many_wait(journal: &dyn Journal) {
    // From the highest intent down, so that their order is that of the numbers and of nothing else.
    for nonce in 8..40 {
        journal.add(&entry(&(100 - nonce).to_string(), nonce)).await.unwrap();
    }
    assert_eq!(journal.add(&entry("more", 40)).await, Err(JournalError::Full));
    let open = journal.unsettled(wallet()).await.unwrap();
    assert_eq!(open.iter().map(|entry| entry.nonce).collect::<Vec<_>>(), (8..40).collect::<Vec<_>>());
    let done = Progress::Final { version: 0, height: Epoch::new(50), exit_code: 0 };
    journal.progress(&open[0].intent, &done).await.unwrap();
    journal.add(&entry("more", 40)).await.unwrap();
    assert_eq!(journal.add(&entry("yet more", 41)).await, Err(JournalError::Full));
    // What is missing waits for nothing: 32 of them once ended all sending, for good. It may be found all the same.
    journal.progress(&open[1].intent, &Progress::Missing).await.unwrap();
    journal.add(&entry("yet more", 41)).await.unwrap();
    assert_eq!(journal.unsettled(wallet()).await.unwrap()[0].intent, open[1].intent);
    journal.progress(&open[1].intent, &done).await.unwrap();
}
