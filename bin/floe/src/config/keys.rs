//! The table of settings: every key, once.
//!
//! From it come the `config.toml` that `floe init` writes, `docs/CONFIGURATION.md`, the flags of `floe serve`,
//! the environment variables, and the answer to a misspelt key. What a value means when the node is built is
//! in [`super::Config`].

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Count,
    /// Bytes: `"2GiB"`, or a number.
    Size,
    /// `"24h"`, `"30s"`.
    Duration,
    /// `"127.0.0.1:4780"`.
    Address,
    /// `"https://…"`.
    Url,
    /// `"/etc/…"`.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An amount of attoFIL, as text: it has more digits than numbers of TOML can have.
    Amount,
    /// Any text.
    Text,
    /// Text that is not shown.
    Secret,
    /// A list of texts of this sort.
    List(&'static str),
}

impl Kind {
    /// For people.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Switch => "true or false".into(),
            Self::Count => "a whole number".into(),
            Self::Size => "a size, such as \"2GiB\"".into(),
            Self::Duration => "a duration, such as \"24h\"".into(),
            Self::Address => "an IP address and port".into(),
            Self::Url => "a URL".into(),
            Self::Path => "an absolute path".into(),
            Self::Choice(words) => words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(" or "),
            Self::Amount => "an amount of attoFIL as text, such as \"1000000000\"".into(),
            Self::Text | Self::Secret => "text".into(),
            Self::List(of) => format!("a list of {of}"),
        }
    }

    /// Whether the value is a list.
    pub(crate) fn is_list(self) -> bool {
        matches!(self, Self::List(_))
    }
}

/// What holds where nobody says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Default {
    /// This value, as TOML.
    Is(&'static str),
    /// Nothing; the text is an example for the file.
    Unset(&'static str),
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// `section.name`.
    pub(crate) name: &'static str,
    /// How it is written.
    pub(crate) kind: Kind,
    /// Its default.
    pub(crate) default: Default,
    /// What it does, in one sentence.
    pub(crate) about: &'static str,
    /// Why the default is what it is, and when to change it.
    pub(crate) reason: &'static str,
    /// The flag, without dashes.
    pub(crate) flag: Option<&'static str>,
    /// The environment variable. Lists are separated by commas there.
    pub(crate) env: &'static str,
}

impl Key {
    /// The part before the dot.
    pub(crate) fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }

    /// The part behind the dot.
    pub(crate) fn short(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, short)| short)
    }
}

/// The key with this name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

/// What each section is about, in the order of the file.
pub(crate) const SECTIONS: &[(&str, &str)] = &[
    ("api", "The Pinning Service API and the admin routes."),
    ("ops", "Health and metrics. Keep it away from the world."),
    ("network", "The IPFS node."),
    ("storage", "Blocks on disk."),
    ("pin", "What one pin may cost."),
    ("aggregate", "How pins that go to Filecoin are packed into pieces."),
    ("filecoin", "The Filecoin node, the wallet, and where providers pull pieces from."),
    ("deals", "What may be spent on deals."),
    ("serve", "The process."),
    ("log", "The log, on stderr."),
];

/// All settings, by section.
pub(crate) const KEYS: &[Key] = &[
    Key {
        name: "api.addr",
        kind: Kind::Address,
        default: Default::Is(r#""127.0.0.1:4780""#),
        about: "Where the API listens.",
        reason: "Loopback, because it speaks plain HTTP: put a reverse proxy with TLS before it. Port 0 takes a \
                 free port.",
        flag: Some("api-addr"),
        env: "FLOE_API_ADDR",
    },
    Key {
        name: "api.public_url",
        kind: Kind::Url,
        default: Default::Unset(r#""https://pins.example.org""#),
        about: "The URL under which clients elsewhere reach the API.",
        reason: "Set it behind a reverse proxy: it says that clients are not on this machine, so that private \
                 addresses are neither dialled nor announced for them.",
        flag: None,
        env: "FLOE_API_PUBLIC_URL",
    },
    Key {
        name: "api.trusted_proxies",
        kind: Kind::List("networks"),
        default: Default::Is("[]"),
        about: "Networks of reverse proxies whose X-Forwarded-For is believed.",
        reason: "Nobody, because anyone could write that header. Connection limits count the client behind a \
                 trusted proxy and not the proxy: [\"127.0.0.1/32\", \"::1/128\"] for one on this machine.",
        flag: None,
        env: "FLOE_API_TRUSTED_PROXIES",
    },
    Key {
        name: "api.path_prefixes",
        kind: Kind::List("paths"),
        default: Default::Is("[]"),
        about: "Further paths under which the API is served, such as \"/psa\".",
        reason: "None: clients use /pins. For a proxy that passes a longer path on as it is.",
        flag: None,
        env: "FLOE_API_PATH_PREFIXES",
    },
    Key {
        name: "api.requests_per_minute",
        kind: Kind::Count,
        default: Default::Unset("300"),
        about: "Requests under /pins that each account but `default` may make in a minute.",
        reason: "No limit: the accounts of a personal service are its owner's. For accounts of others. A Kubo that \
                 waits for a pin asks twice a second: below 150, `ipfs pin remote add` without --background fails.",
        flag: None,
        env: "FLOE_API_REQUESTS_PER_MINUTE",
    },
    Key {
        name: "api.lists_per_minute",
        kind: Kind::Count,
        default: Default::Unset("30"),
        about: "How many of them may be lists.",
        reason: "No limit, as above. A list costs more than most requests: up to a thousand pins are read.",
        flag: None,
        env: "FLOE_API_LISTS_PER_MINUTE",
    },
    Key {
        name: "ops.addr",
        kind: Kind::Address,
        default: Default::Is(r#""127.0.0.1:4782""#),
        about: "Where /livez, /readyz and /metrics listen.",
        reason: "Loopback: they ask for no token. Port 0 takes a free port.",
        flag: Some("ops-addr"),
        env: "FLOE_OPS_ADDR",
    },
    Key {
        name: "network.swarm",
        kind: Kind::List("multiaddrs"),
        default: Default::Is(
            r#"["/ip4/0.0.0.0/tcp/4701", "/ip4/0.0.0.0/udp/4701/quic-v1", "/ip4/0.0.0.0/tcp/4702/ws"]"#,
        ),
        about: "Where the IPFS node listens.",
        reason: "4701 and 4702, so that a Kubo on 4001 can run beside it. IPv4 alone, because a machine without \
                 IPv6 could not start: add the same with /ip6/::/ where there is IPv6. Port 0 takes a free port.",
        flag: Some("swarm-addr"),
        env: "FLOE_SWARM_ADDR",
    },
    Key {
        name: "network.tls_certificate",
        kind: Kind::Path,
        default: Default::Unset(r#""/etc/letsencrypt/live/pins.example.org/fullchain.pem""#),
        about: "The certificate (PEM, the server's first, then the rest of the chain) that /tls/ws listeners show.",
        reason: "Unset: only browsers need it, because a page that came over HTTPS may open no other socket. Give it \
                 with tls_key, add /ip4/0.0.0.0/tcp/4703/tls/ws to swarm and \
                 /dns4/pins.example.org/tcp/4703/tls/ws to announce. Read at the start: restart after a renewal.",
        flag: None,
        env: "FLOE_NETWORK_TLS_CERTIFICATE",
    },
    Key {
        name: "network.tls_key",
        kind: Kind::Path,
        default: Default::Unset(r#""/etc/letsencrypt/live/pins.example.org/privkey.pem""#),
        about: "The private key of tls_certificate (PEM, without a passphrase).",
        reason: "Unset, like the certificate. The user that runs Floe must be able to read it.",
        flag: None,
        env: "FLOE_NETWORK_TLS_KEY",
    },
    Key {
        name: "network.announce",
        kind: Kind::List("multiaddrs"),
        default: Default::Is("[]"),
        about: "Addresses to announce, in place of what the node finds out by itself.",
        reason: "None: public addresses are found by autonat. For a port forwarded by hand, or a DNS name.",
        flag: None,
        env: "FLOE_NETWORK_ANNOUNCE",
    },
    Key {
        name: "network.bootstrap",
        kind: Kind::List("multiaddrs"),
        default: Default::Is(BOOTSTRAP),
        about: "The first peers of the DHT.",
        reason: "The public IPFS bootstrap peers, the same that Kubo uses.",
        flag: None,
        env: "FLOE_NETWORK_BOOTSTRAP",
    },
    Key {
        name: "network.routers",
        kind: Kind::List("URLs"),
        default: Default::Is("[]"),
        about: "Delegated routers (/routing/v1) that are asked for providers besides the DHT.",
        reason: "None: a router learns every CID that is looked for. Give one where the DHT cannot be reached.",
        flag: None,
        env: "FLOE_NETWORK_ROUTERS",
    },
    Key {
        name: "network.relays",
        kind: Kind::List("multiaddrs"),
        default: Default::Is("[]"),
        about: "Relays to reserve a slot at, each with /p2p/<peer id>.",
        reason: "None. For a node behind a NAT that cannot be opened; peers then try to punch a hole to it.",
        flag: None,
        env: "FLOE_NETWORK_RELAYS",
    },
    Key {
        name: "network.private_addresses",
        kind: Kind::Choice(&["auto", "allow", "deny"]),
        default: Default::Is(r#""auto""#),
        about: "Whether private and loopback addresses are dialled and announced.",
        reason: "auto: only for requests from this machine, while the API listens on loopback and public_url is \
                 unset. allow: for a private network whose clients you trust. deny: never.",
        flag: None,
        env: "FLOE_NETWORK_PRIVATE_ADDRESSES",
    },
    Key {
        name: "network.offline",
        kind: Kind::Switch,
        default: Default::Is("false"),
        about: "No bootstrap and no DHT.",
        reason: "Off. For tests and private networks: the node starts at once, and still dials origins and the \
                 configured routers.",
        flag: Some("offline"),
        env: "FLOE_OFFLINE",
    },
    Key {
        name: "network.memory_budget",
        kind: Kind::Size,
        default: Default::Unset(r#""2GiB""#),
        about: "Memory that this process may use: from 40 % of it on new connections are refused, from 60 % on \
                inbound ones are closed.",
        reason: "Unset: the memory of the machine. Set it where other programs need theirs.",
        flag: None,
        env: "FLOE_NETWORK_MEMORY_BUDGET",
    },
    Key {
        name: "network.egress_per_peer",
        kind: Kind::Size,
        default: Default::Unset(r#""10MiB""#),
        about: "Bytes a second that bitswap sends to one peer at most.",
        reason: "Unset: as fast as the peer takes them, because a pin is worth as much as it can be read back. Set \
                 it where one reader must not fill the line. At least 16KiB.",
        flag: None,
        env: "FLOE_NETWORK_EGRESS_PER_PEER",
    },
    Key {
        name: "network.egress",
        kind: Kind::Size,
        default: Default::Unset(r#""50MiB""#),
        about: "Bytes a second that bitswap sends to all peers together at most.",
        reason: "Unset: only the operator knows the line. Set it where traffic costs money or other programs share \
                 the line, a little below it: what the transport adds (about 1 %) is not counted. At least 16KiB.",
        flag: None,
        env: "FLOE_NETWORK_EGRESS",
    },
    Key {
        name: "storage.index",
        kind: Kind::Choice(&["redb", "sled"]),
        default: Default::Is(r#""redb""#),
        about: "What holds the index of blocks.",
        reason: "redb opens in milliseconds at any size and uses little memory. The index is rebuilt from the \
                 packs when this changes.",
        flag: None,
        env: "FLOE_STORAGE_INDEX",
    },
    Key {
        name: "storage.reserve",
        kind: Kind::Size,
        default: Default::Unset(r#""2GiB""#),
        about: "Free space on the volume under which new pins are refused.",
        reason: "Unset: 2 GiB or 5 % of the volume, whichever is larger, so that removing pins, compaction and the \
                 rows always have room.",
        flag: None,
        env: "FLOE_STORAGE_RESERVE",
    },
    Key {
        name: "storage.pack_size",
        kind: Kind::Size,
        default: Default::Is(r#""256MiB""#),
        about: "The size at which a pack file is closed and the next one begun.",
        reason: "Compaction copies at most one pack at a time: larger packs mean fewer files, smaller ones less \
                 room for it. 1 MiB to 3 GiB.",
        flag: None,
        env: "FLOE_STORAGE_PACK_SIZE",
    },
    Key {
        name: "pin.give_up_after",
        kind: Kind::Duration,
        default: Default::Is(r#""24h""#),
        about: "A pin fails when no block of it came for so long.",
        reason: "A day, because a laptop that has the data is often back the next day. Until then it costs one \
                 attempt now and then. Only time in which it was searched for since it was asked for counts: not when \
                 the service was off, was short of disk space, or was busy with other pins.",
        flag: None,
        env: "FLOE_PIN_GIVE_UP_AFTER",
    },
    Key {
        name: "pin.max_blocks",
        kind: Kind::Count,
        default: Default::Is("100000000"),
        about: "Most unique blocks of one pin.",
        reason: "25 TiB of 256 KiB blocks: what stops is hostile, not large.",
        flag: None,
        env: "FLOE_PIN_MAX_BLOCKS",
    },
    Key {
        name: "pin.max_bytes",
        kind: Kind::Size,
        default: Default::Unset(r#""1TiB""#),
        about: "Most bytes of one pin.",
        reason: "Unset: the account's quota and the disk bound it.",
        flag: None,
        env: "FLOE_PIN_MAX_BYTES",
    },
    Key {
        name: "pin.max_depth",
        kind: Kind::Count,
        default: Default::Is("1000000"),
        about: "Longest path of links in one pin.",
        reason: "Long chains are legal (a log, a block chain). At most 4294967295.",
        flag: None,
        env: "FLOE_PIN_MAX_DEPTH",
    },
    Key {
        name: "pin.max_queued",
        kind: Kind::Count,
        default: Default::Is("10000"),
        about: "Most pins of one account that wait for their turn; more get 429.",
        reason: "One account must not fill the queue of all. The account default, which is the operator's own, has no \
                 such bound; all accounts together have 1,000,000.",
        flag: None,
        env: "FLOE_PIN_MAX_QUEUED",
    },
    Key {
        name: "aggregate.target",
        kind: Kind::Size,
        default: Default::Is(r#""4GiB""#),
        about: "A piece is packed when what waits would make it larger than this: a power of two, up to 64GiB.",
        reason: "A deal costs by the size of its piece, and many providers take none below some GiB; 32GiB, a sector, is \
                 what they like best. A small target has deals sooner where little is pinned. A pin that is larger \
                 is split over several pieces.",
        flag: None,
        env: "FLOE_AGGREGATE_TARGET",
    },
    Key {
        name: "aggregate.least",
        kind: Kind::Size,
        default: Default::Is(r#""1GiB""#),
        about: "No piece is smaller than this; zeros fill it. A power of two, up to the target.",
        reason: "The least that most providers take. What is filled with zeros is paid for like all else: \
                 `floe cold plan` shows how much that would be.",
        flag: None,
        env: "FLOE_AGGREGATE_LEAST",
    },
    Key {
        name: "aggregate.flush_after",
        kind: Kind::Duration,
        default: Default::Is(r#""24h""#),
        about: "A pin waits no longer than this for others to share a piece with.",
        reason: "A day: longer makes fuller pieces, which cost less for each pin; until then a pin has the one copy here.",
        flag: None,
        env: "FLOE_AGGREGATE_FLUSH_AFTER",
    },
    Key {
        name: "aggregate.align",
        kind: Kind::Switch,
        default: Default::Is("true"),
        about: "Whether each pin is a segment of its own in its piece, with a proof that it is in there.",
        reason: "On: the proof (FRC-0058) is what a pin's owner can check without trusting this node. It costs space, \
                 because a segment is a power of two: with few pins to a piece nearly twice as much, with many \
                 little. false packs tightly, without proofs.",
        flag: None,
        env: "FLOE_AGGREGATE_ALIGN",
    },
    Key {
        name: "filecoin.pull_addr",
        kind: Kind::Address,
        default: Default::Unset(r#""0.0.0.0:4783""#),
        about: "Where storage providers pull pieces: a listener of its own.",
        reason: "Unset: nothing listens, and no deals can be made. Only URLs that were signed for a deal are answered, so \
                 it may face the world. Port 0 takes a free port.",
        flag: None,
        env: "FLOE_FILECOIN_PULL_ADDR",
    },
    Key {
        name: "filecoin.pull_url",
        kind: Kind::Url,
        default: Default::Unset(r#""https://pull.example.org""#),
        about: "The URL under which providers reach pull_addr: it is signed into each deal.",
        reason: "Unset: no deals are made. It has to stay as it is for as long as deals with it have not begun, for days. \
                 Providers refuse private addresses; a proxy before it must pass Range on and buffer nothing.",
        flag: None,
        env: "FLOE_FILECOIN_PULL_URL",
    },
    Key {
        name: "filecoin.api",
        kind: Kind::Secret,
        default: Default::Unset(r#""TOKEN:/ip4/127.0.0.1/tcp/1234/http""#),
        about: "The Lotus node, as `lotus auth api-info` prints it, or as a URL; never shown with its token.",
        reason: "Unset: no deals are made, and all that is pinned stays here. Give the token in a file of its own \
                 (filecoin.api_token_file), or in the environment: FLOE_FILECOIN_API_TOKEN, which is no key of this file.",
        flag: None,
        env: "FLOE_FILECOIN_API",
    },
    Key {
        name: "filecoin.api_token_file",
        kind: Kind::Path,
        default: Default::Unset(r#""/etc/floe/lotus.token""#),
        about: "A file with the token of the Lotus node, mode 0600.",
        reason: "Unset: the token is in filecoin.api, or the node wants none. Make one with `lotus auth create-token \
                 --perm write`; with sign where its wallet signs, and never with admin.",
        flag: None,
        env: "FLOE_FILECOIN_API_TOKEN_FILE",
    },
    Key {
        name: "filecoin.wallet",
        kind: Kind::Text,
        default: Default::Unset(r#""/etc/floe/wallet.key""#),
        about: "Whose money it is: a key file that `floe wallet new` made, or the address of a key in the node's wallet.",
        reason: "Unset: wallet.key in the data directory. A key here needs a token with write alone; the node's wallet \
                 needs one with sign, which may spend everything in it.",
        flag: None,
        env: "FLOE_FILECOIN_WALLET",
    },
    Key {
        name: "filecoin.passphrase_file",
        kind: Kind::Path,
        default: Default::Unset(r#""/run/credentials/floe/passphrase""#),
        about: "A file with the passphrase of the key file, mode 0600.",
        reason: "Unset: the key file has none.",
        flag: None,
        env: "FLOE_FILECOIN_PASSPHRASE_FILE",
    },
    Key {
        name: "filecoin.test_network",
        kind: Kind::Switch,
        default: Default::Is("false"),
        about: "Permits what only test networks need: a head without age, less finality, a shorter start, replicas \
                that share an owner, providers on private addresses, admin tokens.",
        reason: "Off; refused on mainnet.",
        flag: None,
        env: "FLOE_FILECOIN_TEST_NETWORK",
    },
    Key {
        name: "filecoin.finality_lookback",
        kind: Kind::Count,
        default: Default::Is("900"),
        about: "Epochs behind the head at which the chain counts.",
        reason: "The finality of the network: what is younger may be undone. Less needs filecoin.test_network.",
        flag: None,
        env: "FLOE_FILECOIN_FINALITY_LOOKBACK",
    },
    Key {
        name: "filecoin.start_lead",
        kind: Kind::Count,
        default: Default::Is("11520"),
        about: "Epochs from a proposal to the start of its deal, within which the provider pulls, publishes and seals.",
        reason: "Four days. Providers want a day for sealing at least, and what came into escrow lately is not spent for \
                 most of one; they take no more than two weeks. Less than 5760 needs filecoin.test_network.",
        flag: None,
        env: "FLOE_FILECOIN_START_LEAD",
    },
    Key {
        name: "filecoin.shared_owners",
        kind: Kind::Switch,
        default: Default::Is("false"),
        about: "Whether replicas of one piece may go to providers of one owner.",
        reason: "Off: who fails with one of them fails with all. On needs filecoin.test_network.",
        flag: None,
        env: "FLOE_FILECOIN_SHARED_OWNERS",
    },
    Key {
        name: "filecoin.look_every",
        kind: Kind::Duration,
        default: Default::Is(r#""30s""#),
        about: "How often the chain is looked at.",
        reason: "An epoch of mainnet.",
        flag: None,
        env: "FLOE_FILECOIN_LOOK_EVERY",
    },
    Key {
        name: "deals.enabled",
        kind: Kind::Switch,
        default: Default::Is("false"),
        about: "Whether money may be spent on deals.",
        reason: "Off, until you set it with caps above zero. `floe spending off` stops it at any time, and `floe cold \
                 plan` shows beforehand what would be spent.",
        flag: None,
        env: "FLOE_DEALS_ENABLED",
    },
    Key {
        name: "deals.max_per_deal",
        kind: Kind::Amount,
        default: Default::Unset(r#""100000000000000000""#),
        about: "The most for one deal: its price over its whole term, or the gas of one message.",
        reason: "Unset is 0, and 0 permits nothing. The example is 0.1 FIL.",
        flag: None,
        env: "FLOE_DEALS_MAX_PER_DEAL",
    },
    Key {
        name: "deals.max_per_account_day",
        kind: Kind::Amount,
        default: Default::Unset(r#""1000000000000000000""#),
        about: "The most that one account may commit within a day.",
        reason: "Unset is 0, and 0 permits nothing.",
        flag: None,
        env: "FLOE_DEALS_MAX_PER_ACCOUNT_DAY",
    },
    Key {
        name: "deals.max_per_day",
        kind: Kind::Amount,
        default: Default::Unset(r#""2000000000000000000""#),
        about: "The most that all accounts together may commit within a day, gas included.",
        reason: "Unset is 0, and 0 permits nothing.",
        flag: None,
        env: "FLOE_DEALS_MAX_PER_DAY",
    },
    Key {
        name: "deals.max_lifetime",
        kind: Kind::Amount,
        default: Default::Unset(r#""50000000000000000000""#),
        about: "The most that this node may ever commit, gas included.",
        reason: "Unset is 0, and 0 permits nothing. Raise it when you have looked at what was spent.",
        flag: None,
        env: "FLOE_DEALS_MAX_LIFETIME",
    },
    Key {
        name: "deals.max_gas",
        kind: Kind::Amount,
        default: Default::Unset(r#""10000000000000000""#),
        about: "The most gas for one message of the wallet (a top-up, a withdrawal), replacements included.",
        reason: "Unset is 0, and 0 permits nothing. A top-up costs a thousandth of a FIL where gas is cheap.",
        flag: None,
        env: "FLOE_DEALS_MAX_GAS",
    },
    Key {
        name: "deals.least_top_up",
        kind: Kind::Amount,
        default: Default::Is(r#""10000000000000000""#),
        about: "The least that is put into escrow at a time.",
        reason: "0.01 FIL: less is not worth its gas.",
        flag: None,
        env: "FLOE_DEALS_LEAST_TOP_UP",
    },
    Key {
        name: "deals.wallet_reserve",
        kind: Kind::Amount,
        default: Default::Is(r#""100000000000000000""#),
        about: "What is left in the wallet for gas.",
        reason: "0.1 FIL.",
        flag: None,
        env: "FLOE_DEALS_WALLET_RESERVE",
    },
    Key {
        name: "deals.alarm_below",
        kind: Kind::Amount,
        default: Default::Unset(r#""500000000000000000""#),
        about: "Less than this free in escrow raises the alarm, whatever is committed.",
        reason: "Unset: only escrow that does not cover what is signed does.",
        flag: None,
        env: "FLOE_DEALS_ALARM_BELOW",
    },
    Key {
        name: "serve.stop_within",
        kind: Kind::Duration,
        default: Default::Is(r#""30s""#),
        about: "Most time for a clean stop.",
        reason: "Half of it is for requests in flight, the rest for the workers and the stores. What is not done then is \
                 cut off, and nothing acknowledged is lost. At most 30s: a supervisor has to wait for longer than this \
                 before it kills.",
        flag: Some("stop-within"),
        env: "FLOE_STOP_WITHIN",
    },
    Key {
        name: "log.filter",
        kind: Kind::Text,
        default: Default::Is(r#""info,libp2p_identify=warn""#),
        about: "What is logged: a level, or targets with levels, as in \"info,floe_engine=debug\".",
        reason: "info is what an operator would tell a colleague; at that level identify writes a line whenever a \
                 peer says another address of ours, which it may do without end.",
        flag: Some("log-filter"),
        env: "FLOE_LOG",
    },
    Key {
        name: "log.format",
        kind: Kind::Choice(&["text", "json"]),
        default: Default::Is(r#""text""#),
        about: "How a line of the log looks.",
        reason: "text for people; json, one document a line, for what collects logs.",
        flag: Some("log-format"),
        env: "FLOE_LOG_FORMAT",
    },
];

const BOOTSTRAP: &str = r#"[
"/dnsaddr/bootstrap.libp2p.io/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
"/dnsaddr/bootstrap.libp2p.io/p2p/QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa",
"/dnsaddr/bootstrap.libp2p.io/p2p/QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
"/dnsaddr/bootstrap.libp2p.io/p2p/QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
"/ip4/104.131.131.82/tcp/4001/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ",
"/ip4/104.131.131.82/udp/4001/quic-v1/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ",
]"#;
