//! Errors in one line, with what they come from: `ServiceError` alone says nothing, `connection refused` does.

use std::error::Error;
use std::fmt;

/// Shows an error and all that it comes from, parted by colons. What an error repeats of its source is shown once.
#[derive(Debug)]
pub struct Causes<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.to_string();
        f.write_str(&shown)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !shown.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            (shown, source) = (text, cause.source());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Nested {
        #[error("outer")]
        Outer(#[source] Box<Nested>),
        #[error("middle: {0}")]
        Repeats(#[source] Box<Nested>),
        #[error("refused")]
        Inner,
    }

    #[test]
    fn every_cause_is_said_once() {
        let error = Nested::Outer(Box::new(Nested::Repeats(Box::new(Nested::Inner))));
        assert_eq!(Causes(&error).to_string(), "outer: middle: refused");
    }
}
