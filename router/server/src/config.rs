//! Settings of a server: a TOML file, then `WHIMBREL_*` of the environment, then options; the later one wins. What is not known
//! is an error that names the nearest that is.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use toml::{Table, Value};
use whimbrel_core::limits::Bounds;

use crate::token;
use crate::tuning;
use crate::units::{bytes, duration_us, print_size, print_us, size};

/// Before the name of a setting in the environment.
const PREFIX: &str = "WHIMBREL_";

/// Variables that clients read; they may stand in a server's environment too. The last one is the build's.
const OTHER_VARIABLES: [&str; 3] = ["WHIMBREL_SERVER", "WHIMBREL_TOKEN", "WHIMBREL_COMMIT"];

/// A name that differs in more than a third of its letters is no slip of the finger.
const NEAREST_MIN: f64 = 0.66;

const LISTEN: &str = "127.0.0.1:7400";
const ADMIN: &str = "127.0.0.1:7401";
const DATA: &str = "whimbrel-data";

/// What options say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// `--data`.
    pub(crate) data: Option<PathBuf>,
    /// `--listen`.
    pub(crate) listen: Option<String>,
    /// `--admin`.
    pub(crate) admin: Option<String>,
    /// `--shards`.
    pub(crate) shards: Option<u16>,
    /// `--cpus`.
    pub(crate) cpus: Option<String>,
    /// `--dev`.
    pub(crate) dev: bool,
}

/// Cores to pin shards to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Cpus {
    /// Those that this process may use, in their order.
    #[default]
    Allowed,
    /// Shards are not pinned.
    None,
    /// These, in this order.
    These(Vec<usize>),
}

/// Where the admin thread listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AdminListen {
    /// See [`Settings::admin_address`].
    #[default]
    Default,
    /// There is no admin thread.
    Off,
    At(SocketAddr),
}

/// How logs are written to standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For a person.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// All that a server is told. What is `None` follows from the data directory or the machine.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) data: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: AdminListen,
    pub(crate) shards: Option<u16>,
    pub(crate) cpus: Cpus,
    pub(crate) dev: bool,
    pub(crate) token_key: Option<[u8; 32]>,
    pub(crate) partitions: Option<u16>,
    pub(crate) segment_size: Option<u32>,
    pub(crate) warm_bytes: Option<u64>,
    pub(crate) log_format: LogFormat,
    pub(crate) log_level: String,
    pub(crate) tuning_profile: Option<String>,
    pub(crate) bounds: Bounds,
}

/// Why settings were not taken. Each names where it stands.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is not TOML: {source}")]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{origin}: there is no setting `{name}`{}", nearest.as_ref().map(|it| format!("; did you mean `{it}`?")).unwrap_or_default())]
    Unknown { origin: String, name: String, nearest: Option<String> },
    #[error("{origin}: `{name}` = {value}: {expected}")]
    Value { origin: String, name: String, value: String, expected: String },
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            data: DATA.into(),
            listen: LISTEN.parse().expect("a constant, parsed in a test"),
            admin: AdminListen::Default,
            shards: None,
            cpus: Cpus::Allowed,
            dev: false,
            token_key: None,
            partitions: None,
            segment_size: None,
            warm_bytes: None,
            log_format: LogFormat::Text,
            log_level: "info,glommio=error".to_owned(),
            tuning_profile: None,
            bounds: Bounds::default(),
        }
    }
}

/// One setting: how it is named, read, and written. From this follow the file's keys, the environment's names and the print.
struct Key {
    /// In the file. Its environment variable is [`Key::variable`].
    name: &'static str,
    set: fn(&mut Settings, &str) -> Result<(), String>,
    get: fn(&Settings) -> String,
}

impl Key {
    /// The name in the environment: without the table of limits, which has no name in common with the rest.
    fn variable(&self) -> String {
        let name = self.name.strip_prefix("limits.").unwrap_or(self.name);
        format!("{PREFIX}{}", name.replace('.', "_").to_uppercase())
    }
}

const KEYS: &[Key] = &[
    Key { name: "data", set: |s, v| put(&mut s.data, path(v)), get: |s| quoted(s.data.display()) },
    Key { name: "listen", set: |s, v| put(&mut s.listen, address(v)), get: |s| quoted(s.listen) },
    Key { name: "shards", set: |s, v| put(&mut s.shards, number(v, 1, 1024).map(Some)), get: |s| optional(s.shards) },
    Key { name: "cpus", set: |s, v| put(&mut s.cpus, cpus(v)), get: |s| s.cpus.to_string() },
    Key { name: "dev", set: |s, v| put(&mut s.dev, boolean(v)), get: |s| s.dev.to_string() },
    Key {
        name: "token_key",
        set: |s, v| put(&mut s.token_key, token_key(v).map(Some)),
        get: |s| optional(s.token_key.map(|key| quoted(hex(&key)))),
    },
    Key {
        name: "partitions",
        set: |s, v| put(&mut s.partitions, number(v, 1, 32_768).map(Some)),
        get: |s| optional(s.partitions),
    },
    Key {
        name: "segment_size",
        set: |s, v| put(&mut s.segment_size, size(v).map(Some)),
        get: |s| optional(s.segment_size.map(|size| quoted(print_size(size.into())))),
    },
    Key { name: "admin.listen", set: |s, v| put(&mut s.admin, admin_listen(v)), get: |s| s.admin.to_string() },
    Key {
        name: "storage.forget_after",
        set: |s, v| put(&mut s.bounds.forget_after_us, forget_after(v)),
        get: |s| quoted(print_us(s.bounds.forget_after_us)),
    },
    Key {
        name: "storage.checkpoint_segments",
        set: |s, v| put(&mut s.bounds.checkpoint_segments, number(v, 1, 1_000_000)),
        get: |s| s.bounds.checkpoint_segments.to_string(),
    },
    Key {
        name: "storage.scrub_interval",
        set: |s, v| put(&mut s.bounds.scrub_interval_us, duration_us(v)),
        get: |s| quoted(print_us(s.bounds.scrub_interval_us)),
    },
    Key {
        name: "storage.warm_bytes",
        set: |s, v| put(&mut s.warm_bytes, warm_bytes(v).map(Some)),
        get: |s| optional(s.warm_bytes.map(|bytes| quoted(print_size(bytes)))),
    },
    Key {
        name: "log.format",
        set: |s, v| put(&mut s.log_format, log_format(v)),
        get: |s| quoted(if s.log_format == LogFormat::Json { "json" } else { "text" }),
    },
    Key { name: "log.level", set: |s, v| put(&mut s.log_level, log_level(v)), get: |s| quoted(&s.log_level) },
    Key {
        name: "tuning.profile",
        set: |s, v| put(&mut s.tuning_profile, tuning::known_profile(v).map(Some)),
        get: |s| optional(s.tuning_profile.as_ref().map(quoted)),
    },
    Key {
        name: "limits.connections",
        set: |s, v| put(&mut s.bounds.connections, number(v, 1, 1_000_000)),
        get: |s| s.bounds.connections.to_string(),
    },
    Key {
        name: "limits.credit_messages",
        set: |s, v| put(&mut s.bounds.credit_messages, number(v, 1, 65_536)),
        get: |s| s.bounds.credit_messages.to_string(),
    },
    Key {
        name: "limits.credit_bytes",
        set: |s, v| put(&mut s.bounds.credit_bytes, size(v)),
        get: |s| quoted(print_size(s.bounds.credit_bytes.into())),
    },
    Key {
        name: "limits.queue_bytes",
        set: |s, v| put(&mut s.bounds.queue_max_bytes, size(v)),
        get: |s| quoted(print_size(s.bounds.queue_max_bytes.into())),
    },
    Key {
        name: "limits.login_timeout",
        set: |s, v| put(&mut s.bounds.login_us, duration_us(v)),
        get: |s| quoted(print_us(s.bounds.login_us)),
    },
    Key {
        name: "limits.keepalive",
        set: |s, v| put(&mut s.bounds.keepalive_us, duration_us(v)),
        get: |s| quoted(print_us(s.bounds.keepalive_us)),
    },
    Key {
        name: "limits.gather_bytes",
        set: |s, v| put(&mut s.bounds.gather_max_bytes, size(v).map(|size| size as usize)),
        get: |s| quoted(print_size(s.bounds.gather_max_bytes as u64)),
    },
    Key {
        name: "limits.inbox_pointers",
        set: |s, v| put(&mut s.bounds.inbox_pointers, number(v, 1, 1_000_000_000)),
        get: |s| s.bounds.inbox_pointers.to_string(),
    },
    Key {
        name: "limits.lane_backlog",
        set: |s, v| put(&mut s.bounds.lane_backlog, number(v, 1, 1_000_000)),
        get: |s| s.bounds.lane_backlog.to_string(),
    },
    Key {
        name: "limits.retry_after",
        set: |s, v| put(&mut s.bounds.retry_after_ms, duration_us(v).map(|us| (us / 1000) as u32)),
        get: |s| quoted(print_us(u64::from(s.bounds.retry_after_ms) * 1000)),
    },
];

impl Settings {
    /// Reads file, environment and options.
    pub(crate) fn load(file: Option<&Path>, overrides: Overrides) -> anyhow::Result<Settings> {
        let environment = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(PREFIX)).collect();
        Ok(Settings::from_sources(file, environment, overrides)?)
    }

    /// Where the admin thread is to listen, if there is to be one. Unless it is said, developers' servers do not get into
    /// each other's way: of those on one machine one has the usual port for clients, and with it the usual one for this.
    pub(crate) fn admin_address(&self) -> Option<SocketAddr> {
        let usual: SocketAddr = ADMIN.parse().expect("a constant, parsed in a test");
        let free = SocketAddr::new(usual.ip(), 0);
        let has_usual_port = self.listen.port() == usual.port() - 1;
        match self.admin {
            AdminListen::Off => None,
            AdminListen::At(address) => Some(address),
            AdminListen::Default if self.listen.port() == 0 || (self.dev && !has_usual_port) => Some(free),
            AdminListen::Default => Some(usual),
        }
    }

    fn from_sources(
        file: Option<&Path>,
        mut environment: Vec<(OsString, OsString)>,
        overrides: Overrides,
    ) -> Result<Settings, ConfigError> {
        let mut settings = Settings::default();
        if let Some(path) = file {
            let text =
                fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            let table: Table = text
                .parse()
                .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
            settings.apply_table(&path.display().to_string(), "", &table)?;
        }
        environment.sort();
        for (name, value) in environment {
            settings.apply_variable(&name.to_string_lossy(), &value.to_string_lossy())?;
        }
        settings.apply_overrides(overrides)?;
        Ok(settings)
    }

    fn apply_table(&mut self, origin: &str, prefix: &str, table: &Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let name = format!("{prefix}{name}");
            match value {
                Value::Table(inner) if KEYS.iter().any(|key| key.name.starts_with(&format!("{name}."))) => {
                    self.apply_table(origin, &format!("{name}."), inner)?;
                }
                value => self.apply(origin, &name, &plain(value))?,
            }
        }
        Ok(())
    }

    fn apply_variable(&mut self, variable: &str, value: &str) -> Result<(), ConfigError> {
        if OTHER_VARIABLES.contains(&variable) {
            return Ok(());
        }
        let Some(key) = KEYS.iter().find(|key| key.variable() == variable) else {
            let nearest = nearest(variable, KEYS.iter().map(Key::variable));
            return Err(ConfigError::Unknown { origin: "environment".to_owned(), name: variable.to_owned(), nearest });
        };
        self.apply_key(key, "environment", variable, value)
    }

    fn apply_overrides(&mut self, overrides: Overrides) -> Result<(), ConfigError> {
        let options = [
            ("listen", "--listen", overrides.listen),
            ("admin.listen", "--admin", overrides.admin),
            ("shards", "--shards", overrides.shards.map(|shards| shards.to_string())),
            ("cpus", "--cpus", overrides.cpus),
        ];
        for (name, option, value) in options {
            if let Some(value) = value {
                let key = KEYS.iter().find(|key| key.name == name).expect("all of them are keys");
                self.apply_key(key, "options", option, &value)?;
            }
        }
        if let Some(data) = overrides.data {
            self.data = data;
        }
        self.dev |= overrides.dev;
        Ok(())
    }

    fn apply(&mut self, origin: &str, name: &str, value: &str) -> Result<(), ConfigError> {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            let nearest = nearest(name, KEYS.iter().map(|key| key.name.to_owned()));
            return Err(ConfigError::Unknown { origin: origin.to_owned(), name: name.to_owned(), nearest });
        };
        self.apply_key(key, origin, name, value)
    }

    fn apply_key(&mut self, key: &Key, origin: &str, name: &str, value: &str) -> Result<(), ConfigError> {
        (key.set)(self, value).map_err(|expected| ConfigError::Value {
            origin: origin.to_owned(),
            name: name.to_owned(),
            value: format!("{value:?}"),
            expected,
        })
    }
}

/// The settings as a configuration file has them; what is not set is commented out.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = "";
        for key in KEYS {
            let (of, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if of != table {
                writeln!(f, "\n[{of}]")?;
                table = of;
            }
            match (key.get)(self) {
                value if value.is_empty() => writeln!(f, "# {name} =")?,
                value => writeln!(f, "{name} = {value}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cpus::Allowed => Ok(()),
            Cpus::None => f.write_str("\"none\""),
            Cpus::These(cpus) => {
                let list: Vec<_> = cpus.iter().map(usize::to_string).collect();
                write!(f, "\"{}\"", list.join(","))
            }
        }
    }
}

impl fmt::Display for AdminListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminListen::Default => Ok(()),
            AdminListen::Off => f.write_str("\"none\""),
            AdminListen::At(address) => f.write_str(&quoted(address)),
        }
    }
}

fn put<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

/// A value of the file as it would stand in the environment.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let likeness = |known: String| (strsim::normalized_damerau_levenshtein(name, &known), known);
    let best = known.map(likeness).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= NEAREST_MIN).then_some(best.1)
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a directory is expected".to_owned()) } else { Ok(text.into()) }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let expected = || "an address and a port are expected, like 127.0.0.1:7400 or [::1]:7400".to_owned();
    text.to_socket_addrs().map_err(|_| expected())?.next().ok_or_else(expected)
}

/// `none`, or an address.
fn admin_listen(text: &str) -> Result<AdminListen, String> {
    if text == "none" {
        return Ok(AdminListen::Off);
    }
    address(text)
        .map(AdminListen::At)
        .map_err(|_| "`none`, or an address and a port are expected, like 127.0.0.1:7401".to_owned())
}

fn number<T: TryFrom<u64>>(text: &str, min: u64, max: u64) -> Result<T, String> {
    let expected = || format!("a number from {min} to {max} is expected");
    let number = text.parse().ok().filter(|number| (min..=max).contains(number)).ok_or_else(expected)?;
    T::try_from(number).map_err(|_| expected())
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("true or false is expected".to_owned()),
    }
}

/// `none`, or numbers and ranges: `0,2-3`.
fn cpus(text: &str) -> Result<Cpus, String> {
    let expected = || "`none` or a list of cores is expected, like 0,2-3, each once".to_owned();
    if text == "none" {
        return Ok(Cpus::None);
    }
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let parse = |text: &str| text.trim().parse::<usize>().ok().filter(|&cpu| cpu < 4096).ok_or_else(expected);
        list.extend(parse(first)?..=parse(last)?);
    }
    let mut sorted = list.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if list.is_empty() || sorted.len() != list.len() { Err(expected()) } else { Ok(Cpus::These(list)) }
}

/// The public key that verifies tokens: PASERK, 64 hexadecimal digits, or the path of a file that holds PASERK.
fn token_key(text: &str) -> Result<[u8; 32], String> {
    let text = text.trim();
    if text.starts_with("k4.") {
        return token::parse_public_key(text).map_err(|error| format!("{error:#}"));
    }
    if text.len() == 64 && text.is_ascii() {
        let mut key = [0; 32];
        let digits = (0..32).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16));
        if key.iter_mut().zip(digits).all(|(byte, digit)| digit.map(|digit| *byte = digit).is_ok()) {
            return Ok(key);
        }
    }
    token::read_public_key(Path::new(text)).map_err(|error| {
        format!(
            "`k4.public.…`, 64 hexadecimal digits, or a file that holds a PASERK public key is expected ({error:#})"
        )
    })
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("text or json is expected".to_owned()),
    }
}

fn log_level(text: &str) -> Result<String, String> {
    let filter = tracing_subscriber::EnvFilter::builder().parse(text);
    filter
        .map(|_| text.to_owned())
        .map_err(|_| "a level (error, warn, info, debug, trace) or a list of target=level is expected".to_owned())
}

/// Shorter, and checkpoints would be all that a disk does.
fn forget_after(value: &str) -> Result<u64, String> {
    let us = duration_us(value)?;
    if us >= 1_000_000 { Ok(us) } else { Err("at least 1s".to_owned()) }
}

/// That it is enough for the shards and their segments is known once the data directory is open.
fn warm_bytes(text: &str) -> Result<u64, String> {
    let expected = || "a size is a number and a unit from 1MiB to 1PiB: 512MiB, 16GiB".to_owned();
    bytes(text).filter(|bytes| (1 << 20..=1 << 50).contains(bytes)).ok_or_else(expected)
}

fn quoted(text: impl fmt::Display) -> String {
    Value::String(text.to_string()).to_string()
}

fn optional(value: Option<impl fmt::Display>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)], overrides: Overrides) -> Result<Settings, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("whimbrel.toml");
        fs::write(&path, text).unwrap();
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Settings::from_sources(Some(&path), environment, overrides)
    }

    fn file(text: &str) -> Result<Settings, ConfigError> {
        load(text, &[], Overrides::default())
    }

    #[test]
    fn the_later_source_wins() {
        let text = "shards = 2\nlisten = \"127.0.0.1:1\"\n[limits]\nkeepalive = \"15m\"\n";
        let environment =
            [("WHIMBREL_SHARDS", "3"), ("WHIMBREL_LISTEN", "127.0.0.1:2"), ("WHIMBREL_SERVER", "anything")];
        let overrides = Overrides { listen: Some("127.0.0.1:3".to_owned()), dev: true, ..Overrides::default() };
        let settings = load(text, &environment, overrides).unwrap();
        assert_eq!(settings.shards, Some(3));
        assert_eq!(settings.listen, "127.0.0.1:3".parse().unwrap());
        assert_eq!(settings.bounds.keepalive_us, 900_000_000);
        assert!(settings.dev);
        assert_eq!(settings.data, Path::new(DATA));
    }

    #[test]
    fn what_is_not_known_names_what_is() {
        let cases = [
            ("shrads = 2", "`shards`"),
            ("[limits]\nkeepalife = \"1s\"", "`limits.keepalive`"),
            ("keepalive = \"1s\"", "`keepalive`"),
            ("[limit]\nkeepalive = \"1s\"", "`limit`"),
            ("[log]\nlvel = \"info\"", "`log.level`"),
            ("[tuning]\nprofil = \"dev\"", "`tuning.profile`"),
            ("[tuning]\nprofile = \"latancy\"", "`latency`"),
        ];
        for (text, part) in cases {
            let error = file(text).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("whimbrel.toml"), "{error}");
        }
        let error = load("", &[("WHIMBREL_LOGIN_TIMEOUTS", "1s")], Overrides::default()).unwrap_err().to_string();
        assert!(error.contains("environment") && error.contains("`WHIMBREL_LOGIN_TIMEOUT`"), "{error}");
    }

    #[test]
    fn values_have_units_and_bounds() {
        let settings =
            file("segment_size = \"4MiB\"\n[limits]\nlogin_timeout = \"100ms\"\ncredit_bytes = 65536\n").unwrap();
        assert_eq!(settings.segment_size, Some(4 << 20));
        assert_eq!((settings.bounds.login_us, settings.bounds.credit_bytes), (100_000, 65_536));
        let load =
            |value| load("", &[("WHIMBREL_STORAGE_WARM_BYTES", value)], Overrides::default()).unwrap().warm_bytes;
        assert_eq!((load("48GiB"), load("1048576")), (Some(48 << 30), Some(1 << 20)));
        for wrong in [
            "shards = 0",
            "shards = \"two\"",
            "listen = \"nowhere\"",
            "cpus = \"1-0\"",
            "cpus = \"0,0\"",
            "dev = 2",
            "partitions = 40000",
            "segment_size = \"3GiB\"",
            "segment_size = \"64MB\"",
            "token_key = \"k4.local.AAAA\"",
            "log.level = \"lots=of\"",
            "storage.warm_bytes = \"1GB\"",
            "storage.warm_bytes = 1000",
            "storage.warm_bytes = \"2000TiB\"",
            "limits.keepalive = 90",
            "limits.keepalive = \"366d\"",
            "limits = 3",
        ] {
            assert!(file(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cores_are_a_list() {
        assert_eq!(file("cpus = \"none\"").unwrap().cpus, Cpus::None);
        assert_eq!(file("cpus = \"3, 0-1\"").unwrap().cpus, Cpus::These(vec![3, 0, 1]));
        assert_eq!(file("cpus = [2, 4]").unwrap().cpus, Cpus::These(vec![2, 4]));
    }

    #[test]
    fn the_admin_thread_has_its_place() {
        let place = |text: &str| file(text).unwrap().admin_address().map(|address| address.to_string());
        let usual = Some(ADMIN.to_owned());
        let free = Some("127.0.0.1:0".to_owned());
        assert_eq!(place(""), usual);
        assert_eq!(place("dev = true"), usual);
        assert_eq!(place("listen = \"0.0.0.0:5222\""), usual);
        assert_eq!(place("listen = \"127.0.0.1:0\""), free, "many servers on one machine");
        assert_eq!(place("dev = true\nlisten = \"127.0.0.1:7500\""), free, "beside one with the usual port");
        assert_eq!(place("dev = true\n[admin]\nlisten = \"0.0.0.0:9\""), Some("0.0.0.0:9".to_owned()));
        assert_eq!(place("[admin]\nlisten = \"none\""), None);
        for wrong in ["off", "", "7401", "127.0.0.1"] {
            let error = file(&format!("[admin]\nlisten = \"{wrong}\"")).unwrap_err().to_string();
            assert!(error.contains("`admin.listen`") && error.contains("`none`, or an address"), "{error}");
        }
        let overrides = Overrides { admin: Some("none".to_owned()), ..Overrides::default() };
        let settings = load("", &[("WHIMBREL_ADMIN_LISTEN", "127.0.0.1:1")], overrides).unwrap();
        assert_eq!(settings.admin, AdminListen::Off);
    }

    #[test]
    fn a_key_may_be_written_in_hexadecimal() {
        let settings = file(&format!("token_key = \"{}\"", "0f".repeat(32))).unwrap();
        assert_eq!(settings.token_key, Some([15; 32]));
    }

    #[test]
    fn what_is_printed_is_read_again() {
        let text = "shards = 2\ncpus = \"0,2\"\nsegment_size = \"4MiB\"\n[admin]\nlisten = \"[::1]:7401\"\n[storage]\nwarm_bytes = \"24GiB\"\n[limits]\nretry_after = \"50ms\"\n";
        let settings = file(text).unwrap();
        let printed = settings.to_string();
        assert_eq!(file(&printed).unwrap().to_string(), printed);
        assert!(printed.contains("# token_key ="), "{printed}");
    }
}
