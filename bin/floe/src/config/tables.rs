//! Tables whose names the operator gives: `[policy.<name>]`, and what can be set in each.
//!
//! They are in the file alone: what has a free name has neither a flag nor an environment variable. What holds for the
//! table of keys holds here too: everything is written down once, with default and reason, and the file, the document
//! and the errors are made from it.

use std::collections::BTreeMap;

use super::keys::{Default, Kind};
use super::values::Setting;
use super::{ConfigError, Origin, Raw, file};

/// What tables of one sort may hold.
#[derive(Debug)]
pub(crate) struct Family {
    /// The part before the name.
    pub(crate) section: &'static str,
    /// What such a table is about.
    pub(crate) about: &'static str,
    /// A name, for the example in the file.
    pub(crate) example: &'static str,
    /// Whether a table may have this name.
    pub(crate) is_name: fn(&str) -> bool,
    /// What a name is, for people.
    pub(crate) names: &'static str,
    /// The most tables.
    pub(crate) most: usize,
    /// What can be set in each.
    pub(crate) fields: &'static [Field],
}

/// One setting of such a table.
#[derive(Debug)]
pub(crate) struct Field {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// How it is written.
    pub(crate) kind: Kind,
    /// What holds where the table does not say.
    pub(crate) default: Default,
    /// What it does, in one sentence.
    pub(crate) about: &'static str,
    /// Why the default is what it is, and when to change it.
    pub(crate) reason: &'static str,
}

/// All sorts of such tables.
pub(crate) const FAMILIES: &[&Family] = &[&super::policies::POLICY, &super::cold::PROVIDER];

impl Family {
    /// The setting of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// One table, as it was written.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// `policy.gold`
    pub(crate) path: String,
    /// Where it begins.
    pub(crate) origin: Origin,
    /// What is set.
    pub(crate) values: BTreeMap<&'static str, (Raw, Origin)>,
}

/// Tables by family and name.
pub(crate) type Tables = BTreeMap<(&'static str, String), Table>;

impl Table {
    /// An error about one of its settings.
    pub(crate) fn invalid(&self, field: &str, reason: impl Into<String>) -> ConfigError {
        let origin = self.values.get(field).map_or(&self.origin, |(_, origin)| origin);
        ConfigError::InvalidIn {
            origin: origin.clone(),
            key: format!("{}.{field}", self.path),
            reason: reason.into(),
        }
    }

    /// What holds: the value, or the default; nothing where neither is there.
    pub(crate) fn raw(&self, field: &Field) -> Option<Raw> {
        match (self.values.get(field.name), field.default) {
            (Some((raw, _)), _) => Some(raw.clone()),
            (None, Default::Is(value)) => file::value(field.kind, value),
            (None, Default::Unset(_)) => None,
        }
    }

    /// A value that need not be set.
    pub(crate) fn optional<T: Setting>(&self, field: &Field) -> Result<Option<T>, ConfigError> {
        match self.raw(field) {
            Some(Raw::One(text)) => {
                T::read(&text).map(Some).map_err(|reason| self.invalid(field.name, reason))
            }
            Some(Raw::Many(_)) => Err(self.invalid(field.name, "it is not a list")),
            None => Ok(None),
        }
    }

    /// A value that is there.
    pub(crate) fn one<T: Setting>(&self, field: &Field) -> Result<T, ConfigError> {
        self.optional(field)?.ok_or_else(|| self.invalid(field.name, "it is unset"))
    }

    /// A list.
    pub(crate) fn many<T: Setting>(&self, field: &Field) -> Result<Vec<T>, ConfigError> {
        let texts = match self.raw(field) {
            Some(Raw::Many(texts)) => texts,
            Some(Raw::One(text)) => vec![text],
            None => Vec::new(),
        };
        texts.iter().map(|text| T::read(text).map_err(|reason| self.invalid(field.name, reason))).collect()
    }
}
