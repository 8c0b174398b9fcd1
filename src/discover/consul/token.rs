use std::{env, fmt, fs, path::PathBuf};

/// Where an ACL token comes from. It is read for each query, so that it may rotate.
#[derive(Clone)]
pub(super) enum Token {
    None,
    Value(String),
    File(PathBuf),
    Variable(String),
}

/// Why there is no token.
#[derive(Debug)]
pub(super) enum NoToken {
    File(PathBuf, std::io::Error),
    Variable(String),
}

impl Token {
    pub(super) fn read(&self) -> Result<Option<String>, NoToken> {
        let token = match self {
            Self::None => return Ok(None),
            Self::Value(token) => token.clone(),
            Self::File(path) => {
                fs::read_to_string(path).map_err(|error| NoToken::File(path.clone(), error))?
            }
            Self::Variable(name) => env::var(name).map_err(|_| NoToken::Variable(name.clone()))?,
        };
        Ok(Some(token.trim().to_owned()))
    }
}

/// Does not print a value.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Value(_) => f.write_str("Value(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Variable(name) => f.debug_tuple("Variable").field(name).finish(),
        }
    }
}

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "the token in {}: {error}", path.display()),
            Self::Variable(name) => write!(f, "no token: the variable {name} is not set"),
        }
    }
}
