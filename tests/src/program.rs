//! Which server is tested.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Names another server than the one that was built beside the tests.
pub const SUBJECT: &str = "LEVEE_SUBJECT";

/// A server program.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    levee: bool,
}

impl Program {
    /// The server under test: `LEVEE_SUBJECT`, or `levee` in the build directory of the tests.
    ///
    /// # Errors
    /// When it is not there.
    pub fn subject() -> Result<Self> {
        match std::env::var_os(SUBJECT) {
            Some(path) => Self::at(Path::new(&path)),
            None => {
                let tests = std::env::current_exe().context("where the tests are")?;
                let built = tests.ancestors().nth(2).map(|profile| profile.join("levee"));
                let built = built.context("the tests are not in a build directory")?;
                Self::at(&built).context("build it first: cargo build --release -p levee-cli")
            }
        }
    }

    /// The server at `path`; what it is is told by its real name, because Levee goes by the name of nats-server too.
    ///
    /// # Errors
    /// When there is none.
    pub fn at(path: &Path) -> Result<Self> {
        let real = path.canonicalize().with_context(|| format!("no server at {}", path.display()))?;
        let Some(name) = real.file_name() else { bail!("no server at {}", real.display()) };
        let levee = name == "levee";
        Ok(Self { path: path.to_owned(), levee })
    }

    /// Whether this is Levee. Claims that go further than nats-server's ask.
    #[must_use]
    pub fn is_levee(&self) -> bool {
        self.levee
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The command that serves `config`.
    #[must_use]
    pub fn serve(&self, config: &Path) -> Command {
        let mut command = Command::new(&self.path);
        let by_own_name = self.path.file_name().is_some_and(|name| name == "levee");
        if by_own_name {
            command.arg("serve");
        }
        command.arg("-c").arg(config);
        command
    }
}
