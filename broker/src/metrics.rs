//! The table of metric names of the message path, and the text that Prometheus reads. Names are part of what
//! operators depend on: add, never rename.
//!
//! Nothing is counted here per message. Sessions and links count for themselves; when somebody asks, the sums are
//! copied into gauges.

use std::sync::OnceLock;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::router::peers::PeerView;
use crate::session::Totals;

/// Open client connections.
pub const CONNECTIONS: &str = "levee_connections";
/// Client connections since the start.
pub const CONNECTIONS_TOTAL: &str = "levee_connections_total";
/// Subscriptions of open connections.
pub const SUBSCRIPTIONS: &str = "levee_subscriptions";
/// Messages that clients published.
pub const IN_MSGS: &str = "levee_in_msgs_total";
/// Their bytes.
pub const IN_BYTES: &str = "levee_in_bytes_total";
/// Messages delivered to clients.
pub const OUT_MSGS: &str = "levee_out_msgs_total";
/// Their bytes.
pub const OUT_BYTES: &str = "levee_out_bytes_total";
/// Clients cut off for being slow.
pub const SLOW_CONSUMERS: &str = "levee_slow_consumers_total";
/// Clients cut off for not answering PING.
pub const STALE_CONNECTIONS: &str = "levee_stale_connections_total";
/// Times that a producer was stalled for a slow client.
pub const STALLS: &str = "levee_stalls_total";
/// Connected nodes.
pub const PEERS: &str = "levee_peers";
/// Messages routed to a node, by its name.
pub const PEER_SENT: &str = "levee_peer_sent_msgs_total";
/// Messages that a node routed here, by its name.
pub const PEER_RECEIVED: &str = "levee_peer_received_msgs_total";
/// Messages not routed to a node because it was too far behind.
pub const PEER_DROPPED: &str = "levee_peer_dropped_msgs_total";
/// Bytes that wait for a node.
pub const PEER_PENDING: &str = "levee_peer_pending_bytes";

/// Publishes of other nodes' clients refused because a stream's queue was full.
pub const FORWARDS_REFUSED: &str = "levee_forwarded_publishes_refused_total";

/// Messages that consumers gave up and that were stored as dead letters.
pub const DEAD_LETTERS: &str = "levee_dead_letters_total";

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Begins to collect what all parts of the process count. Does nothing the second time, or if the embedding process
/// collects metrics in its own way.
pub fn install() {
    RECORDER.get_or_init(|| {
        let handle = PrometheusBuilder::new().install_recorder().ok()?;
        describe_gauge!(CONNECTIONS, "Open client connections");
        describe_counter!(CONNECTIONS_TOTAL, "Client connections since the start");
        describe_gauge!(SUBSCRIPTIONS, "Subscriptions of open connections");
        describe_counter!(IN_MSGS, "Messages that clients published");
        describe_counter!(IN_BYTES, Unit::Bytes, "Bytes of messages that clients published");
        describe_counter!(OUT_MSGS, "Messages delivered to clients");
        describe_counter!(OUT_BYTES, Unit::Bytes, "Bytes of messages delivered to clients");
        describe_counter!(SLOW_CONSUMERS, "Clients cut off for being slow");
        describe_counter!(STALE_CONNECTIONS, "Clients cut off for not answering PING");
        describe_counter!(STALLS, "Times that a producer was stalled for a slow client");
        describe_gauge!(PEERS, "Connected nodes");
        describe_counter!(PEER_SENT, "Messages routed to a node");
        describe_counter!(PEER_RECEIVED, "Messages that a node routed here");
        describe_counter!(PEER_DROPPED, "Messages not routed to a node because it was too far behind");
        describe_gauge!(PEER_PENDING, Unit::Bytes, "Bytes that wait for a node");
        describe_counter!(
            FORWARDS_REFUSED,
            "Publishes of other nodes' clients refused because a stream's queue was full"
        );
        describe_counter!(DEAD_LETTERS, "Messages that consumers gave up, stored as dead letters");
        Some(handle)
    });
}

/// Brings the metrics of the message path up to date, before [`render`].
pub fn observe(totals: &Totals, peers: &[PeerView]) {
    gauge!(CONNECTIONS).set(totals.connections as f64);
    counter!(CONNECTIONS_TOTAL).absolute(totals.total_connections);
    gauge!(SUBSCRIPTIONS).set(totals.subscriptions as f64);
    counter!(IN_MSGS).absolute(totals.received.msgs);
    counter!(IN_BYTES).absolute(totals.received.bytes);
    counter!(OUT_MSGS).absolute(totals.sent.msgs);
    counter!(OUT_BYTES).absolute(totals.sent.bytes);
    counter!(SLOW_CONSUMERS).absolute(totals.slow_consumers);
    counter!(STALE_CONNECTIONS).absolute(totals.stale_connections);
    counter!(STALLS).absolute(totals.stalls);
    gauge!(PEERS).set(peers.len() as f64);
    for peer in peers {
        counter!(PEER_SENT, "server" => peer.name.clone()).absolute(peer.sent.msgs);
        counter!(PEER_RECEIVED, "server" => peer.name.clone()).absolute(peer.received.msgs);
        counter!(PEER_DROPPED, "server" => peer.name.clone()).absolute(peer.dropped);
        gauge!(PEER_PENDING, "server" => peer.name.clone()).set(peer.pending_bytes as f64);
    }
}

/// Everything that was counted, as Prometheus reads it; empty before [`install`].
#[must_use]
pub fn render() -> String {
    RECORDER.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_observed_is_rendered_under_its_name() {
        install();
        observe(&Totals { connections: 3, slow_consumers: 7, ..Totals::default() }, &[]);

        let text = render();

        assert!(text.contains("levee_connections 3"), "{text}");
        assert!(text.contains("levee_slow_consumers_total 7"), "{text}");
    }
}
