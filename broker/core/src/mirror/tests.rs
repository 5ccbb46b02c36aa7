//! Origins and the streams that mirror or source them, as machines: what is read, proposed and stored.

use levee_protocol::api::{PurgeRequest, RetentionPolicy, StreamConfig, StreamSource, SubjectTransform};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::Seq;
use levee_protocol::mirror::{FetchAnswer, FetchRequest, Reader};
use levee_protocol::record::{Block, BlockBuilder, RecordFlags, RecordRef};
use levee_protocol::time::{Nanos, Timestamp};
use levee_protocol::wire::headers::HeaderBlock;

use super::{Ask, Copied, Copier, Puller, readers, server};
use crate::stream::mirror::Origin;
use crate::stream::{Change, Outcome, PublishReply, Reply};
use crate::testing::Bench;

/// A stream, and time for it.
struct Stream {
    bench: Bench,
    now: i64,
}

impl Stream {
    fn new(config: StreamConfig) -> Self {
        let mut stream = Self { bench: Bench::default(), now: 0 };
        stream.configure(config, 1);
        stream
    }

    fn configure(&mut self, config: StreamConfig, created: i64) {
        self.now += 1;
        let (now, created) = (Timestamp(self.now), Timestamp(created));
        self.bench.apply(&StreamCommand::Configure { now, created, config: Box::new(config) });
    }

    fn publish(&mut self, subject: &str, header: &str, body: &str) -> PublishReply {
        self.now += 1;
        let mut block = BlockBuilder::default();
        let header = if header.is_empty() { String::new() } else { format!("NATS/1.0\r\n{header}\r\n\r\n") };
        block.push(subject.as_bytes(), header.as_bytes(), body.as_bytes());
        let outcome = self.apply(&block.finish(Timestamp(self.now)));
        replies(outcome).remove(0)
    }

    /// Applies, and checks that nothing of it lives outside of the rows.
    fn apply(&mut self, block: &Block) -> Outcome {
        let outcome = self.bench.apply(&StreamCommand::Publish(block.clone()));
        self.bench.checkpoint();
        assert_eq!(self.bench.loaded().all_rows(), self.bench.machine.all_rows());
        outcome
    }

    fn delete(&mut self, seq: u64) {
        self.bench.apply(&StreamCommand::DeleteMessage { now: Timestamp(self.now), seq: Seq(seq) });
    }

    fn purge(&mut self) {
        self.bench
            .apply(&StreamCommand::Purge { now: Timestamp(self.now), request: PurgeRequest::default() });
    }

    fn ask(&self, puller: &mut Puller) -> FetchAnswer {
        let request = puller.ask(Ask::AtOnce, Timestamp(self.now));
        let answer = server::answer(&self.bench.machine, &self.bench.view, &request).unwrap();
        puller.on_answer(&answer, Timestamp(self.now));
        answer
    }

    /// What the stream would propose next for an answer.
    fn next_block(&self, copier: &Copier, answer: &FetchAnswer) -> Option<Block> {
        let messages = answer.messages().unwrap()?;
        let copied = Copied {
            identity: &answer.identity,
            born: answer.born,
            restored_to: answer.restored_to,
            block: &messages,
            seqs: &answer.seqs,
            through: answer.through,
        };
        let view = (&self.bench.machine, &self.bench.view as _);
        copier.block(view, &copied, Timestamp(self.now + 1000), &mut || 0).unwrap().unwrap()
    }

    /// Stores everything that the origin has; gives the blocks.
    fn catch_up(&mut self, copier: &Copier, origin: &Self) -> Vec<Block> {
        let source = copier.source();
        let mut puller = match copier.mirrors() {
            true => Puller::of_mirror(source, self.bench.machine.last_seq().0),
            false => Puller::of_source(source, &self.bench.machine.source(copier.key())),
        };
        let mut blocks = Vec::new();
        loop {
            let answer = origin.ask(&mut puller);
            while let Some(block) = self.next_block(copier, &answer) {
                let stored = replies(self.apply(&block));
                assert!(!stored[1..].contains(&PublishReply::Outdated), "{stored:?}");
                blocks.push(block);
            }
            if answer.through >= answer.last_seq {
                return blocks;
            }
        }
    }

    /// Sequence, time, subject and body of every message.
    fn messages(&self) -> Vec<(u64, i64, String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        self.bench
            .view
            .records()
            .map(|record| (record.seq.0, record.timestamp.0, text(&record.subject), text(&record.payload)))
            .collect()
    }

    fn bodies(&self) -> Vec<String> {
        self.messages().into_iter().map(|(_, _, _, body)| body).collect()
    }

    fn header(&self, seq: u64, name: &str) -> Option<String> {
        let record = self.bench.view.records().find(|record| record.seq.0 == seq)?;
        HeaderBlock(&record.header).get_str(name).map(str::to_owned)
    }
}

fn replies(outcome: Outcome) -> Vec<PublishReply> {
    match outcome.reply {
        Reply::Publish(replies) => replies,
        other => panic!("{other:?}"),
    }
}

fn origin(name: &str) -> Stream {
    Stream::new(StreamConfig {
        name: name.into(),
        subjects: vec![format!("{}.>", name.to_ascii_lowercase())],
        ..limitless()
    })
}

fn limitless() -> StreamConfig {
    StreamConfig {
        max_msgs: -1,
        max_bytes: -1,
        max_msgs_per_subject: -1,
        max_msg_size: -1,
        ..StreamConfig::default()
    }
}

fn source(name: &str) -> StreamSource {
    StreamSource { name: name.into(), ..StreamSource::default() }
}

fn mirror(of: StreamSource, config: StreamConfig) -> (Stream, Copier) {
    let copier = Copier::of_mirror(&of).unwrap();
    (Stream::new(StreamConfig { name: "M".into(), mirror: Some(of), ..config }), copier)
}

fn gathering(sources: &[StreamSource], config: StreamConfig) -> (Stream, Vec<Copier>) {
    let copiers = sources.iter().map(|source| Copier::of_source(source).unwrap()).collect();
    (Stream::new(StreamConfig { name: "G".into(), sources: sources.to_vec(), ..config }), copiers)
}

#[test]
fn a_mirror_has_the_sequences_times_and_gaps_of_its_origin() {
    let mut origin = origin("O");
    for body in ["1", "2", "3", "4", "5"] {
        origin.publish("o.a", "", body);
    }
    origin.delete(2);
    origin.delete(4);
    let (mut mirror, copier) = mirror(source("O"), limitless());

    mirror.catch_up(&copier, &origin);

    assert_eq!(mirror.messages(), origin.messages());
    let (here, there) = (mirror.bench.machine.state(), origin.bench.machine.state());
    assert_eq!((here.first_seq, here.last_seq, here.num_deleted), (there.first_seq, there.last_seq, 2));
    assert_eq!((here.first_ts, here.last_ts, here.bytes), (there.first_ts, there.last_ts, there.bytes));
    origin.publish("o.b", "", "6");
    mirror.catch_up(&copier, &origin);
    assert_eq!(mirror.messages(), origin.messages());
}

#[test]
fn a_block_that_comes_twice_or_too_early_or_too_late_changes_nothing() {
    let mut origin = origin("O");
    let (mut mirror, copier) = mirror(source("O"), limitless());
    let (mut gathering, copiers) = gathering(&[source("O")], limitless());
    let mut blocks = (Vec::new(), Vec::new());
    for body in ["1", "2", "3"] {
        origin.publish("o.a", "", body);
        blocks.0.extend(mirror.catch_up(&copier, &origin));
        blocks.1.extend(gathering.catch_up(&copiers[0], &origin));
    }
    let expected = (mirror.messages(), gathering.messages());

    let (mut fresh_mirror, _) = self::mirror(source("O"), limitless());
    let (mut fresh_gathering, _) = self::gathering(&[source("O")], limitless());
    for order in [2, 1, 0, 0, 2, 1, 0, 2, 1, 2] {
        fresh_mirror.apply(&blocks.0[order]);
        fresh_gathering.apply(&blocks.1[order]);
    }

    assert_eq!((fresh_mirror.messages(), fresh_gathering.messages()), expected);
}

#[test]
fn a_long_gap_ends_a_block_and_costs_no_records() {
    let mut origin = origin("O");
    for number in 0..300 {
        origin.publish(if number % 150 == 0 { "o.a" } else { "o.b" }, "", &number.to_string());
    }
    let filtered = StreamSource { filter_subject: "o.a".into(), ..source("O") };
    let (mut mirror, copier) = mirror(filtered, limitless());

    let blocks = mirror.catch_up(&copier, &origin);

    assert_eq!(blocks.iter().map(Block::count).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(mirror.messages().iter().map(|message| message.0).collect::<Vec<_>>(), [1, 151]);
    let state = mirror.bench.machine.state();
    assert_eq!((state.messages, state.last_seq, state.num_deleted), (2, Seq(151), 149));
}

#[test]
fn a_mirror_skips_what_its_origin_has_no_more_and_stores_what_comes_then() {
    let mut origin = origin("O");
    for body in ["1", "2", "3"] {
        origin.publish("o.a", "", body);
    }
    origin.purge();
    let (mut mirror, copier) = mirror(source("O"), limitless());
    let nothing = origin.ask(&mut Puller::of_mirror(&source("O"), 0));
    let skip = copier.skip(&mirror.bench.machine, &nothing, Timestamp(50)).unwrap();

    let outcome = mirror.apply(&skip);

    assert_eq!(outcome.changes, Vec::<Change>::new());
    let state = mirror.bench.machine.state();
    assert_eq!((state.first_seq, state.last_seq), (Seq(4), Seq(3)));
    assert_eq!(copier.skip(&mirror.bench.machine, &nothing, Timestamp(50)), None);
    origin.publish("o.a", "", "4");
    mirror.catch_up(&copier, &origin);
    assert_eq!(mirror.messages(), origin.messages());
}

#[test]
fn a_mirror_that_is_promoted_takes_no_more_copies_and_goes_on_counting() {
    let mut origin = origin("O");
    origin.publish("o.a", "", "1");
    let (mut mirror, copier) = mirror(source("O"), limitless());
    mirror.catch_up(&copier, &origin);
    origin.publish("o.a", "", "2");
    let late = mirror.next_block(&copier, &origin.ask(&mut Puller::of_mirror(&source("O"), 1))).unwrap();

    mirror.configure(StreamConfig { name: "M".into(), subjects: vec!["m".into()], ..limitless() }, 1);

    assert_eq!(replies(mirror.apply(&late)), [PublishReply::Outdated, PublishReply::Outdated]);
    assert_eq!(mirror.publish("m", "", "own"), PublishReply::Stored { seq: Seq(2), before: Seq(0) });
}

#[test]
fn limits_of_a_mirror_are_its_own_and_one_that_refuses_stands_still() {
    let mut origin = origin("O");
    for body in ["1", "2", "3"] {
        origin.publish("o.a", "", body);
    }
    let (mut newest, copier) = mirror(source("O"), StreamConfig { max_msgs: 2, ..limitless() });
    let discard = levee_protocol::api::DiscardPolicy::New;
    let (mut first, _) = mirror(source("O"), StreamConfig { max_msgs: 2, discard, ..limitless() });
    newest.catch_up(&copier, &origin);
    let block = first.next_block(&copier, &origin.ask(&mut Puller::of_mirror(&source("O"), 0))).unwrap();

    let stored = replies(first.apply(&block));

    assert_eq!(newest.bodies(), ["2", "3"]);
    assert_eq!(first.bodies(), ["1", "2"]);
    assert!(matches!(&stored[3], PublishReply::Rejected(error) if error.err_code == 10077), "{stored:?}");
    assert_eq!(first.bench.machine.last_seq(), Seq(2));
    first.purge();
    first.catch_up(&copier, &origin);
    assert_eq!(first.bodies(), ["3"]);
}

#[test]
fn a_source_is_rewritten_and_says_where_it_is_from() {
    let mut origin = origin("O");
    origin.publish("o.a", "A: b", "0");
    let transforms = [("o.a", "x.a"), ("o.b", "")];
    let transforms = transforms.map(|(src, dest)| SubjectTransform { src: src.into(), dest: dest.into() });
    let rewritten = StreamSource { subject_transforms: transforms.to_vec(), ..source("O") };
    let (mut gathering, copiers) = gathering(&[rewritten], limitless());

    gathering.catch_up(&copiers[0], &origin);

    let identity = server::identity(&origin.bench.machine);
    let messages = gathering.messages();
    assert_eq!((messages[0].0, &messages[0].2[..], &messages[0].3[..]), (1, "x.a", "0"));
    assert_eq!(
        gathering.header(1, "Nats-Stream-Source"),
        Some(format!("O 1 o.a\u{c}o.b x.a\u{c}> o.a {identity}"))
    );
    assert_eq!(gathering.header(1, "A"), Some("b".into()));
}

#[test]
fn headers_that_were_for_the_origin_do_not_go_further() {
    let mut origin =
        Stream::new(StreamConfig { name: "O".into(), subjects: vec!["o".into()], ..limitless() });
    origin.publish("o", "Nats-Expected-Last-Sequence: 0\r\nNats-Msg-Id: one\r\nNats-Rollup: x", "1");
    origin.publish("o", "Nats-Expected-Stream: O\r\nA: b", "2");
    let (mut mirror, copier) = mirror(source("O"), limitless());
    let (mut gathering, copiers) = gathering(&[source("O")], limitless());

    mirror.catch_up(&copier, &origin);
    gathering.catch_up(&copiers[0], &origin);

    assert_eq!(origin.bodies(), ["2"], "a rollup is not allowed");
    for (stream, seq) in [(&mirror, 1), (&gathering, 1)] {
        assert_eq!(stream.header(seq, "Nats-Expected-Stream"), None);
        assert_eq!(stream.header(seq, "A"), Some("b".into()));
    }
    assert_eq!(mirror.header(1, "Nats-Stream-Source"), None);
}

#[test]
fn several_sources_are_gathered_each_once_and_ids_within_the_window_too() {
    let (mut one, mut two) = (origin("ONE"), origin("TWO"));
    for number in 0..4 {
        one.publish("one.a", &format!("Nats-Msg-Id: {number}"), &format!("one {number}"));
        two.publish("two.a", &format!("Nats-Msg-Id: {}", number + 2), &format!("two {number}"));
    }
    let sources = [
        source("ONE"),
        StreamSource { opt_start_seq: 2, ..source("TWO") },
        StreamSource { filter_subject: "one.none".into(), ..source("ONE") },
    ];
    let window = Nanos::from_secs(1);
    let (mut gathering, copiers) =
        gathering(&sources, StreamConfig { duplicate_window: window, ..limitless() });

    gathering.catch_up(&copiers[0], &one);
    gathering.catch_up(&copiers[1], &two);
    gathering.catch_up(&copiers[2], &one);

    assert_eq!(gathering.bodies(), ["one 0", "one 1", "one 2", "one 3", "two 2", "two 3"]);
    let seq = |copier: &Copier| gathering.bench.machine.source(copier.key()).seq;
    assert_eq!(copiers.iter().map(seq).collect::<Vec<_>>(), [4, 4, 0]);
}

#[test]
fn an_origin_that_is_created_again_is_read_from_its_beginning() {
    let mut before = origin("O");
    for body in ["1", "2", "3"] {
        before.publish("o.a", "", body);
    }
    let (mut gathering, copiers) = gathering(&[source("O")], limitless());
    let late = gathering.catch_up(&copiers[0], &before);
    let mut after = origin("O");
    let config = after.bench.machine.config().unwrap().clone();
    after.bench = Bench::default();
    after.configure(config, 2);
    after.publish("o.a", "", "again");

    gathering.catch_up(&copiers[0], &after);
    gathering.apply(&late[0]);

    assert_eq!(gathering.bodies(), ["1", "2", "3", "again"]);
    assert_eq!(gathering.bench.machine.source(copiers[0].key()).seq, 1);
}

/// Saves a stream to an archive's commands, as far as this sequence, and restores it as another incarnation.
fn restored(from: &Stream, config: StreamConfig, last: u64, created: i64) -> Stream {
    let mut stream = Stream { bench: Bench::default(), now: 5000 };
    stream.configure(config, created);
    let now = Timestamp(stream.now);
    stream.bench.apply(&StreamCommand::RestoreBegin { now, first: Seq(1) });
    let mut block = BlockBuilder::placed(Seq(1), 0);
    for record in from.bench.view.records().filter(|record| record.seq.0 <= last) {
        let timestamp = record.timestamp;
        let (subject, header, payload) = (&record.subject, &record.header, &record.payload);
        block.push_timed(RecordFlags::PUBLISHED, &RecordRef { timestamp, subject, header, payload });
    }
    assert_eq!(stream.bench.apply(&StreamCommand::Restore(block.finish(now))).reply, Reply::None);
    let end = StreamCommand::RestoreEnd { now, last: Seq(last), last_time: now };
    assert_eq!(stream.bench.apply(&end).reply, Reply::None);
    stream
}

#[test]
fn what_comes_back_from_an_archive_goes_on_where_it_was() {
    let mut origin = origin("O");
    let (mut mirror, mirrors) = mirror(source("O"), limitless());
    let (mut gathering, copiers) = gathering(&[source("O")], limitless());
    let sources = &copiers[0];
    for body in ["1", "2", "3", "4"] {
        origin.publish("o.a", "", body);
    }
    mirror.catch_up(&mirrors, &origin);
    gathering.catch_up(sources, &origin);
    let config = |stream: &Stream| stream.bench.machine.config().unwrap().clone();
    let mut mirror = restored(&mirror, config(&mirror), 3, 20);
    let mut again = restored(&gathering, config(&gathering), 3, 20);
    assert_eq!((again.bench.machine.source(sources.key()).seq, again.bodies().len()), (3, 3));

    origin.publish("o.a", "", "5");
    mirror.catch_up(&mirrors, &origin);
    again.catch_up(sources, &origin);

    assert_eq!(mirror.bodies(), ["1", "2", "3", "4", "5"]);
    assert_eq!(again.bodies(), ["1", "2", "3", "4", "5"]);
    assert_eq!(again.bench.machine.source(sources.key()), gathering_of(&origin, 5));
}

fn gathering_of(origin: &Stream, seq: u64) -> Origin {
    Origin { identity: server::identity(&origin.bench.machine), born: 1, seq }
}

#[test]
fn an_origin_that_comes_back_from_an_archive_is_read_on_from_where_both_were() {
    let mut first = origin("O");
    let (mut gathering, copiers) = gathering(&[source("O")], limitless());
    let sources = &copiers[0];
    for body in ["1", "2", "3", "4"] {
        first.publish("o.a", "", body);
    }
    gathering.catch_up(sources, &first);
    let config = first.bench.machine.config().unwrap().clone();
    let gathered = gathering.bench.machine.config().unwrap().clone();

    // The older archive of the two is the origin's, then that of the stream that reads it, then both came back.
    for (origin_last, has, expected) in [
        (2, 4, vec!["1", "2", "3", "4", "new"]),
        (4, 2, vec!["1", "2", "3", "4", "new"]),
        (4, 4, vec!["1", "2", "3", "4", "new"]),
    ] {
        let mut origin = restored(&first, config.clone(), origin_last, 30);
        let mut stream = restored(&gathering, gathered.clone(), has, 31);
        origin.publish("o.a", "", "new");
        let blocks = stream.catch_up(sources, &origin);
        assert_eq!(stream.bodies(), expected, "{origin_last} {has}");
        for block in blocks {
            assert_eq!(replies(stream.apply(&block))[1], PublishReply::Outdated);
        }
    }

    let mut anew = Stream { bench: Bench::default(), now: 6000 };
    anew.configure(config, 40);
    anew.publish("o.a", "", "other");
    let mut stream = restored(&gathering, gathered, 4, 41);
    stream.catch_up(sources, &anew);
    assert_eq!(
        stream.bodies(),
        ["1", "2", "3", "4", "other"],
        "one that was made anew has nothing of the old"
    );
}

#[test]
fn counters_are_gathered_so_that_nothing_counts_twice() {
    let counter = |name: &str| StreamConfig {
        name: name.into(),
        subjects: vec!["c".into()],
        allow_msg_counter: true,
        ..limitless()
    };
    let (mut one, mut two) = (Stream::new(counter("ONE")), Stream::new(counter("TWO")));
    let add = |stream: &mut Stream, increment: &str, sum: &str| {
        let mut block = BlockBuilder::default();
        let header = format!("NATS/1.0\r\nNats-Incr: {increment}\r\n\r\n");
        let body = crate::stream::counter::body(sum);
        block.push_flagged(RecordFlags::COUNTED, b"c", header.as_bytes(), &body);
        let stored = replies(stream.apply(&block.finish(Timestamp(5))));
        assert!(matches!(stored[0], PublishReply::Stored { .. }), "{stored:?}");
    };
    add(&mut one, "5", "5");
    add(&mut one, "7", "12");
    add(&mut two, "100", "100");
    let config = StreamConfig { allow_msg_counter: true, ..limitless() };
    let (mut gathering, copiers) = gathering(&[source("ONE"), source("TWO")], config);

    gathering.catch_up(&copiers[0], &one);
    let stale = gathering
        .next_block(&copiers[1], &two.ask(&mut Puller::of_source(&source("TWO"), &Origin::default())));
    add(&mut one, "-2", "10");
    gathering.catch_up(&copiers[0], &one);

    assert_eq!(replies(gathering.apply(&stale.unwrap()))[1], PublishReply::Outdated);
    gathering.catch_up(&copiers[1], &two);
    assert_eq!(gathering.bodies(), ["5", "12", "10", "110"].map(|sum| format!("{{\"val\":\"{sum}\"}}")));
    assert_eq!(gathering.header(3, "Nats-Incr"), Some("-2".into()));
    let totals = Some(r#"{"ONE":{"c":"10"},"TWO":{"c":"100"}}"#.into());
    assert_eq!(gathering.header(4, "Nats-Counter-Sources"), totals);
}

#[test]
fn a_reader_tries_again_later_and_later_and_goes_on_from_what_the_stream_has() {
    let mut puller = Puller::of_mirror(&StreamSource { opt_start_seq: 7, ..source("O") }, 0);
    let ask = |puller: &mut Puller| {
        let request = puller.ask(Ask::Wait(9), Timestamp(0));
        (request.from, request.start_seq, request.wait_ms)
    };
    assert_eq!(ask(&mut puller), (0, 7, 9));

    let answer = FetchAnswer { from: 7, through: 20, last_seq: 30, seqs: vec![8], ..FetchAnswer::default() };
    puller.on_answer(&answer, Timestamp(0));
    assert_eq!(ask(&mut puller), (21, 7, 9));

    let has = Origin { seq: 8, ..Origin::default() };
    let pauses: Vec<i64> = (0..6).map(|_| puller.on_failure(&has, None).0 / 1_000_000).collect();
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000]);
    assert_eq!(ask(&mut puller), (9, 7, 9));
    puller.on_stored();
    assert_eq!(puller.on_failure(&has, None), Nanos::from_millis(100));
}

fn keeping(retention: RetentionPolicy, bodies: &[&str]) -> Stream {
    let mut origin = Stream::new(StreamConfig {
        name: "O".into(),
        subjects: vec!["o.>".into()],
        retention,
        ..limitless()
    });
    if retention == RetentionPolicy::Interest {
        // Nothing is kept of what nobody wants.
        note(&mut origin, &FetchRequest::default(), reader(0, ""));
    }
    for body in bodies {
        origin.publish("o.a", "", body);
    }
    origin
}

/// The reader of a stream that says that it has stored this much.
fn reader(stored: u64, identity: &str) -> Reader {
    let consumer = readers::consumer_name("G", "O > >");
    let identity = identity.to_owned();
    Reader { stream: "G".into(), consumer, stored, identity, group: 7, ..Reader::default() }
}

/// What an origin has, and how many consumers, when it has noted everything of a reader.
fn note(origin: &mut Stream, request: &FetchRequest, reader: Reader) -> (Vec<String>, usize) {
    let request = FetchRequest { reader: Some(reader), ..request.clone() };
    let bench = &mut origin.bench;
    while let Some(command) = readers::note(&bench.machine, &bench.view, &request, Timestamp(9)).unwrap() {
        let outcome = bench.apply(&command);
        assert!(!matches!(outcome.reply, Reply::Rejected(_)), "{:?}", outcome.reply);
    }
    (origin.bodies(), origin.bench.machine.consumers().count())
}

fn owned(bodies: &[&str]) -> Vec<String> {
    bodies.iter().map(|body| (*body).to_owned()).collect()
}

#[test]
fn an_origin_removes_what_its_reader_has_stored_and_nothing_else() {
    let mut origin = keeping(RetentionPolicy::WorkQueue, &["1", "2", "3"]);
    let identity = server::identity(&origin.bench.machine);
    let anything = FetchRequest::default();

    assert_eq!(note(&mut origin, &anything, reader(0, "")), (owned(&["1", "2", "3"]), 1));
    assert_eq!(note(&mut origin, &anything, reader(3, "of another")), (owned(&["1", "2", "3"]), 1));
    assert_eq!(note(&mut origin, &anything, reader(2, &identity)), (owned(&["3"]), 1));
    assert_eq!(note(&mut origin, &anything, reader(1, &identity)), (owned(&["3"]), 1));
    let leaves = Reader { leaves: true, ..reader(2, &identity) };
    assert_eq!(note(&mut origin, &anything, leaves), (owned(&["3"]), 0));
}

#[test]
fn what_lies_before_a_readers_start_stays_at_the_origin() {
    for request in [
        FetchRequest { start_seq: 3, ..FetchRequest::default() },
        FetchRequest { start_time: Some(4), ..FetchRequest::default() },
    ] {
        let mut origin = keeping(RetentionPolicy::WorkQueue, &["1", "2", "3", "4"]);
        let identity = server::identity(&origin.bench.machine);
        assert_eq!(origin.messages()[2].1, 4, "the third is of the time 4");

        note(&mut origin, &request, reader(0, ""));

        assert_eq!(note(&mut origin, &request, reader(3, &identity)), (owned(&["1", "2", "4"]), 1));
    }
}

#[test]
fn a_work_queue_that_comes_back_from_an_archive_lets_go_what_its_reader_has() {
    let before = keeping(RetentionPolicy::WorkQueue, &["1", "2", "3", "4"]);
    let identity = server::identity(&before.bench.machine);
    let config = before.bench.machine.config().unwrap().clone();
    for (start_seq, left) in [(0, vec!["4"]), (2, vec!["1", "4"])] {
        let mut origin = restored(&before, config.clone(), 4, 30);
        let request =
            FetchRequest { from: 4, start_seq, identity: identity.clone(), ..FetchRequest::default() };

        assert_eq!(note(&mut origin, &request, reader(3, &identity)), (owned(&left), 1), "from {start_seq}");
    }
    let mut created_again = keeping(RetentionPolicy::WorkQueue, &["1", "2"]);
    let noted = note(&mut created_again, &FetchRequest::default(), reader(2, "of the one before"));
    assert_eq!(noted, (owned(&["1", "2"]), 1));
}

#[test]
fn a_mirror_settles_nothing_of_an_origin_that_was_created_again_but_what_it_copied() {
    let before = keeping(RetentionPolicy::WorkQueue, &["1", "2", "3"]);
    let (mut mirror, copier) = mirror(source("O"), limitless());
    mirror.catch_up(&copier, &before);
    let mut after = keeping(RetentionPolicy::WorkQueue, &[]);
    let config = after.bench.machine.config().unwrap().clone();
    after.bench = Bench::default();
    after.configure(config, 2);
    after.publish("o.a", "", "again 1");
    after.publish("o.a", "", "again 2");
    let says = |mirror: &Stream| {
        let has = mirror.bench.machine.source("");
        Reader { mirrors: true, ..reader(has.seq, &has.identity) }
    };
    let from = |mirror: &Stream| FetchRequest {
        from: mirror.bench.machine.last_seq().0 + 1,
        ..FetchRequest::default()
    };

    let noted = note(&mut after, &from(&mirror), says(&mirror));
    assert_eq!(noted, (owned(&["again 1", "again 2"]), 1));
    for body in ["again 3", "4"] {
        after.publish("o.a", "", body);
    }
    mirror.catch_up(&copier, &after);

    assert_eq!(mirror.bodies(), ["1", "2", "3", "4"]);
    assert_eq!(mirror.bench.machine.source("").identity, server::identity(&after.bench.machine));
    let noted = note(&mut after, &from(&mirror), says(&mirror));
    assert_eq!(noted, (owned(&["again 1", "again 2", "again 3"]), 1));
}

#[test]
fn a_stream_that_is_gone_takes_nothing_from_the_one_that_has_its_name() {
    for retention in [RetentionPolicy::WorkQueue, RetentionPolicy::Interest] {
        let mut origin = keeping(retention, &["1", "2", "3"]);
        let identity = server::identity(&origin.bench.machine);
        let anything = FetchRequest::default();
        note(&mut origin, &anything, reader(0, ""));
        note(&mut origin, &anything, reader(1, &identity));
        let successor = |stored: u64, identity: &str| Reader { group: 8, ..reader(stored, identity) };
        let kept = owned(&["2", "3"]);

        assert_eq!(note(&mut origin, &anything, successor(0, "")), (kept.clone(), 1));
        let leaves = Reader { leaves: true, ..reader(3, &identity) };
        assert_eq!(note(&mut origin, &anything, leaves), (kept.clone(), 1));
        assert_eq!(note(&mut origin, &anything, reader(3, &identity)), (kept, 1));
        assert_eq!(note(&mut origin, &anything, successor(2, &identity)), (owned(&["3"]), 1));
    }
}

#[test]
fn a_consumer_whose_reader_is_gone_is_an_orphan() {
    let mut origin = keeping(RetentionPolicy::WorkQueue, &[]);
    note(&mut origin, &FetchRequest::default(), reader(0, ""));
    let consumer = origin.bench.machine.consumers().next().unwrap().1.config().clone();
    let reads = StreamConfig { name: "G".into(), sources: vec![source("O")], ..limitless() };
    let filtered = StreamSource { filter_subject: "o.b".into(), ..source("O") };
    let otherwise = StreamConfig { sources: vec![filtered], ..reads.clone() };
    let later = StreamSource { opt_start_seq: 3, ..source("O") };
    let later = StreamConfig { sources: vec![later], ..reads.clone() };
    let is_orphan = |stream: Option<&StreamConfig>| readers::is_orphan(&consumer, "O", |_| stream);

    let orphans = [None, Some(&otherwise), Some(&reads), Some(&later)].map(is_orphan);

    assert_eq!(orphans, [true, true, false, false]);
}

#[test]
fn a_long_look_for_what_a_filter_wants_is_made_in_steps() {
    let mut origin =
        Stream::new(StreamConfig { name: "O".into(), subjects: vec!["o.>".into()], ..limitless() });
    let mut block = BlockBuilder::default();
    for number in 0..20_001 {
        // More subjects than the index is asked about.
        block.push(format!("o.{}", number % 10_000).as_bytes(), b"", b"");
    }
    block.push(b"o.x.y", b"", b"");
    origin.bench.apply(&StreamCommand::Publish(block.finish(Timestamp(5))));
    let wanted = StreamSource { filter_subject: "o.x.*".into(), ..source("O") };
    let mut puller = Puller::of_mirror(&wanted, 0);

    let answers: Vec<FetchAnswer> = (0..3).map(|_| origin.ask(&mut puller)).collect();

    let told = answers.iter().map(|answer| (answer.from, answer.through, answer.seqs.len()));
    assert_eq!(told.collect::<Vec<_>>(), [(1, 8192, 0), (8193, 16384, 0), (16385, 20002, 1)]);
    let literal = StreamSource { filter_subject: "o.x.y".into(), ..source("O") };
    assert_eq!(origin.ask(&mut Puller::of_mirror(&literal, 0)).seqs, [20002]);
}

#[test]
fn of_too_many_former_sources_the_oldest_are_forgotten() {
    let names: Vec<String> = (0..258).map(|number| format!("S{number}")).collect();
    let sources: Vec<StreamSource> = names.iter().map(|name| source(name)).collect();
    let (mut gathering, copiers) = gathering(&sources, limitless());
    for (copier, created) in copiers.iter().zip(1..) {
        let mut origin = Stream { bench: Bench::default(), now: 0 };
        let name = copier.source().name.clone();
        origin.configure(StreamConfig { name, subjects: vec!["o.a".into()], ..limitless() }, created);
        origin.publish("o.a", "", "1");
        gathering.catch_up(copier, &origin);
    }

    gathering.configure(StreamConfig { name: "G".into(), ..limitless() }, 1);

    let known = |copier: &&Copier| gathering.bench.machine.source(copier.key()).seq == 1;
    let forgotten: Vec<&str> =
        copiers.iter().filter(|copier| !known(copier)).map(|copier| &copier.source().name[..]).collect();
    assert_eq!(forgotten, ["S0", "S1"]);
}
