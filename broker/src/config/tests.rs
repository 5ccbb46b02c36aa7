use std::collections::HashMap;

use super::*;

struct Memory(HashMap<&'static str, String>);

impl Source for Memory {
    fn read(&self, path: &str) -> Result<String, String> {
        self.0.get(path).cloned().ok_or_else(|| format!("open {path}: no such file or directory"))
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

fn load(text: &str, arguments: &[&str]) -> Result<Config, String> {
    load_over(Config::default(), text, arguments)
}

fn load_over(base: Config, text: &str, arguments: &[&str]) -> Result<Config, String> {
    let source = Memory(HashMap::from([("c.conf", text.to_owned())]));
    let mut arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    if !text.is_empty() {
        arguments.extend(["-c".to_owned(), "c.conf".to_owned()]);
    }
    let flags = Flags::parse(arguments).map_err(|error| error.to_string())?;
    Config::load(base, &flags, &source).map_err(|error| error.to_string())
}

fn refuses(text: &str, expected: &str) {
    assert_eq!(load(text, &[]).map(drop), Err(expected.to_owned()), "{text}");
}

fn login(user: &str, password: &str) -> Authorization {
    Authorization::User(Login::unrestricted(user.into(), password.into()))
}

#[test]
fn without_a_file_and_flags_the_defaults_are_those_of_nats_server() {
    let config = load("", &[]).unwrap();

    assert_eq!(config, Config::default());
    assert_eq!(config.listen.to_string(), "0.0.0.0:4222");
    assert_eq!(config.jetstream, None);
    assert_eq!(config.max_payload, 1_048_576);
}

#[test]
fn a_file_with_every_option_of_this_release_is_read() {
    let config = load(
        r#"
        server_name: n1
        listen: "127.0.0.1:4333"
        http: localhost:8222
        jetstream { store_dir: "/data", max_mem: 1GB, max_file: "10G", domain: hub, unique_tag: "AZ:", sync_interval: always }
        cluster {
          name: C1
          listen: 127.0.0.1:6333
          routes: [nats://127.0.0.1:6333, "nats-route://[::1]:6334", other]
          no_advertise: true
        }
        authorization { user: a, password: "s3cret", timeout: 1.5 }
        max_payload: 2mb, max_connections: 100, max_pending: 8MB, max_subscriptions: 0
        ping_interval: "30s"; ping_max: 3; write_deadline: 5s
        debug: true; trace: false; logfile: /tmp/l; pid_file: /tmp/p; ports_file_dir: /tmp
        lame_duck_duration: "1m", lame_duck_grace_period: 5s
        server_tags: ["az:1", " Fast,SSD ", az:1]
        server_metadata { rack: "7" }
        "#,
        &[],
    )
    .unwrap();

    assert_eq!(config.server_name.as_deref(), Some("n1"));
    assert_eq!(config.listen.to_string(), "127.0.0.1:4333");
    assert_eq!(config.http.unwrap().to_string(), "localhost:8222");
    let jetstream = config.jetstream.unwrap();
    assert_eq!(jetstream.data_dir(), PathBuf::from("/data/jetstream"));
    assert_eq!(jetstream.max_memory, Some(1 << 30));
    assert_eq!(jetstream.max_storage, Some(10 << 30));
    assert_eq!(jetstream.domain.as_deref(), Some("hub"));
    assert_eq!(jetstream.unique_tag.as_deref(), Some("az:"));
    assert_eq!(jetstream.sync_interval, SyncInterval::Always);
    let cluster = config.cluster.unwrap();
    let routes: Vec<String> = cluster.routes.iter().map(ToString::to_string).collect();
    assert_eq!(routes, ["127.0.0.1:6333", "[::1]:6334", "other:6222"]);
    assert!(cluster.no_advertise);
    assert_eq!(config.authorization, login("a", "s3cret"));
    assert_eq!(config.auth_timeout, Duration::from_millis(1500));
    assert_eq!(config.max_payload, 2 << 20);
    assert_eq!(config.max_connections, Some(100));
    assert_eq!(config.max_subscriptions, None);
    assert_eq!(config.ping_interval, Duration::from_secs(30));
    assert_eq!(config.lame_duck_grace_period, Duration::from_secs(5));
    assert_eq!(config.server_tags, ["az:1", "fast,ssd"]);
    assert_eq!(config.server_metadata, [("rack".to_owned(), "7".to_owned())]);
    assert_eq!((config.warnings, config.notes), (Vec::new(), Vec::new()));
}

#[test]
fn unknown_options_are_errors_with_file_line_and_column_and_all_are_reported() {
    refuses("bogus: 1", "c.conf:1:0: unknown field \"bogus\"");
    refuses(
        "port: 1\n  nope {}\ncluster { what: 3 }",
        "c.conf:2:3: unknown field \"nope\"\nc.conf:3:11: unknown field \"what\"",
    );
    refuses("jetstream { x: 1 }", "c.conf:1:12: unknown field \"x\"");
}

#[test]
fn a_key_that_is_only_a_variable_is_not_unknown() {
    assert_eq!(load("MY_PORT: 4333\nport: $MY_PORT", &[]).unwrap().listen.port, 4333);
}

#[test]
fn known_options_that_are_missing_here_are_refused_with_a_sentence() {
    refuses("tls { cert_file: a }", "c.conf:1:0: \"tls\" is not supported yet");
    refuses("LeafNodes: {}", "c.conf:1:0: \"leafnodes\" is not supported yet");
    refuses(
        "authorization { auth_callout: {} }",
        "c.conf:1:16: \"authorization.auth_callout\" is not supported yet",
    );
    refuses("cluster { tls: {} }", "c.conf:1:10: \"cluster.tls\" is not supported yet");
    refuses("jetstream { key: x }", "c.conf:1:12: \"jetstream.key\" is not supported yet");
    refuses("write_timeout: retry", "c.conf:1:0: \"write_timeout: retry\" is not supported yet");
}

#[test]
fn options_that_change_nothing_are_accepted_with_a_note() {
    let config = load("disable_sublist_cache: true\ncluster { pool_size: 5 }", &[]).unwrap();

    assert_eq!(config.notes.len(), 2);
    assert!(config.notes[1].contains("cluster.pool_size changes nothing here"));
}

#[test]
fn a_whole_number_is_seconds_with_a_warning() {
    let config = load("ping_interval: 10", &[]).unwrap();

    assert_eq!(config.ping_interval, Duration::from_secs(10));
    assert_eq!(
        config.warnings,
        [
            "c.conf:1:0: invalid use of field \"ping_interval\": ping_interval should be converted to a duration"
        ]
    );
}

#[test]
fn wrong_types_and_ranges_are_refused_where_they_stand() {
    refuses("port: abc", "c.conf:1:0: port must be an integer, but it is a string");
    refuses("port: 70000", "c.conf:1:0: port 70000 is not between 1 and 65535 (-1: any free)");
    refuses("listen: foo", "c.conf:1:0: could not parse address string \"foo\"");
    refuses(
        "server_name: 123",
        "c.conf:1:0: server_name must be a string, but it is an integer; write it in quotes",
    );
    refuses("max_payload: 10g", "c.conf:1:0: max_payload value is too big");
    refuses("max_payload: 0", "c.conf:1:0: max_payload must be at least 1");
    refuses(
        "ping_interval: \"abc\"",
        "c.conf:1:0: error parsing ping_interval: time: invalid duration \"abc\"",
    );
    refuses(
        "lame_duck_duration: 10s",
        "c.conf:1:0: invalid lame_duck_duration of 10s, minimum is 30 seconds",
    );
    refuses("jetstream: maybe", "c.conf:1:0: Expected 'enabled' or 'disabled' for string value, got 'maybe'");
    refuses("authorization { token: x, user: y }", "c.conf:1:0: Cannot have a user/pass and token");
    refuses(
        "cluster { routes: [\"nats://u:p@h:1\"] }",
        "c.conf:1:19: credentials in routes are not supported yet",
    );
    refuses("# only a comment", "c.conf: config has no values or is empty");
}

#[test]
fn options_that_do_not_fit_together_are_refused() {
    refuses("max_payload: 100MB", "max_payload (104857600) cannot be higher than max_pending (67108864)");
    refuses(
        "lame_duck_duration: 31s, lame_duck_grace_period: 40s",
        "lame duck grace period (40s) should be strictly lower than lame duck duration (31s)",
    );
    refuses("jetstream { domain: \"a.b\" }", "invalid domain name: may not contain ., * or >");
    refuses(
        "cluster { routes: [\"nats://a:1\"] }",
        "solicited routes require cluster capabilities, e.g. --cluster or cluster.listen",
    );
    let cluster = "jetstream: true, cluster { listen: 127.0.0.1:6222";
    refuses(&format!("{cluster} }}"), "jetstream cluster requires `server_name` to be set");
    refuses(&format!("server_name: a, {cluster} }}"), "jetstream cluster requires `cluster.name` to be set");
    refuses(
        &format!("server_name: a, {cluster}, name: c }}"),
        "JetStream cluster requires configured routes: name the other nodes in `cluster.routes`",
    );
    refuses("port: 8222, http: 8222", "clients and monitoring can not both listen on 0.0.0.0:8222");
}

#[test]
fn a_cluster_with_a_name_alone_is_none() {
    assert_eq!(load("cluster { name: x }", &[]).unwrap().cluster, None);
}

#[test]
fn flags_win_over_the_file_in_all_of_gos_spellings() {
    let file = "port: 1, server_name: file, debug: true, authorization { user: u, password: p }";
    for arguments in [
        &["-p", "4333", "-n", "flag"][..],
        &["--port", "4333", "--name", "flag"],
        &["-port=4333", "--server_name=flag"],
    ] {
        let config = load(file, arguments).unwrap();
        assert_eq!(config.listen.port, 4333);
        assert_eq!(config.server_name.as_deref(), Some("flag"));
    }
    let config = load(file, &["-D=false", "--pass", "q"]).unwrap();
    assert!(!config.log.debug);
    assert_eq!(config.authorization, login("u", "q"));
}

#[test]
fn all_flags_of_this_release_are_read() {
    let config = load(
        "",
        &[
            "-a",
            "127.0.0.1",
            "-p",
            "-1",
            "-m",
            "8333",
            "-l",
            "/l",
            "-P",
            "/p",
            "-js",
            "-sd",
            "/s",
            "-n",
            "x",
            "--auth",
            "t",
            "-DV",
            "--ports_file_dir",
            "/d",
            "--cluster_name",
            "C",
            "--cluster_listen",
            "nats://127.0.0.1:6333",
            "--routes",
            "nats://a:1, nats://b:2",
        ],
    )
    .unwrap();

    assert_eq!(config.listen, Listen { host: "127.0.0.1".into(), port: 0 });
    assert_eq!(config.http.unwrap().to_string(), "127.0.0.1:8333");
    assert_eq!(config.jetstream.unwrap().store_dir, Some("/s".into()));
    assert_eq!(config.authorization, Authorization::Token("t".into()));
    assert!(config.log.debug && config.log.trace);
    let cluster = config.cluster.unwrap();
    assert_eq!(cluster.listen.to_string(), "127.0.0.1:6333");
    assert_eq!(cluster.routes.len(), 2);
}

#[test]
fn a_store_directory_in_the_file_is_used_when_a_flag_turns_streams_on() {
    let config = load("store_dir: /s", &["-js"]).unwrap();

    assert_eq!(config.jetstream.unwrap().store_dir, Some("/s".into()));
    assert_eq!(load("store_dir: /s", &[]).unwrap().jetstream, None);
}

#[test]
fn levee_serve_has_streams_in_its_own_directory_unless_told_otherwise() {
    let store_dir = |text: &str, arguments: &[&str]| {
        let config = load_over(Config::levee_defaults(), text, arguments).unwrap();
        config.jetstream.map(|jetstream| jetstream.store_dir)
    };

    assert_eq!(store_dir("", &[]), Some(Some("levee-data".into())));
    assert_eq!(store_dir("jetstream { max_mem: 1G }", &[]), Some(Some("levee-data".into())));
    assert_eq!(store_dir("jetstream { store_dir: /x }", &[]), Some(Some("/x".into())));
    assert_eq!(store_dir("jetstream { store_dir: /x }", &["-sd", "/y"]), Some(Some("/y".into())));
    assert_eq!(store_dir("jetstream: disabled", &[]), None);
    assert_eq!(store_dir("", &["-js=false"]), None);
}

#[test]
fn wrong_flags_are_refused_in_gos_words() {
    let refuses = |arguments: &[&str], expected: &str| {
        assert_eq!(load("", arguments).map(drop), Err(expected.to_owned()));
    };

    refuses(&["-x"], "flag provided but not defined: -x");
    refuses(&["--port"], "flag needs an argument: -port");
    refuses(&["-p", "abc"], "invalid value \"abc\" for flag -p: parse error");
    refuses(&["stray"], "unrecognized command: \"stray\"");
    refuses(&["-js", "false"], "unrecognized command: \"false\"");
    refuses(&["--tls"], "flag -tls is not supported yet");
    refuses(&["-sl", "dance"], "unknown signal \"dance\"");
}

#[test]
fn signals_are_read_with_and_without_a_process() {
    let signal = |text: &str| Flags::parse(["-sl".to_owned(), text.to_owned()]).unwrap().signal.unwrap();

    assert_eq!(
        signal("ldm=/run/p.pid"),
        SignalTarget { signal: Signal::LameDuck, process: Some("/run/p.pid".into()) }
    );
    assert_eq!(signal("stop"), SignalTarget { signal: Signal::Stop, process: None });
}

#[test]
fn the_digest_is_that_of_the_meaning_and_the_one_nats_server_computes() {
    let digest = |text: &str| load(text, &[]).unwrap().file.unwrap().digest;

    assert_eq!(digest("port: 4"), "sha256:c20215432530556cf1fb2c4a2eb26e78e23b9c0daf9ae2032460d5e9cb7be2c7");
    assert_eq!(digest("{ port = 4 } # same"), digest("port: 4"));
    assert_eq!(digest("debug: on\nport: 4"), digest("port: 4, debug: true"));
}

#[test]
fn the_example_configurations_are_read() {
    struct Examples;
    impl Source for Examples {
        fn read(&self, path: &str) -> Result<String, String> {
            let path = format!("{}/../deploy/config/{path}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
        }

        fn variable(&self, name: &str) -> Option<String> {
            match name {
                "NODE_NAME" => Some("n1".to_owned()),
                "NODE_HOST" => Some("10.0.0.1".to_owned()),
                "STORE_DIR" => Some("/var/lib/levee".to_owned()),
                _ => None,
            }
        }
    }
    let load = |path: &str| {
        let flags = Flags::parse(["-c".to_owned(), path.to_owned()]).unwrap();
        Config::load(Config::default(), &flags, &Examples).unwrap()
    };

    let single = load("single.conf");
    assert_eq!(single.listen.to_string(), "127.0.0.1:4222");
    assert!(single.jetstream.is_some() && single.warnings.is_empty() && single.notes.is_empty());

    let cluster = load("cluster.conf");
    assert_eq!(cluster.listen.to_string(), "10.0.0.1:4222");
    assert_eq!(cluster.http.unwrap().to_string(), "10.0.0.1:8222");
    assert_eq!(cluster.cluster.unwrap().routes.len(), 3);
    assert_eq!(cluster.lame_duck_duration, Duration::from_secs(60));
}

#[test]
fn batches_have_bounds_of_their_own() {
    let batches = |limits: &str| {
        let config = load(&format!("jetstream {{ limits {{ {limits} }} }}"), &[]);
        config.map(|config| config.jetstream.unwrap().batches)
    };
    let default = BatchLimits::DEFAULT;

    assert_eq!(batches(""), Ok(default));
    assert_eq!(batches("batch { max_msgs: 0 }"), Ok(default));
    let set = "batch { max_inflight_per_stream: 2, max_inflight_total: 3, max_msgs: 4, timeout: \"5s\" }";
    let expected = BatchLimits {
        atomic_per_stream_max: 2,
        fast_per_stream_max: 2,
        atomic_on_node_max: 3,
        fast_on_node_max: 3,
        messages_max: 4,
        idle_max: Duration::from_secs(5),
    };
    assert_eq!(batches(set), Ok(expected));
    for (text, expected) in [
        ("jetstream { limits: 5 }", "expected a block to define jetstream.limits"),
        ("jetstream { limits { batch { nope: 1 } } }", "unknown field \"nope\""),
        (
            "jetstream { limits { max_ha_assets: 1 } }",
            "\"jetstream.limits.max_ha_assets\" is not supported yet",
        ),
    ] {
        let refused = load(text, &[]).unwrap_err();
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn requests_have_bounds_from_the_configuration() {
    let text = "jetstream { limits { max_request_batch: 100, max_ack_pending: 7, duplicate_window: \"1m\", \
                default_max_consumers: -1 } }";
    let limits = load(text, &[]).unwrap().jetstream.unwrap().limits;

    assert_eq!((limits.max_request_batch, limits.max_ack_pending), (100, 7));
    assert_eq!(limits.default_max_consumers, -1);
    assert_eq!(limits.duplicate_window_max, levee_protocol::time::Nanos::from_secs(60));
}

#[test]
fn accounts_have_users_and_what_their_streams_may_use() {
    let config = load(
        r#"
        accounts {
          A {
            users [{ user: a, password: p }, { username: b }]
            jetstream { max_mem: 1M, max_store: "10G", max_streams: 3, max_bytes_required: true, cluster_traffic: owner }
          }
          B: { jetstream: enabled }
          OPS { users = [{ user: ops, pass: "$2a$04$hash" }] }
        }
        authorization { users: [{ user: g, password: q }] }
        system_account: OPS
        no_auth_user: g
        "#,
        &[],
    )
    .unwrap();

    let logins: Vec<_> =
        config.logins().map(|(login, account)| (login.user.as_str(), account.to_string())).collect();
    let expected = [("g", "$G"), ("a", "A"), ("b", "A"), ("ops", "OPS")];
    assert_eq!(logins, expected.map(|(user, account)| (user, account.to_owned())));
    let limits = config.accounts[0].jetstream.unwrap();
    assert_eq!((limits.max_memory, limits.max_storage, limits.max_streams), (1_000_000, 10 << 30, 3));
    assert_eq!((limits.max_consumers, limits.max_bytes_required), (-1, true));
    assert_eq!(config.accounts[1].jetstream, Some(levee_protocol::api::AccountLimits::default()));
    assert_eq!(config.accounts[2].jetstream, None);
    assert_eq!(config.system_account().as_str(), "OPS");
    assert!(!config.has_global_account_only());
    assert_eq!(config.notes.len(), 1, "{:?}", config.notes);

    let short = load("accounts: [A, B]", &[]).unwrap();
    assert_eq!(short.accounts.len(), 2);
    let operators_only = load("accounts { $SYS { users: [{ user: s, password: s }] } }", &[]).unwrap();
    assert!(operators_only.has_global_account_only());
}

#[test]
fn accounts_that_do_not_fit_together_are_refused() {
    let a = "accounts { A { users: [{ user: a, password: a }] } }\n";

    refuses(
        &format!("{a}authorization {{ user: x, password: y }}"),
        "Can not have a single user/pass and accounts",
    );
    refuses(&format!("{a}authorization {{ token: t }}"), "Can not have a token and accounts");
    refuses(&format!("{a}authorization {{ users: [{{ user: a }}] }}"), "Duplicate user \"a\" detected");
    refuses(
        &format!("{a}no_auth_user: z"),
        "no_auth_user: \"z\" not present as user or nkey in authorization block or account configuration",
    );
    refuses(&format!("{a}system_account: S"), "system_account \"S\" is not one of the accounts");
    refuses("accounts { $G { } }", "c.conf:1:11: \"$G\" is a Reserved Account");
    refuses("accounts: [A, A]", "c.conf:1:0: Duplicate Account Entry: A");
    refuses("accounts { A: 5 }", "c.conf:1:11: Expected map entries for accounts");
    refuses("accounts { A { users: [{ password: x }] } }", "c.conf:1:23: User entry requires a user");
    refuses(
        "accounts { A { users: 7 } }",
        "c.conf:1:15: Expected users field to be an array, got an integer",
    );
    refuses("accounts { A { exports: [] } }", "c.conf:1:15: \"accounts.exports\" is not supported yet");
    refuses("accounts { A { jetstream { R1: {} } } }", "c.conf:1:27: unknown field \"R1\"");
    refuses(
        "accounts { S { jetstream: enabled } }, system_account: S",
        "system account \"S\" can not have JetStream: give it to another account",
    );
    refuses(
        "authorization { users: [{ user: a }], user: b }",
        "c.conf:1:0: Can not have a single user/pass and a users array",
    );
}

/// What a user of these lines may do, as it is shown.
fn granted(config: &Config, user: &str) -> Option<String> {
    let (login, _) = config.logins().find(|(login, _)| login.user == user).unwrap();
    let grant = login.permissions.as_ref()?;
    let list = |texts: Vec<String>| texts.join(",");
    let (publish, subscribe) = (&grant.publish, &grant.subscribe);
    Some(format!(
        "+{} -{} <{} !{} {}",
        list(publish.allow.iter().map(ToString::to_string).collect()),
        list(publish.deny.iter().map(ToString::to_string).collect()),
        list(subscribe.allow.iter().map(ToString::to_string).collect()),
        list(subscribe.deny.iter().map(ToString::to_string).collect()),
        grant.responses.map_or_else(|| "none".to_owned(), |some| format!("{}/{}", some.max, some.expires.0)),
    ))
}

#[test]
fn permissions_are_written_in_many_ways() {
    let config = load(
        r#"
        authorization {
          users [
            { user: one, permissions: { publish: a, subscribe: "b.> q" } }
            { user: lists, permission { pub: [a, "b.*"], sub: ["c", " d   q.* "] } }
            { user: both, authorization { import: { allow: a, deny: [b, c] }, export { deny: "d" } } }
            { user: answers, permissions { allow_responses: true } }
            { user: some, permissions { publish: [], publish_allow_responses { max_msgs: 5, ttl: "3s" } } }
            { user: many, permissions { allow_responses { max: -1, expires: "-1s" } } }
            { user: zero, permissions { allow_responses { max: 0, expires: 0s } } }
            { user: never, permissions { allow_responses: false } }
            { user: all, permissions: { } }
            { user: other }
          ]
          default_permissions { publish: "default" }
        }
        accounts {
          A { users: [{ user: a }, { user: b, permissions { sub: own } }], default_permissions { sub: "its" } }
          B { users: [{ user: c }] }
        }
        "#,
        &[],
    )
    .unwrap();

    for (user, expected) in [
        ("one", Some("+a - <b.> q ! none")),
        ("lists", Some("+a,b.* - <c,d q.* ! none")),
        ("both", Some("+a -b,c < !d none")),
        ("answers", Some("+ - < ! 1/120000000000")),
        ("some", Some("+ - < ! 5/3000000000")),
        ("many", Some("+ - < ! -1/-1000000000")),
        ("zero", Some("+ - < ! 1/120000000000")),
        ("never", Some("+ - < ! none")),
        ("all", Some("+ - < ! none")),
        ("other", Some("+default - < ! none")),
        ("a", Some("+ - <its ! none")),
        ("b", Some("+ - <own ! none")),
        ("c", None),
    ] {
        assert_eq!(granted(&config, user).as_deref(), expected, "{user}");
    }
    assert!(config.notes.is_empty() && config.warnings.is_empty());
}

#[test]
fn default_permissions_are_for_users_of_a_list() {
    for text in ["user: u, password: p", "token: t", ""] {
        let config =
            load(&format!("authorization {{ {text}\ndefault_permissions {{ pub: a }} }}"), &[]).unwrap();

        assert!(config.logins().all(|(login, _)| login.permissions.is_none()));
        assert!(config.notes[0].starts_with("c.conf:2:1: authorization.default_permissions changes nothing"));
    }
}

#[test]
fn permissions_that_mean_nothing_are_refused_where_they_stand() {
    let refuses_at = |permissions: &str, expected: &str| {
        refuses(&format!("authorization {{ users: [{{ user: a\npermissions: {permissions} }}] }}"), expected);
    };

    refuses_at(
        "5",
        "c.conf:2:1: permissions must be a block with publish and subscribe, but it is an integer",
    );
    refuses_at(
        "{ publish: 5 }",
        "c.conf:2:16: publish must be a subject or a list of subjects, but it is an integer",
    );
    refuses_at(
        "{ publish: [a, 5 ] }",
        "c.conf:2:29: a subject in permissions must be a string, but it is an integer",
    );
    refuses_at("{ pub: \"a..b\" }", "c.conf:2:16: subject \"a..b\" is not a valid subject");
    refuses_at("{ pub: [a,\n\"a q\" ] }", "c.conf:3:1: subject \"a q\" is not a valid subject");
    refuses_at("{ sub: \"a q r\" }", "c.conf:2:16: subject \"a q r\" is not a valid subject");
    refuses_at("{ sub: \" a\" }", "c.conf:2:16: subject \" a\" is not a valid subject");
    refuses_at("{ sub: \"\" }", "c.conf:2:16: subject \"\" is not a valid subject");
    refuses_at("{ sub: \"a.. q\" }", "c.conf:2:16: subject \"a..\" is not a valid subject");
    refuses_at("{ sub: { deny: \"a q..r\" } }", "c.conf:2:23: queue \"q..r\" is not a valid queue");
    refuses_at("{ pub: { alow: a } }", "c.conf:2:23: unknown field \"alow\"");
    refuses_at("{ pubb: a }", "c.conf:2:16: unknown field \"pubb\"");
    refuses_at(
        "{ allow_responses: 5 }",
        "c.conf:2:16: allow_responses must be true, false or a block with max and expires, but it is an integer",
    );
    refuses_at("{ allow_responses { max: x } }", "c.conf:2:34: max must be an integer, but it is a string");
    refuses_at(
        "{ allow_responses { expires: 5 } }",
        "c.conf:2:34: expires must be a string, but it is an integer; write it in quotes",
    );
    refuses_at(
        "{ allow_responses { expires: \"5x\" } }",
        "c.conf:2:34: error parsing expires: time: invalid duration \"5x\"",
    );
    refuses_at("{ allow_responses { maxx: 5 } }", "c.conf:2:34: unknown field \"maxx\"");
    refuses(
        "accounts { A { default_permissions { pub: \"x..y\" } } }",
        "c.conf:1:37: subject \"x..y\" is not a valid subject",
    );
    refuses("accounts { A { permissions { pub: x } } }", "c.conf:1:15: unknown field \"permissions\"");
    refuses(
        "cluster { permissions { import: x } }",
        "c.conf:1:10: \"cluster.permissions\" is not supported yet",
    );
}

#[test]
fn accounts_limit_their_clients() {
    let text = "accounts { A { limits { max_conn: 5, max_subscriptions: 0, max_payload: 1k, max_leafs: 3 } }
        B { limits { max_connections: -1, max_subs: 7 } } }";
    let config = load(text, &[]).unwrap();

    let limits = |account: usize| {
        let limits = config.accounts[account].limits;
        (limits.max_connections, limits.max_subscriptions, limits.max_payload)
    };
    assert_eq!(limits(0), (Some(5), Some(0), Some(1000)));
    assert_eq!(limits(1), (None, Some(7), None));
    assert_eq!(config.notes.len(), 1, "{:?}", config.notes);
    refuses(
        "accounts { A { limits: 5 } }",
        "c.conf:1:15: expected a block to define accounts.limits, but it is an integer",
    );
    refuses("accounts { A { limits { max_conns: 5 } } }", "c.conf:1:24: unknown field \"max_conns\"");
    refuses(
        "accounts { A { limits { max_conn: \"5\" } } }",
        "c.conf:1:24: max_conn must be an integer, but it is a string",
    );
}
