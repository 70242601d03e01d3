//! A line of text in colours, cut to the terminal's width.

/// How a piece of text looks on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// As usual.
    Plain,
    /// Names.
    Bold,
    /// Of less weight.
    Faint,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
}

impl Colour {
    /// The number of its escape sequence; none for plain text.
    const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Faint => Some("2"),
            Self::Good => Some("32"),
            Self::Warn => Some("33"),
            Self::Bad => Some("31"),
        }
    }
}

/// A line in the making.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pieces: Vec<(Colour, String)>,
}

impl Line {
    /// Adds a piece. Control characters, which a name or message of a cluster could hold, are left out.
    pub fn add(&mut self, colour: Colour, text: impl AsRef<str>) -> &mut Self {
        self.pieces.push((colour, text.as_ref().chars().filter(|c| !c.is_control()).collect()));
        self
    }

    /// The line, at most `width` characters of it, without blanks at its end.
    #[must_use]
    pub fn paint(&self, width: usize, colours: bool) -> String {
        let whole: usize = self.pieces.iter().map(|(_, text)| text.trim_end().len().min(1)).sum();
        let last = self.pieces.iter().rposition(|(_, text)| !text.trim_end().is_empty());
        let mut left = width;
        let mut out = String::with_capacity(whole);
        for (at, (colour, text)) in self.pieces.iter().enumerate().take(last.map_or(0, |last| last + 1)) {
            let text = if Some(at) == last { text.trim_end() } else { text.as_str() };
            let shown: String = text.chars().take(left).collect();
            left -= shown.chars().count();
            match colour.code().filter(|_| colours && !shown.is_empty()) {
                Some(code) => out.push_str(&format!("\x1b[{code}m{shown}\x1b[0m")),
                None => out.push_str(&shown),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_by_what_is_seen_of_it() {
        let mut line = Line::default();
        line.add(Colour::Bold, "abc").add(Colour::Plain, "\x1b[2J d").add(Colour::Bad, "ef").add(Colour::Plain, "  ");
        assert_eq!(line.paint(usize::MAX, false), "abc[2J def");
        assert_eq!(line.paint(2, true), "\x1b[1mab\x1b[0m");
        assert_eq!(line.paint(9, true), "\x1b[1mabc\x1b[0m[2J d\x1b[31me\x1b[0m");
    }
}
