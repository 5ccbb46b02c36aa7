//! The rules of this repository that a machine can check: which crate may know which, names that must stay where
//! they are, links that lead somewhere, files that have not grown too large.
//!
//! A rule is a function from text to findings, so that each is shown to find what it is for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What may lie at the top, dotfiles and the build directory apart.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "broker",
    "cli",
    "clippy.toml",
    "deploy",
    "protocol",
    "raft",
    "rustfmt.toml",
    "storage",
    "tests",
];

/// Made by building and running; listed in `.gitignore`.
const GENERATED: &[&str] = &["target", "levee-data", "__pycache__"];

/// The crates of the product and which of each other they may name in their manifest.
const DIRECTIONS: &[(&str, &[&str])] = &[
    ("levee-protocol", &[]),
    ("levee-broker-core", &["levee-protocol"]),
    ("levee-storage", &["levee-protocol"]),
    ("levee-raft", &["levee-protocol", "levee-storage"]),
    ("levee-broker", &["levee-protocol", "levee-broker-core", "levee-storage", "levee-raft"]),
    ("levee-cli", &["levee-broker", "levee-protocol"]),
];

/// Crates that see everything and that nothing sees.
const SEE_EVERYTHING: &[&str] = &["levee-tests", "levee-benches"];

/// External packages (a trailing `*` is any ending) and the crates that alone may depend on them.
const PACKAGES: &[(&str, &[&str])] = &[
    ("rocksdb*", &["levee-storage"]),
    ("openraft*", &["levee-raft"]),
    ("tonic*", &["levee-raft", "levee-broker"]),
    ("quinn*", &["levee-broker"]),
    ("metrics-exporter-prometheus", &["levee-broker"]),
    ("axum", &["levee-broker"]),
    ("clap", &["levee-cli", "levee-benches"]),
    ("mimalloc", &["levee-cli"]),
    ("turmoil", &["levee-tests"]),
    ("criterion", &["levee-benches"]),
];

/// What the rules of streams and consumers must not be able to do: I/O, threads, chance.
const NOT_IN_PURE_CRATES: &[&str] = &["tokio", "rand", "rocksdb", "openraft", "tonic", "libc", "rustix"];

/// Names that may appear in code only below these paths. Tests and benches are free. The composition root names
/// tonic because the two gRPC services share one server.
const NAMES: &[(&str, &[&str])] = &[
    ("rocksdb", &["storage/src/"]),
    ("openraft", &["raft/src/"]),
    (
        "tonic",
        &[
            "raft/src/transport/",
            "broker/src/router/peers.rs",
            "broker/src/router/peers/",
            "broker/src/node.rs",
        ],
    ),
    ("quinn", &["broker/src/mirror/quic.rs"]),
    ("tokio::net", &["broker/src/runtime/", "cli/src/dev.rs"]),
];

/// There is one path for one node and many, so nothing may ask which it is.
const QUESTIONS: &[&str] = &[
    "is_clustered",
    "is_cluster_mode",
    "clustered_mode",
    "is_standalone",
    "standalone_mode",
    "is_single_node",
    "single_node_mode",
    "cluster_enabled",
];

/// Promises instead of code.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

/// Lines of a file, its tests apart. At this size look for the file hiding inside.
const LINES_MAX: usize = 800;

struct SourceFile {
    /// From the root, with `/`.
    path: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is below the root").to_owned()
}

fn files(ending: &str) -> Vec<SourceFile> {
    fn walk(root: &Path, dir: &Path, ending: &str, found: &mut Vec<SourceFile>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with('.') || GENERATED.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                walk(root, &path, ending, found);
            } else if name.ends_with(ending)
                && let Ok(text) = fs::read_to_string(&path)
            {
                let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                found.push(SourceFile { path, text });
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &root(), ending, &mut found);
    assert!(!found.is_empty(), "no files end in {ending}");
    found
}

fn product_sources() -> Vec<SourceFile> {
    let mut sources = files(".rs");
    sources.retain(|file| {
        let free = ["tests/", "benches/"].iter().any(|dir| file.path.starts_with(dir));
        !free && !file.path.contains("/tests/") && !file.path.ends_with("/tests.rs")
    });
    sources
}

fn demand_none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// The code of a file before its tests, without comments. Lines keep their numbers. Strings are kept: a name in
/// one is as telling.
fn code(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    if let Some(tests) = tests_at(&lines) {
        lines.truncate(tests);
    }
    lines.iter().map(|line| line.find("//").map_or(*line, |comment| &line[..comment])).collect()
}

/// The line of `#[cfg(test)]` on a module with a body, which by convention is the last item.
fn tests_at(lines: &[&str]) -> Option<usize> {
    let pairs = lines.iter().zip(lines.iter().skip(1));
    pairs.enumerate().find_map(|(at, (line, next))| {
        let module = next.trim_start();
        (line.trim() == "#[cfg(test)]" && module.starts_with("mod ") && module.ends_with('{')).then_some(at)
    })
}

/// Where a word stands, not being a part of a longer one.
fn holds_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && (word.ends_with('!') || !after.is_some_and(is_part))
    })
}

fn words_outside(file: &SourceFile, word: &str, allowed: &[&str]) -> Vec<String> {
    if allowed.iter().any(|path| file.path.starts_with(path)) || file.path.ends_with("build.rs") {
        return Vec::new();
    }
    let lines = code(&file.text);
    // Where generated messages are taken in, the macro has the package's name.
    let found = lines.iter().enumerate();
    let found = found.filter(|(_, line)| holds_word(line, word) && !line.contains("tonic::include_proto!"));
    let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
    found.map(|(at, _)| format!("{}:{}: only {allowed} may name `{word}`", file.path, at + 1)).collect()
}

#[test]
fn the_top_level_is_the_agreed_one() {
    let entries = fs::read_dir(root()).expect("the root is readable");
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names: Vec<String> =
        names.filter(|name| !name.starts_with('.') && !GENERATED.contains(&name.as_str())).collect();

    let extra = names
        .iter()
        .filter(|name| !TOP_LEVEL.contains(&name.as_str()))
        .map(|name| format!("{name} is extra"));
    let missing = TOP_LEVEL
        .iter()
        .filter(|name| !names.iter().any(|there| there == *name))
        .map(|name| format!("{name} is missing"));
    demand_none(&extra.chain(missing).collect::<Vec<_>>());
}

/// Names of dependencies by crate, from the manifests.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let mut crates = BTreeMap::new();
    for manifest in files("Cargo.toml") {
        if let Some((name, dependencies)) = manifest_of(&manifest.text) {
            crates.insert(name, dependencies);
        }
    }
    crates
}

/// The package's name and all its dependencies, those of tests and of the build script too.
fn manifest_of(text: &str) -> Option<(String, Vec<String>)> {
    let (mut section, mut name, mut dependencies) = (String::new(), None, Vec::new());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(header) = line.strip_prefix('[') {
            header.trim_end_matches(']').clone_into(&mut section);
            // `[dependencies.name]`
            if let Some((kind, package)) = section.rsplit_once('.')
                && kind.ends_with("dependencies")
                && kind != "workspace.dependencies"
            {
                dependencies.push(package.to_owned());
            }
        } else if let Some((key, value)) = line.split_once('=') {
            let key = key.trim().split('.').next().unwrap_or_default().trim_matches('"').to_owned();
            if section == "package" && key == "name" {
                name = Some(value.trim().trim_matches('"').to_owned());
            } else if section.ends_with("dependencies") && section != "workspace.dependencies" {
                dependencies.push(key);
            }
        }
    }
    name.map(|name| (name, dependencies))
}

fn wrong_directions(name: &str, dependencies: &[String]) -> Vec<String> {
    let may = match DIRECTIONS.iter().find(|(known, _)| *known == name) {
        Some((_, may)) => *may,
        None if SEE_EVERYTHING.contains(&name) => return Vec::new(),
        None => return vec![format!("{name} has no place in the table of directions")],
    };
    let mut findings = Vec::new();
    for dependency in dependencies {
        if dependency.starts_with("levee-") && !may.contains(&dependency.as_str()) {
            findings.push(format!("{name} must not depend on {dependency}"));
        }
        if matches!(name, "levee-protocol" | "levee-broker-core")
            && NOT_IN_PURE_CRATES.contains(&dependency.as_str())
        {
            findings.push(format!("{name} is pure and must not depend on {dependency}"));
        }
    }
    findings
}

fn misplaced_packages(name: &str, dependencies: &[String]) -> Vec<String> {
    let mut findings = Vec::new();
    for (package, owners) in PACKAGES {
        let is = |dependency: &String| match package.strip_suffix('*') {
            Some(start) => dependency.starts_with(start),
            None => dependency == package,
        };
        if let Some(dependency) = dependencies.iter().find(|dependency| is(dependency))
            && !owners.contains(&name)
        {
            findings.push(format!("{name} must not depend on {dependency}: only {} may", owners.join(", ")));
        }
    }
    findings
}

#[test]
fn crates_depend_only_downward() {
    let crates = dependencies();
    assert_eq!(crates.len(), DIRECTIONS.len() + SEE_EVERYTHING.len(), "{:?}", crates.keys());

    let findings = crates.iter().flat_map(|(name, dependencies)| wrong_directions(name, dependencies));
    demand_none(&findings.collect::<Vec<_>>());
}

#[test]
fn external_packages_belong_to_their_crate() {
    let crates = dependencies();

    let findings = crates.iter().flat_map(|(name, dependencies)| misplaced_packages(name, dependencies));
    demand_none(&findings.collect::<Vec<_>>());
}

#[test]
fn names_stay_behind_their_door() {
    let sources = product_sources();

    let findings = NAMES
        .iter()
        .flat_map(|(name, allowed)| sources.iter().flat_map(move |file| words_outside(file, name, allowed)));
    demand_none(&findings.collect::<Vec<_>>());
}

#[test]
fn nothing_asks_whether_there_is_one_node_or_many() {
    let sources = product_sources();

    let findings =
        QUESTIONS.iter().flat_map(|word| sources.iter().flat_map(move |file| words_outside(file, word, &[])));
    demand_none(&findings.collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_for_later() {
    let sources = product_sources();

    let findings = UNFINISHED
        .iter()
        .flat_map(|word| sources.iter().flat_map(move |file| words_outside(file, word, &[])));
    demand_none(&findings.collect::<Vec<_>>());
}

fn too_long(file: &SourceFile) -> Option<String> {
    let lines = code(&file.text).len();
    (lines > LINES_MAX)
        .then(|| format!("{}: {lines} lines before its tests; the limit is {LINES_MAX}", file.path))
}

#[test]
fn files_hold_one_idea() {
    let sources = product_sources();

    demand_none(&sources.iter().filter_map(too_long).collect::<Vec<_>>());
}

/// Not a rule: lines of code by crate and the longest files, to notice drift by.
#[test]
fn size_report() {
    let sources = product_sources();
    let mut crates: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut sizes = Vec::new();
    for file in &sources {
        let name = if file.path.starts_with("broker/core/") {
            "broker/core"
        } else {
            file.path.split('/').next().unwrap_or_default()
        };
        let lines = code(&file.text).len();
        let entry = crates.entry(name).or_default();
        *entry = (entry.0 + 1, entry.1 + lines);
        sizes.push((lines, file.path.as_str()));
    }
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let mut report = String::new();
    for (name, (files, lines)) in crates {
        writeln!(report, "{lines:6} lines in {files:3} files  {name}").expect("writing to a string");
    }
    for (lines, path) in sizes.iter().take(10) {
        writeln!(report, "{lines:6} lines  {path}").expect("writing to a string");
    }
    println!("{report}");
}

/// Targets of `[text](target)` outside of code, without anchors and addresses.
fn local_links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            let target = target.split(['#', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                links.push((at + 1, target.to_owned()));
            }
        }
    }
    links
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut findings = Vec::new();
    for document in files(".md") {
        let dir = root().join(&document.path).parent().map(Path::to_owned).unwrap_or_default();
        for (line, target) in local_links(&document.text) {
            // In a crate's README, which is its rustdoc, a link may be a path of an item.
            let is_item = target.starts_with("crate::") || target.starts_with("self::");
            if !is_item && !dir.join(&target).exists() {
                findings.push(format!("{}:{line}: {target} does not exist", document.path));
            }
        }
    }
    demand_none(&findings);
}

#[test]
fn the_rules_find_what_they_are_for() {
    let file = |path: &str, text: &str| SourceFile { path: path.to_owned(), text: text.to_owned() };
    let names =
        |text: &str| words_outside(&file("broker/src/x.rs", text), "rocksdb", &["storage/src/"]).len();

    assert_eq!(names("use rocksdb::DB;\n"), 1);
    assert_eq!(names("// rocksdb does this\nlet my_rocksdb_path = 1;\n"), 0);
    assert_eq!(names("fn a() {}\n#[cfg(test)]\nmod tests {\n    use rocksdb::DB;\n}\n"), 0);
    assert_eq!(
        words_outside(&file("storage/src/x.rs", "rocksdb::DB"), "rocksdb", &["storage/src/"]).len(),
        0
    );
    assert_eq!(words_outside(&file("broker/src/x.rs", "    todo!()\n"), "todo!", &[]).len(), 1);
    assert_eq!(
        words_outside(&file("broker/src/x.rs", "if self.is_clustered() {"), "is_clustered", &[]).len(),
        1
    );
    assert!(too_long(&file("a.rs", &"x\n".repeat(LINES_MAX + 1))).is_some());
    assert!(too_long(&file("a.rs", &"x\n".repeat(LINES_MAX))).is_none());

    let manifest = "[package]\nname = \"levee-protocol\"\n[dependencies]\nbytes.workspace = true\n\
                    levee-storage = { path = \"../storage\" }\n[dev-dependencies]\ntokio = \"1\"\n\
                    [dependencies.rocksdb]\nversion = \"1\"\n";
    let (name, dependencies) = manifest_of(manifest).expect("a manifest");
    assert_eq!((name.as_str(), dependencies.len()), ("levee-protocol", 4));
    assert_eq!(wrong_directions(&name, &dependencies).len(), 3);
    assert_eq!(misplaced_packages(&name, &dependencies).len(), 1);
    assert_eq!(wrong_directions("levee-new", &[]).len(), 1);

    let links = local_links("[a](x.md#part) [b](https://x) ![c](y.png)\n```\n[d](z)\n```\n");
    assert_eq!(links, [(1, "x.md".to_owned()), (1, "y.png".to_owned())]);
}
