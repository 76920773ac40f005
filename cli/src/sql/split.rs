//! Text into statements: at each `;` that stands outside quotes, dollar quotes and comments.

/// The statements of a text, trimmed, without those that are empty.
pub(crate) fn statements(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let (statement, after) = match end_of_statement(rest) {
                Some(end) => (rest.get(..end)?, rest.get(end + 1..)?),
                None => (rest, ""),
            };
            rest = after;
            let statement = statement.trim();
            if !blank(statement) {
                return Some(statement);
            }
        }
        None
    })
}

/// Whether the text ends with a whole statement, or holds none.
pub(crate) fn complete(text: &str) -> bool {
    let mut rest = text;
    while let Some(after) = end_of_statement(rest).and_then(|end| rest.get(end + 1..)) {
        rest = after;
    }
    blank(rest)
}

/// Whether the text is nothing but white space and whole comments.
fn blank(text: &str) -> bool {
    let mut rest = text.trim_start();
    while let Some(comment) = comment(rest) {
        if !comment.ended {
            return false;
        }
        rest = rest.get(comment.length..).unwrap_or_default().trim_start();
    }
    rest.is_empty()
}

/// Position of the `;` that ends the first statement.
fn end_of_statement(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        let first = rest.chars().next()?;
        at += match first {
            ';' => return Some(at),
            '\'' | '"' => quoted(rest, first),
            '$' => dollar_quoted(rest).unwrap_or(1),
            '-' | '/' => comment(rest).map_or(1, |comment| comment.length),
            _ => first.len_utf8(),
        };
    }
}

/// Length of a quoted piece, quotes included; a doubled quote is two pieces that touch.
fn quoted(text: &str, quote: char) -> usize {
    let inner = text.get(1..).unwrap_or_default();
    inner.find(quote).map_or(text.len(), |end| end + 2)
}

/// Length of `$tag$ ... $tag$`.
fn dollar_quoted(text: &str) -> Option<usize> {
    let inner = text.get(1..)?;
    let tag_end = inner.find(|c: char| !(c.is_alphanumeric() || c == '_'))?;
    // A parameter such as `$1` opens nothing.
    if !inner.get(tag_end..)?.starts_with('$') || inner.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let tag = text.get(..tag_end + 2)?;
    let body = text.get(tag.len()..)?;
    Some(body.find(tag).map_or(text.len(), |end| tag.len() + end + tag.len()))
}

/// A comment at the start of a text.
#[derive(Clone, Copy, Debug)]
struct Comment {
    length: usize,
    ended: bool,
}

/// The comment that the text starts with; block comments nest.
fn comment(text: &str) -> Option<Comment> {
    if text.starts_with("--") {
        let length = text.find('\n').map_or(text.len(), |end| end + 1);
        return Some(Comment { length, ended: true });
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut at, mut depth) = (2, 1);
    while depth > 0 {
        let rest = text.get(at..)?;
        let Some(next) = rest.find(['*', '/']) else {
            return Some(Comment { length: text.len(), ended: false });
        };
        let token = rest.get(next..)?;
        let (step, change) = match () {
            () if token.starts_with("/*") => (2, 1),
            () if token.starts_with("*/") => (2, -1),
            () => (1, 0),
        };
        at += next + step;
        depth += change;
    }
    Some(Comment { length: at, ended: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<&str> {
        statements(text).collect()
    }

    #[test]
    fn statements_end_at_semicolons_outside_quotes() {
        assert_eq!(all("SELECT 1; SELECT ';' ;"), ["SELECT 1", "SELECT ';'"]);
        assert_eq!(all("SELECT 'it''s;' , \"a;b\""), ["SELECT 'it''s;' , \"a;b\""]);
        assert_eq!(
            all("SELECT $$a;b$$, $t$;$$;$t$; SELECT $1"),
            ["SELECT $$a;b$$, $t$;$$;$t$", "SELECT $1"]
        );
        assert_eq!(all("SELECT 'ä;ö'; SELECT 'ü'"), ["SELECT 'ä;ö'", "SELECT 'ü'"]);
    }

    #[test]
    fn comments_hide_semicolons_and_are_no_statements() {
        assert_eq!(
            all("-- a;b\nSELECT 1 /* ; /* ; */ ; */; -- end;"),
            ["-- a;b\nSELECT 1 /* ; /* ; */ ; */"]
        );
        assert_eq!(all(" ; ;; "), [""; 0]);
    }

    #[test]
    fn a_text_is_complete_after_its_last_semicolon() {
        for text in ["", "SELECT 1;", "SELECT 1; -- done", "SELECT ';';"] {
            assert!(complete(text), "{text}");
        }
        for text in ["SELECT 1", "SELECT ';", "SELECT $$;", "/* ;", "SELECT 1; SELECT"] {
            assert!(!complete(text), "{text}");
        }
    }

    #[test]
    fn any_text_comes_to_an_end() {
        for text in ["'", "\"", "$", "$$", "$a", "/*", "/", "-", "--", "*/", "ä'ä", "/*/", "$ä$;"]
        {
            assert!(statements(text).count() <= 1, "{text}");
        }
    }
}
