//! Two servers side by side: the reference and the one under test.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::{skip, tools};
use serde_json::Value;

/// The reference, then the server under test.
pub(crate) struct Pair {
    pub(crate) reference: Cluster,
    pub(crate) subject: Cluster,
}

impl Pair {
    /// Both, with these lines in their configuration. Nothing where there is no reference.
    pub(crate) async fn start(test: &str, extra: &str) -> Result<Option<Self>> {
        Self::with(test, &|| Setup { extra: extra.to_owned(), ..Setup::default() }).await
    }

    /// Both, of so many nodes.
    pub(crate) async fn of(test: &str, nodes: usize) -> Result<Option<Self>> {
        Self::with(test, &|| Setup { nodes, ..Setup::default() }).await
    }

    /// Both, with these lines in the `jetstream` block of their configuration.
    pub(crate) async fn start_in_jetstream(test: &str, jetstream: &str) -> Result<Option<Self>> {
        Self::with(test, &|| Setup { jetstream: jetstream.to_owned(), ..Setup::default() }).await
    }

    async fn with(test: &str, setup: &dyn Fn() -> Setup) -> Result<Option<Self>> {
        let Some(program) = tools::nats_server() else {
            skip::missing(test, "there is no nats-server to compare with")?;
            return Ok(None);
        };
        let reference = Cluster::with(Setup { program: Some(program), ..setup() }).await?;
        let subject = Cluster::with(setup()).await?;
        Ok(Some(Self { reference, subject }))
    }
}

/// Collects what differs, so that one run tells everything.
#[derive(Default)]
pub(crate) struct Differences {
    found: Vec<String>,
    compared: usize,
}

impl Differences {
    /// Compares two answers to `step`.
    pub(crate) fn compare(&mut self, step: &str, reference: &Value, subject: &Value) {
        self.compared += 1;
        let mut here = Vec::new();
        differ("", reference, subject, &mut here);
        self.found.extend(here.into_iter().map(|line| format!("{step}\n    {line}")));
    }

    /// Adds one that was found elsewhere.
    pub(crate) fn add(&mut self, step: &str, what: String) {
        self.found.push(format!("{step}\n    {what}"));
    }

    /// Fails with all of them.
    pub(crate) fn demand_none(self) -> Result<()> {
        ensure!(self.compared > 0, "nothing was compared");
        let count = self.found.len();
        ensure!(count == 0, "{count} differences:\n{}", self.found.join("\n"));
        Ok(())
    }
}

/// Field by field: what one has and the other has not, and what is not the same.
fn differ(path: &str, reference: &Value, subject: &Value, found: &mut Vec<String>) {
    match (reference, subject) {
        (Value::Object(one), Value::Object(other)) => {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                let path = format!("{path}.{name}");
                match (one.get(name), other.get(name)) {
                    (Some(one), Some(other)) => differ(&path, one, other, found),
                    (Some(one), None) => found.push(format!("{path}: {one} is missing")),
                    (None, Some(other)) => found.push(format!("{path}: {other} is extra")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                differ(&format!("{path}[{index}]"), one, other, found);
            }
        }
        _ if reference == subject => {}
        _ => found.push(format!("{path}: {subject} instead of {reference}")),
    }
}

/// Hides what must differ between two servers and two moments.
pub(crate) fn normalized(value: &Value) -> Value {
    /// Times, ids and measurements: there or not is compared, what they say is not.
    const HIDDEN: &[&str] = &[
        "created",
        "ts",
        "time",
        "first_ts",
        "last_ts",
        "last_active",
        "timestamp",
        "id",
        "raft_group",
        "server_id",
        "_nats.server",
        "average_time",
        "active",
    ];
    // What Levee notes in metadata under a name of its own, and metadata that have nothing else.
    let is_ours = |name: &str, value: &Value| {
        let all_ours = |fields: &serde_json::Map<String, Value>| {
            !fields.is_empty() && fields.keys().all(|name| name.starts_with("_levee."))
        };
        name.starts_with("_levee.") || (name == "metadata" && value.as_object().is_some_and(all_ours))
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, value)| !is_ours(name, value))
            .map(|(name, value)| {
                let value = match value {
                    // Counts what the harness asked too.
                    Value::Object(counts) if name == "api" => {
                        counts.keys().map(|name| (name.clone(), Value::String("(hidden)".into()))).collect()
                    }
                    // Go names its own structs; which value does not fit is enough.
                    Value::String(text) if name == "description" && text.contains(" into Go ") => {
                        Value::String(text.split(" into Go ").next().unwrap_or_default().to_owned())
                    }
                    Value::Null | Value::Object(_) | Value::Array(_) => normalized(value),
                    _ if HIDDEN.contains(&name.as_str()) => Value::String("(hidden)".into()),
                    _ => normalized(value),
                };
                (name.clone(), value)
            })
            .collect(),
        Value::Array(values) => values.iter().map(normalized).collect(),
        other => other.clone(),
    }
}
