//! Looking up single messages: message get and direct get share this.

use levee_broker_core::stream::{MessageView, ReadFailed, StreamMachine};
use levee_protocol::api::MessageSelector;
use levee_protocol::ids::Seq;
use levee_protocol::record::Record;
use levee_protocol::subject::{Filter, InvalidSubject};

/// Why a lookup has no answer at all.
#[derive(Debug, thiserror::Error)]
pub enum LookupFailed {
    /// The selector's filter is not one.
    #[error(transparent)]
    Filter(#[from] InvalidSubject),
    /// The disk failed.
    #[error(transparent)]
    Read(#[from] ReadFailed),
}

/// The filters a selector names: none is everything.
pub fn filters(selector: &MessageSelector<'_>) -> Result<Option<Filter>, InvalidSubject> {
    match selector {
        MessageSelector::Seq(_) | MessageSelector::NextFrom(_, "") | MessageSelector::NextAt(_, "") => {
            Ok(None)
        }
        MessageSelector::Last(filter)
        | MessageSelector::NextFrom(_, filter)
        | MessageSelector::NextAt(_, filter) => Filter::parse(filter).map(Some),
    }
}

/// Finds the message, if it lives.
pub fn find(
    machine: &StreamMachine,
    view: &dyn MessageView,
    selector: &MessageSelector<'_>,
) -> Result<Option<Record>, LookupFailed> {
    let filter = filters(selector)?;
    let next = |from: Seq| machine.next_match(filter.as_slice(), from, view);
    Ok(match selector {
        MessageSelector::Seq(seq) if machine.is_live(*seq) => view.record(*seq)?,
        MessageSelector::Seq(_) => None,
        MessageSelector::Last(_) => match filter.as_ref().and_then(|filter| machine.last_for(filter)) {
            Some(seq) => view.record(seq)?,
            None => None,
        },
        MessageSelector::NextFrom(from, _) => next(*from)?,
        MessageSelector::NextAt(at, _) => match view.seek_time(*at)? {
            Some(from) => next(from)?,
            None => None,
        },
    })
}
