use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Memory {
    files: HashMap<String, String>,
    variables: HashMap<String, String>,
}

impl Memory {
    fn of(text: &str) -> Self {
        Self::default().file("main.conf", text)
    }

    fn file(mut self, name: &str, text: &str) -> Self {
        self.files.insert(name.to_owned(), text.to_owned());
        self
    }

    fn variable(mut self, name: &str, text: &str) -> Self {
        self.variables.insert(name.to_owned(), text.to_owned());
        self
    }

    fn parse(&self) -> Result<Block, String> {
        parse_file("main.conf", self).map_err(|problem| problem.to_string())
    }
}

impl Source for Memory {
    fn read(&self, path: &str) -> Result<String, String> {
        self.files.get(path).cloned().ok_or_else(|| format!("open {path}: no such file or directory"))
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn shown(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Integer(value) => value.to_string(),
        Value::Float(value) => format!("{value:?}"),
        Value::Text(value) => format!("{value:?}"),
        Value::Date(value) => value.clone(),
        Value::List(list) => {
            format!("[{}]", list.iter().map(|element| shown(&element.value)).collect::<Vec<_>>().join(" "))
        }
        Value::Block(block) => shown_block(block),
    }
}

fn shown_block(block: &Block) -> String {
    let entries = block.entries().map(|entry| format!("{}={}", entry.key, shown(&entry.value)));
    format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
}

fn accepts(input: &str, expected: &str) {
    assert_eq!(
        Memory::of(input).parse().map(|block| shown_block(&block)).as_deref(),
        Ok(expected),
        "{input:?}"
    );
}

fn refuses(input: &str, expected: &str) {
    assert_eq!(
        Memory::of(input).parse().map(|block| shown_block(&block)),
        Err(expected.to_owned()),
        "{input:?}"
    );
}

#[test]
fn keys_and_values_may_be_separated_in_four_ways() {
    for input in
        ["port: 4222", "port = 4222", "port 4222", "port:4222", "port=4222", "\"port\": 4222", "port\n 4222"]
    {
        accepts(input, "{port=4222}");
    }
}

#[test]
fn values_end_at_a_newline_a_comma_a_semicolon_or_a_comment() {
    for input in [
        "a: 1\nb: 2",
        "a: 1, b: 2",
        "a: 1; b: 2",
        "a: 1 # c\nb: 2",
        "a: 1 // c\nb: 2",
        "a: 1,\nb: 2;\n",
        "{a: 1\nb: 2}",
    ] {
        accepts(input, "{a=1 b=2}");
    }
    refuses(
        "a: 1 b: 2",
        "main.conf:1:5: expected a value to end with a new line, \",\" or \";\", but got 'b'",
    );
}

#[test]
fn json_is_a_configuration() {
    accepts(
        r#"{"port": 4222, "cluster": {"name": "x", "routes": ["a", "b"]}, "debug": true, "rate": -1.5}"#,
        r#"{port=4222 cluster={name="x" routes=["a" "b"]} debug=true rate=-1.5}"#,
    );
}

#[test]
fn only_a_clean_number_is_a_number_and_units_multiply() {
    let check = |input: &str, expected: &str| accepts(&format!("v: {input}"), &format!("{{v={expected}}}"));
    check("-5", "-5");
    check("1k", "1000");
    check("1K", "1000");
    check("1kb", "1024");
    check("1KiB", "1024");
    check("2mi", "2097152");
    check("1g", "1000000000");
    check("1tb", "1099511627776");
    check("1e", "1000000000000000000");
    check("1.5", "1.5");
    check("1kx", "\"1kx\"");
    check("10s", "\"10s\"");
    check("1h2m", "\"1h2m\"");
    check("127.0.0.1:4222", "\"127.0.0.1:4222\"");
    check("1_000", "\"1_000\"");
    check("+5", "\"+5\"");
    check("2016-05-04T18:53:41Z", "2016-05-04T18:53:41Z");
    check("2016-05-04", "\"2016-05-04\"");
    refuses("v: 9999999999999999999", "main.conf:1:3: integer '9999999999999999999' is out of the range");
    refuses("v: 100eb", "main.conf:1:3: integer '100eb' is out of the range");
}

#[test]
fn booleans_have_three_words_each_and_quotes_make_them_strings() {
    for word in ["true", "yes", "on", "TRUE", "Yes"] {
        accepts(&format!("v: {word}"), "{v=true}");
    }
    for word in ["false", "no", "OFF"] {
        accepts(&format!("v: {word}"), "{v=false}");
    }
    accepts("v: \"true\"", "{v=\"true\"}");
}

#[test]
fn double_quotes_have_escapes_and_single_quotes_have_none() {
    let block = Memory::of(r#"a: "x\t\n\r\"\\\x41" , b: 'x\t"'"#).parse().unwrap();

    assert_eq!(block.entry("a").unwrap().value, text("x\t\n\r\"\\A"));
    assert_eq!(block.entry("b").unwrap().value, text("x\\t\""));
    refuses("a: \"\\xZZ\"", "main.conf:1:5: expected two hexadecimal digits after '\\x'");
    refuses("a: \"\\xff\"", "main.conf:1:3: the escapes of this string are not UTF-8");
    refuses("a: \"open", "main.conf:1:3: the file ends inside a quoted string");
    assert!(Memory::of(r#"a: "\q""#).parse().unwrap_err().contains("Invalid escape character 'q'"));
}

#[test]
fn bare_strings_keep_what_looks_like_a_comment_inside() {
    accepts("url: nats://a:1\nb: a#b", "{url=\"nats://a:1\" b=\"a#b\"}");
}

#[test]
fn paths_need_no_quotes() {
    accepts("a: /tmp/x\nb /tmp/y\nc = //host", "{a=\"/tmp/x\" b=\"/tmp/y\" c=\"//host\"}");
    let parsed = Memory::of("a: $A, b: $B").variable("A", "/var/lib").variable("B", "#1").parse();
    assert_eq!(parsed.map(|block| shown_block(&block)).unwrap(), "{a=\"/var/lib\" b=\"#1\"}");
}

#[test]
fn lists_are_separated_by_commas_or_newlines() {
    accepts("v: [a, b]", "{v=[\"a\" \"b\"]}");
    accepts("v: [\na\n b # c\n]", "{v=[\"a\" \"b\"]}");
    accepts("v: [a, b,]", "{v=[\"a\" \"b\"]}");
    accepts("v: [{a: 1}, {a: 2}\n {a: 3}]", "{v=[{a=1} {a=2} {a=3}]}");
    accepts("v: []", "{v=[]}");
    refuses(
        "v: [a b]",
        "main.conf:1:6: expected a list value to end with \",\", a new line or \"]\", but got 'b'",
    );
    refuses("v: [,a]", "main.conf:1:4: unexpected ',' in a list");
    refuses("v: [a", "main.conf:1:5: the file ends inside a list: a \"]\" is missing");
}

#[test]
fn block_strings_run_to_a_closing_parenthesis_on_its_own_line() {
    accepts("v: (\n a (b)\n c\n)\nw: 1", "{v=\"\\n a (b)\\n c\\n\" w=1}");
    refuses(
        "v: (abc)",
        "main.conf:1:3: the file ends inside a block string: a \")\" on its own line is missing",
    );
}

#[test]
fn the_last_of_a_repeated_key_counts() {
    accepts("a: 1\nb: 2\na: 3", "{b=2 a=3}");
}

#[test]
fn every_key_knows_its_place() {
    let block = Memory::of("port: 1\n  bogus { a: 1 }\n").parse().unwrap();

    let at = |entry: &Entry| entry.at.to_string();
    assert_eq!(at(block.entry("port").unwrap()), "main.conf:1:0");
    assert_eq!(at(block.entry("bogus").unwrap()), "main.conf:2:3");
    let Value::Block(inner) = &block.entry("bogus").unwrap().value else { panic!("a block") };
    assert_eq!(at(inner.entry("a").unwrap()), "main.conf:2:11");
}

#[test]
fn variables_are_looked_up_outward_then_in_the_environment() {
    accepts("P: 42\ncluster { port: $P }", "{P=42 cluster={port=42}}");
    accepts("P: 1\nc { P: 2\n p: $P }\nq: $P", "{P=1 c={P=2 p=2} q=1}");
    refuses("c { P: 3 }\np: $P", "main.conf:2:4: variable reference for 'P' on line 2 can not be found");
    refuses("a: $b\nb: $a", "main.conf:1:3: variable reference for 'b' on line 1 can not be found");

    let parsed = Memory::of("a: $HOST_PORT\nb: $SIZE\nc: [$NAME, x]")
        .variable("HOST_PORT", "10.0.0.1:4222")
        .variable("SIZE", "2kb")
        .variable("NAME", "'quoted'")
        .parse();
    assert_eq!(
        parsed.map(|block| shown_block(&block)).unwrap(),
        "{a=\"10.0.0.1:4222\" b=2048 c=[\"quoted\" \"x\"]}"
    );
}

#[test]
fn a_variable_of_the_environment_that_leads_back_to_itself_is_an_error() {
    let parsed = Memory::of("a: $A").variable("A", "$B").variable("B", "$A").parse();

    assert!(parsed.unwrap_err().contains("variable reference cycle for 'A'"));
}

#[test]
fn a_bcrypt_hash_is_not_a_variable() {
    accepts("p: $2a$11$abc", "{p=\"$2a$11$abc\"}");
}

#[test]
fn a_key_that_a_variable_refers_to_is_marked() {
    let block = Memory::of("x: 4222\ny: 1\nport: $x").parse().unwrap();

    assert!(block.entry("x").unwrap().is_variable());
    assert!(!block.entry("y").unwrap().is_variable());
}

#[test]
fn an_include_is_read_beside_its_file_and_merged_in_place() {
    let files = Memory::of("a: 1\ninclude 'sub/one.conf'\nc { include ./two.conf }\nz: $x")
        .file("sub/one.conf", "a: 2\ninclude \"three.conf\"\n")
        .file("sub/three.conf", "x: 5")
        .file("two.conf", "{ inner: $a }");

    assert_eq!(shown_block(&files.parse().unwrap()), "{a=2 x=5 c={inner=2} z=5}");
}

#[test]
fn problems_in_an_included_file_name_that_file() {
    let files = Memory::of("include 'one.conf'").file("one.conf", "a: 1\nb: [\n");

    let problem = files.parse().unwrap_err();

    assert_eq!(problem, "one.conf:3:1: the file ends inside a list: a \"]\" is missing");
}

#[test]
fn an_include_that_includes_itself_or_is_missing_is_an_error() {
    let cycle = Memory::of("include 'one.conf'").file("one.conf", "include main.conf");
    assert_eq!(cycle.parse().unwrap_err(), "one.conf:1:0: include file 'main.conf' includes itself");

    refuses(
        "include 'gone.conf'",
        "main.conf:1:0: error parsing include file 'gone.conf', open gone.conf: no such file or directory",
    );
}

#[test]
fn the_same_file_may_be_included_twice_in_a_row() {
    let files = Memory::of("a { include x.conf }\nb { include x.conf }").file("x.conf", "k: 1");

    assert_eq!(shown_block(&files.parse().unwrap()), "{a={k=1} b={k=1}}");
}

#[test]
fn unbalanced_braces_are_errors() {
    refuses("a {", "main.conf:1:3: the file ends inside a block: a \"}\" is missing");
    refuses("}", "main.conf:1:0: \"}\" closes nothing");
    refuses("a: 1\n]", "main.conf:2:1: \"]\" closes nothing");
}

#[test]
fn deep_nesting_is_refused_before_the_stack_ends() {
    assert!(Memory::of(&"a{".repeat(100_000)).parse().unwrap_err().contains("nest too deep"));
    assert!(
        Memory::of(&format!("a: {}", "[".repeat(100_000))).parse().unwrap_err().contains("nest too deep")
    );
}

#[test]
fn variables_that_double_are_refused_before_memory_ends() {
    let mut input = "v0: [1, 1]\n".to_owned();
    for i in 1..40 {
        input.push_str(&format!("v{i}: [$v{}, $v{}]\n", i - 1, i - 1));
    }

    assert!(Memory::of(&input).parse().unwrap_err().contains("too many values"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_parsed_or_refused(input in ".{0,200}") {
        let _ = Memory::of(&input).variable("A", "$A").parse();
    }

    #[test]
    fn any_sequence_of_pieces_is_parsed_or_refused(
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                "a", "port", ":", "=", " ", "\n", "\r\n", "{", "}", "[", "]", "(", ")", "\"", "'", "\\", "\\x", "$a",
                "$A", "$2a$", "include", "include main.conf", "include o.conf", "1", "-", "1k", ".", ",", ";", "#", "//",
                "/", "true", "2016-05-04T18:53:41Z", "\u{e9}", "\u{feff}", "\0", "\t",
            ]),
            0..60,
        )
    ) {
        let input = pieces.concat();
        let _ = Memory::of(&input).file("o.conf", &input).variable("A", &input).parse();
    }

    #[test]
    fn a_quoted_string_comes_back(value in "[^\\\\\"]{0,50}") {
        let block = Memory::of(&format!("k: \"{value}\"")).parse().unwrap();
        prop_assert_eq!(&block.entry("k").unwrap().value, &text(&value));
    }
}
