//! The header `Accept`: which of several media types a client prefers.

use axum::http::{HeaderMap, HeaderName, header};

/// A media range, with the weight that the client gives it.
#[derive(Debug)]
struct Range<'h> {
    media: &'h str,
    version: Option<&'h str>,
    /// From 0, not accepted, to 1.
    weight: f32,
}

impl<'h> Range<'h> {
    fn parse(text: &'h str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let mut this = Self { media: parts.next().unwrap_or_default(), version: None, weight: 1.0 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim_end().to_ascii_lowercase().as_str() {
                // One that is no number accepts nothing.
                "q" => this.weight = value.trim().parse().unwrap_or(0.0),
                "version" => this.version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        this
    }
}

/// What a client accepts.
#[derive(Debug)]
pub(super) struct Accepted<'h>(Vec<Range<'h>>);

impl<'h> Accepted<'h> {
    pub(super) fn of(headers: &'h HeaderMap) -> Self {
        Self::named_in(headers, &header::ACCEPT)
    }

    /// What a header says that has the form of `Accept`.
    pub(super) fn named_in(headers: &'h HeaderMap, name: &HeaderName) -> Self {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        Self(values.flat_map(|value| value.split(',')).map(Range::parse).collect())
    }

    /// The weight of a media type that the client names, in a version, or in any; `None` if it does not name it.
    pub(super) fn named(&self, media: &str, version: Option<&str>) -> Option<f32> {
        let is_it = |range: &&Range<'_>| {
            range.media.eq_ignore_ascii_case(media)
                && (range.version.is_none() || version.is_none() || range.version == version)
        };
        self.0.iter().filter(is_it).map(|range| range.weight).reduce(f32::max)
    }

    /// The weight of a media type: that of the most specific range which includes it, and 0 without one.
    pub(super) fn weight(&self, media: &str, version: Option<&str>) -> f32 {
        let group = media.split_once('/').map(|(group, _)| format!("{group}/*")).unwrap_or_default();
        let named = self.named(media, version);
        named.or_else(|| self.named(&group, None)).or_else(|| self.named("*/*", None)).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_range_decides() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, "text/*;q=0.3, */*; Q = 0.1, text/html;level=1".parse().unwrap());
        headers.append(
            header::ACCEPT,
            "text/csv;version=2;q=0.5,text/csv;q=0, image/png;q=much".parse().unwrap(),
        );
        let accepted = Accepted::of(&headers);
        for (media, version, weight) in [
            ("text/html", None, 1.0),
            ("text/plain", None, 0.3),
            ("audio/ogg", None, 0.1),
            ("text/csv", Some("2"), 0.5),
            ("text/csv", Some("1"), 0.0),
            ("IMAGE/png", None, 0.0),
        ] {
            assert!((accepted.weight(media, version) - weight).abs() < 1e-6, "{media} {version:?}");
        }
        assert_eq!(accepted.named("text/plain", None), None);
    }
}
