//! Streams are created, changed and deleted; no two of an account capture the same subject.

use levee_protocol::api::{AccountLimits, ApiError, Placement, StreamConfig};
use levee_protocol::command::meta::{Move, NodeRegistration, StreamAssignment};
use levee_protocol::ids::{AccountName, GroupId, NodeId, StreamName};
use levee_protocol::time::Timestamp;

use super::moves::{check_settled, origin};
use super::placement::{self, Candidates};
use super::{MetaMachine, MetaReply};
use crate::stream::check_update;

impl MetaMachine {
    pub(super) fn create_stream(
        &mut self,
        now: Timestamp,
        account: &AccountName,
        config: &StreamConfig,
        (alive, limits): (&[NodeId], &AccountLimits),
        restoring: bool,
    ) -> Result<MetaReply, ApiError> {
        let name = parse_name(config)?;
        let mut config = config.clone();
        config.store_metadata();
        if let Some(existing) = self.stream(account, &name) {
            // The same asked for again is answered again, in case the first answer was lost.
            return if existing.config == config && existing.restoring == restoring {
                Ok(MetaReply::Exists(Box::new(existing.clone())))
            } else if restoring {
                Err(ApiError::restore_name_exists())
            } else {
                Err(ApiError::stream_name_exists())
            };
        }
        self.check_overlap(account, &name, &config)?;
        limits.check_count(self.others(account, &name).count())?;
        limits.check_consumers(&config)?;
        self.check_reserved(account, &name, &config, limits)?;
        let count = config.replica_count();
        let candidates = self.candidates(config.placement.as_ref(), alive);
        let replicas = placement::choose(count, &candidates, &self.load);
        let replicas = replicas.ok_or_else(|| no_suitable_peers(&candidates))?;
        let assignment = StreamAssignment {
            account: account.clone(),
            group: self.take_group(),
            config,
            created: self.stamp(now),
            replicas,
            revision: 1,
            replicas_changed: false,
            moving: None,
            restoring,
        };
        self.put_stream(assignment.clone(), &name);
        Ok(MetaReply::Created(Box::new(assignment)))
    }

    pub(super) fn update_stream(
        &mut self,
        now: Timestamp,
        account: &AccountName,
        config: &StreamConfig,
        (alive, limits): (&[NodeId], &AccountLimits),
    ) -> Result<MetaReply, ApiError> {
        let name = parse_name(config)?;
        let existing = self.whole_stream(account, &name)?;
        let mut config = config.clone();
        check_update(&existing.config, &mut config)?;
        config.store_metadata();
        self.check_overlap(account, &name, &config)?;
        limits.check_consumers(&config)?;
        if promised(&config) > promised(&existing.config) {
            self.check_reserved(account, &name, &config, limits)?;
        }
        let replicas_before = existing.replicas.clone();
        let mut assignment = existing.clone();
        let scaled = assignment.config.num_replicas != config.num_replicas;
        // Who asks for nothing any more may stay.
        let moved = config.placement.is_some() && assignment.config.placement != config.placement;
        if scaled || moved {
            let count = config.replica_count();
            let candidates = self.candidates(config.placement.as_ref(), alive);
            // Who does not fit any more goes, whether it is alive or not.
            let tags = config.placement.as_ref().map_or(&[][..], |placement| &placement.tags);
            let fits = |id: &NodeId| !self.nodes.contains_key(id) || self.has_tags(*id, tags);
            let stay: Vec<NodeId> = replicas_before.iter().copied().filter(fits).collect();
            let resized = placement::resize(&stay, count, &candidates, &self.load);
            assignment.replicas = resized.ok_or_else(|| no_suitable_peers(&candidates))?;
            check_settled(existing)?;
        }
        if assignment.replicas != replicas_before {
            assignment.moving = Some(Move { since: now, origin: Some(origin(existing)) });
        }
        if assignment.config == config && assignment.replicas == replicas_before {
            let assignment = Box::new(assignment);
            return Ok(MetaReply::Updated { assignment, replicas_before });
        }
        assignment.config = config;
        assignment.replicas_changed |= assignment.replicas != replicas_before;
        assignment.revision += 1;
        self.put_stream(assignment.clone(), &name);
        Ok(MetaReply::Updated { assignment: Box::new(assignment), replicas_before })
    }

    pub(super) fn delete_stream(
        &mut self,
        account: &AccountName,
        name: &StreamName,
    ) -> Result<MetaReply, ApiError> {
        let deleted = self.take_stream(&(account.clone(), name.clone()));
        deleted
            .map(|assignment| MetaReply::Deleted(Box::new(assignment)))
            .ok_or_else(ApiError::stream_not_found)
    }

    /// A stream that was being filled from an archive is one like others from now on, or goes.
    pub(super) fn end_restore(&mut self, group: GroupId, complete: bool) -> Result<MetaReply, ApiError> {
        let assignment = self.stream_of_group(group).filter(|assignment| assignment.restoring);
        let mut assignment = assignment.ok_or_else(ApiError::stream_not_found)?.clone();
        let name = parse_name(&assignment.config)?;
        if !complete {
            self.take_stream(&(assignment.account.clone(), name));
            return Ok(MetaReply::Deleted(Box::new(assignment)));
        }
        assignment.restoring = false;
        assignment.revision += 1;
        self.put_stream(assignment.clone(), &name);
        let replicas_before = assignment.replicas.clone();
        Ok(MetaReply::Updated { assignment: Box::new(assignment), replicas_before })
    }

    fn check_overlap(
        &self,
        account: &AccountName,
        name: &StreamName,
        config: &StreamConfig,
    ) -> Result<(), ApiError> {
        let Some(captures) = self.captures.get(account) else { return Ok(()) };
        let is_taken = |own: &String| captures.has_collision(own.as_bytes(), |other| other != name);
        if config.subjects.iter().any(is_taken) { Err(ApiError::stream_subject_overlap()) } else { Ok(()) }
    }

    /// The account's streams but for the one of this name.
    fn others(&self, account: &AccountName, name: &StreamName) -> impl Iterator<Item = &StreamAssignment> {
        self.streams_of(account).filter(move |(other, _)| *other != name).map(|(_, stream)| stream)
    }

    /// Whether what the account's streams of this kind are promised is within its limits.
    fn check_reserved(
        &self,
        account: &AccountName,
        name: &StreamName,
        config: &StreamConfig,
        limits: &AccountLimits,
    ) -> Result<(), ApiError> {
        let others = self.others(account, name).filter(|other| other.config.storage == config.storage);
        let others = others.map(|other| promised(&other.config));
        // A stream without a promise takes something, too.
        let reserved = others.fold(promised(config).max(1), i64::saturating_add);
        limits.check_reserved(config.storage, reserved)
    }

    /// Whether the node is what is asked for with these tags.
    #[must_use]
    pub fn has_tags(&self, node: NodeId, tags: &[String]) -> bool {
        tags.is_empty() || self.node(node).is_some_and(|node| unmatched(node, tags).is_none())
    }

    /// Nodes that a stream may be placed on.
    pub(super) fn candidates(&self, placement: Option<&Placement>, alive: &[NodeId]) -> Candidates {
        let tags = placement.map_or(&[][..], |placement| &placement.tags);
        let mut candidates = Candidates::default();
        for node in alive.iter().filter_map(|id| self.nodes.get(id)) {
            match unmatched(node, tags) {
                None => drop(candidates.nodes.insert(node.id)),
                Some(tag) => drop(candidates.unmatched.insert(tag.to_owned())),
            }
        }
        // All nodes are configured alike. A stream that asks for one of the values itself may have it more than once.
        let prefixes = self.nodes.values().map(|node| node.unique_tag.as_str());
        let prefix = prefixes.into_iter().find(|prefix| !prefix.is_empty());
        let is_named = |prefix: &&str| tags.iter().any(|tag| tag.to_lowercase().starts_with(prefix));
        if let Some(prefix) = prefix.filter(|prefix| !is_named(prefix)) {
            for node in self.nodes.values().filter(|node| !is_alone(node)) {
                match node.tags.iter().find(|tag| tag.starts_with(prefix)) {
                    Some(zone) => drop(candidates.zones.insert(node.id, zone.clone())),
                    None => drop(candidates.nodes.remove(&node.id)),
                }
            }
        }
        candidates
    }
}

fn is_alone(node: &NodeRegistration) -> bool {
    node.cluster_address.is_empty()
}

/// The first of the tags that a stream asks for that the node lacks, or has and should not have. A node that runs alone
/// is where every stream is.
fn unmatched<'a>(node: &NodeRegistration, tags: &'a [String]) -> Option<&'a str> {
    let has = |tag: &str| node.tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
    let is_unmatched = |tag: &&str| match tag.strip_prefix('!') {
        Some(unwanted) => has(unwanted),
        None => !has(tag),
    };
    tags.iter().map(String::as_str).find(is_unmatched).filter(|_| !is_alone(node))
}

/// Bytes that a stream's limit promises to it, replicas counted.
fn promised(config: &StreamConfig) -> i64 {
    config.max_bytes.max(0).saturating_mul(config.num_replicas.max(1).into())
}

fn parse_name(config: &StreamConfig) -> Result<StreamName, ApiError> {
    StreamName::parse(&config.name).map_err(ApiError::stream_invalid_config)
}

pub(super) fn no_suitable_peers(candidates: &Candidates) -> ApiError {
    let mut error = "no suitable peers for placement".to_owned();
    let (unwanted, lacking): (Vec<&str>, Vec<&str>) =
        candidates.unmatched.iter().map(String::as_str).partition(|tag| tag.starts_with('!'));
    for (tags, are) in [(lacking, "not matched"), (unwanted, "excluded")] {
        if !tags.is_empty() {
            let quoted: Vec<_> =
                tags.iter().map(|tag| format!("'{}'", tag.trim_start_matches('!'))).collect();
            error = format!("{error}, tags {are} [{}]", quoted.join(", "));
        }
    }
    ApiError::no_suitable_peers(error)
}
