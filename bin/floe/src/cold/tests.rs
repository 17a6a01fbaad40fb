//! The parts, joined as `serve` joins them, against a devnet: providers over the real node's swarm.

use bytes::Bytes;
use floe_core::cold::{
    Answer, Chain as _, Contact, ContactAddress, DealTerms, DealUuid, Market as _, Proposer as _,
    ProviderWord,
};
use floe_core::ports::{LocalBlocks, ReadError};
use floe_core::{ActorId, AttoFil, Cid, FailureCode, PaddedSize, PieceCid};
use floe_devnet::{Config as Devnets, Devnet, Manner};
use floe_filecoin::messages::MemoryJournal;
use floe_filecoin::port::Unremembered;
use floe_filecoin::signer::from_lotus;
use floe_ipfs::{Identity, Keypair};

use super::*;
use crate::system::{SystemClock, SystemEntropy};

/// A node that has nothing.
struct Nothing;

impl LocalBlocks for Nothing {
    fn size(&self, _: &Cid) -> Result<Option<u32>, ReadError> {
        Ok(None)
    }
    fn read(&self, _: &Cid) -> Result<Option<Bytes>, ReadError> {
        Ok(None)
    }
}

struct World {
    devnet: Devnet,
    chain: LotusChain,
    proposer: DealSigner,
    signer: Arc<dyn Signer>,
    lotus: Lotus,
    node: Node,
    clock: Arc<dyn Clock>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let config = Devnets {
            providers: 2,
            manners: vec![Manner::Boost, Manner::Curio],
            epoch: Some(Duration::from_millis(20)),
            ..Devnets::default()
        };
        let devnet = Devnet::start(config).await.unwrap();
        let ready = devnet.ready();
        let endpoint = Endpoint::parse(&format!("{}:{}", ready.token, ready.rpc)).unwrap();
        let lotus = Lotus::new(endpoint).unwrap();
        let key = from_lotus(&Secret::new(&ready.key, "test").unwrap()).unwrap();
        let signer: Arc<dyn Signer> = Arc::new(key);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let settings =
            ChainSettings { test_network: true, finality_lookback: 5, max_fee: AttoFil::new(1 << 60) };
        let journal = Arc::new(MemoryJournal::default());
        let memory = Arc::new(Unremembered::default());
        let chain =
            LotusChain::new(lotus.clone(), signer.clone(), journal, memory, Arc::clone(&clock), settings);
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::Keypair(Keypair::generate_ed25519());
        let components = floe_ipfs::Components {
            blocks: Arc::new(Nothing),
            clock: Arc::clone(&clock),
            entropy: Arc::new(SystemEntropy),
        };
        let node_settings = floe_ipfs::Settings::local(dir.path().to_owned(), identity);
        let node = Node::start(node_settings, components).await.unwrap();
        let proposer = DealSigner::new(signer.clone());
        let world = Self { devnet, chain, proposer, signer, lotus, node, clock, _dir: dir };
        // Until its first tipsets are final.
        while world.chain.look().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world
    }

    fn market(&self, all_permitted: bool) -> Providers {
        let filter = Filter { filter: self.node.web_filter(), all_permitted };
        let web = Web::new(Arc::new(filter), Arc::clone(&self.clock)).unwrap();
        let peers = Arc::new(Peers { node: self.node.clone(), all_permitted });
        Providers::new(self.lotus.clone(), self.signer.clone(), web, peers, Arc::clone(&self.clock))
    }

    /// What the chain alone says of a provider.
    async fn by_the_chain(&self, n: usize) -> Contact {
        let provider: ActorId = self.devnet.ready().providers[n].id.parse().unwrap();
        let found = self.chain.provider(provider).await.unwrap().unwrap();
        let theirs = |text: String| ContactAddress { text, is_operators: false };
        let addresses = found.addresses.into_iter().map(theirs).collect();
        Contact { provider, peer_id: found.peer_id, addresses }
    }
}

/// Boost over TCP and Curio over WebSocket, at the addresses of the chain: the ask, a proposal, its state.
#[tokio::test(flavor = "multi_thread")]
async fn r13_providers_are_spoken_to_over_libp2p() {
    let world = World::start().await;
    let market = world.market(true);
    for n in 0..2 {
        let to = world.by_the_chain(n).await;
        assert!(to.peer_id.is_some() && !to.addresses.is_empty(), "{to:?}");
        let ask = market.ask(&to).await.unwrap();
        assert!(ask.price > AttoFil::ZERO);
        let head = world.chain.look().await.unwrap().head;
        let size = PaddedSize::from_bytes(1 << 20).unwrap();
        let least = world.chain.collateral(size).await.unwrap();
        let terms = DealTerms {
            uuid: DealUuid(uuid::Uuid::from_u128(1 + n as u128)),
            provider: to.provider,
            piece: PieceCid::from_commitment([1; 32]).unwrap(),
            size,
            // As large as fits: Curio takes no other.
            car_bytes: size.unpadded_bytes(),
            root: floe_core::cid::parse("bafy2bzacebt2ee4rg3gcnnyayymqe2tnjucon3nice6xkwjlar5vbtlfkayxg")
                .unwrap(),
            url: "http://127.0.0.1:9/nothing".into(),
            start: head.plus(500),
            end: head.plus(500 + 518_400),
            price_per_epoch: AttoFil::new(50_000_000),
            collateral: AttoFil::new(least.get() * 12 / 10),
            ipni: false,
        };
        let signed = world.proposer.sign(&terms).await.unwrap();
        // It was read, and its signature held: what is missing is the money.
        match market.propose(&to, &signed).await.unwrap() {
            Answer::Refused(fault) => assert_eq!(fault.code, FailureCode::RejectedFunds, "{fault}"),
            Answer::Accepted => panic!("a deal that nobody pays"),
        }
        let word = market.status(&to, terms.uuid).await.unwrap();
        assert!(matches!(word, ProviderWord::Unknown(_)), "{word:?}");
    }
    world.node.stop().await;
}

/// T11, T45: outside of test networks what the chain says leads into no private network, and nobody hears the address.
#[tokio::test(flavor = "multi_thread")]
async fn t11_the_chain_leads_into_no_private_network() {
    let world = World::start().await;
    let market = world.market(false);
    for n in 0..2 {
        let mut to = world.by_the_chain(n).await;
        let fault = market.ask(&to).await.unwrap_err();
        assert!(matches!(fault.code, FailureCode::SpUnresolvable | FailureCode::SpDial), "{fault}");
        assert!(!fault.text.contains("127.0.0.1"), "{fault}");
        let url = world.devnet.ready().providers[n].url.clone();
        to.addresses = vec![ContactAddress { text: url, is_operators: false }];
        to.peer_id = None;
        let fault = market.ask(&to).await.unwrap_err();
        assert_eq!(fault.code, FailureCode::SpDial, "{fault}");
        assert!(!fault.text.contains("127.0.0.1"), "{fault}");
        to.addresses[0].is_operators = true;
        market.ask(&to).await.unwrap();
    }
    world.node.stop().await;
}

fn config(text: &str) -> Config {
    let layer = crate::config::file::parse(std::path::Path::new("config.toml"), text).unwrap();
    Config::check(&crate::config::Layers::stack(layer, |_| None, crate::config::Layer::new())).unwrap()
}

/// The hot half starts without Filecoin, with a node that is away, and without a wallet; what cannot mend itself ends
/// the start.
#[tokio::test(flavor = "multi_thread")]
async fn t38_a_node_that_is_away_keeps_nobody_from_starting() {
    let world = World::start().await;
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let parts =
        floe_records::Components { clock: Arc::clone(&world.clock), entropy: Arc::new(SystemEntropy) };
    let records = Records::open(floe_records::Settings::at(layout.rows()), parts).await.unwrap();
    let join = async |text: String| join(&config(&text), &layout, &world.node, &records, &world.clock).await;

    assert!(join(String::new()).await.unwrap().is_none(), "nothing is configured");
    let api = |url: &str| format!("[filecoin]\napi = \"a-token:{url}\"\ntest_network = true\n");
    let gone = api("http://127.0.0.1:1");
    assert!(join(gone.clone()).await.unwrap().is_none(), "no wallet, and no deals either");
    let caps = "[deals]\nenabled = true\nmax_per_deal = \"1\"\nmax_per_account_day = \"1\"\nmax_per_day = \"1\"\n\
                max_lifetime = \"1\"\nmax_gas = \"1\"\n";
    let error = join(format!("{gone}{caps}")).await.map(|_| ()).unwrap_err();
    assert_eq!(crate::exit::code_of(&error), Code::Usage, "{error:#}");

    let key = from_lotus(&Secret::new(&world.devnet.ready().key, "test").unwrap()).unwrap();
    signer::import(&layout.wallet(), key, None, &SystemEntropy).unwrap();
    let providers = "[provider.f01000]\naddr = [\"https://sp.example\"]\nregions = [\"eu\"]\n";
    let joined = join(format!("{gone}{providers}")).await.unwrap().expect("it is joined");
    assert_eq!(joined.proposer.wallet(), world.signer.address().to_string());
    let fault = joined.chain.look().await.unwrap_err();
    assert_eq!(fault.code, FailureCode::ChainUnreachable, "{fault}");
    assert!(!format!("{fault}").contains("a-token"), "R17");
    let known = records.providers().await.unwrap();
    assert_eq!(
        (known[0].id, known[0].regions.as_slice()),
        (ActorId::new(1000), ["eu".to_owned()].as_slice())
    );

    // A node that answers: what it is is written down, and its finality is kept to.
    let ready = world.devnet.ready();
    let here = format!(
        "[filecoin]\napi = \"{}:{}\"\ntest_network = true\nfinality_lookback = 5\n",
        ready.token, ready.rpc
    );
    let joined = join(here).await.unwrap().expect("it is joined");
    joined.chain.look().await.unwrap();
    assert_eq!(records.chain().await.unwrap().unwrap().network, ready.network);
    records.close().await;
    world.node.stop().await;
}

/// A start waited five seconds for a node that takes connections and says nothing, before engine and API: more than a
/// start may take in all.
#[tokio::test(flavor = "multi_thread")]
async fn r01_a_silent_node_of_filecoin_costs_a_start_a_second_at_most() {
    let world = World::start().await;
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let parts =
        floe_records::Components { clock: Arc::clone(&world.clock), entropy: Arc::new(SystemEntropy) };
    let records = Records::open(floe_records::Settings::at(layout.rows()), parts).await.unwrap();
    signer::create(&layout.wallet(), None, &SystemEntropy).unwrap();
    // The kernel takes what nobody accepts.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("[filecoin]\napi = \"a-token:http://{}\"\n", silent.local_addr().unwrap());
    let took = async |text: &str| {
        let began = world.clock.monotonic();
        let joined = join(&config(text), &layout, &world.node, &records, &world.clock).await.unwrap();
        assert!(joined.is_some(), "it goes on without its word");
        world.clock.monotonic() - began
    };
    let plain = took(&api).await;
    assert!(plain < Duration::from_millis(700), "{plain:?}: there is nothing to refuse");
    let test = took(&format!("{api}test_network = true\n")).await;
    assert!(test < Duration::from_secs(2), "{test:?}");
    records.close().await;
    world.node.stop().await;
}

/// A rotten `wallet.key` ended a start with 1, and systemd started the node again for ever; a wrong passphrase too, which
/// is a matter of the settings.
#[tokio::test]
async fn a_wallet_that_does_not_open_says_whose_matter_it_is() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let lotus = Lotus::new(Endpoint::parse("http://127.0.0.1:1").unwrap()).unwrap();
    let code = async |more: &str| {
        let filecoin = config(&format!("[filecoin]\napi = \"http://127.0.0.1:1\"\n{more}")).filecoin;
        let refused = signer(&filecoin, &layout, &lotus).await.map(|_| ()).unwrap_err();
        (crate::exit::code_of(&refused), refused.to_string())
    };
    let (missing, said) = code("wallet = \"/nowhere/wallet.key\"\n").await;
    assert_eq!(missing, Code::Usage, "{said}");

    let word = |text: &str| {
        let path = dir.path().join(text);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let (right, wrong) = (word("right"), word("wrong"));
    let passphrase = Secret::from_file(&right).unwrap();
    signer::create(&layout.wallet(), Some(&passphrase), &SystemEntropy).unwrap();
    for more in [String::new(), format!("passphrase_file = \"{}\"\n", wrong.display())] {
        let (closed, said) = code(&more).await;
        assert_eq!(closed, Code::Usage, "{said}");
    }
    let good = std::fs::read(layout.wallet()).unwrap();
    for damaged in [&[][..], &good[..good.len() / 2], b"{}"] {
        std::fs::write(layout.wallet(), damaged).unwrap();
        let (rotten, said) = code("").await;
        assert!(rotten == Code::Damage && said.contains("wallet.key"), "{rotten:?}: {said}");
    }
    std::fs::set_permissions(layout.wallet(), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(code("").await.0, Code::Usage, "others can read it");
}

/// The token alone could not be given in the environment, only a whole endpoint with it. One place is enough, and two are a
/// mistake that says nothing of either token.
#[tokio::test]
async fn t37_the_token_alone_may_come_from_the_environment() {
    let api = |text: &str| config(&format!("[filecoin]\napi = \"{text}\"\n")).filecoin;
    let of = async |filecoin: &Filecoin, token: &str| endpoint(filecoin, Some(token.into())).await;
    let bare = api("http://127.0.0.1:1234");
    let with = of(&bare, "from-the-environment\n").await.unwrap().unwrap();
    assert_eq!(with.token().unwrap().expose(), "from-the-environment");
    assert!(!format!("{with} {with:?}").contains("from-the"), "R17");
    assert!(of(&bare, "").await.unwrap().unwrap().token().is_none(), "empty counts as unset");
    for (filecoin, token) in
        [(api("a-token:http://127.0.0.1:1234"), "from-the-environment"), (bare, "no\u{7}token")]
    {
        let error = format!("{:#}", of(&filecoin, token).await.unwrap_err());
        assert!(error.contains("FLOE_FILECOIN_API_TOKEN"), "{error}");
        assert!(
            !error.contains("from-the") && !error.contains("a-token") && !error.contains('\u{7}'),
            "{error}"
        );
    }
    assert!(of(&config("").filecoin, "unused").await.unwrap().is_none(), "no node, no endpoint");
}

/// A backup that was put back does not know what was signed since: it has to be seen that it is one, whoever forgets to
/// say so, because the first look would place each replica a second time.
#[tokio::test(flavor = "multi_thread")]
async fn t43_a_directory_that_was_put_back_is_noticed() {
    let config = config("[filecoin]\napi = \"http://127.0.0.1:1\"\n");
    let open = async |layout: &Layout, restored: bool| {
        let parts = floe_records::Components {
            clock: Arc::new(SystemClock::new()) as Arc<dyn Clock>,
            entropy: Arc::new(SystemEntropy),
        };
        let records = Records::open(floe_records::Settings::at(layout.rows()), parts).await.unwrap();
        super::notice_a_copy(&config, layout, &records, restored).await.unwrap();
        let waits = records.restored().await.unwrap().is_some();
        records.close().await;
        waits
    };
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (original, copy) = (Layout::new(here.path()), Layout::new(there.path()));
    assert!(!open(&original, false).await, "a new directory is no copy");
    assert!(!open(&original, false).await, "nor is one that was started before");
    std::fs::copy(original.rows(), copy.rows()).unwrap();
    assert!(open(&copy, false).await, "a copy is");
    assert!(open(&copy, false).await, "and stays one until the wait is over");
    assert!(!open(&original, false).await);
    assert!(open(&original, true).await, "a snapshot that was rolled back is one by the operator's word");
}
