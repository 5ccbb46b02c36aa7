//! What the leader of an origin answers.

use std::ops::ControlFlow;

use levee_protocol::api::stream_source::short_hash;
use levee_protocol::api::{AckPolicy, ApiError};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::mirror::{FetchAnswer, FetchRequest};
use levee_protocol::record::{BlockBuilder, RecordFlags};
use levee_protocol::subject::Filter;
use levee_protocol::time::Timestamp;

use super::attachment::stored_of;
use crate::stream::{MessageView, ReadFailed, StreamMachine};

/// Messages in one answer: what fits into a block of the reader.
pub(super) const MESSAGES_MAX: usize = 2048;
/// An answer is closed when it holds about so many bytes: as much as a block of publishes.
pub(super) const BYTES_MAX: u64 = 1 << 20;
/// So many messages that are not wanted are stepped over in one answer, and so many bytes of them: the stream's lock is
/// held meanwhile.
const STEPPED_OVER_MAX: usize = 8192;
const STEPPED_OVER_BYTES_MAX: usize = 8 << 20;

/// What the stream has of what is wanted. `through` is behind `from` when there is nothing new at all, and before the
/// last sequence when there may be more: a look that finds nothing of it ends early too.
pub fn answer(
    machine: &StreamMachine,
    view: &dyn MessageView,
    request: &FetchRequest,
) -> Result<FetchAnswer, ReadFailed> {
    let filters: Vec<Filter> = request.filters.iter().filter_map(|text| Filter::parse(text).ok()).collect();
    let identity = identity(machine);
    let last_seq = machine.last_seq();
    let from = first_wanted(machine, view, request, &identity)?;
    let mut answer = FetchAnswer {
        identity,
        born: machine.created().0,
        restored_to: machine.restored_to(),
        first_seq: machine.first_seq().0,
        last_seq: last_seq.0,
        from: from.0,
        through: last_seq.0,
        ..FetchAnswer::default()
    };
    if let Some(span) = machine.span_of(&filters, from, STEPPED_OVER_MAX) {
        fill(&mut answer, machine, view, &filters, (span, request.bytes_max))?;
    }
    if request.count {
        answer.pending = Some(machine.count_matching(&filters, Seq(answer.through).next(), view)?);
    }
    Ok(answer)
}

/// The consumer that a reader is to be attached to, if it may be. It is to be reset then.
pub fn attachable(machine: &StreamMachine, request: &FetchRequest) -> Result<ConsumerName, ApiError> {
    let reader = request.reader.clone().unwrap_or_default();
    let name = ConsumerName::parse(&request.consumer).map_err(|_| ApiError::consumer_not_found())?;
    let ledger = machine.consumer(&name).ok_or_else(ApiError::consumer_not_found)?;
    if ledger.config().ack_policy != AckPolicy::FlowControl {
        return Err(if reader.mirrors {
            ApiError::mirror_consumer_requires_flow_control()
        } else {
            ApiError::source_consumer_requires_flow_control()
        });
    }
    // It would skip those, and ack what it never stored.
    let skips = stored_of(&reader, &identity(machine), machine.restored_to()) < reader.stored
        && ledger.marks().floor().stream < Seq(reader.stored);
    if reader.mirrors && skips {
        return Err(ApiError::stream_general(format_args!(
            "the origin was created again and the mirror has messages of the one before: let the consumer begin at {}",
            reader.stored + 1
        )));
    }
    Ok(name)
}

/// What an attached reader is told of the origin. The consumer was reset and delivers `from` there on.
pub fn attached(
    machine: &StreamMachine,
    view: &dyn MessageView,
    name: &ConsumerName,
    from: Seq,
) -> Result<FetchAnswer, ReadFailed> {
    let ledger = machine.consumer(name);
    let from = from.max(Seq(1));
    let filters = ledger.map_or(&[][..], |ledger| ledger.filters());
    Ok(FetchAnswer {
        identity: identity(machine),
        born: machine.created().0,
        restored_to: machine.restored_to(),
        first_seq: machine.first_seq().0,
        last_seq: machine.last_seq().0,
        from: from.0,
        through: from.0 - 1,
        pending: Some(machine.count_matching(filters, from, view)?),
        attached: ledger.is_some(),
        ..FetchAnswer::default()
    })
}

/// Says which incarnation of a stream this is.
#[must_use]
pub fn identity(machine: &StreamMachine) -> String {
    let name = machine.config().map_or("", |config| config.name.as_str());
    short_hash(&format!("{name} {}", machine.created().0))
}

/// Where the reader begins.
pub(super) fn first_wanted(
    machine: &StreamMachine,
    view: &dyn MessageView,
    request: &FetchRequest,
    identity: &str,
) -> Result<Seq, ReadFailed> {
    let is_same = request.identity.is_empty() || request.identity == identity;
    if is_same && request.from > 0 {
        return Ok(Seq(request.from));
    }
    if request.from > 0 && machine.restored_to() > 0 {
        return Ok(Seq(request.from.min(machine.restored_to() + 1)));
    }
    let first = machine.first_seq().max(Seq(1));
    let Some(time) = request.start_time.filter(|_| request.start_seq == 0) else {
        return Ok(first.max(Seq(request.start_seq)));
    };
    Ok(view.seek_time(Timestamp(time))?.map_or_else(|| machine.last_seq().next(), |seq| seq.max(first)))
}

fn fill(
    answer: &mut FetchAnswer,
    machine: &StreamMachine,
    view: &dyn MessageView,
    filters: &[Filter],
    ((first, last), bytes_max): ((Seq, Seq), u64),
) -> Result<(), ReadFailed> {
    let mut block = BlockBuilder::timed(0);
    let (mut stepped_over, mut stepped_over_bytes) = (0, 0);
    view.scan(first, &mut |seq, record| {
        if seq > last {
            return ControlFlow::Break(());
        }
        let is_wanted = filters.is_empty() || filters.iter().any(|filter| filter.matches(record.subject));
        if is_wanted && machine.is_live(seq) {
            answer.seqs.push(seq.0);
            block.push_timed(RecordFlags::COPIED, &record);
        } else {
            stepped_over += 1;
            stepped_over_bytes += record.subject.len() + record.header.len() + record.payload.len();
        }
        let is_full = answer.seqs.len() >= MESSAGES_MAX
            || block.bytes() as u64 >= bytes_max
            || stepped_over >= STEPPED_OVER_MAX
            || stepped_over_bytes >= STEPPED_OVER_BYTES_MAX;
        if is_full {
            answer.through = seq.0;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    if !answer.seqs.is_empty() {
        answer.block = block.finish(machine.clock()).as_bytes().clone();
    } else if filters.is_empty() && stepped_over == 0 {
        // What lives by the state is there to be read.
        return Err(ReadFailed::missing(first));
    }
    Ok(())
}
