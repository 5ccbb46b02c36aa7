//! Rows about consumers: pull and push, one and many, with filters, made and removed.

use crate::load::Load;
use crate::load::delivery::Mode;
use crate::load::ephemerals::Ending;
use crate::load::fetch::Acks;
use crate::load::many_consumers::Share;
use crate::load::resting::For;
use crate::report::number;
use crate::rows::{Row, Sizes};

impl Sizes {
    fn durables(&self) -> u64 {
        self.durables.unwrap_or_else(|| self.part.of(10_000, 1000, 100))
    }

    fn ephemerals(&self) -> u64 {
        self.ephemerals.unwrap_or_else(|| self.part.of(100_000, 5000, 500))
    }
}

/// All of them, in the order of the tables. They run in full mode, and when they are asked for.
pub(super) fn rows(sizes: &Sizes) -> Vec<Row> {
    let mut rows = Vec::new();
    for nodes in [1, 3] {
        rows.extend(ack_policies(nodes));
        rows.extend(deliveries(nodes));
    }
    rows.extend(many());
    rows.push(filtered(sizes));
    rows.extend(durables(sizes));
    rows.extend(resting(sizes));
    rows.extend(ephemerals(sizes));
    rows.into_iter().map(Row::long).collect()
}

fn ack_policies(nodes: usize) -> Vec<Row> {
    let offered = if nodes == 1 { 20_000 } else { 10_000 };
    let fetch = Load::Fetch { batch: 500, acks: Acks::All };
    let pull = Row::new(format!("R{nodes} pull, fetch 500, ack all, 128 B"), nodes, fetch);
    let push = [(Acks::None, "no acks"), (Acks::Explicit, "explicit acks"), (Acks::All, "ack all")];
    let push = push.into_iter().map(|(acks, what)| {
        Row::new(format!("R{nodes} push with flow control, {what}, 128 B"), nodes, Load::Push { acks })
    });
    [pull].into_iter().chain(push).map(|row| row.messages(500_000).offered(offered)).collect()
}

fn deliveries(nodes: usize) -> [Row; 2] {
    [(Mode::WaitingPull, "a waiting pull"), (Mode::Push, "push")].map(|(mode, what)| {
        Row::new(format!("R{nodes} publish to delivery, {what}, 128 B"), nodes, Load::Delivery { mode })
            .offered(1000)
    })
}

fn many() -> Vec<Row> {
    let everything = "each reading everything";
    let one_subject = "one subject each of a work queue";
    [
        (1, 1, Share::Everything, everything),
        (1, 10, Share::Everything, everything),
        (1, 1000, Share::Everything, everything),
        (1, 10, Share::OneSubject, one_subject),
        (1, 1000, Share::OneSubject, one_subject),
        (3, 10, Share::Everything, everything),
        (3, 10, Share::OneSubject, one_subject),
    ]
    .into_iter()
    .map(|(nodes, consumers, share, what)| {
        let load = Load::ManyConsumers { consumers, share };
        Row::new(format!("R{nodes} consumers: {consumers}, {what}, explicit acks, 128 B"), nodes, load)
            .messages(500_000)
    })
    .collect()
}

fn filtered(sizes: &Sizes) -> Row {
    let subjects = sizes.expiring();
    let name = format!(
        "R1 filters, each for a hundredth of {} subjects, explicit acks, 128 B",
        number(subjects as f64)
    );
    Row::new(name, 1, Load::Filtered { subjects })
}

fn durables(sizes: &Sizes) -> Vec<Row> {
    // The few tell how long a failover takes without many.
    let many = sizes.durables();
    let few = (many / 100).max(1);
    [few, many]
        .into_iter()
        .map(|consumers| {
            let name = format!("R3 durables: {consumers} on one stream");
            Row::new(name, 3, Load::Durables { consumers })
        })
        .collect()
}

fn resting(sizes: &Sizes) -> [Row; 3] {
    let many = sizes.durables();
    let few = (many / 100).max(1);
    [
        (many, For::Acks, "each with an unacked message"),
        (few, For::Messages, "each with a waiting request"),
        (many, For::Messages, "each with a waiting request"),
    ]
    .map(|(consumers, what, doing)| {
        let name = format!("R3 durables: {consumers}, {doing}, 128 B");
        Row::new(name, 3, Load::Resting { consumers, what }).offered(10_000)
    })
}

fn ephemerals(sizes: &Sizes) -> [Row; 3] {
    let consumers = sizes.ephemerals();
    [(1, Ending::Deleted, "deleted"), (1, Ending::Expired, "expired"), (3, Ending::Deleted, "deleted")].map(
        |(nodes, ending, what)| {
            let name = format!("R{nodes} ephemerals: {consumers}, used once and {what}");
            Row::new(name, nodes, Load::Ephemerals { consumers, ending })
        },
    )
}
