//! The doors to the outside: time, sockets, chance, and tasks. Nothing else in this crate reads a clock, opens a
//! socket, draws a random number or spawns, so that a simulation can stand behind these doors.

pub mod chance;
pub mod clock;
pub mod net;
pub mod tasks;
