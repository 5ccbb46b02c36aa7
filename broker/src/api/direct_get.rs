//! `$JS.API.DIRECT.GET.*`: raw messages with their origin in headers, for streams that allow it.
//!
//! Answered by the stream's leader, so that a client reads what it has written; nats-server lets any replica
//! answer. Mirrors that may answer for it do so only while nobody leads it, or when it is gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use levee_broker_core::meta::MetaMachine;
use levee_broker_core::stream::{MessageView, ReadFailed, StreamMachine};
use levee_protocol::api::message::{DirectGet, DirectStatus, UpTo};
use levee_protocol::api::{DirectGetRequest, Request};
use levee_protocol::ids::{AccountName, GroupId, Seq, StreamName};
use levee_protocol::record::Record;
use levee_protocol::subject::{Filter, InvalidSubject};
use levee_protocol::time::Nanos;
use levee_protocol::wire::headers::HeaderBuilder;

use crate::jetstream::JetStream;
use crate::router::{Inbound, InboundItem, MessageRef, RouteBatch};
use crate::sinks::Arrival;
use crate::stream::Replica;
use crate::stream::reads::{LookupFailed, filters, find};

/// The most subjects a multi-last request may match.
const MULTI_LAST_MAX: usize = 1024;
/// A batch without a bound of its own stops after this many bytes.
const BATCH_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

/// Whether the stream may be read, itself or by a mirror.
pub(super) fn is_readable(jetstream: &JetStream, account: &AccountName, stream: &str) -> bool {
    let Ok(name) = StreamName::parse(stream) else { return false };
    jetstream.meta().read(|machine| {
        own(machine, account, &name).is_some() || mirrors(machine, account, &name).next().is_some()
    })
}

/// The group that is read in the name of a stream: one that this node leads if it was asked as its leader, else one that
/// has a leader. The stream's own comes before its mirrors'.
pub(super) fn read_from(
    jetstream: &JetStream,
    account: &AccountName,
    stream: &str,
    arrival: Arrival,
) -> Option<GroupId> {
    let name = StreamName::parse(stream).ok()?;
    let is_led = |group: GroupId| match arrival {
        Arrival::Client => jetstream.directory().leader(group).is_some(),
        Arrival::Forwarded => jetstream.replica(group).is_some_and(|replica| replica.leader().is_some()),
    };
    let own = jetstream.meta().read(|machine| own(machine, account, &name));
    if let Some(own) = own.filter(|own| is_led(*own)) {
        return Some(own);
    }
    let mirrors: Vec<GroupId> = jetstream.meta().read(|machine| mirrors(machine, account, &name).collect());
    mirrors.iter().copied().find(|mirror| is_led(*mirror)).or(own).or_else(|| mirrors.first().copied())
}

fn own(machine: &MetaMachine, account: &AccountName, name: &StreamName) -> Option<GroupId> {
    machine.stream(account, name).filter(|own| own.config.allow_direct).map(|own| own.group)
}

/// Mirrors that may answer for a stream.
fn mirrors(
    machine: &MetaMachine,
    account: &AccountName,
    origin: &StreamName,
) -> impl Iterator<Item = GroupId> {
    let mirrors = machine.mirrors_of(account, origin);
    mirrors.filter(|mirror| mirror.config.mirror_direct).map(|mirror| mirror.group)
}

pub(super) fn take(
    jetstream: &Arc<JetStream>,
    account: &AccountName,
    replica: &Replica,
    request: &Request<'_>,
    batch: &Inbound,
    item: &InboundItem,
) {
    if batch.reply(item).is_empty() {
        return;
    }
    let assignment = replica.assignment();
    let stream = &assignment.config.name;
    let mut answer = Answer { route: jetstream.router().batch(), account, to: batch.reply(item), stream };
    let outcome = DirectGetRequest::parse(batch.payload(item), request.rest)
        .map_err(Refused::Status)
        .and_then(|wanted| {
            let resolved = wanted.resolve()?;
            replica.read(|machine, view| answer.send(machine, view, &resolved, wanted.no_hdr))
        });
    match outcome {
        Ok(()) => {}
        Err(Refused::Status(status)) => answer.status(status),
        Err(Refused::Read(error)) => {
            tracing::error!("stream '{}': {error}", request.stream);
            answer.header(HeaderBuilder::status(500, &error.to_string()));
        }
    }
}

/// Why there is no message to send.
enum Refused {
    Status(DirectStatus),
    Read(ReadFailed),
}

impl From<DirectStatus> for Refused {
    fn from(status: DirectStatus) -> Self {
        Self::Status(status)
    }
}

impl From<ReadFailed> for Refused {
    fn from(error: ReadFailed) -> Self {
        Self::Read(error)
    }
}

impl From<InvalidSubject> for Refused {
    fn from(_: InvalidSubject) -> Self {
        Self::Status(DirectStatus::BadRequest)
    }
}

impl From<LookupFailed> for Refused {
    fn from(error: LookupFailed) -> Self {
        match error {
            LookupFailed::Filter(error) => error.into(),
            LookupFailed::Read(error) => error.into(),
        }
    }
}

struct Answer<'a> {
    route: RouteBatch,
    account: &'a AccountName,
    to: &'a [u8],
    stream: &'a str,
}

impl Answer<'_> {
    fn send(
        &mut self,
        machine: &StreamMachine,
        view: &dyn MessageView,
        wanted: &DirectGet<'_>,
        no_header: bool,
    ) -> Result<(), Refused> {
        match wanted {
            DirectGet::One(selector) => {
                let record = find(machine, view, selector)?.ok_or(DirectStatus::NotFound)?;
                if no_header {
                    self.deliver(&[], &record.payload);
                } else {
                    self.message(&record, None);
                }
                Ok(())
            }
            DirectGet::Batch { from, batch, max_bytes } => {
                let filter = filters(from)?;
                let first = find(machine, view, from)?.ok_or(DirectStatus::NotFound)?;
                self.run(machine, view, filter.as_slice(), first, Bounds::new(*batch, *max_bytes))
            }
            DirectGet::MultiLast { filters, up_to, batch, max_bytes } => {
                let filters: Vec<Filter> = filters.iter().map(Filter::parse).collect::<Result<_, _>>()?;
                let up_to = match up_to {
                    UpTo::Now => machine.last_seq(),
                    UpTo::Seq(seq) => machine.last_seq().min(*seq),
                    UpTo::Time(at) => {
                        view.seek_time(at.plus(Nanos(1)))?.map_or_else(|| machine.last_seq(), Seq::previous)
                    }
                };
                self.multi_last(machine, view, &filters, up_to, Bounds::new(*batch, *max_bytes))
            }
        }
    }

    fn run(
        &mut self,
        machine: &StreamMachine,
        view: &dyn MessageView,
        filters: &[Filter],
        first: Record,
        bounds: Bounds,
    ) -> Result<(), Refused> {
        let mut pending = machine.count_matching(filters, first.seq, view)?;
        let (mut sent, mut bytes, mut last) = (0, 0, Seq::NONE);
        let mut record = first;
        loop {
            bytes += size(&record);
            pending = pending.saturating_sub(1);
            self.message(&record, Some((pending, last)));
            last = record.seq;
            sent += 1;
            if sent >= bounds.messages || bytes >= bounds.bytes {
                break;
            }
            match machine.next_match(filters, last.next(), view)? {
                Some(next) => record = next,
                None => break,
            }
        }
        self.end(pending, last, None);
        Ok(())
    }

    fn multi_last(
        &mut self,
        machine: &StreamMachine,
        view: &dyn MessageView,
        filters: &[Filter],
        up_to: Seq,
        bounds: Bounds,
    ) -> Result<(), Refused> {
        let mut subjects = BTreeSet::new();
        for filter in filters {
            subjects.extend(machine.subjects(filter).map(|(subject, _)| subject.to_vec()));
            if subjects.len() > MULTI_LAST_MAX {
                return Err(DirectStatus::TooManyResults.into());
            }
        }
        let mut records = Vec::new();
        for subject in subjects {
            // A stored subject that is not a filter can't be asked for by name either.
            if let Ok(subject) = Filter::parse(&subject)
                && let Some(record) = last_up_to(machine, view, &subject, up_to)?
            {
                records.push(record);
            }
        }
        if records.is_empty() {
            return Err(DirectStatus::NoResults.into());
        }
        records.sort_by_key(|record| record.seq);
        let total = records.len();
        let (mut sent, mut bytes, mut last) = (0, 0, Seq::NONE);
        for record in records.into_iter().take(bounds.messages) {
            sent += 1;
            bytes += size(&record);
            self.message(&record, Some(((total - sent) as u64, last)));
            last = record.seq;
            if bytes >= bounds.bytes {
                break;
            }
        }
        self.end((total - sent) as u64, last, Some(up_to));
        Ok(())
    }

    fn message(&mut self, record: &Record, position: Option<(u64, Seq)>) {
        let mut header = HeaderBuilder::from_block(&record.header);
        header
            .push("Nats-Stream", self.stream)
            .push("Nats-Subject", &record.subject)
            .push_number("Nats-Sequence", record.seq.0)
            .push("Nats-Time-Stamp", record.timestamp.to_string());
        if let Some((pending, last)) = position {
            header.push_number("Nats-Num-Pending", pending).push_number("Nats-Last-Sequence", last.0);
        }
        self.deliver(&header.finish(), &record.payload);
    }

    fn end(&mut self, pending: u64, last: Seq, up_to: Option<Seq>) {
        let mut header = HeaderBuilder::status(204, "EOB");
        header.push_number("Nats-Num-Pending", pending).push_number("Nats-Last-Sequence", last.0);
        if let Some(up_to) = up_to {
            header.push_number("Nats-UpTo-Sequence", up_to.0);
        }
        self.header(header);
    }

    fn status(&mut self, status: DirectStatus) {
        let (code, text) = status.as_str().split_once(' ').expect("a code and words");
        self.header(HeaderBuilder::status(code.parse().expect("a number"), text));
    }

    fn header(&mut self, header: HeaderBuilder) {
        self.deliver(&header.finish(), &[]);
    }

    fn deliver(&mut self, header: &[u8], payload: &[u8]) {
        let message = MessageRef { subject: self.to, header, payload, ..MessageRef::default() };
        let _ = self.route.send(self.account, self.to, message);
    }
}

/// Where a batch ends at the latest.
#[derive(Clone, Copy)]
struct Bounds {
    messages: usize,
    bytes: usize,
}

impl Bounds {
    fn new(messages: u64, bytes: u64) -> Self {
        let bound = |bound: u64, default| {
            if bound == 0 { default } else { usize::try_from(bound).unwrap_or(default) }
        };
        Self { messages: bound(messages, usize::MAX), bytes: bound(bytes, BATCH_BYTES_DEFAULT) }
    }
}

/// What a message counts against `max_bytes`.
fn size(record: &Record) -> usize {
    record.subject.len() + record.header.len() + record.payload.len()
}

/// The newest message on a literal subject at or below `up_to`.
fn last_up_to(
    machine: &StreamMachine,
    view: &dyn MessageView,
    subject: &Filter,
    up_to: Seq,
) -> Result<Option<Record>, ReadFailed> {
    match machine.last_for(subject) {
        Some(seq) if seq <= up_to => view.record(seq),
        None => Ok(None),
        // The newest is too new: walk this subject's messages up to the bound.
        Some(_) => {
            let mut newest = None;
            let mut from = machine.first_seq();
            while let Some(record) = machine.next_match(std::slice::from_ref(subject), from, view)? {
                if record.seq > up_to {
                    break;
                }
                from = record.seq.next();
                newest = Some(record);
            }
            Ok(newest)
        }
    }
}
