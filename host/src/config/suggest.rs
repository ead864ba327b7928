//! Suggestions for misspelt words, and lists of words.

/// The known word that is most similar, if one is similar enough to be a misspelling.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::osa_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Words as a list: `` `a`, `b` or `c` `` for the conjunction `or`.
pub(super) fn list<'a>(words: impl IntoIterator<Item = &'a str>, conjunction: &str) -> String {
    let quoted: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} {conjunction} {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_are_recognised() {
        let known = ["destroy_timeout", "socket", "log", "log_json"];
        assert_eq!(nearest("destroy_timout", known), Some("destroy_timeout"));
        assert_eq!(nearest("sokcet", known), Some("socket"));
        assert_eq!(nearest("logjson", known), Some("log_json"));
        assert_eq!(nearest("chain", known), None);
    }

    #[test]
    fn the_last_word_of_a_list_has_a_conjunction() {
        assert_eq!(list([], "or"), "nothing");
        assert_eq!(list(["a"], "or"), "`a`");
        assert_eq!(list(["a", "b", "c"], "or"), "`a`, `b` or `c`");
    }
}
