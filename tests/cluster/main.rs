//! Several nodes as one server: how they find each other, what spreads between them, and what happens when one dies
//! or is cut off.
//!
//! Claims that only Levee makes (what it refuses at start) are skipped when another server is tested.

mod accounts;
mod advisories;
mod copies;
mod cut;
mod failover;
mod joining;
mod last_words;
mod moving;
mod moving_at_random;
mod permissions;
mod placement;
mod redrive;
mod restoring;
mod spreading;
