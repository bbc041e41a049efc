//! Profiles: a `sysctl.d` file and, for what is not a sysctl, a TOML file of the same name beside it. Those that come with the
//! program are compiled in; others are read from a directory. A profile that is read whole names keys of the table only, each
//! once and with a value of its shape.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::table::{self, KEYS, Known};
use crate::value::validate;

/// The profiles that come with the program: name, sysctl.d file, TOML file.
const BUILT_IN: [(&str, &str, &str); 5] = [
    ("dev", include_str!("../profiles/dev.conf"), include_str!("../profiles/dev.toml")),
    ("latency", include_str!("../profiles/latency.conf"), include_str!("../profiles/latency.toml")),
    ("throughput", include_str!("../profiles/throughput.conf"), include_str!("../profiles/throughput.toml")),
    (
        "connections-1m",
        include_str!("../profiles/connections-1m.conf"),
        include_str!("../profiles/connections-1m.toml"),
    ),
    (
        "load-generator",
        include_str!("../profiles/load-generator.conf"),
        include_str!("../profiles/load-generator.toml"),
    ),
];

/// One key with its value and the reasons for it.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// The value as it stands in the file.
    pub value: String,
    /// What the key does.
    pub what: String,
    /// Why this value.
    pub why: String,
    /// What it costs.
    pub cost: String,
    /// Where that is written.
    pub source: String,
    /// Percentages of RAM, one for each number of the value: it is computed from them, in pages, for the machine at hand.
    pub percent_of_ram: Option<Vec<u64>>,
    /// What the table says of the key.
    #[serde(skip)]
    pub known: &'static Known,
}

/// A profile.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// How a command names it: its name, or the path of its file.
    #[serde(skip)]
    pub named: String,
    /// What it is for, in a sentence.
    pub title: String,
    /// Its settings: sysctls first, each part in the order of its file.
    pub settings: Vec<Setting>,
    /// The sysctl.d file as it is.
    #[serde(skip)]
    pub conf: String,
}

/// Why a profile was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// There is none of this name.
    #[error("there is no profile `{name}`{}; `whimbrel-tune list` shows them", did_you_mean(nearest.as_deref()))]
    Unknown {
        /// The name.
        name: String,
        /// A name that is near.
        nearest: Option<String>,
    },
    /// Its file was not read.
    #[error("cannot read the profile {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line that is neither a comment nor `key = value`, a key without a value, and so on.
    #[error("{origin}, line {line}: {problem}")]
    Line {
        /// The file.
        origin: String,
        /// The line's number from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The TOML file has another shape.
    #[error("{origin} is not understood: {source}")]
    Toml {
        /// The file.
        origin: String,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// The last line is not there.
    #[error("{origin} is cut short: its last line has to be `# End: {count} settings.`. Get the whole file again")]
    CutShort {
        /// The file.
        origin: String,
        /// How many settings it has.
        count: usize,
    },
    /// A key that is not in the table.
    #[error("{origin}: `{key}` is not a key that is known here{}; `whimbrel-tune explain` lists them", did_you_mean(nearest.as_deref()))]
    Key {
        /// Where it was named.
        origin: String,
        /// The key.
        key: String,
        /// A key that is near.
        nearest: Option<String>,
    },
    /// A key that stands twice.
    #[error("{origin}: `{key}` stands there twice: remove one")]
    Twice {
        /// The file.
        origin: String,
        /// The key.
        key: String,
    },
    /// A value that the key does not take.
    #[error("{origin}: `{key}` = `{value}`: {expected}")]
    Value {
        /// The file.
        origin: String,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What is expected.
        expected: String,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// Names of the profiles that come with the program.
#[must_use]
pub fn names() -> Vec<&'static str> {
    BUILT_IN.iter().map(|(name, _, _)| *name).collect()
}

/// The profiles that come with the program.
///
/// # Errors
/// A profile that is not in order, which the tests exclude.
pub fn built_in() -> Result<Vec<Profile>, ProfileError> {
    names().into_iter().map(|name| load(name, None)).collect()
}

/// The profile of this name, of the directory if there is one. A name with a slash or the ending `.conf` is a file's.
///
/// # Errors
/// There is none, or it is not in order.
pub fn load(name: &str, directory: Option<&Path>) -> Result<Profile, ProfileError> {
    if name.contains('/') || Path::new(name).extension().is_some_and(|ending| ending == "conf") {
        return read(Path::new(name));
    }
    if let Some(directory) = directory {
        let path = directory.join(format!("{name}.conf"));
        if path.exists() {
            return read(&path);
        }
        let found = in_directory(directory)?;
        let nearest = table::nearest(name, found.iter().map(String::as_str));
        return Err(ProfileError::Unknown { name: name.to_owned(), nearest });
    }
    let Some((_, conf, rest)) = BUILT_IN.iter().find(|(known, _, _)| *known == name) else {
        return Err(ProfileError::Unknown { name: name.to_owned(), nearest: table::nearest(name, names()) });
    };
    parse(name, conf, Some(rest), &format!("{name}.conf"), &format!("{name}.toml"))
}

/// Names of the profiles in a directory.
///
/// # Errors
/// It cannot be read.
pub fn in_directory(directory: &Path) -> Result<Vec<String>, ProfileError> {
    let wrap = |source| ProfileError::Read { path: directory.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(wrap)? {
        let path = entry.map_err(wrap)?.path();
        if path.extension().is_some_and(|ending| ending == "conf")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            found.push(name.to_owned());
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<Profile, ProfileError> {
    let text =
        |path: &Path| fs::read_to_string(path).map_err(|source| ProfileError::Read { path: path.into(), source });
    let beside = path.with_extension("toml");
    let rest = if beside.exists() { Some(text(&beside)?) } else { None };
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or("profile");
    parse(name, &text(path)?, rest.as_deref(), &path.display().to_string(), &beside.display().to_string())
}

fn parse(
    name: &str,
    conf: &str,
    rest: Option<&str>,
    conf_origin: &str,
    rest_origin: &str,
) -> Result<Profile, ProfileError> {
    let mut settings = parse_conf(conf, conf_origin)?;
    if let Some(rest) = rest {
        settings.extend(parse_toml(rest, rest_origin)?);
    }
    for (index, setting) in settings.iter().enumerate() {
        let origin = if setting.known.means == table::Means::Sysctl { conf_origin } else { rest_origin }.to_owned();
        let (key, value) = (setting.key.clone(), setting.value.clone());
        if settings[..index].iter().any(|other| other.key == setting.key) {
            return Err(ProfileError::Twice { origin, key });
        }
        if let Err(expected) = validate(setting.known, &value) {
            return Err(ProfileError::Value { origin, key, value, expected });
        }
    }
    let title = conf.lines().next().unwrap_or_default().trim_start_matches(['#', ';', ' ']);
    let named = if conf_origin.contains('/') { conf_origin } else { name }.to_owned();
    Ok(Profile { name: name.to_owned(), named, title: title.to_owned(), settings, conf: conf.to_owned() })
}

/// The last line says how many settings there are: a file that was cut between two of them is found too.
fn require_end(text: &str, count: usize, origin: &str) -> Result<(), ProfileError> {
    if text.ends_with(&format!("\n# End: {count} settings.\n")) {
        return Ok(());
    }
    Err(ProfileError::CutShort { origin: origin.to_owned(), count })
}

fn known_key(key: &str, origin: &str) -> Result<&'static Known, ProfileError> {
    table::find(key).ok_or_else(|| {
        let nearest = table::nearest(key, KEYS.iter().map(|known| known.key));
        ProfileError::Key { origin: origin.to_owned(), key: key.to_owned(), nearest }
    })
}

/// What the comments above a key say.
#[derive(Default)]
struct Comments {
    fields: Vec<(String, String)>,
}

const FIELDS: [&str; 5] = ["What", "Why", "Cost", "Source", "Scaled"];

impl Comments {
    fn line(&mut self, comment: &str) {
        let text = comment.trim_start_matches(['#', ';']);
        match text.trim().split_once(": ") {
            Some((name, rest)) if FIELDS.contains(&name) => self.fields.push((name.to_owned(), rest.to_owned())),
            _ if text.starts_with("   ") => {
                if let Some((_, so_far)) = self.fields.last_mut() {
                    so_far.push(' ');
                    so_far.push_str(text.trim());
                }
            }
            _ => {}
        }
    }

    fn take(&self, name: &str) -> String {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, text)| text.clone()).unwrap_or_default()
    }

    /// `12 18 25 % of RAM`.
    fn percent_of_ram(&self) -> Result<Option<Vec<u64>>, String> {
        let text = self.take("Scaled");
        if text.is_empty() {
            return Ok(None);
        }
        let expected = || "`Scaled: 12 18 25 % of RAM` is expected, percentages from 1 to 90".to_owned();
        let numbers = text.strip_suffix(" % of RAM").ok_or_else(expected)?;
        let parse = |field: &str| field.parse().ok().filter(|percent| (1..=90).contains(percent)).ok_or_else(expected);
        numbers.split(' ').map(parse).collect::<Result<_, _>>().map(Some)
    }
}

fn parse_conf(text: &str, origin: &str) -> Result<Vec<Setting>, ProfileError> {
    let mut settings = Vec::new();
    let mut comments = Comments::default();
    for (number, line) in (1..).zip(text.lines()) {
        let problem =
            |problem: &str| ProfileError::Line { origin: origin.into(), line: number, problem: problem.into() };
        let line = line.trim_end();
        if line.is_empty() {
            comments = Comments::default();
            continue;
        }
        if line.starts_with(['#', ';']) {
            comments.line(line);
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| problem("`key = value` is expected"))?;
        let (key, value) = (key.trim().replace('/', "."), value.trim());
        if value.is_empty() {
            return Err(problem("the value is missing"));
        }
        let known = known_key(&key, &format!("{origin}, line {number}"))?;
        if known.means != table::Means::Sysctl {
            return Err(problem("this is not a sysctl; it belongs in the .toml beside this file"));
        }
        let percent_of_ram = comments.percent_of_ram().map_err(|expected| problem(&expected))?;
        if percent_of_ram.as_ref().is_some_and(|percent| percent.len() != value.split_whitespace().count()) {
            return Err(problem("as many percentages as numbers are expected"));
        }
        settings.push(Setting {
            key,
            value: value.to_owned(),
            what: comments.take("What"),
            why: comments.take("Why"),
            cost: comments.take("Cost"),
            source: comments.take("Source"),
            percent_of_ram,
            known,
        });
        comments = Comments::default();
    }
    require_end(text, settings.len(), origin)?;
    Ok(settings)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rest {
    #[serde(default)]
    setting: Vec<RestSetting>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestSetting {
    key: String,
    value: String,
    #[serde(default)]
    what: String,
    #[serde(default)]
    why: String,
    #[serde(default)]
    cost: String,
    #[serde(default)]
    source: String,
}

fn parse_toml(text: &str, origin: &str) -> Result<Vec<Setting>, ProfileError> {
    let rest: Rest = toml::from_str(text)
        .map_err(|source| ProfileError::Toml { origin: origin.into(), source: Box::new(source) })?;
    require_end(text, rest.setting.len(), origin)?;
    let settings = rest.setting.into_iter().map(|setting| {
        let known = known_key(&setting.key, origin)?;
        if known.means == table::Means::Sysctl {
            let expected = "a sysctl belongs in the .conf beside this file".to_owned();
            return Err(ProfileError::Value {
                origin: origin.into(),
                key: setting.key,
                value: setting.value,
                expected,
            });
        }
        let one_line = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(Setting {
            key: setting.key,
            value: setting.value,
            what: one_line(setting.what),
            why: one_line(setting.why),
            cost: one_line(setting.cost),
            source: setting.source,
            percent_of_ram: None,
            known,
        })
    });
    settings.collect()
}

impl Setting {
    /// The value on this machine: computed from its RAM, or the file's.
    #[must_use]
    pub fn value_on(&self, machine: &Machine) -> String {
        match (&self.percent_of_ram, machine.memory_bytes()) {
            (Some(percent), Some(bytes)) => {
                let pages = bytes / machine.page_bytes();
                percent.iter().map(|percent| (pages * percent / 100).to_string()).collect::<Vec<_>>().join(" ")
            }
            _ => self.value.clone(),
        }
    }
}

impl Profile {
    /// This profile with these keys only. None means all.
    ///
    /// # Errors
    /// A key that it does not have.
    pub fn only(mut self, keys: &[String]) -> Result<Profile, ProfileError> {
        for key in keys {
            if !self.settings.iter().any(|setting| setting.key == *key) {
                let nearest = table::nearest(key, self.settings.iter().map(|setting| setting.key.as_str()));
                return Err(ProfileError::Key { origin: format!("profile {}", self.name), key: key.clone(), nearest });
            }
        }
        if !keys.is_empty() {
            self.settings.retain(|setting| keys.contains(&setting.key));
        }
        Ok(self)
    }
}
