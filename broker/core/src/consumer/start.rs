//! Where a deliver policy begins.

use levee_protocol::api::{ConsumerConfig, DeliverPolicy};
use levee_protocol::ids::Seq;
use levee_protocol::subject::Filter;

use crate::consumer::settle::{Chosen, Marks};
use crate::consumer::source::Source;
use crate::stream::{MessageView, ReadFailed};

/// The marks of a new consumer. Nothing before them will be delivered. A position before the stream is moved to its
/// first message; a start sequence after its last one stays, and what comes before it is skipped.
pub(crate) fn starting_marks(
    config: &ConsumerConfig,
    filters: &[Filter],
    stream: &dyn Source,
    view: &dyn MessageView,
) -> Result<Marks, ReadFailed> {
    let last = stream.last_seq();
    let after_last = last.next();
    let mut chosen = None;
    let first_wanted = match config.deliver_policy {
        DeliverPolicy::All => Seq::NONE,
        DeliverPolicy::New => after_last,
        DeliverPolicy::Last if filters.is_empty() && stream.messages() > 0 => newest(stream),
        DeliverPolicy::Last => {
            filters.iter().filter_map(|filter| stream.last_for(filter)).max().unwrap_or(after_last)
        }
        DeliverPolicy::ByStartSequence => Seq(config.opt_start_seq),
        DeliverPolicy::ByStartTime => match config.opt_start_time {
            Some(at) => view.seek_time(at)?.unwrap_or(after_last),
            None => Seq::NONE,
        },
        DeliverPolicy::LastPerSubject => {
            let seqs = stream.last_per_subject(filters);
            let first = seqs.first().copied().unwrap_or(after_last);
            if !seqs.is_empty() {
                chosen = Some(Chosen { seqs: seqs.into(), resume: last });
            }
            first
        }
    };
    let lowest = stream.first_seq().max(Seq(1));
    Ok(Marks::starting_after(first_wanted.max(lowest).previous(), chosen))
}

/// The newest live message, which the last sequence need not be.
fn newest(stream: &dyn Source) -> Seq {
    let last = stream.last_seq();
    if stream.is_live(last) {
        return last;
    }
    let everything = Filter::everything();
    stream.last_for(&everything).unwrap_or_else(|| last.next())
}
