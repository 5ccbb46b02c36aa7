//! nats-server's command line flags, in Go's style: `-x`, `--x`, `--x=v`, `--x v`, and `--x=false` for switches.
//! What they say wins over the file.

use std::path::PathBuf;

use super::options::{host_port, port_number, route};
use super::{Authorization, Config, ConfigError, Draft, Listen, Login};

/// The flags of one command line.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Flags {
    /// `-c`: the file.
    pub config: Option<String>,
    /// `-t`: only check the configuration.
    pub test: bool,
    /// `-v`: print the version.
    pub version: bool,
    /// `-h`: print the usage.
    pub help: bool,
    /// `-sl`: send a signal to another process.
    pub signal: Option<SignalTarget>,
    addr: Option<String>,
    port: Option<i64>,
    name: Option<String>,
    pid: Option<String>,
    http_port: Option<i64>,
    client_advertise: Option<String>,
    ports_file_dir: Option<String>,
    log: Option<String>,
    logtime: Option<bool>,
    logtime_utc: Option<bool>,
    debug: Option<bool>,
    trace: Option<bool>,
    jetstream: Option<bool>,
    store_dir: Option<String>,
    user: Option<String>,
    pass: Option<String>,
    auth: Option<String>,
    routes: Option<String>,
    cluster: Option<String>,
    cluster_name: Option<String>,
    cluster_listen: Option<String>,
    cluster_advertise: Option<String>,
    no_advertise: Option<bool>,
}

/// What `-sl` asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignalTarget {
    /// The signal.
    pub signal: Signal,
    /// A process id or a file that holds one. None: the one process of this name.
    pub process: Option<String>,
}

/// The names of signals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal {
    /// Kill at once.
    Stop,
    /// Stop in order, as Ctrl-C.
    Quit,
    /// Stop in order.
    Term,
    /// Reopen the log file.
    Reopen,
    /// Read the configuration again.
    Reload,
    /// Lame duck mode.
    LameDuck,
}

impl Signal {
    fn parse(name: &str) -> Result<Self, ConfigError> {
        Ok(match name {
            "stop" => Self::Stop,
            "quit" => Self::Quit,
            "term" => Self::Term,
            "reopen" => Self::Reopen,
            "reload" => Self::Reload,
            "ldm" => Self::LameDuck,
            _ => return Err(ConfigError::Flag(format!("unknown signal \"{name}\""))),
        })
    }
}

const UNSUPPORTED_VALUES: &[&str] = &[
    "ms",
    "https_port",
    "r",
    "remote_syslog",
    "log_size_limit",
    "tlscert",
    "tlskey",
    "tlscacert",
    "profile",
];
const UNSUPPORTED_SWITCHES: &[&str] = &["s", "syslog", "tls", "tlsverify", "help_tls"];
/// Flags that take a value and change nothing, as the options of these names.
const NO_EFFECT_VALUES: &[&str] = &["max_traced_msg_len", "connect_retries"];

impl Flags {
    /// Reads the arguments after the program's name.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, ConfigError> {
        let mut flags = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let stripped = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
            let Some(flag) = stripped.filter(|flag| !flag.is_empty()) else {
                if argument == "--" {
                    break;
                }
                match argument.to_ascii_lowercase().as_str() {
                    "version" => flags.version = true,
                    "help" => flags.help = true,
                    _ => return Err(ConfigError::Flag(format!("unrecognized command: \"{argument}\""))),
                }
                break;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            flags.set(name, inline, &mut arguments)?;
        }
        // What is left is not a flag: Go stops at the first argument that is none.
        match arguments.next() {
            Some(stray) => Err(ConfigError::Flag(format!("unrecognized command: \"{stray}\""))),
            None => Ok(flags),
        }
    }

    fn set(
        &mut self,
        name: &str,
        inline: Option<String>,
        rest: &mut impl Iterator<Item = String>,
    ) -> Result<(), ConfigError> {
        let mut value = Inline { name, inline, rest };
        match name {
            "a" | "addr" | "net" => self.addr = Some(value.text()?),
            "p" | "port" => self.port = Some(value.number()?),
            "n" | "name" | "server_name" => self.name = Some(value.text()?),
            "P" | "pid" => self.pid = Some(value.text()?),
            "m" | "http_port" => self.http_port = Some(value.number()?),
            "c" | "config" => self.config = Some(value.text()?),
            "t" => self.test = value.switch()?,
            "sl" | "signal" => {
                let text = value.text()?;
                let (signal, process) = match text.split_once('=') {
                    Some((signal, process)) => (signal, Some(process.to_owned())),
                    None => (text.as_str(), None),
                };
                self.signal = Some(SignalTarget { signal: Signal::parse(signal)?, process });
            }
            "client_advertise" => self.client_advertise = Some(value.text()?),
            "ports_file_dir" => self.ports_file_dir = Some(value.text()?),
            "l" | "log" => self.log = Some(value.text()?),
            "T" | "logtime" => self.logtime = Some(value.switch()?),
            "logtime_utc" => self.logtime_utc = Some(value.switch()?),
            "D" | "debug" => self.debug = Some(value.switch()?),
            "V" | "trace" | "VV" => self.trace = Some(value.switch()?),
            "DV" | "DVV" => {
                let on = value.switch()?;
                (self.debug, self.trace) = (Some(on), Some(on));
            }
            "js" | "jetstream" => self.jetstream = Some(value.switch()?),
            "sd" | "store_dir" => self.store_dir = Some(value.text()?),
            "user" => self.user = Some(value.text()?),
            "pass" => self.pass = Some(value.text()?),
            "auth" => self.auth = Some(value.text()?),
            "routes" => self.routes = Some(value.text()?),
            "cluster" => self.cluster = Some(value.text()?),
            "cluster_name" => self.cluster_name = Some(value.text()?),
            "cluster_listen" => self.cluster_listen = Some(value.text()?),
            "cluster_advertise" => self.cluster_advertise = Some(value.text()?),
            "no_advertise" => self.no_advertise = Some(value.switch()?),
            "v" | "version" => self.version = value.switch()?,
            "h" | "help" => self.help = value.switch()?,
            _ if NO_EFFECT_VALUES.contains(&name) => {
                value.number()?;
            }
            _ if UNSUPPORTED_VALUES.contains(&name) || UNSUPPORTED_SWITCHES.contains(&name) => {
                return Err(ConfigError::Flag(format!("flag -{name} is not supported yet")));
            }
            _ => return Err(ConfigError::Flag(format!("flag provided but not defined: -{name}"))),
        }
        Ok(())
    }
}

/// A flag's value, inline or the next argument.
struct Inline<'a, I> {
    name: &'a str,
    inline: Option<String>,
    rest: &'a mut I,
}

impl<I: Iterator<Item = String>> Inline<'_, I> {
    fn text(&mut self) -> Result<String, ConfigError> {
        self.inline
            .take()
            .or_else(|| self.rest.next())
            .ok_or_else(|| ConfigError::Flag(format!("flag needs an argument: -{}", self.name)))
    }

    fn number(&mut self) -> Result<i64, ConfigError> {
        let text = self.text()?;
        text.parse().map_err(|_| self.invalid(&text, "parse error"))
    }

    fn switch(&mut self) -> Result<bool, ConfigError> {
        match self.inline.take().as_deref() {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(text) => Err(self.invalid(text, "parse error")),
        }
    }

    fn invalid(&self, text: &str, why: &str) -> ConfigError {
        ConfigError::Flag(format!("invalid value \"{text}\" for flag -{}: {why}", self.name))
    }
}

fn flag_error(message: String) -> ConfigError {
    ConfigError::Flag(message)
}

pub(super) fn apply(draft: &mut Draft, flags: &Flags) -> Result<(), ConfigError> {
    let config = &mut draft.config;
    if let Some(host) = &flags.addr {
        // As nats-server: a host, perhaps with a port.
        match host_port(host, "0.0.0.0", 4222) {
            Ok(listen) => config.listen = listen,
            Err(_) => config.listen.host = host.trim_matches(['[', ']']).to_owned(),
        }
    }
    if let Some(port) = flags.port {
        config.listen.port = port_number(port, 4222).map_err(flag_error)?;
    }
    if let Some(port) = flags.http_port {
        config.http = match port {
            0 => None,
            _ => Some(Listen {
                host: config
                    .http
                    .as_ref()
                    .map_or_else(|| config.listen.host.clone(), |http| http.host.clone()),
                port: port_number(port, 0).map_err(flag_error)?,
            }),
        };
        draft.http_host_follows = true;
    }
    replace(&mut config.server_name, flags.name.as_ref());
    replace(&mut config.client_advertise, flags.client_advertise.as_ref());
    replace(&mut config.pid_file, flags.pid.as_ref().map(PathBuf::from).as_ref());
    replace(&mut config.ports_file_dir, flags.ports_file_dir.as_ref().map(PathBuf::from).as_ref());
    replace(&mut config.log.file, flags.log.as_ref().map(PathBuf::from).as_ref());
    config.log.time = flags.logtime.unwrap_or(config.log.time);
    config.log.utc = flags.logtime_utc.unwrap_or(config.log.utc);
    config.log.debug = flags.debug.unwrap_or(config.log.debug);
    config.log.trace = flags.trace.unwrap_or(config.log.trace);
    if let Some(on) = flags.jetstream {
        config.jetstream = on.then(|| config.jetstream.take().unwrap_or_default());
    }
    replace(&mut draft.store_dir, flags.store_dir.as_ref().map(PathBuf::from).as_ref());
    authorization(config, flags)?;
    cluster(draft, flags)
}

fn replace<T: Clone>(target: &mut Option<T>, value: Option<&T>) {
    if let Some(value) = value {
        *target = Some(value.clone());
    }
}

fn authorization(config: &mut Config, flags: &Flags) -> Result<(), ConfigError> {
    match (&flags.user, &flags.pass, &flags.auth) {
        (None, None, None) => {}
        (None, None, Some(token)) => config.authorization = Authorization::Token(token.clone()),
        (user, pass, None) => {
            let before = match &config.authorization {
                Authorization::User(login) => Some(login),
                Authorization::Open | Authorization::Users(_) | Authorization::Token(_) => None,
            };
            let user = user.as_ref().or_else(|| before.map(|login| &login.user));
            let user = user.ok_or_else(|| flag_error("--pass needs --user".to_owned()))?.clone();
            let password = pass.as_ref().or_else(|| before.map(|login| &login.password));
            let password = password.cloned().unwrap_or_default();
            config.authorization = Authorization::User(Login::unrestricted(user, password));
        }
        (_, _, Some(_)) => return Err(flag_error("Cannot have a user/pass and token".to_owned())),
    }
    Ok(())
}

fn cluster(draft: &mut Draft, flags: &Flags) -> Result<(), ConfigError> {
    let cluster = &mut draft.cluster;
    replace(&mut cluster.name, flags.cluster_name.as_ref());
    replace(&mut cluster.advertise, flags.cluster_advertise.as_ref());
    cluster.no_advertise = flags.no_advertise.unwrap_or(cluster.no_advertise);
    if let Some(url) = flags.cluster_listen.as_ref().or(flags.cluster.as_ref()) {
        let rest = url.strip_prefix("nats://").unwrap_or(url);
        let rest = rest.strip_prefix("nats-route://").unwrap_or(rest).trim_end_matches('/');
        if rest.contains('@') {
            return Err(flag_error("credentials of a cluster are not supported yet".to_owned()));
        }
        let listen = host_port(rest, "0.0.0.0", 6222)
            .map_err(|message| flag_error(format!("cluster address: {message}")))?;
        cluster.listen(listen);
    }
    if let Some(text) = &flags.routes {
        let urls = text.split(',').map(str::trim).filter(|url| !url.is_empty());
        cluster.routes = urls.map(route).collect::<Result<_, _>>().map_err(flag_error)?;
    }
    Ok(())
}
