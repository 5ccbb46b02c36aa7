//! What survives: power that goes for all nodes at once, processes that die at any moment, damaged files, a full disk.

mod damage;
mod facts;
mod full_disk;
mod killed;
mod load;
mod moments;
mod power_cut;
mod republished;
mod site;
