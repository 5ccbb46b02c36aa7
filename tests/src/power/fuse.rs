//! A file system of one file, which is the disk: what the kernel does with the file comes here as messages.
//!
//! The file is the backing of a loop device, so what arrives is what a file system sends to a disk: reads, writes and
//! flushes, below the page cache. The kernel's FUSE protocol is all there is to it: a header, and numbers in native
//! order (`include/uapi/linux/fuse.h`). `mount` hands the connection to the kernel, as its standard input, so there is
//! no library and no unsafe code in between.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;

/// Name of the file.
pub(super) const FILE: &str = "disk";
const ROOT: u64 = 1;
const DISK: u64 = 2;
/// The most that one message carries.
const DATA_MAX: usize = 1 << 20;
const PAGES_MAX: u16 = 256;
/// The protocol's version that is spoken: 7.31, as of Linux 5.4.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;
/// Flags of the first message: large writes, more than 32 pages at once.
const BIG_WRITES: u32 = 1 << 5;
const MAX_PAGES: u32 = 1 << 22;
const REQUEST_HEAD: usize = 40;
const WRITE_HEAD: usize = 40;
/// Seconds that the kernel may remember names and sizes, which never change.
const FOREVER: u64 = 1 << 30;

/// What is done with the file.
pub(super) trait Backing: Send + 'static {
    /// Reads all of `bytes`.
    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes`.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Flushes what was written.
    fn flush(&mut self) -> io::Result<()>;
}

/// Mounts the file system at `at` and serves it on a thread of its own until it is unmounted.
pub(super) fn mount(at: &Path, bytes: u64, backing: impl Backing) -> io::Result<()> {
    let connection = File::options().read(true).write(true).open("/dev/fuse")?;
    let done = Command::new("mount")
        .args(["-i", "-t", "fuse", "-o", "fd=0,rootmode=40000,user_id=0,group_id=0", "levee-tests"])
        .arg(at)
        .stdin(Stdio::from(connection.try_clone()?))
        .output()?;
    if !done.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned()));
    }
    let mut server = Server { connection, bytes, backing };
    std::thread::Builder::new().name("disk".into()).spawn(move || server.run())?;
    Ok(())
}

/// What the kernel asks. The numbers are the protocol's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Opcode {
    Lookup = 1,
    Forget = 2,
    GetAttributes = 3,
    SetAttributes = 4,
    Open = 14,
    Read = 15,
    Write = 16,
    Release = 18,
    Sync = 20,
    Init = 26,
    Interrupt = 36,
    Destroy = 38,
    ForgetMany = 42,
}

impl Opcode {
    const ALL: [Self; 13] = [
        Self::Lookup,
        Self::Forget,
        Self::GetAttributes,
        Self::SetAttributes,
        Self::Open,
        Self::Read,
        Self::Write,
        Self::Release,
        Self::Sync,
        Self::Init,
        Self::Interrupt,
        Self::Destroy,
        Self::ForgetMany,
    ];

    fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|opcode| *opcode as u32 == number)
    }
}

struct Server<B> {
    connection: File,
    bytes: u64,
    backing: B,
}

impl<B: Backing> Server<B> {
    fn run(&mut self) {
        let mut request = vec![0; DATA_MAX + 2 * 4096];
        loop {
            let length = match self.connection.read(&mut request) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // A request was taken back before it was read.
                Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => continue,
                // Unmounted.
                Err(_) => return,
            };
            let Some((head, rest)) = request[..length].split_at_checked(REQUEST_HEAD) else { return };
            let (opcode, unique, node) = (u32_at(head, 4), u64_at(head, 8), u64_at(head, 16));
            let answer = match Opcode::from_number(opcode) {
                None => Err(Errno::NOSYS),
                Some(Opcode::Forget | Opcode::ForgetMany | Opcode::Interrupt) => continue,
                Some(opcode) => self.answer(opcode, node, rest),
            };
            if self.send(unique, answer).is_err() {
                return;
            }
        }
    }

    fn answer(&mut self, opcode: Opcode, node: u64, request: &[u8]) -> Result<Vec<u8>, Errno> {
        match opcode {
            Opcode::Init => Ok(init()),
            Opcode::Lookup if request.strip_suffix(&[0]) == Some(FILE.as_bytes()) => Ok(self.entry()),
            Opcode::Lookup => Err(Errno::NOENT),
            Opcode::GetAttributes | Opcode::SetAttributes => Ok(self.attributes(node)),
            // A handle and flags, neither of which is needed.
            Opcode::Open => Ok(vec![0; 16]),
            Opcode::Read => {
                let (offset, length) = (u64_at(request, 8), u32_at(request, 16) as usize);
                let mut bytes = vec![0; length];
                self.backing.read(offset, &mut bytes).map_err(|_| Errno::IO)?;
                Ok(bytes)
            }
            Opcode::Write => {
                let (offset, length) = (u64_at(request, 8), u32_at(request, 16));
                let bytes = request.get(WRITE_HEAD..WRITE_HEAD + length as usize).ok_or(Errno::IO)?;
                self.backing.write(offset, bytes).map_err(|_| Errno::IO)?;
                Ok(u64::from(length).to_ne_bytes().to_vec())
            }
            Opcode::Sync => self.backing.flush().map(|()| Vec::new()).map_err(|_| Errno::IO),
            Opcode::Release | Opcode::Destroy => Ok(Vec::new()),
            Opcode::Forget | Opcode::ForgetMany | Opcode::Interrupt => Err(Errno::NOSYS),
        }
    }

    fn send(&mut self, unique: u64, answer: Result<Vec<u8>, Errno>) -> io::Result<()> {
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error.raw_os_error(), Vec::new()),
        };
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend_from_slice(&u32::try_from(16 + body.len()).unwrap_or(0).to_ne_bytes());
        message.extend_from_slice(&error.to_ne_bytes());
        message.extend_from_slice(&unique.to_ne_bytes());
        message.extend_from_slice(&body);
        match self.connection.write(&message) {
            // Nobody waits for it anymore.
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
            written => written.map(drop),
        }
    }

    fn entry(&self) -> Vec<u8> {
        let mut entry = Vec::with_capacity(128);
        for number in [DISK, 0, FOREVER, FOREVER] {
            entry.extend_from_slice(&number.to_ne_bytes());
        }
        entry.extend_from_slice(&[0; 8]);
        entry.extend(self.inode(DISK));
        entry
    }

    fn attributes(&self, node: u64) -> Vec<u8> {
        let mut attributes = FOREVER.to_ne_bytes().to_vec();
        attributes.extend_from_slice(&[0; 8]);
        attributes.extend(self.inode(node));
        attributes
    }

    fn inode(&self, node: u64) -> Vec<u8> {
        let (mode, links, bytes) =
            if node == ROOT { (0o040_700_u32, 2_u32, 0) } else { (0o100_600, 1, self.bytes) };
        let mut inode = Vec::with_capacity(88);
        // Number, size and blocks of 512 bytes, then three times.
        for number in [node, bytes, bytes / 512, 0, 0, 0] {
            inode.extend_from_slice(&number.to_ne_bytes());
        }
        // Parts of the times, mode, links, owner, group, device, size of a block, flags.
        for number in [0, 0, 0, mode, links, 0, 0, 0, 4096, 0] {
            inode.extend_from_slice(&number.to_ne_bytes());
        }
        inode
    }
}

fn init() -> Vec<u8> {
    let mut init = Vec::with_capacity(64);
    for number in [MAJOR, MINOR, 1 << 20, BIG_WRITES | MAX_PAGES] {
        init.extend_from_slice(&number.to_ne_bytes());
    }
    // Requests in the background, and how many of them are many.
    for number in [64_u16, 48] {
        init.extend_from_slice(&number.to_ne_bytes());
    }
    // The largest write, and how fine times are.
    for number in [DATA_MAX as u32, 1] {
        init.extend_from_slice(&number.to_ne_bytes());
    }
    init.extend_from_slice(&PAGES_MAX.to_ne_bytes());
    init.resize(64, 0);
    init
}

/// A number of a message. What the kernel sends is as long as it says.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}
