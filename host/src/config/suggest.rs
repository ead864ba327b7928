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

/// At most so many names are suggested.
const MAX_NAMES: usize = 3;

/// The known names, such as `cgroups/mem`, that may be meant by another one: those of which it is the nearest misspelling;
/// without any, those of whose part behind the slash its own is.
#[must_use]
pub fn nearest_names<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let last_part = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let similar = |a: &str, b: &str| {
        let distance = strsim::osa_distance(a, b);
        (distance <= 1 + b.chars().count() / 4).then_some(distance)
    };
    let mut found: Vec<(bool, usize, &str)> = known
        .into_iter()
        .filter_map(|candidate| match similar(name, candidate) {
            Some(distance) => Some((false, distance, candidate)),
            None => {
                similar(&last_part(name), &last_part(candidate)).map(|distance| (true, distance, candidate))
            }
        })
        .collect();
    found.sort_unstable();
    let Some(&(is_part, distance, _)) = found.first() else { return Vec::new() };
    let nearest = found.into_iter().take_while(|found| (found.0, found.1) == (is_part, distance));
    nearest.take(MAX_NAMES).map(|(.., name)| name).collect()
}

/// Words as a list: `` `a`, `b` or `c` `` for the conjunction `or`.
#[must_use]
pub fn list<'a>(words: impl IntoIterator<Item = &'a str>, conjunction: &str) -> String {
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
    fn names_are_recognised_by_their_last_part() {
        let known = ["cgroups/cpu", "cgroups/mem", "posix/cpu", "posix/mem", "disk/du"];
        assert_eq!(nearest_names("cgroup/cpu", known), ["cgroups/cpu"]);
        assert_eq!(nearest_names("mem", known), ["cgroups/mem", "posix/mem"]);
        assert_eq!(nearest_names("linux/mme", known), ["cgroups/mem", "posix/mem"]);
        assert!(nearest_names("network/cni", known).is_empty());
    }

    #[test]
    fn the_last_word_of_a_list_has_a_conjunction() {
        assert_eq!(list([], "or"), "nothing");
        assert_eq!(list(["a"], "or"), "`a`");
        assert_eq!(list(["a", "b", "c"], "or"), "`a`, `b` or `c`");
    }
}
