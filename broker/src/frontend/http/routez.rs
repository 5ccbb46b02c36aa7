//! `/routez`: links to other nodes.

use serde_json::{Value, json};

use super::{MonitoringSource, uptime};

pub(super) fn document(source: &dyn MonitoringSource) -> Value {
    let server = source.server();
    let mut routes = source.routes();
    routes.sort_by_key(|route| route.rid);
    let shown = routes.iter().map(|route| {
        json!({
            "rid": route.rid,
            "remote_id": route.remote_id,
            "remote_name": route.remote_name,
            "did_solicit": route.did_solicit,
            "is_configured": route.is_configured,
            "ip": route.ip,
            "port": route.port,
            "start": route.start,
            "last_activity": route.last_activity,
            "uptime": uptime(route.start, server.now),
            "idle": uptime(route.last_activity, server.now),
            "pending_size": route.pending_bytes,
            "in_msgs": route.in_msgs,
            "out_msgs": route.out_msgs,
            "in_bytes": route.in_bytes,
            "out_bytes": route.out_bytes,
            "subscriptions": route.subscriptions,
        })
    });
    json!({
        "server_id": server.id,
        "server_name": server.name,
        "now": server.now,
        "num_routes": routes.len(),
        "routes": shown.collect::<Vec<Value>>(),
    })
}
