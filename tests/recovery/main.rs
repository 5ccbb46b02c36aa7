//! What survives: power that goes for all nodes at once, damaged files, a full disk.

mod damage;
mod full_disk;
mod killed;
