//! Reading another stream, to mirror or to source it.
//!
//! The leader of a stream that mirrors or sources others reads each of them with a [`Puller`], which knows what to ask
//! for next; the origin's leader gives [`server::answer`]; a [`Copier`] makes of it what the stream stores, behind a
//! claim. Whether it is stored is decided where it is applied, by `stream/mirror.rs`. How questions and answers travel is
//! nobody's business here.
//!
//! Where the owner made a consumer for it, an [`Attachment`] makes the answers of what that delivers.

mod attachment;
mod copier;
mod puller;
pub mod readers;
pub mod server;

#[cfg(test)]
mod tests;

pub use attachment::{Attachment, Broken, Delivered, FlowAnswer};
pub use copier::{Copied, Copier};
pub use puller::{Ask, Puller, Standing};
