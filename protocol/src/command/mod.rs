//! What goes through a log: commands of stream groups and of the meta group, and how they are framed.

pub mod codec;
pub mod meta;
pub mod origin;
pub mod progress;
pub mod stream;

pub use codec::{Encoded, Undecodable};
pub use meta::MetaCommand;
pub use origin::OriginClaim;
pub use progress::{ConsumerProgress, Progress};
pub use stream::StreamCommand;
