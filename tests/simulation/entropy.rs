//! Where a run's chance comes from below our own: the operating system's random bytes, replaced by a sequence.
//!
//! openraft draws its election timeouts from a thread's generator, tokio and the standard library's hash maps seed
//! themselves, and all of them ask `getrandom`. A program may define that function itself, and then gets asked
//! instead of the C library. Each thread has a sequence of its own, so that a helper thread that asks earlier or
//! later changes nothing.
#![allow(unsafe_code, reason = "defines a function of the C library, which is the only door to all of them")]

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

static SEED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Threads that start from here on draw from this seed.
pub(crate) fn seed(seed: u64) {
    SEED.store(seed, Ordering::Relaxed);
}

/// Whether random bytes really come from here.
pub(crate) fn is_ours() -> bool {
    let drawn = || {
        let draw = || rand::random::<u64>();
        std::thread::spawn(draw).join().expect("drawing does not panic")
    };
    drawn() == drawn()
}

fn next() -> u8 {
    STATE.with(|state| {
        let now =
            state.get().unwrap_or_else(|| SEED.load(Ordering::Relaxed)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(Some(now));
        let mixed = (now ^ (now >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 56) as u8
    })
}

/// As the C library declares it.
///
/// # Safety
///
/// `buffer` must have room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    for offset in 0..length {
        // SAFETY: within the caller's buffer.
        unsafe { buffer.add(offset).write(next()) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}
