//! Ports that no other test, and no outgoing connection, can take between choosing and listening.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context as _, Result, bail};

use crate::place;

/// Below the range from which Linux takes ports of outgoing connections.
const RANGE: std::ops::Range<u16> = 21_000..32_000;

/// A port of 127.0.0.1. It belongs to the holder, also while nothing listens, so that a node that was killed finds
/// it free when it comes back.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes a free port.
    ///
    /// # Errors
    /// When there is none.
    pub fn take() -> Result<Self> {
        let dir = place::common()?.join("ports");
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let span = usize::from(RANGE.end - RANGE.start);
        let begin = rand::random_range(0..span);
        for step in 0..span {
            let offset = u16::try_from((begin + step) % span).context("port range")?;
            let number = RANGE.start + offset;
            let path = dir.join(number.to_string());
            let lock = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .with_context(|| format!("open {}", path.display()))?;
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self { number, _lock: lock });
            }
        }
        bail!("no free port in {RANGE:?}")
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}
