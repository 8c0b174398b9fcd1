use std::{error::Error, fmt, net::SocketAddr};

use super::{error::StartError, found::Found, source::Source};

/// Opens the source that a text names, for example one from a configuration.
///
/// | text | source |
/// |---|---|
/// | `static:10.0.0.1:80,[::1]:80` | these addresses, for ever |
/// | `file:/etc/users.json` or `file:///etc/users.json` | the source `file`, with feature `file` |
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let found = tower_lb::discover::open("static:10.0.0.1:80,10.0.0.2:80")?;
/// assert_eq!(found.first(std::time::Duration::from_secs(1)).await?.len(), 2);
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
///
/// # Errors
///
/// If the text names no source, or one of a feature that is off, or if the source can't be started.
pub fn open(text: &str) -> Result<Found, OpenError> {
    let error = |kind| OpenError {
        text: text.to_owned(),
        kind,
    };
    let source = parse(text).map_err(error)?;
    source.start().map_err(|why| error(Kind::NotStarted(why)))
}

/// Reports that a text names no source that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    NoScheme,
    UnknownScheme(String),
    /// What is wrong, and at which character.
    Bad(String, usize),
    #[cfg(not(feature = "file"))]
    FeatureIsOff(&'static str),
    NotStarted(StartError),
}

fn parse(text: &str) -> Result<Source, Kind> {
    let (scheme, rest) = text.split_once(':').ok_or(Kind::NoScheme)?;
    let start = scheme.len() + 1;
    match scheme {
        "static" => Ok(Source::fixed(addresses(rest, start)?).named(text)),
        "file" => file(rest, start),
        _ => Err(Kind::UnknownScheme(scheme.to_owned())),
    }
}

/// Parses addresses with commas between. `start` is the character that `list` begins at.
fn addresses(list: &str, start: usize) -> Result<Vec<SocketAddr>, Kind> {
    let mut at = start;
    let mut addresses = Vec::new();
    for part in list.split(',') {
        let bad = |_| Kind::Bad(format!("{part:?} is not an address with a port"), at);
        addresses.push(part.trim().parse().map_err(bad)?);
        at += part.len() + 1;
    }
    Ok(addresses)
}

#[cfg(feature = "file")]
fn file(path: &str, start: usize) -> Result<Source, Kind> {
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() {
        return Err(Kind::Bad("the path is missing".to_owned(), start));
    }
    Ok(crate::discover::file(path))
}

#[cfg(not(feature = "file"))]
fn file(_: &str, _: usize) -> Result<Source, Kind> {
    Err(Kind::FeatureIsOff("file"))
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        match &self.kind {
            Kind::NoScheme => write!(
                f,
                "{text:?} names no source: `static:` or `file:` is missing"
            ),
            Kind::UnknownScheme(scheme) => write!(
                f,
                "{text:?} names no source: `{scheme}:` is unknown, there are `static:` and `file:`"
            ),
            Kind::Bad(what, at) => write!(f, "{what}, at character {} of {text:?}", at + 1),
            #[cfg(not(feature = "file"))]
            Kind::FeatureIsOff(feature) => {
                write!(
                    f,
                    "{text:?} needs the feature `{feature}` of tower-lb, which is off"
                )
            }
            Kind::NotStarted(why) => write!(f, "{text:?} can't be started: {why}"),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            Kind::NotStarted(why) => Some(why),
            _ => None,
        }
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_text_opens_a_source_or_the_error_says_what_is_wrong_where() {
        for (text, expected) in [
            ("", "\"\" names no source: `static:` or `file:` is missing"),
            (
                "ftp:x",
                "\"ftp:x\" names no source: `ftp:` is unknown, there are `static:` and `file:`",
            ),
            (
                "static:10.0.0.1:80,users",
                "\"users\" is not an address with a port, at character 20 of \
                 \"static:10.0.0.1:80,users\"",
            ),
            (
                "static:",
                "\"\" is not an address with a port, at character 8 of \"static:\"",
            ),
        ] {
            assert_eq!(open(text).unwrap_err().to_string(), expected);
        }
        let error = open("file:").map(drop);
        match cfg!(feature = "file") {
            true => assert!(
                error
                    .unwrap_err()
                    .to_string()
                    .starts_with("the path is missing")
            ),
            false => assert!(error.unwrap_err().to_string().contains("feature `file`")),
        }
        let found = open("static:10.0.0.1:80, [::1]:80").unwrap();
        let first = found.first(std::time::Duration::from_secs(1)).await;
        assert_eq!(first.unwrap().len(), 2);
        // It does not end: an end is for sources that could have gone on.
        assert!(!found.state().is_stale());
    }
}
