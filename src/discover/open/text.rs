use super::open::Kind;

/// The parts of a text such as `dns://10.0.0.53/users.internal:8080?family=v4`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text<'a> {
    whole: &'a str,
    pub(super) scheme: &'a str,
    /// What stands between two slashes and one, if it is not empty.
    pub(super) authority: Option<&'a str>,
    /// What follows, without a slash.
    pub(super) path: &'a str,
    query: &'a str,
}

impl<'a> Text<'a> {
    pub(super) fn parse(whole: &'a str) -> Result<Self, Kind> {
        let (scheme, rest) = whole.split_once(':').ok_or(Kind::NoScheme)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            // An empty path is a part of the text as well, so that it has a place.
            Some(rest) => rest.split_once('/').unwrap_or((rest, &rest[rest.len()..])),
            None => ("", rest),
        };
        Ok(Self {
            whole,
            scheme,
            authority: (!authority.is_empty()).then_some(authority),
            path,
            query,
        })
    }

    /// Returns the path with the slash that the authority ends with, if there are slashes.
    #[cfg(feature = "file")]
    pub(super) fn absolute_path(&self) -> &'a str {
        let start = self.path.as_ptr().addr() - self.whole.as_ptr().addr();
        let has_slashes = self.whole[..start].ends_with("///");
        &self.whole[start - usize::from(has_slashes)..start + self.path.len()]
    }

    /// Makes the error that something is wrong at a part of the text.
    pub(super) fn bad(&self, part: &str, what: impl Into<String>) -> Kind {
        let at = part.as_ptr().addr() - self.whole.as_ptr().addr();
        Kind::Bad(what.into(), self.whole[..at].chars().count() + 1)
    }

    /// Returns the parameters behind the question mark: names, and values that may be empty.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let parameters = self.query.split('&').filter(|one| !one.is_empty());
        // An empty value is a part of the text as well, so that it has a place.
        parameters.map(|one| one.split_once('=').unwrap_or((one, &one[one.len()..])))
    }

    /// Refuses whatever follows a question mark.
    pub(super) fn without_parameters(&self) -> Result<(), Kind> {
        match self.parameters().next() {
            Some((name, _)) => Err(self.unknown(name)),
            None => Ok(()),
        }
    }

    /// Refuses what stands between the slashes.
    pub(super) fn without_authority(&self) -> Result<(), Kind> {
        match self.authority {
            Some(authority) => Err(self.bad(authority, "nothing may stand between `//` and `/`")),
            None => Ok(()),
        }
    }

    pub(super) fn unknown(&self, name: &str) -> Kind {
        self.bad(name, format!("the parameter {name:?} is unknown"))
    }
}
