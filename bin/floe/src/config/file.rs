//! `config.toml`: reading it with the line of every mistake.
//!
//! The file is read against the table of keys: what is not in the table is an error that names the nearest key,
//! because a misspelt setting that is silently ignored is found only when it is needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, TableLike, Value};

use super::keys::{self, KEYS, Key, Kind, SECTIONS};
use super::tables::{FAMILIES, Family, Table, Tables};
use super::{ConfigError, Layer, Origin, Raw};

/// Above this a key is close enough to be what was meant: 0 is nothing in common, 1 is the same.
const NEAR: f64 = 0.5;
/// A config file holds a few dozen lines; reading more than this is reading the wrong file.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

/// What the file says.
#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    /// The settings of the table of keys.
    pub(crate) settings: Layer,
    /// Tables with names of the operator's own.
    pub(crate) tables: Tables,
}

impl From<Layer> for File {
    fn from(settings: Layer) -> Self {
        Self { settings, ..Self::default() }
    }
}

impl File {
    /// Settings that a flag stands for, written as a file is.
    pub(crate) fn of_flag(flag: &'static str, text: &str) -> Result<Self, ConfigError> {
        let mut read = parse(Path::new(flag), text)?;
        let origin = Origin::Flag(flag);
        read.settings.values_mut().for_each(|(_, from)| *from = origin.clone());
        for table in read.tables.values_mut() {
            table.origin = origin.clone();
            table.values.values_mut().for_each(|(_, from)| *from = origin.clone());
        }
        Ok(read)
    }
}

/// Reads the file. A file that is not there says nothing.
pub(crate) fn read(path: &Path) -> Result<File, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_FILE_BYTES => {
            let source = std::io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes"));
            return Err(unreadable(source));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
        _ => {}
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(path, &text)
}

/// Reads the text of a file.
pub(crate) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let document = Document::parse(text).map_err(|e| ConfigError::Syntax {
        path: path.to_owned(),
        line: line_of(text, e.span()),
        reason: e.message().to_owned(),
    })?;
    let mut reader = Reader { path, text, found: File::default() };
    reader.table("", document.as_table())?;
    Ok(reader.found)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    found: File,
}

impl Reader<'_> {
    fn table(&mut self, prefix: &str, table: &dyn TableLike) -> Result<(), ConfigError> {
        for (short, item) in table.iter() {
            let line = self.line_of(table, short, item);
            let name = if prefix.is_empty() { short.to_owned() } else { format!("{prefix}.{short}") };
            if let Some(key) = keys::find(&name) {
                let value = self.value(key, item, line)?;
                self.found.settings.insert(key.name, value);
            } else if let Some(family) = FAMILIES.iter().find(|family| family.section == name) {
                self.family(family, item, line)?;
            } else if let (true, Some(inner)) = (is_section(&name), item.as_table_like()) {
                self.table(&name, inner)?;
            } else {
                // A misspelt section says more when its first key is looked up with it.
                let inside =
                    item.as_table_like().and_then(|t| t.iter().next().map(|(k, _)| format!("{name}.{k}")));
                return Err(unknown(self.path, line, &name, inside.as_deref()));
            }
        }
        Ok(())
    }

    /// `[policy]`: each entry is a table with a name of the operator's own.
    fn family(&mut self, family: &'static Family, item: &Item, line: usize) -> Result<(), ConfigError> {
        let section = family.section;
        let wrong = |line, key: String, reason: String| ConfigError::InvalidIn {
            origin: Origin::File { path: self.path.to_owned(), line },
            key,
            reason,
        };
        let in_a_table =
            || format!("it stands in a table with a name, such as [{section}.{}]", family.example);
        let all = item.as_table_like().ok_or_else(|| wrong(line, section.to_owned(), in_a_table()))?;
        if all.len() > family.most {
            return Err(wrong(line, section.to_owned(), format!("there are more than {}", family.most)));
        }
        let mut read = Vec::new();
        for (name, item) in all.iter() {
            let (line, path) = (self.line_of(all, name, item), format!("{section}.{name}"));
            let table = item.as_table_like().ok_or_else(|| wrong(line, path.clone(), in_a_table()))?;
            if !(family.is_name)(name) {
                return Err(wrong(line, path, format!("a name has {}", family.names)));
            }
            read.push(((section, name.to_owned()), self.named(family, path, table, line)?));
        }
        self.found.tables.extend(read);
        Ok(())
    }

    fn named(
        &self,
        family: &'static Family,
        path: String,
        table: &dyn TableLike,
        line: usize,
    ) -> Result<Table, ConfigError> {
        let origin = Origin::File { path: self.path.to_owned(), line };
        let mut read = Table { path, origin, values: BTreeMap::new() };
        for (name, item) in table.iter() {
            let line = self.line_of(table, name, item);
            let Some(field) = family.field(name) else {
                let near = nearest(name, family.fields.iter().map(|field| field.name));
                return Err(ConfigError::UnknownKey {
                    path: self.path.to_owned(),
                    line,
                    key: format!("{}.{name}", read.path),
                    nearest: near.map(|near| format!("{}.{near}", read.path)),
                });
            };
            let origin = Origin::File { path: self.path.to_owned(), line };
            match item.as_value().and_then(|value| raw(field.kind, value)) {
                Some(raw) => read.values.insert(field.name, (raw, origin)),
                None => {
                    return Err(ConfigError::InvalidIn {
                        origin,
                        key: format!("{}.{name}", read.path),
                        reason: format!("it must be {}", field.kind.describe()),
                    });
                }
            };
        }
        Ok(read)
    }

    fn line_of(&self, table: &dyn TableLike, name: &str, item: &Item) -> usize {
        line_of(self.text, table.key(name).and_then(|k| k.span()).or_else(|| item.span()))
    }

    fn value(&self, key: &'static Key, item: &Item, line: usize) -> Result<(Raw, Origin), ConfigError> {
        let origin = Origin::File { path: self.path.to_owned(), line };
        match item.as_value().and_then(|value| raw(key.kind, value)) {
            Some(raw) => Ok((raw, origin)),
            None => Err(ConfigError::Invalid {
                origin,
                key: key.name,
                reason: format!("it must be {}", key.kind.describe()),
            }),
        }
    }
}

/// A value of this kind that is written as TOML.
pub(super) fn value(kind: Kind, text: &str) -> Option<Raw> {
    text.parse().ok().and_then(|value| raw(kind, &value))
}

/// The value as text, if it has the shape that the key wants: `"true"` in quotes is not a switch.
fn raw(kind: Kind, value: &Value) -> Option<Raw> {
    let one = |text: String| Some(Raw::One(text));
    match (kind, value) {
        (Kind::Switch, Value::Boolean(b)) => one(b.value().to_string()),
        (Kind::Count | Kind::Size, Value::Integer(n)) => one(n.value().to_string()),
        (Kind::Switch | Kind::Count, _) => None,
        (Kind::List(_), Value::Array(items)) => {
            items.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<_>>().map(Raw::Many)
        }
        (Kind::List(_), _) => None,
        (_, Value::String(text)) => one(text.value().clone()),
        _ => None,
    }
}

fn is_section(name: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == name)
}

fn unknown(path: &Path, line: usize, name: &str, inside: Option<&str>) -> ConfigError {
    let nearest = match inside {
        Some(full) => {
            let families = FAMILIES.iter().map(|family| family.section);
            let near =
                nearest(name, SECTIONS.iter().map(|(s, _)| *s).chain(families)).map(|s| format!("[{s}]"));
            near.or_else(|| nearest_key(full))
        }
        None => nearest_key(name),
    };
    ConfigError::UnknownKey { path: path.to_owned(), line, key: name.to_owned(), nearest }
}

fn nearest_key(name: &str) -> Option<String> {
    let same_short = |k: &&Key| k.short() == name.rsplit('.').next().unwrap_or(name);
    let whole = nearest(name, KEYS.iter().map(|k| k.name));
    // A right name in the wrong section, or without one.
    whole.or_else(|| KEYS.iter().find(same_short).map(|k| k.name)).map(str::to_owned)
}

fn nearest<'a>(name: &str, all: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = all.map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= NEAR).then_some(best.1)
}

fn line_of(text: &str, span: Option<std::ops::Range<usize>>) -> usize {
    let upto = span.map_or(0, |s| s.start.min(text.len()));
    text.as_bytes()[..upto].iter().filter(|b| **b == b'\n').count() + 1
}

/// Where the file is in a data directory.
pub(crate) fn path_in(data_dir: &Path) -> PathBuf {
    data_dir.join("config.toml")
}
