//! Runs as processes of their own: this program again, told by its environment which run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::entropy;
use crate::plan::{Breakage, Plan};
use crate::run;

/// Longest time for one run. They take a second or so.
const PATIENCE: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 2;

/// Which run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Where everything random comes from.
    pub(crate) seed: u64,
    /// What is broken on purpose.
    pub(crate) breakage: Breakage,
    /// Part of its files' names.
    pub(crate) label: &'static str,
    /// Keep the trace even if all goes well.
    pub(crate) keep_trace: bool,
}

/// How it went.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// Every promise was kept; what happened, in a few words.
    Kept(String),
    /// One was not.
    Broken(String),
}

impl Run {
    /// The run of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        Self { seed, breakage: Breakage::None, label: "seed", keep_trace: false }
    }

    /// Where its trace is.
    pub(crate) fn trace_file(&self) -> PathBuf {
        self.file("trace")
    }

    fn file(&self, ending: &str) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("simulation")
            .join(format!("{}-{}.{ending}", self.label, self.seed))
    }

    fn start(&self) -> Child {
        let this = std::env::current_exe().expect("a running program has a file");
        fs::create_dir_all(self.trace_file().parent().expect("it is in a directory"))
            .expect("target is writable");
        let output = fs::File::create(self.file("output")).expect("target is writable");
        let errors = output.try_clone().expect("a file can be cloned");
        Command::new(this)
            .args(["--exact", "one_run", "--ignored", "--nocapture", "--test-threads=1"])
            .env("LEVEE_SIM_RUN", self.seed.to_string())
            .env("LEVEE_SIM_BREAKAGE", self.breakage.name())
            .env("LEVEE_SIM_TRACE", self.trace_file())
            .env("LEVEE_SIM_RESULT", self.file("result"))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .expect("this program starts again")
    }

    fn finish(&self, mut child: Child) -> Ended {
        let started = Instant::now();
        let status = loop {
            match child.try_wait().expect("a child can be waited for") {
                Some(status) => break Some(status),
                None if started.elapsed() > PATIENCE => break None,
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let result = fs::read_to_string(self.file("result")).unwrap_or_default();
        let _ = fs::remove_file(self.file("result"));
        let ended = match (status, result.split_once(' ')) {
            (None, _) => Ended::Broken(format!("it hangs; {}", self.last_words())),
            (Some(_), Some(("kept", summary))) => Ended::Kept(summary.to_owned()),
            (Some(_), Some(("broken", why))) => Ended::Broken(why.to_owned()),
            (Some(status), _) => Ended::Broken(format!("it ended with {status}; {}", self.last_words())),
        };
        if matches!(ended, Ended::Kept(_)) {
            let _ = fs::remove_file(self.file("output"));
            if !self.keep_trace {
                let _ = fs::remove_file(self.trace_file());
            }
        }
        ended
    }

    fn last_words(&self) -> String {
        let output = fs::read_to_string(self.file("output")).unwrap_or_default();
        let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(12)..].join("\n  ")
    }
}

/// Several runs, some at a time; how each went, in the same order.
pub(crate) fn many(runs: &[Run]) -> Vec<Ended> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let ended: Vec<std::sync::Mutex<Option<Ended>>> =
        runs.iter().map(|_| std::sync::Mutex::default()).collect();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(at) = Some(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                    .filter(|at| *at < runs.len())
                {
                    let how = runs[at].finish(runs[at].start());
                    *ended[at].lock().expect("nobody panics with it") = Some(how);
                }
            });
        }
    });
    let ended = ended.into_iter().map(|ended| ended.into_inner().expect("nobody panicked with it"));
    ended.map(|ended| ended.expect("every run was started")).collect()
}

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The run that the environment asks for.
pub(crate) fn one_run() {
    let Some(seed) = number("LEVEE_SIM_RUN") else { return };
    let breakage = std::env::var("LEVEE_SIM_BREAKAGE").unwrap_or_default();
    let breakage = Breakage::ALL.into_iter().find(|known| known.name() == breakage).unwrap_or(Breakage::None);
    let file = |name| PathBuf::from(std::env::var_os(name).expect("the parent names its files"));
    entropy::seed(seed);
    assert!(entropy::is_ours(), "random bytes come from somewhere else; no run would repeat");
    // A thread that has drawn nothing yet.
    let run = thread::spawn(move || run::run(seed, Plan::draw(seed, breakage)));
    let Ok((trace, outcome)) = run.join() else { panic!("the run panicked") };
    fs::write(file("LEVEE_SIM_TRACE"), trace).expect("the trace is writable");
    let result = match outcome {
        Ok(summary) => format!("kept {summary}"),
        Err(why) => format!("broken {why}"),
    };
    println!("{result}");
    fs::write(file("LEVEE_SIM_RESULT"), result).expect("the result is writable");
}
