use std::{collections::HashMap, error::Error, fmt, io, net::SocketAddr};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::endpoint::Target;

/// Why a file has no list of targets.
#[derive(Debug)]
pub(super) enum BadFile {
    Unread(io::Error),
    Json(serde_json::Error),
    /// Line and column from 1 on, and what is wrong there.
    Line(usize, usize, String),
}

/// Reads a list of targets, in JSON if it begins with a bracket.
pub(super) fn targets(text: &str) -> Result<Vec<Target<SocketAddr>>, BadFile> {
    if !text.trim_start().starts_with(['[', '{']) {
        return plain(text);
    }
    let entries: Vec<Entry> = serde_json::from_str(text).map_err(BadFile::Json)?;
    Ok(entries.into_iter().flat_map(Entry::into_targets).collect())
}

/// Reads a target from each line: an address, then `name=value` for its attributes.
fn plain(text: &str) -> Result<Vec<Target<SocketAddr>>, BadFile> {
    let mut targets = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let column = |word: &str| word.as_ptr().addr() - line.as_ptr().addr() + 1;
        let bad = |word: &str, what: &str| BadFile::Line(number, column(word), what.to_owned());
        let mut words = line.split_whitespace();
        let Some(address) = words.next() else {
            continue;
        };
        let parsed = address.parse().map_err(|_| bad(address, NO_ADDRESS))?;
        let mut target = Target::new(parsed);
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let no_number = |_| bad(word, "not a number in range");
            match name {
                "weight" => target.weight = value.parse().map_err(no_number)?,
                "priority" => target.priority = value.parse().map_err(no_number)?,
                "zone" => target.zone = Some(value.into()),
                "hash_key" => target.hash_key = Some(value.into()),
                _ => return Err(bad(word, "not weight=, zone=, priority= or hash_key=")),
            }
        }
        targets.push(target);
    }
    Ok(targets)
}

/// An entry of a list in JSON: an address, an object or a group.
struct Entry {
    addresses: Vec<SocketAddr>,
    attributes: Attributes,
}

#[derive(Default)]
struct Attributes {
    weight: Option<u32>,
    zone: Option<String>,
    priority: Option<u16>,
    hash_key: Option<String>,
}

/// All fields that an object may have. An address stands alone, or there are several.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    address: Option<SocketAddr>,
    targets: Option<Vec<SocketAddr>>,
    weight: Option<u32>,
    zone: Option<String>,
    priority: Option<u16>,
    hash_key: Option<String>,
    #[serde(default)]
    labels: HashMap<String, String>,
}

impl Entry {
    fn into_targets(self) -> impl Iterator<Item = Target<SocketAddr>> {
        let Attributes {
            weight,
            zone,
            priority,
            hash_key,
        } = self.attributes;
        self.addresses.into_iter().map(move |address| {
            let mut target = Target::new(address);
            target.weight = weight.unwrap_or(target.weight);
            target.priority = priority.unwrap_or(target.priority);
            target.zone = zone.as_deref().map(Into::into);
            target.hash_key = hash_key.as_deref().map(Into::into);
            target
        })
    }
}

impl Object {
    fn into_entry<E: de::Error>(mut self) -> Result<Entry, E> {
        let addresses = match (self.address, self.targets) {
            (Some(address), None) => vec![address],
            (None, Some(targets)) => targets,
            _ => return Err(E::custom("an entry has either `address` or `targets`")),
        };
        let mut label = |name| self.labels.remove(name);
        let (weight, priority) = (label("weight"), label("priority"));
        let (zone, hash_key) = (label("zone"), label("hash_key"));
        Ok(Entry {
            addresses,
            attributes: Attributes {
                weight: self
                    .weight
                    .map_or_else(|| number(weight), |it| Ok(Some(it)))?,
                priority: self
                    .priority
                    .map_or_else(|| number(priority), |it| Ok(Some(it)))?,
                zone: self.zone.or(zone),
                hash_key: self.hash_key.or(hash_key),
            },
        })
    }
}

/// Reads a number from a label.
fn number<N: std::str::FromStr, E: de::Error>(label: Option<String>) -> Result<Option<N>, E> {
    let parse = |text: String| {
        let no_number = |_| E::custom(format_args!("the label {text:?} is no number in range"));
        text.parse().map_err(no_number)
    };
    label.map(parse).transpose()
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AddressOrObject;

        impl<'de> Visitor<'de> for AddressOrObject {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address or an object")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Entry, E> {
                let address = text.parse().map_err(|_| E::custom(NO_ADDRESS))?;
                Ok(Entry {
                    addresses: vec![address],
                    attributes: Attributes::default(),
                })
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entry, M::Error> {
                let object = Object::deserialize(MapAccessDeserializer::new(&mut map))?;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                object.into_entry()
            }
        }

        deserializer.deserialize_any(AddressOrObject)
    }
}

impl fmt::Display for BadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread(error) => error.fmt(f),
            Self::Json(error) => error.fmt(f),
            Self::Line(line, column, what) => write!(f, "{what} at line {line} column {column}"),
        }
    }
}

impl Error for BadFile {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unread(error) => Some(error),
            Self::Json(error) => Some(error),
            Self::Line(..) => None,
        }
    }
}

const NO_ADDRESS: &str = "not an address with a port, such as 10.0.0.1:80 or [::1]:80";

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        match targets(text) {
            Err(error) => error.to_string(),
            Ok(targets) => {
                let show = |target: &Target<SocketAddr>| {
                    let Target {
                        address,
                        weight,
                        zone,
                        priority,
                        hash_key,
                    } = target;
                    let (zone, key) = (zone.as_deref(), hash_key.as_deref());
                    let (zone, key) = (zone.unwrap_or("-"), key.unwrap_or("-"));
                    format!("{address} {weight} {zone} {priority} {key}")
                };
                targets.iter().map(show).collect::<Vec<_>>().join("; ")
            }
        }
    }

    #[test]
    fn lists_are_read() {
        for (text, expected) in [
            ("", ""),
            ("[]", ""),
            (" \n# none\n\n", ""),
            (
                "10.0.0.1:80\n  [::1]:81 weight=3 zone=z priority=2 hash_key=k # new",
                "10.0.0.1:80 1 - 0 -; [::1]:81 3 z 2 k",
            ),
            (
                r#"["10.0.0.1:80", {"address": "10.0.0.2:80", "weight": 0, "zone": "z"}]"#,
                "10.0.0.1:80 1 - 0 -; 10.0.0.2:80 0 z 0 -",
            ),
            (
                r#"[{"targets": ["10.0.0.1:80", "10.0.0.2:80"],
                     "labels": {"zone": "z", "weight": "7", "job": "users"}}]"#,
                "10.0.0.1:80 7 z 0 -; 10.0.0.2:80 7 z 0 -",
            ),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn errors_name_line_and_column() {
        for (text, expected) in [
            (
                "10.0.0.1:80\n10.0.0.2",
                "not an address with a port, such as 10.0.0.1:80 or [::1]:80 at line 2 column 1",
            ),
            (
                "10.0.0.1:80 weight=heavy",
                "not a number in range at line 1 column 13",
            ),
            (
                "10.0.0.1:80 colour=red",
                "not weight=, zone=, priority= or hash_key= at line 1 column 13",
            ),
            (
                "[\"10.0.0.1:80\",\n \"users\"]",
                "not an address with a port, such as 10.0.0.1:80 or [::1]:80 at line 2 column 8",
            ),
            (
                "[\"10.0.0.1:80\"",
                "EOF while parsing a list at line 1 column 14",
            ),
            (
                "[{\"weight\": 3}]",
                "an entry has either `address` or `targets` at line 1 column 14",
            ),
            (
                "[{\"targets\": [], \"labels\": {\"weight\": \"-1\"}}]",
                "the label \"-1\" is no number in range at line 1 column 44",
            ),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        assert!(read("[{\"adress\": \"a\"}]").contains("unknown field `adress`"));
        assert!(read("{}").contains("expected a sequence at line 1 column 0"));
    }
}
