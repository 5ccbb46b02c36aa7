use proptest::prelude::*;

use super::*;

/// What an op says, with its texts instead of spans: comparable across buffers.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Said {
    Connect(String),
    Subscribe { subject: String, queue: String, sid: String },
    Unsubscribe { sid: String, max: Option<u64> },
    Publish { subject: String, reply: String, header: String, payload: String, is_hpub: bool },
    Bare(ClientOp),
}

fn said(op: ClientOp, buf: &[u8]) -> Said {
    let text = |span: Span| String::from_utf8_lossy(span.of(buf)).into_owned();
    match op {
        ClientOp::Connect { json } => Said::Connect(text(json)),
        ClientOp::Subscribe { subject, queue, sid } => {
            Said::Subscribe { subject: text(subject), queue: text(queue), sid: text(sid) }
        }
        ClientOp::Unsubscribe { sid, max } => Said::Unsubscribe { sid: text(sid), max },
        ClientOp::Publish(op) => Said::Publish {
            subject: text(op.subject),
            reply: text(op.reply),
            header: text(op.header),
            payload: text(op.payload),
            is_hpub: op.is_hpub,
        },
        bare => Said::Bare(bare),
    }
}

/// Feeds the input in pieces, dropping what was consumed after each, as a session does. Also returns the most bytes
/// that had to be kept for an unfinished op.
fn feed<'a>(
    limits: Limits,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Said>, Option<ProtocolError>, usize) {
    let mut parser = Parser::new(limits);
    let mut buf = Vec::new();
    let mut ops = Vec::new();
    let mut kept_max = 0;
    for piece in pieces {
        buf.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match parser.next(&buf, at) {
                Ok(Some((op, next))) => {
                    assert!(next > at && next <= buf.len());
                    ops.push(said(op, &buf));
                    at = next;
                }
                Ok(None) => break,
                Err(error) => return (ops, Some(error), kept_max),
            }
        }
        assert!(parser.needed() == 0 || parser.needed() > buf.len());
        buf.drain(..at);
        parser.rebase(at);
        kept_max = kept_max.max(buf.len());
    }
    (ops, None, kept_max)
}

fn parse(input: &str) -> (Vec<Said>, Option<ProtocolError>) {
    let (ops, error, _) = feed(Limits::default(), [input.as_bytes()]);
    (ops, error)
}

fn publish(subject: &str, reply: &str, payload: &str) -> Said {
    Said::Publish {
        subject: subject.into(),
        reply: reply.into(),
        header: String::new(),
        payload: payload.into(),
        is_hpub: false,
    }
}

fn check(input: &str, expected: Said) {
    assert_eq!(parse(input), (vec![expected], None), "{input:?}");
}

fn refused(input: &str, wire_text: Option<&str>) {
    let (_, error) = parse(input);
    let error = error.unwrap_or_else(|| panic!("{input:?} was taken"));
    assert_eq!(error.wire_text(), wire_text, "{input:?}");
}

const UNKNOWN: Option<&str> = Some("Unknown Protocol Operation");

#[test]
fn publishes_have_an_optional_reply_and_a_counted_payload() {
    check("PUB foo 2\r\nhi\r\n", publish("foo", "", "hi"));
    check("PUB foo.bar _INBOX.1 5\r\na\r\nbc\r\n", publish("foo.bar", "_INBOX.1", "a\r\nbc"));
    check("PUB foo 0\r\n\r\n", publish("foo", "", ""));
    check("PUB foo 002\r\nhi\r\n", publish("foo", "", "hi"));
}

#[test]
fn header_publishes_split_header_and_body() {
    let expected = |reply: &str| Said::Publish {
        subject: "h".into(),
        reply: reply.into(),
        header: "NATS/1.0\r\nBar: Baz\r\n\r\n".into(),
        payload: "hi".into(),
        is_hpub: true,
    };

    check("HPUB h 22 24\r\nNATS/1.0\r\nBar: Baz\r\n\r\nhi\r\n", expected(""));
    check("hpub h r 22 24\r\nNATS/1.0\r\nBar: Baz\r\n\r\nhi\r\n", expected("r"));
}

#[test]
fn header_bytes_are_not_validated() {
    check(
        "HPUB h 4 6\r\nABCDhi\r\n",
        Said::Publish {
            subject: "h".into(),
            reply: String::new(),
            header: "ABCD".into(),
            payload: "hi".into(),
            is_hpub: true,
        },
    );
}

#[test]
fn published_subjects_are_not_validated() {
    check("PUB foo.* 1\r\nx\r\n", publish("foo.*", "", "x"));
    check("PUB foo..bar 1\r\nx\r\n", publish("foo..bar", "", "x"));
}

#[test]
fn subscriptions_have_an_optional_queue() {
    let expected =
        |queue: &str| Said::Subscribe { subject: "a.>".into(), queue: queue.into(), sid: "7".into() };

    check("SUB a.> 7\r\n", expected(""));
    check("SUB a.> workers 7\r\n", expected("workers"));
}

#[test]
fn unsubscriptions_have_an_optional_count() {
    check("UNSUB 7\r\n", Said::Unsubscribe { sid: "7".into(), max: None });
    check("UNSUB 7 10\r\n", Said::Unsubscribe { sid: "7".into(), max: Some(10) });
    check("UNSUB 7 x\r\n", Said::Unsubscribe { sid: "7".into(), max: Some(0) });
    check("UNSUB 7 -2\r\n", Said::Unsubscribe { sid: "7".into(), max: Some(0) });
}

#[test]
fn connect_takes_the_rest_of_its_line() {
    check("CONNECT {\"a\": 1}\r\n", Said::Connect("{\"a\": 1}".into()));
    check("connect   {} \n", Said::Connect("{} ".into()));
    check("CONNECT{}\r\n", Said::Connect("{}".into()));
    check("CONNECT\r\n", Said::Connect(String::new()));
}

#[test]
fn bare_operations_may_have_text_behind_them() {
    for (input, op) in [
        ("PING\r\n", ClientOp::Ping),
        ("PONG\r\n", ClientOp::Pong),
        ("PING x\r\n", ClientOp::Ping),
        ("+OK\r\n", ClientOp::Ok),
        ("+ok now\r\n", ClientOp::Ok),
        ("INFO {}\r\n", ClientOp::Info),
        ("-ERR 'why'\r\n", ClientOp::Err),
    ] {
        check(input, Said::Bare(op));
    }
}

#[test]
fn verbs_have_no_case() {
    check("pub foo 2\r\nhi\r\n", publish("foo", "", "hi"));
    check("PuB foo 2\r\nhi\r\n", publish("foo", "", "hi"));
    check("pInG\r\n", Said::Bare(ClientOp::Ping));
    check("uNsUb 1\r\n", Said::Unsubscribe { sid: "1".into(), max: None });
    check("sub A b\r\n", Said::Subscribe { subject: "A".into(), queue: String::new(), sid: "b".into() });
}

#[test]
fn any_run_of_blanks_separates() {
    check("PUB\tfoo\t2\r\nhi\r\n", publish("foo", "", "hi"));
    check("PUB  foo \t r   2  \r\nhi\r\n", publish("foo", "r", "hi"));
    check(
        "SUB\t \ta\t1 \r\n",
        Said::Subscribe { subject: "a".into(), queue: String::new(), sid: "1".into() },
    );
}

#[test]
fn a_bare_line_feed_ends_control_lines_but_not_payloads() {
    check("PING\n", Said::Bare(ClientOp::Ping));
    check("PUB foo 2\nhi\r\n", publish("foo", "", "hi"));
    refused("PUB foo 2\r\nhi\n", UNKNOWN);
}

#[test]
fn arguments_never_hold_a_carriage_return() {
    check("PUB foo\rbar 2\r\nhi\r\n", publish("foo", "bar", "hi"));
}

#[test]
fn control_bytes_that_do_not_separate_belong_to_the_argument() {
    check("PUB foo\x01bar\x1f\x00z 2\r\nhi\r\n", publish("foo\x01bar\x1f\0z", "", "hi"));
    refused("PUB\0foo 2\r\nhi\r\n", UNKNOWN);
}

#[test]
fn what_is_not_a_client_operation_is_refused_at_its_first_wrong_byte() {
    for input in
        ["FOO\r\n", "X", "\r\n", " PING\r\n", "PANG", "PUX", "PUBx", "PUB\r\n", "SUBx", "CONNEXT", "\0"]
    {
        refused(input, UNKNOWN);
    }
    for input in
        ["MSG a 1 2\r\n", "HMSG a", "RMSG a", "RS+ a", "LS+ a", "A+ a\r\n", "-OK\r\n", "+ERR", "-ERR\r\n"]
    {
        refused(input, UNKNOWN);
    }
}

#[test]
fn bad_arguments_close_without_a_word() {
    for input in [
        "PUB foo\r\n",
        "PUB \r\n",
        "PUB a b 1 2\r\n",
        "PUB a b c d e f 2\r\n",
        "PUB foo x\r\n",
        "PUB foo -1\r\n",
        "PUB foo 1x\r\n",
        "PUB foo 9999999999\r\n",
        "HPUB a 2\r\n",
        "HPUB a 4 2\r\n",
        "HPUB a b 1 2 3\r\n",
        "HPUB a x 2\r\n",
        "HPUB a -1 2\r\n",
        "SUB a\r\n",
        "SUB \r\n",
        "SUB a b c d\r\n",
        "UNSUB \r\n",
        "UNSUB 1 2 3\r\n",
    ] {
        refused(input, None);
    }
}

#[test]
fn a_payload_ends_exactly_where_it_was_announced() {
    refused("PUB foo 2\r\nabcd\r\nPING\r\n", UNKNOWN);
    refused("PUB foo 2\r\nabc", UNKNOWN);
    refused("PUB foo 4\r\nab\r\nPING\r\n", UNKNOWN);
    refused("PUB foo 2\r\nab\rx", UNKNOWN);
}

#[test]
fn too_big_a_payload_is_refused_before_it_arrives() {
    refused("PUB foo 9999999\r\n", Some("Maximum Payload Violation"));
    refused("HPUB foo 1 1048577\r\n", Some("Maximum Payload Violation"));
    assert_eq!(parse("PUB foo 1048576\r\n"), (vec![], None));
}

#[test]
fn the_payload_limit_may_change_between_messages() {
    let mut parser = Parser::new(Limits::default());
    parser.set_max_payload(1);

    let error = parser.next(b"PUB foo 2\r\nhi\r\n", 0).unwrap_err();

    assert_eq!(error, ProtocolError::MaxPayload { size: 2, limit: 1 });
    assert_eq!(error.close_reason(), "Maximum Message Payload Exceeded");
}

#[test]
fn a_control_line_may_be_exactly_as_long_as_the_limit() {
    let limits = Limits { max_control_line: 10, ..Limits::default() };
    let over = Some(ProtocolError::MaxControlLine { limit: 10 });
    let parse = |input: &str| {
        let (ops, error, _) = feed(limits, [input.as_bytes()]);
        (ops.len(), error)
    };

    for verb in ["SUB", "sub"] {
        assert_eq!(parse(&format!("{verb} 12345678 1\r\n")), (1, None));
        assert_eq!(parse(&format!("{verb} 12345678 1\n")), (1, None));
        assert_eq!(parse(&format!("{verb} 12345678 12\r\n")), (0, over));
        assert_eq!(parse(&format!("{verb} 12345678 12\n")), (0, over));
    }
    assert_eq!(parse("PUB 12345678 1\r\nx\r\n"), (1, None));
    assert_eq!(parse("PUB 123456789 1\r\nx\r\n"), (0, over));
    assert_eq!(parse("CONNECT {\"a\": 123}\r\n"), (1, None));
    assert_eq!(parse("CONNECT {\"a\": 1234}\r\n"), (0, over));
    assert_eq!(parse("PING 1234567890\r\n"), (1, None));
    assert_eq!(parse("PING 12345678901\r\n"), (0, over));
    assert_eq!(over.and_then(|error| error.wire_text()), Some("maximum control line exceeded"));
}

#[test]
fn an_endless_control_line_is_given_up_at_the_limit() {
    for verb in ["PUB ", "CONNECT ", "PING", "SUB ", "INFO "] {
        let endless = [verb.as_bytes(), &[b'x'; 10_000]].concat();

        let (ops, error, kept_max) = feed(Limits::default(), endless.chunks(1));

        assert_eq!((ops, error), (vec![], Some(ProtocolError::MaxControlLine { limit: 4096 })));
        assert!(kept_max < 4096 + 12);
    }
}

#[test]
fn an_endless_run_of_blanks_is_given_up_too() {
    let endless = [b"PUB ".as_slice(), &[b' '; 10_000]].concat();

    let (_, error, _) = feed(Limits::default(), endless.chunks(7));

    assert_eq!(error, Some(ProtocolError::MaxControlLine { limit: 4096 }));
}

#[test]
fn a_pending_payload_tells_how_long_the_slice_has_to_become() {
    let mut parser = Parser::new(Limits::default());
    let whole = b"PING\r\nPUB foo 5\r\nhello\r\n";

    let (_, at) = parser.next(&whole[..20], 0).unwrap().unwrap();
    assert_eq!(parser.needed(), 0);
    assert_eq!(parser.next(&whole[..20], at), Ok(None));
    assert_eq!(parser.needed(), whole.len());
    parser.rebase(at);
    assert_eq!(parser.needed(), whole.len() - at);

    let (op, next) = parser.next(&whole[at..], 0).unwrap().unwrap();
    assert_eq!(said(op, &whole[at..]), publish("foo", "", "hello"));
    assert_eq!(next, whole.len() - at);
    assert_eq!(parser.needed(), 0);
}

#[test]
fn an_absent_reply_stays_absent_when_the_buffer_moves_under_a_pending_payload() {
    let (ops, error, _) = feed(Limits::default(), [b"PING\r\nPUB foo 2\r\n".as_slice(), b"hi\r\n"]);

    assert_eq!((ops, error), (vec![Said::Bare(ClientOp::Ping), publish("foo", "", "hi")], None));
}

#[test]
fn what_was_remembered_about_other_bytes_is_not_used() {
    let mut parser = Parser::new(Limits::default());
    assert_eq!(parser.next(b"..PUB foo 500\r\n", 2), Ok(None));

    let (op, _) = parser.next(b"PUB bar 2\r\nhi\r\n", 0).unwrap().unwrap();

    assert_eq!(said(op, b"PUB bar 2\r\nhi\r\n"), publish("bar", "", "hi"));
}

#[test]
fn parsing_past_the_end_needs_more_bytes() {
    let mut parser = Parser::new(Limits::default());

    assert_eq!(parser.next(b"", 0), Ok(None));
    assert_eq!(parser.next(b"PING\r\n", 6), Ok(None));
    assert_eq!(parser.next(b"PING\r\n", 60), Ok(None));
}

#[test]
fn limits_of_any_size_do_not_overflow() {
    let limits = Limits { max_control_line: usize::MAX, max_payload: usize::MAX };

    let (ops, error, _) = feed(limits, [b"PUB foo 999999999\r\nabc".as_slice()]);

    assert_eq!((ops, error), (vec![], None));
}

/// One valid op as text.
fn any_op() -> impl Strategy<Value = Vec<u8>> {
    let token = "[a-z.$*>]{1,20}";
    let blank = "[ \t]{1,3}";
    let end = prop::sample::select(vec!["\r\n", "\n"]);
    let bytes = prop::collection::vec(any::<u8>(), 0..80);
    let header = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
    prop_oneof![
        Just(b"PING\r\n".to_vec()),
        Just(b"pong\n".to_vec()),
        Just(b"+OK\r\n".to_vec()),
        Just(b"CONNECT {\"verbose\":false}\r\n".to_vec()),
        (token, prop::option::of(token), "[0-9]{1,4}", blank, end.clone()).prop_map(
            |(subject, queue, sid, blank, end)| {
                let queue = queue.map(|queue| format!("{blank}{queue}")).unwrap_or_default();
                format!("SUB{blank}{subject}{queue}{blank}{sid}{end}").into_bytes()
            }
        ),
        ("[0-9]{1,4}", 0..100_u8).prop_map(|(sid, max)| format!("UNSUB {sid} {max}\r\n").into_bytes()),
        (token, prop::option::of(token), header, bytes, blank, end).prop_map(
            |(subject, reply, header, payload, blank, end)| {
                let reply = reply.map(|reply| format!("{blank}{reply}")).unwrap_or_default();
                let mut text = match &header {
                    Some(header) => {
                        let size = header.len() + payload.len();
                        format!("HPUB{blank}{subject}{reply}{blank}{}{blank}{size}{end}", header.len())
                    }
                    None => format!("PUB{blank}{subject}{reply}{blank}{}{end}", payload.len()),
                }
                .into_bytes();
                text.extend(header.into_iter().flatten());
                text.extend(payload);
                text.extend(CRLF);
                text
            }
        ),
    ]
}

/// Bytes that get far into the parser before they go wrong.
fn any_garbage() -> impl Strategy<Value = Vec<u8>> {
    let words = vec![
        "PUB ", "HPUB ", "SUB ", "UNSUB ", "PING", "CONNECT ", "-ERR ", "\r\n", "\n", "\r", " ", "a.b ", "2",
        "7 ",
    ];
    let word = prop_oneof![
        8 => prop::sample::select(words).prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(word, 0..30).prop_map(|words| words.concat())
}

/// Cuts the input at these places, taken modulo its length.
fn cut<'a>(input: &'a [u8], places: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<_> = places.iter().map(|place| place % (input.len() + 1)).collect();
    places.extend([0, input.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect()
}

const TIGHT: Limits = Limits { max_control_line: 24, max_payload: 48 };

proptest! {
    #[test]
    fn valid_input_gives_the_same_ops_however_it_is_split(
        ops in prop::collection::vec(any_op(), 1..12),
        places in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let input = ops.concat();
        let whole = feed(Limits::default(), [input.as_slice()]);
        prop_assert_eq!((whole.0.len(), whole.1), (ops.len(), None));

        let (split, error, _) = feed(Limits::default(), cut(&input, &places));
        prop_assert_eq!((&split, error), (&whole.0, None));
        let (dribbled, error, _) = feed(Limits::default(), input.chunks(1));
        prop_assert_eq!((&dribbled, error), (&whole.0, None));
    }

    #[test]
    fn any_input_gives_the_same_ops_and_the_same_error_however_it_is_split(
        input in prop_oneof![any_garbage(), prop::collection::vec(any_op(), 1..6).prop_map(|ops| ops.concat())],
        places in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let (ops, error, _) = feed(TIGHT, [input.as_slice()]);

        let (split, split_error, _) = feed(TIGHT, cut(&input, &places));
        prop_assert_eq!((&split, split_error), (&ops, error));
        let (dribbled, dribbled_error, _) = feed(TIGHT, input.chunks(1));
        prop_assert_eq!((&dribbled, dribbled_error), (&ops, error));
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_pile_up(
        input in prop_oneof![any_garbage(), prop::collection::vec(any::<u8>(), 0..300)],
        size in 1_usize..40,
    ) {
        let (_, _, kept_max) = feed(TIGHT, input.chunks(size));

        // A control line and a payload, each with its line end, and one more read.
        let bound = "CONNECT ".len() + TIGHT.max_control_line + TIGHT.max_payload + 2 * CRLF.len() + size;
        prop_assert!(kept_max <= bound, "{kept_max} bytes kept");
    }

    #[test]
    fn separators_are_found_where_a_plain_search_finds_them(
        bytes in prop::collection::vec(prop_oneof![4 => 0x21_u8.., 1 => 0_u8..0x21], 0..40),
        from in 0_usize..40,
    ) {
        let from = from.min(bytes.len());
        let expected = bytes[from..].iter().position(|&byte| is_separator(byte)).map(|offset| from + offset);
        prop_assert_eq!(argument_end(&bytes, from), expected);
    }
}
