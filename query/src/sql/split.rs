//! Cuts text into statements at the semicolons that stand outside of quotes and comments.

/// The statements of a text, without their semicolons and without those that hold nothing but comments.
pub(crate) fn split(sql: &str) -> Vec<&str> {
    let bytes = sql.as_bytes();
    let (mut statements, mut start, mut at, mut filled) = (Vec::new(), 0, 0, false);
    while let Some(&byte) = bytes.get(at) {
        let next = bytes.get(at + 1).copied();
        let end = match (byte, next) {
            (b';', _) => {
                if filled {
                    statements.extend(sql.get(start..at));
                }
                (start, filled) = (at + 1, false);
                at += 1;
                continue;
            }
            (b'-', Some(b'-')) => line_comment(bytes, at),
            (b'/', Some(b'*')) => block_comment(bytes, at),
            (byte, _) if byte.is_ascii_whitespace() => at + 1,
            _ => {
                filled = true;
                token(bytes, at)
            }
        };
        at = end;
    }
    if filled {
        statements.extend(sql.get(start..));
    }
    statements
}

/// End of what begins at `at`: a quoted text, or a single byte.
fn token(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at) {
        Some(b'\'') => {
            let escapes = at > 0
                && matches!(bytes.get(at - 1), Some(b'e' | b'E'))
                && !(at > 1 && bytes.get(at - 2).is_some_and(|byte| is_word(*byte)));
            quoted(bytes, at, b'\'', escapes)
        }
        Some(b'"') => quoted(bytes, at, b'"', false),
        Some(b'$') if !(at > 0 && bytes.get(at - 1).is_some_and(|byte| is_word(*byte))) => {
            dollar_quoted(bytes, at)
        }
        _ => at + 1,
    }
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// End of a text in quotes; a doubled quote does not end it, since the second opens the next at once.
fn quoted(bytes: &[u8], at: usize, quote: u8, escapes: bool) -> usize {
    let mut at = at + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if escapes => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn dollar_quoted(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at + 1..).unwrap_or_default();
    let Some(length) = rest.iter().position(|byte| *byte == b'$') else { return at + 1 };
    let tag = rest.get(..length).unwrap_or_default();
    if !tag.iter().all(|byte| is_word(*byte)) || tag.first().is_some_and(u8::is_ascii_digit) {
        return at + 1;
    }
    let fence = bytes.get(at..at + length + 2).unwrap_or_default();
    let body = at + fence.len();
    memchr::memmem::find(bytes.get(body..).unwrap_or_default(), fence)
        .map_or(bytes.len(), |end| body + end + fence.len())
}

fn line_comment(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    memchr::memchr(b'\n', rest).map_or(bytes.len(), |end| at + end + 1)
}

/// End of a comment between `/*` and `*/`, which nest.
fn block_comment(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut at) = (0usize, at);
    while at < bytes.len() {
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(b'/'), Some(b'*')) => {
                depth += 1;
                at += 2;
            }
            (Some(b'*'), Some(b'/')) => {
                depth = depth.saturating_sub(1);
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_outside_of_quotes_cut() {
        let sql = "select ';', \"a;b\"; select $x$ ; $x$, $1; -- c ; d\n/* ; /* ; */ ; */ ;select E'\\';' , 'it''s;' ;";
        let statements: Vec<&str> = split(sql).into_iter().map(str::trim).collect();
        assert_eq!(
            statements,
            ["select ';', \"a;b\"", "select $x$ ; $x$, $1", "select E'\\';' , 'it''s;'"]
        );
    }

    #[test]
    fn nothing_is_no_statement() {
        for sql in ["", " ;; ", "-- only a comment", "/* open"] {
            assert_eq!(split(sql), Vec::<&str>::new(), "{sql}");
        }
        assert_eq!(split("select 'open ; "), ["select 'open ; "]);
    }
}
