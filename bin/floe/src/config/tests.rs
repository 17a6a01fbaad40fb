use super::tables::FAMILIES;
use super::*;

fn none(_: &str) -> Option<String> {
    None
}

fn from_file(text: &str) -> Result<Config, ConfigError> {
    let layer = file::parse(Path::new("config.toml"), text)?;
    Config::check(&Layers::stack(layer, none, Layer::new()))
}

/// A value that differs from the default, as TOML, for every key.
fn other_value(key: &Key) -> &'static str {
    match key.name {
        "api.addr" => r#""[::1]:1""#,
        "api.public_url" => r#""https://pins.example.org/""#,
        "api.trusted_proxies" => r#"["10.0.0.0/8"]"#,
        "api.path_prefixes" => r#"["/psa"]"#,
        "api.requests_per_minute" | "api.lists_per_minute" => "90",
        "ops.addr" => r#""127.0.0.1:2""#,
        "network.swarm" | "network.announce" => r#"["/ip4/1.2.3.4/tcp/5"]"#,
        "network.bootstrap" | "network.relays" => {
            r#"["/ip4/1.2.3.4/tcp/5/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"]"#
        }
        "network.tls_certificate" | "network.tls_key" => r#""/etc/floe/file.pem""#,
        "network.routers" => r#"["https://router.example/"]"#,
        "network.private_addresses" => r#""deny""#,
        "network.offline" => "true",
        "storage.index" => r#""sled""#,
        "network.memory_budget" => r#""1GiB""#,
        "network.egress_per_peer" | "network.egress" => r#""2MiB""#,
        "storage.reserve" => r#""3GiB""#,
        "storage.pack_size" => "67108864",
        "pin.give_up_after" => r#""1h""#,
        "pin.max_blocks" => "7",
        "pin.max_bytes" => r#""10MB""#,
        "pin.max_depth" => "8",
        "pin.max_queued" => "9",
        "aggregate.target" => r#""8GiB""#,
        "aggregate.least" => r#""2GiB""#,
        "aggregate.flush_after" => r#""1h""#,
        "aggregate.align" => "false",
        "filecoin.pull_addr" => r#""127.0.0.1:3""#,
        "filecoin.pull_url" => r#""https://pull.example.org/""#,
        "filecoin.api" => r#""a-token:/ip4/127.0.0.1/tcp/1234/http""#,
        "filecoin.api_token_file" | "filecoin.wallet" | "filecoin.passphrase_file" => r#""/etc/floe/file""#,
        "filecoin.test_network" | "filecoin.shared_owners" | "deals.enabled" => "true",
        "filecoin.finality_lookback" => "901",
        "filecoin.start_lead" => "5760",
        "filecoin.look_every" => r#""15s""#,
        name if name.starts_with("deals.") => r#""77""#,
        "serve.stop_within" => r#""5s""#,
        "log.filter" => r#""warn,floe_engine=debug""#,
        "log.format" => r#""json""#,
        name => panic!("{name} is new: give it a value here"),
    }
}

/// What has to be set beside a key for it to be accepted.
fn partner(key: &Key) -> Layer {
    let one = |text: &str| (Raw::One(text.into()), Origin::Default);
    let (other, value) = match key.name {
        "filecoin.shared_owners" => ("filecoin.test_network", "true"),
        "deals.enabled" => {
            let caps = KEYS.iter().filter(|cap| cap.name.starts_with("deals.max_"));
            let mut all: Layer = caps.map(|cap| (cap.name, one("77"))).collect();
            all.insert("filecoin.api", one("http://127.0.0.1:1234"));
            return all;
        }
        "network.tls_certificate" => ("network.tls_key", "/etc/floe/other.pem"),
        "network.tls_key" => ("network.tls_certificate", "/etc/floe/other.pem"),
        "filecoin.pull_url" => ("filecoin.pull_addr", "127.0.0.1:0"),
        _ => return Layer::new(),
    };
    [(other, (Raw::One(value.into()), Origin::Default))].into_iter().collect()
}

#[test]
fn pieces_are_powers_of_two_and_the_least_is_no_more_than_the_target() {
    let set = |target: &str, least: &str| {
        from_file(&format!("[aggregate]\ntarget = \"{target}\"\nleast = \"{least}\"\n"))
    };
    let packing = set("8MiB", "512").unwrap().aggregate;
    assert_eq!((packing.target.bytes(), packing.least.bytes()), (8 << 20, 512));
    for (target, least) in [("3GiB", "1GiB"), ("128GiB", "1GiB"), ("4GiB", "256"), ("4GiB", "8GiB")] {
        assert!(set(target, least).is_err(), "{target} {least}");
    }
}

#[test]
fn a_url_for_providers_needs_a_listener() {
    let set = |text: &str| from_file(&format!("[filecoin]\n{text}\n"));
    let error = set("pull_url = \"https://pull.example\"").unwrap_err().to_string();
    assert!(error.contains("filecoin.pull_addr"), "{error}");
    assert!(set("pull_addr = \"0.0.0.0:4783\"").unwrap().pull.url.is_none());
    set("pull_addr = \"0.0.0.0:4783\"\npull_url = \"https://pull.example\"").unwrap();
}

#[test]
fn a_certificate_without_its_key_is_refused_and_the_other_way_round() {
    for (set, missing) in
        [("network.tls_certificate", "network.tls_key"), ("network.tls_key", "network.tls_certificate")]
    {
        let error = from_file(&format!("{set} = \"/etc/floe/file.pem\"")).unwrap_err().to_string();
        assert!(error.contains(set) && error.contains(missing) && error.contains("line 1"), "{error}");
    }
    let relative = from_file("network.tls_key = \"key.pem\"").unwrap_err().to_string();
    assert!(relative.contains("begins with /"), "{relative}");
}

/// Each of these was called right, and `floe serve` refused it.
#[test]
fn what_does_not_fit_together_names_key_and_line() {
    for (text, key, wanted) in [
        (
            "[network]\nswarm = [\"/ip4/1.2.3.4/tcp/5/tls/ws\"]",
            "network.swarm",
            "needs network.tls_certificate",
        ),
        ("[network]\nswarm = [\"/dns4/x/tcp/1\"]", "network.swarm", "on an IP address"),
        ("[network]\nrelays = [\"/dns4/x/tcp/1\"]", "network.relays", "/p2p/ID"),
        ("[network]\nbootstrap = [\"/dns4/x/tcp/1\"]", "network.bootstrap", "/p2p/ID"),
        (
            "[api]\npath_prefixes = [\"/psa/pins\", \"/psa\"]",
            "api.path_prefixes",
            "\"/psa/pins\": it would hide",
        ),
    ] {
        let error = from_file(text).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(wanted) && error.contains("line 2"), "{text}: {error}");
    }
    let tls =
        "[network]\nswarm = [\"/ip4/1.2.3.4/tcp/5/tls/ws\"]\ntls_certificate = \"/a\"\ntls_key = \"/b\"";
    assert_eq!(from_file(tls).unwrap().network.swarm.len(), 1);
    assert!(from_file("[api]\npath_prefixes = [\"/psa/v1\", \"/psa\"]").is_ok());
}

#[test]
fn a_certificate_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let text =
        format!("[network]\ntls_certificate = {:?}\ntls_key = {:?}", path("chain.pem"), path("key.pem"));
    let config = from_file(&text).unwrap();
    for missing in ["chain.pem", "key.pem"] {
        let error = config.check_files().unwrap_err().to_string();
        assert!(error.contains(missing), "{error}");
        std::fs::write(path(missing), "").unwrap();
    }
    config.check_files().unwrap();
    from_file("").unwrap().check_files().unwrap();
}

#[test]
fn the_defaults_are_accepted() {
    let config = from_file("").unwrap();
    assert_eq!(config.api.addr.to_string(), "127.0.0.1:4780");
    assert_eq!(config.ops.addr.to_string(), "127.0.0.1:4782");
    assert_eq!(config.network.swarm.len(), 3);
    assert_eq!(config.network.bootstrap.len(), 6);
    assert_eq!(config.pin.give_up_after, Duration::from_secs(86_400));
    assert_eq!((config.storage.reserve, config.pin.max_bytes), (None, None));
}

#[test]
fn the_template_says_nothing_until_a_line_is_uncommented() {
    let template = render::template();
    let file = file::parse(Path::new("config.toml"), &template).unwrap();
    assert!(file.settings.is_empty() && file.tables.is_empty());
    // `#key = value` is a setting, `# words` are words.
    let setting = |line: &&str| !line.starts_with("# ");
    let uncommented: String =
        template.lines().filter(setting).map(|l| format!("{}\n", l.trim_start_matches('#'))).collect();
    let File { settings: layer, tables } = file::parse(Path::new("config.toml"), &uncommented).unwrap();
    assert_eq!(layer.len(), KEYS.len(), "every setting is in the file");
    for family in FAMILIES {
        let table = &tables[&(family.section, family.example.to_owned())];
        assert_eq!(table.values.len(), family.fields.len(), "and every setting of a table");
        for field in family.fields.iter().filter(|field| matches!(field.default, Default::Is(_))) {
            let unset = Table { values: BTreeMap::new(), ..table.clone() };
            assert_eq!(Some(&table.values[field.name].0), unset.raw(field).as_ref(), "{}", field.name);
        }
    }
    let all_default = Layers::stack(Layer::new(), none, Layer::new());
    for key in KEYS.iter().filter(|k| matches!(k.default, Default::Is(_))) {
        assert_eq!(layer[key.name].0, all_default.get(key).unwrap().0, "{}", key.name);
    }
}

#[test]
fn every_key_is_read_from_file_environment_and_flag_and_wins_in_that_order() {
    for key in KEYS {
        let line = format!("{} = {}", key.name, other_value(key));
        let file = file::parse(Path::new("config.toml"), &line).unwrap();
        let (written, origin) = file.settings[key.name].clone();
        assert_eq!(origin, Origin::File { path: "config.toml".into(), line: 1 });
        let text = match &written {
            Raw::One(text) => text.clone(),
            Raw::Many(texts) => texts.join(", "),
        };

        let default = Layers::stack(Layer::new(), none, Layer::new());
        assert_ne!(default.get(key).map(|v| &v.0), Some(&written), "{}: choose another value", key.name);
        let by_file = Layers::stack(file.clone(), none, partner(key));
        assert_eq!(by_file.get(key).unwrap().0, written);
        Config::check(&by_file).unwrap();

        let env = |name: &str| (name == key.env).then(|| text.clone());
        let by_env = Layers::stack(Layer::new(), env, partner(key));
        assert_eq!(by_env.get(key), Some(&(written.clone(), Origin::Env(key.env))));
        Config::check(&by_env).unwrap();

        let flag = [(key.name, (Raw::One("flag".into()), Origin::Flag("flag")))].into_iter().collect();
        let by_flag = Layers::stack(file, env, flag);
        assert_eq!(by_flag.get(key).unwrap().1, Origin::Flag("flag"));
    }
}

#[test]
fn every_key_is_checked() {
    for key in KEYS {
        let raw = if key.kind.is_list() { Raw::Many(vec!["!".into()]) } else { Raw::One("!=!".into()) };
        let flags = [(key.name, (raw, Origin::Env(key.env)))].into_iter().collect();
        let error = Config::check(&Layers::stack(Layer::new(), none, flags)).unwrap_err().to_string();
        assert!(error.contains(key.name) && error.contains(key.env), "{}: {error}", key.name);
    }
}

#[test]
fn a_misspelt_key_names_the_nearest_and_its_line() {
    let cases = [
        ("[api]\n\nadr = \"127.0.0.1:1\"", 3, "api.adr", "api.addr"),
        ("[network]\nswarm = []\nboot_strap = []", 3, "network.boot_strap", "network.bootstrap"),
        ("[pins]\nmax_blocks = 1", 1, "pins", "[pin]"),
        ("give_up_after = \"1h\"", 1, "give_up_after", "pin.give_up_after"),
        ("[storage]\nmax_depth = 1", 2, "storage.max_depth", "pin.max_depth"),
    ];
    for (text, line, key, nearest) in cases {
        let error = from_file(text).unwrap_err().to_string();
        assert!(error.contains(&format!("config.toml, line {line}:")), "{error}");
        assert!(
            error.contains(&format!("\"{key}\"")) && error.contains(&format!("did you mean \"{nearest}\"")),
            "{error}"
        );
    }
    let far = from_file("xyzzy = 1").unwrap_err().to_string();
    assert!(!far.contains("did you mean"), "{far}");
}

#[test]
fn values_of_the_wrong_shape_name_key_line_and_what_is_wanted() {
    let cases = [
        ("[network]\noffline = \"true\"", "network.offline", "true or false"),
        ("[network]\nswarm = \"/ip4/0.0.0.0/tcp/1\"", "network.swarm", "a list of multiaddrs"),
        ("[network]\nswarm = [1]", "network.swarm", "a list of multiaddrs"),
        ("[pin]\nmax_blocks = \"7\"", "pin.max_blocks", "a whole number"),
        ("[api]\naddr = \"localhost\"", "api.addr", "an IP address and a port"),
        ("[pin]\ngive_up_after = \"0s\"", "pin.give_up_after", "above zero"),
        ("[storage]\npack_size = \"1GB\"\nindex = \"rocks\"", "storage.index", "\"redb\" or \"sled\""),
        ("[storage]\npack_size = 1048575", "storage.pack_size", "1 MiB to 3 GiB"),
        ("[network]\negress = 16383", "network.egress", "the least is 16KiB"),
        ("[network]\negress_per_peer = \"0\"", "network.egress_per_peer", "unset for no limit"),
        ("[pin]\nmax_depth = 4294967296", "pin.max_depth", "the most is 4294967295"),
        ("[log]\nfilter = \"info,=\"", "log.filter", "a level or targets"),
        ("api = 3", "api", ""),
    ];
    for (text, key, wanted) in cases {
        let error = from_file(text).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(wanted) && error.contains("line "), "{text}: {error}");
    }
}

const PRICED: &str = "max_price_attofil_gib_epoch = \"5\"";

#[test]
fn policies_are_read_with_all_they_say() {
    let text = "[policy.gold]\nreplicas = 3\nregions = [\"eu\", \"us-1\"]\nmax_price_attofil_gib_epoch = \"340282366920938463463374607431768211455\"\n\
                duration_epochs = 518400\nhot = \"auto\"\nproviders = [\"f01000\", \"t01001\", \"f02\"]\nipni = false\n\
                spare_after = \"61s\"\n[policy.default]\n";
    let policies = from_file(text).unwrap().policies;
    let gold = floe_core::Policy {
        name: "gold".into(),
        replicas: 3,
        regions: vec!["eu".into(), "us-1".into()],
        max_price: floe_core::AttoFil::new(u128::MAX),
        duration_epochs: 518_400,
        hot: floe_core::policy::Hot::Auto,
        providers: [1_000, 1_001, 2].map(floe_core::ActorId::new).to_vec(),
        ipni: false,
        spare_after_epochs: Some(3),
    };
    assert_eq!(policies["gold"], gold);
    let plain = &policies["default"];
    assert_eq!((plain.replicas, plain.duration_epochs, plain.ipni), (0, 1_555_200, true));
    assert_eq!(policies.len(), 2);
    let dotted = format!("policy.x.replicas = 16\npolicy.x.{PRICED}");
    assert_eq!(from_file(&dotted).unwrap().policies["x"].replicas, 16);
    assert!(from_file("").unwrap().policies.is_empty());
}

/// Each line stands in `[policy.gold]`, the third line of the file, behind a price.
#[test]
fn what_is_wrong_in_a_policy_names_it_its_line_and_what_is_wanted() {
    for (line, key, wanted) in [
        ("replica = 3", "policy.gold.replica", "did you mean \"policy.gold.replicas\""),
        ("max_price = \"1\"", "policy.gold.max_price", "there is no setting"),
        ("replicas = -1", "replicas", "0 to 16"),
        ("replicas = 17", "replicas", "0 to 16"),
        ("replicas = \"3\"", "replicas", "a whole number"),
        ("duration_epochs = 518399", "duration_epochs", "518400 to 3680640"),
        ("duration_epochs = 3680641", "duration_epochs", "518400 to 3680640"),
        ("hot = \"sometimes\"", "hot", "\"always\" or \"auto\" or \"never\""),
        ("providers = [\"1000\"]", "providers", "f01000"),
        ("providers = [\"f01\", \"t01\"]", "providers", "twice"),
        ("providers = [\"f01\"]\nreplicas = 2", "providers", "each of 2 replicas"),
        ("regions = [\"the moon\"]", "regions", "a tag is a word"),
        ("spare_after = \"0s\"", "spare_after", "above zero"),
        ("ipni = \"yes\"", "ipni", "true or false"),
    ] {
        let error = from_file(&format!("[policy.gold]\n{PRICED}\n{line}")).unwrap_err().to_string();
        assert!(error.contains("config.toml, line 3: "), "{line}: {error}");
        assert!(error.contains(key) && error.contains(wanted), "{line}: {error}");
    }
    for (text, key, wanted) in [
        ("[policy]\nreplicas = 3", "policy.replicas", "[policy.gold]"),
        ("policy = 3", "policy", "[policy.gold]"),
        ("[policy.\"a/b\"]", "policy.a/b", "1 to 64 letters"),
        ("[policy.gold]\nreplicas = 1", "policy.gold.max_price_attofil_gib_epoch", "it is unset"),
        ("[policy.gold]\nmax_price_attofil_gib_epoch = 5", "policy.gold", "as text"),
        ("[policy.gold]\nmax_price_attofil_gib_epoch = \"1.5\"", "policy.gold", "decimal digits"),
        ("[policies.gold]\nreplicas = 3", "policies", "did you mean \"[policy]\""),
    ] {
        let error = from_file(text).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(wanted) && error.contains("line "), "{text}: {error}");
    }
}

#[test]
fn policies_are_bounded_in_number() {
    let file = |n: usize| (0..n).map(|n| format!("[policy.p{n}]\n")).collect::<String>();
    for (n, fits) in [(limits::POLICIES - 1, true), (limits::POLICIES, true), (limits::POLICIES + 1, false)] {
        assert_eq!(from_file(&file(n)).is_ok(), fits, "{n}");
    }
}

#[test]
fn policies_are_shown_with_what_holds() {
    let text = format!("[policy.gold]\nreplicas = 2\n{PRICED}");
    let layers = Layers::stack(file::parse(Path::new("config.toml"), &text).unwrap(), none, Layer::new());
    let shown = render::shown(&layers);
    let of = |key: &str| shown.iter().find(|setting| setting.key == key).unwrap();
    let replicas = of("policy.gold.replicas");
    assert_eq!((replicas.value.clone(), replicas.origin.as_str()), (Some("2".into()), "config.toml, line 2"));
    let hot = of("policy.gold.hot");
    assert_eq!((hot.value.clone(), hot.origin.as_str()), (Some("always".into()), "default"));
    assert_eq!(of("policy.gold.spare_after").value, None);
}

#[test]
fn what_is_no_toml_names_its_line() {
    let error = from_file("[api]\naddr = \n").unwrap_err();
    assert!(matches!(error, ConfigError::Syntax { line: 2, .. }), "{error:?}");
}

#[test]
fn passwords_in_urls_are_not_shown() {
    let text = "[network]\nrouters = [\"https://user:hunter2@router.example/routing\"]";
    let layers = Layers::stack(file::parse(Path::new("config.toml"), text).unwrap(), none, Layer::new());
    let shown = serde_json::to_string(&render::shown(&layers)).unwrap();
    assert!(!shown.contains("hunter2") && shown.contains("router.example/routing"), "{shown}");
}

#[test]
fn the_document_is_made_from_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/CONFIGURATION.md");
    let made = render::markdown();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(made == written, "run: UPDATE=1 cargo test -p floe the_document_is_made_from_the_table");
}

#[test]
fn names_flags_and_variables_are_unique_and_in_a_section() {
    let unique = |all: Vec<&str>| all.iter().collect::<std::collections::BTreeSet<_>>().len() == all.len();
    assert!(unique(KEYS.iter().map(|k| k.name).collect()));
    assert!(unique(KEYS.iter().map(|k| k.env).collect()));
    assert!(unique(KEYS.iter().filter_map(|k| k.flag).collect()));
    assert!(KEYS.iter().all(|k| keys::SECTIONS.iter().any(|(s, _)| *s == k.section())));
}

proptest::proptest! {
    #[test]
    fn no_file_is_a_panic(text in "[a-z.=\\[\\]\"0-9 \n#]*") {
        let _ = from_file(&text);
    }
}

/// What a way of running sets holds over the defaults, and under everything that somebody said.
#[test]
fn a_preset_stands_between_the_defaults_and_the_file() {
    let text =
        "pin.max_depth = 5\npin.max_queued = 6\n[policy.default]\nreplicas = 0\n[policy.b]\nreplicas = 0\n";
    let preset = || file::File::of_flag("devnet", text).unwrap();
    let file = |text: &str| file::parse(Path::new("config.toml"), text).unwrap();
    let over = file("pin.max_queued = 7\n[policy.default]\nreplicas = 0\nhot = \"never\"\n");
    let layers = Layers::stack_over(preset(), over, none, Layer::new());
    let config = Config::check(&layers).unwrap();
    assert_eq!((config.pin.max_depth, config.pin.max_queued), (5, 7));
    assert_eq!(config.policies.keys().collect::<Vec<_>>(), ["b", "default"]);
    assert_eq!(config.policies["default"].hot, floe_core::policy::Hot::Never);
    let wrong = file::File::of_flag("devnet", "pin.max_depth = 99999999999").unwrap();
    let error = Config::check(&Layers::stack_over(wrong, Layer::new(), none, Layer::new())).unwrap_err();
    assert!(error.to_string().starts_with("--devnet: pin.max_depth"), "{error}");
}
