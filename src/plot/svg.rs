//! The few SVG elements that a chart needs.

use std::fmt::Write as _;

/// Fonts that are there on most machines.
const FONTS: &str = "Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif";

/// How a text stands at its point.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    /// Starts there.
    Start,
    /// Its middle is there.
    Middle,
    /// Ends there.
    End,
}

/// How and where a text stands.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    x: f64,
    y: f64,
    size: f64,
    anchor: Anchor,
    colour: &'static str,
    bold: bool,
    upwards: bool,
    halo: bool,
}

impl Text {
    /// A text that starts at this point of its base line.
    pub const fn new(x: f64, y: f64, size: f64) -> Self {
        Self { x, y, size, anchor: Anchor::Start, colour: "#1f2933", bold: false, upwards: false, halo: false }
    }

    /// With another anchor.
    pub const fn anchor(mut self, anchor: Anchor) -> Self {
        self.anchor = anchor;
        self
    }

    /// In another colour.
    pub const fn colour(mut self, colour: &'static str) -> Self {
        self.colour = colour;
        self
    }

    /// Bold.
    pub const fn bold(mut self) -> Self {
        self.bold = true;
        self
    }

    /// Turned by 90 degrees, to be read upwards.
    pub const fn upwards(mut self) -> Self {
        self.upwards = true;
        self
    }

    /// With a light edge, to be read on top of lines.
    pub const fn halo(mut self) -> Self {
        self.halo = true;
        self
    }
}

/// A document that grows.
#[derive(Debug)]
pub struct Svg(String);

impl Svg {
    /// A white document of this size.
    pub fn new(width: f64, height: f64) -> Self {
        let mut svg = Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" font-family=\"{FONTS}\" role=\"img\">\n"
        ));
        svg.rect(0.0, 0.0, width, height, "#ffffff");
        svg
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{element}");
    }

    /// A filled rectangle.
    pub fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        self.put(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>"
        ));
    }

    /// A straight line; `dash` may be empty.
    pub fn line(&mut self, a: (f64, f64), b: (f64, f64), stroke: &str, width: f64, dash: &str) {
        self.put(format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{stroke}\" stroke-width=\"{width}\"{}/>",
            a.0, a.1, b.0, b.1, dashed(dash)
        ));
    }

    /// A line through points.
    pub fn path(&mut self, points: &[(f64, f64)], stroke: &str, width: f64, dash: &str) {
        if points.is_empty() {
            return;
        }
        let mut list = String::new();
        for (x, y) in points {
            let _ = write!(list, "{x:.1},{y:.1} ");
        }
        self.put(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"{width}\" stroke-linejoin=\"round\" stroke-linecap=\"butt\"{}/>",
            list.trim_end(), dashed(dash)
        ));
    }

    /// A text.
    pub fn text(&mut self, text: Text, content: &str) {
        let Text { x, y, size, .. } = text;
        let anchor = match text.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let mut more = String::new();
        if text.bold {
            more.push_str(" font-weight=\"600\"");
        }
        if text.upwards {
            let _ = write!(more, " transform=\"rotate(-90 {x:.1} {y:.1})\"");
        }
        let body = escaped(content);
        let element = |colour: &str, more: &str| {
            format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{colour}\"{more}>{body}</text>"
            )
        };
        if text.halo {
            // A second text below, since not every reader knows paint-order.
            let edge = format!(
                "{more} stroke=\"#ffffff\" stroke-width=\"4\" stroke-opacity=\"0.75\" stroke-linejoin=\"round\""
            );
            self.put(format_args!("{}", element("#ffffff", &edge)));
        }
        self.put(format_args!("{}", element(text.colour, &more)));
    }

    /// The document.
    pub fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

fn dashed(dash: &str) -> String {
    if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") }
}

/// Text that may stand in XML; control characters are left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// The mean width of a glyph per font size: a wide font's, to be safe.
const GLYPH: f64 = 0.58;

/// About how wide a text is in a sans-serif font, in pixels.
pub fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * GLYPH
}

/// Breaks a text into lines of at most `width` pixels, at spaces only.
pub fn wrap(text: &str, width: f64, size: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(line, size) + text_width(word, size) + size * GLYPH <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_wraps() {
        assert_eq!(escaped("a<b & \u{1}c>"), "a&lt;b &amp; c&gt;");
        assert_eq!(wrap("scale to ten pods", 80.0, 13.0), ["scale to", "ten pods"]);
        assert!(wrap("", 80.0, 13.0).is_empty());
    }
}
