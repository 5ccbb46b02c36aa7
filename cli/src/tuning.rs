//! What a node asks of the operating system before it starts.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Settings of this process. None of them is worth refusing to start for.
pub(crate) fn apply() {
    // The kernel would back sparse buffers with 2 MiB pages; thousands of connections then hold gigabytes they
    // do not use, and the page being assembled stalls the write that touched it.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!("transparent huge pages stay on: {error}");
    }
    // Sockets and store files: the soft limit of a shell is often 1024.
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!("the limit of open files stays at {:?}: {error}", limit.current);
        }
    }
}
